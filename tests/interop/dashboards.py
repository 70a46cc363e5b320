#!/usr/bin/env python3
"""Evaluates etcd's public Grafana dashboard and alert rules with a real Prometheus over three of our members under load: each
expression has to be valid and to have a value, each series it reads has to be there and to move.

usage: dashboards.py BINARY MIXIN
  BINARY   the program under test
  MIXIN    contrib/mixin of a checkout of etcd's source
  programs prometheus and jsonnet, in PATH or named by PROMETHEUS and JSONNET

The load includes a leader transfer, a member that is killed and started again, and a lost quorum: takes about a minute.
"""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

PORT = int(os.environ.get("WATERSHED_INTEROP_PORT", "12700"))
PROMETHEUS_URL = f"127.0.0.1:{PORT + 50}"
# A fact, not a count: nothing can move it.
FACTS = {"etcd_server_quota_backend_bytes"}
# Prometheus' own series.
SCRAPED = {"up"}


def fail(text):
    print(f"FAILED: {text}")
    sys.exit(1)


def jsonnet(mixin, expression):
    program = os.environ.get("JSONNET", "jsonnet")
    text = f'({expression.replace("MIXIN", json.dumps(os.path.join(mixin, "mixin.libsonnet")))})'
    return json.loads(subprocess.run([program, "-e", text], check=True, capture_output=True, text=True).stdout)


def expressions(mixin):
    """Pairs of a name and an expression: the alerts, then the panels."""
    found = []
    for group in jsonnet(mixin, "(import MIXIN).prometheusAlerts")["groups"]:
        found += [(f"alert {rule['alert']}", rule["expr"]) for rule in group["rules"] if "expr" in rule]
    dashboards = jsonnet(mixin, "((import MIXIN) + {_config+:: {grafana7x: true}}).grafanaDashboards")
    for board in dashboards.values():
        for row in board["rows"]:
            for panel in row["panels"]:
                for target in panel["targets"]:
                    expression = target["expr"].replace("$cluster", "etcd").replace("$__rate_interval", "10s")
                    found.append((f"panel {panel['title']} {target['refId']}", expression))
    return found


