#!/usr/bin/env bash
# etcd's cache library (go.etcd.io/etcd/cache/v3) on a member behind our proxy: its own tests, and watchcache/main.go with restarts of
# the member, compaction and many watchers. As a control, the same through etcd's proxy. The Go module proxy does not have
# the library: it comes from a checkout of etcd's source.
#
# usage: watchcache.sh CHECKOUT [BINARY]    etcd's source at v3.7.1; target/debug/watershed by default. Needs root.
set -euo pipefail
cd "$(dirname "$0")"
checkout=$(realpath "${1:?usage: watchcache.sh CHECKOUT [BINARY]}")
binary=$(realpath "${2:-../../target/debug/watershed}")
stock=$(stock/build)/etcd
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r tier watchcache "$work/"
cd "$work/watchcache"
go mod edit -replace "go.etcd.io/etcd/cache/v3=$checkout/cache" -require go.etcd.io/etcd/pkg/v3@v3.7.1
# The tests stand where their framework is; ours starts programs.
mkdir tests
cp "$checkout/tests/integration/cache_test.go" tests/
sed -i 's#go.etcd.io/etcd/tests/v3/framework/integration#watershed.test/watchcache/integration#' tests/cache_test.go
go mod tidy
go vet . ./integration
go build -o "$work/program" .
go test -c -o "$work/tests" ./tests

# alone COMMAND…: in a network and a process namespace of its own.
alone() { unshare --net --pid --fork --kill-child --mount-proc sh -c 'ip link set lo up; exec "$@"' sh "$@"; }

failed=0
ours="$binary grpc-proxy start"
cached="$ours --namespace=/tenant/ --cache=linearizable"
while IFS=: read -r name member proxy; do
    echo "== $name"
    outcome=0
    alone "$work/program" "$member" $proxy >"$work/program.log" 2>&1 || outcome=1
    grep -E '^(ok|FAILED|  )' "$work/program.log" || cat "$work/program.log"
    INTEROP_MEMBER=$member INTEROP_PROXY=$proxy alone "$work/tests" -test.v -test.timeout 5m >"$work/tests.log" 2>&1 || outcome=1
    echo "its own tests: $(grep -c '^--- PASS' "$work/tests.log" || true) passed, $(grep -c '^--- FAIL' "$work/tests.log" || true) failed"
    grep -E '^ *--- FAIL' "$work/tests.log" || true
    case $name in
    control*) [ "$outcome" = 1 ] || { echo "FAILED: it works through etcd's proxy, so this proves nothing"; failed=1; } ;;
    *) [ "$outcome" = 0 ] || failed=1 ;;
    esac
done <<END
etcd 3.7.1, no proxy:$stock:
our member, no proxy:$binary:
our proxy, etcd 3.7.1:$stock:$ours
our proxy, our member:$binary:$ours
our proxy with namespace and cache, etcd 3.7.1:$stock:$cached
our proxy with namespace and cache, our member:$binary:$cached
control, etcd's proxy:$stock:$stock grpc-proxy start
END
exit "$failed"
