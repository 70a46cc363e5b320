//! Tests of the store as a whole; `model.rs` compares it with a few dozen lines that are easy to believe.

mod long_range;
mod model;
mod range;
mod txn;

use super::*;
use crate::core::backend::{Backend, Change, ChangeSet};
use crate::pb::encoded::{DeleteRangeResponse, PutResponse, RangeResponse, TxnResponse};
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use crate::pb::mvccpb::KeyValue;
use crate::types::{KeyRange, LeaseId, LogIndex, LogPosition, Revision, Term};
use bytes::Bytes;
use prost::Message;

/// Leases up to 100 exist.
struct FirstHundred;

impl LeaseView for FirstHundred {
    fn exists(&self, id: LeaseId) -> bool {
        (1..=100).contains(&id.0)
    }
}

/// A store with its backend, submitting and publishing after every call.
struct Bench {
    store: Store,
    backend: Backend,
    index: u64,
}

impl Bench {
    fn new() -> Self {
        let backend = Backend::in_memory().unwrap();
        Self { store: Store::open(backend.clone()).unwrap(), backend, index: 0 }
    }

    fn submit(&mut self, changes: Vec<Change>) {
        self.index += 1;
        let position = LogPosition { index: LogIndex(self.index), term: Term(1) };
        self.backend.submit(ChangeSet { position, changes });
        self.store.publish();
    }

    fn done<R>(&mut self, mut written: Written<R>) -> Written<R> {
        self.submit(std::mem::take(&mut written.changes));
        written
    }

    fn try_put(&mut self, request: PutRequest) -> Result<Written<PutResponse>, MvccError> {
        let written = self.store.put(&request, &FirstHundred)?;
        Ok(self.done(written))
    }

    fn put(&mut self, key: &str, value: &str) -> Written<PutResponse> {
        self.try_put(put(key, value)).unwrap()
    }

    fn delete(&mut self, key: &str, end: &str) -> Written<DeleteRangeResponse> {
        let written = self.store.delete_range(&delete(key, end)).unwrap();
        self.done(written)
    }

    fn txn(&mut self, request: &TxnRequest) -> Result<Written<TxnResponse>, MvccError> {
        let written = self.store.txn(request, &FirstHundred)?;
        let Written { response, changes, events, lease_moves, operations } = self.done(written);
        Ok(Written { response: response.read()?, changes, events, lease_moves, operations })
    }

    fn start_compaction(&mut self, at: i64) -> Result<Compaction, MvccError> {
        let written = self.store.compact(Revision(at))?;
        Ok(self.done(written).response)
    }

    fn slices(&mut self, mut compaction: Compaction, versions: usize) -> usize {
        loop {
            let (progress, changes) = self.store.compaction_slice(&mut compaction, versions);
            self.submit(changes);
            match progress {
                Progress::More => {}
                Progress::Done => return compaction.removed(),
                Progress::Held => panic!("no hash is running"),
            }
        }
    }

    fn compact(&mut self, at: i64) -> usize {
        let compaction = self.start_compaction(at).unwrap();
        self.slices(compaction, 3)
    }

    fn range(&self, request: RangeRequest) -> Result<RangeResponse, MvccError> {
        self.store.reader().snapshot().range(&request)
    }

    fn get(&self, key: &str, revision: i64) -> Result<Vec<String>, MvccError> {
        let end = if key.is_empty() { "\0" } else { "" };
        let key = if key.is_empty() { "\0" } else { key };
        let request = RangeRequest { revision, ..range(key, end) };
        Ok(shown(&self.range(request)?.kvs))
    }

    fn hash(&self, at: i64) -> (u32, i64) {
        let (hash, _) = self.store.reader().hash_kv(Revision(at)).unwrap();
        (hash.hash, hash.compact_revision.0)
    }

    fn reopen(&mut self) {
        self.store = Store::open(self.backend.clone()).unwrap();
    }
}

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

