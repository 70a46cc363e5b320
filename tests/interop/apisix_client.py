#!/usr/bin/env python3
"""The calls by which APISIX uses its store, in the order and form of its client library (lua-resty-etcd with its HTTP transport):
the version probe, logins, reads of a folder, writes with a lease, transactions, and watches, of which one stays on its connection
while others go on beside it. Also what it does when the store answers that a revision is compacted or a token is not valid.

usage: apisix_client.py ENDPOINT     without users before; leaves none
"""

import base64
import http.client
import json
import sys

PREFIX = "/apisix"
USER = {"name": "root", "password": "apisix"}


def b64(text):
    return base64.b64encode(text.encode()).decode()


def check(fact, text):
    if not fact:
        print(f"FAILED: {text}")
        sys.exit(1)


class Connection:
    """One that is kept: each call goes over the same socket, as from the pool of a worker."""

    def __init__(self, endpoint):
        self.connection = http.client.HTTPConnection(endpoint, timeout=120)
        self.connection.connect()
        self.socket = self.connection.sock
        self.token = None

    def request(self, method, path, body=None):
        headers = {"User-Agent": "lua-resty-http/0.16.1 (Lua) ngx_lua/10021"}
        if self.token:
            headers["Authorization"] = self.token
        if body is not None:
            headers["Content-Type"] = "application/json"
        self.connection.request(method, path, None if body is None else json.dumps(body), headers)
        return self.connection.getresponse()

    def call(self, path, body, status=200):
        answer = self.request("POST", "/v3" + path, body)
        text = answer.read()
        check(answer.status == status, f"{path} {body}: {answer.status} {text}")
        check(self.connection.sock is self.socket, f"{path}: the connection was closed")
        return json.loads(text)

    def watch(self, create):
        """A watch on this connection, and its lines as they come."""
        answer = self.request("POST", "/v3/watch", {"create_request": create})
        check(answer.status == 200, f"watch: {answer.status}")
        return iter(answer.readline, b"")


def folder(name):
    start = f"{PREFIX}/{name}/"
    return {"key": b64(start), "range_end": b64(start[:-1] + "0")}


def probe(connection):
    answer = connection.request("GET", "/version")
    version = json.loads(answer.read())
    check(answer.status == 200 and version["etcdserver"] >= "3.4", f"version: {version}")
    check(version["etcdcluster"].split(".")[0] == "3", f"version: {version}")


def routes(connection, endpoint, token):
    start = folder("routes")
    connection.call("/kv/deleterange", start)
    connection.call("/kv/put", {"key": b64(f"{PREFIX}/routes/"), "value": b64("init_dir")})
    put = connection.call("/kv/put", {"key": b64(f"{PREFIX}/routes/1"), "value": b64('{"uri":"/a"}'), "prev_kv": True})
    revision = put["header"]["revision"]
    check(isinstance(revision, str), "numbers of 64 bits are texts")
    read = connection.call("/kv/range", start)
    check([entry["key"] for entry in read["kvs"]] == [b64(f"{PREFIX}/routes/"), b64(f"{PREFIX}/routes/1")], read)
    check(read["count"] == "2" and read["kvs"][1]["mod_revision"] == revision, read)

    watching = Connection(endpoint)
    watching.token = token
    create = {**start, "start_revision": int(revision) + 1, "progress_notify": True, "prev_kv": True, "fragment": False}
    lines = watching.watch(create)
    created = json.loads(next(lines))["result"]
    check(created["created"] and "events" not in created, created)
    # Meanwhile the other connection goes on.
    connection.call("/kv/put", {"key": b64(f"{PREFIX}/routes/2"), "value": b64('{"uri":"/b"}')})
    event = json.loads(next(lines))["result"]["events"][0]
    check(event["kv"]["key"] == b64(f"{PREFIX}/routes/2") and "type" not in event, event)
    connection.call("/kv/deleterange", {"key": b64(f"{PREFIX}/routes/1"), "prev_kv": True})
    event = json.loads(next(lines))["result"]["events"][0]
    check(event["type"] == "DELETE" and base64.b64decode(event["prev_kv"]["value"]) == b'{"uri":"/a"}', event)
    # It cancels a watch by closing its connection.
    watching.connection.close()
    return int(revision)


