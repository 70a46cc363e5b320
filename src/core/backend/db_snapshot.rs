use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use redb::{ReadTransaction, ReadableDatabase, ReadableTable};

use super::change::{LogPosition, Table};
use super::database::{Store, rows_of};
use super::error::{BackendError, Fault};
use super::row;
use super::store::{Backend, OpenRead};
use crate::bolt::{SnapshotPlan, SnapshotRows, Visit};

/// What a db snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DbSnapshotSummary {
    /// Log position of the state.
    pub position: LogPosition,
    /// Size of the db snapshot.
    pub bytes: u64,
    /// Rows in all tables.
    pub rows: u64,
}

/// One state of the store, ready to be written as a db snapshot of etcd's database.
///
/// The state stays readable, and takes room in the file, until this is dropped.
pub struct DbSnapshot {
    backend: Backend,
    rows: TxnRows,
    /// Outlives a defragmentation that puts another file in its place.
    store: Arc<Store>,
    plan: SnapshotPlan,
    position: LogPosition,
    began: Instant,
    _open: OpenRead,
}

impl Drop for DbSnapshot {
    fn drop(&mut self) {
        if let Some(metrics) = self.backend.inner().metrics.get() {
            metrics.backend_snapshot.observe(self.began.elapsed().as_secs_f64());
        }
    }
}

impl Backend {
    /// Takes the state at this moment, which becomes durable first, and measures its db snapshot.
    ///
    /// Reads every row once.
    ///
    /// # Errors
    /// A damaged row; the checkpoint's error; a store that failed before.
    pub fn db_snapshot(&self) -> Result<DbSnapshot, BackendError> {
        let inner = self.inner();
        let began = Instant::now();
        let (store, txn, position) = {
            let mut durable = inner.durable.lock();
            self.checkpoint_locked(&mut durable)?;
            let store = inner.contents.load().store.load_full();
            let txn = inner.latch(store.guarded("read", || Ok(store.db().begin_read()?)))?;
            (store, txn, durable.position)
        };
        let open = OpenRead::new(self);
        let rows = TxnRows { txn };
        let plan = inner.latch(store.guarded("read", || SnapshotPlan::measure(&rows)))?;
        Ok(DbSnapshot { backend: self.clone(), rows, store, plan, position, began, _open: open })
    }

    /// Writes a db snapshot of the state at this moment: a bbolt file with etcd's buckets and rows.
    ///
    /// # Errors
    /// As [`db_snapshot`](Self::db_snapshot) and [`DbSnapshot::write`].
    pub fn write_db_snapshot(&self, out: &mut dyn Write) -> Result<DbSnapshotSummary, BackendError> {
        let db_snapshot = self.db_snapshot()?;
        db_snapshot.write(out)?;
        Ok(db_snapshot.summary())
    }
}

impl DbSnapshot {
    /// What the db snapshot holds, and its size before a byte of it is written.
    pub fn summary(&self) -> DbSnapshotSummary {
        DbSnapshotSummary { position: self.position, bytes: self.plan.size_bytes(), rows: self.plan.rows() }
    }

    /// Writes the db snapshot. May be repeated: the bytes are the same.
    ///
    /// # Errors
    /// [`BackendError::Output`] when the receiver fails, which leaves the store unharmed; a damaged row.
    pub fn write(&self, out: &mut dyn Write) -> Result<(), BackendError> {
        let written = self.store.guarded("read", || self.plan.write(&self.rows, out));
        self.backend.inner().latch(written)
    }
}

impl std::fmt::Debug for DbSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DbSnapshot").field("summary", &self.summary()).finish_non_exhaustive()
    }
}

struct TxnRows {
    txn: ReadTransaction,
}

impl SnapshotRows for TxnRows {
    type Error = Fault;

    fn buckets(&self) -> Vec<&'static str> {
        Table::ALL.into_iter().map(Table::name).collect()
    }

    fn rows(&self, bucket: &str, visit: &mut Visit<'_, Fault>) -> Result<(), Fault> {
        let Some(table) = Table::ALL.into_iter().find(|table| table.name() == bucket) else {
            return Ok(());
        };
        for entry in self.txn.open_table(rows_of(table))?.iter()? {
            let (key, stored) = entry?;
            visit(key.value(), row::unseal(table, key.value(), stored.value())?)?;
        }
        Ok(())
    }
}

impl From<io::Error> for Fault {
    fn from(source: io::Error) -> Self {
        Self::Ours(BackendError::Output { source: source.into() })
    }
}
