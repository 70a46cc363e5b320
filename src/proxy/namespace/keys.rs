use bytes::{Bytes, BytesMut};

use crate::types::{Key, KeyRange};

const TO_THE_END: &[u8] = b"\0";

/// All keys that begin with a prefix, which clients do not see. An empty prefix is the whole key space.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Namespace {
    prefix: Bytes,
}

impl Namespace {
    /// The keys below `prefix`.
    pub fn new(prefix: impl Into<Bytes>) -> Self {
        Self { prefix: prefix.into() }
    }

    /// What is put before every key.
    pub fn prefix(&self) -> &Bytes {
        &self.prefix
    }

    /// Whether it is the whole key space, so that nothing needs rewriting.
    pub fn is_whole(&self) -> bool {
        self.prefix.is_empty()
    }

    /// The cluster's key for a client's key.
    pub fn add_prefix(&self, key: &[u8]) -> Key {
        let mut out = BytesMut::with_capacity(self.prefix.len() + key.len());
        out.extend_from_slice(&self.prefix);
        out.extend_from_slice(key);
        out.freeze()
    }

    /// The cluster's `key` and `range_end` for a client's, all within the namespace. "To the end" becomes the end of
    /// the namespace; a range that covers nothing still covers nothing.
    ///
    /// An empty key is taken as it is: whether it is an error or the first key depends on the request.
    pub fn add_prefix_to_range(&self, key: &[u8], range_end: &[u8]) -> (Key, Bytes) {
        if self.is_whole() {
            return (Bytes::copy_from_slice(key), Bytes::copy_from_slice(range_end));
        }
        let end = match range_end {
            b"" => Bytes::new(),
            TO_THE_END => self.end(),
            _ => self.add_prefix(range_end),
        };
        (self.add_prefix(key), end)
    }

    /// The cluster's `key` and `range_end` for a range of the client's keys.
    pub fn upstream_range(&self, range: &KeyRange) -> (Key, Bytes) {
        let (key, range_end) = range.to_wire();
        self.add_prefix_to_range(&key, &range_end)
    }

    /// The cluster's `key` and `range_end` for a watch, where an empty key means the first one.
    pub fn add_prefix_to_watch(&self, key: &[u8], range_end: &[u8]) -> (Key, Bytes) {
        self.add_prefix_to_range(if key.is_empty() { b"\0" } else { key }, range_end)
    }

    /// The client's key for a cluster's key; none when the key lies outside.
    pub fn strip_prefix(&self, key: &Key) -> Option<Key> {
        key.starts_with(&self.prefix).then(|| key.slice(self.prefix.len()..))
    }

    /// Every key of the namespace.
    pub fn range(&self) -> KeyRange {
        KeyRange::prefix(self.prefix.clone())
    }

    /// The `range_end` of the last key. A prefix of 0xff bytes alone has no key behind it.
    fn end(&self) -> Bytes {
        KeyRange::prefix_end(&self.prefix).unwrap_or_else(|| Bytes::from_static(TO_THE_END))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn covers(wire: (Key, Bytes), key: &[u8]) -> bool {
        KeyRange::from_wire(wire.0, wire.1).contains(key)
    }

    #[test]
    fn to_the_end_is_the_end_of_the_namespace() {
        for (prefix, end) in [
            (&b"a/"[..], &b"a0"[..]),
            (b"a\xff", b"b"),
            (b"a\xff\xff", b"b"),
            (b"\xff", b"\0"),
            (b"\xff\xff", b"\0"),
            (b"", b"\0"),
        ] {
            let (key, range_end) = Namespace::new(prefix).add_prefix_to_range(b"k", b"\0");
            assert_eq!((&key[..], &range_end[..]), (&[prefix, b"k"].concat()[..], end), "{prefix:?}");
        }
    }

    #[test]
    fn foreign_keys_are_not_shown() {
        let namespace = Namespace::new("a/");
        assert_eq!(namespace.strip_prefix(&"a/k".into()), Some("k".into()));
        assert_eq!(namespace.strip_prefix(&"a/".into()), Some("".into()));
        assert_eq!(namespace.strip_prefix(&"a".into()), None);
        assert_eq!(namespace.strip_prefix(&"b/k".into()), None);
    }

    /// Short keys over few bytes, so that equal ones and neighbours turn up.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(b'a'), Just(0xfe), Just(0xff)], 0..4)
    }

    proptest! {
        #[test]
        fn stripping_undoes_adding(prefix in key(), inner in key()) {
            let namespace = Namespace::new(prefix);
            prop_assert_eq!(namespace.strip_prefix(&namespace.add_prefix(&inner)), Some(Bytes::from(inner)));
        }

        #[test]
        fn a_range_covers_inside_what_it_covered_and_nothing_else(
            prefix in key(), start in key(), end in key(), probe in key(),
        ) {
            let namespace = Namespace::new(prefix);
            let plain = (Bytes::from(start.clone()), Bytes::from(end.clone()));
            let prefixed = namespace.add_prefix_to_range(&start, &end);
            prop_assert_eq!(covers(prefixed.clone(), &namespace.add_prefix(&probe)), covers(plain, &probe));
            if covers(prefixed, &probe) {
                prop_assert!(namespace.strip_prefix(&probe.into()).is_some(), "a key outside is covered");
            }
        }
    }
}
