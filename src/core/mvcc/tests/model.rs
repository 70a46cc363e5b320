//! The store against a list of everything ever written.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::pb::etcdserverpb::{self as plain, ResponseHeader, response_op};

#[derive(Clone)]
struct Row {
    kv: KeyValue,
    deleted: bool,
    sub: i64,
}

#[derive(Clone)]
struct Model {
    rows: Vec<Row>,
    revision: i64,
    compacted: i64,
}

type Pairs = BTreeMap<Bytes, KeyValue>;
type Refused = &'static str;

fn covers(key: &Bytes, start: &Bytes, end: &Bytes) -> bool {
    match end.as_ref() {
        b"" => key == start,
        b"\0" => key >= start,
        _ => key >= start && key < end,
    }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

impl Model {
    fn pairs(&self, at: i64) -> Pairs {
        let mut pairs = Pairs::new();
        for row in self.rows.iter().filter(|row| row.kv.mod_revision <= at) {
            match row.deleted {
                true => pairs.remove(&row.kv.key),
                false => pairs.insert(row.kv.key.clone(), row.kv.clone()),
            };
        }
        pairs
    }

    /// The open revision, whether or not it holds anything yet.
    fn now(&self) -> Pairs {
        self.pairs(i64::MAX)
    }

    fn write(&mut self, begin: i64, kv: KeyValue, deleted: bool) {
        let sub = self.rows.iter().filter(|row| row.kv.mod_revision == begin + 1).count() as i64;
        self.revision = begin + 1;
        self.rows.push(Row { kv: KeyValue { mod_revision: begin + 1, ..kv }, deleted, sub });
    }

    fn range(&self, request: &RangeRequest) -> Result<plain::RangeResponse, Refused> {
        let at = if request.revision <= 0 { self.revision } else { request.revision };
        if at > self.revision {
            return Err("future");
        }
        if at < self.compacted {
            return Err("compacted");
        }
        let pairs = self.pairs(at).into_values().filter(|kv| covers(&kv.key, &request.key, &request.range_end));
        let mut kvs: Vec<KeyValue> = pairs.collect();
        let count = kvs.len() as i64;
        if request.count_only {
            return Ok(plain::RangeResponse { header: header(self.revision), count, ..Default::default() });
        }
        let limit = if request.limit <= 0 { usize::MAX } else { request.limit as usize };
        let (order, target) = (request.sort_order, request.sort_target);
        let (low, high) = (request.min_mod_revision, request.max_create_revision);
        let mut more = false;
        if (order == 0 || (order == 1 && target == 0)) && low == 0 && high == 0 {
            more = kvs.len() > limit;
            kvs.truncate(limit.saturating_add(1));
        }
        kvs.retain(|kv| (low == 0 || kv.mod_revision >= low) && (high == 0 || kv.create_revision <= high));
        let field = |kv: &KeyValue| match target {
            0 => (0, kv.key.clone()),
            1 => (kv.version, Bytes::new()),
            2 => (kv.create_revision, Bytes::new()),
            3 => (kv.mod_revision, Bytes::new()),
            _ => (0, kv.value.clone()),
        };
        match order {
            2 => kvs.sort_by_key(|kv| std::cmp::Reverse(field(kv))),
            _ => kvs.sort_by_key(field),
        }
        more |= kvs.len() > limit;
        kvs.truncate(limit);
        for kv in kvs.iter_mut().filter(|_| request.keys_only) {
            kv.value = Bytes::new();
            kv.lease = if target == 4 { kv.lease } else { 0 };
        }
        Ok(plain::RangeResponse { header: header(self.revision), kvs, more, count })
    }

    fn admit_put(&self, request: &PutRequest) -> Result<(), Refused> {
        if request.lease != 0 && !FirstHundred.exists(LeaseId(request.lease)) {
            return Err("lease");
        }
        let keeps = request.ignore_lease || request.ignore_value;
        if keeps && !self.now().contains_key(&request.key) { Err("key") } else { Ok(()) }
    }

    fn put(&mut self, begin: i64, request: &PutRequest) -> plain::PutResponse {
        let old = self.now().remove(&request.key);
        let kept = old.clone().unwrap_or_default();
        let kv = KeyValue {
            key: request.key.clone(),
            create_revision: old.as_ref().map_or(begin + 1, |old| old.create_revision),
            mod_revision: 0,
            version: kept.version + 1,
            value: if request.ignore_value { kept.value } else { request.value.clone() },
            lease: if request.ignore_lease { kept.lease } else { request.lease },
        };
        self.write(begin, kv, false);
        plain::PutResponse { header: header(self.revision), prev_kv: old.filter(|_| request.prev_kv) }
    }

    fn delete(&mut self, begin: i64, request: &DeleteRangeRequest) -> plain::DeleteRangeResponse {
        let covered = self.now().into_values().filter(|kv| covers(&kv.key, &request.key, &request.range_end));
        let old: Vec<KeyValue> = covered.collect();
        for kv in &old {
            self.write(begin, KeyValue { key: kv.key.clone(), ..Default::default() }, true);
        }
        let deleted = old.len() as i64;
        plain::DeleteRangeResponse { header: header(self.revision), deleted, prev_kvs: old }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let pairs = self.now();
        let mut covered: Vec<_> =
            pairs.values().filter(|kv| covers(&kv.key, &compare.key, &compare.range_end)).cloned().collect();
        if covered.is_empty() {
            if compare.target == CompareTarget::Value as i32 {
                return false;
            }
            covered.push(KeyValue::default());
        }
        covered.iter().all(|kv| {
            let order = match &compare.target_union {
                Some(TargetUnion::Value(value)) => kv.value.cmp(value),
                Some(TargetUnion::Version(number)) => kv.version.cmp(number),
                Some(TargetUnion::ModRevision(number)) => kv.mod_revision.cmp(number),
                _ => unreachable!("not generated"),
            };
            [order.is_eq(), order.is_gt(), order.is_lt(), order.is_ne()][compare.result as usize]
        })
    }

    /// The operations of the branches taken, flattened; also each transaction's outcome, in order of appearance.
    fn taken<'r>(&self, txn: &'r TxnRequest, ops: &mut Vec<&'r Request>, outcomes: &mut Vec<bool>) {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        outcomes.push(succeeded);
        for op in if succeeded { &txn.success } else { &txn.failure } {
            match op.request.as_ref().unwrap() {
                Request::RequestTxn(nested) => self.taken(nested, ops, outcomes),
                other => ops.push(other),
            }
        }
    }

    fn run(&mut self, begin: i64, txn: &TxnRequest, outcomes: &mut std::vec::IntoIter<bool>) -> plain::TxnResponse {
        let succeeded = outcomes.next().unwrap();
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let responses = ops.iter().map(|op| {
            use response_op::Response;
            let response = Some(match op.request.as_ref().unwrap() {
                Request::RequestRange(range) => Response::ResponseRange(self.range(range).unwrap()),
                Request::RequestPut(put) => Response::ResponsePut(self.put(begin, put)),
                Request::RequestDeleteRange(delete) => Response::ResponseDeleteRange(self.delete(begin, delete)),
                Request::RequestTxn(nested) => Response::ResponseTxn(self.run(begin, nested, outcomes)),
            });
            plain::ResponseOp { response }
        });
        let responses = responses.collect();
        plain::TxnResponse { header: Some(Default::default()), succeeded, responses }
    }

    fn txn(&mut self, txn: &TxnRequest) -> Result<plain::TxnResponse, Refused> {
        let (mut ops, mut outcomes) = (Vec::new(), Vec::new());
        self.taken(txn, &mut ops, &mut outcomes);
        for op in ops {
            match op {
                Request::RequestRange(range) if range.revision != 0 => {
                    if range.revision > self.revision {
                        return Err("future");
                    }
                    if range.revision < self.compacted {
                        return Err("compacted");
                    }
                }
                Request::RequestPut(put) => self.admit_put(put)?,
                _ => {}
            }
        }
        let mut response = self.run(self.revision, txn, &mut outcomes.into_iter());
        response.header = header(self.revision);
        Ok(response)
    }

    /// Rows of the versions that a reader at `at` sees.
    fn needed(&self, at: i64) -> Vec<(i64, i64)> {
        let pairs = self.pairs(at);
        let newest = |key: &Bytes| self.rows.iter().rfind(|row| row.kv.mod_revision <= at && row.kv.key == key);
        pairs.keys().filter_map(newest).map(|row| (row.kv.mod_revision, row.sub)).collect()
    }

    fn hash(&self, at: i64) -> u32 {
        let mut needed = self.needed(at);
        if needed.is_empty() {
            needed = self.needed(self.compacted);
        }
        let mut hashed = b"key".to_vec();
        for row in self.rows.iter().filter(|row| row.kv.mod_revision <= at) {
            let id = (row.kv.mod_revision, row.sub);
            if id.0 <= self.compacted && (row.deleted || !needed.contains(&id)) {
                continue;
            }
            hashed.extend(id.0.to_be_bytes());
            hashed.push(b'_');
            hashed.extend(id.1.to_be_bytes());
            if row.deleted {
                hashed.push(b't');
                hashed.extend(KeyValue { key: row.kv.key.clone(), ..Default::default() }.encode_to_vec());
            } else {
                hashed.extend(row.kv.encode_to_vec());
            }
        }
        crc32c::crc32c(&hashed)
    }

    /// Events of one revision as etcd tells them; pairs before it only where they are not forgotten.
    fn events(&self, at: i64, start: &Bytes, end: &Bytes, forgotten: bool) -> Vec<(bool, KeyValue, Option<KeyValue>)> {
        let before = if forgotten { Pairs::new() } else { self.pairs(at - 1) };
        let rows = self.rows.iter().filter(|row| row.kv.mod_revision == at && covers(&row.kv.key, start, end));
        rows.map(|row| {
            let created = row.kv.create_revision == at;
            (row.deleted, row.kv.clone(), before.get(&row.kv.key).filter(|_| !created).cloned())
        })
        .collect()
    }
}

