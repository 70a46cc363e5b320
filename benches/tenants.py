#!/usr/bin/env python3
"""What tenants of one proxy cost each other: a quiet tenant's latency beside a noisy one, and the memory of many tenants.

usage: benches/tenants.py [noisy] [memory]

Both by default. WATERSHED (default target/release/watershed) is member and generator, PROXY (the same) the proxy, with PROXY_FLAGS; ROUNDS (5) and SECONDS_EACH (5) are those of
the noisy tenant, TENANTS (1000) the number of those whose memory is measured. Everything is on loopback, and the generators
share the machine with the rest.
"""
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

WATERSHED = os.path.abspath(os.environ.get("WATERSHED", "target/release/watershed"))
PROXY = os.path.abspath(os.environ.get("PROXY", WATERSHED))
ROUNDS, SECONDS_EACH = int(os.environ.get("ROUNDS", "5")), os.environ.get("SECONDS_EACH", "5")
TENANTS = int(os.environ.get("TENANTS", "1000"))
PORT = int(os.environ.get("PORT", "24000"))
# What the quiet tenant does, at a rate far below what it could.
QUIET = ["--conns=1", "--clients=8", "--rate=200"]
# What the noisy one does as fast as answers come.
NOISY = ["--conns=8", "--clients=256"]
LOADS = {
    "range": (["range", "--consistency=l", "k"], ["range", "--consistency=l", "k"]),
    "put": (["put", "--key-size=16", "--val-size=64", "--key-space-size=100"],
            ["put", "--key-size=16", "--val-size=256", "--key-space-size=1000"]),
}


def start(folder, name, program, *args):
    log = open(f"{folder}/{name}.log", "ab")
    return subprocess.Popen([program, *args], stdout=log, stderr=log)


def member(folder):
    url, peer = f"http://127.0.0.1:{PORT}", f"http://127.0.0.1:{PORT + 1}"
    return start(folder, "member", WATERSHED, "--name=m", f"--data-dir={folder}/data", f"--listen-client-urls={url}", f"--advertise-client-urls={url}",
                 f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=m={peer}")


def proxy(folder, tenants):
    """A proxy with tenants of these settings; their addresses follow each other from PORT + 10 on."""
    file = f"{folder}/tenants.yaml"
    with open(file, "w") as out:
        out.write("tenants:\n")
        for number, settings in enumerate(tenants):
            out.write(f"- {{name: t{number}, namespace: t{number}/, match: [{{listen: '{address(number)}'}}]{settings}}}\n")
    return start(folder, "proxy", PROXY, "grpc-proxy", "start", f"--endpoints=127.0.0.1:{PORT}", f"--listen-addr=127.0.0.1:{PORT + 2}",
                 f"--metrics-addr=http://127.0.0.1:{PORT + 3}", f"--tenants-file={file}", *os.environ.get("PROXY_FLAGS", "").split())


def address(number):
    return f"127.0.0.1:{PORT + 10 + number}"


def until_put(endpoint):
    for _ in range(300):
        try:
            return call(endpoint, "kv/put", {"key": "aw==", "value": "dg=="})
        except OSError:
            time.sleep(0.1)
    sys.exit(f"{endpoint} takes no put")


def call(endpoint, path, body):
    request = urllib.request.Request(f"http://{endpoint}/v3/{path}", json.dumps(body).encode())
    return urllib.request.urlopen(request, timeout=10).read()


def bench(number, flags, load, seconds):
    return [WATERSHED, "bench", load[0], f"--endpoints={address(number)}", "--json", f"--duration={seconds}s", *flags, *load[1:]]


def end(*processes):
    for process in processes:
        process.kill()
        process.wait()


def noisy():
    """The p99 of the quiet tenant alone, beside one that is as fast as it can be, and beside one with a limit."""
    print("| the quiet tenant's | alone, p99 ms | beside a noisy one | ratio | noisy/s | beside a limited one | ratio | limited/s, refused/s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, (quiet, loud) in LOADS.items():
        alone, free, limited, rates = [], [], [], []
        with tempfile.TemporaryDirectory() as folder:
            store = member(folder)
            # The noisy one with a limit sends a hundred times as much as it may, or more.
            front = proxy(folder, ["", "", ", limits: {requests-per-second: 200}"])
            for number in range(3):
                until_put(address(number))
            for _ in range(ROUNDS):
                report = json.loads(subprocess.check_output(bench(0, QUIET, quiet, SECONDS_EACH)))
                alone.append(report["latency_ms"]["p99"])
                rate = []
                for number, found in ((1, free), (2, limited)):
                    beside = subprocess.Popen(bench(number, NOISY, loud, int(SECONDS_EACH) + 2), stdout=subprocess.PIPE, text=True)
                    time.sleep(1)
                    report = json.loads(subprocess.check_output(bench(0, QUIET, quiet, SECONDS_EACH)))
                    found.append(report["latency_ms"]["p99"])
                    of_noise = json.loads(beside.communicate()[0])
                    if report["errors"]:
                        sys.exit(f"errors of the quiet tenant: {report['errors']}")
                    rate.append((of_noise["throughput"], sum(of_noise["errors"].values()) / of_noise["seconds"]))
                rates.append(rate)
            end(front, store)
        one, two, three = map(statistics.median, (alone, free, limited))
        loud_rate = statistics.median(rate[0][0] for rate in rates)
        kept, refused = (statistics.median(rate[1][at] for rate in rates) for at in (0, 1))
        print(f"| `{' '.join(quiet)}` | {one:.2f} | {two:.2f} | {two / one:.2f} | {loud_rate:,.0f} "
              f"| {three:.2f} | {three / one:.2f} | {kept:,.0f}, {refused:,.0f} |", flush=True)


def resident(process):
    with open(f"/proc/{process.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def memory():
    """What a tenant costs that no client uses, one that has read and written, and one with a watch."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        store = member(folder)
        for count in (1, TENANTS):
            front = proxy(folder, [""] * count)
            until_put(address(0))
            until_put(address(count - 1))
            time.sleep(2)
            sizes[count] = [resident(front)]
            for number in range(count):
                until_put(address(number))
                call(address(number), "kv/range", {"key": "aw=="})
            time.sleep(2)
            sizes[count].append(resident(front))
            watches = []
            for number in range(count):
                watch = socket.create_connection(("127.0.0.1", PORT + 10 + number))
                body = '{"create_request":{"key":"aw=="}}'
                watch.sendall(f"POST /v3/watch HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
                watches.append(watch)
            for watch in watches:
                watch.settimeout(30)
                while b"created" not in watch.recv(65536):
                    pass
            time.sleep(2)
            sizes[count].append(resident(front))
            end(front)
        end(store)
    one, many = sizes[1], sizes[TENANTS]
    print(f"| {TENANTS:,} tenants | resident kB with one / all | kB for each |")
    print("| --- | --- | --- |")
    for what, few, all_of_them in zip(("without clients", "each has put and read a key", "each has a watch besides"), one, many):
        print(f"| {what} | {few:,} / {all_of_them:,} | {(all_of_them - few) / (TENANTS - 1):.1f} |", flush=True)


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["noisy", "memory"]
    if set(wanted) - {"noisy", "memory"}:
        sys.exit(__doc__)
    for one in wanted:
        {"noisy": noisy, "memory": memory}[one]()
