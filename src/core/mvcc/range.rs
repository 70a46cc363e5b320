//! Answers a `RangeRequest` from a view.

use bytes::Bytes;

use super::MvccError;
use super::record::Fields;
use super::view::{Found, View};
use crate::pb::encoded::{RangeResponse, ResponseHeader};
use crate::pb::etcdserverpb::RangeRequest;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::selection::{Pair, Selection, has_own_order, has_revision_filters, is_default_order, sort};
use crate::types::{KeyRange, Revision};

/// Pairs gathered beyond those wanted before they are sorted and cut.
const UNSORTED: usize = 64;
/// Revisions that [`newest`] looks at first.
const FIRST_WINDOW: i64 = 64;
/// How many times more it looks at next.
const WIDER: i64 = 16;
/// Keys changed since, of which it gives up to look at fewer than all.
const SEEN_MAX: usize = 1024;

/// A header with the revision only; the server fills in the rest.
pub(super) fn header(revision: crate::types::Revision) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision: revision.0, ..Default::default() })
}

/// How much a read has to look at, at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Pairs.
    pub keys: usize,
    /// Whether their values may have to be loaded from the backend.
    pub loads: bool,
    /// Versions looked at beside those, of which the answer holds nothing: for compares, and to count at an old revision.
    pub looks: usize,
}

/// Pairs that one look at the store may gather, and versions that it may look at: some tens of microseconds.
const FEW_KEYS: usize = 256;

impl Extent {
    /// Whether it is short enough to be read on a serving thread.
    pub fn is_small(self) -> bool {
        self.has_few_looks() && self.keys <= if self.loads { 1 } else { FEW_KEYS }
    }

    /// Whether what the answer does not hold is short enough to be looked at on a serving thread.
    pub fn has_few_looks(self) -> bool {
        self.looks <= FEW_KEYS
    }

    pub(super) fn include(&mut self, other: Self) {
        self.keys = self.keys.saturating_add(other.keys);
        self.loads |= other.loads;
        self.looks = self.looks.saturating_add(other.looks);
    }
}

/// What answering `request` looks at, from the counts in the trees alone.
pub(super) fn extent(view: View<'_>, request: &RangeRequest) -> Extent {
    let covered = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
    let loads = request.revision > 0 && request.revision < view.state.revision.0;
    if request.count_only {
        // How many there are now is written in the trees.
        let looks = if loads { view.versions_at_most(&covered, true) } else { 0 };
        return Extent { looks, ..Extent::default() };
    }
    let mut keys = view.versions_at_most(&covered, loads);
    if let Ok(limit @ 1..) = usize::try_from(request.limit)
        && is_default_order(request)
        && !has_revision_filters(request)
    {
        keys = keys.min(limit.saturating_add(1));
    }
    Extent { keys, loads, looks: 0 }
}

/// Answers `request`; the header has the revision of the view.
pub(super) fn range(view: View<'_>, request: &RangeRequest) -> Result<RangeResponse, MvccError> {
    let at = view.at(request.revision)?;
    let covered = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
    let mut response = RangeResponse { header: header(view.state.revision), ..Default::default() };
    if request.count_only {
        response.count = view.count(&covered, at) as i64;
        return Ok(response);
    }

    let limit = limit_of(request);
    let filtered = has_revision_filters(request);
    // Sorting by something else in no order sorts only what the limit let through.
    let sorted = has_own_order(request);
    let fetch = if is_default_order(request) && !filtered { limit.saturating_add(1) } else { usize::MAX };

    if sorted || filtered {
        let selection = Selection::of(request);
        let kept = limit.saturating_add(1);
        let mut pairs = match newest(view, request, &covered, at, kept)? {
            Some(pairs) => pairs,
            None => select(view, request, view.walk(&covered, at).take(fetch), kept)?,
        };
        response.more = pairs.len() > limit;
        pairs.truncate(limit);
        response.kvs = pairs.into_iter().map(|pair| selection.part(pair.encoded, &pair.fields)).collect();
        response.count = view.count(&covered, at) as i64;
        return Ok(response);
    }

    response.more = in_order(view, request, (&covered, at), PartEnd::OF_RANGE, &mut response.kvs)?;
    response.count = if response.more { view.count(&covered, at) as i64 } else { response.kvs.len() as i64 };
    Ok(response)
}

