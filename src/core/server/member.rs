use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::runtime::Handle;
use tracing::{info, warn};

use super::auto_compaction::{self, AutoCompactor};
use super::bootstrap::BootstrapError;
use super::error::{Failed, RecoverError};
use super::jwt_files::JwtFileError;
use super::lease_clock::LeaseClock;
use super::lease_expiry::{self, LeaseExpiry};
use super::limits::Limits;
use super::metrics::CoreMetrics;
use super::observer::{MemberObserver, follow_members};
use super::parts::{AuthParts, Foundation, Parts};
use super::password_threads::PasswordThreads;
use super::peer_receiver::{MemberPeers, ReceiverParts};
use super::peer_rpc::PeerRpc;
use super::peer_snapshots::ArrivedSnapshots;
use super::published::Published;
use super::recover::{Disks, Layout, Opened, Opening, open};
use super::renewals::{self, Renewals};
use super::services::ServiceBuilder;
use super::version::{self, ClusterVersionTask};
use super::{bootstrap, gauges, jwt_files, long_answer, publish, wal_compaction};
use crate::config::ServerConfig;
use crate::core::alarm::AlarmStore;
use crate::core::apply::{
    Applier, ApplierConfig, ApplyConfig, ApplyTask, CompactionPace, PreparedSnapshots, SharedPendingRequests,
    open_leases,
};
use crate::core::auth::AuthStore;
use crate::core::backend::{Backend, BackendError, Checkpointer, Table};
use crate::core::cluster::{self, MembershipError};
use crate::core::lease::{LeaseError, Lessor, LessorConfig};
use crate::core::mvcc::{MvccError, Store};
use crate::core::peer::{PeerConfig, PeerDialer, PeerTransport};
use crate::core::raft::{
    LogTail, NodeConfig, RaftError, RaftInbox, RaftNode, RaftTask, TaskConfig, WalObserver, WalWriter,
};
use crate::core::wal::FsDisk;
use crate::core::watch::CoreWatch;
use crate::shutdown::Tasks;
use crate::telemetry::PeerMetrics;
use crate::types::{LogIndex, MemberId};

/// Ticks per election timeout; a heartbeat is one tick.
const HEARTBEAT_TICKS: usize = 1;
/// Entries that may be committed and not applied before proposals are refused.
const BEHIND_MAX: u64 = 5000;
/// Whole log segments kept whatever the state on disk covers, as etcd does.
const SEGMENTS_MIN: usize = 5;
/// Events kept in memory for watchers, in bytes.
const EVENT_LOG_BYTES: usize = 64 * 1024 * 1024;

