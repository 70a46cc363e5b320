use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Builder, Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::change::{LogPosition, Table};
use super::disk::{AnyFile, StateDisk, folder_of};
use super::error::{BackendError, Fault};
use super::overlay::Generation;
use super::row;
use super::totals::{Totals, row_cost};

/// Memory of the database library for pages, half of it for those that are to be written. New rows go behind the last one, history is read
/// rarely, and the system caches the file as well: 32 MiB gained no speed.
const CACHE_BYTES: usize = 2 * 1024 * 1024;
/// Rows that the database library gathers before it fills pages with them. Its buffer grows by doubling: a large one is
/// new memory, cleared by the system, at every checkpoint.
const CURSOR_BYTES: usize = 128 * 1024;
/// Version of the layout described in docs/design/backend.md.
const FORMAT: u32 = 1;
/// Marks at the start of the two kinds of file that may be found.
const REDB_MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
const BBOLT_MAGIC: [u8; 4] = 0xED0C_DAEDu32.to_le_bytes();
/// Beside the buckets of etcd: format and totals.
const OWN: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("watershed");

pub(super) type Rows = TableDefinition<'static, &'static [u8], &'static [u8]>;

pub(super) fn rows_of(table: Table) -> Rows {
    TableDefinition::new(table.name())
}

/// The stored half of the backend: rows with checksums, one commit per checkpoint.
///
/// Every call into the library runs inside [`Store::guard`], which turns a panic over damaged pages into an error.
#[derive(Debug)]
pub(super) struct Store {
    /// None only while the store is dropped.
    db: Option<Database>,
    /// For messages; an in-memory store has a made-up one.
    pub(super) path: PathBuf,
}

/// Position and totals of a store, read when it is opened.
#[derive(Clone, Debug, Default)]
pub(super) struct Durable {
    pub(super) position: LogPosition,
    pub(super) totals: Totals,
}

impl Store {
    /// Opens the file, or makes a new one when there is none.
    pub(super) fn open(disk: &dyn StateDisk, path: &Path) -> Result<(Self, Durable), BackendError> {
        let io = |doing| move |source: std::io::Error| io_error(doing, path, source);
        disk.create_dir(folder_of(path)).map_err(io("create folder of"))?;
        if !disk.exists(path).map_err(io("look for"))? {
            // The file gets its name once it is complete: a crash before leaves nothing that looks like a store.
            let unfinished = beside(path);
            remove_unfinished(disk, &unfinished)?;
            let mut store = Self::create(disk, &unfinished)?;
            store.rename(disk, path)?;
            return Ok((store, Durable::default()));
        }
        // A name that a crash left in no more than the system's memory must stay.
        disk.sync_dir(folder_of(path)).map_err(io("sync folder of"))?;
        let opened = Self::open_existing(disk, path)?;
        // Only the holder of the lock may: it could be the copy that a running process is making.
        remove_unfinished(disk, &beside(path))?;
        Ok(opened)
    }

    /// Opens a file that is complete.
    pub(super) fn open_existing(disk: &dyn StateDisk, path: &Path) -> Result<(Self, Durable), BackendError> {
        let file = disk.open(path).map_err(|error| io_error("open", path, error))?;
        check_kind(path, file.as_ref())?;
        let opened = Self::guard(path, "open", || {
            match Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(AnyFile::new(file)) {
                Ok(db) => Ok(Ok(db)),
                Err(redb::DatabaseError::DatabaseAlreadyOpen) => Ok(Err(BackendError::Locked { path: path.into() })),
                Err(error) => Err(Fault::Redb(error.into())),
            }
        })??;
        let store = Self { db: Some(opened), path: path.into() };
        let durable = store.read_own()?;
        Ok((store, durable))
    }

    /// A new store in a file that must not exist.
    pub(super) fn create(disk: &dyn StateDisk, path: &Path) -> Result<Self, BackendError> {
        let file = disk.create(path).map_err(|error| io_error("create", path, error))?;
        Self::over(AnyFile::new(file), path)?.initialised()
    }

