use std::sync::atomic::Ordering;

use serde::Serialize;

use super::shared::SharedReplica;
use crate::types::KeyRange;

/// A cached range, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(in crate::proxy) struct CachedRange {
    /// Keys as clients see them: a prefix with `*` behind it, or the ends.
    pub range: String,
    /// `live` answers; every other state passes reads on.
    pub state: &'static str,
    /// Memory, as the budget counts it.
    pub bytes: usize,
    /// Keys held.
    pub keys: usize,
    /// Newest revision held; 0 unless it is live.
    pub revision: i64,
    /// Every write that was acknowledged longer ago is there; none unless it is live.
    pub age_ms: Option<u64>,
}

impl CachedRange {
    pub(super) fn of(replica: &SharedReplica) -> Self {
        let snapshot = replica.snapshot();
        Self {
            range: shown(&replica.range),
            state: replica.state().label(),
            bytes: replica.bytes.load(Ordering::Relaxed),
            keys: snapshot.as_ref().map_or(0, |snapshot| snapshot.pairs.len()),
            revision: snapshot.as_ref().map_or(0, |snapshot| snapshot.position.0),
            age_ms: snapshot.map(|snapshot| u64::try_from(snapshot.completeness.age().as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

fn shown(range: &KeyRange) -> String {
    match range {
        KeyRange::One(key) => key.escape_ascii().to_string(),
        KeyRange::From(key) if key.as_ref() == b"\0" => "all keys".to_owned(),
        KeyRange::From(key) => format!("{} and up", key.escape_ascii()),
        KeyRange::HalfOpen { start, .. } if *range == KeyRange::prefix(start.clone()) => {
            format!("{}*", start.escape_ascii())
        }
        KeyRange::HalfOpen { start, end } => format!("{} to {}", start.escape_ascii(), end.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn ranges_are_readable() {
        let range = |key: &'static [u8], end: &'static [u8]| {
            shown(&KeyRange::from_wire(Bytes::from_static(key), Bytes::from_static(end)))
        };
        assert_eq!(range(b"a", b""), "a");
        assert_eq!(range(b"/jobs/", b"/jobs0"), "/jobs/*");
        assert_eq!(range(b"a", b"\0"), "a and up");
        assert_eq!(range(b"\xff", b"\xff\xff"), "\\xff to \\xff\\xff");
        assert_eq!(shown(&KeyRange::prefix(Bytes::new())), "all keys");
    }
}
