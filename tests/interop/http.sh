#!/usr/bin/env bash
# Clients that speak JSON over HTTP: the comparison with etcd, curl, etcd3gw, and Patroni with PostgreSQL.
#
# usage: http.sh [BINARY]    the program under test, target/debug/watershed by default
#   ETCD3GW   a Python that has etcd3gw; by default one is made in a folder of its own
set -euo pipefail
cd "$(dirname "$0")"
binary=$(realpath "${1:-../../target/debug/watershed}")
port=${WATERSHED_INTEROP_PORT:-11379}
port=$((port + 40))
unset "${!ETCD_@}"
work=$(mktemp -d)
pids=()
finish() {
    status=$?
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    if [ "$status" != 0 ]; then tail -n 8 "$work"/*.log | cut -c 1-300; fi
    rm -rf "$work"
}
trap finish EXIT

echo "== the answers of etcd 3.7.1"
python3 http_json.py "$binary"

member=127.0.0.1:$port gateway=127.0.0.1:$((port + 2)) proxy=127.0.0.1:$((port + 3)) peer=http://127.0.0.1:$((port + 1))
"$binary" --name=m1 --data-dir="$work/data" --listen-client-urls="http://$member" --advertise-client-urls="http://$member" \
    --listen-peer-urls="$peer" --initial-advertise-peer-urls="$peer" --initial-cluster="m1=$peer" >"$work/member.log" 2>&1 &
pids+=($!)
"$binary" gateway start --endpoints="$member" --listen-addr="$gateway" >"$work/gateway.log" 2>&1 &
pids+=($!)
"$binary" grpc-proxy start --endpoints="$member" --listen-addr="$proxy" >"$work/proxy.log" 2>&1 &
pids+=($!)

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
    for _ in $(seq 100); do
        # Unbuffered: each line is there while the answer goes on.
        if grep -q '"created":true' "$work/watch.$name"; then break; fi
        sleep 0.1
    done
    curl -sf "http://$endpoint/v3/kv/put" -d "{\"key\":\"$key\",\"value\":\"MQ==\"}" -o "$work/put"
    for _ in $(seq 100); do
        if grep -q '"events":' "$work/watch.$name"; then break; fi
        sleep 0.1
    done
    grep -q '"value":"MQ=="' "$work/watch.$name"
    kill -0 "$watch"
    kill "$watch"
    echo "== etcd3gw, $name"
    timeout 120 "$ETCD3GW" etcd3gw_client.py "$endpoint"
done
echo "== Patroni"
python3 patroni.py "$binary"
echo "interop over HTTP: all passed"