    /// A new store that lives and ends with the process.
    pub(super) fn in_memory() -> Result<Self, BackendError> {
        Self::over(redb::backends::InMemoryBackend::new(), Path::new("(memory)"))?.initialised()
    }

    fn over(storage: impl redb::StorageBackend, path: &Path) -> Result<Self, BackendError> {
        let db = Self::guard(path, "create", || {
            let mut builder = Builder::new();
            builder.set_cache_size(CACHE_BYTES);
            builder.create_with_backend(storage).map_err(|error| Fault::Redb(error.into()))
        })?;
        Ok(Self { db: Some(db), path: path.into() })
    }

    pub(super) fn db(&self) -> &Database {
        self.db.as_ref().expect("only drop takes it")
    }

    /// Writes the format and makes every table, so that readers need not ask which ones exist.
    fn initialised(self) -> Result<Self, BackendError> {
        self.write(|txn| {
            for table in Table::ALL {
                txn.open_table(rows_of(table))?;
            }
            let mut own = txn.open_table(OWN)?;
            own.insert(b"format".as_slice(), FORMAT.to_le_bytes().as_slice())?;
            own.insert(b"totals".as_slice(), row::seal_own(&Totals::default().encode()).as_slice())?;
            Ok(())
        })?;
        Ok(self)
    }

    /// Gives the finished file its name, durably.
    pub(super) fn rename(&mut self, disk: &dyn StateDisk, path: &Path) -> Result<(), BackendError> {
        disk.rename(&self.path, path).map_err(|error| io_error("rename", path, error))?;
        let folder = folder_of(path);
        disk.sync_dir(folder).map_err(|error| io_error("sync", folder, error))?;
        self.path = path.into();
        Ok(())
    }

