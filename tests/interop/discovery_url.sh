#!/usr/bin/env bash
# Three members of a stock etcd find each other by a discovery URL that `watershed discovery serve` made, in a cluster of one member
# of ours; a fourth is told that the cluster is full. Members speak this protocol up to etcd 3.5.
#
# usage: discovery_url.sh [BINARY]    the program under test, target/debug/watershed by default
#   ETCD, ETCDCTL                     a stock etcd before 3.6 and its client (etcd and etcdctl by default); curl is needed too
set -euo pipefail
cd "$(dirname "$0")"
binary=$(realpath "${1:-../../target/debug/watershed}")
etcd=$(command -v "${ETCD:-etcd}") etcdctl=$(command -v "${ETCDCTL:-etcdctl}")
port=${WATERSHED_INTEROP_PORT:-12679}
. ./common.sh
export ETCDCTL_API=3

# eventually WHAT COMMAND…: repeats it until it succeeds, for two minutes.
eventually() {
    local end=$((SECONDS + 120))
    until "${@:2}" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || { echo "FAILED: $1"; return 1; }
        sleep 0.1
    done
}

echo "== $("$etcd" --version | head -n 1)"
registry=127.0.0.1:$((port + 20))
member "$binary" store "$port"
start registry "$binary" discovery serve --endpoints="127.0.0.1:$port" --listen-addr="$registry"
eventually "no registry" curl -sf "http://$registry/health"
url=$(curl -sf "http://$registry/new?size=3")

# found NUMBER: a member that looks the others up.
found() {
    member "$etcd" "m$1" $((port + 2 * $1)) --initial-cluster= --discovery="$url" --discovery-fallback=exit
}
for number in 1 2 3; do found "$number"; done
eventually "no three healthy members" \
    "$etcdctl" --endpoints="127.0.0.1:$((port + 2)),127.0.0.1:$((port + 4)),127.0.0.1:$((port + 6))" endpoint health
"$etcdctl" --endpoints="127.0.0.1:$((port + 2))" put key value >/dev/null
value=$("$etcdctl" --endpoints="127.0.0.1:$((port + 6))" get key --print-value-only)
[ "$value" = value ] || { echo "FAILED: value $value"; exit 1; }
echo "ok: three members found each other"
found 4
! wait "${pids[-1]}" || { echo "FAILED: a fourth member ended well"; exit 1; }
grep -q "cluster is full" "$work/m4.log" || { echo "FAILED: the fourth member did not say why it ended"; exit 1; }
echo "ok: a fourth is told that the cluster is full"
