"""The parts of benches/scale.py: each measures one side and notes its figures by name in `found`."""
import contextlib
import os
import signal
import statistics
import subprocess
import time

from processes import ENVIRONMENT, KEY_BYTES, Failed, Load, bench, beside, end, grant, put_latency, puts

MIB = 1 << 20
# How many at size 1, and the fewest that say anything.
COUNTS = {"keys": (10_000_000, 10_000), "leases": (1_000_000, 1000), "short": (100_000, 100), "watchers": (100_000, 1000),
          "transactions": (400, 20), "listed": (100_000, 1000)}
# Length of each run of puts that others are compared with, in seconds.
PUTS_SECONDS = 10


def counted(what, size):
    """So many of these at this size, in whole thousands where it is that many."""
    all_of_them, least = COUNTS[what]
    count = max(least, int(all_of_them * size))
    return count - count % 1000 if count >= 1000 else count


def keys(side, size, _options, found):
    """A large store: memory, disk, starts, compaction, db snapshot, defragmentation."""
    count = counted("keys", size)
    with side.member() as member:
        empty = member.memory()
        found["load, keys/s"] = write(member, count, 64)
        member.settle()
        if member.count() != count:
            raise Failed(f"{member.count()} keys are there, not {count}")
        found["resident, bytes/key"] = (member.memory() - empty) / count
        found["of it without files, bytes/key"] = member.memory("RssAnon") / count
        found["most resident during the load, MiB"] = member.memory("VmHWM") / MIB
        found["on disk: state, bytes/key"] = member.disk("snap") / count
        found["on disk: log, MiB"] = member.disk("wal") / MIB
        found["stop by SIGTERM, s"], found["start until it serves, s"] = member.restart(signal.SIGTERM)
        _, found["start after kill -9, s"] = member.restart(signal.SIGKILL)
        member.settle()
        found["resident after a start, bytes/key"] = (member.memory() - empty) / count
        found["puts alone: p99, ms"] = put_latency(member, PUTS_SECONDS)["p99"]

        file = os.path.join(side.folder, "saved")
        sizes = []

        def replace():
            write(member, count // 10, 64)

        def compact():
            member.call("kv/compaction", {"revision": member.revision(), "physical": True})

        def save():
            words = [side.generator, "ctl", f"--endpoints={member.endpoint}", "--command-timeout=1800s", "snapshot", "save", file]
            outcome = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT)
            if outcome.returncode != 0:
                raise Failed(f"{' '.join(words)}: {outcome.stderr.strip()}")
            sizes.append(os.path.getsize(file))
            os.remove(file)

        def defragment():
            member.call("maintenance/defragment", {})

        for name, prepare, act in (("compaction", replace, compact), ("snapshot save", None, save), ("defragmentation", None, defragment)):
            found[f"{name}, s"], found[f"{name} beside puts, s"], latency = beside(member, act, prepare)
            found[f"puts beside {name}: p99, ms"], found[f"puts beside {name}: longest, ms"] = latency["p99"], latency["max"]
        found["saved db snapshot, bytes/key"] = sizes[0] / count
        member.settle()
        found["on disk after defragmentation: state, bytes/key"] = member.disk("snap") / count
        found["most resident since the start, MiB"] = member.memory("VmHWM") / MIB


def write(member, count, value_bytes):
    """Writes so many keys once, in transactions of a hundred; returns keys per second."""
    report = bench(member, "txn-put", "--txn-ops=100", f"--key-size={KEY_BYTES}", f"--val-size={value_bytes}", f"--key-space-size={count}",
                   f"--total={count // 100}", "--conns=16", "--clients=64")
    return report["throughput"] * 100


