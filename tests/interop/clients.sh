#!/usr/bin/env bash
# Client libraries with TLS and users: a member with auth, our gateway and our proxy in front of it, and on each of them the
# official Go client, jetcd (Java) and etcd3 of npm (JavaScript). Ends with one line for each client. Their packages come from the
# Go module proxy, Maven Central and the npm registry; a client whose tools are not installed is named as skipped.
#
# usage: clients.sh [BINARY] [CLIENT…]    the program under test, target/debug/watershed by default; go go-jwt jetcd etcd3 by default
#   WATERSHED_TEST_SERVER   another server in place of our member (a stock etcd, say)
#   WATERSHED_CLIENTS_DIR   where packages are kept between runs, target/interop-clients by default
set -euo pipefail
cd "$(dirname "$0")"
binary=$(realpath "${1:-../../target/debug/watershed}")
shift || true
clients=("$@")
[ ${#clients[@]} -gt 0 ] || clients=(go go-jwt jetcd etcd3)
server=${WATERSHED_TEST_SERVER:-$binary}
port=${WATERSHED_INTEROP_PORT:-11379}
port=$((port + 420))
kept=${WATERSHED_CLIENTS_DIR:-../../target/interop-clients}
mkdir -p "$kept"
kept=$(realpath "$kept")
. ./common.sh

# An authority, a certificate of it for all servers, and a pair of keys for tokens.
certificates() {
    cd "$work"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=interop" -keyout ca.key -out ca.crt
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=server" -keyout server.key -out server.csr
    printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' >server.ext
    openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile server.ext -out server.crt
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out jwt.key
    openssl pkey -in jwt.key -pubout -out jwt.pub
}
(certificates) >"$work/openssl.log" 2>&1
authority=$work/ca.crt

# secured NAME PORT FLAG…: a member on PORT with users, whose tokens end after three seconds, our gateway and our proxy.
secured() {
    local name=$1 at=$2 tls=(--cert-file="$work/server.crt" --key-file="$work/server.key") password='a password'
    local member=127.0.0.1:$at peer=http://127.0.0.1:$((at + 1))
    start "$name" "$server" --name="$name" --data-dir="$work/$name" --listen-client-urls="https://$member" \
        --advertise-client-urls="https://$member" --listen-peer-urls="$peer" --initial-advertise-peer-urls="$peer" \
        --initial-cluster="$name=$peer" --bcrypt-cost=4 "${tls[@]}" "${@:3}"
    start "$name-gateway" "$binary" gateway start --endpoints="$member" --listen-addr="127.0.0.1:$((at + 2))"
    start "$name-proxy" "$binary" grpc-proxy start --endpoints="https://$member" --listen-addr="127.0.0.1:$((at + 3))" \
        --cacert="$authority" "${tls[@]}"
    ctl() { "$binary" ctl --endpoints="https://$member" --cacert="$authority" "$@" >>"$work/ctl.log" 2>&1; }
    for _ in $(seq 600); do
        if ctl endpoint health; then break; fi
        sleep 0.1
    done
    ctl user add "root:$password"
    ctl user grant-role root root
    # etcd3 has its elections there.
    for prefix in goclient/ jetcd/ etcd3/ election/; do
        ctl role add "$prefix"
        ctl role grant-permission "$prefix" --prefix readwrite "$prefix"
    done
    ctl role add reader
    ctl role grant-permission reader --prefix read goclient/
    ctl user add "app:$password"
    for prefix in goclient/ jetcd/ etcd3/ election/; do ctl user grant-role app "$prefix"; done
    ctl user add "reader:$password"
    ctl user grant-role reader reader
    ctl auth enable
}
secured simple "$port" --auth-token=simple --auth-token-ttl=3
secured jwt "$((port + 10))" --auth-token="jwt,pub-key=$work/jwt.pub,priv-key=$work/jwt.key,sign-method=ES256,ttl=3s"

# prepare CLIENT: fetches and builds it; an explanation and 3 when its tools are not there.
prepare() {
    case $1 in
    go | go-jwt)
        command -v go >/dev/null || { echo "no go"; return 3; }
        (cd goclient && go build -o "$kept/goclient" .)
        ;;
    jetcd)
        if ! command -v mvn >/dev/null || ! command -v javac >/dev/null; then
            echo "no mvn, or no javac: apt-get install maven default-jdk-headless"
            return 3
        fi
        if ! cmp -s jetcd/pom.xml "$kept/jetcd/pom.xml"; then
            rm -rf "$kept/jetcd"
            mvn --quiet --batch-mode -f jetcd/pom.xml dependency:copy-dependencies -DincludeScope=runtime \
                -DoutputDirectory="$kept/jetcd/lib"
            cp jetcd/pom.xml "$kept/jetcd/pom.xml"
        fi
        javac -cp "$kept/jetcd/lib/*" -d "$kept/jetcd/classes" jetcd/Checks.java
        ;;
    etcd3)
        command -v npm >/dev/null || { echo "no npm: apt-get install npm"; return 3; }
        mkdir -p "$kept/etcd3"
        cp node_etcd3/package.json node_etcd3/package-lock.json node_etcd3/checks.js "$kept/etcd3/"
        if ! cmp -s node_etcd3/package-lock.json "$kept/etcd3/installed"; then
            npm --prefix "$kept/etcd3" ci --silent --no-audit --no-fund
            cp node_etcd3/package-lock.json "$kept/etcd3/installed"
        fi
        ;;
    *) echo "unknown client $1"; return 2 ;;
    esac
}

