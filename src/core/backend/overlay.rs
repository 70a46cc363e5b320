use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::change::{ChangeSet, LogPosition, Table};

/// Memory of a row in the overlay beside its bytes: two handles and a share of a tree node.
const ROW_OVERHEAD_BYTES: usize = 96;

/// The last change of every row touched since some checkpoint.
#[derive(Debug, Default)]
pub(super) struct Generation {
    rows: [BTreeMap<Bytes, Option<Bytes>>; Table::ALL.len()],
    /// Memory held, roughly.
    pub(super) bytes: usize,
    /// Logical cost of the rows written; deletions show once they are checkpointed.
    pub(super) written_bytes: u64,
    pub(super) position: LogPosition,
}

impl Generation {
    pub(super) fn table(&self, table: Table) -> &BTreeMap<Bytes, Option<Bytes>> {
        &self.rows[table.slot()]
    }

    pub(super) fn insert(&mut self, table: Table, key: Bytes, value: Option<Bytes>) {
        let cost = key.len() + value.as_ref().map_or(0, Bytes::len) + ROW_OVERHEAD_BYTES;
        self.bytes += cost;
        if let Some(value) = &value {
            self.written_bytes += super::totals::row_cost(key.len(), value.len());
        }
        let key_len = key.len();
        if let Some(old) = self.rows[table.slot()].insert(key, value) {
            let old_len = old.as_ref().map(Bytes::len);
            self.bytes -= key_len + old_len.unwrap_or(0) + ROW_OVERHEAD_BYTES;
            if let Some(old_len) = old_len {
                self.written_bytes -= super::totals::row_cost(key_len, old_len);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.rows.iter().all(BTreeMap::is_empty)
    }
}

/// Changes that are visible but not yet durable: those still gathering, and those being written.
///
/// Guarded by one short lock. A reader that finds a row in neither part finds it in the database: a part leaves only
/// after its commit.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    gathering: Generation,
    writing: Option<Arc<Generation>>,
}

impl Overlay {
    pub(super) fn starting_at(position: LogPosition) -> Self {
        Self { gathering: Generation { position, ..Generation::default() }, writing: None }
    }

    pub(super) fn submit(&mut self, set: ChangeSet) {
        for change in set.changes {
            self.gathering.insert(change.table, change.key, change.value);
        }
        self.gathering.position = self.gathering.position.max(set.position);
    }

    /// Closes the gathering part and hands it out for writing; none when there is nothing new.
    ///
    /// Called under the checkpoint lock: the part handed out before has been dropped.
    pub(super) fn start_writing(&mut self, durable: LogPosition) -> Option<Arc<Generation>> {
        debug_assert!(self.writing.is_none());
        if self.gathering.is_empty() && self.gathering.position == durable {
            return None;
        }
        let position = self.gathering.position;
        let closed = std::mem::replace(&mut self.gathering, Generation { position, ..Generation::default() });
        let closed = Arc::new(closed);
        self.writing = Some(closed.clone());
        Some(closed)
    }

    /// Drops the part that is durable now. The caller drops the answer outside the lock.
    pub(super) fn finish_writing(&mut self) -> Option<Arc<Generation>> {
        self.writing.take()
    }

    /// Position of the newest change.
    pub(super) fn position(&self) -> LogPosition {
        self.gathering.position
    }

    pub(super) fn bytes(&self) -> usize {
        self.gathering.bytes + self.writing.as_ref().map_or(0, |part| part.bytes)
    }

    pub(super) fn written_bytes(&self) -> u64 {
        self.gathering.written_bytes + self.writing.as_ref().map_or(0, |part| part.written_bytes)
    }

    /// The first row at or after `from` and before `end`.
    pub(super) fn first_in(&self, table: Table, from: &[u8], end: &[u8]) -> Option<(Bytes, Option<Bytes>)> {
        self.chunk(table, Bound::Included(from), Bound::Excluded(end), 1).rows.pop()
    }

