# Sourced by the scripts of this folder, which set `binary` and `port` before: a folder, processes that end with the script, and
# what is started on loopback.

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

# start LOG COMMAND…: runs it in the background; its output goes to LOG.log.
start() {
    "${@:2}" >"$work/$1.log" 2>&1 &
    pids+=($!)
}

# member PROGRAM NAME PORT [FLAG…]: starts a member on PORT, for peers on the next one, that begins a cluster of its own unless
# the flags say otherwise; its data and its log are called NAME.
member() {
    local client=http://127.0.0.1:$3 peer=http://127.0.0.1:$(($3 + 1))
    start "$2" "$1" --name="$2" --data-dir="$work/$2" --listen-client-urls="$client" --advertise-client-urls="$client" \
        --listen-peer-urls="$peer" --initial-advertise-peer-urls="$peer" --initial-cluster="$2=$peer" "${@:4}"
}

# tier PROGRAM: a member (PROGRAM), and our gateway and proxy in front of it; sets `member`, `gateway` and `proxy`.
tier() {
    member=127.0.0.1:$port gateway=127.0.0.1:$((port + 2)) proxy=127.0.0.1:$((port + 3))
    member "$1" m1 "$port"
    start gateway "$binary" gateway start --endpoints="$member" --listen-addr="$gateway"
    start proxy "$binary" grpc-proxy start --endpoints="$member" --listen-addr="$proxy"
}
