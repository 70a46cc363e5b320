#!/usr/bin/env bash
# Brings up member, gateway and proxy and checks each with etcdctl 3.4 and with the official Go client; then runs the
# examples, and, where there is a stock etcd (`ETCD`, `etcd` by default), the tests of the proxy's namespaces in front of it
# and a comparison of its metrics with ours.
#
# usage: run.sh [BINARY]    the program under test, target/debug/watershed by default
#   WATERSHED_TEST_SERVER   another server in place of our member (a stock etcd, say)
set -euo pipefail
cd "$(dirname "$0")"
binary=$(realpath "${1:-../../target/debug/watershed}")
server=${WATERSHED_TEST_SERVER:-$binary}
port=${WATERSHED_INTEROP_PORT:-11379}
. ./common.sh

(cd goclient && go vet ./... && go build -o "$work/goclient" .)

tier "$server"

# It waits for a minute, so it runs beside the others.
WATERSHED_VANISH_PORT=$((port + 10)) ./vanish.sh "$binary" >"$work/vanish.log" 2>&1 &
vanish=$!

targets=${WATERSHED_INTEROP_TARGETS:-member gateway proxy}
for name in $targets; do
    endpoint=${!name}
    for _ in $(seq 600); do
        if ETCDCTL_API=3 timeout 5 "${ETCDCTL:-etcdctl}" --endpoints="$endpoint" get ready >/dev/null 2>&1; then break; fi
        for pid in "${pids[@]}"; do kill -0 "$pid" || { echo "FAILED: a process ended at its start"; exit 1; }; done
        sleep 0.2
    done
    echo "== etcdctl 3.4, $name"
    ./etcdctl.sh "$endpoint"
    echo "== Go client 3.7, $name"
    "$work/goclient" "$endpoint"
done
echo "== examples, proxy"
(cd ../.. && cargo build --quiet --examples)
examples=$(realpath ../../target/debug/examples)
timeout 300 "$examples/lock" "$proxy" interop-lock | tee "$work/lock.log"
grep -q 'gave it back' "$work/lock.log"
ETCDCTL_API=3 "${ETCDCTL:-etcdctl}" --endpoints="$proxy" put /example/listed 1 >/dev/null
"$examples/watch_prefix" "$proxy" /example/ >"$work/watch.log" 2>&1 &
pids+=($!)
for number in $(seq 600); do
    ETCDCTL_API=3 "${ETCDCTL:-etcdctl}" --endpoints="$gateway" put /example/live "$number" >/dev/null
    if grep -q '^+ /example/live' "$work/watch.log"; then break; fi
    sleep 0.2
done
grep -q '^= /example/listed 1$' "$work/watch.log" && grep -q '^+ /example/live' "$work/watch.log"
# These check themselves and end.
for example in service_discovery config_distribution leader_election transfer work_queue barrier list_watch; do
    timeout 300 "$examples/$example" "$proxy" >"$work/$example.log" 2>&1 || { cat "$work/$example.log"; exit 1; }
    tail -n 1 "$work/$example.log"
done
if stock=$(command -v "${ETCD:-etcd}"); then
    echo "== namespaces, stock etcd upstream"
    (cd ../.. && WATERSHED_TEST_SERVER=$stock cargo test --quiet --test system features::namespace::)
else
    echo "== namespaces, stock etcd upstream: skipped, no etcd in PATH"
fi
echo "== completion scripts"
./completion.sh "$binary"
echo "== profiles, member and proxy"
WATERSHED_INTEROP_PORT=$((port + 200)) ./profiles.sh "$binary"
echo "== a member's host vanishes, gateway"
wait "$vanish" || { cat "$work/vanish.log"; exit 1; }
cat "$work/vanish.log"
echo "== metrics beside those of etcd"
if command -v "${ETCD:-etcd}" >/dev/null; then
    ./metrics.sh "$binary"
    echo "== from etcd to watershed and back"
    WATERSHED_INTEROP_PORT=$((port + 300)) ./migrate.sh "$binary"
    echo "== members of etcd by a discovery URL"
    WATERSHED_INTEROP_PORT=$((port + 400)) ./discovery_url.sh "$binary"
else
    echo "no etcd server on this machine: metrics are not compared, no cluster is moved, none starts by a discovery URL"
fi
echo "interop: all passed ($targets)"
