#!/usr/bin/env bash
# Instructions in user space that a member spends on a range and on a put, counted by valgrind's callgrind: unlike times,
# they do not depend on what else the machine does. Release builds; the generator is BINARY's own.
#
#   benches/instructions.sh BINARY [PORT]
set -euo pipefail
binary=$1 port=${2:-33000}
folder=$(mktemp -d)
trap 'kill "$member" 2>/dev/null; wait "$member" 2>/dev/null || true; rm -rf "$folder"' EXIT

url=http://127.0.0.1:$port peer_url=http://127.0.0.1:$((port + 1))
valgrind --tool=callgrind --instr-atstart=no --callgrind-out-file="$folder/callgrind" "$binary" \
    --name a --data-dir "$folder/data" --listen-client-urls "$url" --advertise-client-urls "$url" \
    --listen-peer-urls "$peer_url" --initial-advertise-peer-urls "$peer_url" --initial-cluster "a=$peer_url" \
    --heartbeat-interval 1000 --election-timeout 10000 >"$folder/log" 2>&1 &
member=$!
until curl -sf "$url/health" >/dev/null; do sleep 0.2; done

load() { "$binary" bench "$@" --conns=8 --clients=64 --endpoints "127.0.0.1:$port" >/dev/null; }
control() { callgrind_control "$@" "$member" &>/dev/null; }
puts=(put --key-size=16 --val-size=256 --key-space-size=100)

# Counts LOAD of TOTAL requests.
count() {
    local name=$1 total=$2
    shift 2
    control -i on
    load "$@" --total="$total"
    control -i off
    control -d "$name"
    control -z
    local file
    file=$(grep -l "^desc: Trigger: dump $name" "$folder"/callgrind.*)
    echo "$name: $(($(awk '/^totals:/ { print $2 }' "$file") / total)) instructions"
}

# What is done once, or grows once, is not counted.
load range --consistency=s --total=2000 foo
load "${puts[@]}" --total=500
count "range, serializable" 20000 range --consistency=s foo
count "range, linearizable" 20000 range --consistency=l foo
count "put" 10000 "${puts[@]}"
