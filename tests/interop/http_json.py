#!/usr/bin/env python3
"""Sends several hundred requests to the JSON gateway and the HTTP pages, and compares the answers with those of etcd 3.7.1.

usage: http_json.py BINARY            compares with what was recorded (http_json.golden)
       http_json.py BINARY --etcd E   compares with this etcd, side by side
       http_json.py --record ETCD     records what this etcd answers

What differs by nature is replaced before: ids, terms, sizes, hashes, times, white space. Beside the answers of etcd 3.7
ours may have the fields that older versions of etcd have in errors.
"""
import base64, hashlib, json, os, re, socket, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "http_json.golden")
PORT = int(os.environ.get("WATERSHED_JSON_PORT", "11440"))
PATHS = [line.split() for line in open(os.path.join(HERE, "../../src/json/paths.txt"))]
STREAMS = {"/v3/watch", "/v3/lease/keepalive", "/v3/election/observe", "/v3/maintenance/snapshot"}
# Wait, or hold something after they have answered.
HOLDING = {"/v3/lock/lock", "/v3/election/campaign", "/v3/election/observe", "/v3/watch"}


def b64(text):
    return base64.b64encode(text.encode()).decode()


class Answer:
    """Status, headers and body of one request on a connection of its own, read until `lines` lines, `quiet` seconds of
    silence or the end."""

    def __init__(self, port, method, path, body=b"", headers=(), lines=None, quiet=20.0, chunks=None):
        self.ended, self.status, self.headers, self.body = False, None, {}, b""
        sock = socket.create_connection(("127.0.0.1", port), timeout=quiet)
        head = [f"{method} {path} HTTP/1.1"]
        names = {name.lower() for name, _ in headers}
        if "host" not in names:
            head.append(f"Host: 127.0.0.1:{port}")
        head += [f"{name}: {value}" for name, value in headers]
        if chunks is not None:
            head.append("Transfer-Encoding: chunked")
        elif method not in ("GET", "HEAD", "OPTIONS") or body:
            head.append(f"Content-Length: {len(body)}")
        sock.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + (body if chunks is None else b""))
        for chunk in chunks or ():
            sock.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            time.sleep(0.05)
        if chunks is not None:
            sock.sendall(b"0\r\n\r\n")
        self.read(sock, method, lines)
        sock.close()

    def read(self, sock, method, lines):
        data, raw = b"", b""

        def more():
            nonlocal data
            piece = sock.recv(65536)
            if not piece:
                raise EOFError
            data += piece

        try:
            while b"\r\n\r\n" not in data:
                more()
            head, data = data.split(b"\r\n\r\n", 1)
            first, *rest = head.decode("latin-1").split("\r\n")
            self.status = int(first.split(" ")[1])
            for line in rest:
                name, value = line.split(":", 1)
                self.headers.setdefault(name.strip().lower(), []).append(value.strip())
            if method == "HEAD" or self.status in (204, 304):
                self.ended = True
                return
            if "chunked" in self.headers.get("transfer-encoding", [""])[0]:
                while True:
                    while b"\r\n" not in data:
                        more()
                    size, data = data.split(b"\r\n", 1)
                    size = int(size.split(b";")[0], 16)
                    while len(data) < size + 2:
                        more()
                    self.body, data = self.body + data[:size], data[size + 2:]
                    if size == 0:
                        self.ended = True
                        return
                    if lines is not None and self.body.count(b"\n") >= lines:
                        return
            else:
                length = int(self.headers.get("content-length", ["-1"])[0])
                self.body = data
                while length < 0 or len(self.body) < length:
                    data = b""
                    more()
                    self.body += data
                self.ended = True
        except (TimeoutError, socket.timeout):
            pass
        except (EOFError, ConnectionError):
            self.ended = "closed"


# Replaced wherever they stand.
BY_NATURE = {
    "cluster_id", "member_id", "raft_term", "raftTerm", "raftIndex", "raftAppliedIndex", "leader", "dbSize", "dbSizeInUse",
    "hash", "TTL", "blob", "remaining_bytes", "version_of", "dbSizeQuota",
}


