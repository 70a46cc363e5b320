#!/usr/bin/env bash
# Puts the same load on an etcd and on our member: each metric that moves there has to move here, with the same type and
# the same label names.
#
# usage: metrics.sh BINARY
#   ETCD   the etcd to compare with: `etcd` of the distribution (3.4) by default, a 3.7.1 knows more metrics
set -euo pipefail
binary=$(realpath "${1:?usage: metrics.sh BINARY}")
etcd=${ETCD:-etcd}
etcdctl=${ETCDCTL:-etcdctl}
port=${WATERSHED_INTEROP_PORT:-11379}
port=$((port + 10))
unset "${!ETCD_@}" "${!ETCDCTL_@}"
export ETCDCTL_API=3
work=$(mktemp -d)
pid=
trap 'test -z "$pid" || kill "$pid" 2>/dev/null || true; rm -rf "$work"' EXIT

# Moves on etcd and does not exist here: tests/features/metrics.rs has the reasons.
absent='^(go_|promhttp_|etcd_debugging_(store_|snap_save_|disk_backend_commit_|mvcc_index_compaction_pause_))'
# Names of 3.4 that later versions dropped, and what depends on timing.
other='^(etcd_debugging_mvcc_(put|delete|range|txn)_total|etcd_debugging_mvcc_db_total_size_in_bytes|etcd_snap_|process_open_fds|process_resident|process_virtual|os_fd_used|etcd_mvcc_db_|etcd_server_(slow_(apply|read_indexes)|heartbeat_send_failures|leader_changes_seen)_total|etcd_server_proposals_pending|etcd_debugging_mvcc_(slow_watcher|pending_events)_total)'

scrape() {
    exec 3<>"/dev/tcp/127.0.0.1/$port"
    printf 'GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&3
    cat <&3 | tr -d '\r'
    exec 3>&-
}

# Lines "name type labels value-of-all-series".
families() {
    awk '
        /^# TYPE / { name = $3; type[name] = $4; next }
        /^#/ || !/^[a-z]/ { next }
        {
            labels = ""
            if (match($0, /\{.*\}/)) {
                count = split(substr($0, RSTART + 1, RLENGTH - 2), parts, /",/)
                for (i = 1; i <= count; i++) { split(parts[i], pair, "="); if (pair[1] != "le") labels = labels pair[1] "," }
            }
            if (length(labels) > length(known[name])) known[name] = labels
            values[name] = values[name] $NF ";"
        }
        END { for (name in type) if (name in values) print name, type[name], known[name] "-", values[name] }
    ' "$1" | sort
}

load() {
    local ctl=("$etcdctl" "--endpoints=127.0.0.1:$port") lease revision
    timeout 300 "${ctl[@]}" watch --prefix metrics/ >/dev/null &
    local watcher=$!
    for _ in $(seq 600); do
        if scrape | grep -E '^etcd_debugging_mvcc_watcher_total 1$' >/dev/null; then break; fi
        sleep 0.1
    done
    for number in $(seq 20); do "${ctl[@]}" put --prev-kv metrics/k "$number" >/dev/null; done
    "${ctl[@]}" put metrics/large "$(head -c 100000 /dev/zero | tr '\0' v)" >/dev/null
    "${ctl[@]}" get --prefix metrics/ >/dev/null
    printf 'mod("metrics/k") > "0"\n\nput metrics/k 1\nput metrics/l 1\n\n\n' | "${ctl[@]}" txn >/dev/null
    "${ctl[@]}" del metrics/k >/dev/null
    lease=$("${ctl[@]}" lease grant 60 | awk '{ print $2 }')
    "${ctl[@]}" lease keep-alive --once "$lease" >/dev/null
    "${ctl[@]}" lease revoke "$lease" >/dev/null
    revision=$("${ctl[@]}" get metrics/large -w fields | awk -F: '/"Revision"/ { print $2 + 0 }')
    "${ctl[@]}" compact --physical "$((revision - 5))" >/dev/null
    "${ctl[@]}" endpoint hashkv >/dev/null
    "${ctl[@]}" endpoint health >/dev/null 2>&1
    "${ctl[@]}" defrag >/dev/null
    "${ctl[@]}" snapshot save "$work/snapshot.$RANDOM.db" >/dev/null 2>&1
    kill "$watcher" 2>/dev/null || true
    wait "$watcher" 2>/dev/null || true
    # State on disk is written within a second.
    for _ in $(seq 300); do
        if scrape | grep -E '^etcd_disk_backend_commit_duration_seconds_count [1-9]' >/dev/null; then break; fi
        sleep 0.1
    done
}

# moved NAME SERVER: writes NAME.moved with "name type labels" of what moves
moved() {
    local peer=http://127.0.0.1:$((port + 1))
    "$2" --name=m1 --data-dir="$work/$1" --listen-client-urls="http://127.0.0.1:$port" \
        --advertise-client-urls="http://127.0.0.1:$port" --listen-peer-urls="$peer" \
        --initial-advertise-peer-urls="$peer" --initial-cluster="m1=$peer" >"$work/$1.log" 2>&1 &
    pid=$!
    for _ in $(seq 600); do
        if timeout 5 "$etcdctl" --endpoints="127.0.0.1:$port" get ready >/dev/null 2>&1; then break; fi
        kill -0 "$pid" || { tail -n 5 "$work/$1.log"; exit 1; }
        sleep 0.1
    done
    scrape >"$work/$1.before"
    load
    scrape >"$work/$1.after"
    kill "$pid"
    wait "$pid" 2>/dev/null || true
    pid=
    comm -13 <(families "$work/$1.before") <(families "$work/$1.after") | awk '{ print $1, $2, $3 }' >"$work/$1.moved"
}

moved theirs "$etcd"
moved ours "$binary"
missing=$(grep -Ev "$absent" "$work/theirs.moved" | grep -Ev "$other" | comm -23 - "$work/ours.moved")
if [ -n "$missing" ]; then
    printf 'FAILED: moves on %s and not, or otherwise, on ours\n%s\n' "$("$etcd" --version | head -n 1)" "$missing"
    exit 1
fi
echo "ok $(grep -Evc "$absent|$other" "$work/theirs.moved") metrics move as on $("$etcd" --version | head -n 1)"
