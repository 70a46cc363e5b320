use std::ops::Bound;

use bytes::Bytes;

use super::change::Table;
use super::database::rows_of;
use super::error::BackendError;
use super::row;
use super::store::Backend;

/// Rows looked at in one step, at most: a few milliseconds.
const STEP_ROWS: usize = 4096;
/// Bytes after which a step ends early.
const STEP_BYTES: usize = 1024 * 1024;

/// How far a walk over all stored rows has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubCursor {
    /// Place in [`Table::ALL`].
    table: usize,
    /// Next row of that table; none for the first one.
    next: Option<Bytes>,
}

impl Backend {
    /// Compares some stored rows with their checksums; answers where to go on, or with none when all tables are done.
    ///
    /// Rows are checked whenever they are read, and some are not read for a long time: damage to them would show when
    /// it is too late to fetch them from another member.
    ///
    /// # Errors
    /// [`BackendError::Corrupt`] names the row; any error closes the store for good.
    pub fn scrub_step(&self, cursor: ScrubCursor) -> Result<Option<ScrubCursor>, BackendError> {
        let inner = self.inner();
        inner.usable()?;
        let Some(&table) = Table::ALL.get(cursor.table) else { return Ok(None) };
        let from = cursor.next.as_deref().map_or(Bound::Unbounded, Bound::Included);
        let stopped_before = inner.contents.load().store.load().read("scrub", |txn| {
            let rows = txn.open_table(rows_of(table))?;
            let (mut seen, mut seen_bytes) = (0, 0);
            for entry in rows.range::<&[u8]>((from, Bound::Unbounded))? {
                let (key, stored) = entry?;
                if seen == STEP_ROWS || seen_bytes > STEP_BYTES {
                    return Ok(Some(Bytes::copy_from_slice(key.value())));
                }
                row::unseal(table, key.value(), stored.value())?;
                seen += 1;
                seen_bytes += stored.value().len();
            }
            Ok(None)
        });
        let next = match inner.latch(stopped_before)? {
            Some(next) => ScrubCursor { table: cursor.table, next: Some(next) },
            None => ScrubCursor { table: cursor.table + 1, next: None },
        };
        Ok((next.table < Table::ALL.len()).then_some(next))
    }
}
