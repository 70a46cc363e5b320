use bytes::Bytes;

use super::pair::Pair;
use crate::pb::etcdserverpb::RangeRequest;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::selection::{self, Selection, compare, has_own_order, has_revision_filters, is_default_order};
use crate::tree::Tree;
use crate::types::KeyRange;

/// Pairs that are sorted here; a request over more passes, so that it does not hold up a serving thread.
const SORTED_MAX: usize = 4096;
/// Pairs one step looks at: some tens of microseconds.
const STEP_PAIRS: usize = 1024;

/// What a member would answer, without its header.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Encoded pairs, in the order of the answer.
    pub kvs: Vec<Bytes>,
    pub more: bool,
    pub count: i64,
    /// Bytes of the encoded pairs that the answer is made of, whole: what it keeps in memory.
    pub held_bytes: usize,
}

/// The keys a request covers, if a state of these keys can answer it. Errors are a member's to tell.
pub(super) fn covered(request: &RangeRequest) -> Option<KeyRange> {
    let known = SortOrder::try_from(request.sort_order).is_ok() && SortTarget::try_from(request.sort_target).is_ok();
    if request.key.is_empty() || request.revision < 0 || !known {
        return None;
    }
    let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
    (!range.is_empty()).then_some(range)
}

/// Whether `RangeStream` takes the request, as far as its form decides; errors are a member's to tell.
pub(super) fn can_be_streamed(request: &RangeRequest) -> bool {
    !has_own_order(request) && !has_revision_filters(request)
}

/// One request on one state, answered in steps.
pub(super) struct Search<'t> {
    pairs: &'t Tree<Pair>,
    request: &'t RangeRequest,
    covered: &'t KeyRange,
    selection: Selection,
    limit: usize,
    /// Whether the pairs come in the order of their keys.
    in_key_order: bool,
    found: Found,
    gathered: Vec<selection::Pair>,
    /// Where the next step begins.
    next: Bytes,
}

/// How far a [`Search`] is.
#[derive(Debug)]
pub(super) enum Step {
    /// There is more to look at.
    Unfinished,
    Done(Found),
    /// What a member would answer cannot be told.
    Inexact,
}

impl<'t> Search<'t> {
    pub fn new(pairs: &'t Tree<Pair>, request: &'t RangeRequest, covered: &'t KeyRange) -> Self {
        Self {
            pairs,
            request,
            covered,
            selection: Selection::of(request),
            limit: usize::try_from(request.limit).ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX),
            in_key_order: !has_own_order(request),
            found: Found { count: count(pairs, covered) as i64, ..Found::default() },
            gathered: Vec::new(),
            next: covered.start().clone(),
        }
    }

    /// Looks at the next pairs.
    pub fn step(&mut self) -> Step {
        if self.request.count_only {
            return Step::Done(std::mem::take(&mut self.found));
        }
        // Sorting by something else in no order sorts only what the limit let through.
        let cut_first = is_default_order(self.request) && !has_revision_filters(self.request);
        if !self.in_key_order && self.wanted(cut_first) > SORTED_MAX {
            return Step::Inexact;
        }
        let pairs = self.pairs;
        for (looked, pair) in pairs.from(&self.next).enumerate() {
            if !self.covered.contains(pair.key()) {
                break;
            }
            if looked == STEP_PAIRS {
                self.next = Bytes::copy_from_slice(pair.key());
                return Step::Unfinished;
            }
            if self.selection.takes_all() && self.in_key_order {
                if self.found.kvs.len() == self.limit {
                    self.found.more = true;
                    break;
                }
                self.found.held_bytes += pair.encoded().len();
                self.found.kvs.push(pair.encoded().clone());
                continue;
            }
            let fields = pair.fields();
            if !self.selection.passes(&fields) {
                continue;
            }
            if self.in_key_order && self.found.kvs.len() == self.limit {
                self.found.more = true;
                break;
            }
            // A member sorts the first that is too many, too.
            if cut_first && self.gathered.len() > self.limit {
                break;
            }
            // Members of different versions differ in whether they tell the lease then.
            if self.request.keys_only && fields.lease != 0 {
                return Step::Inexact;
            }
            if self.in_key_order {
                self.found.held_bytes += pair.encoded().len();
                self.found.kvs.push(self.selection.part(pair.encoded().clone(), &fields));
            } else {
                self.gathered.push(selection::Pair { encoded: pair.encoded().clone(), fields });
            }
        }
        if !self.in_key_order && !self.sorted() {
            return Step::Inexact;
        }
        Step::Done(std::mem::take(&mut self.found))
    }

    /// Pairs that will be gathered at most.
    fn wanted(&self, cut_first: bool) -> usize {
        let all = usize::try_from(self.found.count).unwrap_or(usize::MAX);
        if cut_first { all.min(self.limit.saturating_add(1)) } else { all }
    }

    /// Sorts what was gathered; false when equal pairs leave the order to the member.
    fn sorted(&mut self) -> bool {
        let mut pairs = std::mem::take(&mut self.gathered);
        selection::sort(self.request, &mut pairs);
        if pairs.windows(2).any(|two| compare(self.request, &two[0], &two[1]).is_eq()) {
            return false;
        }
        self.found.more |= pairs.len() > self.limit;
        pairs.truncate(self.limit);
        self.found.held_bytes = pairs.iter().map(|pair| pair.encoded.len()).sum();
        self.found.kvs = pairs.into_iter().map(|pair| self.selection.part(pair.encoded, &pair.fields)).collect();
        true
    }
}

