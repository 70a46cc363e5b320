use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use watershed::client::Client;
use watershed::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use watershed::pb::etcdserverpb::*;

use super::load::{KEYS, PREFIX};
use super::record::Record;

/// The longest value, in bytes.
const VALUE: usize = 1000;

/// Changes keys of its own, one request after the other.
pub struct Writer {
    number: usize,
    client: Client,
    record: Arc<Record>,
    keys: Mutex<Vec<Known>>,
    steps: AtomicI64,
}

/// What a writer knows of a key.
#[derive(Clone, Default)]
struct Known {
    /// Of the last answered write.
    revision: i64,
    value: Option<Bytes>,
    /// Values, or deletions, that were asked for and not answered: each of them may come at any time.
    unknown: Vec<Option<Bytes>>,
}

impl Known {
    /// Whether a key may be so.
    fn allows(&self, found: Option<&(i64, Bytes)>) -> bool {
        match found {
            Some((revision, value)) if *revision == self.revision => self.value.as_ref() == Some(value),
            Some((revision, value)) => *revision > self.revision && self.unknown.contains(&Some(value.clone())),
            None => self.value.is_none() || self.unknown.contains(&None),
        }
    }
}

impl Writer {
    pub fn new(number: usize, client: Client, record: &Arc<Record>) -> Self {
        let keys = Mutex::new(vec![Known::default(); KEYS]);
        Self { number, client, record: record.clone(), keys, steps: AtomicI64::new(0) }
    }

    fn key(&self, at: usize) -> Bytes {
        format!("{PREFIX}w{}/{at:03}", self.number).into()
    }

    /// One write of some kind.
    pub async fn step(&self) {
        let (at, step) = (fastrand::usize(..KEYS), self.steps.fetch_add(1, Ordering::Relaxed));
        let known = self.keys.lock()[at].clone();
        let certain = known.unknown.is_empty();
        let filler = "x".repeat(fastrand::usize(..VALUE));
        let value = Bytes::from(format!("{}-{step}-{filler}", self.number));
        let put = PutRequest { key: self.key(at), value: value.clone(), ..Default::default() };
        let mut kv = self.client.kv();
        // The revision of the answer, if there was one, and whether it changed the key.
        let (asked, revision) = match fastrand::u32(..10) {
            0..6 => {
                let answer = self.record.count("put", kv.put(put).await);
                (Some(value), answer.map(|answer| revision(answer.into_inner().header)))
            }
            6..8 => {
                let delete = DeleteRangeRequest { key: self.key(at), ..Default::default() };
                let answer = self.record.count("delete", kv.delete_range(delete).await);
                let answer = answer.map(tonic::Response::into_inner);
                if let Some(answer) = &answer {
                    let expected = i64::from(known.value.is_some());
                    self.record.must(!certain || answer.deleted == expected, || format!("{at} {answer:?}"));
                }
                (None, answer.map(|answer| revision(answer.header)))
            }
            _ => {
                let compare = Compare {
                    result: CompareResult::Equal as i32,
                    target: CompareTarget::Mod as i32,
                    key: self.key(at),
                    target_union: Some(TargetUnion::ModRevision(known.value.as_ref().map_or(0, |_| known.revision))),
                    ..Default::default()
                };
                let range = RangeRequest { key: self.key(at), ..Default::default() };
                let request = |request| RequestOp { request: Some(request) };
                let txn = TxnRequest {
                    compare: if certain { vec![compare] } else { Vec::new() },
                    success: vec![
                        request(request_op::Request::RequestRange(range)),
                        request(request_op::Request::RequestPut(put)),
                    ],
                    failure: Vec::new(),
                };
                let answer = self.record.count("txn", kv.txn(txn).await).map(tonic::Response::into_inner);
                if let Some(answer) = &answer {
                    self.record.must(answer.succeeded, || format!("comparison of {at}: {answer:?}"));
                }
                (Some(value), answer.map(|answer| revision(answer.header)))
            }
        };
        let mut known = known;
        match revision {
            Some(revision) => (known.revision, known.value) = (revision, asked),
            None => {
                self.record.unknown.fetch_add(1, Ordering::Relaxed);
                known.unknown.push(asked);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        self.keys.lock()[at] = known.clone();
        if fastrand::u32(..5) == 0 {
            let range = RangeRequest { key: self.key(at), ..Default::default() };
            if let Some(answer) = self.record.count("range", kv.range(range).await) {
                self.check(at, &known, &answer.into_inner());
            }
        }
    }

    fn check(&self, at: usize, known: &Known, state: &RangeResponse) {
        let key = self.key(at);
        let found = state.kvs.iter().find(|kv| kv.key == key).map(|kv| (kv.mod_revision, kv.value.clone()));
        self.record.must(known.allows(found.as_ref()), || {
            let found = found.map(|(revision, value)| (revision, value.slice(..value.len().min(20))));
            let unknown = known.unknown.len();
            format!("key {key:?}: found {found:?}, last answered at {}, {unknown} unknown", known.revision)
        });
    }

    /// Compares what it knows of its keys with what the store holds.
    pub fn compare(&self, state: &RangeResponse) {
        for (at, known) in self.keys.lock().iter().enumerate() {
            self.check(at, known, state);
        }
    }
}

pub fn revision(header: Option<ResponseHeader>) -> i64 {
    header.expect("header").revision
}