/// After how much a part of a range ends, beside its limit.
#[derive(Clone, Copy)]
pub(super) struct PartEnd {
    /// Bytes of its pairs.
    pub bytes: usize,
    /// Rows read from the backend.
    pub loads: usize,
}

impl PartEnd {
    /// At the end of the range.
    const OF_RANGE: Self = Self { bytes: usize::MAX, loads: usize::MAX };
}

/// Appends what a range without filters has in the order of keys, up to its limit or to `end`; tells whether there is more.
/// Does not count what it leaves out: at an old revision that is a walk over all that changed since.
pub(super) fn in_order(
    view: View<'_>,
    request: &RangeRequest,
    (covered, at): (&KeyRange, Revision),
    end: PartEnd,
    kvs: &mut Vec<Bytes>,
) -> Result<bool, MvccError> {
    let (limit, selection) = (limit_of(request), Selection::of(request));
    let (mut bytes, mut loads) = (0, 0);
    for found in view.walk(covered, at).take(limit.saturating_add(1)) {
        if kvs.len() == limit || bytes >= end.bytes || loads >= end.loads {
            return Ok(true);
        }
        loads += usize::from(matches!(found, Found::Past(_)));
        let pair = selection.answer(view.load(found)?);
        bytes += pair.as_ref().map_or(0, Bytes::len);
        kvs.extend(pair);
    }
    Ok(false)
}

fn limit_of(request: &RangeRequest) -> usize {
    usize::try_from(request.limit).ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX)
}

/// The first `kept` of what is walked over, in the order the request wants.
fn select<'a>(
    view: View<'_>,
    request: &RangeRequest,
    walk: impl Iterator<Item = Found<'a>>,
    kept: usize,
) -> Result<Vec<Pair>, MvccError> {
    let selection = Selection::of(request);
    let mut pairs = Vec::new();
    for found in walk {
        if let Found::Live(record) = found
            && !selection.passes(&record.fields())
        {
            continue;
        }
        let encoded = view.load(found)?;
        let fields = Fields::parse(&encoded).unwrap_or_default();
        if selection.passes(&fields) {
            pairs.push(Pair { encoded, fields });
        }
        // Sorts are stable, so those dropped early are those dropped in the end.
        if pairs.len() >= kept.saturating_mul(2).saturating_add(UNSORTED) {
            sort(request, &mut pairs);
            pairs.truncate(kept);
        }
    }
    sort(request, &mut pairs);
    pairs.truncate(kept);
    Ok(pairs)
}

/// Looks for the newest keys of a range among the last revisions only, without a walk over the range: a waiter in a queue
/// asks for the one before it. None when the request asks for something else, or they are older.
fn newest(
    view: View<'_>,
    request: &RangeRequest,
    covered: &KeyRange,
    at: Revision,
    kept: usize,
) -> Result<Option<Vec<Pair>>, MvccError> {
    let top = match SortTarget::try_from(request.sort_target) {
        Ok(SortTarget::Create) => request.max_create_revision,
        Ok(SortTarget::Mod) => request.max_mod_revision,
        _ => return Ok(None),
    };
    if request.sort_order != SortOrder::Descend as i32 || kept > UNSORTED || at < view.state.revision {
        return Ok(None);
    }
    let top = if top > 0 { top.min(at.0) } else { at.0 };
    let mut window = FIRST_WINDOW;
    while window < top {
        let floor = top - window;
        let mut seen = 0;
        let walk = view.walk_newer(covered, floor).inspect(|_| seen += 1);
        let number = |fields: &Fields| match request.sort_target == SortTarget::Mod as i32 {
            true => fields.modified,
            false => fields.create,
        };
        let recent = walk.filter(|record| number(&record.fields()) > floor).map(Found::Live);
        let pairs = select(view, request, recent, kept)?;
        if pairs.len() >= kept {
            return Ok(Some(pairs));
        }
        if seen > SEEN_MAX {
            break;
        }
        window = window.saturating_mul(WIDER);
    }
    Ok(None)
}
