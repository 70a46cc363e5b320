#!/usr/bin/env python3
"""OpenStack's client for etcd's JSON gateway, against the given endpoint.

usage: etcd3gw_client.py HOST:PORT
"""
import sys, threading, uuid

import etcd3gw
from etcd3gw import client as etcd3_client
from etcd3gw.lock import Lock

host, port = sys.argv[1].rsplit(":", 1)
client = etcd3_client(host=host, port=int(port), timeout=120)
prefix = f"/etcd3gw-{uuid.uuid4()}/"

assert client.status()["version"].startswith("3."), client.status()
assert client.members()[0]["clientURLs"] is not None
key = prefix + "a"
assert client.create(key, "1") and not client.create(key, "2")
assert client.get(key) == [b"1"]
assert client.replace(key, "1", "3") and not client.replace(key, "1", "4")
for number in range(20):
    client.put(f"{prefix}many/{number:02}", str(number) * 1000)
values = client.get_prefix(prefix + "many/", sort_order="descend", sort_target="key")
assert len(values) == 20 and values[0][0] == b"19" * 1000, values[:1]
assert len(client.get_prefix(prefix)) == 21

lease = client.lease(ttl=60)
client.put(prefix + "leased", "x", lease=lease)
assert 0 < lease.ttl() <= 60 and lease.refresh() == 60
assert lease.keys() == [(prefix + "leased").encode()]
assert lease.revoke() and client.get(prefix + "leased") == []

with Lock("lock" + prefix, ttl=10, client=client) as lock:
    assert lock.is_acquired()
    assert not Lock("lock" + prefix, ttl=10, client=client).acquire()
assert Lock("lock" + prefix, ttl=10, client=client).acquire()

seen, started = [], threading.Event()
events, cancel = client.watch_prefix(prefix + "watched/")


def follow():
    started.set()
    for event in events:
        seen.append((event["kv"]["key"].decode(), event["kv"].get("value"), event.get("type", "PUT")))
        if len(seen) == 3:
            return


thread = threading.Thread(target=follow)
thread.start()
started.wait()
client.put(prefix + "watched/1", "x")
client.put(prefix + "watched/2", "y")
client.delete(prefix + "watched/1")
thread.join(120)
cancel()
assert [kind for _, _, kind in seen] == ["PUT", "PUT", "DELETE"], seen
assert client.delete_prefix(prefix)
assert client.get_prefix(prefix) == []
result = client.transaction({
    "compare": [{"key": etcd3gw.utils._encode(key), "result": "EQUAL", "target": "CREATE", "create_revision": 0}],
    "success": [{"request_put": {"key": etcd3gw.utils._encode(key), "value": etcd3gw.utils._encode("t")}}],
    "failure": [],
})
assert result["succeeded"], result
try:
    client.lease(ttl=5).revoke()
    etcd3gw.lease.Lease(12345, client=client).revoke()
except Exception as error:
    assert "404" in str(error) or "not found" in str(error).lower(), repr(error)
else:
    raise SystemExit("a lease that is not there was revoked")
print("etcd3gw: ok")
