#!/usr/bin/env python3
"""Stress of the TCP gateway, by hash and by count: gateway_stress.py BINARY [MEBIBYTES] [CHURN_SECONDS] [SEED]

1. Bytes in both directions at once over 16 connections, in pieces of random size, each direction half-closed by its
   sender: every byte arrives, by SHA-256, however much is still on its way at the half-close.
2. Connections that one side resets at a random point: the other side sees a reset or what had come before it, and never
   a clean end of a torn stream.
3. Connections opened, used once and closed as fast as it goes: descriptors and memory of the gateway stay flat.

Nothing is measured against the clock; a failure prints the seed. Needs Python and nothing else.
"""
import hashlib
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time

BINARY = sys.argv[1]
MEBIBYTES = int(sys.argv[2]) if len(sys.argv) > 2 else 1024
CHURN_SECONDS = float(sys.argv[3]) if len(sys.argv) > 3 else 60
SEED = int(sys.argv[4]) if len(sys.argv) > 4 else random.randrange(1 << 32)
CONNECTIONS = 16
RESETS = 400
PATIENCE = 120
failures = []


def check(holds, what):
    if not holds:
        failures.append(what)


def serve(handle):
    """Listens; each connection gets a thread."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)

    def accept():
        while True:
            connection, _ = listener.accept()
            connection.settimeout(PATIENCE)
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


class Gateway:
    def __init__(self, endpoint):
        self.process = subprocess.Popen(
            [BINARY, "gateway", "start", "--listen-addr=127.0.0.1:0", f"--endpoints=127.0.0.1:{endpoint}"],
            stderr=subprocess.PIPE,
        )
        ready = next(line for line in self.process.stderr if b"ready to proxy client requests" in line)
        host, port = json.loads(ready)["listen_addr"].rsplit(":", 1)
        self.address = (host, int(port))
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def connect(self):
        return socket.create_connection(self.address, timeout=PATIENCE)

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def resident(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

    def settled(self, descriptors):
        """Waits until no connection is open any more."""
        until = time.monotonic() + PATIENCE
        while self.descriptors() > descriptors and time.monotonic() < until:
            time.sleep(0.01)
        return self.descriptors()

    def stop(self):
        self.process.terminate()
        return self.process.wait(PATIENCE)


def send_all(connection, seed, length):
    """Sends bytes that the seed gives, in pieces of random size, half-closes, and returns their hash."""
    chance, digest = random.Random(seed), hashlib.sha256()
    while length > 0:
        piece = chance.randbytes(min(length, chance.choice([1, 100, 5_000, 70_000, 900_000])))
        digest.update(piece)
        connection.sendall(piece)
        length -= len(piece)
    connection.shutdown(socket.SHUT_WR)
    return digest.digest()


def receive_all(connection):
    digest, length = hashlib.sha256(), 0
    while data := connection.recv(1 << 18):
        digest.update(data)
        length += len(data)
    return digest.digest(), length


def by_hash():
    def started(work, *args):
        """A thread, and the list its result goes to; it stays empty if the connection breaks."""
        result = []

        def attempt():
            try:
                result.append(work(*args))
            except OSError:
                pass

        thread = threading.Thread(target=attempt)
        thread.start()
        return thread, result

    each = MEBIBYTES * (1 << 20) // CONNECTIONS // 2
    arrived = {}

    def far_end(connection):
        number = struct.unpack(">I", connection.recv(4, socket.MSG_WAITALL))[0]
        sender, sent = started(send_all, connection, SEED + 2 * number, each)
        receiver, received = started(receive_all, connection)
        sender.join()
        receiver.join()
        arrived[number] = (received, sent)

    gateway = Gateway(serve(far_end))

    def client(number):
        connection = gateway.connect()
        connection.sendall(struct.pack(">I", number))
        sender, sent = started(send_all, connection, SEED + 2 * number + 1, each)
        receiver, received = started(receive_all, connection)
        sender.join()
        receiver.join()
        until = time.monotonic() + PATIENCE
        while number not in arrived and time.monotonic() < until:
            time.sleep(0.01)
        there, back = arrived.get(number, ([], []))
        check(sent and there == [(sent[0], each)], f"connection {number}: bytes to the endpoint differ")
        check(back and received == [(back[0], each)], f"connection {number}: bytes to the client differ")

    clients = [threading.Thread(target=client, args=(number,)) for number in range(CONNECTIONS)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    check(gateway.stop() == 0, "the gateway ends with another code than 0")
    print(f"by hash: {2 * each * CONNECTIONS >> 20} MiB on {CONNECTIONS} connections")


def resets():
    """Each sender announces more bytes than it sends, so that a clean end is always a torn stream."""
    outcomes = {"reset": 0, "clean": 0}

    def torn_send(connection, chance):
        try:
            connection.sendall(chance.randbytes(chance.choice([1, 1_000, 100_000, 3_000_000])))
        except OSError:
            pass
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    def note(connection):
        try:
            while connection.recv(1 << 16):
                pass
            outcomes["clean"] += 1
        except ConnectionResetError:
            outcomes["reset"] += 1
        connection.close()

    def far_end(connection):
        kind = connection.recv(1)
        if kind == b"c":
            note(connection)
        elif kind == b"e":
            torn_send(connection, random.Random(connection.getpeername()[1]))

    gateway = Gateway(serve(far_end))
    idle = gateway.descriptors()
    chance = random.Random(SEED)
    for number in range(RESETS):
        connection = gateway.connect()
        if number % 2:
            connection.sendall(b"c")
            torn_send(connection, chance)
        else:
            connection.sendall(b"e")
            note(connection)
    left = gateway.settled(idle + 8)
    until = time.monotonic() + PATIENCE
    while sum(outcomes.values()) < RESETS and time.monotonic() < until:
        time.sleep(0.01)
    check(outcomes["clean"] == 0, f"{outcomes['clean']} torn streams ended cleanly")
    check(outcomes["reset"] == RESETS, f"{outcomes['reset']} of {RESETS} resets arrived")
    check(gateway.stop() == 0, "the gateway ends with another code than 0")
    print(f"resets: {outcomes['reset']} of {RESETS} arrived as resets, {left} descriptors left of {idle}")


def churn():
    def far_end(connection):
        while data := connection.recv(4096):
            connection.sendall(data)
        connection.close()

    gateway = Gateway(serve(far_end))

    def one():
        with gateway.connect() as connection:
            connection.sendall(b"x")
            check(connection.recv(1) == b"x", "a connection was not served")

    for _ in range(500):
        one()
    before = (gateway.settled(40), gateway.resident())
    count, until = 0, time.monotonic() + CHURN_SECONDS
    while time.monotonic() < until:
        one()
        count += 1
    after = (gateway.settled(before[0]), gateway.resident())
    check(after[0] <= before[0], f"descriptors: {before[0]} before, {after[0]} after {count} connections")
    check(after[1] <= before[1] + 8 * 1024, f"resident KiB: {before[1]} before, {after[1]} after {count} connections")
    check(gateway.stop() == 0, "the gateway ends with another code than 0")
    print(f"churn: {count} connections, descriptors {before[0]} -> {after[0]}, resident {before[1]} -> {after[1]} KiB")


by_hash()
resets()
churn()
for failure in failures[:20]:
    print(failure, file=sys.stderr)
if failures:
    sys.exit(f"seed {SEED}")