    pub(super) fn read_own(&self) -> Result<Durable, BackendError> {
        let (format, durable) = self.read("read", |txn| {
            let own = match txn.open_table(OWN) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok((0, Durable::default())),
                other => other?,
            };
            let format = own.get(b"format".as_slice())?;
            let format = format.and_then(|value| value.value().try_into().ok().map(u32::from_le_bytes));
            let format = format.ok_or_else(|| Fault::Corrupt("storage format is missing".into()))?;
            if format != FORMAT {
                return Ok((format, Durable::default()));
            }
            let stored = own.get(b"totals".as_slice())?;
            let totals = stored.and_then(|value| row::unseal_own(value.value()).and_then(Totals::decode));
            let totals = totals.ok_or_else(|| Fault::Corrupt("totals do not match their checksum".into()))?;
            let meta = txn.open_table(rows_of(Table::Meta))?;
            let number = |key: &'static str| -> Result<u64, Fault> {
                let Some(stored) = meta.get(key.as_bytes())? else { return Ok(0) };
                let value = row::unseal(Table::Meta, key.as_bytes(), stored.value())?;
                let value = value.try_into().map_err(|_| Fault::Corrupt(format!("{key} is not 8 bytes long")))?;
                Ok(u64::from_be_bytes(value))
            };
            let position = LogPosition {
                index: crate::types::LogIndex(number(CONSISTENT_INDEX)?),
                term: crate::types::Term(number(TERM)?),
            };
            Ok((format, Durable { position, totals }))
        })?;
        match format {
            FORMAT => Ok(durable),
            0 => Err(BackendError::Foreign { path: self.path.clone() }),
            found => Err(BackendError::Newer { path: self.path.clone(), found, known: FORMAT }),
        }
    }

    /// Writes one generation and its position in one durable commit; answers with the totals after it.
    pub(super) fn apply(&self, part: &Generation, mut totals: Totals) -> Result<Totals, BackendError> {
        self.write(|txn| {
            let mut sealed = Vec::with_capacity(4096);
            for table in Table::ALL {
                let changes = part.table(table);
                if changes.is_empty() && table != Table::Meta {
                    continue;
                }
                let mut stored = TableWriter { txn, table, totals: &mut totals, sealed: &mut sealed };
                stored.write(changes)?;
                if table == Table::Meta && part.position != LogPosition::default() {
                    stored.put(CONSISTENT_INDEX.as_bytes(), &part.position.index.0.to_be_bytes())?;
                    stored.put(TERM.as_bytes(), &part.position.term.0.to_be_bytes())?;
                }
            }
            totals.high_water = totals.high_water.max(super::totals::logical_size(totals.cost()));
            write_totals(txn, &totals)?;
            Ok(totals)
        })
    }

    /// Runs one durable write transaction.
    ///
    /// Two phases: the pages are synced before the mark that makes them current is written, so that no order in
    /// which a dying disk stores them can mix two states.
    pub(super) fn write<T>(&self, body: impl FnOnce(&WriteTransaction) -> Result<T, Fault>) -> Result<T, BackendError> {
        Self::guard(&self.path, "write", || {
            let mut txn = self.db().begin_write()?;
            txn.set_durability(redb::Durability::Immediate)?;
            txn.set_two_phase_commit(true);
            let result = body(&txn)?;
            fail::fail_point!("beforeCommit");
            txn.commit()?;
            fail::fail_point!("afterCommit");
            Ok(result)
        })
    }

    pub(super) fn read<T>(
        &self,
        doing: &'static str,
        body: impl FnOnce(&ReadTransaction) -> Result<T, Fault>,
    ) -> Result<T, BackendError> {
        Self::guard(&self.path, doing, || body(&self.db().begin_read()?))
    }

    pub(super) fn guarded<T>(
        &self,
        doing: &'static str,
        body: impl FnOnce() -> Result<T, Fault>,
    ) -> Result<T, BackendError> {
        Self::guard(&self.path, doing, body)
    }

    fn guard<T>(path: &Path, doing: &'static str, body: impl FnOnce() -> Result<T, Fault>) -> Result<T, BackendError> {
        // Nothing of ours is left half-changed by an unwind: the caller closes the store on any error.
        match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Fault::Ours(error))) => Err(error),
            Ok(Err(Fault::Corrupt(what))) => Err(BackendError::Corrupt { path: path.into(), what }),
            Ok(Err(Fault::Redb(redb::Error::Corrupted(what)))) => {
                Err(BackendError::Corrupt { path: path.into(), what })
            }
            Ok(Err(Fault::Redb(redb::Error::Io(source)))) => Err(io_error(doing, path, source)),
            Ok(Err(Fault::Redb(other))) => {
                Err(BackendError::Database { doing, path: path.into(), what: other.to_string() })
            }
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                Err(BackendError::Corrupt { path: path.into(), what: format!("the database library panicked: {text}") })
            }
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Closing writes to the file, and reads pages that may be damaged.
        let db = self.db.take();
        if catch_unwind(AssertUnwindSafe(|| drop(db))).is_err() {
            tracing::error!(path = ?self.path, "the database library panicked while it closed the store");
        }
    }
}

/// Row names of the position, as in etcd.
pub(super) const CONSISTENT_INDEX: &str = "consistent_index";
pub(super) const TERM: &str = "term";

pub(super) fn write_totals(txn: &WriteTransaction, totals: &Totals) -> Result<(), Fault> {
    let mut own = txn.open_table(OWN)?;
    own.insert(b"totals".as_slice(), row::seal_own(&totals.encode()).as_slice())?;
    Ok(())
}

/// Writes rows of one table and keeps its totals.
struct TableWriter<'a> {
    txn: &'a WriteTransaction,
    table: Table,
    totals: &'a mut Totals,
    sealed: &'a mut Vec<u8>,
}

