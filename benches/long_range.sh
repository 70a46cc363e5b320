#!/usr/bin/env bash
# One client that lists a large store in a loop beside another that puts, and fifty that list at once.
#
#   benches/long_range.sh NAME BINARY PORT [SERVER FLAGS...]
#
# NAME is `watershed` or `etcd` (for the report), BINARY the server, PORT the first of two ports. The generator is
# WATERSHED (default target/release/watershed). KEYS (default 512000) of VALUE_BYTES (default 1000) make the store,
# RUN (default 20s) is the length of each part, READERS (default 50) the clients of the last part. Prints: puts alone,
# puts beside one reader, resident memory of the server before and during the readers, and puts beside them.
set -euo pipefail
name=$1 binary=$2 port=$3
shift 3
generator=${WATERSHED:-target/release/watershed}
keys=${KEYS:-512000} value_bytes=${VALUE_BYTES:-1000} run=${RUN:-20s} readers=${READERS:-50}
folder=$(mktemp -d)
endpoint=127.0.0.1:$port
peer=http://127.0.0.1:$((port + 1))
"$binary" --name "$name" --data-dir "$folder/data" --listen-client-urls "http://$endpoint" \
  --advertise-client-urls "http://$endpoint" --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" \
  --initial-cluster "$name=$peer" --quota-backend-bytes 8589934592 "$@" >"$folder/log" 2>&1 &
server=$!
trap 'kill $server ${reader:-} 2>/dev/null || true; wait 2>/dev/null; rm -rf "$folder"' EXIT
until "$generator" ctl --endpoints "$endpoint" endpoint health >/dev/null 2>&1; do sleep 0.2; done

resident() { awk '/VmRSS|VmHWM/ { printf "%s %d MiB  ", $1, $2 / 1024 }' /proc/$server/status; echo; }
puts() { "$generator" bench put --endpoints "$endpoint" --key-size 16 --val-size 256 --key-space-size 100 --rate 500 --clients 8 \
  --duration "$run" | sed -n "/throughput\\|latency\\|failed/s/^/$name $1: /p"; }

"$generator" bench put --endpoints "$endpoint" --conns 8 --clients 256 --key-size 16 --val-size "$value_bytes" \
  --key-space-size "$keys" --sequential-keys --total "$keys" >/dev/null
echo "$name after writing $keys values of $value_bytes bytes: $(resident)"
puts "puts alone"
# Everything, again and again.
list() { exec "$generator" bench range --endpoints "$endpoint" --conns "$1" --clients "$1" --duration 600s \
  --request-timeout 600s --consistency l --prefix "" >"$folder/readers" 2>&1; }
list 1 & reader=$!
sleep 2
puts "puts beside one who lists"
kill $reader || { cat "$folder/readers"; exit 1; }
wait $reader 2>/dev/null || true
sleep 2
echo "$name before $readers who list: $(resident)"
list "$readers" & reader=$!
sleep 5
puts "puts beside $readers who list"
echo "$name beside $readers who list: $(resident)"