def query(path, **parameters):
    with urllib.request.urlopen(f"http://{PROMETHEUS_URL}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as answer:
        return json.load(answer)["data"]["result"]


def has_value(result):
    """Whether any point is a number."""
    return any(value != "NaN" for series in result for _, value in series["values"])


class Cluster:
    def __init__(self, binary, folder):
        self.binary, self.folder, self.processes = binary, folder, {}
        self.clients = [PORT + 2 * number for number in range(3)]
        self.initial = ",".join(f"m{number}=http://127.0.0.1:{port + 1}" for number, port in enumerate(self.clients))
        self.endpoints = ",".join(f"127.0.0.1:{port}" for port in self.clients)
        for number in range(3):
            self.start(number)

    def start(self, number):
        client, peer = (f"http://127.0.0.1:{self.clients[number] + offset}" for offset in (0, 1))
        flags = {
            "name": f"m{number}",
            "data-dir": f"{self.folder}/m{number}",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": self.initial,
            "metrics": "extensive",
        }
        command = [self.binary] + [f"--{name}={value}" for name, value in flags.items()]
        with open(f"{self.folder}/m{number}.log", "ab") as log:
            self.processes[number] = subprocess.Popen(command, stdout=log, stderr=log)

    def signal(self, number, which):
        self.processes[number].send_signal(which)

    def call(self, number, path, body, timeout=20):
        connection = http.client.HTTPConnection("127.0.0.1", self.clients[number], timeout=timeout)
        connection.request("POST", path, json.dumps(body))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def ctl(self, *arguments, check=True):
        command = [self.binary, "ctl", f"--endpoints={self.endpoints}", *arguments]
        return subprocess.run(command, check=check, capture_output=True, text=True).stdout

    def in_background(self, *arguments):
        command = [self.binary, "ctl", f"--endpoints={self.endpoints}", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.processes[len(self.processes)] = process
        return process

    def leader(self):
        """The number of the leader, and the id of another member."""
        for _ in range(100):
            found = {}
            for number in range(3):
                try:
                    status = self.call(number, "/v3/maintenance/status", {}, timeout=2)[1]
                    found[number] = (status["header"]["member_id"], status.get("leader"))
                except (OSError, KeyError, http.client.HTTPException):
                    pass
            leaders = [number for number, (own, leader) in found.items() if own == leader]
            if len(found) == 3 and len(leaders) == 1 and len({leader for _, leader in found.values()}) == 1:
                other = next(own for number, (own, _) in found.items() if number != leaders[0])
                return leaders[0], other
            time.sleep(0.1)
        fail("no leader")

    def stop(self):
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
        for process in self.processes.values():
            process.wait()


def load(cluster, stop):
    """Calls of several kinds to any member that answers, some of which fail by a code that the alerts count."""
    number = 0
    while not stop.is_set():
        number += 1
        for path, body in [
            ("/v3/kv/put", {"key": "a2V5", "value": "dmFsdWU=" if number % 20 else "QUFB" * 20_000}),
            ("/v3/kv/range", {"key": "a2V5"}),
            ("/v3/lock/lock", {"name": "bA==", "lease": "99"}),
        ]:
            try:
                cluster.call(number % 3, path, body, timeout=1)
            except (OSError, http.client.HTTPException, ValueError):
                pass


def events(cluster):
    """What makes the series of trouble move."""
    leader, other = cluster.leader()
    cluster.ctl("move-leader", f"{int(other):x}")
    leader, _ = cluster.leader()
    followers = [number for number in range(3) if number != leader]
    cluster.signal(followers[0], signal.SIGKILL)
    cluster.processes[followers[0]].wait()
    time.sleep(3)
    cluster.start(followers[0])
    leader, _ = cluster.leader()
    others = [number for number in range(3) if number != leader]
    for number in others:
        cluster.signal(number, signal.SIGSTOP)
    status, answer = cluster.call(leader, "/v3/kv/put", {"key": "a2V5"})
    if status == 200:
        fail(f"a write without a quorum: {answer}")
    for number in others:
        cluster.signal(number, signal.SIGCONT)
    cluster.leader()
    time.sleep(3)


def prometheus(folder, cluster):
    targets = json.dumps([f"127.0.0.1:{port}" for port in cluster.clients])
    with open(f"{folder}/prometheus.yml", "w", encoding="utf-8") as config:
        config.write(
            "global: {scrape_interval: 1s}\n"
            f"scrape_configs: [{{job_name: etcd, static_configs: [{{targets: {targets}}}]}}]\n"
        )
    program = os.environ.get("PROMETHEUS", "prometheus")
    command = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    with open(f"{folder}/prometheus.log", "wb") as log:
        process = subprocess.Popen(command + [f"--web.listen-address={PROMETHEUS_URL}"], stdout=log, stderr=log)
    for _ in range(100):
        try:
            if len([up for up in query("query", query="up == 1")]) == 3:
                return process
        except OSError:
            pass
        time.sleep(0.2)
    process.kill()
    fail("prometheus does not reach three members")


def judge(found, begun):
    problems, series = [], {}
    now = time.time()
    for name, expression in found:
        selectors = set(re.findall(r"\b([a-z_]+(?:\{[^}]*\}))", expression))
        if not selectors:
            problems.append(f"{name}: reads nothing: {expression}")
        for selector in selectors:
            series.setdefault(selector, set()).add(name)
        result = query("query_range", query=expression, start=begun, end=now, step=1)
        if name.startswith("panel ") and not has_value(result):
            problems.append(f"{name}: no value: {expression}")
    for selector, readers in sorted(series.items()):
        metric = selector.split("{")[0]
        count = query("query", query=f"count(last_over_time({selector}[2m]))")
        if not count:
            problems.append(f"{selector}: no series, read by {sorted(readers)}")
            continue
        moved = query("query", query=f"count(changes({selector}[2m]) > 0)")
        if not moved and metric not in FACTS and metric not in SCRAPED:
            problems.append(f"{selector}: does not move, read by {sorted(readers)}")
        how = f"{moved[0]['value'][1]} move" if moved else "a fact"
        print(f"{selector}: {count[0]['value'][1]} series, {how}")
    return problems, len(series)


def main():
    if len(sys.argv) != 3:
        fail(__doc__)
    binary, mixin = map(os.path.abspath, sys.argv[1:])
    found = expressions(mixin)
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(binary, folder)
        watched, stop = None, threading.Event()
        loading = threading.Thread(target=load, args=(cluster, stop))
        try:
            cluster.leader()
            watched = prometheus(folder, cluster)
            begun = time.time()
            lease = cluster.ctl("lease", "grant", "600").split()[1]
            streams = [cluster.in_background("lease", "keep-alive", lease), cluster.in_background("watch", "key")]
            loading.start()
            events(cluster)
            for stream in streams:
                stream.terminate()
            # Longer than from one scrape to the next.
            time.sleep(3)
            problems, count = judge(found, begun)
        finally:
            stop.set()
            if loading.is_alive():
                loading.join()
            cluster.stop()
            if watched:
                watched.kill()
                watched.wait()
    for problem in problems:
        print(f"FAILED: {problem}")
    print(f"{len(found)} expressions over {count} selections of series, {len(problems)} problems")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
