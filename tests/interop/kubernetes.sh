#!/usr/bin/env bash
# A Kubernetes API server's storage layer (k8s.io/apiserver 0.37.2) on a member behind our proxy: its store, its cache of watches with
# consistent lists, its compactor. As a control the same through etcd's own proxy, which cannot serve consistent lists.
#
# usage: kubernetes.sh [BINARY]                 kubernetes/main.go; target/debug/watershed by default
#        kubernetes.sh BINARY suites [NAME…]    the module's own tests of etcd3, cacher and factory on the named tiers (all by default:
#                                               member etcd plain namespace cached etcd-proxy); 40 minutes on two busy cores. Needs root.
#   WATERSHED_KUBERNETES_DIR   where programs, logs and the copy of the module are kept, target/interop-kubernetes by default
set -euo pipefail
cd "$(dirname "$0")"
binary=$(realpath "${1:-../../target/debug/watershed}")
shift || true
kept=${WATERSHED_KUBERNETES_DIR:-../../target/interop-kubernetes}
mkdir -p "$kept"
kept=$(realpath "$kept")
stock=$(stock/build)/etcd
ours="$binary grpc-proxy start"
namespace="--namespace=/tenant/ --namespace-admin"

programs() {
    (cd tier && go vet .)
    (cd kubernetes && go vet . && go build -o "$kept/kubernetes" .)
    # NAME MEMBER [PROXY…]; each makes its own ports and folder.
    run() { timeout 900 "$kept/kubernetes" "${@:2}" >"$kept/$1.log" 2>&1; }
    run core "$binary" $ours $namespace --cache=linearizable &
    local core=$!
    run etcd "$stock" $ours $namespace --cache=linearizable &
    local etcd=$!
    run uncached "$stock" $ours &
    local uncached=$!
    run control "$stock" "$stock" grpc-proxy start &
    local control=$! failed=0
    for name in core etcd uncached; do
        wait "${!name}" || failed=1
        echo "== our proxy, $name"
        grep -E '^(ok|FAILED|  )' "$kept/$name.log" || cat "$kept/$name.log"
    done
    wait "$control" || true
    echo "== etcd's proxy"
    grep -E '^(ok|FAILED|  )' "$kept/control.log" || cat "$kept/control.log"
    if ! grep -q '^FAILED consistent lists: .*the cache could not answer' "$kept/control.log"; then
        echo "FAILED: etcd's proxy serves consistent lists, so the check proves nothing"
        failed=1
    fi
    return "$failed"
}

# The tests start an etcd in their own process: `testserver` is replaced in a copy of the module, so that they start ours.
suites() {
    local module copy=$kept/apiserver
    module=$(cd kubernetes && go mod download -json k8s.io/apiserver | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
    rm -rf "$copy"
    cp -r "$module" "$copy"
    chmod -R u+w "$copy"
    cp kubernetes/testserver/test_server.go "$copy/pkg/storage/etcd3/testserver/test_server.go"
    (cd "$copy" && go mod edit -require=watershed.test/tier@v0.0.0 -replace="watershed.test/tier=$OLDPWD/tier")
    local packages=(etcd3 cacher storagebackend/factory)
    for package in "${packages[@]}"; do
        (cd "$copy" && go test -c -o "$kept/$(basename "$package").test" "./pkg/storage/$package")
    done
    for tier in "$@"; do
        local member=$stock proxy=
        case $tier in
        member) member=$binary ;;
        etcd) ;;
        plain) proxy=$ours ;;
        namespace) member=$binary proxy="$ours $namespace" ;;
        cached) proxy="$ours $namespace --cache=linearizable" ;;
        etcd-proxy) proxy="$stock grpc-proxy start" ;;
        *) echo "unknown tier $tier"; return 2 ;;
        esac
        for package in "${packages[@]}"; do
            local log=$kept/$tier-$(basename "$package").log
            # A network and processes of their own: nothing is left over.
            (cd "$copy/pkg/storage/$package" && INTEROP_MEMBER=$member INTEROP_PROXY=$proxy unshare --net --pid --fork --kill-child \
                --mount-proc sh -c "ip link set lo up; exec $kept/$(basename "$package").test -test.v -test.timeout 15m") >"$log" 2>&1 || true
            echo "$tier, $package: $(grep -ac '^--- PASS' "$log" || true) passed, $(grep -ac '^--- FAIL' "$log" || true) failed"
            grep -aoE '^ *--- FAIL: \S+' "$log" || true
        done
    done
}

case ${1:-programs} in
programs) programs ;;
suites)
    shift
    [ $# -gt 0 ] || set -- member etcd plain namespace cached etcd-proxy
    suites "$@"
    ;;
*) echo "unknown part $1"; exit 2 ;;
esac