# Differences that are meant.
KNOWN = {
    "keep alive nonsense": "etcd answers an empty 200 when the first request of a stream is no JSON; we say what is wrong",
    "watch progress": "etcd answers the progress request before the watch that was asked for before it",
}


def plain(value, key=None):
    if isinstance(value, dict):
        return {k: plain(v, k) for k, v in sorted(value.items())}
    if isinstance(value, list):
        return [plain(item, key) for item in value]
    if key in BY_NATURE and value:
        return "*"
    if key == "ID" and isinstance(value, str) and len(value) > 12:
        return "*"
    if isinstance(value, str) and len(value) > 1000:
        return "sha256 " + hashlib.sha256(value.encode()).hexdigest()
    if isinstance(value, str):
        value = value.replace("\u00a0", " ")
        value = re.sub(r"localhost:\d+|127\.0\.0\.1:\d+", "HOST", value)
    return value


def normal(answer, case):
    """What is compared."""
    out = {"status": answer.status, "ended": answer.ended}
    text = answer.body.decode("utf-8", "replace").replace("\u00a0", " ")
    kind = answer.headers.get("content-type", [None])[0]
    out["content-type"] = kind
    for name in ("grpc-metadata-content-type", "allow", "access-control-allow-origin", "access-control-allow-methods",
                 "access-control-allow-headers", "x-content-type-options", "www-authenticate", "location", "trailer"):
        if name in answer.headers:
            out[name] = re.sub(r"127\.0\.0\.1:\d+", "HOST", answer.headers[name][0])
    if kind == "application/json" and case.get("parse", True):
        values = []
        for line in text.split("\n") if case["stream"] else [text]:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError:
                values.append(line)
                continue
            if isinstance(value, dict) and answer.status != 200 and "code" in value:
                value.pop("error", None)
            error = value.get("error") if isinstance(value, dict) else None
            if isinstance(error, dict):
                for name in ("grpc_code", "http_code", "http_status"):
                    error.pop(name, None)
            values.append(plain(value))
        if case.get("first_and_last") and values:
            values = [values[0], values[-1]]
        out["body"] = values
    elif case.get("body", True):
        # The order of checks is not fixed.
        text = "".join(sorted(text.splitlines(True))) if "[+]" in text else text
        out["body"] = re.sub(r"127\.0\.0\.1:\d+", "HOST", text)
    return out


