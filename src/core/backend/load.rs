use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;

use super::change::{LogPosition, Table};
use super::database::{CONSISTENT_INDEX, Durable, Fault, Store, TERM, beside, rows_of, write_totals};
use super::error::BackendError;
use super::overlay::Overlay;
use super::row;
use super::store::{Backend, DurableView};
use super::totals::{Totals, logical_size, row_cost};
use crate::bolt::{BoltError, BoltImage};
use crate::types::RecordId;

impl Backend {
    /// Replaces the whole state by that of an image, as of a log position, durably and at once.
    ///
    /// For a snapshot that a leader sent, and for a restore into a new directory. What is pending is dropped. A read
    /// that is under way may meet parts of both states, so that the caller lets none run, and whoever keeps an index
    /// of the state builds it anew. A crash leaves one of the two.
    ///
    /// # Errors
    /// [`BackendError::Image`] when the image is damaged or not one of etcd's, which leaves the old state in place;
    /// any other error closes the store for good.
    pub fn load_image(&self, image: &BoltImage, position: LogPosition) -> Result<(), BackendError> {
        let inner = self.inner();
        inner.usable()?;
        let mut durable = inner.durable.lock();
        let filled = fill(inner.path.as_deref(), image, position);
        let (new, totals) = match filled {
            Err(error) if !error.is_fatal() => {
                // An unfinished copy does no harm: the next one, or the next start, removes it.
                return Err(error);
            }
            other => inner.latch(other)?,
        };
        {
            // Under the lock of the overlay: a read that begins now sees no old change above the new rows.
            let mut overlay = inner.overlay.lock();
            *overlay = Overlay::starting_at(position);
            inner.store.store(new.into());
        }
        *durable = Durable { position, totals };
        *inner.view.lock() = DurableView::of(&durable);
        inner.commits.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
        Ok(())
    }
}

fn fill(
    path: Option<&std::path::Path>,
    image: &BoltImage,
    position: LogPosition,
) -> Result<(Store, Totals), BackendError> {
    let mut new = match path {
        Some(path) => {
            super::database::remove_unfinished(path)?;
            Store::create(&beside(path))?
        }
        None => Store::over(redb::backends::InMemoryBackend::new())?.prepare()?,
    };
    let totals = new.write(|txn| {
        let mut totals = Totals::default();
        for name in image.bucket_names()? {
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
            // The position is ours to say; its rows are put where they sort.
            let mut own = match table {
                Table::Meta => vec![
                    (CONSISTENT_INDEX, Bytes::copy_from_slice(&position.index.0.to_be_bytes())),
                    (TERM, Bytes::copy_from_slice(&position.term.0.to_be_bytes())),
                ],
                _ => Vec::new(),
            };
            own.reverse();
            image.bucket(&name, &mut |key, value| {
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
    })?;
    if let Some(path) = path {
        new.install(path)?;
    }
    Ok((new, totals))
}

fn unfit(what: String) -> Fault {
    Fault::Ours(BackendError::Image { what })
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
