#!/usr/bin/env python3
"""Large sizes: many keys, leases and watchers, long transactions and lists; one part after the other, each on new processes.

    keys             10,000,000 keys: memory, disk, starts, compaction, db snapshot, defragmentation, and puts beside them
    leases           1,000,000 leases: memory, starts, renewals, and 100,000 others that end at once beside puts
    watchers         100,000 watchers on one member, in three shapes: memory, time to open them, one event to all
    proxy-watchers   the same through one proxy
    txn              transactions of 128 puts that are 1 MiB together, alone and beside puts
    lists            100,000 keys of 1 kB that are listed in a loop beside puts

--size multiplies these numbers; --parts says what each part takes at that size. With --against each part is measured on another etcd
afterwards, with its own proxy in front of it; --only-ours names parts that leave it out. Results go to FOLDER: PART.json, and
report.md with the results of all parts that are there, also those of runs before; --document puts the same between the lines
"<!-- scale -->" and "<!-- end of scale -->" of a document. What members store lies in FOLDER, too, and is removed; of a part that failed the logs stay there. Everything is on
loopback, and the generators share the machine with what is measured. Leases need Go (benches/scale/main.go).
"""
import argparse
import collections
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "scale"))

import parts  # noqa: E402
from processes import Failed, Noise, Side  # noqa: E402

# What one side takes: seconds whatever the size, seconds and GB of disk that grow with it.
Part = collections.namedtuple("Part", "measure what fixed_seconds seconds disk_gb")
PARTS = {
    "keys": Part(parts.keys, "{keys:,} keys of 16 B with values of 64 B", 60, 840, 6),
    "leases": Part(parts.leases, "{leases:,} leases, {short:,} that end at once", 60, 540, 2),
    "watchers": Part(parts.watchers, "{watchers:,} watchers on one member", 120, 120, 0.3),
    "proxy-watchers": Part(parts.proxy_watchers, "{watchers:,} watchers through one proxy", 120, 120, 0.3),
    "txn": Part(parts.txn, "transactions of 128 puts, 1 MiB together", 60, 30, 2),
    "lists": Part(parts.lists, "{listed:,} keys of 1 kB that are listed in a loop", 90, 10, 0.5),
}
OURS, MARKS = "watershed", ("<!-- scale -->", "<!-- end of scale -->")


