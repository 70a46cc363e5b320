#!/usr/bin/env python3
"""What a proxy loses to a bad endpoint, five seconds after the endpoint went bad.

usage: benches/bad_endpoints.py PROXY [CASE ...]

PROXY is the program under test; `PROXY grpc-proxy start` with etcd's flags is run, so it may be an etcd. ETCD (default
`etcd`) is the member, WATERSHED (default target/release/watershed) the generator. CASEs: `stopped` (one of three members
gets SIGSTOP), `dark` (one of three in a network namespace whose link goes down; root), and one of two endpoints is `http`
(answers HTTP/1.1 404), `full` (its accept queue is full), `silent` (accepts and says nothing) or `garbage`. Prints the
report of `watershed bench put`: 16 callers, 3 s for each put, 10 s long.
"""
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

ETCD = os.environ.get("ETCD", "etcd")
WATERSHED = os.path.abspath(os.environ.get("WATERSHED", "target/release/watershed"))
NAMESPACE, HERE, THERE = "wsdark", "10.99.7.1", "10.99.7.2"
CASES = ["stopped", "dark", "http", "full", "silent", "garbage"]
next_port = int(os.environ.get("PORT", "21100"))


def port():
    global next_port
    next_port += 1
    return next_port


def sh(line):
    subprocess.run(line, shell=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def output(*args):
    return subprocess.run(args, capture_output=True, text=True).stdout


class Stage:
    """Processes in a folder of their own, and what has to be undone."""

    def __init__(self):
        self.folder, self.processes = tempfile.mkdtemp(prefix="bad-endpoints-"), []

    def start(self, args, namespace=None):
        inside = ["ip", "netns", "exec", namespace] if namespace else []
        log = open(f"{self.folder}/log", "ab")
        process = subprocess.Popen(inside + args, stdout=log, stderr=log, cwd=self.folder)
        self.processes.append(process)
        return process

    def members(self, hosts):
        """Each host is an address and a namespace; returns processes and endpoints."""
        peers = [f"http://{host}:{port()}" for host, _ in hosts]
        clients = [f"{host}:{port()}" for host, _ in hosts]
        cluster = ",".join(f"m{i}={peer}" for i, peer in enumerate(peers))
        started = [
            self.start([ETCD, "--name", f"m{i}", "--data-dir", f"{self.folder}/m{i}", "--listen-peer-urls", peers[i],
                        "--initial-advertise-peer-urls", peers[i], "--listen-client-urls", f"http://{clients[i]}",
                        "--advertise-client-urls", f"http://{clients[i]}", "--initial-cluster", cluster], hosts[i][1])
            for i in range(len(hosts))
        ]
        for endpoint in clients:
            ready(endpoint)
        return started, clients

    def proxy(self, program, endpoints):
        endpoint = f"127.0.0.1:{port()}"
        self.start([program, "grpc-proxy", "start", "--endpoints", ",".join(endpoints), "--listen-addr", endpoint])
        ready(endpoint)
        return endpoint

    def end(self):
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        sh(f"ip netns del {NAMESPACE}; ip link del wsdark0")
        shutil.rmtree(self.folder, ignore_errors=True)


def ready(endpoint):
    deadline = time.time() + 60
    while "OK" not in output(WATERSHED, "ctl", "--endpoints", endpoint, "--command-timeout=1s", "put", "ready", "1"):
        if time.time() > deadline:
            sys.exit(f"{endpoint} does not answer")
        time.sleep(0.2)


def follower(endpoints):
    for number, endpoint in enumerate(endpoints):
        if output(WATERSHED, "ctl", "--endpoints", endpoint, "endpoint", "status").split(", ")[8] == "false":
            return number
    sys.exit("no follower")


def link():
    """A pair of interfaces with fixed neighbours, so that packets vanish when one of them goes down."""
    sh(f"ip netns add {NAMESPACE}; ip link add wsdark0 type veth peer name wsdark1 netns {NAMESPACE}")
    sh(f"ip addr add {HERE}/30 dev wsdark0; ip link set wsdark0 up")
    inside = f"ip netns exec {NAMESPACE}"
    sh(f"{inside} ip addr add {THERE}/30 dev wsdark1; {inside} ip link set wsdark1 up; {inside} ip link set lo up")
    here = output("cat", "/sys/class/net/wsdark0/address").strip()
    there = output("ip", "netns", "exec", NAMESPACE, "cat", "/sys/class/net/wsdark1/address").strip()
    sh(f"ip neigh replace {THERE} lladdr {there} dev wsdark0 nud permanent")
    sh(f"{inside} ip neigh replace {HERE} lladdr {here} dev wsdark1 nud permanent")


def bad_endpoint(kind):
    listener = socket.socket()
    listener.bind(("127.0.0.1", port()))
    listener.listen(0 if kind == "full" else 512)
    kept = [listener]
    address = listener.getsockname()
    if kind == "full":
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(address)
            kept.append(client)

    def answer(client):
        try:
            if kind == "garbage":
                client.sendall(b"\x99no protocol at all" * 30)
            while client.recv(4096) and kind == "http":
                client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                client.close()
        except OSError:
            pass

    def accept():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            kept.append(client)
            if kind != "silent":
                threading.Thread(target=answer, args=(client,), daemon=True).start()

    if kind != "full":
        threading.Thread(target=accept, daemon=True).start()
    return f"{address[0]}:{address[1]}", kept


def run(program, case):
    stage = Stage()
    try:
        if case == "stopped":
            members, endpoints = stage.members([("127.0.0.1", None)] * 3)
            proxy = stage.proxy(program, endpoints)
            members[follower(endpoints)].send_signal(signal.SIGSTOP)
        elif case == "dark":
            link()
            _, endpoints = stage.members([(HERE, None), (HERE, None), (THERE, NAMESPACE)])
            proxy = stage.proxy(program, endpoints)
            sh(f"ip netns exec {NAMESPACE} ip link set wsdark1 down")
        else:
            _, endpoints = stage.members([("127.0.0.1", None)])
            bad, _kept = bad_endpoint(case)
            proxy = stage.proxy(program, endpoints + [bad])
        load = [WATERSHED, "bench", "put", "--endpoints", proxy, "--clients", "16", "--conns", "4",
                "--request-timeout", "3s"]
        # The first five seconds do not count, but somebody has to be there to notice.
        output(*load, "--duration", "5s")
        print(f"== {case}\n{output(*load, '--duration', '10s')}", flush=True)
    finally:
        stage.end()


for name in sys.argv[2:] or CASES:
    run(os.path.abspath(sys.argv[1]) if os.path.exists(sys.argv[1]) else sys.argv[1], name)
