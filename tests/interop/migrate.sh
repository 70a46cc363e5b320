#!/usr/bin/env bash
# Runs docs/migrate.md step by step on loopback: from an etcd cluster to Watershed and back, by snapshot and by
# `make-mirror`, and compares the hashes of the history where they have to be equal.
#
# usage: migrate.sh [BINARY]    the program under test, target/debug/watershed by default
#   ETCD, ETCDCTL, ETCDUTL      a stock etcd and its tools (etcd, etcdctl and etcdutl by default); without an etcdutl
#                               its commands are those of etcdctl, as in etcd 3.4
set -euo pipefail
cd "$(dirname "$0")"
binary=$(realpath "${1:-../../target/debug/watershed}")
etcd=$(command -v "${ETCD:-etcd}") etcdctl=$(command -v "${ETCDCTL:-etcdctl}")
etcdutl=$(command -v "${ETCDUTL:-etcdutl}" || echo "$etcdctl")
port=${WATERSHED_INTEROP_PORT:-11679}
. ./common.sh

ready() {
    for _ in $(seq 600); do
        if "$etcdctl" --endpoints="127.0.0.1:$1" get ready >/dev/null 2>&1; then return; fi
        sleep 0.2
    done
    echo "FAILED: no member answers on port $1"
    return 1
}
ctl() { "$etcdctl" --endpoints="127.0.0.1:$1" "${@:2}"; }
# The hash and nothing else: the revision it stands for is given.
hash_at() { ctl "$1" endpoint hashkv --rev="$2" 2>/dev/null | awk -F', ' '{print $2}'; }
equal() {
    if [ "$2" != "$3" ] || [ -z "$2" ]; then echo "FAILED: $1: $2 and $3"; return 1; fi
    echo "ok: $1 ($2)"
}

echo "== $("$etcd" --version | head -n 1)"
member "$etcd" s1 "$port"
ready "$port"
for number in $(seq 40); do ctl "$port" put "k$((number % 9))" "value $number" >/dev/null; done
ctl "$port" del k3 >/dev/null
lease=$(ctl "$port" lease grant 600 | awk '{print $2}')
ctl "$port" put leased here --lease="$lease" >/dev/null
ctl "$port" compaction 20 >/dev/null
revision=$(ctl "$port" get k1 -w fields | awk -F' : ' '/"Revision"/{print $2}')

echo "== by snapshot, etcd to watershed, three members"
ctl "$port" snapshot save "$work/stock.db" >/dev/null 2>&1
before=$(hash_at "$port" "$revision")
equal "hash of the file" "$before" "$("$binary" utl hashkv "$work/stock.db" --rev "$revision" | cut -d, -f1)"
cluster=w1=http://127.0.0.1:$((port + 11)),w2=http://127.0.0.1:$((port + 13)),w3=http://127.0.0.1:$((port + 15))
for number in 1 2 3; do
    at=$((port + 8 + 2 * number))
    "$binary" utl snapshot restore "$work/stock.db" --data-dir "$work/w$number" --name "w$number" \
        --initial-cluster "$cluster" --initial-cluster-token moved \
        --initial-advertise-peer-urls "http://127.0.0.1:$((at + 1))" >"$work/restore$number.log" 2>&1
    member "$binary" "w$number" "$at" --initial-cluster="$cluster"
done
for number in 1 2 3; do
    at=$((port + 8 + 2 * number))
    ready "$at"
    equal "hash on member $number" "$before" "$(hash_at "$at" "$revision")"
done
moved=$((port + 10))
equal "a value" "value 40" "$(ctl "$moved" get k4 --print-value-only)"
equal "the lease" "$lease" "$(ctl "$moved" lease list | tail -n 1)"
equal "its key" "here" "$(ctl "$moved" get leased --print-value-only)"
ctl "$moved" put written "to watershed" >/dev/null

echo "== a database copied out of etcd's data directory"
kill "${pids[0]}" && wait "${pids[0]}" 2>/dev/null || true
cp "$work/s1/member/snap/db" "$work/raw.db"
if "$binary" utl snapshot restore "$work/raw.db" --data-dir "$work/raw" >"$work/raw.log" 2>&1; then
    echo "FAILED: restored a file without digest"; exit 1
fi
grep -q 'snapshot missing hash but --skip-hash-check=false' "$work/raw.log"
"$binary" utl snapshot restore "$work/raw.db" --skip-hash-check --data-dir "$work/raw" >"$work/raw.log" 2>&1
equal "hash of the database" "$before" "$("$binary" utl hashkv "$work/raw/member/snap/db" --rev "$revision" | cut -d, -f1)"

echo "== by snapshot, watershed to etcd"
ctl "$moved" snapshot save "$work/ours.db" >/dev/null 2>&1
revision=$(ctl "$moved" get k1 -w fields | awk -F' : ' '/"Revision"/{print $2}')
before=$(hash_at "$moved" "$revision")
back=$((port + 20))
"$etcdutl" snapshot restore "$work/ours.db" --data-dir "$work/s2" --name s2 \
    --initial-cluster "s2=http://127.0.0.1:$((back + 1))" --initial-advertise-peer-urls "http://127.0.0.1:$((back + 1))" \
    >"$work/back-restore.log" 2>&1
member "$etcd" s2 "$back"
ready "$back"
equal "hash in etcd" "$before" "$(hash_at "$back" "$revision")"
equal "what was written since" "to watershed" "$(ctl "$back" get written --print-value-only)"

# mirror FROM TO COMMAND…: starts COMMAND's mirror and waits until what is written then is there.
mirror() {
    local value="by $3 from $1"
    start "mirror-$1" "${@:3}" --endpoints="127.0.0.1:$1" make-mirror "127.0.0.1:$2"
    ctl "$1" put mirrored "$value" >/dev/null
    for _ in $(seq 600); do
        if [ "$(ctl "$2" get mirrored --print-value-only)" = "$value" ]; then break; fi
        sleep 0.2
    done
    equal "keys" "$(ctl "$1" get '' --prefix | sha256sum)" "$(ctl "$2" get '' --prefix | sha256sum)"
    kill $!
}
fresh=$((port + 24))
member "$binary" w9 "$fresh"
ready "$fresh"
stock=$((port + 28))
member "$etcd" s9 "$stock"
ready "$stock"
echo "== by make-mirror, etcd to watershed"
mirror "$back" "$fresh" "$binary" ctl
echo "== by make-mirror, watershed to etcd"
mirror "$fresh" "$stock" "$binary" ctl
echo "== by etcdctl's make-mirror, etcd to watershed and back"
mirror "$stock" "$fresh" "$etcdctl"
mirror "$fresh" "$stock" "$etcdctl"
echo "migration: done"
