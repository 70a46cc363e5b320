use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::change::LogPosition;
use super::database::{Durable, Store, beside, io_error, remove_unfinished};
use super::disk::{StateDisk, folder_of};
use super::error::BackendError;
use super::load::fill;
use super::store::{Backend, Contents, Failure, FileLocation, PreparedPositions};
use super::totals::Totals;
use crate::bolt::BoltFile;
use crate::types::{LogIndex, Term};

/// End of the name of a prepared state; etcd's for a state that a leader sent.
const SUFFIX: &str = ".snap.db";

/// A whole state, durable beside the one in use, that may take its place.
///
/// Dropping it closes the file and leaves it: once the log has a snapshot record of its position, the file is what the
/// next start needs. It is removed when the state in use has got as far, and by [`discard`](Self::discard).
#[derive(Debug)]
pub struct Prepared {
    store: Store,
    durable: Durable,
    location: Option<FileLocation>,
    failed: Failure,
    held: PreparedPosition,
}

/// Keeps a second state of a position from taking the file of the first one away.
#[derive(Debug)]
struct PreparedPosition {
    prepared_positions: PreparedPositions,
    position: LogPosition,
}

impl PreparedPosition {
    fn new(prepared_positions: &PreparedPositions, position: LogPosition) -> Result<Self, BackendError> {
        match prepared_positions.lock().insert(position) {
            true => Ok(Self { prepared_positions: prepared_positions.clone(), position }),
            false => Err(BackendError::AlreadyPrepared { position }),
        }
    }
}

impl Drop for PreparedPosition {
    fn drop(&mut self) {
        self.prepared_positions.lock().remove(&self.position);
    }
}

impl Prepared {
    /// Log position of the state.
    pub fn position(&self) -> LogPosition {
        self.durable.position
    }

    /// Removes the file. Only for a state whose snapshot record was never handed to the log.
    ///
    /// # Errors
    /// The disk refuses; the store is closed for good then.
    pub fn discard(self) -> Result<(), BackendError> {
        let Self { store, location, failed, held, .. } = self;
        let path = store.path.clone();
        drop(store);
        let removed =
            failed.latch(location.map_or(Ok(()), |location| remove_unfinished(location.disk.as_ref(), &path)));
        drop(held);
        removed
    }
}

impl Backend {
    /// Makes the state of a db snapshot durable beside the one in use, as of a log position; nothing else changes.
    ///
    /// Several may exist, one for each position. The order of a replacement is: this, then a snapshot record of the
    /// position synced to the log, then [`install`](Self::install). A crash in between leaves the old state, or a
    /// prepared one that [`adopt`](Self::adopt) puts in place.
    ///
    /// # Errors
    /// [`BackendError::DbSnapshot`] when the db snapshot is damaged or not one of etcd's, [`BackendError::NotPrepared`] when the
    /// disk refuses the new file, [`BackendError::Outdated`] when the state in use is as far already,
    /// [`BackendError::AlreadyPrepared`] while another one of the position is held: all leave everything as it was. Any other
    /// error closes the store for good.
    pub fn prepare(&self, db_snapshot: &BoltFile, position: LogPosition) -> Result<Prepared, BackendError> {
        let inner = self.inner();
        inner.usable()?;
        self.check_ahead(position)?;
        let held = PreparedPosition::new(&inner.prepared_positions, position)?;
        let (store, durable) = inner.latch(prepare(inner.location.as_ref(), db_snapshot, position))?;
        Ok(Prepared { store, durable, location: inner.location.clone(), failed: inner.failed.clone(), held })
    }

    /// Puts a prepared state in place of the one in use, durably. What is pending is dropped.
    ///
    /// The log must hold a synced snapshot record of the position. Waits for a checkpoint or a defragmentation under
    /// way, and they for it. Called by the owner that submits. Reads begun before, and those of
    /// [`pinned`](Self::pinned) handles, stay with the old state.
    ///
    /// # Errors
    /// [`BackendError::Outdated`] when the state in use is as far already, which leaves it in place; any other error
    /// closes the store for good.
    pub fn install(&self, prepared: Prepared) -> Result<(), BackendError> {
        let inner = self.inner();
        let mut durable = inner.durable.lock();
        inner.usable()?;
        self.check_ahead(prepared.position())?;
        let Prepared { mut store, durable: installed, held: _claim, .. } = prepared;
        if let Some(location) = &inner.location {
            inner.latch(store.rename(location.disk.as_ref(), &location.path))?;
            tracing::info!(index = %installed.position.index, term = %installed.position.term, "applied snapshot");
        }
        inner.contents.store(Arc::new(Contents::new(store, &installed)));
        *durable = installed;
        if let Some(location) = &inner.location {
            // Older prepared snapshots are never needed again.
            inner.latch(remove_outdated(location, durable.position.index))?;
        }
        Ok(())
    }