fn range(key: &str, end: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), ..Default::default() }
}

fn delete(key: &str, end: &str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), prev_kv: true }
}

fn op(request: impl Into<Request>) -> RequestOp {
    RequestOp { request: Some(request.into()) }
}

impl From<PutRequest> for Request {
    fn from(request: PutRequest) -> Self {
        Self::RequestPut(request)
    }
}

impl From<RangeRequest> for Request {
    fn from(request: RangeRequest) -> Self {
        Self::RequestRange(request)
    }
}

impl From<DeleteRangeRequest> for Request {
    fn from(request: DeleteRangeRequest) -> Self {
        Self::RequestDeleteRange(request)
    }
}

impl From<TxnRequest> for Request {
    fn from(request: TxnRequest) -> Self {
        Self::RequestTxn(request)
    }
}

fn always(ops: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success: ops, ..Default::default() }
}

fn kv(encoded: &Bytes) -> KeyValue {
    KeyValue::decode(encoded.clone()).unwrap()
}

/// `key=value @create/mod v version`, with the lease if there is one.
fn show(encoded: &Bytes) -> String {
    let kv = kv(encoded);
    let (key, value) = (kv.key.escape_ascii().to_string(), kv.value.escape_ascii().to_string());
    let lease = if kv.lease == 0 { String::new() } else { format!(" lease {}", kv.lease) };
    format!("{key}={value} @{}/{} v{}{lease}", kv.create_revision, kv.mod_revision, kv.version)
}

fn shown(encoded: &[Bytes]) -> Vec<String> {
    encoded.iter().map(show).collect()
}

#[test]
fn puts_count_versions_and_a_delete_starts_over() {
    let mut bench = Bench::new();
    assert_eq!(bench.put("a", "1").response.header.unwrap().revision, 2);
    assert_eq!(bench.put("a", "2").response.prev_kv, None, "only when asked for");
    let asked = bench.try_put(PutRequest { prev_kv: true, ..put("a", "3") }).unwrap();
    assert_eq!(show(&asked.response.prev_kv.unwrap()), "a=2 @2/3 v2");
    let gone = bench.delete("a", "").response;
    assert_eq!(
        (gone.deleted, gone.header.unwrap().revision, shown(&gone.prev_kvs)),
        (1, 5, vec!["a=3 @2/4 v3".into()])
    );
    let none = bench.delete("a", "").response;
    assert_eq!((none.deleted, none.header.unwrap().revision), (0, 5));
    bench.put("a", "4");
    for round in 0..2 {
        assert_eq!(bench.get("a", 0).unwrap(), ["a=4 @6/6 v1"]);
        assert_eq!(bench.get("a", 5).unwrap(), [""; 0]);
        assert_eq!(bench.get("a", 4).unwrap(), ["a=3 @2/4 v3"]);
        assert_eq!(bench.get("a", 2).unwrap(), ["a=1 @2/2 v1"]);
        assert_eq!(bench.get("a", 1).unwrap(), [""; 0]);
        assert!(matches!(bench.get("a", 7), Err(MvccError::Future { .. })), "round {round}");
        bench.reopen();
    }
}

