use std::ops::Bound;
use std::path::Path;
use std::time::Instant;

use redb::{ReadTransaction, ReadableTable, WriteTransaction};

use super::change::Table;
use super::database::{Durable, Store, beside, remove_unfinished, rows_of, write_totals};
use super::error::{BackendError, Fault};
use super::row;
use super::store::{Backend, DurableView, FileLocation};
use super::totals::{Totals, logical_size, row_cost};
use crate::telemetry::Counted;

/// The result of a defragmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defragmented {
    /// Logical size before.
    pub before_bytes: u64,
    /// Logical size after.
    pub after_bytes: u64,
}

impl Backend {
    /// Copies the rows into a new file and puts it in place of the old one.
    ///
    /// Readers and the write path go on meanwhile: only checkpoints and installations wait, so pending bytes grow. Needs room for a
    /// second copy. A crash leaves the old file or the new one, both complete and equal in content.
    ///
    /// # Errors
    /// [`BackendError::NotDefragmented`] when the disk refuses the copy, with which nothing has changed. Any other error
    /// closes the store for good; see [`BackendError`].
    pub fn defragment(&self) -> Result<Defragmented, BackendError> {
        let inner = self.inner();
        let metrics = inner.metrics.get();
        let _active = metrics.map(|metrics| Counted::new(metrics.defrag_inflight.clone()));
        let began = Instant::now();
        let mut durable = inner.durable.lock();
        let before_bytes = self.size_bytes();
        self.checkpoint_locked(&mut durable)?;
        fail::fail_point!("defragBeforeCopy");
        let contents = inner.contents.load_full();
        let old = contents.store.load_full();
        let location = inner.location.as_ref();
        let copied = copy(&old, location).map_err(|error| not_copied(error, location));
        let (mut new, totals) = inner.latch(copied)?;
        if (totals.rows(), totals.cost()) != (durable.totals.rows(), durable.totals.cost()) {
            let what = format!("{} rows are counted and {} were found", durable.totals.rows(), totals.rows());
            return inner.latch(Err(BackendError::Corrupt { path: old.path.clone(), what }));
        }
        if let Some(location) = location {
            inner.latch(new.rename(location.disk.as_ref(), &location.path))?;
        }
        *durable = Durable { position: durable.position, totals };
        *contents.view.lock() = DurableView::of(&durable);
        contents.store.store(new.into());
        if let Some(metrics) = metrics {
            metrics.backend_defrag.observe(began.elapsed().as_secs_f64());
        }
        Ok(Defragmented { before_bytes, after_bytes: self.size_bytes() })
    }
}

/// Gives up the copy if it was the disk that refused it: the store itself was only read.
fn not_copied(error: BackendError, location: Option<&FileLocation>) -> BackendError {
    match (&error, location) {
        (BackendError::Io { path, .. }, Some(location)) if *path == beside(&location.path) => {
            if let Err(error) = remove_unfinished(location.disk.as_ref(), path) {
                tracing::warn!(%error, "what there is of a copy stays until the next defragmentation");
            }
            BackendError::NotDefragmented { source: Box::new(error) }
        }
        _ => error,
    }
}

fn copy(old: &Store, location: Option<&FileLocation>) -> Result<(Store, Totals), BackendError> {
    let new = match location {
        Some(location) => {
            let path = beside(&location.path);
            fail::fail_point!("defragOpenFileError", |text| Err(refused("create", &path, text)));
            remove_unfinished(location.disk.as_ref(), &path)?;
            Store::create(location.disk.as_ref(), &path)?
        }
        None => Store::in_memory()?,
    };
    let totals = old.read("copy", |from| {
        new.write(|to| {
            let mut totals = Totals::default();
            for table in Table::ALL {
                copy_table(table, (&old.path, from), to, &mut totals)?;
            }
            totals.high_water = logical_size(totals.cost());
            write_totals(to, &totals)?;
            Ok(totals)
        })
        .map_err(Fault::Ours)
    })?;
    fail::fail_point!("defragdbFail", |text| Err(refused("write", &new.path, text)));
    Ok((new, totals))
}

/// The error that a failpoint asks for.
#[cfg(feature = "failpoints")]
fn refused(doing: &'static str, path: &Path, text: Option<String>) -> BackendError {
    super::database::io_error(doing, path, std::io::Error::other(text.unwrap_or_default()))
}

/// What cannot be read is a fault of the store, not of the copy.
fn copy_table(
    table: Table,
    (path, from): (&Path, &ReadTransaction),
    to: &WriteTransaction,
    totals: &mut Totals,
) -> Result<(), Fault> {
    let unread = |error: &dyn std::fmt::Display| {
        Fault::Ours(BackendError::Database { doing: "copy", path: path.into(), what: error.to_string() })
    };
    let rows = from.open_table(rows_of(table)).map_err(|error| unread(&error))?;
    let mut copied = to.open_table(rows_of(table))?;
    let mut end = copied.upper_bound_mut(Bound::<&[u8]>::Unbounded)?;
    for entry in rows.iter().map_err(|error| unread(&error))? {
        let (key, stored) = entry.map_err(|error| unread(&error))?;
        let value = row::unseal(table, key.value(), stored.value())?;
        totals.table_mut(table).add(row_cost(key.value().len(), value.len()), row::checksum_of(stored.value()));
        end.insert_before(key.value(), stored.value())?;
    }
    end.close()?;
    Ok(())
}
