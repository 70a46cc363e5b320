//! What can be refused by looking at a request alone; the server asks before it proposes or reads.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;

use super::MvccError;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use crate::pb::selection::{has_revision_filters, is_default_order};

/// Transactions nested deeper than this are refused whatever the budget, which is 128 operations unless
/// `--max-txn-ops` says otherwise.
///
/// Walking them cannot exhaust the stack then, and a log entry that holds one can be decoded again.
pub(super) const DEPTH_MAX: usize = 129;

const _: () = assert!(DEPTH_MAX < crate::pb::txn::LEVELS);

/// Checks the form of a range.
///
/// # Errors
/// No key, or a sort option outside of the protocol.
pub fn check_range(request: &RangeRequest) -> Result<(), MvccError> {
    if request.key.is_empty() {
        return Err(MvccError::EmptyKey);
    }
    let (order, target) = (request.sort_order, request.sort_target);
    if SortOrder::try_from(order).is_err() || SortTarget::try_from(target).is_err() {
        return Err(MvccError::InvalidSortOption { order, target });
    }
    Ok(())
}

/// Checks the form of a streamed range.
///
/// # Errors
/// Those of [`check_range`]; besides, sorts and bounds on revisions are not streamed.
pub fn check_range_stream(request: &RangeRequest) -> Result<(), MvccError> {
    check_range(request)?;
    if !is_default_order(request) {
        return Err(MvccError::StreamedSort);
    }
    if has_revision_filters(request) {
        return Err(MvccError::StreamedFilter);
    }
    Ok(())
}