#[test]
fn leases_move_with_their_keys() {
    let mut bench = Bench::new();
    let leased = |lease| PutRequest { lease, ..put("a", "x") };
    let moves = |written: Written<PutResponse>| -> Vec<(i64, i64)> {
        written.lease_moves.iter().map(|moved| (moved.from.0, moved.to.0)).collect()
    };
    assert_eq!(moves(bench.try_put(leased(1)).unwrap()), [(0, 1)]);
    assert_eq!(moves(bench.try_put(leased(1)).unwrap()), []);
    assert_eq!(moves(bench.try_put(leased(2)).unwrap()), [(1, 2)]);
    assert_eq!(moves(bench.try_put(PutRequest { ignore_lease: true, ..put("a", "y") }).unwrap()), []);
    assert_eq!(bench.store.leased_keys().collect::<Vec<_>>(), [(&b"a"[..], LeaseId(2))]);
    assert_eq!(moves(bench.try_put(PutRequest { ignore_value: true, ..put("a", "") }).unwrap()), [(2, 0)]);
    assert_eq!(bench.get("a", 0).unwrap(), ["a=y @2/6 v5"]);
    assert_eq!(moves(bench.try_put(leased(3)).unwrap()), [(0, 3)]);
    let gone = bench.delete("a", "").lease_moves;
    assert_eq!(gone, [LeaseMove { key: "a".into(), from: LeaseId(3), to: LeaseId(0) }]);
    assert!(matches!(bench.try_put(leased(-1)), Err(MvccError::LeaseNotFound { lease: LeaseId(-1) })));
    let keep = PutRequest { ignore_value: true, lease: -1, ..put("b", "") };
    assert!(matches!(bench.try_put(keep), Err(MvccError::LeaseNotFound { .. })), "the lease is looked at first");
    let keep = PutRequest { ignore_value: true, ..put("b", "") };
    assert!(matches!(bench.try_put(keep), Err(MvccError::KeyNotFound { .. })));
    assert_eq!(bench.store.revision(), Revision(8));
}

#[test]
fn keys_of_a_lease_go_in_one_revision() {
    let mut bench = Bench::new();
    bench.put("a", "");
    bench.put("b", "");
    let gone = bench.store.delete_keys(&["a".into(), "b".into(), "c".into()]);
    let gone = bench.done(gone);
    let events = gone.events.unwrap();
    assert_eq!(events.revision, Revision(4));
    assert_eq!(
        shown(&events.events.iter().map(|event| event.kv.clone()).collect::<Vec<_>>()),
        ["a= @0/4 v0", "b= @0/4 v0"]
    );
    assert_eq!(events.events[0].prev_kv.as_ref().map(show), Some("a= @2/2 v1".into()));
    let none = bench.store.delete_keys(&["a".into()]);
    assert!(none.events.is_none() && none.changes.is_empty() && bench.store.revision() == Revision(4));
}

/// The vectors were taken from a stock member.
#[test]
fn hashes_are_those_of_etcd() {
    let mut bench = Bench::new();
    assert_eq!(bench.hash(0), (1084519789, -1));
    bench.put("foo", "bar");
    assert_eq!(bench.hash(2), (3305255506, -1));
    bench.put("foo", "baz");
    assert_eq!(bench.hash(0), (2020292994, -1));
    bench.delete("foo", "");
    assert_eq!(bench.hash(0), (3153096970, -1));
    bench.put("a", "1");
    assert_eq!(bench.hash(5), (1967179850, -1));
    let mut compaction = bench.start_compaction(4).unwrap();
    assert_eq!(bench.hash(5), (2007788419, 4), "whatever is still there");
    assert_eq!(bench.hash(-1), (1084519789, 4), "nothing, as in an empty store");
    let before = compaction.take_hash(&bench.store).unwrap().run().unwrap();
    assert_eq!((before.hash, before.compact_revision), (3153096970, Revision(-1)), "what members compare");
    bench.slices(compaction, 1);
    assert_eq!(bench.hash(5), (2007788419, 4));
    let answered = |bench: &Bench, at| bench.store.reader().answered_hash_kv(Revision(at));
    assert_eq!(answered(&bench, 4).unwrap(), (before, Revision(5)), "a compaction's own hash");
    assert_eq!(answered(&bench, 5).unwrap().0.hash, 2007788419);
    bench.compact(5);
    assert_eq!(answered(&bench, 4).unwrap().0, before, "also when it is compacted");
    bench.backend.checkpoint().unwrap();
    bench.reopen();
    assert_eq!(bench.hash(5), (2007788419, 5));
    assert!(matches!(answered(&bench, 4), Err(MvccError::Compacted { .. })), "until the member is started again");
    assert!(matches!(bench.store.reader().hash_kv(Revision(3)), Err(MvccError::Compacted { .. })));
    assert!(matches!(bench.store.reader().hash_kv(Revision(6)), Err(MvccError::Future { .. })));
}

