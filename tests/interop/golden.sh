#!/usr/bin/env bash
# Compares the transcripts in golden/ with a live etcd and etcdctl 3.7.1, so that they cannot say what those never did.
#
# usage: golden.sh [--record] [ETCD ETCDCTL]
#   --record          writes down what they answer, in place of what the transcripts have
#   ETCD, ETCDCTL     the programs; built from their Go modules by default (stock/build)
set -euo pipefail
cd "$(dirname "$0")"
if [ "${1:-}" = --record ]; then
    export WATERSHED_GOLDEN_WRITE=1
    shift
fi
if [ $# = 0 ]; then
    folder=$(stock/build)
    set -- "$folder/etcd" "$folder/etcdctl"
fi
WATERSHED_TEST_SERVER=$(realpath "$1") WATERSHED_GOLDEN_CTL=$(realpath "$2")
export WATERSHED_TEST_SERVER WATERSHED_GOLDEN_CTL
echo "== $("$1" --version | head -n 1)"
cd ../..
cargo test --test system features::golden::
