use bytes::Bytes;

/// Where an interval ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// Before this key.
    Before(Bytes),
    /// Nowhere.
    Open,
}

impl End {
    fn is_after(&self, key: &[u8]) -> bool {
        match self {
            Self::Before(end) => &end[..] > key,
            Self::Open => true,
        }
    }
}

/// A set of keys as intervals: sorted, disjoint, and none that touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Intervals(Vec<(Bytes, End)>);

/// Whether a range end stands for "to the last key".
fn is_open(range_end: &[u8]) -> bool {
    range_end == [0]
}

/// Whether a permission may have this range: a key, a range that is not empty, or all keys from one on.
pub(super) fn is_permission_range(key: &[u8], range_end: &[u8]) -> bool {
    !key.is_empty() && (range_end.is_empty() || key < range_end || is_open(range_end))
}

impl Intervals {
    /// The union of ranges in wire form. Ranges that no permission may have count for nothing.
    pub(super) fn union<'a>(ranges: impl Iterator<Item = (&'a Bytes, &'a Bytes)>) -> Self {
        let mut all: Vec<_> = ranges.filter(|(key, end)| is_permission_range(key, end)).map(interval).collect();
        all.sort_unstable();
        let mut merged: Vec<(Bytes, End)> = Vec::with_capacity(all.len());
        for (start, end) in all {
            match merged.last_mut() {
                Some((_, last)) if *last >= End::Before(start.clone()) => {
                    if end > *last {
                        *last = end;
                    }
                }
                _ => merged.push((start, end)),
            }
        }
        Self(merged)
    }

    /// Whether a request for this key, or range in wire form, stays within the set.
    pub(super) fn covers(&self, key: &[u8], range_end: &[u8]) -> bool {
        // The last interval that begins at the key or before it.
        let begun = self.0.partition_point(|(start, _)| &start[..] <= key);
        let Some((start, end)) = begun.checked_sub(1).map(|at| &self.0[at]) else { return false };
        if range_end.is_empty() {
            return end.is_after(key);
        }
        if is_open(range_end) {
            return *end == End::Open;
        }
        // An empty range (its end is not after its start) is still a request about the keys around it.
        &start[..] < range_end && end.is_after(key) && (*end == End::Open || *end >= End::Before(copy(range_end)))
    }
}

fn copy(key: &[u8]) -> Bytes {
    Bytes::copy_from_slice(key)
}