// Cause: the hash of the compaction at revision 0 was kept under that number, and 0 asks for the newest: the member
// answered with the hash of the empty store until it was started again.
#[test]
fn a_compaction_at_revision_0_is_not_the_newest_hash() {
    let mut bench = Bench::new();
    let mut compaction = bench.start_compaction(0).unwrap();
    compaction.take_hash(&bench.store).unwrap().run().unwrap();
    bench.slices(compaction, 1);
    bench.put("foo", "bar");
    let newest = bench.hash(0);
    assert_eq!(newest, (3305255506, 0));
    assert_eq!(bench.store.reader().answered_hash_kv(Revision(0)).unwrap().0.hash, newest.0);
    bench.backend.checkpoint().unwrap();
    bench.reopen();
    assert_eq!(bench.hash(0), newest);
}

#[test]
fn a_running_hash_holds_the_removal() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    bench.put("a", "2");
    let mut compaction = bench.start_compaction(3).unwrap();
    let hash = compaction.take_hash(&bench.store).unwrap();
    assert!(compaction.take_hash(&bench.store).is_none());
    assert_eq!(bench.store.compaction_slice(&mut compaction, 10), (Progress::Held, vec![]));
    drop(hash);
    assert_eq!(bench.store.compaction_slice(&mut compaction, 10).0, Progress::Done);
}

// Cause: a hash that began before the one in front of it ended held the removal on, and compacted rows stayed for as long as
// somebody asked.
#[test]
fn the_next_hash_waits_for_a_removal_that_was_held() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    bench.put("a", "2");
    let mut compaction = bench.start_compaction(3).unwrap();
    let holds = bench.store.shared.holds.clone();
    let hash = holds.for_reader();
    assert_eq!(bench.store.compaction_slice(&mut compaction, 10), (Progress::Held, vec![]));
    assert!(!holds.admit_readers());
    drop(hash);
    assert_eq!(bench.store.compaction_slice(&mut compaction, 10).0, Progress::Done);
    assert!(holds.admit_readers());
}

#[test]
fn compaction_keeps_what_a_watch_from_there_needs() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    bench.put("a", "2");
    bench.put("b", "1");
    bench.delete("b", "");
    bench.put("a", "3");
    assert!(matches!(bench.store.compact(Revision(-1)), Err(MvccError::Compacted { .. })));
    assert!(matches!(bench.store.compact(Revision(7)), Err(MvccError::Future { .. })));
    assert_eq!(bench.compact(5), 2, "a=1 and b=1; a=2 is what revision 5 shows, and the tombstone is at it");
    assert!(matches!(bench.get("a", 4), Err(MvccError::Compacted { .. })));
    assert_eq!(bench.get("a", 5).unwrap(), ["a=2 @2/3 v2"]);
    assert!(matches!(bench.store.compact(Revision(5)), Err(MvccError::Compacted { .. })));
    let request = HistoryRequest {
        range: KeyRange::prefix(Bytes::new()),
        from: Revision(5),
        revisions_max: 10,
        events_bytes_max: 1000,
        rows_max: 1000,
        prev_kv: true,
    };
    let history = bench.store.reader().history(&request).unwrap();
    let seen: Vec<_> = history.revisions.iter().map(|one| (one.revision.0, one.events[0].kind)).collect();
    assert_eq!(seen, [(5, EventKind::Delete), (6, EventKind::Put)]);
    assert_eq!(history.revisions[0].events[0].prev_kv, None, "compacted");
    assert_eq!(history.revisions[1].events[0].prev_kv.as_ref().map(show), Some("a=2 @2/3 v2".into()));
    assert_eq!((history.next, history.current), (Revision(7), Revision(6)));
    let early = bench.store.reader().history(&HistoryRequest { from: Revision(4), ..request });
    assert!(matches!(early, Err(MvccError::Compacted { .. })));
    assert_eq!(bench.compact(6), 2, "the tombstone and a=2");
}

