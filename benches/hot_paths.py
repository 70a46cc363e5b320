#!/usr/bin/env python3
"""Instructions in user space of fixed pieces of the hot paths, counted by valgrind's callgrind and compared with those in
benches/hot_paths.tsv. Unlike times they do not depend on what else the machine does.

    benches/hot_paths.py              fails when a count is more than the tolerance away from the stored one
    benches/hot_paths.py --update     stores the counts
    benches/hot_paths.py --release    the same two with the release profile, whose counts are a column of their own

Each piece is a test `hot_path` of the library, which also runs with `cargo test`; what its function `counted` does is counted, and
nothing on other threads. The counts belong to a compiler: with another one than that of the file, the wider tolerance holds.
"""

import argparse
import glob
import json
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STORED = os.path.join(ROOT, "benches", "hot_paths.tsv")
# Runs of one build differ by less than 0.7 %; builds and processors choose other ways to copy and compare bytes.
TOLERANCE = 0.03
TOLERANCE_OTHER_COMPILER = 0.15
PROFILES = ["dev", "release"]


def run(words, **options):
    outcome = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, **options)
    if outcome.returncode != 0:
        sys.exit(f"{' '.join(words)}: exit {outcome.returncode}\n{outcome.stdout}{outcome.stderr}")
    return outcome.stdout


def test_program(release):
    """The library's tests as cargo builds them."""
    words = ["cargo", "test", "--lib", "--no-run", "--message-format=json"] + ["--release"] * release
    for line in run(words).splitlines():
        message = json.loads(line)
        if message.get("executable") and message.get("profile", {}).get("test"):
            return message["executable"]
    sys.exit("cargo names no test program")


def measured(program):
    """Instructions by name of the piece."""
    with tempfile.TemporaryDirectory() as folder:
        # Older compilers end a function's name with a hash. Its closures have names of their own, which must not match.
        functions = ["*::hot_path::counted", "*::hot_path::counted::h" + "?" * 16]
        flags = [f"--{what}={name}" for what in ("toggle-collect", "dump-after") for name in functions]
        run(["valgrind", "--tool=callgrind", *flags, f"--callgrind-out-file={folder}/out", program, "hot_path::", "--test-threads=1"])
        counts = {}
        for path in glob.glob(f"{folder}/out.*"):
            text = open(path).read()
            trigger = re.search(r"^desc: Trigger: --dump-after=(.*)$", text, re.M)
            total = re.search(r"^(?:totals|summary): (\d+)", text, re.M)
            if trigger and total and int(total[1]) > 0:
                counts[piece(trigger[1])] = int(total[1])
        if not counts:
            sys.exit("no counts: does the program have symbols?")
        return counts


def piece(function):
    """`watershed::core::mvcc::hot_path::counted` is `core::mvcc`."""
    return re.sub(r"(::tests)?::hot_path::counted.*$", "", function).removeprefix("watershed::")


def stored():
    """The compiler, and counts by piece and profile."""
    compiler, counts = None, {}
    if os.path.exists(STORED):
        for line in open(STORED):
            if line.startswith("# rustc"):
                compiler = line[2:].strip()
            elif not line.startswith(("#", "piece")):
                name, *numbers = line.rstrip("\n").split("\t")
                counts[name] = {profile: int(number) for profile, number in zip(PROFILES, numbers) if number}
    return compiler, counts


def store(compiler, counts):
    with open(STORED, "w") as file:
        file.write("# Instructions of the pieces of benches/hot_paths.py, which writes this file with --update.\n")
        file.write(f"# {compiler}\n")
        file.write("piece\t" + "\t".join(PROFILES) + "\n")
        for name in sorted(counts):
            numbers = [str(counts[name].get(profile, "")) for profile in PROFILES]
            file.write("\t".join([name, *numbers]) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--release", action="store_true")
    arguments = parser.parse_args()
    profile = PROFILES[arguments.release]
    compiler = run(["rustc", "--version"]).strip()
    found = measured(test_program(arguments.release))
    compiler_stored, counts = stored()
    if arguments.update:
        kept = {name: counts.get(name, {}) if compiler == compiler_stored else {} for name in found}
        store(compiler, {name: {**kept[name], profile: found[name]} for name in found})
    tolerance = TOLERANCE
    if not arguments.update and compiler != compiler_stored:
        tolerance = TOLERANCE_OTHER_COMPILER
        print(f"the counts are of {compiler_stored}, this is {compiler}: within {tolerance:.0%} passes")
    wrong = 0
    for name in sorted(found.keys() | counts.keys()):
        before, now = counts.get(name, {}).get(profile), found.get(name)
        if before is None or now is None:
            verdict = "is not stored" if before is None else "is gone"
            wrong += 1
        else:
            change = now / before - 1
            off = abs(change) > tolerance
            wrong += off
            verdict = f"{change:+.2%}" + " FAILED" * off
        print(f"{name:24} {before or '-':>14} {now or '-':>14}  {verdict}")
    if wrong and not arguments.update:
        sys.exit(
            f"{wrong} differ by more than {tolerance:.0%} (profile {profile}). Less is good, more needs a reason in the commit; "
            "benches/hot_paths.py --update stores the new counts"
        )


if __name__ == "__main__":
    main()
