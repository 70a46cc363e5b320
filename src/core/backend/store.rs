use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;

use super::change::{ChangeSet, LogPosition, Table};
use super::database::{Durable, Store, rows_of};
use super::disk::{FsStateDisk, StateDisk};
use super::error::BackendError;
use super::overlay::Overlay;
use super::row;
use super::totals::{TableTotals, logical_size, row_cost};
use super::wake::CheckpointWake;
use crate::telemetry::DiskMetrics;
use crate::types::{RecordId, Revision};

/// Rows that one step of a scan takes from the overlay and from the database, so that neither its lock nor a read
/// transaction is held while the visitor works.
const SCAN_STEP_ROWS: usize = 1024;
/// Bytes after which a step ends early.
const SCAN_STEP_BYTES: usize = 1024 * 1024;

/// The stored state. Cheap to clone; all clones are one store.
///
/// One owner submits; anyone reads. Reads see everything submitted so far, whether it is durable or not.
#[derive(Clone, Debug)]
pub struct Backend {
    inner: Arc<Inner>,
    /// What reads go to; none for those who follow an installed state.
    pinned: Option<Arc<Contents>>,
}

#[derive(Debug)]
pub(super) struct Inner {
    /// None for a store in memory.
    pub(super) location: Option<FileLocation>,
    /// Replaced as a whole by an installed state.
    pub(super) contents: ArcSwap<Contents>,
    /// Locked through a checkpoint, a defragmentation or an installation; guards position and totals of the file.
    pub(super) durable: Mutex<Durable>,
    /// Wakes the checkpoint thread when much is pending.
    pub(super) wake: CheckpointWake,
    /// The first fatal error; set once.
    pub(super) failed: Failure,
    pub(super) prepared_positions: PreparedPositions,
    /// Set once the member has its metrics.
    pub(super) metrics: OnceLock<DiskMetrics>,
    open_reads: AtomicI64,
}

/// A read transaction that is open; counted.
#[derive(Debug)]
pub(super) struct OpenRead(Arc<Inner>);

impl OpenRead {
    pub(super) fn new(backend: &Backend) -> Self {
        backend.inner.open_reads.fetch_add(1, Ordering::Relaxed);
        Self(backend.inner.clone())
    }
}

