#!/usr/bin/env python3
"""The cases of docs/conformance.md that any TCP gateway for etcd can be put to, with ours and, as a control, with etcd's.

    gateway_cases.py BINARY [ETCD]

Each case starts a gateway by `gateway start` with flags that both have. Those of DNS need root, network namespaces and dnsmasq, and are
skipped without. Prints a line for each case; ends with 1 if one fails with BINARY. Standard library only.
"""
import collections
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

BINARY = os.path.realpath(sys.argv[1])
ETCD = sys.argv[2] if len(sys.argv) > 2 and sys.argv[2] != "--inside" else ""
INSIDE = "--inside" in sys.argv
MIB = 1 << 20
DOMAIN = "cases.test"
PATIENCE = 10


class Failed(Exception):
    pass


def check(holds, what):
    if not holds:
        raise Failed(what)


def until(seconds, what, holds):
    """Asks until it holds."""
    end = time.monotonic() + seconds
    while not holds():
        check(time.monotonic() < end, what)
        time.sleep(0.02)


def free_port(host="127.0.0.1"):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


class Endpoint:
    """Answers each connection with its name and then by `handle`, an echo by default."""

    def __init__(self, name=b"a", port=0, handle=None, host="127.0.0.1"):
        self.name, self.handle, self.open = name, handle or self.echo, []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.listener = socket.create_server((host, port), family=family, backlog=1024)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE)
            self.open.append(connection)
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        try:
            connection.sendall(self.name)
            self.handle(connection)
        except OSError:
            pass

    def echo(self, connection):
        while data := connection.recv(4096):
            connection.sendall(data)
        connection.close()

    def die(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.open:
            connection.close()


class Gateway:
    def __init__(self, program, *flags, listen=None, limit=None, ready=True):
        self.host, self.port = listen or ("127.0.0.1", free_port())
        shown = f"[{self.host}]" if ":" in self.host else self.host
        command = [program, "gateway", "start", f"--listen-addr={shown}:{self.port}", *flags]
        if limit:
            command = ["sh", "-c", f'ulimit -n {limit}; exec "$0" "$@"', *command]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.text = b""
        threading.Thread(target=self.read, daemon=True).start()
        running.append(self)
        if ready:
            until(PATIENCE, "it does not start: " + self.text.decode()[-200:], lambda: b"ready to proxy" in self.text)

    def read(self):
        for line in self.process.stderr:
            self.text += line

    def connect(self):
        return socket.create_connection((self.host, self.port), timeout=PATIENCE)

    def who(self):
        """The name of the endpoint that serves a new connection; none when it is closed instead."""
        try:
            with self.connect() as connection:
                return connection.recv(1) or None
        except (ConnectionError, TimeoutError):
            return None

    def shares(self, connections):
        return collections.Counter(self.who() for _ in range(connections))

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def stop(self):
        self.process.kill()
        self.process.wait()


running = []


def to(*endpoints):
    return "--endpoints=" + ",".join(f"127.0.0.1:{endpoint.port}" for endpoint in endpoints)


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def whole(connection):
    data = b""
    while piece := connection.recv(1 << 16):
        data += piece
    return data


def half_close(program):
    """G01, G5: a half-close of either side loses nothing of the other direction"""
    got = []

    def answer_late(connection):
        got.append(len(whole(connection)))
        connection.sendall(bytes(MIB))
        connection.shutdown(socket.SHUT_WR)

    def end_first(connection):
        connection.shutdown(socket.SHUT_WR)
        got.append(len(whole(connection)))

    with Gateway(program, to(Endpoint(handle=answer_late))).connect() as client:
        client.sendall(bytes(MIB))
        client.shutdown(socket.SHUT_WR)
        check(len(whole(client)) == MIB + 1, "the answer is not whole")
    with Gateway(program, to(Endpoint(handle=end_first))).connect() as client:
        whole(client)
        try:
            client.sendall(bytes(MIB))
        except ConnectionError:
            pass
        client.shutdown(socket.SHUT_WR)
        until(PATIENCE, "the endpoint does not see the end", lambda: len(got) == 2)
    check(got == [MIB, MIB], f"bytes that reached the endpoint: {got}")


def resets(program):
    """G02: a reset arrives as a reset, in both directions"""
    seen = []

    def note(connection):
        try:
            whole(connection)
            seen.append("end")
        except ConnectionResetError:
            seen.append("reset")

    client = Gateway(program, to(Endpoint(handle=note))).connect()
    client.recv(1)
    reset(client)
    until(PATIENCE, "the endpoint sees nothing", lambda: seen)
    client = Gateway(program, to(Endpoint(handle=reset))).connect()
    note(client)
    check(seen == ["reset", "reset"], f"the endpoint sees {seen[0]}, the client {seen[1]}")


def black_hole(program):
    """G03: an endpoint whose host drops packets costs 2 s at most"""
    hole = socket.socket()
    hole.bind(("127.0.0.1", 0))
    hole.listen(0)
    queued = []
    while True:
        probe = socket.socket()
        probe.settimeout(0.3)
        try:
            probe.connect(hole.getsockname())
        except TimeoutError:
            break
        queued.append(probe)
    echo = Endpoint()
    gateway = Gateway(program, f"--endpoints=127.0.0.1:{hole.getsockname()[1]},127.0.0.1:{echo.port}")
    for _ in range(4):
        begin = time.monotonic()
        check(gateway.who() == b"a" and time.monotonic() - begin < 2, "a connection takes longer")


def all_down(program):
    """G04, G4: with all endpoints down a client is closed; once one is back it serves within 1 s"""
    first = Endpoint()
    gateway = Gateway(program, to(first))
    check(gateway.who() == b"a", "does not serve")
    first.die()
    begin = time.monotonic()
    check(gateway.who() is None and time.monotonic() - begin < 2, "not closed")
    time.sleep(5)
    Endpoint(port=first.port)
    until(1, "not used again within 1 s", lambda: gateway.who() == b"a")


def descriptors(program):
    """G05, G6: out of descriptors: open connections live, nothing ends, and it is over when they are back"""
    gateway = Gateway(program, to(Endpoint()), limit=64)
    clients = []
    for _ in range(80):
        client = gateway.connect()
        client.settimeout(0.5)
        try:
            if not client.recv(1):
                break
        except OSError:
            break
        clients.append(client)
    check(len(clients) > 5, "few are served")
    time.sleep(0.5)
    check(gateway.process.poll() is None, f"the process has ended with {gateway.process.poll()}")
    clients[0].sendall(b"y")
    check(clients[0].recv(1) == b"y", "an open connection is dead")
    for client in clients:
        client.close()
    until(PATIENCE, "nobody is served afterwards", lambda: gateway.who() == b"a")


def own_address(program):
    """G06, G9: its own address as an endpoint, by another name of it, is refused at the start"""
    port = free_port()
    gateway = Gateway(program, f"--endpoints=localhost:{port}", listen=("0.0.0.0", port), ready=False)
    until(3, "it starts", lambda: gateway.process.poll() is not None)
    check(gateway.process.poll() != 0, "it ends with 0")


def loop_of_two(program):
    """G06, G9: a loop through a second gateway is bounded, and gone once its client is"""
    ports = free_port(), free_port()
    both = [Gateway(program, f"--endpoints=127.0.0.1:{ports[1 - at]}", listen=("127.0.0.1", ports[at]), limit=256) for at in (0, 1)]
    client = both[0].connect()
    client.settimeout(5)
    try:
        client.recv(1)
    except (ConnectionError, TimeoutError):
        pass
    client.close()
    for gateway in both:
        until(PATIENCE, "descriptors stay in use", lambda: gateway.process.poll() is not None or gateway.descriptors() < 64)
        check(gateway.process.poll() is None, "a process has ended")


def churn(program):
    """G07: 3,000 connections that come and go leave nothing behind"""
    gateway = Gateway(program, to(Endpoint()))
    gateway.shares(200)
    time.sleep(0.5)
    before = gateway.descriptors()
    check(gateway.shares(3000)[b"a"] == 3000, "not all are served")
    until(PATIENCE, "descriptors stay in use", lambda: gateway.descriptors() <= before + 2)


def drain(program):
    """G7: after SIGTERM an open connection is served to its end, and the exit code is 0"""
    gateway = Gateway(program, to(Endpoint()))
    client = gateway.connect()
    client.recv(1)
    gateway.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    client.sendall(b"y")
    check(client.recv(1) == b"y", "the connection is gone")
    client.close()
    until(PATIENCE, "it does not end", lambda: gateway.process.poll() is not None)
    check(gateway.process.poll() == 0, f"it ends with {gateway.process.poll()}")


def no_such_name(program):
    """G8: an endpoint whose name does not resolve at the start"""
    gateway = Gateway(program, f"--endpoints=nobody.invalid:1,127.0.0.1:{Endpoint().port}")
    until(PATIENCE, "does not serve", lambda: gateway.who() == b"a")


def ipv6(program):
    """G12: IPv6 on both sides"""
    endpoint = Endpoint(host="::1")
    gateway = Gateway(program, f"--endpoints=[::1]:{endpoint.port}", listen=("::1", free_port("::1")))
    check(gateway.who() == b"a", "does not serve")


class Records:
    """dnsmasq with SRV records: service, endpoint, priority, weight."""

    def __init__(self, *records):
        self.process = None
        self.show(*records)

    def show(self, *records):
        self.stop()
        command = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file=", "--user=root",
                   f"--local=/{DOMAIN}/", "--listen-address=127.0.0.1", "--bind-interfaces", "--local-ttl=1",
                   f"--host-record=host.{DOMAIN},127.0.0.1"]
        for service, endpoint, priority, weight in records:
            command.append(f"--srv-host=_{service}._tcp.{DOMAIN},host.{DOMAIN},{endpoint.port},{priority},{weight}")
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        running.append(self)
        until(PATIENCE, "dnsmasq does not answer", self.answers)

    def answers(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.settimeout(0.1)
            name = b"".join(bytes([len(label)]) + label.encode() for label in f"host.{DOMAIN}".split(".")) + b"\0"
            try:
                probe.sendto(b"\0\1\1\0\0\1\0\0\0\0\0\0" + name + b"\0\1\0\1", ("127.0.0.1", 53))
                return bool(probe.recv(512))
            except OSError:
                return False

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()


def discovered(program):
    return Gateway(program, f"--discovery-srv={DOMAIN}", "--insecure-discovery")


def weights(program):
    """G08, G1: shares by the weights of SRV records, within 10 points"""
    for weights in [(1, 1), (1, 2, 3)]:
        endpoints = [Endpoint(name) for name in (b"a", b"b", b"c")[: len(weights)]]
        records = Records(*(("etcd-client", endpoint, 0, weight) for endpoint, weight in zip(endpoints, weights)))
        shares = discovered(program).shares(400)
        records.stop()
        for endpoint, weight in zip(endpoints, weights):
            expected = 100 * weight / sum(weights)
            check(abs(shares[endpoint.name] / 4 - expected) < 10, f"weights {weights}: {dict(shares)}")


def priorities(program):
    """G08, G2: the best priority alone serves; the next while it is down; the first again once it is back"""
    first, second = Endpoint(b"a"), Endpoint(b"b")
    Records(("etcd-client", first, 10, 0), ("etcd-client", second, 20, 0))
    gateway = discovered(program)
    check(gateway.shares(50) == {b"a": 50}, "the second gets connections while the first serves")
    first.die()
    until(3, "the second does not take over", lambda: gateway.who() == b"b")
    Endpoint(b"a", port=first.port)
    until(3, "the first does not serve again", lambda: gateway.shares(5) == {b"a": 5})


def followed(program):
    """G11, D3: new records are followed; a DNS server that is gone changes nothing"""
    first, second = Endpoint(b"a"), Endpoint(b"b")
    records = Records(("etcd-client", first, 0, 0))
    gateway = discovered(program)
    check(gateway.who() == b"a", "does not serve")
    records.show(("etcd-client", second, 0, 0))
    until(6, "the new record is not followed", lambda: gateway.who() == b"b")
    records.stop()
    time.sleep(3)
    check(gateway.shares(5) == {b"b": 5}, "without DNS it no longer serves")


def one_kind(program):
    """G13, D1: endpoints with TLS and without are never mixed"""
    tls, plain = Endpoint(b"t"), Endpoint(b"p")
    Records(("etcd-client-ssl", tls, 0, 0), ("etcd-client", plain, 0, 0))
    shares = discovered(program).shares(20)
    check(shares == {b"t": 20}, f"{dict(shares)}")


def nothing_found(program):
    """G09, D2: no records: an exit code above 0, and no fall-back to 127.0.0.1:2379"""
    fallback = Endpoint(port=2379)
    Records()
    gateway = Gateway(program, f"--discovery-srv={DOMAIN}", "--insecure-discovery", ready=False)
    time.sleep(3)
    ended = gateway.process.poll()
    fallback.die()
    check(ended not in (None, 0), "it starts" if ended is None else "it ends with 0")


CASES = [half_close, resets, black_hole, all_down, descriptors, own_address, loop_of_two, churn, drain, no_such_name, ipv6]
DNS_CASES = [weights, priorities, followed, one_kind, nothing_found]


def outcome(case, program):
    try:
        case(program)
        return "ok"
    except (Failed, OSError) as failure:
        return f"FAILS: {failure}" if isinstance(failure, Failed) else f"FAILS: {failure!r}"
    finally:
        for process in running:
            process.stop()
        running.clear()


def run(cases):
    failed = False
    programs = [("ours", BINARY)] + ([("etcd's", ETCD)] if ETCD else [])
    for case in cases:
        print(case.__doc__, flush=True)
        for name, program in programs:
            result = outcome(case, program)
            failed |= name == "ours" and result != "ok"
            print(f"    {name}: {result}", flush=True)
    return failed


def in_namespace():
    """The cases of DNS, where this script is the only one that uses port 53 and /etc/resolv.conf."""
    if os.geteuid() != 0 or not shutil.which("dnsmasq") or not shutil.which("ip"):
        print("those of DNS: skipped, they take root, ip and dnsmasq")
        return False
    name = f"wc{os.getpid()}"
    os.makedirs(f"/etc/netns/{name}", exist_ok=True)
    try:
        with open(f"/etc/netns/{name}/resolv.conf", "w") as resolv:
            resolv.write("nameserver 127.0.0.1\n")
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        command = ["ip", "netns", "exec", name, sys.executable, os.path.realpath(__file__), BINARY]
        return subprocess.run([*command, *([ETCD] if ETCD else []), "--inside"]).returncode != 0
    finally:
        subprocess.run(["ip", "netns", "delete", name])
        shutil.rmtree(f"/etc/netns/{name}")


if ETCD:
    ETCD = os.path.realpath(shutil.which(ETCD) or ETCD)
if INSIDE:
    sys.exit(run(DNS_CASES))
failed = run(CASES)
sys.exit(failed | in_namespace())
