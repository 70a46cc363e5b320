#!/usr/bin/env bash
# Endpoints from SRV records of a real DNS server (Debian's dnsmasq): found at the start, kept while the server is away, followed
# when the records change.
#
# usage: dns.sh [BINARY]    the program under test, target/debug/watershed by default
set -euo pipefail
cd "$(dirname "$0")"
binary=$(realpath "${1:-../../target/debug/watershed}")
port=${WATERSHED_DNS_PORT:-11489}
source ./common.sh

dns=127.0.0.1:$((port + 9))
dns_pid=

# serve_dns MEMBER…: a server whose SRV records name these members, by the numbers of their ports.
serve_dns() {
    local records=()
    for member in "$@"; do
        records+=("--srv-host=_etcd-client._tcp.interop.test,m.interop.test,$member,10,5")
    done
    start dnsmasq dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --local=/interop.test/ --no-daemon --pid-file= \
        --listen-address=127.0.0.1 --bind-interfaces --port="${dns##*:}" --local-ttl=1 --log-facility=- \
        --host-record=m.interop.test,127.0.0.1 "${records[@]}"
    dns_pid=$!
}

stop_dns() {
    kill "$dns_pid"
    wait "$dns_pid" 2>/dev/null || true
}

# expect VALUE ENDPOINT: waits until the key `who` has this value there.
expect() {
    for _ in $(seq 600); do
        if [ "$("$binary" ctl --endpoints="$2" --command-timeout=2s get who --print-value-only 2>/dev/null)" = "$1" ]; then return; fi
        sleep 0.2
    done
    echo "dns: $2 does not lead to $1"
    return 1
}

# Two clusters, so that it shows where a connection leads.
one=$port two=$((port + 2)) gateway=127.0.0.1:$((port + 4)) proxy=127.0.0.1:$((port + 5))
for name in one two; do
    member "$binary" "$name" "${!name}"
    for _ in $(seq 600); do
        if "$binary" ctl --endpoints="127.0.0.1:${!name}" put who "$name" >/dev/null 2>&1; then break; fi
        sleep 0.2
    done
    expect "$name" "127.0.0.1:${!name}"
done

srv=(--discovery-srv=interop.test --discovery-dns="$dns" --insecure-discovery)
if "$binary" gateway start "${srv[@]}" --listen-addr="$gateway" 2>"$work/nothing.log"; then
    echo "dns: the gateway starts without a DNS server"
    exit 1
fi
grep -q "_etcd-client-ssl._tcp.interop.test" "$work/nothing.log"

serve_dns "$one"
for _ in $(seq 600); do
    if [ "$("$binary" ctl "${srv[@]}" get who --print-value-only 2>/dev/null)" = one ]; then break; fi
    sleep 0.2
done
[ "$("$binary" ctl "${srv[@]}" get who --print-value-only)" = one ]
start gateway "$binary" gateway start "${srv[@]}" --listen-addr="$gateway"
start proxy "$binary" grpc-proxy start "${srv[@]}" --listen-addr="$proxy"
expect one "$gateway"
expect one "$proxy"

stop_dns
for _ in $(seq 600); do
    if grep -q "source of endpoints does not answer" "$work/gateway.log" && grep -q "source of endpoints does not answer" "$work/proxy.log"; then break; fi
    sleep 0.2
done
expect one "$gateway"
expect one "$proxy"

serve_dns "$two"
expect two "$gateway"
grep -q "endpoints have changed" "$work/gateway.log"
echo "dns: ok"
