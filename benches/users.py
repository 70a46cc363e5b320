#!/usr/bin/env python3
"""Reads of many users at once, each with a token of its own, through our proxy and through etcd's, in front of one stock member.

usage: benches/users.py ETCD

ETCD is stock etcd 3.7: the member, and the other proxy. WATERSHED (default target/release/watershed) is our proxy and the generator,
USERS (100) their number, ROUNDS (5) the runs and SECONDS_EACH (5) their length. Each user has a generator of one connection, so many
processes share the machine; the CPU of a proxy is its own.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

WATERSHED = os.path.abspath(os.environ.get("WATERSHED", "target/release/watershed"))
USERS, ROUNDS = int(os.environ.get("USERS", "100")), int(os.environ.get("ROUNDS", "5"))
SECONDS_EACH, PORT = os.environ.get("SECONDS_EACH", "5"), int(os.environ.get("PORT", "26800"))
# The second one is answered from memory by etcd's proxy, and by ours.
LOADS = {"linearizable": ["--consistency=l"], "serializable": ["--consistency=s"]}


def start(folder, name, program, *args):
    log = open(f"{folder}/{name}.log", "ab")
    return subprocess.Popen([program, *args], stdout=log, stderr=log)


def ctl(*args, check=True):
    done = subprocess.run([WATERSHED, "ctl", f"--endpoints=127.0.0.1:{PORT}", *args], capture_output=True, text=True)
    if check and done.returncode:
        sys.exit(f"{' '.join(args)}: {done.stdout}{done.stderr}")
    return done.returncode == 0


def cpu(process):
    with open(f"/proc/{process.pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(endpoint, proxy, flags):
    """Answers a second of all users, the median of their p99s, and the proxy's CPU time for each answer."""
    def one(number):
        return [WATERSHED, "bench", "range", f"--endpoints={endpoint}", f"--user=u{number}:p", "--conns=1", "--clients=1",
                f"--duration={SECONDS_EACH}s", "--json", *flags, "a/k"]
    before = cpu(proxy)
    users = [subprocess.Popen(one(number), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for number in range(USERS)]
    texts = [user.communicate() for user in users]
    spent = cpu(proxy) - before
    reports = [json.loads(text) for text, _ in texts if text]
    if len(reports) < USERS or any(report["errors"] for report in reports):
        sys.exit(f"errors at {endpoint}: {[errors for _, errors in texts if errors][:1]} {[report['errors'] for report in reports][:1]}")
    answers = sum(report["operations"] for report in reports)
    return (sum(report["throughput"] for report in reports), statistics.median(report["latency_ms"]["p99"] for report in reports),
            spent / answers * 1e6)


def main(etcd):
    with tempfile.TemporaryDirectory() as folder:
        url, peer = f"http://127.0.0.1:{PORT}", f"http://127.0.0.1:{PORT + 1}"
        processes = [start(folder, "member", etcd, "--name=m", f"--data-dir={folder}/data", f"--listen-client-urls={url}",
                           f"--advertise-client-urls={url}", f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
                           f"--initial-cluster=m={peer}", "--bcrypt-cost=4")]
        while not ctl("endpoint", "health", check=False):
            time.sleep(0.1)
        ctl("put", "a/k", "v" * 256)
        ctl("role", "add", "reader")
        ctl("role", "grant-permission", "reader", "--prefix", "read", "a/")
        for name in ["root", *(f"u{number}" for number in range(USERS))]:
            ctl("user", "add", f"{name}:p")
            ctl("user", "grant-role", name, "root" if name == "root" else "reader")
        ctl("auth", "enable")
        fronts = {}
        for at, (name, program, flags) in enumerate([
            ("ours", WATERSHED, []),
            ("ours with --user", WATERSHED, ["--user=root:p", "--cache-prefix=a/"]),
            ("etcd's", etcd, []),
        ]):
            endpoint = f"127.0.0.1:{PORT + 2 + at}"
            front = start(folder, f"proxy{at}", program, "grpc-proxy", "start", f"--endpoints=127.0.0.1:{PORT}", f"--listen-addr={endpoint}", *flags)
            processes.append(front)
            fronts[name] = (endpoint, front)
        time.sleep(3)
        print("| range of 256 B | proxy | answers/s | p99 ms | proxy's CPU µs | against etcd's: answers, CPU |")
        print("| --- | --- | --- | --- | --- | --- |")
        for kind, flags in LOADS.items():
            runs = {name: [] for name in fronts}
            for _ in range(ROUNDS):
                for name, (endpoint, front) in fronts.items():
                    runs[name].append(load(endpoint, front, flags))
            medians = {name: [statistics.median(run[at] for run in of_one) for at in range(3)] for name, of_one in runs.items()}
            base = medians["etcd's"]
            for name, (rate, p99, each) in medians.items():
                print(f"| {kind} | {name} | {rate:,.0f} | {p99:.1f} | {each:.1f} | {rate / base[0]:.2f}, {each / base[2]:.2f} |", flush=True)
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(os.path.abspath(sys.argv[1]))
