#!/usr/bin/env python3
"""What users and TLS cost: puts and ranges with each on and off, and puts beside logins, for two servers in one run.

usage: benches/auth_tls.py ETCD

ETCD is the stock server to compare with. WATERSHED (default target/release/watershed) is the server under test and the
generator, ROUNDS (5) the number of runs of each load, SECONDS_EACH (3) their length, COST (10) bcrypt's cost, LOGINS (64) how many
logins a second are asked for, PUTS (10000) the rate of the puts beside them. Needs openssl. Each set-up is a member of its
own on loopback; the loads of one round run on all of them, one after the other.
"""
import json
import os
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

WATERSHED = os.path.abspath(os.environ.get("WATERSHED", "target/release/watershed"))
ROUNDS, SECONDS_EACH = int(os.environ.get("ROUNDS", "5")), os.environ.get("SECONDS_EACH", "3")
COST, LOGINS, PUTS = os.environ.get("COST", "10"), int(os.environ.get("LOGINS", "64")), os.environ.get("PUTS", "10000")
CLIENTS = ["--conns=8", "--clients=64"]
LOADS = {
    "put": ["put", *CLIENTS, "--key-size=16", "--val-size=256", "--key-space-size=10000"],
    "range": ["range", *CLIENTS, "--consistency=l", "foo"],
}
next_port = int(os.environ.get("PORT", "21300"))


def port():
    global next_port
    next_port += 1
    return next_port


def run(*args):
    done = subprocess.run(args, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(args)}: {done.stdout}{done.stderr}")
    return done.stdout


def certificates(folder):
    """A CA, and a P-256 certificate for 127.0.0.1."""
    def file(name):
        return f"{folder}/{name}"
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    run("openssl", "req", "-x509", *new_key, "-days", "2", "-subj", "/CN=ca", "-keyout", file("ca.key"), "-out", file("ca.crt"))
    run("openssl", "req", *new_key, "-subj", "/CN=member", "-keyout", file("member.key"), "-out", file("member.csr"))
    with open(file("extensions"), "w") as out:
        out.write("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    run("openssl", "x509", "-req", "-in", file("member.csr"), "-CA", file("ca.crt"), "-CAkey", file("ca.key"), "-CAcreateserial",
        "-days", "2", "-extfile", file("extensions"), "-out", file("member.crt"))