/// Checks the form of a put.
///
/// # Errors
/// No key; a value or lease that is both given and to be kept.
pub fn check_put(request: &PutRequest) -> Result<(), MvccError> {
    if request.key.is_empty() {
        return Err(MvccError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(MvccError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(MvccError::LeaseProvided);
    }
    Ok(())
}

/// Checks the form of a delete.
///
/// # Errors
/// No key.
pub fn check_delete_range(request: &DeleteRangeRequest) -> Result<(), MvccError> {
    if request.key.is_empty() { Err(MvccError::EmptyKey) } else { Ok(()) }
}

/// Checks the form of a transaction and of everything in it.
///
/// # Errors
/// Too many operations (`max_ops` shrinks by the longest list of each level on the way down), the errors of the
/// single operations, then a key that would be written twice.
pub fn check_txn(request: &TxnRequest, max_ops: usize) -> Result<(), MvccError> {
    check_lists(request, max_ops, DEPTH_MAX)?;
    Writes::of(&request.success)?;
    Writes::of(&request.failure)?;
    Ok(())
}

/// Whether the transaction holds nothing but ranges, so that it needs no log entry.
pub fn is_read_only(request: &TxnRequest) -> bool {
    operations(request).all(|op| matches!(op.request, Some(Request::RequestRange(_))))
}

/// Whether every operation is a serializable range, so that no read index is needed.
pub fn is_serializable(request: &TxnRequest) -> bool {
    operations(request).all(|op| matches!(&op.request, Some(Request::RequestRange(range)) if range.serializable))
}

fn operations(request: &TxnRequest) -> impl Iterator<Item = &RequestOp> {
    request.success.iter().chain(&request.failure)
}

/// Refuses a transaction that is too deep to be walked safely, also one that is in the log already.
pub(super) fn check_depth(request: &TxnRequest) -> Result<(), MvccError> {
    fn within(request: &TxnRequest, levels: usize) -> bool {
        operations(request).all(|op| match &op.request {
            Some(Request::RequestTxn(nested)) => levels > 0 && within(nested, levels - 1),
            _ => true,
        })
    }
    if within(request, DEPTH_MAX - 1) {
        return Ok(());
    }
    Err(MvccError::TooManyOps { given: DEPTH_MAX + 1, allowed: DEPTH_MAX })
}

fn check_lists(request: &TxnRequest, budget: usize, levels: usize) -> Result<(), MvccError> {
    let given = request.compare.len().max(request.success.len()).max(request.failure.len());
    if given > budget || levels == 0 {
        return Err(MvccError::TooManyOps { given, allowed: budget });
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(MvccError::EmptyKey);
    }
    operations(request).try_for_each(|op| match &op.request {
        Some(Request::RequestRange(range)) => check_range(range),
        Some(Request::RequestPut(put)) => check_put(put),
        Some(Request::RequestDeleteRange(delete)) => check_delete_range(delete),
        Some(Request::RequestTxn(nested)) => check_lists(nested, budget - given, levels - 1),
        None => Err(MvccError::EmptyOperation),
    })
}

/// What a list of operations writes.
///
/// The order of the checks is etcd's, with its gaps: a delete in a later nested transaction is not held against the
/// puts of an earlier one, nor that of an else branch against the puts of its then branch, and a delete "from key
/// on" covers nothing.
#[derive(Default)]
struct Writes<'r> {
    puts: HashSet<&'r Bytes>,
    deletes: Spans<'r>,
}

impl<'r> Writes<'r> {
    fn of(ops: &'r [RequestOp]) -> Result<Self, MvccError> {
        let mut writes = Self::default();
        for op in ops {
            if let Some(Request::RequestDeleteRange(delete)) = &op.request {
                writes.deletes.add(&delete.key, &delete.range_end);
            }
        }
        for op in ops {
            if let Some(Request::RequestTxn(nested)) = &op.request {
                writes.nested(nested)?;
            }
        }
        for op in ops {
            if let Some(Request::RequestPut(put)) = &op.request {
                writes.put(&put.key)?;
            }
        }
        Ok(writes)
    }

    fn nested(&mut self, txn: &'r TxnRequest) -> Result<(), MvccError> {
        let then = Self::of(&txn.success)?;
        let otherwise = Self::of(&txn.failure)?;
        for key in &then.puts {
            self.put(key)?;
        }
        for key in &otherwise.puts {
            // Only one of the two branches runs.
            if then.puts.contains(key) {
                self.not_deleted(key)?;
            } else {
                self.put(key)?;
            }
        }
        self.deletes.join(then.deletes);
        self.deletes.join(otherwise.deletes);
        Ok(())
    }

    fn put(&mut self, key: &'r Bytes) -> Result<(), MvccError> {
        self.not_deleted(key)?;
        if !self.puts.insert(key) {
            return Err(MvccError::DuplicateKey { key: key.clone() });
        }
        Ok(())
    }

    fn not_deleted(&self, key: &Bytes) -> Result<(), MvccError> {
        if self.deletes.contains(key) {
            return Err(MvccError::DuplicateKey { key: key.clone() });
        }
        Ok(())
    }
}

/// Union of key spans, kept apart from each other: lookups stay logarithmic however many deletes a request holds.
#[derive(Default)]
struct Spans<'r> {
    points: HashSet<&'r [u8]>,
    /// Start to end, disjoint and not touching.
    ranges: BTreeMap<&'r [u8], &'r [u8]>,
}

impl<'r> Spans<'r> {
    fn add(&mut self, start: &'r [u8], end: &'r [u8]) {
        if end.is_empty() {
            self.points.insert(start);
        } else {
            self.add_range(start, end);
        }
    }

    fn add_range(&mut self, mut start: &'r [u8], mut end: &'r [u8]) {
        // This also drops "from key on", whose end is the lowest key there is.
        if start >= end {
            return;
        }
        while let Some((&from, &to)) = self.ranges.range(..=end).next_back() {
            if to < start {
                break;
            }
            self.ranges.remove(from);
            start = start.min(from);
            end = end.max(to);
        }
        self.ranges.insert(start, end);
    }

    fn join(&mut self, other: Self) {
        self.points.extend(other.points);
        for (start, end) in other.ranges {
            self.add_range(start, end);
        }
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.points.contains(key) || self.ranges.range(..=key).next_back().is_some_and(|(_, &end)| key < end)
    }
}
