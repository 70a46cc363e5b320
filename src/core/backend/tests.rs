use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use redb::StorageBackend;

use super::*;
use crate::types::{LogIndex, RecordId, Revision, Term};

fn at(index: u64) -> LogPosition {
    LogPosition { index: LogIndex(index), term: Term(1) }
}

fn record_key(main: i64, sub: i64, tombstone: bool) -> Bytes {
    let mut key = RecordId::new(Revision(main), sub).to_bytes().to_vec();
    if tombstone {
        key.push(b't');
    }
    key.into()
}

fn put_record(backend: &Backend, main: i64) {
    let value = format!("value {main}");
    let change = Change::put(Table::Key, record_key(main, 0, main % 3 == 0), value);
    backend.submit(ChangeSet { position: at(main as u64), changes: vec![change] });
}

fn scanned(backend: &Backend, from: i64, to: i64) -> Vec<(i64, bool)> {
    let mut seen = Vec::new();
    backend
        .scan(RecordId::new(Revision(from), 0), Revision(to), &mut |id, tombstone, value| {
            assert_eq!(value.as_ref(), format!("value {}", id.main).as_bytes());
            seen.push((id.main.0, tombstone));
            ControlFlow::Continue(())
        })
        .unwrap();
    seen
}

// A commit is in the file before it is counted. A scan over everything that fell in between took the new rows for
// damage, and the member stopped.
#[test]
fn a_scan_between_a_commit_and_its_count_finds_no_damage() {
    let backend = Backend::in_memory().unwrap();
    put_record(&backend, 1);
    backend.checkpoint().unwrap();
    put_record(&backend, 2);
    let contents = backend.inner().contents.load_full();
    let totals = backend.inner().durable.lock().totals.clone();
    let part = contents.overlay.lock().start_writing(at(1)).expect("something to write");
    contents.commits.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
    contents.store.load().apply(&part, totals).unwrap();
    assert_eq!(scanned(&backend, 0, i64::MAX), [(1, false), (2, false)]);
}

#[test]
fn rows_are_visible_before_during_and_after_the_checkpoint() {
    let backend = Backend::in_memory().unwrap();
    for main in 1..=3000 {
        put_record(&backend, main);
        if main == 1500 {
            assert_eq!(backend.checkpoint().unwrap(), at(1500));
        }
    }
    let expected: Vec<_> = (1..=3000).map(|main| (main, main % 3 == 0)).collect();
    assert_eq!(scanned(&backend, 0, i64::MAX), expected);
    assert_eq!(scanned(&backend, 1400, 1600), expected[1399..1600]);
    assert!(scanned(&backend, 10, 9).is_empty());
    for main in [1, 3, 1500, 1501, 3000] {
        let id = RecordId::new(Revision(main), 0);
        assert_eq!(backend.record(id).unwrap(), Some(Bytes::from(format!("value {main}"))));
    }
    assert_eq!(backend.record(RecordId::new(Revision(3001), 0)).unwrap(), None);
    assert_eq!(backend.durable(), at(1500));
    assert_eq!(backend.checkpoint().unwrap(), at(3000));
    assert_eq!(backend.pending_bytes(), 0);
    assert_eq!(scanned(&backend, 0, i64::MAX), expected);
}

#[test]
fn a_deleted_row_is_gone_in_every_state() {
    let backend = Backend::in_memory().unwrap();
    (1..=10).for_each(|main| put_record(&backend, main));
    backend.checkpoint().unwrap();
    let changes =
        vec![Change::delete(Table::Key, record_key(4, 0, false)), Change::delete(Table::Key, record_key(99, 0, false))];
    backend.submit(ChangeSet { position: at(11), changes });
    for _ in 0..2 {
        assert_eq!(backend.record(RecordId::new(Revision(4), 0)).unwrap(), None);
        assert_eq!(scanned(&backend, 0, i64::MAX).len(), 9);
        backend.checkpoint().unwrap();
    }
}

#[test]
fn state_and_position_survive_a_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("member/snap/db");
    let backend = Backend::open(&path).unwrap();
    assert_eq!(backend.durable(), LogPosition::default());
    (1..=100).for_each(|main| put_record(&backend, main));
    backend.submit(ChangeSet { position: at(100), changes: vec![Change::put(Table::Members, "8e9e", "{}")] });
    backend.checkpoint().unwrap();
    let size = (backend.size_bytes(), backend.size_in_use_bytes());
    put_record(&backend, 101);
    drop(backend);
    let backend = Backend::open(&path).unwrap();
    assert_eq!(backend.durable(), at(100));
    assert_eq!(scanned(&backend, 0, i64::MAX).len(), 100, "what no checkpoint held is gone");
    assert_eq!(backend.rows(Table::Members).unwrap(), vec![("8e9e".into(), "{}".into())]);
    assert_eq!((backend.size_bytes(), backend.size_in_use_bytes()), size);
    let meta = backend.rows(Table::Meta).unwrap();
    assert_eq!(meta[0], ("consistent_index".into(), Bytes::copy_from_slice(&100u64.to_be_bytes())));
    assert_eq!(meta[1], ("term".into(), Bytes::copy_from_slice(&1u64.to_be_bytes())));
}

