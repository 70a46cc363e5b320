#!/usr/bin/env python3
"""What clients of a TCP gateway see of outages: our gateway with and without health checks, etcd's gateway, HAProxy.

    gateway_outages.py BINARY [--etcd PROGRAM] [--interval MS] [--timeout MS] [--rounds N] [--only SCENARIO,…]

Three members (BINARY) stand in network namespaces of their own; all gateways serve them at the same time, so that each outage
hits all of them at once. Their endpoints come from SRV records of dnsmasq. Behind each gateway a client opens a new connection 40
times a second and makes a serializable read on it (which needs no leader, so that what is seen is the gateway's), and eight kept
connections make a linearizable write each 100 ms. An attempt without an answer of status 200 within 2 s has failed.

Scenarios: `rolling` (each member is stopped and started, one after the other), `replaced` (a member leaves for one with another address;
the SRV records change), `stopped` (a follower gets SIGSTOP for 10 s), `dropped` (a follower's packets are dropped for 10 s), `all-down` (all
members are killed, and started after 5 s).

Health checks get `/readyz`; two failed ones in a row, the second 0.1 s after the first, leave an endpoint out, with our gateway and with HAProxy alike.

Columns, for each gateway: new connections made; those that failed; those that failed and were begun later than the checks can need to notice the
fault (one interval, two timeouts, and the 0.1 s); recovery: from the fault (`all-down`: from the first answer of a member) to the begin of
the last failed new connection (`all-down`: to the first that is answered); the longest wait for an answer; errors of kept
connections. For `replaced` also the time from the change of the records to the first new connection that the new member answers.

Needs root, network namespaces, nft, dnsmasq and, for their rows, haproxy and a stock etcd. Ends with 1 if a new connection through our
gateway with health checks failed later than that.
"""
import argparse
import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

CLIENT = 2379
PERIOD = 0.025
KEPT = 8
KEPT_PERIOD = 0.1
DEADLINE = 2.0
DOMAIN = "outage.test"
SCENARIOS = ["rolling", "replaced", "stopped", "dropped", "all-down"]

parser = argparse.ArgumentParser()
parser.add_argument("binary")
parser.add_argument("--etcd", default=shutil.which("etcd"))
parser.add_argument("--interval", type=int, default=250)
parser.add_argument("--timeout", type=int, default=100)
parser.add_argument("--rounds", type=int, default=1)
parser.add_argument("--only", default=",".join(SCENARIOS))
parser.add_argument("--inside")
options = parser.parse_args()
FALL = 2
RECHECK = 100
# An interval is drawn from 0.9 to 1.1 of what is configured.
NOTICED = (1.1 * options.interval + FALL * options.timeout + RECHECK) / 1000


def run(*command):
    subprocess.run(command, check=True)


class Network:
    """A namespace for gateways and clients, and one for each member, on a bridge."""

    def __init__(self, name):
        self.name = name
        self.spaces = []

    def address(self, member):
        return f"10.77.0.{10 + member}"

    def member(self, member):
        return f"{self.name}-{member}"

    def make(self, members):
        self.space(self.name)
        os.makedirs(f"/etc/netns/{self.name}", exist_ok=True)
        with open(f"/etc/netns/{self.name}/resolv.conf", "w") as resolv:
            resolv.write("nameserver 10.77.0.1\n")
        run("ip", "-n", self.name, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", self.name, "address", "add", "10.77.0.1/24", "dev", "bridge")
        run("ip", "-n", self.name, "link", "set", "bridge", "up")
        for member in range(members):
            space = self.member(member)
            self.space(space)
            run("ip", "-n", self.name, "link", "add", f"m{member}", "type", "veth", "peer", "name", "eth0", "netns", space)
            run("ip", "-n", self.name, "link", "set", f"m{member}", "master", "bridge", "up")
            run("ip", "-n", space, "address", "add", f"{self.address(member)}/24", "dev", "eth0")
            run("ip", "-n", space, "link", "set", "eth0", "up")

    def space(self, name):
        run("ip", "netns", "add", name)
        self.spaces.append(name)
        run("ip", "-n", name, "link", "set", "lo", "up")

    def remove(self):
        for name in self.spaces:
            # Whatever was started there, if this ends early.
            for pid in subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split():
                os.kill(int(pid), signal.SIGKILL)
        for name in self.spaces:
            subprocess.run(["ip", "netns", "delete", name])
        shutil.rmtree(f"/etc/netns/{self.name}", ignore_errors=True)


class Program:
    def __init__(self, work, name, *command):
        self.log = open(os.path.join(work, f"{name}.log"), "ab")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, start_new_session=True)

    def send(self, number):
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    async def stop(self, number=signal.SIGTERM):
        self.send(signal.SIGCONT)
        self.send(number)
        while self.process.poll() is None:
            await asyncio.sleep(0.01)


