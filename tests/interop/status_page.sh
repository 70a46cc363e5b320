#!/usr/bin/env bash
# The proxy's status page in headless Chromium, with some reads, watches and a member that ends; needs npm and Debian's chromium.
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
member=127.0.0.1:$port proxy=127.0.0.1:$((port + 3))
member "$binary" m1 "$port"
member_pid=${pids[-1]}
start proxy "$binary" grpc-proxy start --endpoints="$member" --listen-addr="$proxy" --cache=linearizable --cache-prefix=/jobs/
ctl() { "$binary" ctl --endpoints="$proxy" "$@"; }
for _ in $(seq 100); do
    if ctl put /jobs/1 x >/dev/null 2>&1; then break; fi
    sleep 0.2
done
for number in $(seq 20); do ctl put "/jobs/$number" value >/dev/null; done
start watch "$binary" ctl --endpoints="$proxy" watch --prefix /jobs/
(while ctl get --prefix /jobs/ >/dev/null 2>&1 && ctl put /jobs/1 y >/dev/null 2>&1; do :; done) >/dev/null 2>&1 &
pids+=($!)
timeout 120 node "$work/page/checks.js" "$proxy" "$member_pid" ${folder:+"$folder"}
ctl proxy status
