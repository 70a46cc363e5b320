use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::Stream;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tracing::info;

use super::authenticator::Authenticator;
use super::caller::Caller;
use super::error::Failure;
use super::leader_transfer::LeaderTransfer;
use super::long_answer::{AnswerMemory, on_thread};
use super::member_info::MemberInfo;
use super::metrics::CoreMetrics;
use super::proposer::Proposer;
use super::published::Published;
use super::read_index::ReadIndex;
use super::snapshot;
use crate::api_error::{ApiError, unknown_alarm, unknown_downgrade_action};
use crate::core::apply::ApplyHandle;
use crate::core::backend::{Backend, BackendError, Table};
use crate::core::cluster::{ClusterVersion, STORAGE_VERSION};
use crate::core::mvcc::{MvccError, StoreReader};
use crate::core::raft::RaftHandle;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::downgrade_request::DowngradeAction;
use crate::pb::etcdserverpb::maintenance_server::Maintenance;
use crate::pb::etcdserverpb::*;
use crate::pb::membershippb::DowngradeInfoSetRequest;
use crate::types::{API_VERSION, MemberId, RecordId, Revision};

/// How long a hash waits for a quorum; etcdctl waits 5 s for the answer.
const QUORUM_MAX: Duration = Duration::from_secs(3);

