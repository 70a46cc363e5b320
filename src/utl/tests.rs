use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use sha2::{Digest, Sha256};

use super::*;
use crate::core::backend::{Backend, Change, ChangeSet, LogPosition, Table};
use crate::core::mvcc::Store;
use crate::core::wal::{FsDisk, Wal};
use crate::pb::leasepb;
use crate::pb::mvccpb::KeyValue;
use crate::types::{ClusterId, LogIndex, MemberId, RecordId, Revision, Term};

const NO_WAIT: Duration = Duration::from_millis(1);

/// A state with history, a tombstone, a lease, a user, an alarm, members and a compaction at revision 3.
fn backend(path: &Path) -> Backend {
    let backend = Backend::open(path).unwrap();
    let row = |main: i64, key: &str, create: i64, version: i64, lease: i64| {
        let kv = KeyValue {
            key: key.to_owned().into(),
            create_revision: create,
            mod_revision: main,
            version,
            value: format!("value {main}").into(),
            lease,
        };
        Change::put(Table::Key, RecordId::new(Revision(main), 0).to_bytes().to_vec(), kv.encode_to_vec())
    };
    let mut tombstone = RecordId::new(Revision(5), 0).to_bytes().to_vec();
    tombstone.push(b't');
    let gone = KeyValue { key: "gone".into(), ..KeyValue::default() };
    let lease = leasepb::Lease { id: 7, ttl: 600, remaining_ttl: 0 };
    let changes = vec![
        row(2, "a", 2, 1, 0),
        row(3, "a", 2, 2, 7),
        row(4, "gone", 4, 1, 0),
        Change::put(Table::Key, tombstone, gone.encode_to_vec()),
        row(6, "b", 6, 1, 0),
        crate::core::mvcc::compacted_at(Revision(3)),
        Change::put(Table::Meta, "storageVersion", "3.7.0"),
        Change::put(Table::Cluster, "clusterVersion", "3.7.0"),
        Change::put(Table::Lease, 7u64.to_be_bytes().to_vec(), lease.encode_to_vec()),
        Change::put(Table::AuthUsers, "root", "not looked at"),
        Change::put(Table::Alarm, "\x08\x07\x10\x01", ""),
        Change::put(Table::Members, "7", r#"{"id":7,"peerURLs":["http://old:2380"]}"#),
        Change::put(Table::MembersRemoved, "9", "removed"),
    ];
    let position = LogPosition { index: LogIndex(5000), term: Term(9) };
    backend.submit(ChangeSet { position, changes });
    backend.checkpoint().unwrap();
    backend
}

/// A db snapshot as it is saved: with its digest.
fn saved(folder: &Path) -> PathBuf {
    let mut bytes = Vec::new();
    backend(&folder.join("source")).write_db_snapshot(&mut bytes).unwrap();
    bytes.extend_from_slice(&Sha256::digest(bytes.clone()));
    let path = folder.join("snapshot.db");
    fs::write(&path, bytes).unwrap();
    path
}

fn request(snapshot: &Path, data_dir: &Path) -> RestoreRequest {
    RestoreRequest {
        snapshot: snapshot.into(),
        name: "infra2".into(),
        data_dir: data_dir.into(),
        wal_dir: None,
        initial_cluster: "infra1=http://127.0.0.1:12380,infra2=http://127.0.0.1:22380,infra3=http://127.0.0.1:32380"
            .into(),
        initial_cluster_token: "etcd-cluster-1".into(),
        advertised_peer_urls: "http://127.0.0.1:22380".into(),
        skip_hash_check: false,
        bump: None,
        lock_timeout: NO_WAIT,
    }
}

fn hashed(path: &Path, revision: i64) -> HashedFile {
    hash_kv(path, Revision(revision), NO_WAIT).unwrap()
}

#[test]
fn a_restored_member_has_the_keys_and_the_new_members() {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = saved(folder.path());
    let data = folder.path().join("data");
    restore(&request(&snapshot, &data)).unwrap();
    let database = data.join("member/snap/db");
    for revision in [0, 4, 6] {
        assert_eq!(hashed(&database, revision), hashed(&snapshot, revision), "at {revision}");
    }
    let source = Backend::open_existing(&folder.path().join("source")).unwrap();
    let restored = Backend::open_existing(&database).unwrap();
    for table in [Table::Lease, Table::AuthUsers, Table::Alarm, Table::Cluster] {
        assert_eq!(restored.rows(table).unwrap(), source.rows(table).unwrap(), "{table:?}");
    }
    assert!(restored.rows(Table::MembersRemoved).unwrap().is_empty());
    let members = restored.rows(Table::Members).unwrap();
    assert_eq!(members[0].0, "8211f1d0f64f3269");
    assert_eq!(members[0].1, r#"{"id":9372538179322589801,"peerURLs":["http://127.0.0.1:12380"],"name":"infra1"}"#);
    assert_eq!(members.len(), 3);
    // Ids and log are those of etcd's own cluster with these flags.
    let position = restored.durable();
    assert_eq!(position, LogPosition { index: LogIndex(3), term: Term(1) });
    let (_, recovered) = Wal::open(FsDisk::default(), &data.join("member/wal"), position).unwrap();
    assert_eq!(recovered.metadata.member, MemberId(0x91bc_3c39_8fb3_c146));
    assert_eq!(recovered.metadata.cluster, ClusterId(0xef37_ad9d_c622_a7c4));
    assert_eq!((recovered.hard_state.term, recovered.hard_state.commit), (Term(1), LogIndex(3)));
    assert_eq!(recovered.snapshots[0].conf_state.voters.len(), 3);
    // A member that joins later must not be sent entries that do not lead to this state.
    assert_eq!((recovered.base, recovered.entries.len()), (position, 0));
}

#[test]
fn a_bumped_revision_is_compacted_and_the_next_write_follows_it() {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = saved(folder.path());
    let data = folder.path().join("data");
    let bump = NonZeroU64::new(1000);
    restore(&RestoreRequest { bump, ..request(&snapshot, &data) }).unwrap();
    let database = data.join("member/snap/db");
    let backend = Backend::open_existing(&database).unwrap();
    let store = Store::open(backend.clone()).unwrap();
    assert_eq!((store.revision(), store.reader().snapshot().compacted()), (Revision(1006), Revision(1006)));
    drop((store, backend));
    // What etcdutl 3.7.1 answers for the same rows restored with the same flags.
    let found = hashed(&database, 0);
    assert_eq!((found.hash_revision, found.compact_revision), (Revision(1006), Revision(1006)));
    // And once more: the newest trace of a bump counts, as the newest version of a key does.
    let mut bytes = Vec::new();
    Backend::open_existing(&database).unwrap().write_db_snapshot(&mut bytes).unwrap();
    let again = folder.path().join("again.db");
    fs::write(&again, bytes).unwrap();
    let data = folder.path().join("data2");
    restore(&RestoreRequest { bump, skip_hash_check: true, ..request(&again, &data) }).unwrap();
    let found = hashed(&data.join("member/snap/db"), 0);
    assert_eq!((found.hash_revision, found.compact_revision), (Revision(2006), Revision(2006)));
    let bump = NonZeroU64::new(i64::MAX as u64 - 6);
    let error = restore(&RestoreRequest { bump, ..request(&snapshot, &folder.path().join("data3")) }).unwrap_err();
    let text = "revision 6 and --bump-revision 9223372036854775801 exceed the largest revision";
    assert_eq!(error.to_string(), text);
}

#[test]
fn a_database_of_ours_restores_when_no_digest_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    let running = backend(&source);
    let data = folder.path().join("data");
    let request = RestoreRequest { skip_hash_check: true, ..request(&source, &data) };
    let error = restore(&request).unwrap_err().to_string();
    assert!(error.ends_with("is in use by another process: stop the member first (waited 1ms)"), "{error}");
    assert!(!data.exists(), "what it had made is gone");
    drop(running);
    restore(&request).unwrap();
    assert_eq!(hashed(&data.join("member/snap/db"), 0), hashed(&source, 0));
    let left: Vec<_> =
        fs::read_dir(data.join("member/snap")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["db"]);
    assert_eq!(status(&source, NO_WAIT).unwrap().revision, Revision(6));
}

#[test]
fn refusals_name_the_file_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let good = saved(folder.path());
    let bytes = fs::read(&good).unwrap();
    let check = |name: &str, content: Option<&[u8]>, change: &dyn Fn(&mut RestoreRequest), expected: &str| {
        let path = at(name);
        if let Some(content) = content {
            fs::write(&path, content).unwrap();
        }
        let data = at(&format!("data of {name}"));
        let mut asked = request(&path, &data);
        change(&mut asked);
        let error = restore(&asked).unwrap_err().to_string();
        let expected = expected.replace("FOLDER", &folder.path().display().to_string());
        assert!(error.contains(&expected), "{name}: {error}\nexpected {expected}");
        assert!(!data.exists(), "{name}");
    };
    let keep = |_: &mut RestoreRequest| {};
    let skip = |asked: &mut RestoreRequest| asked.skip_hash_check = true;
    check("missing", None, &keep, "open FOLDER/missing: no such file or directory");
    fs::create_dir(at("folder")).unwrap();
    check("folder", None, &keep, "read FOLDER/folder: is a directory");
    check("text", Some(b"hello"), &skip, "text is neither a db snapshot nor a database of etcd or watershed");
    check("empty", Some(b""), &keep, "empty is neither a db snapshot");
    check("raw", Some(&bytes[..bytes.len() - 32]), &keep, "snapshot missing hash but --skip-hash-check=false");
    check("short", Some(&bytes[..bytes.len() - 100]), &keep, "snapshot missing hash but --skip-hash-check=false");
    check("cut", Some(&bytes[..bytes.len() - 4096]), &skip, "is truncated");
    let mut flipped = bytes.clone();
    flipped[9000] ^= 1;
    let digest = |bytes: &[u8]| format!("{:?}", bytes).replace(',', "");
    let found = Sha256::digest(&flipped[..flipped.len() - 32]);
    let texts = format!("expected sha256 {}, got {}", digest(&bytes[bytes.len() - 32..]), digest(&found));
    check("flipped", Some(&flipped), &keep, &texts);
    let mut headless = bytes.clone();
    headless[..512].fill(0);
    check("headless", Some(&headless), &keep, "expected sha256 [");
    check("headless", Some(&headless), &skip, "headless is neither a db snapshot");
    let another = |change: fn(&mut RestoreRequest)| {
        move |asked: &mut RestoreRequest| {
            asked.snapshot = asked.snapshot.with_file_name("snapshot.db");
            change(asked);
        }
    };
    check("1", None, &another(|asked| asked.name = "infra4".into()), "couldn't find local name \"infra4\"");
    check(
        "2",
        None,
        &another(|asked| asked.advertised_peer_urls = "http://127.0.0.1:1".into()),
        "--initial-cluster has",
    );
    check("3", None, &another(|asked| asked.initial_cluster = "infra2".into()), "has no name before =");
    check("4", None, &another(|asked| asked.wal_dir = asked.snapshot.parent().map(Path::to_path_buf)), "exists");
    let used = at("used");
    fs::create_dir(&used).unwrap();
    fs::write(used.join("file"), "kept").unwrap();
    let error = restore(&request(&good, &used)).unwrap_err().to_string();
    assert_eq!(error, format!("data-dir {used:?} not empty or could not be read"));
    assert_eq!(fs::read_to_string(used.join("file")).unwrap(), "kept");
}