run() {
    case $1 in
    go | go-jwt) timeout 400 "$kept/goclient" "https://$2" "$authority" ;;
    jetcd) timeout 400 java -cp "$kept/jetcd/classes:$kept/jetcd/lib/*" Checks "https://$2" "$authority" "${@:3}" ;;
    # It warns of an address in place of a server name.
    etcd3) NODE_NO_WARNINGS=1 timeout 400 node "$kept/etcd3/checks.js" "https://$2" "$authority" "${@:3}" ;;
    esac
}

lines=()
failed=0
for client in "${clients[@]}"; do
    begun=$SECONDS
    outcome=0
    reason=$(prepare "$client" 2>&1) || outcome=$?
    if [ "$outcome" = 3 ]; then
        lines+=("skipped $client: $reason")
        continue
    fi
    if [ "$outcome" != 0 ]; then
        printf '%s\n' "$reason"
        lines+=("FAILED  $client: it could not be built")
        failed=1
        continue
    fi
    prepared=$((SECONDS - begun))
    # The three at once: most of their time they wait for leases and tokens to end. When users change while a call is in
    # progress, etcd answers "revision of auth store is old"; only the Go client sends every such call again. Of the others,
    # one after the other changes users.
    first=() second=()
    [[ $client = go* ]] || { first=("-users and roles") && second=("users and roles"); }
    at=$port
    [ "$client" = go-jwt ] && at=$((port + 10))
    member=127.0.0.1:$at gateway=127.0.0.1:$((at + 2)) proxy=127.0.0.1:$((at + 3))
    running=()
    for name in member gateway proxy; do
        run "$client" "${!name}" "${first[@]}" >"$work/$client.$name" 2>&1 &
        running+=($!)
    done
    outcomes=()
    for pid in "${running[@]}"; do
        outcome=0
        wait "$pid" || outcome=1
        outcomes+=("$outcome")
    done
    wrong=()
    for name in member gateway proxy; do
        outcome=${outcomes[0]}
        outcomes=("${outcomes[@]:1}")
        if [ ${#second[@]} -gt 0 ]; then run "$client" "${!name}" "${second[@]}" >>"$work/$client.$name" 2>&1 || outcome=1; fi
        [ "$outcome" = 0 ] || wrong+=("$name")
        echo "== $client, $name"
        cat "$work/$client.$name"
    done
    count=$(grep -c '^ok ' "$work/$client.member" || true)
    if [ ${#wrong[@]} -gt 0 ]; then
        lines+=("FAILED  $client: ${wrong[*]}")
        failed=1
    else
        took=$((SECONDS - begun))
        lines+=("ok      $client: $count checks on member, gateway and proxy ($took s, $prepared s of them to build)")
    fi
done
printf '\n'
printf '%s\n' "${lines[@]}"
exit "$failed"
