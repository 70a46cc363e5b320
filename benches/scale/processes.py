"""Members, proxies and loads of benches/scale.py, and what is read of their processes."""
import contextlib
import glob
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from base64 import b64encode

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}
# Longest start of a member, and longest wait for an answer.
PATIENCE = 1800
# What a member may store: its disk is the bound, not a quota.
QUOTA = 64 << 30
KEY_BYTES = 16


class Failed(Exception):
    """A part that cannot be measured, and why."""


class Side:
    """One of the programs that are measured, and where its files go."""

    def __init__(self, name, program, generator, leases, folder):
        self.name, self.program, self.generator, self.leases = name, program, generator, leases
        self.folder, self.is_ours = os.path.join(folder, name), program == generator

    @contextlib.contextmanager
    def member(self):
        """A new member without data, which is gone with its data afterwards."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        member = Member(self)
        try:
            member.start()
            yield member
        except Exception:
            # All that is left of a process that has ended.
            for log in glob.glob(f"{self.folder}/*.log"):
                shutil.copy(log, f"{self.folder}-{os.path.basename(log)}")
            raise
        finally:
            member.stop(signal.SIGKILL)
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def proxy(self, member):
        proxy = Proxy(self, member)
        try:
            proxy.start()
            yield proxy
        finally:
            proxy.stop(signal.SIGKILL)

    def version(self):
        text = subprocess.run([self.program, "--version"], capture_output=True, text=True, env=ENVIRONMENT).stdout
        return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)


class Program:
    """A process of a side that answers at an endpoint."""

    def __init__(self, side, name, words):
        self.side, self.name, self.words, self.process = side, name, words, None

    def start(self):
        """Starts it and waits until it answers a linearizable range; returns the seconds."""
        begin = time.monotonic()
        with open(self.log(), "ab") as log:
            self.process = subprocess.Popen([self.side.program, *self.words], stdout=log, stderr=log, env=ENVIRONMENT)
        while True:
            if self.answers():
                return time.monotonic() - begin
            if self.process.poll() is not None:
                raise Failed(f"{self.name} ended with {self.process.returncode}: {self.last_lines()}")
            if time.monotonic() - begin > PATIENCE:
                raise Failed(f"{self.name} did not answer within {PATIENCE} s: {self.last_lines()}")
            time.sleep(0.01)

    def stop(self, how):
        if self.process:
            self.process.send_signal(how)
            self.process.wait()

    def memory(self, field="VmRSS"):
        """Bytes that are resident, or another field of its status."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))

    def log(self):
        return os.path.join(self.side.folder, f"{self.name}.log")

    def last_lines(self):
        with open(self.log(), errors="replace") as log:
            return "".join(log.readlines()[-3:])[-1000:]


class Member(Program):
    def __init__(self, side):
        client, peer = port(), port()
        url, peer_url = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        self.endpoint, self.data = f"127.0.0.1:{client}", os.path.join(side.folder, "data")
        super().__init__(side, "member", [
            "--name=m", f"--data-dir={self.data}", f"--listen-client-urls={url}", f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peer_url}", f"--initial-advertise-peer-urls={peer_url}", f"--initial-cluster=m={peer_url}",
            f"--quota-backend-bytes={QUOTA}"])

    def answers(self):
        try:
            return bool(self.call("kv/range", {"key": encoded("no such key")}))
        except Failed:
            return False

    def call(self, path, body):
        """A call of the API as JSON."""
        request = urllib.request.Request(f"http://{self.endpoint}/v3/{path}", json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.loads(answer.read())
        except (OSError, json.JSONDecodeError) as error:
            state = self.process.poll()
            raise Failed(f"{path}: {error}; {self.name} {'runs' if state is None else f'ended with {state}'}") from error

    def restart(self, how):
        """Ends it by a signal; returns the seconds until it has ended, and those until it serves again."""
        begin = time.monotonic()
        self.stop(how)
        ended = time.monotonic() - begin
        return ended, self.start()

    def count(self, prefix=""):
        """Keys that start with this."""
        first, end = (prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)) if prefix else ("\0", "\0")
        answer = self.call("kv/range", {"key": encoded(first), "range_end": encoded(end), "count_only": True})
        return int(answer.get("count", 0))

    def revision(self):
        return int(self.call("kv/range", {"key": encoded("no such key")})["header"]["revision"])

    def disk(self, part=""):
        """Bytes that its data have on disk: all, or those of `snap` or `wal`."""
        return disk_bytes(os.path.join(self.data, "member", part))

    def settle(self):
        """Waits until memory and disk stay as they are; a member works on after its last answer."""
        before, calm = None, 0
        for _ in range(60):
            now = (self.memory(), self.disk())
            calm = calm + 1 if before and all(abs(a - b) <= b / 200 for a, b in zip(now, before)) else 0
            if calm == 3:
                return
            before = now
            time.sleep(1)