class Cluster:
    """Members by number, each with a data directory."""

    def __init__(self, work, network):
        self.work, self.network = work, network
        self.running = {}

    def peer(self, member):
        return f"http://{self.network.address(member)}:2380"

    def start(self, member, cluster, state="new"):
        client = f"http://{self.network.address(member)}:{CLIENT}"
        flags = [
            f"--name=m{member}", f"--data-dir={self.work}/data{member}", f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}", f"--listen-peer-urls={self.peer(member)}",
            f"--initial-advertise-peer-urls={self.peer(member)}", f"--initial-cluster-state={state}",
            "--initial-cluster=" + ",".join(f"m{other}={self.peer(other)}" for other in cluster),
        ]
        command = ["ip", "netns", "exec", self.network.member(member), options.binary, *flags]
        self.running[member] = Program(self.work, f"member{member}", *command)

    async def call(self, member, path, body):
        """The answer of a member itself."""
        reader, writer = await asyncio.open_connection(self.network.address(member), CLIENT)
        try:
            return await request(reader, writer, path, body, True)
        finally:
            writer.close()

    async def ready(self, member):
        while True:
            try:
                await asyncio.wait_for(self.call(member, "/v3/kv/range", {"key": "YQ=="}), DEADLINE)
                return
            except (OSError, ValueError, asyncio.TimeoutError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.02)

    async def follower(self):
        """A member that is not the leader, the first of them."""
        while True:
            for member in sorted(self.running):
                status = await self.call(member, "/v3/maintenance/status", {})
                if status.get("leader", "0") not in ("0", status["header"]["member_id"]):
                    return member
            await asyncio.sleep(0.1)

    async def id(self, member):
        return (await self.call(member, "/v3/maintenance/status", {}))["header"]["member_id"]


async def request(reader, writer, path, body, close):
    """A call of the JSON API over HTTP/1.1; anything but status 200 is a ValueError."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(data)}\r\n" + ("Connection: close\r\n" if close else "") + "\r\n"
    writer.write(head.encode() + data)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    length = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length:")), None)
    if length is not None:
        answer = await reader.readexactly(length)
    elif "transfer-encoding: chunked" in lines:
        answer = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            answer += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    else:
        answer = await reader.read()
    if lines[0].split()[1] != "200":
        raise ValueError(f"status {lines[0]}")
    return json.loads(answer)


class Clients:
    """The clients of one gateway, and what became of each attempt: begin, end, reason of the failure, member."""

    def __init__(self, port):
        self.port = port
        self.new, self.kept = [], []
        self.tasks = set()

    def begin(self):
        self.keep(self.open_new())
        for number in range(KEPT):
            self.keep(self.hold(number))

    def keep(self, work):
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def stop(self):
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def open_new(self):
        due = time.monotonic()
        while True:
            self.keep(self.one())
            due += PERIOD
            await asyncio.sleep(max(0, due - time.monotonic()))

    async def one(self):
        begin, writer, failure, member = time.monotonic(), None, None, None
        try:
            async with asyncio.timeout(DEADLINE):
                reader, writer = await asyncio.open_connection("10.77.0.1", self.port)
                answer = await request(reader, writer, "/v3/kv/range", {"key": "YQ==", "serializable": True}, True)
                member = answer["header"]["member_id"]
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            failure = type(error).__name__
        finally:
            if writer:
                writer.close()
        self.new.append((begin, time.monotonic(), failure, member))

    async def hold(self, number):
        writer = None
        await asyncio.sleep(number * KEPT_PERIOD / KEPT)
        while True:
            begin, failure = time.monotonic(), None
            try:
                async with asyncio.timeout(DEADLINE):
                    if writer is None:
                        reader, writer = await asyncio.open_connection("10.77.0.1", self.port)
                    value = base64.b64encode(str(number).encode()).decode()
                    await request(reader, writer, "/v3/kv/put", {"key": value, "value": value}, False)
            except (OSError, ValueError, asyncio.IncompleteReadError) as error:
                failure = type(error).__name__
                if writer:
                    writer.close()
                writer = None
            self.kept.append((begin, time.monotonic(), failure))
            await asyncio.sleep(KEPT_PERIOD)


class Records:
    """dnsmasq with SRV records of the members."""

    def __init__(self, work, network):
        self.work, self.network, self.program = work, network, None

    async def show(self, members):
        if self.program:
            await self.program.stop()
        records = [f"--srv-host=_etcd-client._tcp.{DOMAIN},m{member}.{DOMAIN},{CLIENT},0,0" for member in members]
        # A weight of 0 is none of the traffic to HAProxy, and where all have one, equal shares to the others.
        records += [f"--srv-host=_etcd-client._tcp.weighted.{DOMAIN},m{member}.{DOMAIN},{CLIENT},0,1000" for member in members]
        records += [f"--host-record=m{member}.{DOMAIN},{self.network.address(member)}" for member in members]
        self.program = Program(
            self.work, "dnsmasq", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
            f"--local=/{DOMAIN}/", "--pid-file=", "--user=root", "--listen-address=10.77.0.1", "--bind-interfaces", "--local-ttl=1",
            *records,
        )


def gateways(work):
    """Name, port and command of each gateway that this machine has."""
    srv = [f"--discovery-srv={DOMAIN}", "--insecure-discovery"]
    ours = [options.binary, "gateway", "start", *srv, "--serving-threads=1"]
    checks = [
        "--health-check=http", f"--health-check-interval={options.interval}ms", f"--health-check-timeout={options.timeout}ms",
        f"--health-check-fall={FALL}", "--on-eject=close",
    ]
    yield "watershed", 2401, [*ours, "--listen-addr=10.77.0.1:2401", *checks]
    yield "watershed, no checks", 2402, [*ours, "--listen-addr=10.77.0.1:2402"]
    if options.etcd:
        yield "etcd gateway", 2403, [options.etcd, "gateway", "start", *srv, "--listen-addr=10.77.0.1:2403"]
    if shutil.which("haproxy"):
        with open(f"{work}/haproxy.cfg", "w") as file:
            file.write(f"""