    /// At start, before anything else: installs the newest prepared state for which the log has a snapshot record
    /// (`is_marked`), and removes all others.
    ///
    /// # Errors
    /// A prepared file is damaged, or the disk refuses; the store is closed for good then.
    pub fn adopt(&self, mut is_marked: impl FnMut(LogPosition) -> bool) -> Result<Option<LogPosition>, BackendError> {
        let inner = self.inner();
        let Some(location) = &inner.location else { return Ok(None) };
        let disk = location.disk.as_ref();
        let mut found = inner.latch(prepared_files(location))?;
        found.sort();
        let durable = self.durable();
        let chosen = found.iter().rev().find(|(position, _)| position.index > durable.index && is_marked(*position));
        let chosen = chosen.cloned();
        if let Some((position, path)) = &chosen {
            let (store, durable) = inner.latch(Store::open_existing(disk, path))?;
            if durable.position != *position {
                let what = format!("it holds the state at index {}", durable.position.index);
                return inner.latch(Err(BackendError::Corrupt { path: path.clone(), what }));
            }
            let held = PreparedPosition::new(&inner.prepared_positions, *position)?;
            self.install(Prepared {
                store,
                durable,
                location: Some(location.clone()),
                failed: inner.failed.clone(),
                held,
            })?;
        }
        inner.latch(remove_all(location))?;
        Ok(chosen.map(|(position, _)| position))
    }

    /// Whether a start has to look for snapshot records: there is a prepared state that is ahead of the one in use.
    ///
    /// # Errors
    /// The disk refuses; the store is closed for good then.
    pub fn has_prepared(&self) -> Result<bool, BackendError> {
        let inner = self.inner();
        let Some(location) = &inner.location else { return Ok(false) };
        let found = inner.latch(prepared_files(location))?;
        Ok(found.iter().any(|(position, _)| position.index > self.durable().index))
    }

    fn check_ahead(&self, position: LogPosition) -> Result<(), BackendError> {
        let reached = self.inner().contents.load().overlay.lock().position();
        if position.index > reached.index { Ok(()) } else { Err(BackendError::Outdated { position, reached }) }
    }
}

fn prepare(
    location: Option<&FileLocation>,
    db_snapshot: &BoltFile,
    position: LogPosition,
) -> Result<(Store, Durable), BackendError> {
    let Some(location) = location else {
        let store = Store::in_memory()?;
        let totals = fill(&store, db_snapshot, position)?;
        return Ok((store, Durable { position, totals }));
    };
    let disk = location.disk.as_ref();
    let path = prepared_path(&location.path, position);
    // It gets its name once it is complete, so that a file of that name can be trusted.
    let unfinished = beside(&path);
    let (mut store, totals) =
        fill_file(disk, &unfinished, db_snapshot, position).map_err(|error| not_filled(error, disk, &unfinished))?;
    store.rename(disk, &path)?;
    Ok((store, Durable { position, totals }))
}

fn fill_file(
    disk: &dyn StateDisk,
    path: &Path,
    db_snapshot: &BoltFile,
    position: LogPosition,
) -> Result<(Store, Totals), BackendError> {
    remove_unfinished(disk, path)?;
    let store = Store::create(disk, path)?;
    let totals = fill(&store, db_snapshot, position)?;
    Ok((store, totals))
}

/// Removes what there is of a new file if the db snapshot was at fault, or the disk that refused the file, as without room for
/// it: the state in use was not touched. After any other error nothing more is written.
fn not_filled(error: BackendError, disk: &dyn StateDisk, unfinished: &Path) -> BackendError {
    let refused = matches!(&error, BackendError::Io { path, .. } if path == unfinished);
    if error.is_fatal() && !refused {
        return error;
    }
    if let Err(error) = remove_unfinished(disk, unfinished) {
        tracing::warn!(%error, "what there is of a prepared state stays until the next start");
    }
    if refused { BackendError::NotPrepared { source: Box::new(error) } } else { error }
}

/// Name of a prepared state, beside the one in use: index and term in hex.
fn prepared_path(state: &Path, position: LogPosition) -> PathBuf {
    state.with_file_name(format!("{:016x}-{:016x}{SUFFIX}", position.index.0, position.term.0))
}

fn position_of(name: &str) -> Option<LogPosition> {
    let (index, term) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    let hex = |text: &str| {
        let valid = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if valid { u64::from_str_radix(text, 16).ok() } else { None }
    };
    Some(LogPosition { index: LogIndex(hex(index)?), term: Term(hex(term)?) })
}

fn names(location: &FileLocation) -> Result<Vec<String>, BackendError> {
    let folder = folder_of(&location.path);
    location.disk.list(folder).map_err(|error| io_error("list", folder, error))
}

fn prepared_files(location: &FileLocation) -> Result<Vec<(LogPosition, PathBuf)>, BackendError> {
    let found =
        names(location)?.into_iter().filter_map(|name| Some((position_of(&name)?, location.path.with_file_name(name))));
    Ok(found.collect())
}

fn remove_outdated(location: &FileLocation, upto: LogIndex) -> Result<(), BackendError> {
    let mut found = prepared_files(location)?;
    found.retain(|(position, _)| position.index <= upto);
    found.iter().try_for_each(|(_, path)| remove_unfinished(location.disk.as_ref(), path))
}

/// Removes prepared states, also unfinished ones.
fn remove_all(location: &FileLocation) -> Result<(), BackendError> {
    let names = names(location)?;
    let ours = names.iter().filter(|name| position_of(name.strip_suffix(".tmp").unwrap_or(name)).is_some());
    ours.map(|name| location.path.with_file_name(name))
        .try_for_each(|path| remove_unfinished(location.disk.as_ref(), &path))
}

#[cfg(test)]
impl Backend {
    /// Prepares the state of another store.
    pub(crate) fn prepare_copy(&self, other: &Self, position: LogPosition) -> Prepared {
        let file = tempfile::NamedTempFile::new().unwrap();
        other.write_db_snapshot(&mut file.as_file()).unwrap();
        self.prepare(&BoltFile::open(file.path()).unwrap(), position).unwrap()
    }
}
