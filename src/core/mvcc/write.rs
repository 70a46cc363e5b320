//! Puts, deletes and transactions as apply calls them.
//!
//! Each is decided completely before anything is written, so that a refusal leaves nothing behind, and depends on
//! nothing but the state and the request.

use bytes::Bytes;

use super::check::{check_depth, is_read_only};
use super::range::{header, range};
use super::record::Fields;
use super::store::{Batch, LeaseView, Store, Written};
use super::view::View;
use super::{MvccError, compare};
use crate::pb::encoded::response_op::Response;
use crate::pb::encoded::{DeleteRangeResponse, PutResponse, ResponseOp, TxnResponse};
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
        for key in keys {
            batch.delete_one(key);
        }
        batch.finish(())
    }

    /// Runs a transaction.
    ///
    /// # Errors
    /// On the path its compares choose: a range at a future or compacted revision, a put that [`put`](Self::put)
    /// would refuse. Nothing is written then. A fatal error ([`MvccError::is_fatal`]) may leave a part behind; the
    /// member must stop.
    pub fn txn(&mut self, request: &TxnRequest, leases: &dyn LeaseView) -> Result<Written<TxnResponse>, MvccError> {
        check_depth(request)?;
        let view = self.view();
        let mut path = Vec::new();
        choose(view, request, &mut path);
        admit(view, request, &mut path.iter(), leases)?;
        let mut batch = Batch::new(self, may_repeat(request, &mut path.iter()));
        let mut response = run(&mut batch, request, &mut path.iter())?;
        response.header = header(batch.revision());
        Ok(batch.finish(response))
    }
}

/// Answers a transaction that holds nothing but ranges.
pub(super) fn read_only(view: View<'_>, request: &TxnRequest) -> Result<TxnResponse, MvccError> {
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
/// nested transactions where they stand.
fn choose(view: View<'_>, request: &TxnRequest, path: &mut Vec<bool>) {
    let succeeded = request.compare.iter().all(|compare| compare::holds(view, compare));
    path.push(succeeded);
    for op in branch(request, succeeded) {
        if let Some(Request::RequestTxn(nested)) = &op.request {
            choose(view, nested, path);
        }
    }
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

fn run(batch: &mut Batch<'_>, request: &TxnRequest, path: &mut Path<'_>) -> Result<TxnResponse, MvccError> {
    let succeeded = path.next().copied().unwrap_or(true);
    let mut responses = Vec::with_capacity(branch(request, succeeded).len());
    for op in branch(request, succeeded) {
        let response = match &op.request {
            Some(Request::RequestRange(request)) => Some(Response::ResponseRange(range(batch.view(), request)?)),
            Some(Request::RequestPut(request)) => Some(Response::ResponsePut(put(batch, request))),
            Some(Request::RequestDeleteRange(request)) => {
                Some(Response::ResponseDeleteRange(delete_range(batch, request)))
            }
            Some(Request::RequestTxn(nested)) => Some(Response::ResponseTxn(run(batch, nested, path)?)),
            None => None,
        };
        responses.push(ResponseOp { response });
    }
    // The header of a nested answer is there but empty.
    Ok(TxnResponse { header: Some(Default::default()), succeeded, responses })
}

fn put(batch: &mut Batch<'_>, request: &PutRequest) -> PutResponse {
    let kept: Option<Bytes> = (request.ignore_value || request.ignore_lease)
        .then(|| match batch.view().one(&request.key, NOW) {
            Some(super::view::Found::Live(record)) => Some(record.bytes()),
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
    let prev_kvs = if request.prev_kv { batch.pairs(&covered) } else { Vec::new() };
    let deleted = batch.delete(&covered) as i64;
    DeleteRangeResponse { header: header(batch.revision()), deleted, prev_kvs }
}