def cases():
    def case(name, method, path, body="", headers=(), **more):
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        stream = path in STREAMS
        more.setdefault("quiet", 1.0 if stream else 20.0)
        yield {"name": name, "method": method, "path": path, "body": body, "headers": list(headers), "stream": stream, **more}

    def post(name, path, body="", headers=(), **more):
        yield from case(f"{name}", "POST", path, body, headers, **more)

    # The state that later cases read.
    put = lambda key, value, **more: {"key": b64(key), "value": b64(value), **more}
    yield from post("put", "/v3/kv/put", put("a", "1"))
    yield from post("put again", "/v3/kv/put", put("a", "2", prev_kv=True))
    yield from post("put b", "/v3/kv/put", put("b", "<b>&"))
    yield from post("range", "/v3/kv/range", {"key": b64("a")})
    yield from post("range camel", "/v3/kv/range", {"key": b64("a"), "rangeEnd": b64("z"), "sortOrder": "DESCEND", "sortTarget": "KEY"})
    yield from post("range numbers", "/v3/kv/range", {"key": b64("a"), "range_end": b64("z"), "limit": 1, "sort_order": 1, "sort_target": 1})
    yield from post("range texts", "/v3/kv/range", {"key": b64("a"), "range_end": b64("z"), "limit": "1", "revision": "2"})
    yield from post("range count", "/v3/kv/range", {"key": b64("a"), "range_end": b64("z"), "count_only": True})
    yield from post("range keys", "/v3/kv/range", {"key": b64("a"), "range_end": b64("z"), "keys_only": True})
    yield from post("range none", "/v3/kv/range", {"key": b64("none")})
    yield from post("range future", "/v3/kv/range", {"key": b64("a"), "revision": 1000000})
    yield from post("range no key", "/v3/kv/range", {})
    yield from post("range old root", "/v3beta/kv/range", {"key": b64("a")})
    yield from post("range alpha root", "/v3alpha/kv/range", {"key": b64("a")})
    yield from post("range query", "/v3/kv/range?key=Yg==", {"key": b64("a")})
    yield from post("range escaped path", "/v3/kv%2Frange", {"key": b64("a")})
    yield from post("range two values", "/v3/kv/range", json.dumps({"key": b64("a")}) + json.dumps({"key": b64("b")}))
    yield from post("range trailing text", "/v3/kv/range", json.dumps({"key": b64("a")}) + " trailing")
    yield from post("range leading space", "/v3/kv/range", " \n\t" + json.dumps({"key": b64("a")}))
    for field, values in {
        "key": ["!!", "YQ==", "YQ", "YQ=", "Y", "_-8=", "_-8", "/+8=", "/-8=", 5, None, True, [], {}, "YQ\n=", "YQ==\n\n\n\n", "YR=="],
        "limit": [1, -1, 0, "1", "-1", " 1", "1 ", "", "x", 1.0, 1.5, "1.0", "1e0", 1e3, "0x1", "1,", 9223372036854775807, 9223372036854775808, "9223372036854775808", True, None, [], {}],
        "sort_order": ["NONE", "ASCEND", "none", "NEW", 0, 1, 2, 3, 99, -1, "1", 1.5, None, True, []],
        "sort_target": ["KEY", "VALUE", "MOD", 4, 5],
        "serializable": [True, False, "true", 1, 0, None, "", []],
        "unknown": [1, {"a": [1, {"b": None}]}, "x"],
        "revision": [0, "0", -1, "+1"],
    }.items():
        for value in values:
            body = {"key": b64("a"), field: value} if field != "key" else {field: value}
            yield from post(f"range {field}={value!r}", "/v3/kv/range", body)
    for raw in ["null", "[]", "5", "\"x\"", "true", "{", "}", "{\"key\"", "{\"key\":", "{\"key\":\"", "{,}", "{\"key\":\"YQ==\",}",
                "{\"key\" \"YQ==\"}", "{key:1}", "{'key':1}", "nope", "nul", "tru", "fals", "-", "01", "1.", "1e", "[1 2]", "[1,]", "\"\\x\"",
                "\"\\u12g4\"", "\"\t\"", "{\"key\":\"YQ==\" \"limit\":1}", "{\"key\":\"YQ==\",\"key\":\"Yg==\"}",
                "{\"range_end\":\"YQ==\",\"rangeEnd\":\"Yg==\"}", "{\"key\":\"YQ==\",\"limit\":01}", "{\"key\":\"\\u0059Q==\"}",
                "{\"\\u006bey\":\"YQ==\"}", "{\"key\":\"\\ud800\"}", "{\"key\":\"\\ud83d\\ude00\"}", "{\n \"key\": \"YQ==\",\n \"limit\": x}",
                "{\n \"key\": \"YQ==\",\n \"limit\": \"x\"}", "{\"ä\":1, \"limit\":{}}", "{\"KEY\":\"YQ==\"}", "{\"range-end\":\"YQ==\"}",
                "{\"[key]\":1}", "{\"@type\":\"x\"}", "{\"limit\":1e400}", "{\"limit\":1E2}", "{\"unknown\":\"\\ud800\"}", "\x00", "\ufeff{}"]:
        yield from post(f"raw {raw!r}", "/v3/kv/range", raw)
    yield {"name": "invalid UTF-8", "method": "POST", "path": "/v3/kv/range", "raw": b'{"key":"\xff"}', "headers": [], "stream": False, "quiet": 20.0}
    yield {"name": "chunked body", "method": "POST", "path": "/v3/kv/range", "chunks": [b'{"ke', b'y":"YQ', b'=="}'], "headers": [], "stream": False, "quiet": 20.0}
    yield from post("deep", "/v3/kv/range", "[" * 10001)
    yield from post("too large", "/v3/kv/put", put("large", "x" * 1600000))
    yield from post("large", "/v3/kv/put", put("large", "x" * 1000000))
    yield from post("large answer", "/v3/kv/range", {"key": b64("large")})
    yield from post("delete large", "/v3/kv/deleterange", {"key": b64("large"), "prev_kv": False})

    # Transactions.
    op = lambda name, **more: {name: more}
    get = op("request_range", key=b64("a"))
    for name, txn in {
        "empty": {},
        "create": {"compare": [{"target": "CREATE", "key": b64("new"), "create_revision": "0"}], "success": [op("request_put", **put("new", "x"))], "failure": [get]},
        "failed": {"compare": [{"target": "CREATE", "key": b64("new"), "createRevision": 0}], "success": [op("request_put", **put("new", "x"))], "failure": [get]},
        "value": {"compare": [{"target": "VALUE", "result": "NOT_EQUAL", "key": b64("a"), "value": b64("1")}], "success": [op("requestDeleteRange", key=b64("new"), prevKv=True)]},
        "lease": {"compare": [{"target": 4, "result": 0, "key": b64("a"), "lease": "0"}], "success": [get]},
        "range": {"compare": [{"target": "MOD", "result": "GREATER", "key": b64("a"), "range_end": b64("z"), "mod_revision": 1}], "success": [get, get]},
        "nested": {"success": [{"request_txn": {"success": [get], "compare": []}}]},
        "two arms": {"success": [{"request_range": {"key": b64("a")}, "request_put": put("a", "3")}]},
        "two targets": {"compare": [{"target": "MOD", "key": b64("a"), "version": 1, "mod_revision": 1}]},
        "null arm": {"success": [{"request_range": None}]},
        "no arm": {"success": [{}]},
        "null op": {"success": [None]},
        "no list": {"success": {}},
        "duplicate key": {"success": [op("request_put", **put("a", "3")), op("request_put", **put("a", "4"))]},
        "deep": json.loads('{"success":[{"requestTxn":' * 40 + "{}" + "}]}" * 40),
    }.items():
        yield from post(f"txn {name}", "/v3/kv/txn", txn)

    # Leases.
    yield from post("grant", "/v3/lease/grant", {"TTL": 100, "ID": "7587"})
    yield from post("grant again", "/v3/lease/grant", {"TTL": "100", "ID": 7587})
    yield from post("grant zero", "/v3/lease/grant", {"ID": 7588})
    yield from post("grant huge", "/v3/lease/grant", {"TTL": "9000000001", "ID": 7589})
    yield from post("grant lower case", "/v3/lease/grant", {"ttl": 100, "id": 7590})
    yield from post("put lease", "/v3/kv/put", put("leased", "x", lease="7587"))
    yield from post("put no lease", "/v3/kv/put", put("leased", "x", lease=1))
    yield from post("time to live", "/v3/lease/timetolive", {"ID": 7587, "keys": True})
    yield from post("time to live, old path", "/v3/kv/lease/timetolive", {"ID": 7587})
    yield from post("time to live, none", "/v3/lease/timetolive", {"ID": 1})
    yield from post("keep alive", "/v3/lease/keepalive", {"ID": 7587})
    yield from post("keep alive twice", "/v3/lease/keepalive", '{"ID":7587}{"ID":"7587"}')
    yield from post("keep alive none", "/v3/lease/keepalive", {"ID": 1})
    yield from post("keep alive empty", "/v3/lease/keepalive", "")
    yield from post("keep alive nonsense", "/v3/lease/keepalive", "nonsense")
    yield from post("revoke", "/v3/lease/revoke", {"ID": 7587})
    yield from post("revoke again", "/v3/kv/lease/revoke", {"ID": "7587"})
    yield from post("leases", "/v3/lease/leases", {}, parse=False, body_unused=True)

    # Watches.
    watch = lambda **more: json.dumps({"create_request": more})
    yield from post("watch", "/v3/watch", watch(key=b64("a")), lines=1)
    yield from post("watch history", "/v3/watch", watch(key=b64("a"), start_revision=2), lines=3)
    yield from post("watch prev", "/v3/watch", watch(key=b64("a"), range_end=b64("b"), start_revision="3", prev_kv=True), lines=2)
    yield from post("watch filter", "/v3/watch", watch(key=b64("a"), start_revision="3", filters=["NOPUT", 1]), lines=2)
    yield from post("watch camel", "/v3/watch", json.dumps({"createRequest": {"key": b64("a"), "watchId": "7", "startRevision": 2}}), lines=2)
    yield from post("watch cancel", "/v3/watch", watch(key=b64("a"), watch_id=5) + json.dumps({"cancel_request": {"watch_id": 5}}), lines=2)
    yield from post("watch progress", "/v3/watch", watch(key=b64("a")) + json.dumps({"progress_request": {}}), lines=2)
    yield from post("watch empty request", "/v3/watch", "{}")
    yield from post("watch unknown cancel", "/v3/watch", json.dumps({"cancel_request": {"watch_id": 99}}))
    yield from post("watch hasleader", "/v3/watch", watch(key=b64("a")), [("Grpc-Metadata-hasleader", "true")], lines=1)
    yield from post("watch timeout", "/v3/watch", watch(key=b64("a")), [("Grpc-Timeout", "3S")], quiet=30.0)
    yield from post("compact", "/v3/kv/compaction", {"revision": 3, "physical": True})
    yield from post("compact again", "/v3/kv/compaction", {"revision": 3})
    yield from post("compact future", "/v3/kv/compaction", {"revision": 300})
    yield from post("range compacted", "/v3/kv/range", {"key": b64("a"), "revision": 2})
    yield from post("watch compacted", "/v3/watch", watch(key=b64("a"), start_revision=2), lines=2)

    # Cluster, maintenance, lock, election.
    yield from post("members", "/v3/cluster/member/list", {}, parse=True)
    yield from post("members linearizable", "/v3/cluster/member/list", {"linearizable": True})
    yield from post("member add bad", "/v3/cluster/member/add", {"peerURLs": ["nonsense"]})
    yield from post("member remove none", "/v3/cluster/member/remove", {"ID": "99"})
    yield from post("member promote none", "/v3/cluster/member/promote", {"ID": 99})
    yield from post("member update none", "/v3/cluster/member/update", {"ID": 99, "peerURLs": ["http://127.0.0.1:1"]})
    yield from post("status", "/v3/maintenance/status")
    yield from post("alarms", "/v3/maintenance/alarm", {"action": "GET"})
    yield from post("alarm on", "/v3/maintenance/alarm", {"action": "ACTIVATE", "memberID": "7", "alarm": "NOSPACE"})
    yield from post("put no space", "/v3/kv/put", put("full", "x"))
    yield from case("health no space", "GET", "/health")
    yield from case("health without alarms", "GET", "/health?exclude=NOSPACE")
    yield from case("ready no space", "GET", "/readyz")
    yield from post("alarm off", "/v3/maintenance/alarm", {"action": "DEACTIVATE", "memberID": "7", "alarm": "NOSPACE"})
    yield from post("alarm corrupt", "/v3/maintenance/alarm", {"action": 1, "memberID": "7", "alarm": 2})
    yield from case("health corrupt", "GET", "/health")
    yield from case("ready corrupt", "GET", "/readyz/data_corruption")
    yield from case("live corrupt", "GET", "/livez")
    yield from case("ready corrupt excluded", "GET", "/readyz?exclude=data_corruption")
    yield from post("alarm corrupt off", "/v3/maintenance/alarm", {"action": "DEACTIVATE", "memberID": "7", "alarm": "CORRUPT"})
    yield from post("hash", "/v3/maintenance/hash")
    yield from post("hashkv", "/v3/maintenance/hashkv", {"revision": 0})
    yield from post("hashkv future", "/v3/maintenance/hashkv", {"revision": 3000})
    yield from post("defragment", "/v3/maintenance/defragment")
    yield from post("move leader", "/v3/maintenance/transfer-leadership", {"targetID": 5})
    yield from post("downgrade", "/v3/maintenance/downgrade", {"action": "VALIDATE", "version": "3.6"})
    yield from post("downgrade bad", "/v3/maintenance/downgrade", {"action": "VALIDATE", "version": "x"})
    yield from post("snapshot", "/v3/maintenance/snapshot", first_and_last=True, quiet=20.0)
    yield from post("lock", "/v3/lock/lock", {"name": b64("l"), "lease": "0"}, parse=False, body_unused=True)
    yield from post("lock no lease", "/v3/lock/lock", {"name": b64("l"), "lease": 99})
    yield from post("lock timeout", "/v3/lock/lock", {"name": b64("l")}, [("Grpc-Timeout", "300m")], settle=3.0)
    yield from post("unlock", "/v3/lock/unlock", {"key": b64("l/none")})
    yield from post("leader none", "/v3/election/leader", {"name": b64("e")})
    yield from post("grant for election", "/v3/lease/grant", {"TTL": 100, "ID": "1234"})
    yield from post("campaign", "/v3/election/campaign", {"name": b64("e"), "lease": 1234, "value": b64("v")})
    yield from post("leader", "/v3/election/leader", {"name": b64("e")})
    yield from post("observe", "/v3/election/observe", {"name": b64("e")}, lines=1)
    yield from post("resign nobody", "/v3/election/resign", {})
    yield from post("proclaim nobody", "/v3/election/proclaim", {"leader": {"name": b64("e")}, "value": b64("w")})
    # Auth, while it is off.
    yield from post("auth status", "/v3/auth/status")
    yield from post("authenticate", "/v3/auth/authenticate", {"name": "root", "password": "x"})
    yield from post("authenticate number", "/v3/auth/authenticate", {"name": 5})

    # Headers.
    key = json.dumps({"key": b64("a")})
    for name, value in [("Grpc-Timeout", "5S"), ("Grpc-Timeout", "x"), ("Grpc-Timeout", "0S"), ("Grpc-Timeout", "-1S"), ("Grpc-Timeout", "1"),
                        ("Content-Type", "text/plain"), ("Content-Type", "application/x-www-form-urlencoded"), ("Content-Type", "application/xml"),
                        ("Accept", "text/html"), ("Authorization", "nonsense"), ("Authorization", "Bearer nonsense"), ("Grpc-Metadata-token", "nonsense"),
                        ("Grpc-Metadata-hasleader", "true"), ("Grpc-Metadata-x-bin", "!!"), ("Grpc-Metadata-x-bin", "aGk"), ("Grpc-Metadata-x", "y"),
                        ("Grpc-Metadata-Connection-x", "close"), ("Grpc-Metadata-Content-Type", "x"), ("X-HTTP-Method-Override", "GET"), ("TE", "trailers"),
                        ("Origin", "http://a.example"), ("Host", "other.example"), ("Accept-Encoding", "gzip")]:
        yield from post(f"header {name}: {value}", "/v3/kv/range", key, [(name, value)])
    yield from post("override", "/v3/kv/range", key, [("Content-Type", "application/x-www-form-urlencoded"), ("X-HTTP-Method-Override", "GET")])

    # Every path: methods, malformed bodies, neighbours.
    for path, _ in PATHS:
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"):
            yield from case(f"{method} {path}", method, path)
        if path not in STREAMS:
            for body in ("{", "[]", "nonsense", '{"unknown":{"a":1}', '{"header":'):
                yield from post(f"{path} {body}", path, body)
        yield from post(f"slash {path}", path + "/", "{}")
        yield from post(f"below {path}", path + "/x", "{}")
    for path in ("/v3", "/v3/", "/v3/kv", "/v3/kv/", "/v3/nothing", "/v3//kv/range", "/v3/kv/../kv/range", "/v3/kv/range:x", "/V3/kv/range", "/v3beta/", "/v3/kv/rangestream"):
        for method in ("POST", "GET"):
            yield from case(f"{method} {path}", method, path, "{}" if method == "POST" else "")

    # Pages.
    for path in ("/version", "/health", "/livez", "/readyz", "/livez/serializable_read", "/readyz/serializable_read", "/readyz/linearizable_read",
                 "/readyz/data_corruption", "/readyz/non_learner", "/readyz/nothing", "/livez/data_corruption", "/livez/", "/readyz/", "/health/",
                 "/version/", "/", "/nothing", "/v2/keys/a", "/members", "/config", "/config/local/log", "/debug", "/debug/", "/debug/pprof", "/debug/pprof/",
                 "/debug/pprof/heap", "/debug/requests", "/debug/events", "/metrics/", "/health?serializable=true", "/health?serializable=1",
                 "/health?exclude=", "/health?exclude=CORRUPT", "/health?exclude=nonsense", "/health?SERIALIZABLE=true", "/livez?exclude=serializable_read",
                 "/livez?exclude=nonsense", "/readyz?exclude=linearizable_read&exclude=serializable_read", "/readyz/data_corruption?verbose", "/livez?verbose",
                 "/livez?verbose=false", "/readyz?allowlist=data_corruption", "/health?%zz", "/readyz?exclude=data_corruption&verbose"):
        for method in ("GET", "HEAD", "POST", "OPTIONS"):
            yield from case(f"{method} {path}", method, path)
    for path in ("/metrics", "/debug/vars"):
        for method in ("GET", "POST", "HEAD", "OPTIONS"):
            yield from case(f"{method} {path}", method, path, body_unused=True, parse=False)
    yield from case("version host", "GET", "/version", headers=[("Host", "evil.example")])
    yield from case("version origin", "GET", "/version", headers=[("Origin", "http://evil.example")])