fn told(events: &[StoreEvent]) -> Vec<(bool, KeyValue, Option<KeyValue>)> {
    events
        .iter()
        .map(|event| (event.kind == EventKind::Delete, kv(&event.kv), event.prev_kv.as_ref().map(kv)))
        .collect()
}

fn refusal(error: &MvccError) -> Refused {
    match error {
        MvccError::LeaseNotFound { .. } => "lease",
        MvccError::KeyNotFound { .. } => "key",
        MvccError::Future { .. } => "future",
        MvccError::Compacted { .. } => "compacted",
        other => panic!("{other}"),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Txn(TxnRequest),
    Range(RangeRequest),
    Revoke(Vec<Bytes>),
    Compact(i64),
    Slice(usize),
    Hash(i64),
    History(Bytes, Bytes, i64, usize),
    Checkpoint,
    Reopen,
}

fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["a", "ab", "b", "c", "ca", "d"]).prop_map(Bytes::from)
}

fn end() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["", "", "b", "c", "e", "e", "\0"]).prop_map(Bytes::from)
}

/// Distance from the newest revision; mostly existing ones.
fn revision() -> impl Strategy<Value = i64> {
    prop_oneof![4 => Just(0i64), 6 => 1i64..30, 1 => Just(-1i64), 1 => 30i64..60]
}

