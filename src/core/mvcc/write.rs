//! Puts, deletes and transactions as apply calls them.
//!
//! Each is checked completely before anything is written, so that a refusal changes nothing, and depends on the state
//! and the request only.

use bytes::Bytes;

use super::check::{check_depth, is_read_only};
use super::range::{Extent, extent, header, range};
use super::reader::Snapshot;
use super::record::Fields;
use super::store::{Batch, LeaseView, OperationCounts, Store, Written};
use super::view::{Found, View};
use super::{MvccError, compare};
use crate::pb::encoded::response_op::Response;
use crate::pb::encoded::{DeleteRangeResponse, PutResponse, RangeResponse, ResponseOp, TxnResponse};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use crate::types::{Key, KeyRange, LeaseId, Revision};

/// Newest state, for [`View::walk`].
const NOW: Revision = Revision(i64::MAX);

impl Store {
    /// Writes one key.
    ///
    /// # Errors
    /// The lease does not exist; or the key does not, though its value or lease is to be kept.
    pub fn put(&mut self, request: &PutRequest, leases: &dyn LeaseView) -> Result<Written<PutResponse>, MvccError> {
        admit_put(self.view(), request, leases)?;
        let mut batch = Batch::new(self, false);
        let response = put(&mut batch, request);
        Ok(batch.finish(response))
    }

    /// Deletes the keys of a range.
    ///
    /// # Errors
    /// None at present.
    pub fn delete_range(&mut self, request: &DeleteRangeRequest) -> Result<Written<DeleteRangeResponse>, MvccError> {
        let mut batch = Batch::new(self, false);
        let response = delete_range(&mut batch, request);
        Ok(batch.finish(response))
    }

    /// Deletes single keys in one revision, as when their lease ends. `keys` are in ascending order; missing ones are
    /// passed over.
    pub fn delete_keys(&mut self, keys: &[Key]) -> Written<()> {
        let mut batch = Batch::new(self, false);
        batch.operations.deletes += keys.len() as u64;
        for key in keys {
            batch.delete_one(key);
        }
        batch.finish(())
    }

    /// Runs a transaction.
    ///
    /// # Errors
    /// On the path its compares choose: a range at a future or compacted revision, a put that [`put`](Self::put)
    /// would refuse. Nothing is written then. A fatal error ([`MvccError::is_fatal`]) may leave a part written; the
    /// member must stop.
    pub fn txn(&mut self, request: &TxnRequest, leases: &dyn LeaseView) -> Result<Written<TxnAnswer>, MvccError> {
        check_depth(request)?;
        let view = self.view();
        let mut path = Vec::new();
        let compared = choose(view, request, &mut path);
        admit(view, request, &mut path.iter(), leases)?;
        let mut batch = Batch::new(self, may_repeat(request, &mut path.iter()));
        let mut unread = Vec::new();
        let mut response = run(&mut batch, request, &mut path.iter(), &mut Vec::new(), &mut unread)?;
        response.header = header(batch.revision());
        let mut written = batch.finish(TxnAnswer { response, unread });
        written.operations.add(&OperationCounts::reads(compared));
        Ok(written)
    }
}

/// The answer to a transaction that was applied. Its long ranges are not read yet: apply would be blocked meanwhile, on
/// every member.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TxnAnswer {
    response: TxnResponse,
    unread: Vec<Unread>,
}

/// A range to be answered from the state in which its transaction came to it.
#[derive(Clone)]
struct Unread {
    /// Position of its answer: one index for each transaction on the way.
    place: Vec<usize>,
    request: RangeRequest,
    snapshot: Snapshot,
}

impl std::fmt::Debug for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unread").field("place", &self.place).field("request", &self.request).finish_non_exhaustive()
    }
}

impl PartialEq for Unread {
    fn eq(&self, other: &Self) -> bool {
        (&self.place, &self.request) == (&other.place, &other.request)
            && self.snapshot.revision() == other.snapshot.revision()
    }
}

impl TxnAnswer {
    /// Whether [`read`](Self::read) has nothing left to do.
    pub fn is_whole(&self) -> bool {
        self.unread.is_empty()
    }

    /// Reads what is missing.
    ///
    /// # Errors
    /// A compaction after the transaction took versions of an old revision that it asked for.
    pub fn read(self) -> Result<TxnResponse, MvccError> {
        let Self { mut response, unread } = self;
        for Unread { place, request, snapshot } in unread {
            let answer = range(snapshot.view(), &request)?;
            if let Some(slot) = slot(&mut response, &place) {
                *slot = Response::ResponseRange(answer);
            }
        }
        Ok(response)
    }
}

