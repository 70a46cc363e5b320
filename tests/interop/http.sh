#!/usr/bin/env bash
# Clients that speak JSON over HTTP: the comparison with etcd, curl, APISIX's calls, etcd3gw, and Patroni with PostgreSQL.
#
# usage: http.sh [BINARY]    the program under test, target/debug/watershed by default
#   ETCD3GW   a Python that has etcd3gw; by default one is made in a folder of its own
set -euo pipefail
cd "$(dirname "$0")"
binary=$(realpath "${1:-../../target/debug/watershed}")
port=${WATERSHED_INTEROP_PORT:-11379}
port=$((port + 40))
. ./common.sh

echo "== the answers of etcd 3.7.1"
python3 http_json.py "$binary"

tier "$binary"

if [ -z "${ETCD3GW:-}" ]; then
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet etcd3gw==2.7.0
    ETCD3GW=$work/venv/bin/python
fi
for name in member gateway proxy; do
    endpoint=${!name}
    curl -sf --retry 50 --retry-connrefused --retry-delay 1 "http://$endpoint/health" -o "$work/health"
    echo "== curl -N, $name"
    key=$(printf 'curl-%s' "$name" | base64)
    curl -sN "http://$endpoint/v3/watch" -d "{\"create_request\":{\"key\":\"$key\"}}" >"$work/watch.$name" 2>"$work/curl.log" &
    watch=$!
    pids+=("$watch")
    for _ in $(seq 600); do
        # Unbuffered: each line is there while the answer goes on.
        if grep -q '"created":true' "$work/watch.$name"; then break; fi
        sleep 0.1
    done
    curl -sf "http://$endpoint/v3/kv/put" -d "{\"key\":\"$key\",\"value\":\"MQ==\"}" -o "$work/put"
    for _ in $(seq 600); do
        if grep -q '"events":' "$work/watch.$name"; then break; fi
        sleep 0.1
    done
    grep -q '"value":"MQ=="' "$work/watch.$name"
    kill -0 "$watch"
    kill "$watch"
    echo "== APISIX's calls, $name"
    timeout 300 python3 apisix_client.py "$endpoint"
    echo "== etcd3gw, $name"
    timeout 300 "$ETCD3GW" etcd3gw_client.py "$endpoint"
done
echo "== Patroni"
python3 patroni.py "$binary"
echo "interop over HTTP: all passed"