#[test]
fn a_later_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = backend(&folder.path().join("source"));
    let position = LogPosition { index: LogIndex(5001), term: Term(9) };
    let changes = vec![Change::put(Table::Meta, "storageVersion", "3.8.0")];
    source.submit(ChangeSet { position, changes });
    let mut bytes = Vec::new();
    source.write_db_snapshot(&mut bytes).unwrap();
    let path = folder.path().join("later.db");
    fs::write(&path, bytes).unwrap();
    let asked = RestoreRequest { skip_hash_check: true, ..request(&path, &folder.path().join("data")) };
    let error = restore(&asked).unwrap_err().to_string();
    assert_eq!(error, "the snapshot is of version 3.8.0, this program knows versions up to 3.7.0");
}

#[test]
fn a_data_directory_is_defragmented_and_has_one_storage_version() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let path = data.join("member/snap/db");
    let missing = defragment(&data, NO_WAIT).unwrap_err().to_string();
    assert_eq!(missing, format!("stat {}: no such file or directory", path.display()));
    let running = backend(&path);
    assert!(defragment(&data, NO_WAIT).unwrap_err().to_string().contains("in use by another process"));
    drop(running);
    let before = hashed(&path, 0);
    defragment(&data, NO_WAIT).unwrap();
    assert_eq!(hashed(&path, 0), before);
    migrate(&data, "3.7", NO_WAIT).unwrap();
    let refused = migrate(&data, "3.6", NO_WAIT).unwrap_err().to_string();
    assert!(refused.starts_with(&format!("cannot migrate {} to storage version 3.6", data.display())), "{refused}");
    for (text, expected) in [
        ("3", "wrong target version format, expected \"X.Y\", got \"3\""),
        ("3.7.1", "wrong target version format, expected \"X.Y\", got \"3.7.1\""),
        ("a.b", "failed to parse target version: a.b"),
        ("3.4", "target version \"3.4\" not supported. Minimal \"3.5\""),
    ] {
        assert_eq!(check_target_version(text).unwrap_err(), expected);
    }
    // What etcd's own file begins with.
    let stock = saved(folder.path());
    fs::copy(stock, &path).unwrap();
    let refused = defragment(&data, NO_WAIT).unwrap_err().to_string();
    let expected = "is the data directory of a stock etcd; defragment it with that etcd's own etcdutl";
    assert_eq!(refused, format!("{} {expected}", data.display()));
}