fn slot<'a>(response: &'a mut TxnResponse, place: &[usize]) -> Option<&'a mut Response> {
    let (&first, rest) = place.split_first()?;
    let found = response.responses.get_mut(first)?.response.as_mut()?;
    if rest.is_empty() {
        return Some(found);
    }
    match found {
        Response::ResponseTxn(nested) => slot(nested, rest),
        _ => None,
    }
}

impl Snapshot {
    /// How much the answer to a transaction holds at most, whichever way its compares turn out, and how much these look at.
    pub fn txn_extent(&self, request: &TxnRequest) -> Extent {
        txn_extent(self.view(), request)
    }

    /// How much the answer to a delete holds at most.
    pub fn delete_extent(&self, request: &DeleteRangeRequest) -> Extent {
        delete_extent(self.view(), request)
    }

    /// Answers a transaction for which [`is_read_only`](super::is_read_only) holds.
    ///
    /// # Errors
    /// As for [`range`](Self::range); an operation that is not a range.
    pub fn read_only_txn(&self, request: &TxnRequest) -> Result<TxnResponse, MvccError> {
        read_only(self.view(), request)
    }
}

/// What the answers of both branches hold at most, and what the compares look at.
fn txn_extent(view: View<'_>, request: &TxnRequest) -> Extent {
    let mut sum = Extent::default();
    for compare in &request.compare {
        let covered = KeyRange::from_wire(compare.key.clone(), compare.range_end.clone());
        sum.include(Extent { looks: view.versions_at_most(&covered, false), ..Extent::default() });
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(range)) => sum.include(extent(view, range)),
            Some(Request::RequestDeleteRange(delete)) => sum.include(delete_extent(view, delete)),
            Some(Request::RequestTxn(nested)) => sum.include(txn_extent(view, nested)),
            Some(Request::RequestPut(_)) | None => {}
        }
    }
    sum
}

fn delete_extent(view: View<'_>, request: &DeleteRangeRequest) -> Extent {
    if !request.prev_kv {
        return Extent::default();
    }
    let covered = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
    Extent { keys: view.versions_at_most(&covered, false), ..Extent::default() }
}

/// Answers a transaction that holds nothing but ranges.
fn read_only(view: View<'_>, request: &TxnRequest) -> Result<TxnResponse, MvccError> {
    if !is_read_only(request) {
        return Err(MvccError::EmptyOperation);
    }
    let mut path = Vec::new();
    choose(view, request, &mut path);
    let succeeded = path.first().copied().unwrap_or(true);
    let ranges = || {
        branch(request, succeeded).iter().filter_map(|op| match &op.request {
            Some(Request::RequestRange(request)) => Some(request),
            _ => None,
        })
    };
    ranges().try_for_each(|request| admit_range(view, request))?;
    let mut responses = Vec::new();
    for request in ranges() {
        responses.push(ResponseOp { response: Some(Response::ResponseRange(range(view, request)?)) });
    }
    Ok(TxnResponse { header: header(view.state.revision), succeeded, responses })
}

