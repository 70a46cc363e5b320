use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use crate::types::KeyRange;

/// Longest prefix looked at; a key longer than this stands for its beginning.
const PREFIX_BYTES_MAX: usize = 512;

/// Distinct ranges below one prefix at which a watch of the prefix takes their place.
pub(super) const PROMOTE_AT: usize = 8;
/// The same for a prefix of a single byte, which usually is most of the key space.
pub(super) const PROMOTE_AT_SHORT: usize = 64;

/// The ranges that have an upstream watch.
#[derive(Debug)]
pub(super) struct Ranges<T> {
    by_range: HashMap<KeyRange, T>,
    /// Those that are neither one key nor a prefix.
    odd: Vec<KeyRange>,
    /// Longest prefix of each range's keys, in order.
    prefixes: BTreeSet<(Bytes, KeyOrder)>,
}

/// Orders ranges with the same prefix; any order will do.
type KeyOrder = (Bytes, Bytes);

impl<T> Default for Ranges<T> {
    fn default() -> Self {
        Self { by_range: HashMap::new(), odd: Vec::new(), prefixes: BTreeSet::new() }
    }
}

impl<T> Ranges<T> {
    /// Adds a range that is not there yet.
    pub fn insert(&mut self, range: KeyRange, value: T) {
        let prefix = prefix_of(&range);
        if !matches!(range, KeyRange::One(_)) && KeyRange::prefix(prefix.clone()) != range {
            self.odd.push(range.clone());
        }
        self.prefixes.insert((prefix, range.to_wire()));
        self.by_range.insert(range, value);
    }

    pub fn remove(&mut self, range: &KeyRange) -> Option<T> {
        self.odd.retain(|other| other != range);
        self.prefixes.remove(&(prefix_of(range), range.to_wire()));
        self.by_range.remove(range)
    }

    pub fn get(&self, range: &KeyRange) -> Option<&T> {
        self.by_range.get(range)
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.by_range.values()
    }

    /// A watched range that covers `range` and passes `fits`; the widest prefix first.
    pub fn covering(&self, range: &KeyRange, fits: impl Fn(&KeyRange, &T) -> bool) -> Option<(&KeyRange, &T)> {
        let start = range.start();
        let prefixes = (0..=start.len().min(PREFIX_BYTES_MAX)).map(|len| KeyRange::prefix(start.slice(..len)));
        let candidates = prefixes.chain([range.clone()]).chain(self.odd.iter().cloned());
        for candidate in candidates {
            if let Some((found, value)) = self.by_range.get_key_value(&candidate)
                && found.covers(range)
                && fits(found, value)
            {
                return Some((found, value));
            }
        }
        None
    }

    /// Watched ranges within `range`, other than itself.
    pub fn within(&self, range: &KeyRange) -> Vec<KeyRange> {
        self.by_range.keys().filter(|inner| range.covers(inner) && *inner != range).cloned().collect()
    }

    /// The prefix whose one watch should replace those of many ranges below it, now that `new` comes to them.
    ///
    /// The longest prefix that [`PROMOTE_AT`] ranges share is taken back to its last `/`, which is where most keys
    /// have their joints, unless a single byte would be left.
    pub fn promotion(&self, new: &KeyRange) -> Option<KeyRange> {
        let mine = (prefix_of(new), new.to_wire());
        let at = |many: usize| {
            let near = many - 1;
            let mut row: Vec<&Bytes> =
                self.prefixes.range(..&mine).rev().take(near).map(|(prefix, _)| prefix).collect();
            row.reverse();
            row.push(&mine.0);
            row.extend(
                self.prefixes.range(&mine..).filter(|other| **other != mine).take(near).map(|(prefix, _)| prefix),
            );
            // Sorted: what the first and the last of a window share, all of it shares.
            row.windows(many).map(|window| shared(window[0], window[many - 1])).max_by_key(Bytes::len)
        };
        let narrow = at(PROMOTE_AT).filter(|prefix| prefix.len() > 1);
        let prefix = narrow.or_else(|| at(PROMOTE_AT_SHORT).filter(|prefix| !prefix.is_empty()))?;
        let joint = prefix.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        let prefix = if joint > 1 { prefix.slice(..joint) } else { prefix };
        Some(KeyRange::prefix(prefix))
    }
}