#[test]
fn a_second_opening_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let _first = Backend::open(&path).unwrap();
    assert!(matches!(Backend::open(&path), Err(BackendError::Locked { path: named }) if named == path));
}

#[test]
fn foreign_files_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    std::fs::write(&path, b"not a database").unwrap();
    let error = Backend::open(&path).unwrap_err();
    assert!(matches!(error, BackendError::Foreign { .. }), "{error}");
    assert!(error.to_string().contains("db"));
    let mut bbolt = vec![0; 4096];
    bbolt[16..20].copy_from_slice(&0xED0C_DAEDu32.to_le_bytes());
    std::fs::write(&path, bbolt).unwrap();
    assert!(matches!(Backend::open(&path), Err(BackendError::Bbolt { .. })));
}

#[test]
fn logical_size_follows_etcd() {
    let backend = Backend::in_memory().unwrap();
    assert_eq!((backend.size_bytes(), backend.size_in_use_bytes()), (20_480, 20_480));
    (1..=1000).for_each(|main| put_record(&backend, main));
    backend.checkpoint().unwrap();
    let grown = backend.size_bytes();
    assert!((50_000..90_000).contains(&grown), "{grown}");
    let changes = (1..=1000).map(|main| Change::delete(Table::Key, record_key(main, 0, main % 3 == 0))).collect();
    backend.submit(ChangeSet { position: at(1001), changes });
    backend.checkpoint().unwrap();
    assert_eq!(backend.size_bytes(), grown, "only a defragmentation gives space back");
    assert_eq!(backend.size_in_use_bytes(), 24_576, "the position's two rows");
}

#[test]
fn defragmentation_keeps_the_rows_and_gives_space_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let backend = Backend::open(&path).unwrap();
    (1..=3000).for_each(|main| put_record(&backend, main));
    backend.checkpoint().unwrap();
    let changes = (1..=2990).map(|main| Change::delete(Table::Key, record_key(main, 0, main % 3 == 0))).collect();
    backend.submit(ChangeSet { position: at(3001), changes });
    backend.checkpoint().unwrap();
    let outcome = backend.defragment().unwrap();
    assert!(outcome.after_bytes < outcome.before_bytes / 2, "{outcome:?}");
    assert_eq!(scanned(&backend, 0, i64::MAX).len(), 10);
    put_record(&backend, 3002);
    backend.checkpoint().unwrap();
    drop(backend);
    let backend = Backend::open(&path).unwrap();
    assert_eq!(scanned(&backend, 0, i64::MAX).len(), 11);
    assert_eq!(backend.durable(), at(3002));
}

// Cause: whatever went wrong with the copy closed the store, and with a full disk that is when one defragments.
#[test]
fn a_copy_that_cannot_be_written_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let backend = Backend::open(&path).unwrap();
    put_record(&backend, 1);
    let in_its_place = folder.path().join("db.tmp");
    std::fs::create_dir(&in_its_place).unwrap();
    let error = backend.defragment().unwrap_err();
    assert!(matches!(error, BackendError::NotDefragmented { .. }) && !error.is_fatal(), "{error}");
    put_record(&backend, 2);
    backend.checkpoint().unwrap();
    std::fs::remove_dir(&in_its_place).unwrap();
    backend.defragment().unwrap();
    assert_eq!(scanned(&backend, 0, i64::MAX).len(), 2);
}

/// A disk with room for so many bytes more.
#[derive(Clone, Debug)]
struct SmallDisk {
    disk: FsStateDisk,
    room: Arc<AtomicI64>,
}

#[derive(Debug)]
struct SmallFile {
    file: Box<dyn StorageBackend>,
    room: Arc<AtomicI64>,
}

impl SmallDisk {
    fn file(&self, file: Box<dyn StorageBackend>) -> Box<dyn StorageBackend> {
        Box::new(SmallFile { file, room: self.room.clone() })
    }
}

