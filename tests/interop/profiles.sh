#!/usr/bin/env bash
# Profiles a member and a proxy that are under load, with `go tool pprof`: it has to read the profiles, and to show why there is
# no heap profile.
#
# usage: profiles.sh BINARY
set -euo pipefail
cd "$(dirname "$0")"
binary=$(realpath "${1:?usage: profiles.sh BINARY}")
port=${WATERSHED_INTEROP_PORT:-11379}
. ./common.sh
export PPROF_TMPDIR=$work
# Built at its first use.
go tool pprof -h >/dev/null 2>&1 || true

member "$binary" m1 "$port" --enable-pprof
proxy=127.0.0.1:$((port + 2))
start proxy "$binary" grpc-proxy start --endpoints="127.0.0.1:$port" --listen-addr="$proxy" --enable-pprof
for address in "127.0.0.1:$port" "$proxy"; do
    for _ in $(seq 600); do
        if "$binary" ctl --endpoints="$address" get ready >/dev/null 2>&1; then break; fi
        sleep 0.1
    done
    start load "$binary" bench put --endpoints="$address" --clients=8 --duration=600s
    load=$!
    # One that begins before the load does shows nothing of it.
    for _ in $(seq 10); do
        kill -0 "$load" 2>/dev/null || { cat "$work/load.log"; exit 1; }
        go tool pprof -top "http://$address/debug/pprof/profile?seconds=2" >"$work/top" 2>"$work/top.err" ||
            { cat "$work/top.err"; exit 1; }
        if grep -q 'tokio::' "$work/top"; then break; fi
    done
    kill "$load" && { wait "$load" || true; }
    grep -q '^Type: cpu' "$work/top" && grep -Eq 'Total samples = [1-9]' "$work/top" && grep -q 'tokio::' "$work/top" ||
        { head -n 20 "$work/top"; exit 1; }
    if go tool pprof -top "http://$address/debug/pprof/heap" >"$work/heap" 2>&1; then echo "FAILED: a heap profile"; exit 1; fi
    grep -q 'no profile heap: ' "$work/heap" || { cat "$work/heap"; exit 1; }
    echo "ok $address: $(grep -o 'Total samples = [^ ]*' "$work/top"), $(grep -Ec '^ ' "$work/top") functions"
done