fn shared(a: &Bytes, b: &Bytes) -> Bytes {
    let len = a.iter().zip(b.iter()).take_while(|(a, b)| a == b).count();
    a.slice(..len)
}

/// The longest prefix that all keys of a range have.
fn prefix_of(range: &KeyRange) -> Bytes {
    match range {
        KeyRange::One(key) => key.slice(..key.len().min(PREFIX_BYTES_MAX)),
        KeyRange::From(_) => Bytes::new(),
        KeyRange::HalfOpen { start, .. } => {
            let longest = (0..=start.len().min(PREFIX_BYTES_MAX)).rev().map(|len| start.slice(..len));
            longest.into_iter().find(|prefix| KeyRange::prefix(prefix.clone()).covers(range)).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> KeyRange {
        KeyRange::One(text.to_owned().into())
    }

    fn prefix(text: &str) -> KeyRange {
        KeyRange::prefix(text.to_owned().into())
    }

    fn odd(start: &str, end: &str) -> KeyRange {
        KeyRange::HalfOpen { start: start.to_owned().into(), end: end.to_owned().into() }
    }

    #[test]
    fn covering_ranges_are_found_whatever_their_form() {
        let mut ranges = Ranges::default();
        for range in [prefix("/a/"), key("/b"), odd("m", "p5")] {
            ranges.insert(range.clone(), range);
        }
        let find = |range: KeyRange| ranges.covering(&range, |_, _| true).map(|(_, found)| found.clone());
        assert_eq!(find(key("/a/x")), Some(prefix("/a/")));
        assert_eq!(find(prefix("/a/x/")), Some(prefix("/a/")));
        assert_eq!(find(key("/b")), Some(key("/b")));
        assert_eq!(find(prefix("/b")), None);
        assert_eq!(find(odd("n", "o")), Some(odd("m", "p5")));
        assert_eq!(find(KeyRange::From("m".into())), None);
    }

    /// Adds ranges one by one, replacing what a promotion covers; tells how many were opened and which are left.
    fn grow(keys: impl IntoIterator<Item = KeyRange>) -> (usize, Vec<KeyRange>) {
        let mut ranges = Ranges::default();
        let mut opened = 0;
        for range in keys {
            if ranges.covering(&range, |_, _| true).is_some() {
                continue;
            }
            let taken = ranges.promotion(&range).unwrap_or(range);
            opened += 1;
            for inner in ranges.within(&taken) {
                ranges.remove(&inner);
            }
            ranges.insert(taken, ());
        }
        let mut left: Vec<KeyRange> = ranges.by_range.into_keys().collect();
        left.sort_by_key(KeyRange::to_wire);
        (opened, left)
    }

    #[test]
    fn a_hundred_ranges_of_a_prefix_end_as_one() {
        let (opened, left) = grow((0..100).map(|n| prefix(&format!("/bench/{n:03}/"))));
        assert_eq!((opened, left), (PROMOTE_AT, vec![prefix("/bench/")]));
        let (_, left) = grow((0..100).map(|n| key(&format!("job-{:03}", n * 37 % 100))));
        assert_eq!(left, vec![prefix("job-0")]);
    }

    #[test]
    fn ranges_far_apart_stay_alone_until_they_are_many() {
        let (opened, left) = grow((0..26).map(|n| key(&format!("/{}/x", char::from(b'a' + n)))));
        assert_eq!((opened, left.len()), (26, 26));
        let (_, left) = grow((0..100).map(|n| key(&format!("/{n:02}/x"))));
        assert!(left.len() < 20, "{left:?}");
    }

    #[test]
    fn promotions_of_neighbours_are_promoted_in_turn() {
        let all = (0..20).flat_map(|outer| (0..20).map(move |inner| key(&format!("/r/{outer:02}/{inner:02}"))));
        assert_eq!(grow(all).1, vec![prefix("/r/")]);
    }
}