impl StateDisk for SmallDisk {
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.disk.exists(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        self.disk.create(path).map(|file| self.file(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageBackend>> {
        self.disk.open(path).map(|file| self.file(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
}

impl StorageBackend for SmallFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let length = data.len() as i64;
        if self.room.fetch_sub(length, Ordering::Relaxed) < length {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write(offset, data)
    }
}

// Cause: whatever went wrong with the file of a state that the leader had sent closed the store, so that a full disk ended
// the member.
#[test]
fn a_state_that_finds_no_room_changes_nothing() {
    let (folder, db_snapshot) = saved_db_snapshot(5000);
    let room = Arc::new(AtomicI64::new(i64::MAX));
    let disk = SmallDisk { disk: FsStateDisk::default(), room: room.clone() };
    let backend = Backend::open_on(Arc::new(disk), &folder.path().join("db")).unwrap();
    put_record(&backend, 1);
    for bytes in [0, 20_000, 100_000] {
        room.store(bytes, Ordering::Relaxed);
        let error = backend.prepare(&db_snapshot, at(7)).unwrap_err();
        assert!(matches!(error, BackendError::NotPrepared { .. }) && !error.is_fatal(), "{error}");
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|name| name.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "the db snapshot and the state in use: {names:?}");
    }
    room.store(i64::MAX, Ordering::Relaxed);
    backend.checkpoint().unwrap();
    backend.install(backend.prepare(&db_snapshot, at(7)).unwrap()).unwrap();
    assert_eq!(scanned(&backend, 0, i64::MAX).len(), 5000);
}

#[test]
fn a_db_snapshot_holds_one_state_under_etcds_names() {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::in_memory().unwrap();
    (1..=2000).for_each(|main| put_record(&backend, main));
    let db_snapshot = backend.db_snapshot().unwrap();
    (2001..=2100).for_each(|main| put_record(&backend, main));
    backend.checkpoint().unwrap();
    let mut bytes = Vec::new();
    db_snapshot.write(&mut bytes).unwrap();
    let summary = db_snapshot.summary();
    assert_eq!((summary.position, summary.bytes, summary.rows), (at(2000), bytes.len() as u64, 2002));
    let path = folder.path().join("snapshot.db");
    std::fs::write(&path, bytes).unwrap();
    let db_snapshot = crate::bolt::BoltFile::open(&path).unwrap();
    let mut names: Vec<_> = Table::ALL.into_iter().map(|table| Bytes::from(table.name())).collect();
    names.sort();
    assert_eq!(db_snapshot.bucket_names().unwrap(), names);
    let mut keys = 0;
    db_snapshot
        .bucket(b"key", &mut |key, value| {
            keys += 1;
            assert_eq!(key, record_key(keys, 0, keys % 3 == 0));
            assert_eq!(value, format!("value {keys}").as_bytes());
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(keys, 2000);
}

#[test]
fn a_receiver_that_fails_leaves_the_store_unharmed() {
    let backend = Backend::in_memory().unwrap();
    put_record(&backend, 1);
    let error = backend.write_db_snapshot(&mut [0u8; 100].as_mut_slice()).unwrap_err();
    assert!(matches!(error, BackendError::Output { .. }), "{error}");
    put_record(&backend, 2);
    backend.checkpoint().unwrap();
}

#[test]
fn a_db_snapshot_loads_into_another_store_under_the_position_given() {
    let folder = tempfile::tempdir().unwrap();
    let (db_snapshot_path, path) = (folder.path().join("snapshot.db"), folder.path().join("db"));
    let backend = Backend::in_memory().unwrap();
    (1..=500).for_each(|main| put_record(&backend, main));
    let changes =
        vec![Change::put(Table::Meta, "storageVersion", "3.7.0"), Change::put(Table::Meta, "confState", "{}")];
    backend.submit(ChangeSet { position: at(501), changes });
    backend.write_db_snapshot(&mut std::fs::File::create(&db_snapshot_path).unwrap()).unwrap();
    let db_snapshot = crate::bolt::BoltFile::open(&db_snapshot_path).unwrap();

    let other = Backend::open(&path).unwrap();
    (1..=9).for_each(|main| put_record(&other, main));
    other.checkpoint().unwrap();
    other.submit(ChangeSet { position: at(10), changes: vec![Change::put(Table::Lease, "gone", "")] });
    let old = other.pinned();
    let prepared = other.prepare(&db_snapshot, at(900)).unwrap();
    assert_eq!((prepared.position(), other.durable()), (at(900), at(9)), "nothing else changed");
    put_record(&other, 10);
    other.checkpoint().unwrap();
    other.install(prepared).unwrap();
    assert_eq!(scanned(&old, 0, i64::MAX).len(), 10, "a reader stays with the state it began with");
    assert_eq!(old.rows(Table::Lease).unwrap().len(), 1);
    assert_eq!(other.durable(), at(900));
    assert_eq!(scanned(&other, 0, i64::MAX).len(), 500);
    assert!(other.rows(Table::Lease).unwrap().is_empty());
    drop((old, other));
    let other = Backend::open(&path).unwrap();
    assert_eq!(other.durable(), at(900));
    assert_eq!(scanned(&other, 0, i64::MAX).len(), 500);
    let names: Vec<_> = other.rows(Table::Meta).unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["confState", "consistent_index", "storageVersion", "term"]);

    std::fs::write(&db_snapshot_path, &std::fs::read(&db_snapshot_path).unwrap()[..20_000]).unwrap();
    let db_snapshot = crate::bolt::BoltFile::open(&db_snapshot_path).unwrap();
    let error = other.prepare(&db_snapshot, at(901)).unwrap_err();
    assert!(matches!(error, BackendError::DbSnapshot { .. }), "{error}");
    assert!(matches!(other.prepare(&db_snapshot, at(900)), Err(BackendError::Outdated { .. })));
    assert_eq!(scanned(&other, 0, i64::MAX).len(), 500, "the old state stays");
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|name| name.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "nothing else is left: {names:?}");
}

/// A store with records up to `rows`, its db snapshot, and the folder both are in.
fn saved_db_snapshot(rows: i64) -> (tempfile::TempDir, crate::bolt::BoltFile) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot.db");
    let source = Backend::in_memory().unwrap();
    (1..=rows).for_each(|main| put_record(&source, main));
    source.write_db_snapshot(&mut std::fs::File::create(&path).unwrap()).unwrap();
    (folder, crate::bolt::BoltFile::open(&path).unwrap())
}

#[test]
fn a_start_puts_the_newest_marked_state_in_place_and_removes_the_others() {
    let (folder, db_snapshot) = saved_db_snapshot(20);
    let path = folder.path().join("db");
    for (marked, expected) in [(&[10, 20, 30][..], 30), (&[10, 20], 20), (&[], 3), (&[2], 3)] {
        let _ = std::fs::remove_file(&path);
        let backend = Backend::open(&path).unwrap();
        for position in [2, 10, 20, 30] {
            // Dropping them leaves the files, as a stop between the log's record and the installation does.
            drop(backend.prepare(&db_snapshot, at(position)).unwrap());
        }
        (1..=3).for_each(|main| put_record(&backend, main));
        backend.checkpoint().unwrap();
        std::fs::write(folder.path().join("0000000000000028-0000000000000001.snap.db.tmp"), b"half").unwrap();
        drop(backend);
        let backend = Backend::open(&path).unwrap();
        assert!(backend.has_prepared().unwrap());
        let adopted = backend.adopt(|position| marked.contains(&position.index.0)).unwrap();
        assert_eq!(adopted, (expected > 3).then(|| at(expected)), "{marked:?}");
        assert_eq!(backend.durable(), at(expected));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "the db snapshot and the state");
        assert!(!backend.has_prepared().unwrap());
        drop(backend);
        assert_eq!(Backend::open(&path).unwrap().durable(), at(expected));
    }
}

/// Otherwise the file of the first one would be replaced under it, and its later checkpoints go to a file without a name.
#[test]
fn a_position_is_prepared_once_at_a_time() {
    let (folder, db_snapshot) = saved_db_snapshot(5);
    let backend = Backend::open(&folder.path().join("db")).unwrap();
    let first = backend.prepare(&db_snapshot, at(7)).unwrap();
    assert!(matches!(backend.prepare(&db_snapshot, at(7)), Err(BackendError::AlreadyPrepared { .. })));
    first.discard().unwrap();
    drop(backend.prepare(&db_snapshot, at(7)).unwrap());
    let again = backend.prepare(&db_snapshot, at(7)).unwrap();
    backend.install(again).unwrap();
    assert!(matches!(backend.prepare(&db_snapshot, at(7)), Err(BackendError::Outdated { .. })));
}

#[test]
fn an_older_state_is_never_installed() {
    let (folder, db_snapshot) = saved_db_snapshot(5);
    let backend = Backend::open(&folder.path().join("db")).unwrap();
    let (first, second) =
        (backend.prepare(&db_snapshot, at(7)).unwrap(), backend.prepare(&db_snapshot, at(9)).unwrap());
    let third = backend.prepare(&db_snapshot, at(11)).unwrap();
    backend.install(second).unwrap();
    assert!(matches!(backend.install(first), Err(BackendError::Outdated { .. })));
    (10..=12).for_each(|main| put_record(&backend, main));
    assert!(matches!(backend.install(third), Err(BackendError::Outdated { .. })), "what is pending counts");
    assert_eq!(backend.checkpoint().unwrap(), at(12));
    assert_eq!(scanned(&backend, 0, i64::MAX).len(), 8);
}

/// etcd lost writes when both ran at once (#20271): each put a file in place that the other did not know of.
#[test]
fn defragmentations_checkpoints_and_installations_exclude_each_other() {
    let (folder, db_snapshot) = saved_db_snapshot(300);
    let path = folder.path().join("db");
    let backend = Backend::open(&path).unwrap();
    let running = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while running.load(std::sync::atomic::Ordering::Relaxed) {
                    backend.defragment().unwrap();
                    backend.checkpoint().unwrap();
                }
            });
        }
        for round in 1..=8 {
            let prepared = backend.prepare(&db_snapshot, at(round * 1000)).unwrap();
            backend.install(prepared).unwrap();
            put_record(&backend, round as i64 * 1000 + 1);
            assert_eq!(scanned(&backend, 0, i64::MAX).len(), 301, "round {round}");
        }
        running.store(false, std::sync::atomic::Ordering::Relaxed);
    });
    backend.checkpoint().unwrap();
    drop(backend);
    let backend = Backend::open(&path).unwrap();
    assert_eq!(backend.durable(), at(8001));
    assert_eq!(scanned(&backend, 0, i64::MAX).len(), 301);
}

