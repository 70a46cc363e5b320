#!/usr/bin/env bash
# Checks a store with the etcdctl that the distribution ships (3.4): the commands of daily use, with their output.
#
# usage: etcdctl.sh ENDPOINT
set -euo pipefail
endpoint=${1:?usage: etcdctl.sh ENDPOINT}
etcdctl=${ETCDCTL:-etcdctl}
unset "${!ETCDCTL_@}"
export ETCDCTL_API=3
work=$(mktemp -d)
watcher=
trap 'test -z "$watcher" || kill "$watcher" 2>/dev/null || true; rm -rf "$work"' EXIT
base="etcdctl/$$"

ctl() { timeout 120 "$etcdctl" --endpoints="$endpoint" "$@"; }

# expect NAME WANTED ACTUAL
expect() {
    if [ "$2" != "$3" ]; then
        printf 'FAILED %s\n--- wanted\n%s\n--- got\n%s\n' "$1" "$2" "$3"
        exit 1
    fi
    printf 'ok %s\n' "$1"
}

# matches NAME PATTERN ACTUAL
matches() {
    if ! grep -Eq -- "$2" <<<"$3"; then
        printf 'FAILED %s\n--- wanted a match of\n%s\n--- got\n%s\n' "$1" "$2" "$3"
        exit 1
    fi
    printf 'ok %s\n' "$1"
}

# fails NAME PATTERN COMMAND...: the command must fail and say so
fails() {
    local name=$1 pattern=$2 output
    shift 2
    if output=$("$@" 2>&1); then
        printf 'FAILED %s: succeeded with %s\n' "$name" "$output"
        exit 1
    fi
    matches "$name" "$pattern" "$output"
}

revision() { ctl get "$base" -w json | sed -E 's/.*"revision":([0-9]+).*/\1/'; }

expect put OK "$(ctl put "$base/k1" v1)"
expect 'put --prev-kv' "$(printf 'OK\n%s\nv1' "$base/k1")" "$(ctl put --prev-kv "$base/k1" v2)"
ctl put "$base/k2" w >/dev/null
expect get "$(printf '%s\nv2' "$base/k1")" "$(ctl get "$base/k1")"
expect 'get --prefix --keys-only' "$base/k1 $base/k2 " "$(ctl get --prefix --keys-only "$base/" | tr -s '\n' ' ')"
expect 'get --prefix --sort-by --limit' "$base/k2" \
    "$(ctl get --prefix --sort-by=VALUE --order=DESCEND --limit=1 --print-value-only=false --keys-only "$base/" | head -1)"
expect 'get -w fields' '"Count" : 2' "$(ctl get --prefix -w fields "$base/" | grep Count)"
first=$(($(revision) - 2))
expect 'get --rev' v1 "$(ctl get --rev="$first" --print-value-only "$base/k1")"
expect 'get --from-key' w "$(ctl get --from-key --limit=1 --print-value-only "$base/k2")"

expect txn "$(printf 'SUCCESS\n\nOK\n\n%s\nt' "$base/t")" \
    "$(printf 'value("%s/k1") = "v2"\n\nput %s/t t\nget %s/t\n\nget %s/k1\n\n' "$base" "$base" "$base" "$base" | ctl txn)"
expect 'txn, else' "$(printf 'FAILURE\n\n%s\nv2' "$base/k1")" \
    "$(printf 'mod("%s/k1") = "1"\n\nput %s/t x\n\nget %s/k1\n\n' "$base" "$base" "$base" | ctl txn)"

# A watch from the past on: history first, then what is written while it runs.
"$etcdctl" --endpoints="$endpoint" watch --prefix --prev-kv --rev="$first" "$base/k" >"$work/watch" 2>&1 &
watcher=$!
ctl put "$base/k3" live >/dev/null
ctl del "$base/k3" >/dev/null
wanted=$(printf 'PUT\n\n\n%s\nv1\nPUT\n%s\nv1\n%s\nv2\nPUT\n\n\n%s\nw\nPUT\n\n\n%s\nlive\nDELETE\n%s\nlive\n%s\n' \
    "$base/k1" "$base/k1" "$base/k1" "$base/k2" "$base/k3" "$base/k3" "$base/k3")
for _ in $(seq 600); do
    if [ "$(wc -l <"$work/watch")" -ge "$(wc -l <<<"$wanted")" ]; then break; fi
    sleep 0.1
done
kill "$watcher"
wait "$watcher" 2>/dev/null || true
watcher=
expect watch "$(tr -s '\n' <<<"$wanted")" "$(tr -s '\n' <"$work/watch")"

lease=$(ctl lease grant 60 | sed -E 's/lease ([0-9a-f]+) granted with TTL\(60s\)/\1/')
expect 'put --lease' OK "$(ctl put --lease="$lease" "$base/leased" x)"
matches 'lease timetolive' "^lease $lease granted with TTL\(60s\), remaining\(([1-5]?[0-9]|60)s\), attached keys\(\[$base/leased\]\)$" \
    "$(ctl lease timetolive "$lease" --keys)"
expect 'lease keep-alive --once' "lease $lease keepalived with TTL(60)" "$(ctl lease keep-alive --once "$lease")"
matches 'lease list' "^$lease$" "$(ctl lease list)"
expect 'lease revoke' "lease $lease revoked" "$(ctl lease revoke "$lease")"
expect 'its key went with it' '' "$(ctl get "$base/leased")"
fails 'an unknown lease' 'requested lease not found' ctl put --lease=7fffffff "$base/x" x

expect del 1 "$(ctl del "$base/t")"
expect 'del --prefix --prev-kv' "$(printf '2\n%s\nv2\n%s\nw' "$base/k1" "$base/k2")" "$(ctl del --prefix --prev-kv "$base/k")"
expect 'del of nothing' 0 "$(ctl del "$base/t")"

now=$(revision)
expect compaction "compacted revision $now" "$(ctl compaction "$now")"
fails 'a compacted revision' 'required revision has been compacted' ctl get --rev="$first" "$base/k1"
fails 'a future revision' 'required revision is a future revision' ctl compaction 999999999

matches 'member list' '^[0-9a-f]+, started, [^,]+, [^,]*, [^,]+, false$' "$(ctl member list)"
matches 'endpoint status' "^$endpoint, [0-9a-f]+, 3\.[0-9.]+, [0-9.]+ [kKMG]?B, true, false, [0-9]+, [0-9]+, [0-9]+, ?$" \
    "$(ctl endpoint status)"
matches 'endpoint health' 'is healthy' "$(ctl endpoint health 2>&1)"
matches 'endpoint health of the member list' 'is healthy' "$(ctl endpoint health --cluster 2>&1)"
matches 'endpoint hashkv' "^$endpoint, [0-9]+$" "$(ctl endpoint hashkv)"
expect 'alarm list' '' "$(ctl alarm list)"

# etcdctl 3.4 locks with the client-side recipe.
matches lock "^$base/lock/[0-9a-f]+$" "$(timeout 120 "$etcdctl" --endpoints="$endpoint" lock "$base/lock" printenv ETCD_LOCK_KEY)"

matches 'snapshot save' 'Snapshot saved at' "$(ctl snapshot save "$work/snapshot" 2>&1)"
matches 'snapshot status' '^[0-9a-f]+, [0-9]+, [0-9]+, [0-9.]+ [kKMG]?B$' "$("$etcdctl" snapshot status "$work/snapshot")"