// Cause: with the slash, the directory that is renamed to it was made within it.
#[test]
fn a_log_directory_may_be_named_with_a_slash_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = saved(folder.path());
    let wal_dir = folder.path().join("logs/wal");
    let mut with_slash = wal_dir.clone().into_os_string();
    with_slash.push("/");
    let asked = request(&snapshot, &folder.path().join("data"));
    restore(&RestoreRequest { wal_dir: Some(with_slash.into()), ..asked }).unwrap();
    let position = LogPosition { index: LogIndex(3), term: Term(1) };
    let (_, recovered) = Wal::open(FsDisk::default(), &wal_dir, position).unwrap();
    assert_eq!(recovered.base, position);
    let left: Vec<_> =
        fs::read_dir(wal_dir.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["wal"]);
}

// Cause: bbolt's lock was not looked at, and pages of a running member changed between two looks at them.
#[test]
fn the_database_of_an_etcd_that_runs_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(folder.path());
    let running = fs::File::open(&path).unwrap();
    running.lock().unwrap();
    let data = folder.path().join("data");
    let skip = RestoreRequest { skip_hash_check: true, ..request(&path, &data) };
    let refused = [
        status(&path, NO_WAIT).unwrap_err(),
        hash_kv(&path, Revision(0), NO_WAIT).unwrap_err(),
        restore(&skip).unwrap_err(),
    ];
    for refused in refused.map(|refused| refused.to_string()) {
        let expected = format!("{} is in use by another process: stop the member first (waited 1ms)", path.display());
        assert_eq!(refused, expected);
    }
    assert!(!data.exists());
    running.unlock().unwrap();
    status(&path, NO_WAIT).unwrap();
    restore(&skip).unwrap();
    assert_eq!(hashed(&path, 0), hashed(&data.join("member/snap/db"), 0));
    running.try_lock().expect("no command keeps its lock");
}
