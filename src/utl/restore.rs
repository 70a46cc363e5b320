use std::fs;
use std::net::{IpAddr, ToSocketAddrs};
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::db_file::{self, AsBolt};
use super::error::UtlError;
use crate::bolt::BoltFile;
use crate::config::InitialCluster;
use crate::core::backend::{Backend, Change, ChangeSet, FsStateDisk, LogPosition, StateDisk, StateFileKind, Table};
use crate::core::cluster::{ClusterStore, ClusterVersion, Member, STORAGE_VERSION, cluster_id, member_id};
use crate::core::lease::LeaseStore;
use crate::core::mvcc::{Store, compacted_at};
use crate::core::wal::{FsDisk, HardState, Wal, WalDisk, WalError, WalMetadata, WalSnapshot};
use crate::types::{API_VERSION, LogIndex, MemberId, RecordId, Revision, Term};

/// How far `--bump-revision` moves the newest revision; the new one is compacted then, so that clients which watch from
/// an old revision start anew.
pub type RevisionBump = NonZeroU64;

/// What `snapshot restore` is asked for.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// A db snapshot, or a database out of a data directory.
    pub snapshot: PathBuf,
    /// Name of the member.
    pub name: String,
    /// Where its files go; must not exist or be empty.
    pub data_dir: PathBuf,
    /// Where its log goes; in the data directory when there is none. Must not exist.
    pub wal_dir: Option<PathBuf>,
    /// `--initial-cluster`.
    pub initial_cluster: String,
    /// `--initial-cluster-token`.
    pub initial_cluster_token: String,
    /// `--initial-advertise-peer-urls`.
    pub advertised_peer_urls: String,
    /// Takes the file whatever digest it has, or none.
    pub skip_hash_check: bool,
    /// `--bump-revision` with `--mark-compacted`.
    pub bump: Option<RevisionBump>,
    /// How long to wait for whoever has the database open; zero waits for ever.
    pub lock_timeout: Duration,
}

/// Makes the data directory of one member of a new cluster, with the keys, leases, users and alarms of a db snapshot.
///
/// Members and ids are those of `--initial-cluster`. The log begins with a snapshot mark and holds no entry, so that a
/// member which joins later gets the whole state and not entries that do not lead to it. It is written last: a start
/// after an interrupted restore finds a state without a log, and refuses it.
///
/// # Errors
/// Flags that do not fit together, directories in use, a file that is no db snapshot or is damaged. What was written to
/// the data directory is removed again.
pub fn restore(request: &RestoreRequest) -> Result<(), UtlError> {
    let initial = InitialCluster::restored(
        &request.name,
        &request.initial_cluster,
        &request.advertised_peer_urls,
        &request.initial_cluster_token,
    )?;
    initial.check(&resolve)?;
    let cluster = new_cluster(&initial)?;
    // Names of other directories are made of it, so no slash may be at its end.
    let wal_dir: PathBuf = match &request.wal_dir {
        Some(dir) => dir.components().collect(),
        None => request.data_dir.join("member").join("wal"),
    };
    check_dirs(&request.data_dir, &wal_dir)?;
    let snap_dir = request.data_dir.join("member").join("snap");
    let shown = |path: &Path| path.display().to_string();
    let (snapshot, data_dir) = (shown(&request.snapshot), shown(&request.data_dir));
    tracing::info!(
        path = snapshot,
        wal_dir = shown(&wal_dir),
        data_dir,
        snap_dir = shown(&snap_dir),
        "restoring snapshot"
    );
    let kind = db_file::kind_of(&request.snapshot)?;
    if kind == StateFileKind::Other {
        // A saved snapshot that is damaged at its beginning still has the length of one.
        if !request.skip_hash_check
            && let Err(error @ UtlError::Digest { .. }) = db_file::check_digest(&request.snapshot)
        {
            return Err(error);
        }
        return Err(UtlError::Foreign { path: request.snapshot.clone() });
    }
    if !request.skip_hash_check {
        db_file::check_digest(&request.snapshot)?;
    }
    let existed = request.data_dir.exists();
    let restored = write(request, &cluster, &snap_dir, &wal_dir);
    if restored.is_err() {
        remove(&request.data_dir, existed);
    }
    restored?;
    tracing::info!(
        path = snapshot,
        wal_dir = shown(&wal_dir),
        data_dir,
        snap_dir = shown(&snap_dir),
        "restored snapshot"
    );
    Ok(())
}

/// The members that the restored one begins with, and its ids.
struct NewCluster {
    metadata: WalMetadata,
    members: Vec<Member>,
}

impl NewCluster {
    /// Where the log of such a cluster is once each member has been added.
    fn position(&self) -> LogPosition {
        LogPosition { index: LogIndex(self.members.len() as u64), term: Term(1) }
    }
}

fn new_cluster(initial: &InitialCluster) -> Result<NewCluster, UtlError> {
    let member = |(name, urls): (&str, &[String])| Member {
        id: member_id(urls, &initial.token).0,
        name: name.to_owned(),
        peer_urls: urls.to_vec(),
        ..Member::default()
    };
    let mut members: Vec<Member> = initial.members().map(member).collect();
    members.sort_by_key(|member| member.id);
    if let Some(pair) = members.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(UtlError::SameId(pair[0].member_id()));
    }
    let ids: Vec<MemberId> = members.iter().map(Member::member_id).collect();
    let member = member_id(initial.own_urls(), &initial.token);
    Ok(NewCluster { metadata: WalMetadata { member, cluster: cluster_id(&ids) }, members })
}