fn branch(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

/// Evaluates all compares on the way down, before any operation runs. Paths are in the order of a walk that enters
/// nested transactions where they stand. Returns how many compares were evaluated.
fn choose(view: View<'_>, request: &TxnRequest, path: &mut Vec<bool>) -> usize {
    let failed = request.compare.iter().position(|compare| !compare::holds(view, compare));
    let mut compared = failed.map_or(request.compare.len(), |at| at + 1);
    let succeeded = failed.is_none();
    path.push(succeeded);
    for op in branch(request, succeeded) {
        if let Some(Request::RequestTxn(nested)) = &op.request {
            compared += choose(view, nested, path);
        }
    }
    compared
}

type Path<'p> = std::slice::Iter<'p, bool>;

fn admit(view: View<'_>, request: &TxnRequest, path: &mut Path<'_>, leases: &dyn LeaseView) -> Result<(), MvccError> {
    let succeeded = path.next().copied().unwrap_or(true);
    branch(request, succeeded).iter().try_for_each(|op| match &op.request {
        Some(Request::RequestRange(range)) => admit_range(view, range),
        Some(Request::RequestPut(put)) => admit_put(view, put, leases),
        Some(Request::RequestTxn(nested)) => admit(view, nested, path, leases),
        Some(Request::RequestDeleteRange(_)) | None => Ok(()),
    })
}

/// Stricter than a range of its own: a negative revision is not "now" here.
fn admit_range(view: View<'_>, request: &RangeRequest) -> Result<(), MvccError> {
    let (asked, compacted, current) = (Revision(request.revision), view.state.compacted, view.state.revision);
    if asked == Revision(0) {
        return Ok(());
    }
    if asked > current {
        return Err(MvccError::Future { asked, current });
    }
    if asked < compacted {
        return Err(MvccError::Compacted { asked, compacted });
    }
    Ok(())
}

fn admit_put(view: View<'_>, request: &PutRequest, leases: &dyn LeaseView) -> Result<(), MvccError> {
    let lease = LeaseId(request.lease);
    if lease != LeaseId(0) && !leases.exists(lease) {
        return Err(MvccError::LeaseNotFound { lease });
    }
    if (request.ignore_value || request.ignore_lease) && view.one(&request.key, NOW).is_none() {
        return Err(MvccError::KeyNotFound { key: request.key.clone() });
    }
    Ok(())
}

/// Whether the path taken holds a put beside another write: only then can a key be written twice.
fn may_repeat(request: &TxnRequest, path: &mut Path<'_>) -> bool {
    fn count(request: &TxnRequest, path: &mut Path<'_>, puts: &mut usize, deletes: &mut usize) {
        let succeeded = path.next().copied().unwrap_or(true);
        for op in branch(request, succeeded) {
            match &op.request {
                Some(Request::RequestPut(_)) => *puts += 1,
                Some(Request::RequestDeleteRange(_)) => *deletes += 1,
                Some(Request::RequestTxn(nested)) => count(nested, path, puts, deletes),
                Some(Request::RequestRange(_)) | None => {}
            }
        }
    }
    let (mut puts, mut deletes) = (0, 0);
    count(request, path, &mut puts, &mut deletes);
    puts > 0 && puts + deletes > 1
}

/// `place` is that of the transaction in the whole answer.
fn run(
    batch: &mut Batch<'_>,
    request: &TxnRequest,
    path: &mut Path<'_>,
    place: &mut Vec<usize>,
    unread: &mut Vec<Unread>,
) -> Result<TxnResponse, MvccError> {
    let succeeded = path.next().copied().unwrap_or(true);
    let mut responses = Vec::with_capacity(branch(request, succeeded).len());
    for op in branch(request, succeeded) {
        place.push(responses.len());
        let response = match &op.request {
            Some(Request::RequestRange(request)) if extent(batch.view(), request).is_small() => {
                batch.operations.ranges += 1;
                Some(Response::ResponseRange(range(batch.view(), request)?))
            }
            Some(Request::RequestRange(request)) => {
                batch.operations.ranges += 1;
                let (place, request) = (place.clone(), request.clone());
                unread.push(Unread { place, request, snapshot: batch.store.snapshot() });
                Some(Response::ResponseRange(RangeResponse::default()))
            }
            Some(Request::RequestPut(request)) => Some(Response::ResponsePut(put(batch, request))),
            Some(Request::RequestDeleteRange(request)) => {
                Some(Response::ResponseDeleteRange(delete_range(batch, request)))
            }
            Some(Request::RequestTxn(nested)) => Some(Response::ResponseTxn(run(batch, nested, path, place, unread)?)),
            None => None,
        };
        place.pop();
        responses.push(ResponseOp { response });
    }
    // The header of a nested answer is there but empty.
    Ok(TxnResponse { header: Some(Default::default()), succeeded, responses })
}

fn put(batch: &mut Batch<'_>, request: &PutRequest) -> PutResponse {
    batch.operations.ranges += u64::from(request.ignore_value || request.ignore_lease || request.prev_kv);
    let kept: Option<Bytes> = (request.ignore_value || request.ignore_lease)
        .then(|| match batch.view().one(&request.key, NOW) {
            Some(Found::Live(record)) => Some(record.bytes()),
            _ => None,
        })
        .flatten();
    let fields = kept.as_deref().and_then(Fields::parse).unwrap_or_default();
    // An earlier operation may have deleted the key; then there is nothing left to keep.
    let kept_value = kept.as_ref().map_or(&[][..], |encoded| &encoded[fields.value.clone()]);
    let value = if request.ignore_value { kept_value } else { &request.value };
    let lease = if request.ignore_lease { fields.lease } else { request.lease };
    let previous = batch.put(&request.key, value, LeaseId(lease));
    PutResponse { header: header(batch.revision()), prev_kv: previous.filter(|_| request.prev_kv) }
}

fn delete_range(batch: &mut Batch<'_>, request: &DeleteRangeRequest) -> DeleteRangeResponse {
    let covered = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
    batch.operations.deletes += 1;
    batch.operations.ranges += u64::from(request.prev_kv);
    let prev_kvs = if request.prev_kv { batch.pairs(&covered) } else { Vec::new() };
    let deleted = batch.delete(&covered) as i64;
    DeleteRangeResponse { header: header(batch.revision()), deleted, prev_kvs }
}