prop_compose! {
    fn a_range()(
        key in key(), range_end in end(), revision in revision(),
        limit in prop_oneof![Just(0i64), 1i64..5],
        sort in prop_oneof![1 => Just((0, 0)), 1 => (0i32..3, 0i32..5)],
        only in 0u8..6,
        filters in prop_oneof![2 => Just((0i64, 0i64)), 1 => (0i64..20, 0i64..20)],
    ) -> RangeRequest {
        RangeRequest {
            key, range_end, revision, limit,
            sort_order: sort.0, sort_target: sort.1,
            keys_only: only == 0, count_only: only == 1,
            min_mod_revision: filters.0, max_create_revision: filters.1,
            ..Default::default()
        }
    }
}

prop_compose! {
    fn a_put()(
        key in key(), value in 0u8..4, prev_kv in any::<bool>(),
        lease in prop_oneof![6 => Just(0i64), 3 => 1i64..4, 1 => Just(-1i64)],
        keeps in 0u8..8,
    ) -> PutRequest {
        let (ignore_value, ignore_lease) = (keeps == 0, keeps <= 1);
        PutRequest {
            key, prev_kv, ignore_value, ignore_lease,
            value: if ignore_value { Bytes::new() } else { vec![value; usize::from(value)].into() },
            lease: if ignore_lease { 0 } else { lease },
        }
    }
}

