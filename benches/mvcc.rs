//! The store alone: no log, no network, changes dropped instead of submitted.
//!
//! A million keys of 24 bytes with values of 256 bytes. `put` publishes after every write, which is the worst case
//! for a copy-on-write tree, or after every 32. Before the timings it prints what the keys cost in memory and how
//! long opening a store of that size takes.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion};
use watershed::core::backend::{Backend, ChangeSet};
use watershed::core::mvcc::{Progress, Store};
use watershed::pb::etcdserverpb::{PutRequest, RangeRequest};
use watershed::types::{LeaseId, LogIndex, LogPosition, Revision, Term};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEYS: u64 = 1_000_000;

fn put(number: u64) -> PutRequest {
    PutRequest { key: key(number), value: vec![b'v'; 256].into(), ..Default::default() }
}

fn key(number: u64) -> Bytes {
    // Spread over the key space, as names are.
    format!("/registry/{:014x}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 8).into()
}

fn no_leases(_: LeaseId) -> bool {
    false
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

/// Time this thread has run, which says more than the clock on a busy machine.
fn on_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = text.and_then(|text| text.split_whitespace().next()?.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

fn filled(store: &mut Store, mut submit: impl FnMut(u64, Vec<watershed::core::backend::Change>)) {
    for number in 0..KEYS {
        let written = store.put(&put(number), &no_leases).expect("a plain put");
        submit(number, written.changes);
        if number % 32 == 0 {
            store.publish();
        }
    }
    store.publish();
}

fn opening() {
    let backend = Backend::in_memory().expect("a store in memory");
    let mut store = Store::open(backend.clone()).expect("an empty store");
    filled(&mut store, |number, changes| {
        let position = LogPosition { index: LogIndex(number + 1), term: Term(1) };
        backend.submit(ChangeSet { position, changes });
        if number % 100_000 == 99_999 {
            backend.checkpoint().expect("memory");
        }
    });
    backend.checkpoint().expect("memory");
    drop(store);
    let start = on_cpu();
    backend
        .scan(Default::default(), Revision(i64::MAX), &mut |_, _, row| {
            black_box(row);
            std::ops::ControlFlow::Continue(())
        })
        .expect("rows");
    println!("scan alone: {:?}", on_cpu() - start);
    let start = on_cpu();
    let store = Store::open(backend).expect("the rows just written");
    println!("open {} keys: {:?}", store.len(), on_cpu() - start);
    let start = on_cpu();
    let (hash, _) = store.reader().hash_kv(Revision(0)).expect("not compacted");
    println!("hash {} keys: {:?} {}", store.len(), on_cpu() - start, hash.hash);
}

fn main() {
    if std::env::args().any(|argument| argument == "opening") {
        return opening();
    }
    let before = resident_bytes();
    let mut store = Store::open(Backend::in_memory().expect("a store in memory")).expect("an empty store");
    let start = on_cpu();
    filled(&mut store, |_, changes| drop(changes));
    let grown = resident_bytes() - before;
    println!("{KEYS} keys: {} MB, {} B per key, {:?}", grown >> 20, grown / KEYS, on_cpu() - start);
    if std::env::args().any(|argument| argument == "memory") {
        return;
    }

    let mut criterion = Criterion::default().configure_from_args();
    let reader = store.reader();
    let mut next = 0;
    let mut number = || {
        next = (next + 7_919) % KEYS;
        next
    };
    let one = |number| RangeRequest { key: key(number), ..Default::default() };
    let many = |limit| RangeRequest { key: "/".into(), range_end: "0".into(), limit, ..Default::default() };
    criterion.bench_function("range 1 key", |bencher| {
        bencher.iter_batched(|| one(number()), |request| reader.snapshot().range(&request), BatchSize::SmallInput);
    });
    criterion.bench_function("range 1000 keys of a million, with count", |bencher| {
        bencher.iter(|| reader.snapshot().range(&many(1000)));
    });
    criterion.bench_function("count a million", |bencher| {
        let request = RangeRequest { count_only: true, ..many(0) };
        bencher.iter(|| reader.snapshot().range(&request));
    });
    for batch in [1, 32] {
        criterion.bench_function(&format!("overwrite, published every {batch}"), |bencher| {
            let mut written = 0;
            bencher.iter_batched(
                || put(number()),
                |request| {
                    written += 1;
                    let written_now = store.put(&request, &no_leases);
                    if written % batch == 0 {
                        store.publish();
                    }
                    written_now
                },
                BatchSize::SmallInput,
            );
        });
    }
    let newest = store.revision();
    criterion.bench_function("count a million, 1000 revisions ago", |bencher| {
        let request = RangeRequest { count_only: true, revision: newest.0 - 1000, ..many(0) };
        bencher.iter(|| reader.snapshot().range(&request));
    });
    let written = store.compact(newest).expect("a new revision");
    let (mut compaction, start) = (written.response, on_cpu());
    let mut slowest = Duration::ZERO;
    loop {
        let slice = on_cpu();
        let (progress, changes) = store.compaction_slice(&mut compaction, 1000);
        slowest = slowest.max(on_cpu() - slice);
        drop(changes);
        if progress == Progress::Done {
            break;
        }
    }
    println!("compaction of {}: {:?}, slowest slice of 1000 {slowest:?}", compaction.removed(), on_cpu() - start);
    criterion.final_summary();
}
