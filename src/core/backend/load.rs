use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

use super::change::{LogPosition, Table};
use super::database::{CONSISTENT_INDEX, Store, TERM, rows_of, write_totals};
use super::error::{BackendError, Fault};
use super::row;
use super::totals::{Totals, logical_size, row_cost};
use crate::bolt::{BoltError, BoltFile};
use crate::types::RecordId;

/// Fills a new store from a db snapshot; the caller gives the position.
pub(super) fn fill(new: &Store, db_snapshot: &BoltFile, position: LogPosition) -> Result<Totals, BackendError> {
    new.write(|txn| {
        let mut totals = Totals::default();
        for name in db_snapshot.bucket_names()? {
            let table = Table::ALL.into_iter().find(|table| table.name().as_bytes() == name);
            let table = table.ok_or_else(|| unfit(format!("bucket {} is unknown", name.escape_ascii())))?;
            let mut rows = txn.open_table(rows_of(table))?;
            let mut end = rows.upper_bound_mut(Bound::<&[u8]>::Unbounded)?;
            let mut sealed = Vec::new();
            let mut outcome: Result<(), Fault> = Ok(());
            let mut add = |key: &[u8], value: &[u8]| -> Result<(), Fault> {
                if table == Table::Key && RecordId::from_bytes(key).is_none() {
                    return Err(unfit(format!("record name {} is not one", key.escape_ascii())));
                }
                let checksum = row::seal(table, key, value, &mut sealed);
                totals.table_mut(table).add(row_cost(key.len(), value.len()), checksum);
                Ok(end.insert_before(key, sealed.as_slice())?)
            };
            // The position is the caller's; its rows are inserted in their order.
            let mut own = match table {
                Table::Meta => vec![
                    (CONSISTENT_INDEX, Bytes::copy_from_slice(&position.index.0.to_be_bytes())),
                    (TERM, Bytes::copy_from_slice(&position.term.0.to_be_bytes())),
                ],
                _ => Vec::new(),
            };
            own.reverse();
            db_snapshot.bucket(&name, &mut |key, value| {
                outcome = (|| {
                    while let Some((name, value)) = own.pop_if(|(name, _)| name.as_bytes() <= key) {
                        add(name.as_bytes(), &value)?;
                    }
                    match table {
                        Table::Meta if [CONSISTENT_INDEX.as_bytes(), TERM.as_bytes()].contains(&key) => Ok(()),
                        _ => add(key, value),
                    }
                })();
                if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            outcome?;
            while let Some((name, value)) = own.pop() {
                add(name.as_bytes(), &value)?;
            }
            end.close()?;
        }
        totals.high_water = logical_size(totals.cost());
        write_totals(txn, &totals)?;
        Ok(totals)
    })
}

fn unfit(what: String) -> Fault {
    Fault::Ours(BackendError::DbSnapshot { what })
}

impl From<BoltError> for Fault {
    fn from(error: BoltError) -> Self {
        match error {
            BoltError::Io { path, source } => {
                Self::Ours(BackendError::Io { doing: "read", path, source: Arc::new(source) })
            }
            other => unfit(other.to_string()),
        }
    }
}