/// The Maintenance service.
pub(super) struct MaintenanceService {
    pub(super) info: Arc<MemberInfo>,
    pub(super) raft: RaftHandle,
    pub(super) store: StoreReader,
    pub(super) backend: Backend,
    pub(super) apply: ApplyHandle,
    pub(super) published: Arc<Published>,
    pub(super) proposer: Arc<Proposer>,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) reads: Arc<ReadIndex>,
    pub(super) transfer: Arc<LeaderTransfer>,
    pub(super) answers: Arc<AnswerMemory>,
    pub(super) metrics: Arc<CoreMetrics>,
    /// Told of each defragmentation, so that the gRPC health service says it; none when it shall not.
    pub(super) paused: Option<watch::Sender<bool>>,
    pub(super) quota_bytes: i64,
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        let (caller, request) = Caller::split(request);
        let action = AlarmAction::try_from(request.action).map_err(|_| unknown_alarm("action", request.action))?;
        let kind = AlarmType::try_from(request.alarm).map_err(|_| unknown_alarm("type", request.alarm))?;
        match action {
            AlarmAction::Get => self.authenticator.require_user(&caller).await?,
            AlarmAction::Activate | AlarmAction::Deactivate => self.authenticator.require_admin(&caller).await?,
        }
        let alarms = match action {
            AlarmAction::Get => {
                // etcd lists through the log: `alarm disarm` asks which alarms there are, and lowers those.
                self.reads.linearizable().await?;
                self.published.alarms().list(kind)
            }
            AlarmAction::Activate | AlarmAction::Deactivate => self.proposer.propose(&caller, request).await?,
        };
        Ok(Response::new(AlarmResponse { header: Some(self.info.header_now()), alarms }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.authenticator.require_user(&Caller::of(&request)).await?;
        let status = *self.raft.status().borrow();
        let mut errors = Vec::new();
        if status.leader.is_none() {
            errors.push(ApiError::NoLeader.text().to_owned());
        }
        for alarm in self.published.alarms().list(AlarmType::None) {
            let kind = AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |kind| kind.as_str_name());
            errors.push(format!("memberID:{} alarm:{kind}", alarm.member_id));
        }
        Ok(Response::new(StatusResponse {
            header: Some(self.info.header_now()),
            version: API_VERSION.to_owned(),
            db_size: self.backend.size_bytes() as i64,
            leader: status.leader.map_or(0, |leader| leader.0),
            raft_index: self.raft.committed().0,
            raft_term: status.term.0,
            raft_applied_index: self.apply.applied().0,
            errors,
            db_size_in_use: self.backend.size_in_use_bytes() as i64,
            is_learner: self.published.is_learner(),
            storage_version: STORAGE_VERSION.to_owned(),
            db_size_quota: self.quota_bytes,
            downgrade_info: Some(self.downgrade_info()),
        }))
    }

    async fn defragment(&self, request: Request<DefragmentRequest>) -> Result<Response<DefragmentResponse>, Status> {
        let caller = Caller::of(&request);
        self.authenticator.require_admin(&caller).await?;
        info!(remote = %caller, "defragmentation starting");
        let backend = self.backend.clone();
        let paused = self.paused.clone();
        one_at_a_time(&self.answers, move || {
            let _paused = paused.map(Paused::start);
            backend.defragment()
        })
        .await?;
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        self.authenticator.require_admin(&Caller::of(&request)).await?;
        let backend = self.backend.clone();
        let place = self.answers.hash().await?;
        let began = Instant::now();
        // The work goes on when the caller leaves, and nobody else has the place before it ends.
        let hash = blocking(move || {
            let _place = place;
            state_digest(&backend)
        })
        .await?;
        self.metrics.mvcc.hash_duration.observe(began.elapsed().as_secs_f64());
        Ok(Response::new(HashResponse { header: Some(self.info.header_now()), hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        self.authenticator.require_admin(&Caller::of(&request)).await?;
        let asked = Revision(request.get_ref().revision);
        // So that the hash of the newest revision covers everything acknowledged so far. Without a quorum it is that of what
        // this member has: it tells which of those that are left can go on. etcd asks no other member.
        let confirmed = tokio::time::timeout(QUORUM_MAX, self.reads.linearizable()).await;
        if let Err(error) = confirmed.unwrap_or(Err(ApiError::Timeout)) {
            tracing::warn!(%error, "hash of this member's state, which may be behind");
        }
        let store = self.store.clone();
        let place = self.answers.hash().await?;
        let began = Instant::now();
        let hashing = move || {
            let _place = place;
            store.answered_hash_kv(asked)
        };
        let result = tokio::task::spawn_blocking(hashing).await;
        self.metrics.mvcc.hash_rev_duration.observe(began.elapsed().as_secs_f64());
        let (hashed, current) = result.map_err(|_| ApiError::Stopped)?.map_err(Failure::from)?;
        Ok(Response::new(HashKvResponse {
            header: Some(self.info.header(current)),
            hash: hashed.hash,
            compact_revision: hashed.compact_revision.0,
            hash_revision: hashed.hash_revision.0,
        }))
    }

    async fn snapshot(&self, request: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        self.authenticator.require_admin(&Caller::of(&request)).await?;
        // Without a quorum, or on a learner, the snapshot is of what this member has: that may be all that is left.
        if let Err(error) = self.reads.linearizable().await {
            tracing::warn!(%error, "snapshot of this member's state, which may be behind");
        }
        let room = self.answers.snapshot().await?;
        let stream = snapshot::stream(self.backend.clone(), room, snapshot::SILENCE_MAX);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        let (caller, request) = Caller::split(request);
        self.authenticator.require_admin(&caller).await?;
        self.transfer.to(&caller, MemberId(request.target_id)).await?;
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }

    async fn downgrade(&self, request: Request<DowngradeRequest>) -> Result<Response<DowngradeResponse>, Status> {
        let (caller, request) = Caller::split(request);
        self.authenticator.require_admin(&caller).await?;
        match DowngradeAction::try_from(request.action) {
            Ok(DowngradeAction::Validate) => drop(self.downgrade_target(&request.version).await?),
            Ok(DowngradeAction::Enable) => {
                let ver = self.downgrade_target(&request.version).await?.to_string();
                info!(remote = %caller, target = ver, "downgrade is enabled");
                self.proposer.propose(&caller, DowngradeInfoSetRequest { enabled: true, ver }).await?;
            }
            Ok(DowngradeAction::Cancel) => self.cancel_downgrade(&caller).await?,
            Err(_) => return Err(unknown_downgrade_action()),
        }
        let version = self.cluster_version().map(ClusterVersion::short).unwrap_or_default();
        Ok(Response::new(DowngradeResponse { header: Some(self.info.header_now()), version }))
    }
}

impl MaintenanceService {
    fn cluster_version(&self) -> Option<ClusterVersion> {
        self.published.cluster().version().and_then(ClusterVersion::parse)
    }

    fn downgrade_info(&self) -> DowngradeInfo {
        let target = self.published.cluster().downgrade();
        DowngradeInfo { enabled: target.is_some(), target_version: target.map(|to| to.to_string()).unwrap_or_default() }
    }

    /// The version that the cluster can be downgraded to, if it is the one asked for.
    async fn downgrade_target(&self, asked: &str) -> Result<ClusterVersion, Status> {
        let asked = ClusterVersion::parse(asked).ok_or(ApiError::WrongDowngradeVersionFormat)?;
        let version = self.cluster_version().ok_or(ApiError::ClusterVersionUnavailable)?;
        self.reads.linearizable().await?;
        if version.below() != Some(asked) {
            return Err(ApiError::InvalidDowngradeTargetVersion.into());
        }
        match self.published.cluster().downgrade() {
            Some(_) => Err(ApiError::DowngradeInProcess.into()),
            None => Ok(asked),
        }
    }

    /// Without a downgrade there is nothing to cancel, which etcd says in its log only.
    async fn cancel_downgrade(&self, caller: &Caller) -> Result<(), Status> {
        self.reads.linearizable().await?;
        if self.published.cluster().downgrade().is_none() {
            tracing::warn!(remote = %caller, error = ApiError::NoInflightDowngrade.text(), "failed to cancel downgrade");
            return Ok(());
        }
        info!(remote = %caller, "downgrade is cancelled");
        Ok(self.proposer.propose(caller, DowngradeInfoSetRequest::default()).await?)
    }
}

/// While it is there, the gRPC health service says that nothing is served.
struct Paused(watch::Sender<bool>);

impl Paused {
    fn start(paused: watch::Sender<bool>) -> Self {
        tracing::warn!(
            service = "",
            status = "NOT_SERVING",
            reason = "defrag is active",
            "grpc service status changed"
        );
        paused.send_replace(true);
        Self(paused)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        info!(service = "", status = "SERVING", "grpc service status changed");
        self.0.send_replace(false);
    }
}

/// Runs a defragmentation after the one in progress. Begins only if the caller still waits; then it goes on when the
/// caller leaves, and nobody else has its turn before it ends.
async fn one_at_a_time<T: Send + 'static>(
    answers: &AnswerMemory,
    work: impl FnOnce() -> Result<T, BackendError> + Send + 'static,
) -> Result<T, Status> {
    let place = answers.defragmentation().await?;
    blocking(move || {
        let _place = place;
        work()
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackendError> + Send + 'static,
) -> Result<T, Status> {
    on_thread(move || work().map_err(|error| Failure::from(MvccError::from(error)).into())).await
}

/// A digest of all rows but those of the meta table: members with equal state have equal digests.
fn state_digest(backend: &Backend) -> Result<u32, BackendError> {
    let mut digest = 0;
    for table in Table::ALL {
        if matches!(table, Table::Meta | Table::Key) {
            continue;
        }
        for (key, value) in backend.rows(table)? {
            digest = crc32c::crc32c_append(digest, &key);
            digest = crc32c::crc32c_append(digest, &value);
        }
    }
    backend.scan(RecordId::default(), Revision(i64::MAX), &mut |id, tombstone, value| {
        digest = crc32c::crc32c_append(digest, &id.to_bytes());
        digest = crc32c::crc32c_append(digest, &[u8::from(tombstone)]);
        digest = crc32c::crc32c_append(digest, value);
        std::ops::ControlFlow::Continue(())
    })?;
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    // Cause: each call began its work at once or put it into a queue, where it stayed when the caller was gone: clients
    // that repeat a call after their timeout defragmented a member for hours.
    #[tokio::test]
    async fn defragmentations_whose_callers_have_left_do_not_begin() {
        let answers = AnswerMemory::new(1 << 20);
        let runs = Arc::new(AtomicUsize::new(0));
        let call = || {
            let (runs, (release, held)) = (runs.clone(), std::sync::mpsc::channel::<()>());
            let work = move || {
                runs.fetch_add(1, Ordering::Relaxed);
                let _ = held.recv();
                Ok(())
            };
            (Box::pin(one_at_a_time(&answers, work)), release)
        };
        let mut calls: Vec<_> = (0..10).map(|_| call()).collect();
        for (call, _) in &mut calls {
            assert!(futures::poll!(call.as_mut()).is_pending());
        }
        // The first has begun and goes on; of those that wait only the last one stays.
        let (last, release_last) = calls.pop().expect("ten of them");
        drop(release_last);
        drop(calls);
        last.await.expect("it has its turn");
        assert_eq!(runs.load(Ordering::Relaxed), 2);
    }
}