impl TableWriter<'_> {
    /// Writes changes in key order. Those behind the last stored row go through a cursor, which fills whole pages
    /// instead of searching for each row: new records are nearly all of the work.
    fn write(&mut self, changes: &std::collections::BTreeMap<bytes::Bytes, Option<bytes::Bytes>>) -> Result<(), Fault> {
        let mut rows = self.txn.open_table(rows_of(self.table))?;
        let last = rows.last()?.map(|(key, _)| key.value().to_vec());
        let (upto, behind) = match last.as_deref() {
            Some(last) => (Bound::Included(last), Bound::Excluded(last)),
            None => (Bound::Excluded(b"".as_slice()), Bound::Unbounded),
        };
        for (key, value) in changes.range::<[u8], _>((Bound::Unbounded, upto)) {
            let old = match value {
                Some(value) => {
                    let checksum = row::seal(self.table, key, value, self.sealed);
                    self.totals.table_mut(self.table).add(row_cost(key.len(), value.len()), checksum);
                    rows.insert(key.as_ref(), self.sealed.as_slice())?
                }
                None => rows.remove(key.as_ref())?,
            };
            if let Some(old) = old {
                forget(self.totals, self.table, key, old.value())?;
            }
        }
        // A deletion here is of a row that never reached the disk.
        let new = changes.range::<[u8], _>((behind, Bound::Unbounded));
        let mut new = new.filter_map(|(key, value)| value.as_ref().map(|value| (key, value))).peekable();
        while new.peek().is_some() {
            let mut end = rows.upper_bound_mut(Bound::<&[u8]>::Unbounded)?;
            let mut bytes = 0;
            while bytes < CURSOR_BYTES
                && let Some((key, value)) = new.next()
            {
                let checksum = row::seal(self.table, key, value, self.sealed);
                self.totals.table_mut(self.table).add(row_cost(key.len(), value.len()), checksum);
                end.insert_before(key.as_ref(), self.sealed.as_slice())?;
                bytes += key.len() + self.sealed.len();
            }
            end.close()?;
        }
        Ok(())
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let mut rows = self.txn.open_table(rows_of(self.table))?;
        let checksum = row::seal(self.table, key, value, self.sealed);
        self.totals.table_mut(self.table).add(row_cost(key.len(), value.len()), checksum);
        if let Some(old) = rows.insert(key, self.sealed.as_slice())? {
            forget(self.totals, self.table, key, old.value())?;
        }
        Ok(())
    }
}

/// Subtracts a row that was replaced or removed from the totals.
fn forget(totals: &mut Totals, table: Table, key: &[u8], stored: &[u8]) -> Result<(), Fault> {
    let value = row::unseal(table, key, stored)?;
    totals.table_mut(table).remove(row_cost(key.len(), value.len()), row::checksum_of(stored));
    Ok(())
}

/// Name of the copy that is being made of a store.
pub(super) fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    path.with_file_name(name)
}

/// Removes a copy of the store that was not finished, or is of no use any more, if it is there.
pub(super) fn remove_unfinished(disk: &dyn StateDisk, path: &Path) -> Result<(), BackendError> {
    match disk.remove(path) {
        Ok(()) => tracing::info!(?path, "removed a copy of the store"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error("remove", path, error)),
    }
    Ok(())
}

pub(super) fn io_error(doing: &'static str, path: &Path, source: std::io::Error) -> BackendError {
    BackendError::Io { doing, path: path.into(), source: Arc::new(source) }
}

/// Tells apart our file, one of etcd's, and anything else before the library touches it.
/// What a file that may hold a state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateFileKind {
    /// A store of this program.
    Own,
    /// A database of etcd's, or a db snapshot.
    Bbolt,
    /// Neither.
    Other,
}

impl StateFileKind {
    /// Decides by the first 64 bytes, or all there are.
    pub fn of(head: &[u8]) -> Self {
        if head.starts_with(REDB_MAGIC) {
            Self::Own
        } else if head.get(16..20) == Some(BBOLT_MAGIC.as_slice()) {
            Self::Bbolt
        } else {
            Self::Other
        }
    }
}

fn check_kind(path: &Path, file: &dyn redb::StorageBackend) -> Result<(), BackendError> {
    let io = |error| io_error("read", path, error);
    let mut head = vec![0; file.len().map_err(io)?.min(64) as usize];
    file.read(0, &mut head).map_err(io)?;
    match StateFileKind::of(&head) {
        StateFileKind::Own => Ok(()),
        StateFileKind::Bbolt => Err(BackendError::Bbolt { path: path.into() }),
        StateFileKind::Other => Err(BackendError::Foreign { path: path.into() }),
    }
}
