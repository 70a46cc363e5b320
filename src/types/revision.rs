use std::fmt;

/// Store-wide order of writes; an empty store is at 1, every write transaction takes the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

impl Revision {
    /// The revision after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One stored change: the revision it belongs to and its place within that revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId {
    /// Revision of the whole transaction.
    pub main: Revision,
    /// Place within the transaction, from 0.
    pub sub: i64,
}

impl RecordId {
    /// Names change number `sub` of revision `main`.
    pub fn new(main: Revision, sub: i64) -> Self {
        Self { main, sub }
    }

    /// The stored form without a tombstone mark: 8 bytes big endian, `_`, 8 bytes big endian.
    pub fn to_bytes(self) -> [u8; 17] {
        let mut bytes = [b'_'; 17];
        bytes[..8].copy_from_slice(&self.main.0.to_be_bytes());
        bytes[9..].copy_from_slice(&self.sub.to_be_bytes());
        bytes
    }

    /// Reads the stored form; the flag tells whether a tombstone mark follows.
    pub fn from_bytes(bytes: &[u8]) -> Option<(Self, bool)> {
        let tombstone = match bytes.len() {
            17 => false,
            18 if bytes[17] == b't' => true,
            _ => return None,
        };
        if bytes[8] != b'_' {
            return None;
        }
        let main = i64::from_be_bytes(bytes[..8].try_into().ok()?);
        let sub = i64::from_be_bytes(bytes[9..17].try_into().ok()?);
        Some((Self::new(Revision(main), sub), tombstone))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_form_round_trips_and_sorts_like_the_number() {
        let small = RecordId::new(Revision(255), 3);
        let large = RecordId::new(Revision(256), 0);
        assert!(small.to_bytes() < large.to_bytes());
        assert_eq!(RecordId::from_bytes(&small.to_bytes()), Some((small, false)));
        let mut marked = large.to_bytes().to_vec();
        marked.push(b't');
        assert_eq!(RecordId::from_bytes(&marked), Some((large, true)));
        assert_eq!(RecordId::from_bytes(b"short"), None);
    }
}