fn a_compare() -> impl Strategy<Value = Compare> {
    let operand = prop_oneof![
        (0i64..4).prop_map(|number| (CompareTarget::Version, TargetUnion::Version(number))),
        (0i64..20).prop_map(|number| (CompareTarget::Mod, TargetUnion::ModRevision(number))),
        (0u8..4).prop_map(|value| (CompareTarget::Value, TargetUnion::Value(vec![value; usize::from(value)].into()))),
    ];
    (key(), end(), 0i32..4, operand).prop_map(|(key, range_end, result, (target, operand))| Compare {
        result,
        target: target as i32,
        key,
        range_end,
        target_union: Some(operand),
    })
}

fn an_op() -> BoxedStrategy<RequestOp> {
    let leaf = prop_oneof![
        4 => a_put().prop_map(op),
        2 => (key(), end()).prop_map(|(key, range_end)| op(DeleteRangeRequest { key, range_end, prev_kv: true })),
        2 => a_range().prop_map(op),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| a_txn(inner.boxed()).prop_map(op)).boxed()
}

fn a_txn(ops: BoxedStrategy<RequestOp>) -> impl Strategy<Value = TxnRequest> {
    let list = move |most| prop::collection::vec(ops.clone(), 0..most);
    (prop::collection::vec(a_compare(), 0..2), list(4), list(3)).prop_map(|(compare, success, failure)| TxnRequest {
        compare,
        success,
        failure,
    })
}

fn a_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => an_op().prop_map(|op| Step::Txn(always(vec![op]))),
        4 => a_txn(an_op()).prop_map(Step::Txn),
        6 => a_range().prop_map(Step::Range),
        1 => prop::collection::btree_set(key(), 0..3).prop_map(|keys| Step::Revoke(keys.into_iter().collect())),
        1 => (0i64..20).prop_map(Step::Compact),
        3 => (1usize..10).prop_map(Step::Slice),
        2 => revision().prop_map(Step::Hash),
        2 => (key(), end(), revision(), 1usize..4).prop_map(|(key, end, at, most)| Step::History(key, end, at, most)),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Reopen),
    ]
}

/// Generated revisions count back from the newest; negative ones stay.
fn place(at: &mut i64, newest: i64) {
    if *at > 0 {
        *at = (newest + 3 - *at).max(0);
    }
}

fn place_all(txn: &mut TxnRequest, newest: i64) {
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        match op.request.as_mut() {
            Some(Request::RequestRange(range)) => place(&mut range.revision, newest),
            Some(Request::RequestTxn(nested)) => place_all(nested, newest),
            _ => {}
        }
    }
}

struct Trial {
    bench: Bench,
    model: Model,
    running: Option<Compaction>,
}

impl Trial {
    fn new() -> Self {
        let model = Model { rows: Vec::new(), revision: 1, compacted: -1 };
        Self { bench: Bench::new(), model, running: None }
    }