def compacted(connection, endpoint, token, revision):
    now = connection.call("/kv/put", {"key": b64(f"{PREFIX}/routes/3"), "value": b64("{}")})["header"]["revision"]
    connection.call("/kv/compaction", {"revision": now})
    watching = Connection(endpoint)
    watching.token = token
    lines = watching.watch({**folder("routes"), "start_revision": revision})
    results = []
    for line in lines:
        results.append(json.loads(line)["result"])
        if results[-1].get("canceled"):
            break
    # By this number it knows from where it has to read again.
    check(results[-1].get("compact_revision") == now, results)
    watching.connection.close()


def leases(connection):
    lease = connection.call("/lease/grant", {"TTL": 30, "ID": 0})
    check(lease["TTL"] == "30", lease)
    key = b64(f"{PREFIX}/data_plane/server_info/1")
    connection.call("/kv/put", {"key": key, "value": b64("{}"), "lease": lease["ID"]})
    kept = connection.call("/lease/keepalive", {"ID": lease["ID"]})
    check(kept["result"]["TTL"] == "30" and kept["result"]["ID"] == lease["ID"], kept)
    left = connection.call("/kv/lease/timetolive", {"ID": lease["ID"], "keys": True})
    check(left["keys"] == [key] and left["grantedTTL"] == "30", left)
    listed = connection.call("/lease/leases", {})
    check(lease["ID"] in [entry["ID"] for entry in listed["leases"]], listed)
    connection.call("/kv/lease/revoke", {"ID": lease["ID"]})
    check("kvs" not in connection.call("/kv/range", {"key": key}), "the key of a revoked lease")


def transactions(connection):
    key = b64(f"{PREFIX}/upstreams/1")
    compare = [{"target": "CREATE", "key": key, "createRevision": 0}]
    put = [{"requestPut": {"key": key, "value": b64("{}")}}]
    first = connection.call("/kv/txn", {"compare": compare, "success": put})
    check(first["succeeded"] and "response_put" in first["responses"][0], first)
    second = connection.call("/kv/txn", {"compare": compare, "success": put, "failure": [{"requestRange": {"key": key}}]})
    check("succeeded" not in second and second["responses"][0]["response_range"]["count"] == "1", second)


def enable_users(connection):
    connection.call("/auth/user/add", USER)
    connection.call("/auth/role/add", {"name": "root"})
    connection.call("/auth/user/grant", {"user": USER["name"], "role": "root"})
    connection.call("/auth/enable", {})


def main():
    if len(sys.argv) != 2:
        print(__doc__)
        sys.exit(2)
    endpoint = sys.argv[1]
    connection = Connection(endpoint)
    probe(connection)
    revision = routes(connection, endpoint, None)
    leases(connection)
    transactions(connection)
    compacted(connection, endpoint, None, revision)
    enable_users(connection)
    try:
        refused = connection.call("/kv/range", folder("routes"), status=400)
        check("user name is empty" in refused["message"], refused)
        wrong = connection.call("/auth/authenticate", {**USER, "password": "x"}, status=400)
        check(wrong["message"] == "etcdserver: authentication failed, invalid user ID or password", wrong)
        connection.token = "not.a-token"
        refused = connection.call("/kv/range", folder("routes"), status=401)
        check(refused["message"] == "etcdserver: invalid auth token", refused)
        connection.token = None
        connection.token = connection.call("/auth/authenticate", USER)["token"]
        routes(connection, endpoint, connection.token)
        leases(connection)
    finally:
        if not connection.token:
            connection.token = connection.call("/auth/authenticate", USER)["token"]
        connection.call("/auth/disable", {})
    connection.token = None
    connection.call("/auth/user/delete", {"name": "root"})
    connection.call("/auth/role/delete", {"role": "root"})
    connection.call("/kv/deleterange", {"key": b64(PREFIX), "range_end": b64(PREFIX[:-1] + "y")})
    print("ok the calls of APISIX's client library")


if __name__ == "__main__":
    main()