#[test]
fn a_scrub_looks_at_every_row_in_steps_and_names_the_damaged_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let backend = Backend::open(&path).unwrap();
    (1..=9000).for_each(|main| put_record(&backend, main));
    backend.submit(ChangeSet { position: at(9000), changes: vec![Change::put(Table::AuthRoles, "role", "row of it")] });
    backend.checkpoint().unwrap();
    let mut steps = 0;
    let mut cursor = Some(ScrubCursor::default());
    while let Some(at) = cursor {
        cursor = backend.scrub_step(at).unwrap();
        steps += 1;
    }
    assert_eq!(steps, Table::ALL.len() + 2, "9000 records need three steps");
    drop(backend);
    for (text, step) in [("value 8500", 3), ("row of it", steps)] {
        let good = std::fs::read(&path).unwrap();
        let mut bytes = good.clone();
        // Every copy of the row: an older page may hold one, too.
        for at in 0..bytes.len() - text.len() {
            if bytes[at..].starts_with(text.as_bytes()) {
                bytes[at] ^= 1;
            }
        }
        std::fs::write(&path, bytes).unwrap();
        let backend = Backend::open(&path).unwrap();
        let mut cursor = ScrubCursor::default();
        for _ in 1..step {
            cursor = backend.scrub_step(cursor).unwrap().unwrap();
        }
        let error = backend.scrub_step(cursor).unwrap_err();
        assert!(matches!(error, BackendError::Corrupt { .. }), "{error}");
        assert!(matches!(backend.checkpoint(), Err(BackendError::Failed { .. })));
        drop(backend);
        std::fs::write(&path, good).unwrap();
    }
}