def leases(side, size, _options, found):
    """Many leases, a tenth with a key; then a tenth as many that end at once."""
    count, short = counted("leases", size), counted("short", size)
    with side.member() as member:
        empty = member.memory()
        granted = grant(member, count, 1, 36_000, "leased/", 10)
        found["granted, leases/s"], found["grant: p99, ms"] = granted["leases_per_second"], granted["p99_ms"]
        member.settle()
        found["resident, bytes/lease"] = (member.memory() - empty) / count
        found["on disk: state, bytes/lease"] = member.disk("snap") / count
        found["stop by SIGTERM, s"], found["start until it serves, s"] = member.restart(signal.SIGTERM)
        _, found["start after kill -9, s"] = member.restart(signal.SIGKILL)
        member.settle()
        found["resident after a start, bytes/lease"] = (member.memory() - empty) / count
        renewals = bench(member, "lease-keepalive", "--leases=1000", "--streams=10", "--in-flight=8", "--duration=5s")
        found["renewals/s of 1,000 others"], found["renewals: p99, ms"] = renewals["throughput"], renewals["latency_ms"]["p99"]
        found["puts alone: p99, ms"] = put_latency(member, PUTS_SECONDS)["p99"]
        storm(member, short, count + 1, int(20 + 60 * min(size, 1)), found)
        left = len(member.call("lease/leases", {}).get("leases", []))
        if left != count:
            raise Failed(f"{left} leases are there after the others expired, not {count}")
        found["most resident since the start, MiB"] = member.memory("VmHWM") / MIB


def storm(member, count, first, ttl, found):
    """So many leases with a key each that end together: the deadlines of all begin anew when the member has started."""
    grant(member, count, first, ttl, "short/", 1)
    member.restart(signal.SIGTERM)
    due = time.monotonic() + ttl
    while member.count("short/") == count:
        if time.monotonic() > due + 120:
            raise Failed(f"none of {count} leases expired within 120 s of its time")
        time.sleep(0.05)
    begun, worst, load = time.monotonic(), 0.0, None
    try:
        while True:
            load = load or puts(member, 2)
            left = member.count("short/")
            if left and load.process.poll() is None:
                time.sleep(0.1)
                continue
            if not left:
                found["storm: last lease after the first, s"] = time.monotonic() - begun
            # Of the puts that began within these two seconds.
            worst, load = max(worst, load.report()["latency_ms"]["p99"]), None
            if not left:
                break
    finally:
        if load:
            end(load)
    found["storm: first lease after its time, s"] = begun - due
    found["storm: expired leases/s"] = count / max(found["storm: last lease after the first, s"], 0.001)
    found["storm: puts, p99 of the worst two seconds, ms"] = worst