fn interval((key, range_end): (&Bytes, &Bytes)) -> (Bytes, End) {
    let end = if range_end.is_empty() {
        let mut next = Vec::with_capacity(key.len() + 1);
        next.extend_from_slice(key);
        next.push(0);
        End::Before(next.into())
    } else if is_open(range_end) {
        End::Open
    } else {
        End::Before(range_end.clone())
    };
    (key.clone(), end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn check(permissions: &[(&str, &str)], granted: &[(&str, &str)], denied: &[(&str, &str)]) {
        let owned: Vec<_> = permissions.iter().map(|(key, end)| (bytes(key), bytes(end))).collect();
        let set = Intervals::union(owned.iter().map(|(key, end)| (key, end)));
        for (expected, requests) in [(true, granted), (false, denied)] {
            for (key, end) in requests {
                assert_eq!(set.covers(key.as_bytes(), end.as_bytes()), expected, "{permissions:?}: {key:?} {end:?}");
            }
        }
    }

    #[test]
    fn a_key_is_no_range() {
        check(
            &[("b", "")],
            &[("b", ""), ("b", "b\0")],
            &[("a", ""), ("b\0", ""), ("c", ""), ("b", "c"), ("b", "\0"), ("a", "c"), ("\0", "\0"), ("", "")],
        );
    }

    #[test]
    fn ranges_add_up_where_they_touch() {
        check(&[("a", "c"), ("c", "d")], &[("a", "d"), ("b", "cc"), ("c", "")], &[("a", "da"), ("d", ""), ("a", "\0")]);
        check(&[("a", "c"), ("d", "e")], &[("a", "c"), ("d", "e")], &[("a", "e"), ("c", ""), ("b", "d")]);
        check(&[("a", ""), ("a\0", "")], &[("a", "a\0\0")], &[("a", "b")]);
        check(&[("a", "z"), ("b", "c")], &[("c", "y")], &[("a", "zz")]);
    }

    #[test]
    fn an_open_request_needs_an_open_permission() {
        check(
            &[("m", "\0")],
            &[("m", "\0"), ("z", "\0"), ("m", "zzz"), ("n", "")],
            &[("a", "\0"), ("l", "n"), ("a", "")],
        );
        check(&[("\0", "\0")], &[("\0", "\0"), ("\0", ""), ("a", "b")], &[("", "\0")]);
        check(&[("a", "\u{7f}")], &[("a", "b")], &[("a", "\0")]);
    }

    #[test]
    fn ranges_without_keys_give_nothing() {
        check(&[("", "\0"), ("", ""), ("b", "a"), ("b", "b")], &[], &[("a", ""), ("b", ""), ("\0", "\0"), ("a", "b")]);
        check(&[("a", "d")], &[("c", "b")], &[("c", "a"), ("e", "b"), ("d", "d")]);
    }

    /// Every key over two letters up to three long, as etcd orders them, and what lies beyond.
    fn universe() -> Vec<Vec<u8>> {
        let mut keys = vec![vec![]];
        for length in 1..=3usize {
            for bits in 0..1u32 << length {
                keys.push((0..length).map(|at| b'a' + (bits >> at & 1) as u8).collect());
            }
        }
        for key in keys.clone() {
            keys.push([&key[..], &[0]].concat());
        }
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// The keys of the universe in a range in wire form.
    fn members<'a>(universe: &'a [Vec<u8>], key: &[u8], end: &[u8]) -> Vec<&'a Vec<u8>> {
        universe
            .iter()
            .filter(|one| !one.is_empty())
            .filter(|one| match end {
                [] => &one[..] == key,
                [0] => &one[..] >= key,
                _ => &one[..] >= key && &one[..] < end,
            })
            .collect()
    }

    /// Random permissions against sets of keys: what is granted reads no key outside of the permissions, and what a permission
    /// gives is granted.
    #[test]
    fn grants_agree_with_sets_of_keys() {
        let universe = universe();
        let mut random = fastrand::Rng::with_seed(20_260_101);
        let pick = |random: &mut fastrand::Rng| universe[random.usize(..universe.len())].clone();
        let end = |random: &mut fastrand::Rng| match random.u8(..4) {
            0 => Vec::new(),
            1 => vec![0],
            _ => universe[random.usize(..universe.len())].clone(),
        };
        let (mut granted, mut refused) = (0, 0);
        for _ in 0..4000 {
            let permissions: Vec<(Bytes, Bytes)> =
                (0..random.usize(..6)).map(|_| (pick(&mut random).into(), end(&mut random).into())).collect();
            let set = Intervals::union(permissions.iter().map(|(key, end)| (key, end)));
            let valid = || permissions.iter().filter(|(key, end)| is_permission_range(key, end));
            let given: std::collections::BTreeSet<&Vec<u8>> =
                valid().flat_map(|(key, end)| members(&universe, key, end)).collect();
            let open = valid().any(|(_, end)| end[..] == [0]);
            for _ in 0..20 {
                let (key, range_end) = (pick(&mut random), end(&mut random));
                let wanted = members(&universe, &key, &range_end);
                let answer = set.covers(&key, &range_end);
                if answer {
                    granted += 1;
                    assert!(wanted.iter().all(|key| given.contains(key)), "{permissions:?} {key:?} {range_end:?}");
                    assert!(range_end[..] != [0] || open, "open without an open permission");
                } else {
                    refused += 1;
                    let covered = |(start, end): &(Bytes, Bytes)| {
                        let all = members(&universe, start, end);
                        !key.is_empty() && !wanted.is_empty() && wanted.iter().all(|key| all.contains(key))
                    };
                    // One permission alone covers it by its bounds, not by the sample of keys.
                    let by_bounds = |(start, end): &(Bytes, Bytes)| match (&range_end[..], &end[..]) {
                        ([], _) => covered(&(start.clone(), end.clone())),
                        (_, []) => false,
                        ([0], [0]) => key >= start[..].to_vec(),
                        ([0], _) => false,
                        (_, [0]) => key >= start[..].to_vec() && key < range_end,
                        (wanted, end) => key >= start[..].to_vec() && key < range_end && wanted <= end,
                    };
                    assert!(key.is_empty() || !valid().any(by_bounds), "{permissions:?} {key:?} {range_end:?}");
                }
            }
        }
        assert!(granted > 5000 && refused > 5000, "{granted} granted, {refused} refused");
    }
}