#[test]
fn flipped_bits_in_the_file_are_never_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let backend = Backend::open(&path).unwrap();
    (1..=400).for_each(|main| put_record(&backend, main));
    backend.checkpoint().unwrap();
    let expected = scanned(&backend, 0, i64::MAX);
    drop(backend);
    let good = std::fs::read(&path).unwrap();
    let mut rng = fastrand::Rng::with_seed(5);
    let (mut noticed, mut harmless) = (0, 0);
    for _ in 0..150 {
        let mut bytes = good.clone();
        let used: Vec<usize> =
            (0..bytes.len() / 4096).filter(|page| bytes[page * 4096..][..4096].iter().any(|&b| b != 0)).collect();
        let at = used[rng.usize(..used.len())] * 4096 + rng.usize(..4096);
        bytes[at] ^= 1 << rng.u8(..8);
        std::fs::write(&path, bytes).unwrap();
        let mut seen = Vec::new();
        let read = Backend::open(&path).and_then(|backend| {
            backend.scan(RecordId::default(), Revision(i64::MAX), &mut |id, tombstone, value| {
                assert_eq!(value.as_ref(), format!("value {}", id.main).as_bytes(), "byte {at}");
                seen.push((id.main.0, tombstone));
                ControlFlow::Continue(())
            })
        });
        match read {
            Ok(()) => {
                assert_eq!(seen, expected, "byte {at}: rows are missing or doubled");
                harmless += 1;
            }
            Err(_) => noticed += 1,
        }
    }
    assert!(noticed > 10 && harmless > 10, "{noticed} {harmless}");
}
