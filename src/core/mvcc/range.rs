//! Answers a `RangeRequest` from a view.

use bytes::Bytes;

use super::MvccError;
use super::record::{Fields, without_value};
use super::view::View;
use crate::pb::encoded::{RangeResponse, ResponseHeader};
use crate::pb::etcdserverpb::RangeRequest;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::types::KeyRange;

/// A header that says nothing but the revision; who answers fills in the rest.
pub(super) fn header(revision: crate::types::Revision) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision: revision.0, ..Default::default() })
}

/// Whether answers come in key order as the store walks them.
pub(super) fn is_default_order(request: &RangeRequest) -> bool {
    request.sort_order == SortOrder::None as i32
        || (request.sort_target == SortTarget::Key as i32 && request.sort_order == SortOrder::Ascend as i32)
}

pub(super) fn has_revision_filters(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

/// Answers `request`; the header says the revision of the view.
pub(super) fn range(view: View<'_>, request: &RangeRequest) -> Result<RangeResponse, MvccError> {
    let at = view.at(request.revision)?;
    let covered = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
    let mut response = RangeResponse { header: header(view.state.revision), ..Default::default() };
    if request.count_only {
        response.count = view.count(&covered, at) as i64;
        return Ok(response);
    }

    let limit = usize::try_from(request.limit).ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX);
    let filtered = has_revision_filters(request);
    // Sorting by something else in no order sorts only what the limit let through.
    let sorted = request.sort_target != SortTarget::Key as i32 || !is_default_order(request);
    let fetch = if is_default_order(request) && !filtered { limit.saturating_add(1) } else { usize::MAX };

    if sorted || filtered {
        let mut pairs = Vec::new();
        for found in view.walk(&covered, at).take(fetch) {
            let encoded = view.load(found)?;
            let fields = Fields::parse(&encoded).unwrap_or_default();
            if passes(request, &fields) {
                pairs.push(Pair { encoded, fields });
            }
        }
        sort(request, &mut pairs);
        response.more = pairs.len() > limit;
        pairs.truncate(limit);
        response.kvs = pairs.into_iter().map(|pair| pair.answer(request)).collect();
        response.count = view.count(&covered, at) as i64;
        return Ok(response);
    }

    for found in view.walk(&covered, at).take(fetch) {
        if response.kvs.len() == limit {
            response.more = true;
            break;
        }
        let encoded = view.load(found)?;
        response.kvs.push(if request.keys_only {
            let fields = Fields::parse(&encoded).unwrap_or_default();
            Pair { encoded, fields }.answer(request)
        } else {
            encoded
        });
    }
    response.count = if response.more { view.count(&covered, at) as i64 } else { response.kvs.len() as i64 };
    Ok(response)
}

struct Pair {
    encoded: Bytes,
    fields: Fields,
}

impl Pair {
    fn value(&self) -> &[u8] {
        &self.encoded[self.fields.value.clone()]
    }

    fn key(&self) -> &[u8] {
        &self.encoded[self.fields.key.clone()]
    }

    fn answer(self, request: &RangeRequest) -> Bytes {
        if !request.keys_only {
            return self.encoded;
        }
        // etcd 3.7 answers keys_only from its index, which knows no leases, unless it had to look at the values.
        without_value(&self.encoded, &self.fields, request.sort_target == SortTarget::Value as i32)
    }
}

fn passes(request: &RangeRequest, fields: &Fields) -> bool {
    let within = |number, min, max| (min == 0 || number >= min) && (max == 0 || number <= max);
    within(fields.modified, request.min_mod_revision, request.max_mod_revision)
        && within(fields.create, request.min_create_revision, request.max_create_revision)
}

fn sort(request: &RangeRequest, pairs: &mut [Pair]) {
    let number: fn(&Pair) -> i64 = match SortTarget::try_from(request.sort_target) {
        Ok(SortTarget::Version) => |pair| pair.fields.version,
        Ok(SortTarget::Create) => |pair| pair.fields.create,
        Ok(SortTarget::Mod) => |pair| pair.fields.modified,
        Ok(SortTarget::Value) => {
            pairs.sort_by(|one, other| in_order(request, one.value().cmp(other.value())));
            return;
        }
        Ok(SortTarget::Key) | Err(_) => {
            pairs.sort_by(|one, other| in_order(request, one.key().cmp(other.key())));
            return;
        }
    };
    pairs.sort_by(|one, other| in_order(request, number(one).cmp(&number(other))));
}

fn in_order(request: &RangeRequest, order: std::cmp::Ordering) -> std::cmp::Ordering {
    if request.sort_order == SortOrder::Descend as i32 { order.reverse() } else { order }
}
