//! A store for the tests: the whole history in memory, every read computed from it.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, stream};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Status};

use super::store::RecipeStore;
use crate::api_error::ApiError;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse, PutResponse, RangeRequest,
    RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse, WatchCreateRequest, WatchResponse,
    compare, request_op, response_op,
};
use crate::pb::mvccpb::event::EventType;
use crate::pb::mvccpb::{Event, KeyValue};
use crate::types::KeyRange;

#[derive(Clone)]
pub(super) struct FakeStore {
    state: Arc<Mutex<State>>,
    written: watch::Sender<i64>,
    /// Ranges wait until this is true.
    open: watch::Sender<bool>,
    /// Ranges that are not answered.
    ranges: watch::Sender<usize>,
    /// The `token` of the caller; `locked-out` is refused.
    token: Option<String>,
}

#[derive(Default)]
struct State {
    history: Vec<Event>,
    revision: i64,
    leases: Vec<i64>,
    /// Transactions that are refused before the next one is run.
    refusals: usize,
    refused: Vec<Instant>,
    /// Ranges over more than one key, other than for the newest two, that transactions held.
    walks: usize,
    refused_value: Option<&'static str>,
}

impl FakeStore {
    pub(super) fn new() -> Self {
        let state = State { revision: 1, ..Default::default() };
        let (written, open, ranges) = (watch::Sender::new(1), watch::Sender::new(true), watch::Sender::new(0));
        Self { state: Arc::new(Mutex::new(state)), written, open, ranges, token: None }
    }

    pub(super) fn keys(&self) -> Vec<String> {
        self.state.lock().live().into_keys().map(|key| String::from_utf8_lossy(&key).into_owned()).collect()
    }

    pub(super) fn revision(&self) -> i64 {
        self.state.lock().revision
    }

    pub(super) fn leases(&self) -> Vec<i64> {
        self.state.lock().leases.clone()
    }

    pub(super) fn add_lease(&self, id: i64) {
        self.state.lock().leases.push(id);
    }

    /// Refuses the next transactions, as a member without a leader does.
    pub(super) fn refuse_txns(&self, count: usize) {
        self.state.lock().refusals = count;
    }

    /// Refuses to put this value, as a member does one that is too large.
    pub(super) fn refuse_value(&self, value: &'static str) {
        self.state.lock().refused_value = Some(value);
    }