global
    nbthread 1
    log stdout format raw daemon
resolvers records
    nameserver dnsmasq 10.77.0.1:53
    timeout resolve 1s
    timeout retry 1s
    hold valid 1s
defaults
    mode tcp
    log global
    option tcplog
    timeout connect 1s
    timeout client 1h
    timeout server 1h
    timeout check {options.timeout}ms
    retries 3
    option redispatch 1
listen etcd
    bind 10.77.0.1:2404
    balance roundrobin
    option httpchk GET /readyz
    http-check expect status 200
    default-server check inter {options.interval}ms fastinter {RECHECK}ms fall {FALL} rise 2 on-marked-down shutdown-sessions
    server-template m 5 _etcd-client._tcp.weighted.{DOMAIN} resolvers records init-addr none
""")
        yield "haproxy", 2404, ["haproxy", "-db", "-f", f"{work}/haproxy.cfg"]


class Trial:
    """A cluster, the gateways and their clients, for one scenario."""

    def __init__(self, work, network):
        self.work, self.network = work, network
        self.cluster, self.records = Cluster(work, network), Records(work, network)
        self.clients, self.programs = {}, []
        self.faults, self.up, self.new_member = [], None, None

    def fault(self):
        self.faults.append(time.monotonic())

    async def begin(self):
        for member in range(3):
            self.cluster.start(member, range(3))
        for member in range(3):
            await self.cluster.ready(member)
        await self.records.show(range(3))
        await asyncio.sleep(0.5)
        for name, port, command in gateways(self.work):
            self.programs.append(Program(self.work, f"gateway{port}", *command))
            self.clients[name] = Clients(port)
        for name, clients in self.clients.items():
            for _ in range(200):
                await clients.one()
                if clients.new[-1][2] is None:
                    break
                await asyncio.sleep(0.1)
            else:
                sys.exit(f"{name} does not serve")
            # Also the last of its endpoints is known.
        await asyncio.sleep(3)
        for clients in self.clients.values():
            clients.new.clear()
            clients.begin()
        await asyncio.sleep(2)

    async def end(self):
        for clients in self.clients.values():
            await clients.stop()
        for program in [*self.programs, *self.cluster.running.values(), self.records.program]:
            if program:
                await program.stop(signal.SIGKILL)

    async def play(self, scenario):
        """Plays it. Notes when a fault begins, and when members answer again where all were down."""
        await getattr(self, scenario.replace("-", "_"))()
        # What was begun last has its outcome.
        await asyncio.sleep(DEADLINE + 0.5)

    async def rolling(self):
        for member in range(3):
            self.fault()
            await self.cluster.running[member].stop()
            self.cluster.start(member, range(3))
            await self.cluster.ready(member)
            await asyncio.sleep(2)

    async def replaced(self):
        old = await self.cluster.follower()
        others = [member for member in range(3) if member != old]
        await self.cluster.call(others[0], "/v3/cluster/member/add", {"peerURLs": [self.cluster.peer(3)]})
        self.cluster.start(3, range(4), "existing")
        await self.cluster.ready(3)
        gone, self.new_member = await self.cluster.id(old), await self.cluster.id(3)
        self.fault()
        await self.records.show([*others, 3])
        await self.cluster.call(others[0], "/v3/cluster/member/remove", {"ID": gone})
        self.fault()
        await self.cluster.running.pop(old).stop()
        await asyncio.sleep(8)

    async def stopped(self):
        member = await self.cluster.follower()
        self.fault()
        self.cluster.running[member].send(signal.SIGSTOP)
        await asyncio.sleep(10)
        self.cluster.running[member].send(signal.SIGCONT)
        await asyncio.sleep(2)

    async def dropped(self):
        member = await self.cluster.follower()
        inside = ["ip", "netns", "exec", self.network.member(member), "nft"]
        rules = "table inet outage { chain in { type filter hook input priority 0; policy drop; }; " \
                "chain out { type filter hook output priority 0; policy drop; }; }"
        self.fault()
        run(*inside, rules)
        await asyncio.sleep(10)
        run(*inside, "delete table inet outage")
        await asyncio.sleep(3)

    async def all_down(self):
        self.fault()
        for member in range(3):
            self.cluster.running[member].send(signal.SIGKILL)
        for member in range(3):
            await self.cluster.running[member].stop()
        await asyncio.sleep(5)
        for member in range(3):
            self.cluster.start(member, range(3))
        first = [asyncio.ensure_future(self.first_answer(member)) for member in range(3)]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        self.up = time.monotonic()
        await asyncio.gather(*first)
        await asyncio.sleep(4)

    async def first_answer(self, member):
        while True:
            try:
                body = {"key": "YQ==", "serializable": True}
                await asyncio.wait_for(self.cluster.call(member, "/v3/kv/range", body), DEADLINE)
                return
            except (OSError, ValueError, asyncio.TimeoutError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.01)

    def row(self, clients):
        begin, up = self.faults[0], self.up
        made = [attempt for attempt in clients.new if attempt[0] >= begin]
        failed = [attempt for attempt in made if attempt[2]]
        served = [attempt for attempt in made if not attempt[2]]

        def since(attempt):
            """From the last fault before its end, or from the first answer of a member, to its begin; what was on its way then counts as 0."""
            return max(0.0, attempt[0] - max(fault for fault in [*self.faults, up or 0] if fault <= attempt[1]))

        late = [attempt for attempt in failed if attempt[0] >= (up or 0) and since(attempt) > NOTICED]
        if up:
            recovery = min((attempt[1] - up for attempt in served if attempt[1] >= up), default=None)
        else:
            recovery = max(map(since, failed), default=0.0)
        reached = None
        if self.new_member:
            reached = min((attempt[1] - begin for attempt in served if attempt[3] == self.new_member), default=None)
        return {
            "made": len(made), "failed": len(failed), "late": len(late), "recovery": recovery,
            "slowest": max((attempt[1] - attempt[0] for attempt in served), default=None),
            "kept errors": sum(1 for attempt in clients.kept if attempt[2] and attempt[1] >= begin),
            "reached": reached,
        }


def seconds(value):
    return "never" if value is None else f"{value:.2f} s"


async def trials(network):
    missed = False
    print("| scenario | gateway | new connections | failed | of them later | recovery | longest wait | errors of kept ones | new member reached |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for number in range(options.rounds):
        for scenario in options.only.split(","):
            with tempfile.TemporaryDirectory() as work:
                trial = Trial(work, network)
                try:
                    await trial.begin()
                    await trial.play(scenario)
                    for name, clients in trial.clients.items():
                        row = trial.row(clients)
                        reached = seconds(row["reached"]) if trial.new_member else ""
                        print(
                            f"| {scenario} | {name} | {row['made']} | {row['failed']} | {row['late']} | {seconds(row['recovery'])} "
                            f"| {seconds(row['slowest'])} | {row['kept errors']} | {reached} |", flush=True)
                        missed |= name == "watershed" and row["late"] > 0
                finally:
                    if keep := os.environ.get("OUTAGE_LOGS"):
                        shutil.copytree(work, f"{keep}/{scenario}{number}", dirs_exist_ok=True, ignore=shutil.ignore_patterns("data*"))
                    await trial.end()
    return missed


def outside():
    if os.geteuid() != 0 or not all(map(shutil.which, ["ip", "nft", "dnsmasq"])):
        print("gateway outages: skipped, it takes root, ip, nft and dnsmasq")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    network = Network(f"wo{os.getpid() % 10000}")
    options.binary = os.path.realpath(options.binary)
    try:
        network.make(4)
        command = ["ip", "netns", "exec", network.name, sys.executable, os.path.realpath(__file__), options.binary]
        command += [f"--inside={network.name}", f"--interval={options.interval}", f"--timeout={options.timeout}"]
        command += [f"--rounds={options.rounds}", f"--only={options.only}"]
        if options.etcd:
            command.append(f"--etcd={os.path.realpath(options.etcd)}")
        return subprocess.run(command).returncode
    finally:
        network.remove()


if options.inside:
    sys.exit(1 if asyncio.run(trials(Network(options.inside))) else 0)
sys.exit(outside())