def run(port, case):
    body = case.get("raw", case.get("body", "")) or b""
    if isinstance(body, str):
        body = body.encode()
    answer = Answer(port, case["method"], case["path"], body, case["headers"], case.get("lines"), case["quiet"], case.get("chunks"))
    # What a call that was given up leaves behind is removed afterwards.
    time.sleep(case.get("settle", 0))
    out = normal(answer, {**case, "body": not case.get("body_unused")})
    return out


def start(binary, port, work, *more):
    name = os.path.basename(binary)
    data = os.path.join(work, f"{name}-{port}")
    client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"
    env = {k: v for k, v in os.environ.items() if not k.startswith("ETCD_")}
    log = open(os.path.join(work, f"{name}-{port}.log"), "w")
    process = subprocess.Popen(
        [binary, "--name=m", f"--data-dir={data}", f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
         f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=m={peer}", *more],
        stdout=log, stderr=log, env=env)
    for _ in range(1200):
        try:
            if Answer(port, "GET", "/version").body.find(b'"not_decided"') < 0 and Answer(port, "GET", "/readyz").status == 200:
                return process
        except OSError:
            pass
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit(f"{binary} does not start: {open(log.name).read()[-2000:]}")


def main(args):
    recording = args[0] == "--record"
    binary = args[1] if recording else args[0]
    etcd = args[2] if len(args) > 2 and args[1] == "--etcd" else None
    processes, failed, count = [], 0, 0
    began = time.time()
    with tempfile.TemporaryDirectory() as work:
        try:
            processes.append(start(binary, PORT, work))
            if etcd:
                processes.append(start(etcd, PORT + 4, work))
            golden = {} if recording or etcd else json.load(open(GOLDEN))
            recorded = {}
            for case in cases():
                count += 1
                ours = run(PORT, case)
                if recording:
                    recorded[f"{count} {case['name']}"] = ours
                    continue
                expected = run(PORT + 4, case) if etcd else golden.get(f"{count} {case['name']}")
                if ours != expected and case["name"] not in KNOWN:
                    failed += 1
                    print(f"DIFFERS {case['name']}")
                    for name in sorted({*(ours or {}), *(expected or {})}):
                        a, b = (expected or {}).get(name), ours.get(name)
                        if a != b:
                            print(f"    {name}\n      etcd  {json.dumps(a, ensure_ascii=False)[:600]}\n      ours  {json.dumps(b, ensure_ascii=False)[:600]}")
            if recording:
                with open(GOLDEN, "w") as out:
                    out.write("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v, sort_keys=True)}" for k, v in recorded.items()) + "\n}\n")
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
    print(f"json: {count} requests in {time.time() - began:.0f} s, {failed} differ beside {len(KNOWN)} that are meant to")
    return failed > 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    sys.exit(main(sys.argv[1:]))