    /// Up to `limit` rows within the bounds, newest change of each.
    pub(super) fn chunk(&self, table: Table, from: Bound<&[u8]>, end: Bound<&[u8]>, limit: usize) -> OverlayChunk {
        let gathering = self.gathering.table(table);
        let mut rows: BTreeMap<Bytes, Option<Bytes>> = BTreeMap::new();
        let mut last_known: Option<Bytes> = None;
        let parts = self.writing.as_deref().map(|part| part.table(table)).into_iter().chain([gathering]);
        for part in parts {
            for (taken, (key, value)) in part.range::<[u8], _>((from, end)).enumerate() {
                if taken == limit {
                    // Beyond the last row taken, this part is unknown.
                    let bound = last_known.take().map_or_else(|| key.clone(), |known| known.min(key.clone()));
                    last_known = Some(bound);
                    break;
                }
                rows.insert(key.clone(), value.clone());
            }
        }
        if let Some(unknown_from) = &last_known {
            rows.split_off(unknown_from);
        }
        OverlayChunk { rows: rows.into_iter().collect(), unknown_from: last_known }
    }
}

/// A piece of the overlay in key order.
#[derive(Debug)]
pub(super) struct OverlayChunk {
    pub(super) rows: Vec<(Bytes, Option<Bytes>)>,
    /// First key of which nothing is known because the limit was met before it; none when the piece is complete.
    pub(super) unknown_from: Option<Bytes>,
}

#[cfg(test)]
mod tests {
    use super::super::change::Change;
    use super::*;
    use crate::types::{LogIndex, Term};

    fn set(index: u64, changes: &[(&'static str, Option<&'static str>)]) -> ChangeSet {
        let changes = changes
            .iter()
            .map(|(key, value)| Change { table: Table::Cluster, key: (*key).into(), value: value.map(Into::into) })
            .collect();
        ChangeSet { position: LogPosition { index: LogIndex(index), term: Term(1) }, changes }
    }

    fn all(overlay: &Overlay, limit: usize) -> (Vec<(Bytes, Option<Bytes>)>, Option<Bytes>) {
        let chunk = overlay.chunk(Table::Cluster, Bound::Unbounded, Bound::Unbounded, limit);
        (chunk.rows, chunk.unknown_from)
    }

    #[test]
    fn the_newest_change_wins_over_the_part_being_written() {
        let mut overlay = Overlay::default();
        overlay.submit(set(1, &[("a", Some("1")), ("b", Some("1"))]));
        overlay.start_writing(LogPosition::default()).unwrap();
        overlay.submit(set(2, &[("a", None), ("c", Some("2"))]));
        let (rows, unknown) = all(&overlay, 10);
        assert_eq!(rows, vec![("a".into(), None), ("b".into(), Some("1".into())), ("c".into(), Some("2".into()))]);
        assert_eq!(unknown, None);
        overlay.finish_writing();
        assert_eq!(all(&overlay, 10).0.len(), 2);
    }

    #[test]
    fn a_limited_chunk_tells_where_knowledge_ends() {
        let mut overlay = Overlay::default();
        overlay.submit(set(1, &[("a", Some("1")), ("c", Some("1")), ("e", Some("1"))]));
        overlay.start_writing(LogPosition::default()).unwrap();
        overlay.submit(set(2, &[("b", Some("2")), ("d", Some("2"))]));
        let (rows, unknown) = all(&overlay, 2);
        assert_eq!(unknown, Some("e".into()));
        assert_eq!(rows.len(), 4);
        let (rows, unknown) = all(&overlay, 1);
        assert_eq!(unknown, Some("c".into()));
        assert_eq!(rows.len(), 2, "a and b");
    }

    #[test]
    fn replacing_a_row_keeps_the_byte_counts_exact() {
        let mut overlay = Overlay::default();
        overlay.submit(set(1, &[("a", Some("12345"))]));
        let once = (overlay.bytes(), overlay.written_bytes());
        overlay.submit(set(2, &[("a", None), ("a", Some("54321"))]));
        assert_eq!((overlay.bytes(), overlay.written_bytes()), once);
    }
}