impl Drop for OpenRead {
    fn drop(&mut self) {
        self.0.open_reads.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Positions of the prepared db snapshots that are not dropped yet.
pub(super) type PreparedPositions = Arc<Mutex<BTreeSet<LogPosition>>>;

/// The first fatal error; shared by all parts of the store.
#[derive(Clone, Debug, Default)]
pub(super) struct Failure(Arc<OnceLock<String>>);

impl Failure {
    /// Remembers the first fatal error.
    pub(super) fn latch<T>(&self, result: Result<T, BackendError>) -> Result<T, BackendError> {
        if let Err(error) = &result
            && error.is_fatal()
        {
            let _ = self.0.set(error.to_string());
        }
        result
    }
}

/// Where the file is.
#[derive(Clone, Debug)]
pub(super) struct FileLocation {
    pub(super) disk: Arc<dyn StateDisk>,
    pub(super) path: PathBuf,
}

/// One state with its later changes.
#[derive(Debug)]
pub(super) struct Contents {
    /// Replaced as a whole by a defragmentation.
    pub(super) store: ArcSwap<Store>,
    pub(super) overlay: Mutex<Overlay>,
    /// A copy of position and totals, for reads that do not wait for a checkpoint.
    pub(super) view: Mutex<DurableView>,
    /// Goes up before a commit is written and once it is counted in `view`: odd in between. So a scan can tell whether the
    /// rows that it saw are those that are counted.
    pub(super) commits: AtomicU64,
}

impl Contents {
    pub(super) fn new(store: Store, durable: &Durable) -> Self {
        Self {
            store: ArcSwap::from_pointee(store),
            overlay: Mutex::new(Overlay::starting_at(durable.position)),
            view: Mutex::new(DurableView::of(durable)),
            commits: AtomicU64::new(0),
        }
    }

    fn size_in_use_bytes(&self) -> u64 {
        // Locked for both: rows that a checkpoint has just written are counted in one of them, never twice.
        let overlay = self.overlay.lock();
        logical_size(self.view.lock().cost + overlay.written_bytes())
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DurableView {
    pub(super) position: LogPosition,
    pub(super) cost: u64,
    pub(super) high_water: u64,
    pub(super) keys: TableTotals,
}

impl DurableView {
    pub(super) fn of(durable: &Durable) -> Self {
        Self {
            position: durable.position,
            cost: durable.totals.cost(),
            high_water: durable.totals.high_water,
            keys: *durable.totals.table(Table::Key),
        }
    }
}

impl Backend {
    /// Opens the store in this file, or makes a new one.
    ///
    /// After an unclean end the library walks the whole file and checks its page sums, which takes about as long as
    /// reading it. Rows carry their own checksums and are checked whenever they are read.
    ///
    /// # Errors
    /// Names the file: in use by another process, not a store of ours, from a later version, damaged.
    pub fn open(path: &Path) -> Result<Self, BackendError> {
        Self::open_on(Arc::new(FsStateDisk::default()), path)
    }

    /// Opens a store that must exist.
    ///
    /// # Errors
    /// As for [`open`](Self::open); there is no such file.
    pub fn open_existing(path: &Path) -> Result<Self, BackendError> {
        let disk = FsStateDisk::default();
        let (store, durable) = Store::open_existing(&disk, path)?;
        let location = FileLocation { disk: Arc::new(disk), path: path.into() };
        Ok(Self::from_parts(Some(location), store, durable))
    }

    /// As [`open`](Self::open), on any disk.
    ///
    /// # Errors
    /// The same.
    pub fn open_on(disk: Arc<dyn StateDisk>, path: &Path) -> Result<Self, BackendError> {
        let (store, durable) = Store::open(disk.as_ref(), path)?;
        Ok(Self::from_parts(Some(FileLocation { disk, path: path.into() }), store, durable))
    }

    /// A new store that lives and ends with the process.
    ///
    /// # Errors
    /// An error of the database library.
    pub fn in_memory() -> Result<Self, BackendError> {
        Ok(Self::from_parts(None, Store::in_memory()?, Durable::default()))
    }

    fn from_parts(location: Option<FileLocation>, store: Store, durable: Durable) -> Self {
        let inner = Inner {
            location,
            contents: ArcSwap::from_pointee(Contents::new(store, &durable)),
            durable: Mutex::new(durable),
            wake: CheckpointWake::default(),
            failed: Failure::default(),
            prepared_positions: PreparedPositions::default(),
            metrics: OnceLock::new(),
            open_reads: AtomicI64::new(0),
        };
        Self { inner: Arc::new(inner), pinned: None }
    }

    /// Measures commits, snapshots and defragmentations from now on. A second call changes nothing.
    pub fn measure(&self, metrics: DiskMetrics) {
        let _ = self.inner.metrics.set(metrics);
    }

    /// Read transactions that are open on the database.
    pub fn open_reads(&self) -> i64 {
        self.inner.open_reads.load(Ordering::Relaxed)
    }

    /// A handle whose reads stay with the state there is now, and its later changes, when another state is installed.
    ///
    /// For an index of the rows: the rows that it names stay readable. The old state takes memory, and room
    /// on disk, until the last such handle is dropped.
    pub fn pinned(&self) -> Self {
        Self { inner: self.inner.clone(), pinned: Some(self.contents()) }
    }

    fn contents(&self) -> Arc<Contents> {
        self.pinned.clone().unwrap_or_else(|| self.inner.contents.load_full())
    }

    fn with<T>(&self, body: impl FnOnce(&Contents) -> T) -> T {
        match &self.pinned {
            Some(contents) => body(contents),
            None => body(&self.inner.contents.load()),
        }
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// Makes a set visible to readers; a later checkpoint makes it durable. Never waits for the disk.
    ///
    /// Sets arrive in log order from one owner, which also is the one that installs prepared snapshots. Memory grows by [`pending_bytes`](Self::pending_bytes) until the
    /// next checkpoint: the caller slows down when that passes its bound.
    pub fn submit(&self, set: ChangeSet) {
        let contents = self.inner.contents.load();
        let pending = {
            let mut overlay = contents.overlay.lock();
            overlay.submit(set);
            overlay.bytes()
        };
        self.inner.wake.pending(pending);
    }

    /// The encoded key-value stored as this record, a tombstone's too.
    ///
    /// # Errors
    /// A damaged row, or a store that failed before.
    pub fn record(&self, id: RecordId) -> Result<Option<Bytes>, BackendError> {
        let plain = id.to_bytes();
        let mut marked = [b't'; 18];
        marked[..17].copy_from_slice(&plain);
        // The plain form and the marked one are neighbours; only one of them exists.
        let end = RecordId::new(id.main, id.sub.saturating_add(1)).to_bytes();
        self.with(|contents| {
            if let Some((_, value)) = contents.overlay.lock().first_in(Table::Key, &plain, &end) {
                return Ok(value);
            }
            self.inner.usable()?;
            let found = contents.store.load().read("read", |txn| {
                let rows = txn.open_table(rows_of(Table::Key))?;
                for key in [plain.as_slice(), marked.as_slice()] {
                    if let Some(stored) = rows.get(key)? {
                        return Ok(Some(Bytes::copy_from_slice(row::unseal(Table::Key, key, stored.value())?)));
                    }
                }
                Ok(None)
            });
            self.inner.latch(found)
        })
    }

    /// Shows the records from `from` up to and including revision `to`, in order, until the visitor breaks off.
    ///
    /// Everything submitted before the call is seen. What is submitted during it may be.
    ///
    /// # Errors
    /// A damaged row; rows missing or doubled (noticed by a scan over everything); a store that failed before.
    pub fn scan(
        &self,
        from: RecordId,
        to: Revision,
        visit: &mut dyn FnMut(RecordId, bool, &Bytes) -> ControlFlow<()>,
    ) -> Result<(), BackendError> {
        let first = RecordId::new(from.main.max(Revision(0)), from.sub.max(0)).to_bytes();
        let end = (to.0 < i64::MAX).then(|| RecordId::new(to.next(), 0).to_bytes());
        let end = end.as_ref().map_or(Bound::Unbounded, |end| Bound::Excluded(end.as_slice()));
        if matches!(end, Bound::Excluded(end) if end <= first.as_slice()) {
            return Ok(());
        }
        let everything = from <= RecordId::default() && end == Bound::Unbounded;
        let contents = self.contents();
        let mut audit = everything.then(|| Audit::start(&contents));
        let mut cursor = Bound::Included(Bytes::copy_from_slice(&first));
        loop {
            let step = self.step(&contents, Table::Key, cursor.as_ref().map(Bytes::as_ref), end, audit.as_mut())?;
            for (key, value) in &step.rows {
                let Some((id, tombstone)) = RecordId::from_bytes(key) else {
                    let what = format!("record name {} is not one", key.escape_ascii());
                    return self.inner.latch(Err(self.inner.corrupt(what)));
                };
                if visit(id, tombstone, value).is_break() {
                    return Ok(());
                }
            }
            match step.next {
                Some(next) => cursor = next,
                None => break,
            }
        }
        match audit {
            Some(audit) => self.finish_audit(&contents, &audit),
            None => Ok(()),
        }
    }

    /// All rows of a table in key order. Meant for the small tables, and for leases at start.
    ///
    /// # Errors
    /// A damaged row, or a store that failed before.
    pub fn rows(&self, table: Table) -> Result<Vec<(Bytes, Bytes)>, BackendError> {
        let contents = self.contents();
        let mut rows = Vec::new();
        let mut cursor = Bound::Unbounded;
        loop {
            let step = self.step(&contents, table, cursor.as_ref().map(Bytes::as_ref), Bound::Unbounded, None)?;
            rows.extend(step.rows);
            match step.next {
                Some(next) => cursor = next,
                None => return Ok(rows),
            }
        }
    }

    /// Merges one piece of the overlay with the same piece of the database.
    ///
    /// The overlay is looked at first: a row that leaves it meanwhile is found in the database.
    fn step(
        &self,
        contents: &Contents,
        table: Table,
        from: Bound<&[u8]>,
        end: Bound<&[u8]>,
        audit: Option<&mut Audit>,
    ) -> Result<Step, BackendError> {
        self.inner.usable()?;
        let above = contents.overlay.lock().chunk(table, from, end, SCAN_STEP_ROWS);
        let end = above.unknown_from.as_deref().map_or(end, Bound::Excluded);
        let mut seen = TableTotals::default();
        let _open = OpenRead::new(self);
        let below = contents.store.load().read("read", |txn| {
            let rows = txn.open_table(rows_of(table))?;
            let mut taken = Vec::new();
            let mut taken_bytes = 0;
            for entry in rows.range::<&[u8]>((from, end))? {
                let (key, stored) = entry?;
                if taken.len() == SCAN_STEP_ROWS || taken_bytes > SCAN_STEP_BYTES {
                    return Ok((taken, Some(Bytes::copy_from_slice(key.value()))));
                }
                let value = row::unseal(table, key.value(), stored.value())?;
                seen.add(row_cost(key.value().len(), value.len()), row::checksum_of(stored.value()));
                taken_bytes += value.len();
                taken.push((Bytes::copy_from_slice(key.value()), Bytes::copy_from_slice(value)));
            }
            Ok((taken, None))
        });
        let (below, stopped_before) = self.inner.latch(below)?;
        if let Some(audit) = audit {
            audit.seen.rows += seen.rows;
            audit.seen.digest = audit.seen.digest.wrapping_add(seen.digest);
        }
        let next = stopped_before.or(above.unknown_from).map(Bound::Included);
        let mut rows = below;
        if !above.rows.is_empty() {
            let mut merged: BTreeMap<Bytes, Option<Bytes>> =
                rows.into_iter().map(|(key, value)| (key, Some(value))).collect();
            merged.extend(above.rows);
            if let Some(Bound::Included(next)) = &next {
                merged.split_off(next);
            }
            rows = merged.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        }
        Ok(Step { rows, next })
    }

    /// Compares what a whole scan saw with what the commits counted, unless one was written meanwhile.
    fn finish_audit(&self, contents: &Contents, audit: &Audit) -> Result<(), BackendError> {
        let expected = contents.view.lock().keys;
        let is_written = !audit.commits.is_multiple_of(2);
        if is_written || contents.commits.load(Ordering::Acquire) != audit.commits {
            return Ok(());
        }
        if (audit.seen.rows, audit.seen.digest) == (expected.rows, expected.digest) {
            return Ok(());
        }
        let what =
            format!("{} records are counted and {} were found, or their sums differ", expected.rows, audit.seen.rows);
        self.inner.latch(Err(self.inner.corrupt(what)))
    }

    /// Writes everything submitted so far in one durable commit; returns the position it reaches.
    ///
    /// For the checkpoint thread, shutdown and tests: it waits for the disk, and for a checkpoint in progress.
    ///
    /// # Errors
    /// Any error closes the store for good; see [`BackendError`].
    pub fn checkpoint(&self) -> Result<LogPosition, BackendError> {
        let mut durable = self.inner.durable.lock();
        self.checkpoint_locked(&mut durable)?;
        Ok(durable.position)
    }

    pub(super) fn checkpoint_locked(&self, durable: &mut Durable) -> Result<(), BackendError> {
        self.inner.usable()?;
        let contents = self.inner.contents.load_full();
        let Some(part) = contents.overlay.lock().start_writing(durable.position) else {
            return Ok(());
        };
        let began = Instant::now();
        contents.commits.fetch_add(1, Ordering::AcqRel);
        let written = contents.store.load().apply(&part, durable.totals.clone());
        if let Some(metrics) = self.inner.metrics.get() {
            metrics.backend_commit.observe(began.elapsed().as_secs_f64());
        }
        durable.totals = self.inner.latch(written)?;
        durable.position = part.position;
        drop(part);
        let finished = {
            // Sizes are the sum of both. This is the order of these two locks.
            let mut overlay = contents.overlay.lock();
            *contents.view.lock() = DurableView::of(durable);
            overlay.finish_writing()
        };
        contents.commits.fetch_add(1, Ordering::AcqRel);
        // Freed outside the lock: it may be many rows.
        drop(finished);
        Ok(())
    }

    /// Up to where the log is no longer needed to rebuild this state.
    pub fn durable(&self) -> LogPosition {
        self.inner.contents.load().view.lock().position
    }

    /// Memory held by what is submitted and not durable.
    pub fn pending_bytes(&self) -> usize {
        self.inner.contents.load().overlay.lock().bytes()
    }

    /// Logical size: what a quota is held against. Shrinks only by [`defragment`](Self::defragment).
    pub fn size_bytes(&self) -> u64 {
        let contents = self.inner.contents.load();
        let high_water = contents.view.lock().high_water;
        contents.size_in_use_bytes().max(high_water)
    }

    /// Logical size of the rows that exist; shrinks at the checkpoint after a deletion.
    pub fn size_in_use_bytes(&self) -> u64 {
        self.inner.contents.load().size_in_use_bytes()
    }
}

impl Inner {
    /// Refuses after any failure: only the next start reads the file again.
    pub(super) fn usable(&self) -> Result<(), BackendError> {
        match self.failed.0.get() {
            None => Ok(()),
            Some(first) => Err(BackendError::Failed { path: self.name(), first: first.clone() }),
        }
    }

    pub(super) fn latch<T>(&self, result: Result<T, BackendError>) -> Result<T, BackendError> {
        self.failed.latch(result)
    }

    fn name(&self) -> PathBuf {
        self.contents.load().store.load().path.clone()
    }

    fn corrupt(&self, what: String) -> BackendError {
        BackendError::Corrupt { path: self.name(), what }
    }
}

/// A piece of a table, and where the next one begins.
struct Step {
    rows: Vec<(Bytes, Bytes)>,
    next: Option<Bound<Bytes>>,
}

/// Counts the stored rows that a scan over everything meets.
struct Audit {
    commits: u64,
    seen: TableTotals,
}

impl Audit {
    fn start(contents: &Contents) -> Self {
        Self { commits: contents.commits.load(Ordering::Acquire), seen: TableTotals::default() }
    }
}