class Proxy(Program):
    def __init__(self, side, member):
        self.endpoint = f"127.0.0.1:{port()}"
        super().__init__(side, "proxy", ["grpc-proxy", "start", f"--endpoints={member.endpoint}", f"--listen-addr={self.endpoint}"])

    def answers(self):
        # Not over HTTP: etcd's proxy has no JSON.
        words = [self.side.generator, "ctl", f"--endpoints={self.endpoint}", "get", "no such key"]
        return subprocess.run(words, capture_output=True, env=ENVIRONMENT).returncode == 0


def port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def encoded(text):
    return b64encode(text.encode()).decode()


def disk_bytes(folder):
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, file)).st_blocks * 512
    return total


class Load:
    """A load of `watershed bench` that runs."""

    def __init__(self, target, load, *flags, patience=PATIENCE, watched=()):
        pids = [f"--server-pid={program.name}={program.process.pid}" for program in watched]
        words = [target.side.generator, "bench", load, f"--endpoints={target.endpoint}", "--json", f"--request-timeout={patience}s", *pids, *flags]
        self.words = words
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)

    def report(self):
        """What it reports in the end. A request that failed is a failure of the part: its latency is in no figure."""
        out, err = self.process.communicate()
        if not out:
            raise Failed(f"{' '.join(self.words)}: exit {self.process.returncode}: {err.strip()}")
        report = json.loads(out)
        if report["errors"]:
            raise Failed(f"{' '.join(self.words)}: {report['errors']}")
        return report


def bench(target, load, *flags, patience=PATIENCE, watched=()):
    return Load(target, load, *flags, patience=patience, watched=watched).report()


def puts(member, seconds, rate=500):
    """A load of small puts at a fixed rate; latency counts from the time at which a put was due."""
    return Load(member, "put", f"--key-size={KEY_BYTES}", "--val-size=64", "--key-space-size=100", "--clients=8", f"--rate={rate}",
                f"--duration={max(seconds, 1):.1f}s")


def put_latency(member, seconds):
    return puts(member, seconds).report()["latency_ms"]


def timed(act):
    begin = time.monotonic()
    act()
    return time.monotonic() - begin


def beside(member, act, prepare=None):
    """Seconds of an act alone, then beside puts, and the latency of these; `prepare` comes before each. The puts last as long as
    the act did alone, so all of them are sent while it goes on, unless it takes less than a second."""
    prepare = prepare or (lambda: None)
    prepare()
    alone = timed(act)
    prepare()
    load = puts(member, alone)
    try:
        return alone, timed(act), load.report()["latency_ms"]
    finally:
        end(load)


def end(load):
    if load.process.poll() is None:
        load.process.kill()
    load.process.communicate()


def grant(member, leases, first, ttl, prefix, keyed_every):
    words = [member.side.leases, f"-endpoint={member.endpoint}", f"-leases={leases}", f"-first={first}", f"-ttl={ttl}", f"-prefix={prefix}",
             f"-keyed-every={keyed_every}"]
    outcome = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT)
    if outcome.returncode != 0:
        raise Failed(f"{' '.join(words)}: {outcome.stderr.strip()}; the member's log ends with {member.last_lines()}")
    return json.loads(outcome.stdout)


class Noise:
    """Other work of the machine while a part runs."""

    def __init__(self):
        self.load_average, self.begin, self.stat, self.own = os.getloadavg()[0], time.monotonic(), self.read(), self.children()

    def read(self):
        with open("/proc/stat") as stat:
            ticks = [int(word) for word in stat.readline().split()[1:]]
        user, nice, system, _, _, interrupts, soft, steal = ticks[:8]
        return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK"), steal / os.sysconf("SC_CLK_TCK")

    def children(self):
        return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)))

    def figures(self):
        """Once all processes of the part have ended."""
        seconds = time.monotonic() - self.begin
        (busy, steal), own = self.read(), self.children()
        return {"seconds": seconds, "load_average_before": self.load_average,
                "processors_of_other_work": max(0.0, busy - self.stat[0] - (own - self.own)) / seconds,
                "share_taken_by_the_host": (steal - self.stat[1]) / seconds / os.cpu_count()}