class Member:
    """One member, with or without TLS and users."""

    def __init__(self, program, folder, tls, users):
        self.tls, self.users, self.folder = tls, users, folder
        client, peer = port(), port()
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{client}"
        peer = f"http://127.0.0.1:{peer}"
        files = [f"--cert-file={folder}/member.crt", f"--key-file={folder}/member.key"] if tls else []
        log = open(f"{folder}/log", "ab")
        self.process = subprocess.Popen(
            [program, "--name=m", f"--data-dir={folder}/{client}", f"--listen-client-urls={self.endpoint}",
             f"--advertise-client-urls={self.endpoint}", f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
             f"--initial-cluster=m={peer}", f"--bcrypt-cost={COST}", *files], stdout=log, stderr=log)
        for _ in range(100):
            if subprocess.run(self.ctl("endpoint", "health"), capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        else:
            sys.exit(f"{program} did not become ready: see {folder}/log")
        run(*self.ctl("put", "foo", "x" * 256))
        if users:
            run(*self.ctl("user", "add", "root:secret"))
            run(*self.ctl("user", "grant-role", "root", "root"))
            run(*self.ctl("user", "add", "load:secret"))
            run(*self.ctl("role", "add", "load"))
            run(*self.ctl("role", "grant-permission", "load", "--from-key", "readwrite", ""))
            run(*self.ctl("user", "grant-role", "load", "load"))
            run(*self.ctl("auth", "enable"))

    def trust(self):
        return [f"--cacert={self.folder}/ca.crt"] if self.tls else []

    def ctl(self, *args):
        return [WATERSHED, "ctl", f"--endpoints={self.endpoint}", *self.trust(), *args]

    def bench(self, load, *more):
        user = ["--user=load:secret"] if self.users else []
        pid = f"--server-pid={self.process.pid}"
        report = json.loads(run(WATERSHED, "bench", load[0], f"--endpoints={self.endpoint}", *self.trust(), *user, "--json", pid,
                                *more, *load[1:]))
        if report["errors"]:
            print(f"errors at {self.endpoint}: {report['errors']}", file=sys.stderr)
        return report

    def cpu(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        self.process.kill()
        self.process.wait()


class Logins:
    """Asks for LOGINS logins a second over JSON, each in a thread that waits for its answer."""

    def __init__(self, member):
        self.stop, self.done, self.failed, self.waits = threading.Event(), 0, 0, []
        body = json.dumps({"name": "load", "password": "secret"}).encode()
        context = ssl.create_default_context(cafile=f"{member.folder}/ca.crt") if member.tls else None
        first = time.monotonic()

        def login(number):
            turn = number
            while not self.stop.is_set():
                begun = first + turn / LOGINS
                if self.stop.wait(max(0, begun - time.monotonic())):
                    return
                request = urllib.request.Request(f"{member.endpoint}/v3/auth/authenticate", body)
                begun = time.monotonic()
                try:
                    urllib.request.urlopen(request, timeout=60, context=context).read()
                    self.done += 1
                    self.waits.append(time.monotonic() - begun)
                except OSError:
                    self.failed += 1
                turn += LOGINS

        self.begun = time.monotonic()
        self.threads = [threading.Thread(target=login, args=(number,)) for number in range(LOGINS)]
        for thread in self.threads:
            thread.start()

    def end(self):
        self.stop.set()
        rate = self.done / (time.monotonic() - self.begun)
        waits = sorted(self.waits)
        for thread in self.threads:
            thread.join()
        return rate, waits[len(waits) // 2] if waits else float("nan"), self.failed


def table_of_loads(programs, folder):
    setups = {(name, tls, users): Member(program, folder, tls, users)
              for tls in (False, True) for users in (False, True) for name, program in programs.items()}
    rates, costs, tails = {}, {}, {}
    for _ in range(ROUNDS):
        for load, args in LOADS.items():
            for setup, member in setups.items():
                report = member.bench(args, f"--duration={SECONDS_EACH}s")
                key = (load, *setup)
                rates.setdefault(key, []).append(report["throughput"])
                costs.setdefault(key, []).append(report["servers"][0]["cpu_us_per_op"])
                tails.setdefault(key, []).append(report["latency_ms"]["p99"])
    for member in setups.values():
        member.end()
    print("| load | TLS | users | " + " | ".join(f"{n}: per second, CPU µs, p99 ms, of its rate with both off" for n in programs)
          + " | rate, CPU to etcd's |")
    print("| --- | --- | --- |" + " ---: |" * (len(programs) + 1))
    middle = statistics.median
    for load in LOADS:
        for tls in (False, True):
            for users in (False, True):
                cells = []
                for name in programs:
                    key, off = (load, name, tls, users), (load, name, False, False)
                    cells.append(f"{middle(rates[key]):,.0f}, {middle(costs[key]):.1f}, {middle(tails[key]):.1f}, "
                                 f"{middle(rates[key]) / middle(rates[off]):.2f}")
                ours, etcds = (load, "watershed", tls, users), (load, "etcd", tls, users)
                ratio = f"{middle(rates[ours]) / middle(rates[etcds]):.2f}, {middle(costs[ours]) / middle(costs[etcds]):.2f}"
                on = {False: "off", True: "on"}
                print(f"| {load} | {on[tls]} | {on[users]} | " + " | ".join(cells) + f" | {ratio} |")


def table_of_logins(programs, folder):
    members = {name: Member(program, folder, False, True) for name, program in programs.items()}
    load = [*LOADS["put"], f"--rate={PUTS}"]
    print(f"\n| server | puts/s asked for {PUTS}: alone, p50, p99, p99.9 ms | beside {LOGINS} logins/s at cost {COST} | logins/s, p50 s, failed |")
    print("| --- | --- | --- | --- |")
    rows = {name: ([], [], []) for name in members}
    for _ in range(ROUNDS):
        for name, member in members.items():
            alone, beside, logged = rows[name]
            alone.append(member.bench(load, f"--duration={SECONDS_EACH}s"))
            logins = Logins(member)
            beside.append(member.bench(load, f"--duration={2 * int(SECONDS_EACH)}s"))
            logged.append(logins.end())
    for member in members.values():
        member.end()

    def cell(reports):
        def middle(of):
            return statistics.median(of(report) for report in reports)
        tail = ", ".join(f"{middle(lambda r: r['latency_ms'][p]):.1f}" for p in ("p50", "p99", "p99_9"))
        return f"{middle(lambda r: r['throughput']):,.0f}/s, {tail}"
    for name, (alone, beside, logged) in rows.items():
        rate, wait = (statistics.median(column) for column in list(zip(*logged))[:2])
        print(f"| {name} | {cell(alone)} | {cell(beside)} | {rate:.1f}, {wait:.2f}, {sum(failed for _, _, failed in logged)} |")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    programs = {"watershed": WATERSHED, "etcd": os.path.abspath(sys.argv[1])}
    folder = tempfile.mkdtemp(prefix="auth-tls-")
    certificates(folder)
    table_of_loads(programs, folder)
    table_of_logins(programs, folder)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