    fn step(&mut self, step: Step) {
        let Self { bench, model, running } = self;
        let newest = model.revision;
        match step {
            Step::Txn(mut txn) => {
                place_all(&mut txn, newest);
                let mut after = model.clone();
                match (bench.txn(&txn), after.txn(&txn)) {
                    (Ok(written), Ok(expected)) => {
                        let wire = written.response.encode_to_vec();
                        assert_eq!(plain::TxnResponse::decode(wire.as_slice()).unwrap(), expected);
                        *model = after;
                        let all = (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
                        let expected = model.events(newest + 1, &all.0, &all.1, false);
                        assert_eq!(written.events.map_or(vec![], |events| told(&events.events)), expected);
                        if is_read_only(&txn) {
                            let again = bench.store.reader().snapshot().read_only_txn(&txn).unwrap();
                            assert_eq!(again.encode_to_vec(), wire);
                        }
                    }
                    (Err(error), Err(expected)) => assert_eq!(refusal(&error), expected),
                    (found, expected) => panic!("{found:?} for {expected:?}"),
                }
            }
            Step::Range(mut range) => {
                place(&mut range.revision, newest);
                match (bench.range(range.clone()), model.range(&range)) {
                    (Ok(found), Ok(expected)) => {
                        let wire = found.encode_to_vec();
                        assert_eq!(plain::RangeResponse::decode(wire.as_slice()).unwrap(), expected, "{range:?}");
                    }
                    (Err(error), Err(expected)) => assert_eq!(refusal(&error), expected),
                    (found, expected) => panic!("{found:?} for {expected:?}"),
                }
            }
            Step::Revoke(keys) => {
                let written = bench.store.delete_keys(&keys);
                let written = bench.done(written);
                for key in keys {
                    let one = DeleteRangeRequest { key, ..Default::default() };
                    model.delete(newest, &one);
                }
                assert_eq!(written.events.is_some(), model.revision > newest);
            }
            Step::Compact(back) => {
                let at = newest - back;
                match bench.start_compaction(at) {
                    Ok(compaction) => {
                        assert!(at > model.compacted);
                        model.compacted = at;
                        *running = Some(compaction);
                    }
                    Err(_) => assert!(at <= model.compacted),
                }
            }
            Step::Slice(versions) => {
                if let Some(compaction) = running {
                    let (progress, changes) = bench.store.compaction_slice(compaction, versions);
                    bench.submit(changes);
                    if progress == Progress::Done {
                        *running = None;
                    }
                }
            }
            Step::Hash(mut at) => {
                place(&mut at, newest);
                match bench.store.reader().hash_kv(Revision(at)) {
                    Ok((hash, _)) if at < 0 => assert_eq!(hash.hash, crc32c::crc32c(b"key")),
                    Ok((hash, _)) => assert_eq!(hash.hash, model.hash(if at == 0 { newest } else { at })),
                    Err(error) => assert_eq!(refusal(&error), if at > newest { "future" } else { "compacted" }),
                }
            }
            Step::History(key, end, mut from, most) => {
                place(&mut from, newest);
                let mut request = HistoryRequest {
                    range: KeyRange::from_wire(key.clone(), end.clone()),
                    from: Revision(from),
                    revisions_max: most,
                    events_bytes_max: 200,
                    rows_max: 1 + most * 3,
                    prev_kv: true,
                };
                if from < model.compacted {
                    let error = bench.store.reader().history(&request).unwrap_err();
                    assert_eq!(refusal(&error), "compacted");
                    return;
                }
                let mut next = from.max(1);
                while next <= newest {
                    let batch = bench.store.reader().history(&request).unwrap();
                    let mut found = batch.revisions.iter().peekable();
                    for at in next..batch.next.0 {
                        let mut expected = model.events(at, &key, &end, at - 1 < model.compacted);
                        if at == model.compacted {
                            // Of the revision itself compaction keeps what came last for each key.
                            let last: BTreeMap<_, _> =
                                expected.iter().map(|one| (one.1.key.clone(), one.clone())).collect();
                            expected.retain(|one| last[&one.1.key] == *one);
                        }
                        let events = found.next_if(|one| one.revision.0 == at).map_or(vec![], |one| told(&one.events));
                        if at > model.compacted || running.is_none() {
                            assert_eq!(events, expected, "revision {at}");
                        }
                    }
                    assert!(found.next().is_none() && batch.next.0 > next);
                    next = batch.next.0;
                    request.from = batch.next;
                }
            }
            Step::Checkpoint => {
                bench.backend.checkpoint().unwrap();
            }
            Step::Reopen => {
                bench.reopen();
                *running = bench.store.take_unfinished_compaction();
                assert_eq!(bench.store.compacted().0, model.compacted);
            }
        }
        assert_eq!(bench.store.revision().0, model.revision);
        assert_eq!(bench.store.len(), model.now().len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn behaves_like_a_list_of_everything_ever_written(steps in prop::collection::vec(a_step(), 1..80)) {
        let mut trial = Trial::new();
        for step in steps {
            trial.step(step);
        }
    }
}
