#!/usr/bin/env bash
# A member's host vanishes while bytes are on their way to it: the gateway ends the connection within 60 s.
#
# usage: vanish.sh [BINARY]    the program under test, target/debug/watershed by default
#
# Needs root and network namespaces, since packets have to be dropped; without them it says so and ends well.
set -euo pipefail
cd "$(dirname "$0")"
binary=$(realpath "${1:-../../target/debug/watershed}")
port=${WATERSHED_VANISH_PORT:-11389}
name=ws$$
net=10.$((200 + $$ % 50)).$((RANDOM % 250))
if [ "$(id -u)" != 0 ] || ! ip netns add "$name" 2>/dev/null; then
    echo "vanish: skipped, it takes root and network namespaces"
    exit 0
fi
work=$(mktemp -d)
pids=()
finish() {
    status=$?
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    ip netns del "$name" 2>/dev/null || true
    ip link del "${name}h" 2>/dev/null || true
    if [ "$status" != 0 ]; then tail -n 8 "$work"/*.log | cut -c 1-300; fi
    rm -rf "$work"
}
trap finish EXIT

if ! ip link add "${name}h" type veth peer name "${name}n" 2>/dev/null; then
    echo "vanish: skipped, no virtual links here"
    exit 0
fi
ip link set "${name}n" netns "$name"
ip addr add "$net.1/30" dev "${name}h"
ip link set "${name}h" up
ip -n "$name" addr add "$net.2/30" dev "${name}n"
ip -n "$name" link set "${name}n" up
ip -n "$name" link set lo up

member=$net.2:2379 peer=http://127.0.0.1:2380 gateway=127.0.0.1:$port
ip netns exec "$name" "$binary" --name=m1 --data-dir="$work/data" --listen-client-urls="http://$member" \
    --advertise-client-urls="http://$member" --listen-peer-urls="$peer" --initial-advertise-peer-urls="$peer" \
    --initial-cluster="m1=$peer" >"$work/member.log" 2>&1 &
pids+=($!)
"$binary" gateway start --endpoints="$member" --listen-addr="$gateway" >"$work/gateway.log" 2>&1 &
pids+=($!)
for _ in $(seq 600); do
    if "$binary" ctl --endpoints="$gateway" --command-timeout=2s get ready >/dev/null 2>&1; then break; fi
    sleep 0.2
done
"$binary" ctl --endpoints="$gateway" get ready >/dev/null

# An HTTP/2 connection: preface and empty SETTINGS, answered by the member's SETTINGS.
exec 3<>"/dev/tcp/127.0.0.1/$port"
printf 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0' >&3
timeout 120 head -c 9 <&3 >/dev/null
ip -n "$name" link set "${name}n" down
# A PING that nobody acknowledges.
printf '\0\0\10\6\0\0\0\0\0pingping' >&3
since=$SECONDS
if ! timeout 300 cat <&3 >/dev/null 2>&1 && [ $((SECONDS - since)) -ge 299 ]; then
    echo "FAILED: the connection is still open after $((SECONDS - since)) s"
    exit 1
fi
echo "vanish: the gateway ended the connection after $((SECONDS - since)) s"
[ $((SECONDS - since)) -le 180 ] || { echo "FAILED: that is too long"; exit 1; }