fn check_dirs(data_dir: &Path, wal_dir: &Path) -> Result<(), UtlError> {
    let free = match fs::read_dir(data_dir) {
        Ok(mut names) => names.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if !free {
        return Err(UtlError::DataDirInUse { path: data_dir.into() });
    }
    match wal_dir.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(_) => Err(UtlError::WalDirExists { path: wal_dir.into() }),
    }
}

/// Takes back what a failed restore has written to a directory that was empty or missing.
fn remove(data_dir: &Path, existed: bool) {
    let removed = if existed { fs::remove_dir_all(data_dir.join("member")) } else { fs::remove_dir_all(data_dir) };
    if let Err(error) = removed
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, data_dir = %data_dir.display(), "what the restore had written could not be removed");
    }
}

fn write(request: &RestoreRequest, cluster: &NewCluster, snap_dir: &Path, wal_dir: &Path) -> Result<(), UtlError> {
    let create = |dir: &Path| FsStateDisk::default().create_dir(dir);
    create(snap_dir).map_err(UtlError::file("mkdir", snap_dir))?;
    let source = AsBolt::of(&request.snapshot, snap_dir, request.lock_timeout)?;
    let file = source.open()?;
    check_version(&file)?;
    let backend = Backend::open(&snap_dir.join("db"))?;
    let position = cluster.position();
    let prepared = backend.prepare(&file, position)?;
    backend.install(prepared)?;
    // Damage in a record shows here, and not at the start of the member.
    let latest = Store::open(backend.clone())?.revision();
    LeaseStore::open(&backend, 1)?;
    let mut changes = members(&backend, cluster)?;
    if let Some(bump) = request.bump {
        changes.extend(bump_revision(latest, bump)?);
    }
    backend.submit(ChangeSet { position, changes });
    backend.checkpoint()?;
    drop(backend);
    let parent = wal_dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create(parent).map_err(UtlError::file("mkdir", parent))?;
    Ok(create_log(wal_dir, cluster)?)
}

/// Refuses the state of a later version.
fn check_version(file: &BoltFile) -> Result<(), UtlError> {
    let mut found = Vec::new();
    for (bucket, row) in [(Table::Meta, b"storageVersion".as_slice()), (Table::Cluster, b"clusterVersion")] {
        file.bucket(bucket.name().as_bytes(), &mut |key, value| {
            if key == row {
                found.push(String::from_utf8_lossy(value).into_owned());
            }
            ControlFlow::Continue(())
        })?;
    }
    let known = ClusterVersion::parse(API_VERSION);
    match found.into_iter().find(|version| ClusterVersion::parse(version) > known) {
        Some(found) => Err(UtlError::Newer { found, known: STORAGE_VERSION }),
        None => Ok(()),
    }
}

/// The members of the new cluster in place of those in the db snapshot.
fn members(backend: &Backend, cluster: &NewCluster) -> Result<Vec<Change>, UtlError> {
    let mut changes = Vec::new();
    for table in [Table::Members, Table::MembersRemoved] {
        changes.extend(backend.rows(table)?.into_iter().map(|(key, _)| Change::delete(table, key)));
    }
    let mut store = ClusterStore::default();
    for member in &cluster.members {
        tracing::info!(
            cluster_id = %cluster.metadata.cluster, added_peer_id = %member.member_id(),
            added_peer_peer_urls = member.peer_urls.join(","), "added member"
        );
        changes.push(store.restore_member(member.clone()));
    }
    changes.push(store.conf_state_row());
    Ok(changes)
}

fn bump_revision(latest: Revision, bump: RevisionBump) -> Result<Vec<Change>, UtlError> {
    let bumped = i64::try_from(bump.get()).ok().and_then(|bump| latest.0.checked_add(bump));
    // The revision after it has to exist, too.
    let bumped = bumped.filter(|bumped| *bumped < i64::MAX);
    let bumped = bumped.ok_or(UtlError::BumpTooLarge { latest: latest.0, bump: bump.get() })?;
    tracing::info!(
        latest_revision = latest.0,
        bump_amount = bump,
        new_latest_revision = bumped,
        "bumping latest revision"
    );
    tracing::info!(revision = bumped, "marking revision compacted");
    let record = RecordId::new(Revision(bumped), 0).to_bytes();
    let row = Change::put(Table::Key, bytes::Bytes::copy_from_slice(&record), bytes::Bytes::new());
    Ok(vec![row, compacted_at(Revision(bumped))])
}

/// A log whose beginning is the restored state.
fn create_log(dir: &Path, cluster: &NewCluster) -> Result<(), WalError> {
    let disk = FsDisk::default();
    let LogPosition { index, term } = cluster.position();
    // It gets its name once it is complete.
    let mut made_as = dir.as_os_str().to_os_string();
    made_as.push(".restored");
    let made_as = PathBuf::from(made_as);
    disk.remove(&made_as).map_err(|source| WalError::io("remove", &made_as, source))?;
    let mut store = ClusterStore::default();
    cluster.members.iter().for_each(|member| drop(store.restore_member(member.clone())));
    let mut wal = Wal::create(disk, &made_as, cluster.metadata)?;
    wal.mark_snapshot(&WalSnapshot { index, term, conf_state: store.conf_state() })?;
    wal.append(&[], Some(&HardState { term, vote: None, commit: index }))?;
    wal.sync()?;
    drop(wal);
    disk.rename(&made_as, dir).map_err(|source| WalError::io("rename", dir, source))?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    disk.sync_dir(parent).map_err(|source| WalError::io("sync", parent, source))
}

fn resolve(host: &str) -> Result<IpAddr, String> {
    let found = (host, 0).to_socket_addrs().map(|mut all| all.next().map(|address| address.ip()));
    match found {
        Ok(Some(address)) => Ok(address),
        Ok(None) => Err(format!("lookup {host}: no address")),
        Err(error) => Err(format!("lookup {host}: {error}")),
    }
}
