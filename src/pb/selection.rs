//! Which pairs of a range a request selects, what the answer has of each, and in which order.

use std::cmp::Ordering;

use bytes::Bytes;

use super::etcdserverpb::RangeRequest;
use super::etcdserverpb::range_request::{SortOrder, SortTarget};
use super::key_value::{Fields, without_value};

/// Whether answers come in key order as the store walks them.
pub fn is_default_order(request: &RangeRequest) -> bool {
    request.sort_order == SortOrder::None as i32
        || (request.sort_target == SortTarget::Key as i32 && request.sort_order == SortOrder::Ascend as i32)
}

/// Whether pairs are left out by their revisions.
pub fn has_revision_filters(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

/// Whether pairs are sorted by something else than the key: such an answer has to be gathered first.
pub fn has_own_order(request: &RangeRequest) -> bool {
    request.sort_target != SortTarget::Key as i32 || !is_default_order(request)
}

/// A pair with the places of its fields.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The encoded `KeyValue`.
    pub encoded: Bytes,
    /// Its fields.
    pub fields: Fields,
}

impl Pair {
    /// Its value.
    pub fn value(&self) -> &[u8] {
        &self.encoded[self.fields.value.clone()]
    }

    /// Its key.
    pub fn key(&self) -> &[u8] {
        &self.encoded[self.fields.key.clone()]
    }
}

/// Which pairs a request wants, and which part of them.
#[derive(Clone, Copy, Debug)]
pub struct Selection {
    keys_only: bool,
    /// Of an answer with keys only.
    keep_lease: bool,
    filters: bool,
    modified: (i64, i64),
    create: (i64, i64),
}

impl Selection {
    /// What this request selects.
    pub fn of(request: &RangeRequest) -> Self {
        Self {
            keys_only: request.keys_only,
            // etcd 3.7 answers keys_only from its index, which knows no leases, unless it had to look at the values.
            keep_lease: request.sort_target == SortTarget::Value as i32,
            filters: has_revision_filters(request),
            modified: (request.min_mod_revision, request.max_mod_revision),
            create: (request.min_create_revision, request.max_create_revision),
        }
    }

    /// Whether pairs of the range may be left out.
    pub fn filters(&self) -> bool {
        self.filters
    }

    /// Whether the answer has every pair as it is stored.
    pub fn takes_all(&self) -> bool {
        !self.filters && !self.keys_only
    }

    /// What the answer has of a pair; none when it does not pass the filters.
    pub fn answer(&self, encoded: Bytes) -> Option<Bytes> {
        if self.takes_all() {
            return Some(encoded);
        }
        let fields = Fields::parse(&encoded).unwrap_or_default();
        self.passes(&fields).then(|| self.part(encoded, &fields))
    }

    /// What the answer has of a pair that passes.
    pub fn part(&self, encoded: Bytes, fields: &Fields) -> Bytes {
        if self.keys_only { without_value(&encoded, fields, self.keep_lease) } else { encoded }
    }

    /// Whether a pair passes the filters.
    pub fn passes(&self, fields: &Fields) -> bool {
        let within = |number, (min, max)| (min == 0 || number >= min) && (max == 0 || number <= max);
        within(fields.modified, self.modified) && within(fields.create, self.create)
    }
}

/// Brings pairs in the order the request wants; equal ones keep theirs.
pub fn sort(request: &RangeRequest, pairs: &mut [Pair]) {
    pairs.sort_by(|one, other| compare(request, one, other));
}

/// Which of two pairs comes first in the order the request wants.
pub fn compare(request: &RangeRequest, one: &Pair, other: &Pair) -> Ordering {
    let order = match SortTarget::try_from(request.sort_target) {
        Ok(SortTarget::Version) => one.fields.version.cmp(&other.fields.version),
        Ok(SortTarget::Create) => one.fields.create.cmp(&other.fields.create),
        Ok(SortTarget::Mod) => one.fields.modified.cmp(&other.fields.modified),
        Ok(SortTarget::Value) => one.value().cmp(other.value()),
        Ok(SortTarget::Key) | Err(_) => one.key().cmp(other.key()),
    };
    if request.sort_order == SortOrder::Descend as i32 { order.reverse() } else { order }
}