/// A crash between the removal of the last rows and the finished mark used to set etcd's revision back.
#[test]
fn an_interrupted_compaction_goes_on_and_no_revision_is_lost() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    bench.put("a", "2");
    bench.delete("a", "");
    bench.start_compaction(4).unwrap();
    bench.reopen();
    assert_eq!((bench.store.revision(), bench.store.compacted()), (Revision(4), Revision(4)));
    let mut unfinished = bench.store.take_unfinished_compaction().unwrap();
    assert!(unfinished.take_hash(&bench.store).is_none());
    assert_eq!(bench.slices(unfinished, 1), 2);
    bench.put("b", "");
    bench.delete("b", "");
    assert_eq!(bench.compact(6), 2, "the old tombstone and b");
    bench.put("c", "");
    bench.delete("c", "");
    assert_eq!(bench.compact(8), 2, "the old tombstone and c");
    bench.backend.checkpoint().unwrap();
    bench.reopen();
    assert!(bench.store.take_unfinished_compaction().is_none());
    assert_eq!((bench.store.revision(), bench.store.compacted()), (Revision(8), Revision(8)));
    assert_eq!(bench.put("d", "").response.header.unwrap().revision, 9);
}

#[test]
fn history_comes_in_batches_that_split_no_revision() {
    let mut bench = Bench::new();
    for round in 0..4 {
        let value = round.to_string();
        let ops = vec![op(put("a", &value)), op(put("b", &value)), op(put("c", &value))];
        bench.txn(&always(ops)).unwrap();
    }
    let reader = bench.store.reader();
    let request = |from, revisions_max, events_bytes_max, rows_max| HistoryRequest {
        range: KeyRange::HalfOpen { start: "a".into(), end: "c".into() },
        from: Revision(from),
        revisions_max,
        events_bytes_max,
        rows_max,
        prev_kv: false,
    };
    for (revisions, bytes, rows) in [(1, 1000, 1000), (9, 1, 1000), (9, 1000, 1), (0, 1000, 1000)] {
        let (mut from, mut seen) = (2, Vec::new());
        while from <= 5 && revisions > 0 {
            let batch = reader.history(&request(from, revisions, bytes, rows)).unwrap();
            assert_eq!(batch.revisions.len(), 1);
            assert_eq!(batch.revisions[0].events.len(), 2);
            seen.push(batch.revisions[0].revision.0);
            from = batch.next.0;
        }
        assert_eq!(seen, if revisions > 0 { vec![2, 3, 4, 5] } else { vec![] });
    }
    let all = reader.history(&request(2, 10, 1000, 1000)).unwrap();
    assert_eq!((all.revisions.len(), all.next), (4, Revision(6)));
    let future = reader.history(&request(9, 10, 1000, 1000)).unwrap();
    assert_eq!((future.revisions.len(), future.next), (0, Revision(9)));
}

#[test]
fn a_reader_sees_what_was_published_and_nothing_else() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    let reader = bench.store.reader();
    let before = reader.snapshot();
    let written = bench.store.put(&put("a", "2"), &FirstHundred).unwrap();
    assert_eq!(reader.revision(), Revision(2));
    bench.done(written);
    assert_eq!(reader.revision(), Revision(3));
    assert_eq!(shown(&before.range(&range("a", "")).unwrap().kvs), ["a=1 @2/2 v1"]);
    bench.compact(3);
    assert_eq!(shown(&before.range(&range("a", "")).unwrap().kvs), ["a=1 @2/2 v1"], "still held in memory");
}
