#!/usr/bin/env python3
"""Two PostgreSQL servers under Patroni (mode etcd3) with a member of ours as its store, reached directly, through the gateway
and through the proxy: the primary is killed, the other one has to take over with all data.

usage: patroni.py BINARY [WAY ...]    ways: core gateway proxy; all by default

Needs Debian's packages patroni, python3-etcd and postgresql, and to be root (PostgreSQL runs as `postgres`).
"""
import json, os, shutil, signal, subprocess, sys, tempfile, time, urllib.request

BINARY = os.path.abspath(sys.argv[1])
WAYS = sys.argv[2:] or ["core", "gateway", "proxy"]
PORT = int(os.environ.get("WATERSHED_PATRONI_PORT", "11600"))
ETCD = f"127.0.0.1:{PORT}"
FRONT = {"core": ETCD, "gateway": f"127.0.0.1:{PORT + 2}", "proxy": f"127.0.0.1:{PORT + 3}"}
PG_BIN = "/usr/lib/postgresql/" + sorted(os.listdir("/usr/lib/postgresql"))[-1] + "/bin"
PATIENCE = 300
started = []


def run(work, name, args, user=None):
    log = open(os.path.join(work, name + ".log"), "a")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ETCD_", "PG", "PATRONI_"))}
    process = subprocess.Popen(args, stdout=log, stderr=log, env=env, user=user, group=user, cwd=work, start_new_session=True)
    started.append(process)
    return process


def until(what, ask):
    end = time.time() + PATIENCE
    while time.time() < end:
        try:
            if answer := ask():
                return answer
        except (OSError, subprocess.CalledProcessError, ValueError):
            pass
        time.sleep(0.3)
    raise SystemExit(f"patroni: no {what} after {PATIENCE} s")


def role(port):
    """The role of a Patroni that runs, by its own port."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/patroni", timeout=2) as answer:
        status = json.load(answer)
    return status["role"] if status["state"] == "running" else None


def sql(port, text):
    return subprocess.run(["psql", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-Atc", text, "postgres"], check=True,
                          capture_output=True, text=True, env={**os.environ, "PGPASSWORD": "secret", "PGCONNECT_TIMEOUT": "3"}).stdout.strip()


def patroni(work, way, number):
    base = PORT + 10 + 2 * number
    folder = os.path.join(work, f"{way}-{number}")
    os.makedirs(folder)
    shutil.chown(folder, "postgres", "postgres")
    config = os.path.join(folder, "patroni.yml")
    with open(config, "w") as out:
        json.dump({
            "scope": f"s-{way}", "name": f"n{number}",
            "restapi": {"listen": f"127.0.0.1:{base}", "connect_address": f"127.0.0.1:{base}"},
            "etcd3": {"hosts": [FRONT[way]], "use_proxies": True},
            "bootstrap": {"dcs": {"ttl": 20, "loop_wait": 1, "retry_timeout": 8, "maximum_lag_on_failover": 1048576,
                                  "postgresql": {"use_pg_rewind": False}},
                          "initdb": [{"encoding": "UTF8"}, "data-checksums"]},
            "postgresql": {"listen": f"127.0.0.1:{base + 1}", "connect_address": f"127.0.0.1:{base + 1}", "data_dir": f"{folder}/data",
                           "bin_dir": PG_BIN, "pgpass": f"{folder}/pgpass",
                           "pg_hba": ["host all all 127.0.0.1/32 md5", "local all all trust", "host replication replicator 127.0.0.1/32 md5"],
                           "authentication": {"replication": {"username": "replicator", "password": "secret"},
                                              "superuser": {"username": "postgres", "password": "secret"}},
                           "parameters": {"unix_socket_directories": folder, "fsync": "off"}},
        }, out)
    return run(work, f"patroni-{way}-{number}", ["/usr/bin/patroni", config], user="postgres"), base


def kill(process):
    """The whole session: Patroni and its PostgreSQL."""
    listed = subprocess.run(["ps", "-eo", "pid=,sess="], capture_output=True, text=True).stdout.split("\n")
    mine = [int(line.split()[0]) for line in listed if line.split()[1:] == [str(process.pid)]]
    for pid in mine or [process.pid]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait()


def check(work, way):
    began = time.time()
    nodes = [patroni(work, way, number) for number in range(2)]

    def roles():
        found = {}
        for process, base in nodes:
            found[role(base)] = (process, base)
        return found if "replica" in found and ("primary" in found or "master" in found) else None

    found = until("primary and replica", roles)
    killed, primary = found.get("primary") or found["master"]
    standby, port = found["replica"]
    sql(primary + 1, "create table kept (n int); insert into kept select generate_series(1, 1000)")
    until("copy", lambda: sql(port + 1, "select count(*) from kept") == "1000")
    begun = time.time()
    # With its PostgreSQL, which is in a session of its own.
    with open(os.path.join(work, f"{way}-{(primary - PORT - 10) // 2}", "data", "postmaster.pid")) as file:
        os.kill(int(file.readline()), signal.SIGKILL)
    kill(killed)
    until("new primary", lambda: role(port) in ("primary", "master"))
    until("writable primary", lambda: sql(port + 1, "select pg_is_in_recovery()") == "f")
    took = time.time() - begun
    assert sql(port + 1, "select count(*) from kept") == "1000"
    sql(port + 1, "insert into kept values (1001)")
    standby.terminate()
    standby.wait()
    print(f"patroni: {way} ok, failover in {took:.0f} s ({time.time() - began:.0f} s in all)", flush=True)


def main():
    work = tempfile.mkdtemp()
    os.chmod(work, 0o755)
    try:
        peer = f"http://127.0.0.1:{PORT + 1}"
        run(work, "member", [BINARY, "--name=m", f"--data-dir={work}/member", f"--listen-client-urls=http://{ETCD}",
                             f"--advertise-client-urls=http://{ETCD}", f"--listen-peer-urls={peer}",
                             f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=m={peer}"])
        run(work, "gateway", [BINARY, "gateway", "start", f"--endpoints={ETCD}", f"--listen-addr={FRONT['gateway']}"])
        run(work, "proxy", [BINARY, "grpc-proxy", "start", f"--endpoints={ETCD}", f"--listen-addr={FRONT['proxy']}"])
        for way in WAYS:
            check(work, way)
    except BaseException:
        for name in sorted(os.listdir(work)):
            if name.endswith(".log"):
                print(f"== {name}", *open(os.path.join(work, name), errors="replace").read().splitlines()[-15:], sep="\n")
        raise
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                kill(process)
        shutil.rmtree(work, ignore_errors=True)


main()