/// Why a member did not start.
#[allow(missing_docs, reason = "the messages say it")]
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    #[error(transparent)]
    Recover(#[from] RecoverError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error("rebuild the key index")]
    Mvcc(#[from] MvccError),
    #[error("read the leases")]
    Lease(#[from] LeaseError),
    #[error(transparent)]
    Raft(#[from] RaftError),
    #[error(transparent)]
    Jwt(#[from] JwtFileError),
    #[error("start a thread")]
    Thread(#[from] std::io::Error),
    #[error(
        "the member has been permanently removed from the cluster: {0} cannot come back; remove its data directory"
    )]
    Removed(MemberId),
    #[error("{0} found data inconsistency with peers")]
    Inconsistent(MemberId),
}

/// What a member knows of the others before it has applied its log.
struct Neighbours {
    dialer: PeerDialer,
    /// Members of a running cluster, for a member without data.
    known: Vec<cluster::Member>,
}

/// A running member, without its listeners.
pub struct Member {
    parts: Parts,
    watch: CoreWatch,
    raft: RaftTask,
    apply: ApplyTask,
    checkpointer: Checkpointer,
    tasks: Tasks,
}

impl Member {
    /// Opens the files, replays the log and starts every part. [`join`](Self::join) makes it ready to serve.
    ///
    /// # Errors
    /// Names the file or part that is at fault; nothing keeps running.
    pub async fn start(
        config: &ServerConfig,
        dialer: PeerDialer,
        metrics: CoreMetrics,
        peer_metrics: PeerMetrics,
        failed: Failed,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        let layout = Layout::new(&config.data_dir, &config.wal_dir);
        let disks = match config.unsafe_no_fsync {
            true => {
                warn!(
                    "writes are acknowledged before the disk has them (--unsafe-no-fsync): a power loss or a crash of \
                     the system can lose them, or all data"
                );
                Disks::unsynced_files()
            }
            false => Disks::files(),
        };
        layout.check(disks.state.as_ref())?;
        let has_log = layout.has_log(&disks.wal)?;
        let first = match has_log {
            true => None,
            false => Some(bootstrap::plan(config, &dialer).await?),
        };
        let opening = Opening {
            bootstrap: first.as_ref(),
            catch_up_entries: config.snapshot_catchup_entries,
            alone: config.force_new_cluster.then(|| config.initial.own_urls()),
        };
        let opened = open(&disks, &layout, &opening)?;
        if opened.members.learners().count() > config.max_learners {
            return Err(BootstrapError::from(MembershipError::TooManyLearners).into());
        }
        info!(
            member = %opened.metadata.member,
            cluster = %opened.metadata.cluster,
            state_index = %opened.position.index,
            log_entries = opened.recovered.entries.len(),
            "data directory is open"
        );
        if let Some(cut) = &opened.recovered.cut {
            warn!(file = %cut.path.display(), cut.offset, cut.bytes, cut.what, "torn end of the log was cut");
        }
        let tasks = tasks.child();
        // Members of a running cluster, until the log names them.
        let known = match first {
            Some(first) => first.running,
            None if opened.position.index == LogIndex(0) && opened.recovered.entries.is_empty() => {
                bootstrap::others(config, &dialer, &opened.metadata).await
            }
            None => Vec::new(),
        };
        Self::assemble(config, opened, Neighbours { dialer, known }, metrics, peer_metrics, failed, tasks)
    }

    /// Waits until the member has applied what was acknowledged before, and publishes its name and client URLs. Its peer
    /// port must be served by now.
    ///
    /// Without a quorum this waits, as etcd does: a member that may be behind serves no clients.
    ///
    /// # Errors
    /// The member was removed from the cluster, or its state differs from that of the others.
    pub async fn join(&self, config: &ServerConfig) -> Result<(), StartError> {
        self.spawn_keepers(config);
        let joined = async {
            publish::publish(&self.parts, &config.name, &config.advertise_client_urls).await;
            if config.integrity.at_start { self.parts.corruption.check_at_start().await } else { Ok(()) }
        };
        tokio::select! {
            () = self.removed() => Err(StartError::Removed(self.parts.info.member())),
            compared = joined => compared.map_err(StartError::Inconsistent),
        }
    }

    /// Completes when this member was removed from the cluster.
    pub async fn removed(&self) {
        self.parts.published.removed().cancelled().await;
    }

    fn assemble(
        config: &ServerConfig,
        opened: Opened<FsDisk>,
        neighbours: Neighbours,
        metrics: CoreMetrics,
        peer_metrics: PeerMetrics,
        failed: Failed,
        tasks: Tasks,
    ) -> Result<Self, StartError> {
        let Opened { wal, metadata, recovered, log_base, backend, position, members: cluster } = opened;
        let auth_parts = AuthParts {
            tokens: jwt_files::tokens(&config.auth.tokens)?,
            passwords: PasswordThreads::start(config.auth.bcrypt_cost)?,
            certificates: config.tls.client_cert_auth,
            started_at: wal.last_index(),
        };
        backend.measure(metrics.disk.clone());
        if let Some(threshold) = config.bootstrap_defrag_threshold_bytes {
            defragment_above(&backend, threshold)?;
        }
        let store = Store::open(backend.clone())?;
        let reader = store.reader();

        let conf_state = cluster.conf_state();
        let alarms = AlarmStore::open(&backend.rows(Table::Alarm)?);
        let auth = AuthStore::open(&backend)?;
        let limits = Limits::from(config);
        let leases = Arc::new(RwLock::new(open_leases(&backend, &store, limits.lease_ttl_min)?));
        let published = Arc::new(Published::new(metadata.member, &cluster, &alarms));
        published.set_auth(auth.state().clone());
        let lessor = Lessor::new(LessorConfig::default(), leases.read().all());
        let clock = Arc::new(LeaseClock::new(leases.clone(), lessor));
        let applier_config = ApplierConfig { quota_bytes: limits.quota_bytes };
        let applier = Applier::new(store, leases, cluster, alarms, auth, backend.clone(), applier_config);

        let pending = Arc::new(SharedPendingRequests::default());
        let (queue, apply_handle, inlet) = ApplyTask::channel(pending.clone(), position.index);
        let inbox = RaftInbox::new();
        let observer =
            WalObserver { persisted: inbox.persisted(), failed: failed.clone(), metrics: metrics.disk.clone() };
        let log = LogTail::new(log_base, recovered.entries, &recovered.hard_state, &conf_state);
        let node = RaftNode::new(&node_config(config, metadata.member, position.index), log)?;
        let writer = WalWriter::start(wal, SEGMENTS_MIN, observer)?;
        let prepared_snapshots = Arc::new(PreparedSnapshots::default());
        let (receiver, slot) = MemberPeers::new(snapshot_room(config), failed.clone(), tasks.clone());
        let peer_config = PeerConfig {
            dialer: neighbours.dialer,
            syncs_db_snapshots: !config.unsafe_no_fsync,
            ..PeerConfig::new(metadata.cluster, metadata.member)
        };
        let peers = PeerTransport::start(peer_config, Arc::new(receiver), peer_metrics, &tasks)?;
        let raft_failed = failed.clone();
        let tick = config.heartbeat_interval;
        let raft_config =
            TaskConfig { tick, behind_max: BEHIND_MAX, sink: queue, peers: peers.sink(), failed: raft_failed };
        let raft = RaftTask::start(node, writer, inbox, raft_config)?;
        raft.handle().set_applied(position.index);

        let (renewals, renewals_inlet) = Renewals::channel();
        let parts = Parts::new(Foundation {
            member: metadata.member,
            cluster: metadata.cluster,
            limits,
            raft: raft.handle(),
            apply: apply_handle,
            store: reader,
            backend: backend.clone(),
            peers,
            pending,
            published,
            clock,
            renewals,
            auth: auth_parts,
            metrics,
            failed: failed.clone(),
        });
        tasks.spawn(renewals::run(parts.leases.clone(), renewals_inlet, tasks.stop_signal()));
        slot.fill(ReceiverParts {
            info: parts.info.clone(),
            raft: parts.raft.clone(),
            backend: backend.clone(),
            published: parts.published.clone(),
            arrived: ArrivedSnapshots::new(backend.clone(), prepared_snapshots.clone()),
            rpc: Arc::new(PeerRpc {
                leases: parts.leases.clone(),
                changes: parts.changes.clone(),
                published: parts.published.clone(),
                corruption: parts.corruption.clone(),
                metrics: parts.metrics.clone(),
            }),
            metrics: parts.metrics.clone(),
        });
        // Before anything is applied: after that only the log decides on the members.
        let members = Arc::clone(&parts.published.cluster());
        match members.members().next() {
            Some(_) => follow_members(&parts.peers, &parts.published, members.members()),
            None => follow_members(&parts.peers, &parts.published, neighbours.known.iter()),
        }
        let watch = CoreWatch::new(parts.store.clone(), EVENT_LOG_BYTES);
        let observer = MemberObserver {
            member: metadata.member,
            raft: parts.raft.clone(),
            backend: backend.clone(),
            peers: parts.peers.clone(),
            published: parts.published.clone(),
            authenticator: parts.authenticator.clone(),
            leases: parts.clock.clone(),
            proposer: parts.proposer.clone(),
            quota: parts.quota.clone(),
            metrics: parts.metrics.clone(),
            watch: watch.clone(),
            failed: failed.clone(),
            tasks: tasks.clone(),
            runtime: Handle::current(),
        };
        let pace =
            CompactionPace { slice_records: config.compaction_batch_limit, pause: config.compaction_sleep_interval };
        let apply_config = ApplyConfig { prepared_snapshots, pace };
        let apply = ApplyTask::start(applier, inlet, observer, apply_config)?;
        let report = move |error: &BackendError| failed(format!("checkpoint: {error}"));
        let checkpointer = Checkpointer::start(backend, report)?;
        Ok(Self { parts, watch, raft, apply, checkpointer, tasks })
    }

    /// Builds what answers on the ports of this member.
    pub fn services(&self) -> ServiceBuilder {
        ServiceBuilder::new(self.parts.clone(), self.watch.clone())
    }

    fn spawn_keepers(&self, config: &ServerConfig) {
        let (parts, tasks) = (self.parts.clone(), &self.tasks);
        let cluster_version = ClusterVersionTask {
            member: parts.info.member(),
            raft: parts.raft.clone(),
            peers: parts.peers,
            published: parts.published,
            proposer: parts.proposer.clone(),
        };
        tasks.spawn(version::run(cluster_version, tasks.clone()));
        tasks.spawn(long_answer::release_late(parts.store.clone(), parts.apply, parts.answers, tasks.clone()));
        tasks.spawn(gauges::count_leaders(parts.raft.clone(), parts.metrics.clone(), tasks.clone()));
        let expiry = LeaseExpiry {
            raft: parts.raft.clone(),
            clock: parts.clock,
            reads: parts.reads,
            proposer: parts.proposer.clone(),
            metrics: parts.metrics,
        };
        tasks.spawn(lease_expiry::run(expiry, config.election_timeout, tasks.clone()));
        let (snapshot_count, catch_up) = (config.snapshot_count, config.snapshot_catchup_entries);
        tasks.spawn(wal_compaction::run(parts.backend, parts.raft.clone(), snapshot_count, catch_up, tasks.clone()));
        tasks.spawn(parts.corruption.run(config.integrity, tasks.clone()));
        let compactor = AutoCompactor { raft: parts.raft, store: parts.store, proposer: parts.proposer };
        tasks.spawn(auto_compaction::run(compactor, config.auto_compaction, tasks.clone()));
    }

    /// If this member leads, transfers leadership to another one; takes half a second at most.
    pub async fn hand_over(&self) {
        self.parts.transfer.away().await;
    }

    /// Stops tasks, raft with its log, apply, and writes the last checkpoint, in this order. The listeners have stopped.
    pub async fn stop(self) {
        self.tasks.stop();
        let ended = tokio::task::spawn_blocking(move || {
            self.raft.stop();
            self.apply.join();
            if let Err(error) = self.checkpointer.stop() {
                warn!(%error, "last checkpoint was not written; the log still has it");
            }
        });
        if let Err(error) = ended.await {
            warn!(%error, "member did not stop cleanly");
        }
    }
}

fn node_config(config: &ServerConfig, member: MemberId, applied: LogIndex) -> NodeConfig {
    let ticks = config.election_timeout.as_millis() / config.heartbeat_interval.as_millis().max(1);
    NodeConfig {
        member,
        election_ticks: usize::try_from(ticks).unwrap_or(10).max(HEARTBEAT_TICKS + 1),
        heartbeat_ticks: HEARTBEAT_TICKS,
        pre_vote: config.pre_vote,
        applied,
        seed: fastrand::u64(..),
    }
}

/// Defragments the state where that frees at least so many bytes.
fn defragment_above(backend: &Backend, threshold: u64) -> Result<(), BackendError> {
    let (size, in_use) = (backend.size_bytes(), backend.size_in_use_bytes());
    if size.saturating_sub(in_use) < threshold {
        info!(
            "current-db-size-bytes" = size,
            "current-db-size-in-use-bytes" = in_use,
            "bootstrap-defrag-threshold-bytes" = threshold,
            "Skipping defragmentation"
        );
        return Ok(());
    }
    let done = match backend.defragment() {
        Err(error) if !error.is_fatal() => {
            warn!(%error, "no defragmentation at the start");
            return Ok(());
        }
        done => done?,
    };
    info!(before_bytes = done.before_bytes, after_bytes = done.after_bytes, "finished defragmentation at the start");
    Ok(())
}

/// Where db snapshots are written and received.
fn snapshot_room(config: &ServerConfig) -> PathBuf {
    config.data_dir.join("member").join("snap")
}
