# What CI runs.
check:
    .ci/run

# Everything that needs only Rust.
test:
    cargo test

# A tier on loopback.
dev *flags:
    cargo run --release -- dev {{flags}}

# Checks with etcdctl 3.4 and the official Go client; needs both.
interop:
    cargo build
    tests/interop/run.sh

# Micro-benchmarks of the store.
bench *filter:
    cargo bench --bench mvcc -- {{filter}}

# Real processes under faults; prints what was done and checked. Needs root for the disk scenarios.
chaos rounds="10" seed="1":
    WATERSHED_CHAOS_ROUNDS={{rounds}} WATERSHED_CHAOS_SEED={{seed}} \
        cargo test --release --test system chaos:: -- --nocapture --test-threads=1
