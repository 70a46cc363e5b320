#!/usr/bin/env python3
"""What readers who take nothing cost the others: 10 of 1,000 stop reading in the middle of answers, or of events.

usage: benches/stalled.py [range] [watch]

Both by default. WATERSHED (default target/release/watershed) is member, proxy and generator, PROXY (the same) the proxy, or etcd's with ETCD_PROXY=1;
ROUNDS (5) and SECONDS_EACH (5). The stalled readers are a generator of their own, which is stopped (SIGSTOP) when its load runs: those of ranges list
10,000 pairs of 256 B, each on a connection of its own, those of watches watch what the others do. The others read one pair of
the same prefix 500 times a second, or get each of 20 events a second.
"""
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from base64 import b64encode

WATERSHED = os.path.abspath(os.environ.get("WATERSHED", "target/release/watershed"))
PROXY = os.path.abspath(os.environ.get("PROXY", WATERSHED))
ROUNDS, SECONDS_EACH = int(os.environ.get("ROUNDS", "5")), int(os.environ.get("SECONDS_EACH", "5"))
PORT = int(os.environ.get("PORT", "26900"))
KEYS = 10_000
ENDPOINT = f"127.0.0.1:{PORT + 2}"


def start(folder, name, program, *args):
    log = open(f"{folder}/{name}.log", "ab")
    return subprocess.Popen([program, *args], stdout=log, stderr=log)


def put_all():
    """The pairs that are read, in transactions."""
    for first in range(0, KEYS, 100):
        puts = [{"request_put": {"key": b64encode(b"b/%05d" % number).decode(), "value": b64encode(b"v" * 256).decode()}}
                for number in range(first, first + 100)]
        body = json.dumps({"success": puts}).encode()
        for _ in range(300):
            try:
                urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{PORT}/v3/kv/txn", body), timeout=10).read()
                break
            except OSError:
                time.sleep(0.1)
        else:
            sys.exit("the member takes no transaction")


def bench(*args):
    return [WATERSHED, "bench", args[0], f"--endpoints={ENDPOINT}", "--json", *args[1:]]


def loads(kind):
    """The command of the others, and that of those who stall."""
    if kind == "range":
        return (bench("range", "--conns=99", "--clients=990", "--rate=500", f"--duration={SECONDS_EACH}s", "b/00001"),
                bench("range", "--conns=10", "--clients=10", "--duration=1h", "--prefix", "b/"))
    events = str(20 * SECONDS_EACH)
    watch = ["--prefix=b/w", "--val-size=1024"]
    return (bench("watch", "--conns=99", "--streams=990", "--put-rate=20", f"--put-total={events}", *watch),
            bench("watch", "--conns=10", "--streams=10", "--put-rate=1", "--put-total=100000", *watch))


def resident(process):
    with open(f"/proc/{process.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def latency(report):
    """Of ranges, or of the delivery of events."""
    return (report.get("delivery") or report)["latency_ms"]["p99"]


def main(kinds):
    flags = [] if os.environ.get("ETCD_PROXY") else ["--cache-prefix=b/"]
    print("| readers of | alone, p99 ms | beside ten that stalled | ratio | proxy's resident kB: alone, beside |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        url, peer = f"http://127.0.0.1:{PORT}", f"http://127.0.0.1:{PORT + 1}"
        store = start(folder, "member", WATERSHED, "--name=m", f"--data-dir={folder}/data", f"--listen-client-urls={url}", f"--advertise-client-urls={url}",
                      f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=m={peer}")
        put_all()
        for kind in kinds:
            front = start(folder, "proxy", PROXY, "grpc-proxy", "start", f"--endpoints=127.0.0.1:{PORT}", f"--listen-addr={ENDPOINT}", *flags)
            time.sleep(2)
            others, stalling = loads(kind)
            alone, beside, memory = [], [], []
            for _ in range(ROUNDS):
                alone.append(latency(json.loads(subprocess.check_output(others))))
                memory.append([resident(front)])
                stalled = subprocess.Popen(stalling, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                time.sleep(2)
                stalled.send_signal(signal.SIGSTOP)
                beside.append(latency(json.loads(subprocess.check_output(others))))
                memory[-1].append(resident(front))
                stalled.kill()
                stalled.wait()
            front.kill()
            front.wait()
            one, two = statistics.median(alone), statistics.median(beside)
            least, most = (statistics.median(pair[at] for pair in memory) for at in (0, 1))
            print(f"| {kind} | {one:.2f} | {two:.2f} | {two / one:.2f} | {least:,.0f}, {most:,.0f} |", flush=True)
        store.kill()
        store.wait()


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["range", "watch"]
    if set(wanted) - {"range", "watch"}:
        sys.exit(__doc__)
    main(wanted)
