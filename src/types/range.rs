use bytes::Bytes;

/// A key as it is stored.
pub type Key = Bytes;

/// The keys one request covers.
///
/// Built where a request enters, so that no inner code needs the wire rule: an empty `range_end` means one key, a
/// single zero byte means "to the end".
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeyRange {
    /// Exactly this key.
    One(Key),
    /// `start <= key < end`; an `end` at or below `start` is legal and covers nothing.
    HalfOpen {
        /// First key covered.
        start: Key,
        /// First key not covered.
        end: Key,
    },
    /// This key and every later one.
    From(Key),
}

impl KeyRange {
    /// Reads the wire form.
    pub fn from_wire(key: Bytes, range_end: Bytes) -> Self {
        match range_end.as_ref() {
            b"" => Self::One(key),
            b"\0" => Self::From(key),
            _ => Self::HalfOpen { start: key, end: range_end },
        }
    }

    /// All keys that begin with `prefix`; an empty prefix covers everything.
    pub fn prefix(prefix: Bytes) -> Self {
        if prefix.is_empty() {
            return Self::From(Bytes::from_static(b"\0"));
        }
        match Self::prefix_end(&prefix) {
            Some(end) => Self::HalfOpen { start: prefix, end },
            None => Self::From(prefix),
        }
    }

    /// First key after every key that begins with `prefix`; none when only 0xff bytes are left.
    pub fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
        let last = prefix.iter().rposition(|&byte| byte != 0xff)?;
        let mut end = prefix[..=last].to_vec();
        end[last] += 1;
        Some(end.into())
    }

    /// The wire form: `key` and `range_end`.
    pub fn to_wire(&self) -> (Bytes, Bytes) {
        match self {
            Self::One(key) => (key.clone(), Bytes::new()),
            Self::HalfOpen { start, end } => (start.clone(), end.clone()),
            Self::From(key) => (key.clone(), Bytes::from_static(b"\0")),
        }
    }

    /// A key as a request can name it: in place of the empty one, which a member refuses, the first that there can be.
    pub fn key_in_request(key: Key) -> Key {
        if key.is_empty() { Key::from_static(b"\0") } else { key }
    }

    /// First key that may be covered.
    pub fn start(&self) -> &Key {
        match self {
            Self::One(key) | Self::From(key) | Self::HalfOpen { start: key, .. } => key,
        }
    }

    /// Whether `key` is covered.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::One(only) => only == key,
            Self::HalfOpen { start, end } => start.as_ref() <= key && key < end.as_ref(),
            Self::From(start) => start.as_ref() <= key,
        }
    }

    /// Whether the range can hold no key at all.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::HalfOpen { start, end } if end <= start)
    }

    /// Whether every key of `inner` is covered.
    pub fn covers(&self, inner: &Self) -> bool {
        if inner.is_empty() {
            return true;
        }
        match (self, inner) {
            (_, Self::One(key)) => self.contains(key),
            (Self::One(_), _) => false,
            (Self::From(start), _) => start <= inner.start(),
            (Self::HalfOpen { .. }, Self::From(_)) => false,
            (Self::HalfOpen { start, end }, Self::HalfOpen { start: from, end: to }) => start <= from && to <= end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::from_wire(key.into(), end.into())
    }

    #[test]
    fn wire_form_round_trips() {
        for (key, end) in [("a", ""), ("a", "\0"), ("a", "b"), ("b", "a")] {
            assert_eq!(range(key, end).to_wire(), (key.into(), end.into()));
        }
    }

    #[test]
    fn a_prefix_of_all_ones_reaches_to_the_end() {
        assert_eq!(
            KeyRange::prefix(Bytes::from_static(b"a\xff")),
            KeyRange::HalfOpen { start: Bytes::from_static(b"a\xff"), end: Bytes::from_static(b"b") }
        );
        assert_eq!(KeyRange::prefix(Bytes::from_static(b"\xff")), KeyRange::From(Bytes::from_static(b"\xff")));
    }

    #[test]
    fn covering_follows_the_bounds() {
        assert!(range("a", "c").covers(&range("b", "")));
        assert!(range("a", "c").covers(&range("a", "c")));
        assert!(!range("a", "c").covers(&range("a", "\0")));
        assert!(range("a", "\0").covers(&range("b", "c")));
        assert!(!range("b", "\0").covers(&range("a", "c")));
        assert!(range("b", "").covers(&range("c", "a")), "an empty range is covered by anything");
    }
}