def main():
    options = arguments()
    if options.parts_only:
        return show_parts(options)
    # What runs ends with this script, also when that is told to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    os.makedirs(options.folder, exist_ok=True)
    failed = [name for name in options.part if not run(name, options)]
    print(report(options.folder, options.part))
    text = report(options.folder, PARTS)
    with open(os.path.join(options.folder, "report.md"), "w") as file:
        file.write(text)
    if options.document:
        into_document(options.document, text)
    sys.exit(f"not measured: {', '.join(failed)}" if failed else 0)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help="all of them unless given")
    parser.add_argument("--size", type=float, default=1.0)
    parser.add_argument("--against", metavar="ETCD", help="the program to measure against")
    parser.add_argument("--only-ours", metavar="PARTS", default="", help="a comma list")
    parser.add_argument("--watershed", metavar="PROGRAM", default="target/release/watershed", help="member, proxy and generator")
    parser.add_argument("--folder", default="target/scale")
    parser.add_argument("--rounds", type=int, default=3, help="of lists beside puts; figures are medians")
    parser.add_argument("--readers", default="1", help="clients that list, as a comma list of numbers; each is measured")
    parser.add_argument("--document", metavar="FILE")
    parser.add_argument("--parts", dest="parts_only", action="store_true", help="say what each part takes, and end")
    options = parser.parse_args()
    options.part = options.part or list(PARTS)
    options.only_ours = [name for name in options.only_ours.split(",") if name]
    for program in filter(None, (options.watershed, options.against)):
        if not os.access(program, os.X_OK):
            parser.error(f"{program} is no program")
    unknown = [name for name in options.part + options.only_ours if name not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    if not 0 < options.size <= 10:
        parser.error("--size must be above 0 and not above 10")
    try:
        options.readers = [int(number) for number in options.readers.split(",")]
    except ValueError:
        parser.error(f"--readers {options.readers}: not a comma list of numbers")
    return options


def show_parts(options):
    total = 0
    for name in options.part:
        part = PARTS[name]
        seconds = part.fixed_seconds + part.seconds * options.size
        total += seconds
        print(f"{name:15} {seconds / 60:6.1f} min and {part.disk_gb * options.size:5.1f} GB of disk for each side: {what(name, options.size)}")
    print(f"{'together':15} {total / 60:6.1f} min for each side")


def what(name, size):
    return PARTS[name].what.format(**{of: parts.counted(of, size) for of in parts.COUNTS})


def sides(name, options):
    programs = {OURS: options.watershed}
    if options.against and name not in options.only_ours:
        programs["etcd"] = options.against
    leases = os.path.join(options.folder, "leases") if name == "leases" else None
    if leases:
        built = subprocess.run(["go", "build", "-buildvcs=false", "-o", os.path.abspath(leases), "."], cwd=os.path.join(HERE, "scale"))
        if built.returncode != 0:
            sys.exit("the client for leases could not be built")
    absolute = {side: os.path.abspath(program) for side, program in programs.items()}
    return [Side(side, program, absolute[OURS], leases and os.path.abspath(leases), os.path.abspath(options.folder))
            for side, program in absolute.items()]


def run(name, options):
    """Measures a part on each side and stores what was found; false when a side could not be measured."""
    needed, free = PARTS[name].disk_gb * options.size * 1e9, shutil.disk_usage(options.folder).free
    if free < needed * 1.2:
        print(f"{name}: needs {needed / 1e9:.1f} GB in {options.folder}, {free / 1e9:.1f} GB are free", file=sys.stderr)
        return False
    found = {"part": name, "size": options.size, "what": what(name, options.size), "begun": time.strftime("%Y-%m-%d %H:%M"),
             "machine": f"{os.cpu_count()} processors, {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / (1 << 30):.0f} GiB, "
                        f"Linux {platform.release()}",
             "sides": {}, "programs": {}, "noise": {}, "failed": {}}
    for side in sides(name, options):
        noise = Noise()
        found["programs"][side.name] = {"path": side.program, **side.version()}
        try:
            PARTS[name].measure(side, options.size, options, found["sides"].setdefault(side.name, {}))
        except Failed as error:
            found["failed"][side.name] = str(error)
            print(f"{name} on {side.name}: {error}", file=sys.stderr)
        found["noise"][side.name] = noise.figures()
        with open(os.path.join(options.folder, f"{name}.json"), "w") as file:
            json.dump(found, file, indent=2, ensure_ascii=False)
        print(f"{name} on {side.name}: {found['noise'][side.name]['seconds']:.0f} s", file=sys.stderr, flush=True)
    return not found["failed"]


def report(folder, names):
    """Tables of those of the parts that were measured, now or before."""
    return "\n".join(table(found) for found in (stored(folder, name) for name in names) if found)


def stored(folder, name):
    try:
        with open(os.path.join(folder, f"{name}.json")) as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def table(found):
    names = list(found["programs"])
    versions = [f"etcd {found['programs'][name].get('etcd Version', '')}".strip() if name != OURS else OURS for name in names]
    has_ratio = len(names) == 2
    lines = [f"`{found['part']}`: {found['what']} ({found['begun']}; {found['machine']}).", ""]
    lines.append(f"| | {' | '.join(versions)} |{' ratio |' if has_ratio else ''}")
    lines.append(f"| --- |{' ---: |' * (len(names) + has_ratio)}")
    figures = dict.fromkeys(figure for side in names for figure in found["sides"].get(side, {}))
    for figure in figures:
        values = [found["sides"].get(side, {}).get(figure) for side in names]
        ratio = f" {values[0] / values[1]:.2f} |" if has_ratio and values[0] is not None and values[1] else " |" * has_ratio
        lines.append(f"| {figure} | {' | '.join(map(shown, values))} |{ratio}")
    lines.append("")
    for side, noise in found["noise"].items():
        lines.append(f"{side}: {noise['seconds']:.0f} s; other work used {noise['processors_of_other_work']:.2f} processors, the host took "
                     f"{noise['share_taken_by_the_host']:.1%} of the time.")
    lines += [f"{side} could not be measured: {error}" for side, error in found["failed"].items()]
    return "\n".join(lines) + "\n"


def shown(value):
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def into_document(path, text):
    with open(path) as file:
        before, mark, rest = file.read().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not mark or not end:
        sys.exit(f"{path}: no line {MARKS[0]} followed by one {MARKS[1]}")
    with open(path, "w") as file:
        file.write(f"{before}{MARKS[0]}\n\n{text}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
