#!/usr/bin/env bash
# The status pages of proxy and gateway in headless Chromium, with some reads, watches and a member that ends; needs npm and Debian's chromium.
#
# usage: status_page.sh [BINARY [FOLDER]]    the program under test, target/debug/watershed by default; FOLDER for screenshots
set -euo pipefail
folder=${2:+$(realpath "$2")}
binary=$(realpath "${1:-$(dirname "$0")/../../target/debug/watershed}")
cd "$(dirname "$0")"
port=${WATERSHED_INTEROP_PORT:-11479}
. ./common.sh

export PUPPETEER_SKIP_DOWNLOAD=1 PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1
cp -r status_page "$work/page"
(cd "$work/page" && npm install --silent --no-audit --no-fund >/dev/null)
member=127.0.0.1:$port proxy=127.0.0.1:$((port + 3)) tenant=127.0.0.1:$((port + 4)) tenants=127.0.0.1:$((port + 5))
member "$binary" m1 "$port"
member_pid=${pids[-1]}
start proxy "$binary" grpc-proxy start --endpoints="$member" --listen-addr="$proxy" --cache=linearizable --cache-prefix=/jobs/
ctl() { "$binary" ctl --endpoints="$proxy" "$@"; }
for _ in $(seq 600); do
    if ctl put /jobs/1 x >/dev/null 2>&1; then break; fi
    sleep 0.2
done
for number in $(seq 20); do ctl put "/jobs/$number" value >/dev/null; done
start watch "$binary" ctl --endpoints="$proxy" watch --prefix /jobs/
(while ctl get --prefix /jobs/ >/dev/null 2>&1 && ctl put /jobs/1 y >/dev/null 2>&1; do :; done) >/dev/null 2>&1 &
pids+=($!)
# Another proxy serves tenants, one of them with a limit that it has reached, and shows them where its metrics are alone.
cat >"$work/tenants.yaml" <<END
tenants:
- {name: team-a, namespace: /team-a/, match: [{listen: '$tenant'}], limits: {stored-keys: 1, watches: 10}}
- {name: team-b, namespace: /team-b/, match: [{listen: '127.0.0.1:$((port + 6))'}]}
END
start tenants "$binary" grpc-proxy start --endpoints="$member" --listen-addr="127.0.0.1:$((port + 7))" \
    --metrics-addr="http://$tenants" --tenants-file="$work/tenants.yaml"
of_tenant() { "$binary" ctl --endpoints="$tenant" "$@"; }
for _ in $(seq 600); do
    if of_tenant put 1 x >/dev/null 2>&1; then break; fi
    sleep 0.2
done
if of_tenant put 2 x >/dev/null 2>&1; then
    echo "a tenant may put more keys than its limit"
    exit 1
fi
gateway=127.0.0.1:$((port + 8)) gateway_metrics=127.0.0.1:$((port + 9))
start gateway "$binary" gateway start --endpoints="$member,127.0.0.1:1" --listen-addr="$gateway" --metrics-addr="$gateway_metrics"
for _ in $(seq 600); do
    if "$binary" ctl --endpoints="$gateway" get x >/dev/null 2>&1; then break; fi
    sleep 0.2
done
(while "$binary" ctl --endpoints="$gateway" get --prefix /jobs/ >/dev/null 2>&1; do :; done) >/dev/null 2>&1 &
pids+=($!)
timeout 600 node "$work/page/checks.js" "$proxy" "$member_pid" "$tenants" "$gateway_metrics" ${folder:+"$folder"}
ctl proxy status
"$binary" ctl --endpoints="$tenants" proxy status