fn count(pairs: &Tree<Pair>, range: &KeyRange) -> usize {
    match range {
        KeyRange::One(key) => usize::from(pairs.get(key).is_some()),
        KeyRange::From(start) => pairs.len() - pairs.rank(start),
        KeyRange::HalfOpen { start, end } => pairs.rank(end).saturating_sub(pairs.rank(start)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::pb::etcdserverpb::RangeResponse;
    use crate::pb::mvccpb::KeyValue;

    fn tree(kvs: &[KeyValue]) -> Tree<Pair> {
        let mut pairs = Tree::default();
        for kv in kvs {
            pairs.insert(Pair::new(kv), &kv.key[..]);
        }
        pairs
    }

    fn answer(kvs: &[KeyValue], request: &RangeRequest) -> Option<RangeResponse> {
        let pairs = tree(kvs);
        let covered = covered(request)?;
        let mut search = Search::new(&pairs, request, &covered);
        loop {
            match search.step() {
                Step::Unfinished => {}
                Step::Inexact => return None,
                Step::Done(Found { kvs, more, count, .. }) => {
                    let kvs = kvs.iter().map(|kv| KeyValue::decode(&kv[..]).unwrap()).collect();
                    return Some(RangeResponse { header: None, kvs, more, count });
                }
            }
        }
    }

    /// What etcd does, line by line: fetch, filter, sort, cut.
    fn model(kvs: &[KeyValue], request: &RangeRequest) -> RangeResponse {
        let covered = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
        let mut all: Vec<KeyValue> = kvs.iter().filter(|kv| covered.contains(&kv.key)).cloned().collect();
        let count = all.len() as i64;
        if request.count_only {
            return RangeResponse { count, ..Default::default() };
        }
        let limit = if request.limit > 0 { request.limit as usize } else { usize::MAX };
        let filters = has_revision_filters(request);
        let key_ascending = request.sort_target == SortTarget::Key as i32 && request.sort_order == 1;
        if (request.sort_order == 0 || key_ascending) && !filters {
            all.truncate(limit.saturating_add(1));
        }
        let within = |number: i64, min: i64, max: i64| (min == 0 || number >= min) && (max == 0 || number <= max);
        all.retain(|kv| {
            within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
                && within(kv.create_revision, request.min_create_revision, request.max_create_revision)
        });
        match request.sort_target {
            0 => all.sort_by_key(|kv| kv.key.clone()),
            1 => all.sort_by_key(|kv| kv.version),
            2 => all.sort_by_key(|kv| kv.create_revision),
            3 => all.sort_by_key(|kv| kv.mod_revision),
            _ => all.sort_by_key(|kv| kv.value.clone()),
        }
        if request.sort_order == 2 {
            all.reverse();
        }
        let more = all.len() > limit;
        all.truncate(limit);
        if request.keys_only {
            all.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        RangeResponse { header: None, kvs: all, more, count }
    }

    fn key() -> impl Strategy<Value = Bytes> {
        proptest::collection::vec(prop_oneof![Just(0u8), Just(b'a'), Just(b'b'), Just(0xff)], 1..3)
            .prop_map(Bytes::from)
    }

    fn pair() -> impl Strategy<Value = KeyValue> {
        (key(), 1..9i64, 0..9i64, 1..5i64, 0..9u8).prop_map(|(key, create_revision, later, version, value)| KeyValue {
            key,
            create_revision,
            mod_revision: create_revision + later,
            version,
            value: vec![value].into(),
            lease: 0,
        })
    }

    fn request() -> impl Strategy<Value = RangeRequest> {
        let bound = || prop_oneof![3 => Just(0i64), 1 => 1..12i64];
        let end = prop_oneof![Just(Bytes::new()), Just(Bytes::from_static(b"\0")), key()];
        let sort = (0..5i32, 0..3i32, any::<bool>(), any::<bool>());
        (key(), end, -1..5i64, sort, (bound(), bound(), bound(), bound())).prop_map(
            |(key, range_end, limit, (sort_target, sort_order, keys_only, count_only), bounds)| RangeRequest {
                key,
                range_end,
                limit,
                sort_target,
                sort_order,
                keys_only,
                count_only: count_only && limit == 0,
                min_mod_revision: bounds.0,
                max_mod_revision: bounds.1,
                min_create_revision: bounds.2,
                max_create_revision: bounds.3,
                ..Default::default()
            },
        )
    }

    proptest! {
        #[test]
        fn every_answer_is_that_of_the_model(
            kvs in proptest::collection::vec(pair(), 0..12), request in request(),
        ) {
            let mut kvs = kvs;
            kvs.sort_by(|one, other| one.key.cmp(&other.key));
            kvs.dedup_by(|one, other| one.key == other.key);
            if let Some(answer) = answer(&kvs, &request) {
                prop_assert_eq!(answer, model(&kvs, &request));
            } else {
                let empty = KeyRange::from_wire(request.key.clone(), request.range_end.clone()).is_empty();
                prop_assert!(empty || has_own_order(&request), "passed without a reason");
            }
        }
    }

    #[test]
    fn long_answers_come_in_steps() {
        let kvs: Vec<_> = (0..STEP_PAIRS * 3 + 5)
            .map(|n| KeyValue { key: format!("{n:06}").into(), mod_revision: 2, version: 1, ..Default::default() })
            .collect();
        let all = RangeRequest { key: "0".into(), range_end: "\0".into(), ..Default::default() };
        assert_eq!(answer(&kvs, &all), Some(model(&kvs, &all)));
        for limit in [1, STEP_PAIRS as i64, STEP_PAIRS as i64 + 1, kvs.len() as i64] {
            let request = RangeRequest { limit, ..all.clone() };
            assert_eq!(answer(&kvs, &request), Some(model(&kvs, &request)), "{limit}");
            let filtered = RangeRequest { min_mod_revision: 2, keys_only: true, ..request };
            assert_eq!(answer(&kvs, &filtered), Some(model(&kvs, &filtered)), "{limit}");
        }
        let sorted = RangeRequest { sort_order: SortOrder::Descend.into(), ..all };
        assert_eq!(answer(&kvs, &sorted), Some(model(&kvs, &sorted)));
        let twice: Vec<_> =
            kvs.iter().map(|kv| KeyValue { key: [&kv.key[..], b"x"].concat().into(), ..kv.clone() }).collect();
        assert_eq!(answer(&[kvs, twice].concat(), &sorted), None, "too many to be sorted here");
    }

    #[test]
    fn what_members_answer_differently_passes() {
        let kv = |key: &'static str, version, lease| KeyValue {
            key: key.into(),
            version,
            lease,
            mod_revision: 3,
            create_revision: 2,
            ..Default::default()
        };
        let kvs = [kv("a", 1, 0), kv("b", 1, 7)];
        let all = RangeRequest { key: "a".into(), range_end: "c".into(), ..Default::default() };
        assert!(answer(&kvs, &all).is_some());
        assert!(answer(&kvs, &RangeRequest { keys_only: true, ..all.clone() }).is_none(), "with a lease");
        assert!(answer(&kvs, &RangeRequest { keys_only: true, limit: 1, ..all.clone() }).is_some());
        let version = RangeRequest { sort_target: SortTarget::Version.into(), ..all.clone() };
        assert!(answer(&kvs, &version).is_none(), "equal versions: the order is the member's");
        for refused in [
            RangeRequest { key: Bytes::new(), ..all.clone() },
            RangeRequest { revision: -1, ..all.clone() },
            RangeRequest { sort_target: 9, ..all.clone() },
            RangeRequest { range_end: "a".into(), ..all },
        ] {
            assert!(covered(&refused).is_none(), "{refused:?}");
        }
    }
}