    /// Answers ranges, or has them wait.
    pub(super) fn answer_ranges(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// Completes once so many ranges are not answered.
    pub(super) async fn until_ranges(&self, unanswered: usize) {
        let mut ranges = self.ranges.subscribe();
        ranges.wait_for(|ranges| *ranges == unanswered).await.expect("the store holds the sender");
    }

    /// When transactions were refused.
    pub(super) fn refused(&self) -> Vec<Instant> {
        self.state.lock().refused.clone()
    }

    /// Ranges over more than one key, other than for the newest two, that were run as part of a transaction.
    pub(super) fn walks(&self) -> usize {
        self.state.lock().walks
    }

    /// Completes once the store holds exactly these keys.
    pub(super) async fn until_keys(&self, keys: &[&str]) {
        let mut written = self.written.subscribe();
        written.wait_for(|_| self.keys() == keys).await.expect("the store holds the sender");
    }

    fn permitted(&self) -> Result<(), Status> {
        match self.token.as_deref() {
            Some("locked-out") => Err(ApiError::PermissionDenied.into()),
            _ => Ok(()),
        }
    }
}

impl State {
    fn live(&self) -> BTreeMap<Bytes, KeyValue> {
        let mut live = BTreeMap::new();
        for event in &self.history {
            let kv = event.kv.clone().expect("every event has one");
            match event.r#type() {
                EventType::Put => live.insert(kv.key.clone(), kv),
                EventType::Delete => live.remove(&kv.key),
            };
        }
        live
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision: self.revision, ..Default::default() })
    }

    fn range(&self, request: &RangeRequest) -> RangeResponse {
        let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
        let mut kvs: Vec<_> = self.live().into_values().filter(|kv| range.contains(&kv.key)).collect();
        if request.max_create_revision != 0 {
            kvs.retain(|kv| kv.create_revision <= request.max_create_revision);
        }
        if request.sort_target() == SortTarget::Create {
            kvs.sort_by_key(|kv| kv.create_revision);
        }
        if request.sort_order() == SortOrder::Descend {
            kvs.reverse();
        }
        if request.limit > 0 {
            kvs.truncate(request.limit as usize);
        }
        RangeResponse { header: self.header(), kvs, ..Default::default() }
    }

    fn delete(&mut self, request: &DeleteRangeRequest, revision: i64) -> i64 {
        let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
        let keys: Vec<_> = self.live().into_keys().filter(|key| range.contains(key)).collect();
        for key in &keys {
            let kv = KeyValue { key: key.clone(), mod_revision: revision, ..Default::default() };
            self.history.push(Event { r#type: EventType::Delete.into(), kv: Some(kv), prev_kv: None });
        }
        if !keys.is_empty() {
            self.revision = revision;
        }
        keys.len() as i64
    }

    fn run(&mut self, op: &RequestOp, revision: i64) -> response_op::Response {
        match op.request.as_ref().expect("recipes fill every operation") {
            request_op::Request::RequestRange(request) => {
                let newest = (SortTarget::Create, SortOrder::Descend, 2);
                let asked = (request.sort_target(), request.sort_order(), request.limit);
                self.walks += usize::from(!request.range_end.is_empty() && asked != newest);
                response_op::Response::ResponseRange(self.range(request))
            }
            request_op::Request::RequestPut(request) => {
                let old = self.live().remove(&request.key);
                let kv = KeyValue {
                    key: request.key.clone(),
                    value: request.value.clone(),
                    lease: request.lease,
                    create_revision: old.as_ref().map_or(revision, |old| old.create_revision),
                    version: old.map_or(1, |old| old.version + 1),
                    mod_revision: revision,
                };
                self.history.push(Event { r#type: EventType::Put.into(), kv: Some(kv), prev_kv: None });
                self.revision = revision;
                response_op::Response::ResponsePut(PutResponse { header: self.header(), prev_kv: None })
            }
            request_op::Request::RequestDeleteRange(request) => {
                let deleted = self.delete(request, revision);
                let header = self.header();
                response_op::Response::ResponseDeleteRange(DeleteRangeResponse { header, deleted, prev_kvs: vec![] })
            }
            request_op::Request::RequestTxn(_) => unreachable!("recipes do not nest"),
        }
    }
}

impl RecipeStore for FakeStore {
    type Watch = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    fn for_caller(&self, metadata: &MetadataMap, _: &Extensions) -> Self {
        let token = metadata.get("token").and_then(|token| token.to_str().ok()).map(str::to_owned);
        Self { token, ..self.clone() }
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        self.permitted()?;
        self.ranges.send_modify(|ranges| *ranges += 1);
        let mut open = self.open.subscribe();
        open.wait_for(|open| *open).await.expect("the store holds the sender");
        let answer = self.state.lock().range(&request);
        self.ranges.send_modify(|ranges| *ranges -= 1);
        Ok(answer)
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        self.permitted()?;
        let mut state = self.state.lock();
        if state.refusals > 0 {
            state.refusals -= 1;
            state.refused.push(Instant::now());
            return Err(ApiError::NoLeader.into());
        }
        let live = state.live();
        let succeeded = request.compare.iter().all(|compare| {
            let created = live.get(&compare.key).map_or(0, |kv| kv.create_revision);
            matches!(compare.target_union, Some(compare::TargetUnion::CreateRevision(wanted)) if wanted == created)
        });
        let ops = if succeeded { &request.success } else { &request.failure };
        for op in ops {
            let Some(request_op::Request::RequestPut(put)) = &op.request else { continue };
            if put.lease != 0 && !state.leases.contains(&put.lease) {
                return Err(ApiError::LeaseNotFound.into());
            }
            if succeeded && state.refused_value.is_some_and(|value| put.value == value) {
                return Err(ApiError::RequestTooLarge.into());
            }
        }
        let revision = state.revision + 1;
        let responses = ops.iter().map(|op| ResponseOp { response: Some(state.run(op, revision)) }).collect();
        let answer = TxnResponse { header: state.header(), succeeded, responses };
        drop(state);
        self.written.send_replace(revision);
        Ok(answer)
    }

    async fn delete_range(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Status> {
        if request.key.is_empty() {
            return Err(ApiError::EmptyKey.into());
        }
        let mut state = self.state.lock();
        let revision = state.revision + 1;
        let deleted = state.delete(&request, revision);
        let header = state.header();
        drop(state);
        self.written.send_replace(revision);
        Ok(DeleteRangeResponse { header, deleted, prev_kvs: vec![] })
    }

    async fn lease_grant(&self, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, Status> {
        self.permitted()?;
        let mut state = self.state.lock();
        let id = 1000 + state.leases.len() as i64;
        state.leases.push(id);
        Ok(LeaseGrantResponse { header: state.header(), id, ttl: request.ttl, error: String::new() })
    }

    async fn watch(&self, request: WatchCreateRequest) -> Result<Self::Watch, Status> {
        let range = KeyRange::from_wire(request.key, request.range_end);
        let from = request.start_revision;
        let seed = (self.clone(), self.written.subscribe(), from, range);
        Ok(Box::pin(stream::unfold(seed, |(store, mut written, from, range)| async move {
            loop {
                written.borrow_and_update();
                let answer = {
                    let state = store.state.lock();
                    let revision_of = |event: &&Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
                    let matching = |event: &&Event| event.kv.as_ref().is_some_and(|kv| range.contains(&kv.key));
                    let events: Vec<Event> = state
                        .history
                        .iter()
                        .filter(|event| revision_of(event) >= from)
                        .filter(matching)
                        .cloned()
                        .collect();
                    WatchResponse { header: state.header(), events, ..Default::default() }
                };
                if !answer.events.is_empty() {
                    let next = store.revision() + 1;
                    return Some((Ok(answer), (store, written, next, range)));
                }
                written.changed().await.ok()?;
            }
        })))
    }
}