# Longest time in seconds until one stream has all its watches.
WATCH_PATIENCE = 120
# Name, and flags for so many watchers. The first puts reach all of them, those of the last one watcher each.
SHAPES = (
    ("100 on a stream", lambda count: (count // 100, 100, 1, 5, 0.2)),
    ("a stream each", lambda count: (count, 1, 1, 5, 0.2)),
    ("100 on a stream, a key each", lambda count: (count // 100, 100, count, 1000, 100)),
)


def watchers(side, size, _options, found):
    """Many watchers on one member."""
    watched(side, size, found, through_proxy=False)


def proxy_watchers(side, size, _options, found):
    """Many watchers through one proxy in front of one member."""
    watched(side, size, found, through_proxy=True)


def watched(side, size, found, through_proxy):
    count = counted("watchers", size)
    failed = []
    for name, shape in SHAPES:
        try:
            with side.member() as member, side.proxy(member) if through_proxy else contextlib.nullcontext() as proxy:
                programs = [proxy, member] if proxy else [member]
                watch(programs, name, count, shape(count), found)
        except Failed as error:
            failed.append(str(error))
    if failed:
        raise Failed("; ".join(failed))


def watch(programs, name, count, shape, found):
    """Watches through the first of these, and puts through it, too."""
    streams, per_stream, watched_keys, put_total, rate = shape
    conns = max(1, min(100, streams // 10))
    report = bench(programs[0], "watch", f"--streams={streams}", f"--watchers-per-stream={per_stream}", f"--keys={watched_keys}", f"--conns={conns}",
                   f"--put-total={put_total}", f"--put-rate={rate}", "--drain-timeout=120s",
                   patience=WATCH_PATIENCE, watched=programs)
    delivery = report["delivery"]
    found[f"{name}: all open, s"] = delivery["setup_seconds"]
    for program in programs:
        found[f"{name}: {program.name}, bytes/watcher"] = delivery["idle_bytes_per_stream"][program.name] * streams / count
    for what, field in (("p50", "p50"), ("p99", "p99"), ("last", "max")):
        found[f"{name}: event, {what}, ms"] = delivery["latency_ms"][field]
    found[f"{name}: put, p99, ms"] = report["latency_ms"]["p99"]
    for cost in report["servers"]:
        found[f"{name}: {cost['name']}, CPU µs/event"] = cost["cpu_us_per_op"]
    # etcd's proxy numbers watches itself, and not always in the order of their requests: the generator then takes events of watches
    # with different keys for those of each other.
    wrong = sum(delivery[what] for what in ("missing", "duplicate_or_disordered", "ended_watches"))
    found[f"{name}: events missing, twice or out of order"] = wrong
    time.sleep(2)
    for program in programs:
        found[f"{name}: {program.name} resident when all are gone, MiB"] = program.memory() / MIB
    if wrong and programs[0].side.is_ours:
        raise Failed(f"{name}: {wrong} events are missing, twice or out of order")


def txn(side, size, _options, found):
    """Transactions of 128 puts that are 1 MiB together."""
    total = counted("transactions", size)
    flags = ["--txn-ops=128", f"--key-size={KEY_BYTES}", f"--val-size={8192 - KEY_BYTES}", "--key-space-size=1280"]
    with side.member() as member:
        found["puts alone: p99, ms"] = put_latency(member, PUTS_SECONDS)["p99"]
        for clients in (1, 8):
            report = bench(member, "txn-put", *flags, f"--conns={clients}", f"--clients={clients}", f"--total={total}", watched=[member])
            found[f"clients {clients}: transactions/s"] = report["throughput"]
            found[f"clients {clients}: p50, ms"], found[f"clients {clients}: p99, ms"] = report["latency_ms"]["p50"], report["latency_ms"]["p99"]
            found[f"clients {clients}: CPU ms/transaction"] = report["servers"][0]["cpu_us_per_op"] / 1000
        load = Load(member, "txn-put", *flags, "--rate=20", f"--duration={PUTS_SECONDS + 1}s", "--conns=8", "--clients=8")
        time.sleep(0.5)
        found["puts beside 20 transactions/s: p99, ms"] = put_latency(member, PUTS_SECONDS)["p99"]
        found["transactions beside puts: p99, ms"] = load.report()["latency_ms"]["p99"]
        found["most resident, MiB"] = member.memory("VmHWM") / MIB
        member.settle()
        found["resident at rest, MiB"], found["on disk, MiB"] = member.memory() / MIB, member.disk() / MIB


def lists(side, size, options, found):
    """Clients that list everything in a loop beside puts."""
    count = counted("listed", size)
    with side.member() as member:
        write(member, count, 1000)
        member.settle()
        found["resident before, MiB"] = member.memory() / MIB
        for readers in options.readers:
            alone, ratios, found_beside, rates, listed = [], [], [], [], []
            for _ in range(options.rounds):
                alone.append(put_latency(member, PUTS_SECONDS)["p99"])
                load = Load(member, "range", f"--conns={readers}", f"--clients={readers}", f"--duration={PUTS_SECONDS + 2}s", "--consistency=l", "--prefix", "")
                time.sleep(1)
                report = puts(member, PUTS_SECONDS).report()
                found_beside.append(report["latency_ms"]["p99"])
                rates.append(report["throughput"])
                ratios.append(found_beside[-1] / alone[-1])
                listed.append(load.report()["throughput"])
            name = f"{readers} who list" if readers > 1 else "one who lists"
            found[f"puts alone, before {name}: p99, ms"] = statistics.median(alone)
            found[f"puts beside {name}: p99, ms"] = statistics.median(found_beside)
            found[f"{name}: p99 beside / alone"] = statistics.median(ratios)
            found[f"puts/s of 500 beside {name}"] = statistics.median(rates)
            found[f"{name}: lists/s"] = statistics.median(listed)
            found[f"most resident with {name}, MiB"] = member.memory("VmHWM") / MIB
