//! Whether the states of the members agree, and what follows when they do not.
//!
//! Members compare hashes of their history at equal revisions: each one when it starts, the leader periodically
//! (`--corrupt-check-time`), and the leader after compactions (`--compact-hash-check-time`), which leave a hash
//! behind on every member. The hash reads every row, and each row carries a checksum, so the same walk finds rows
//! that the disk has changed; then the member stops by itself. A member that differs is named by a CORRUPT alarm,
//! which stays until an operator lifts it; `docs/reliability.md` says how such a member is replaced.

mod comparison;
mod verdict;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tracing::{error, info, warn};

use self::comparison::ask_all;
pub use self::comparison::{COMPACTION_HASH, ComparedMember, STATE_HASH, answer, check_compactions, check_state};
use self::verdict::{Sum, compare, may_start};
use super::caller::Caller;
use super::error::{Failed, Failure};
use super::leader_transfer::LeaderTransfer;
use super::member_info::MemberInfo;
use super::metrics::CoreMetrics;
use super::proposer::Proposer;
use super::published::Published;
use super::read_index::ReadIndex;
use crate::api_error::ApiError;
use crate::config::IntegrityChecks;
use crate::core::apply::ApplyHandle;
use crate::core::backend::{Backend, Table};
use crate::core::mvcc::{HashKv, MvccError, StoreReader};
use crate::core::peer::{CallError, PeerTransport};
use crate::core::raft::RaftHandle;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::{AlarmRequest, AlarmType, ResponseHeader};
use crate::shutdown::Tasks;
use crate::types::{ClusterId, MemberId, Revision};

/// How long a member that is asked for a revision it does not have yet waits for it.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);

/// Compares the state of this member with that of the others.
pub(super) struct CorruptionCheck {
    pub(super) info: Arc<MemberInfo>,
    pub(super) raft: RaftHandle,
    pub(super) store: StoreReader,
    pub(super) backend: Backend,
    pub(super) apply: ApplyHandle,
    pub(super) peers: PeerTransport,
    pub(super) published: Arc<Published>,
    pub(super) reads: Arc<ReadIndex>,
    pub(super) proposer: Arc<Proposer>,
    pub(super) transfer: Arc<LeaderTransfer>,
    pub(super) metrics: Arc<CoreMetrics>,
    pub(super) failed: Failed,
    pub(super) timeout: Duration,
}

impl ComparedMember for CorruptionCheck {
    fn member(&self) -> MemberId {
        self.info.member()
    }

    fn cluster(&self) -> ClusterId {
        self.info.cluster()
    }

    fn others(&self) -> Vec<MemberId> {
        let cluster = Arc::clone(&self.published.cluster());
        cluster.members().map(|member| member.member_id()).filter(|member| *member != self.info.member()).collect()
    }

    fn is_leader(&self) -> bool {
        self.raft.status().borrow().is_leader
    }

    fn store(&self) -> &StoreReader {
        &self.store
    }

    fn header(&self, revision: Revision) -> ResponseHeader {
        self.info.header(revision)
    }

    fn is_named(&self, member: MemberId) -> bool {
        let raised = self.published.alarms().list(AlarmType::Corrupt);
        raised.iter().any(|alarm| alarm.member_id == member.0)
    }

    async fn own_hash(&self, revision: Revision) -> Result<(HashKv, Revision), Failure> {
        let store = self.store.clone();
        let began = Instant::now();
        // Not what a compaction has left behind: this is about the rows there are now.
        let hashing = tokio::task::spawn_blocking(move || store.hash_kv(revision));
        let hashed = hashing.await.map_err(|_| ApiError::Stopped)?;
        self.metrics.mvcc.hash_rev_duration.observe(began.elapsed().as_secs_f64());
        hashed.map_err(|error| self.stop_if_fatal(error))
    }

    async fn wait_for_revision(&self, revision: Revision) {
        let mut progress = self.apply.progress();
        let reached = progress.wait_for(|_| self.store.snapshot().revision() >= revision);
        let _ = timeout(CATCH_UP_MAX, reached).await;
    }

    async fn confirm(&self) -> Result<(), Failure> {
        Ok(self.reads.linearizable().await?)
    }

    async fn call(&self, to: MemberId, method: &'static str, body: Bytes) -> Result<Bytes, CallError> {
        self.peers.call(to, method, body).await
    }

    async fn raise(&self, suspect: MemberId) -> Result<(), Failure> {
        let alarm = AlarmRequest {
            action: AlarmAction::Activate as i32,
            member_id: suspect.0,
            alarm: AlarmType::Corrupt as i32,
        };
        self.proposer.propose(&Caller::Member, alarm).await?;
        Ok(())
    }
}

impl CorruptionCheck {
    /// Stops the member when stored rows are damaged: none of its answers can be trusted then.
    fn stop_if_fatal(&self, error: MvccError) -> Failure {
        if error.is_fatal() {
            (self.failed)(format!("state is damaged: {:#}", anyhow::Error::new(error)));
            return ApiError::Corrupt.into();
        }
        error.into()
    }

    /// Reads what the hash leaves out, for the checksums.
    async fn check_other_rows(&self) {
        let backend = self.backend.clone();
        let walk = move || {
            let others = Table::ALL.into_iter().filter(|table| *table != Table::Key);
            others.into_iter().try_for_each(|table| backend.rows(table).map(drop))
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(walk).await {
            self.stop_if_fatal(error.into());
        }
    }

    /// Compares this member's state with the others' before it serves anybody.
    ///
    /// Members that cannot answer are passed over. A majority on this member's side is enough: then another one is
    /// damaged, and refusing to start this one would not help.
    ///
    /// # Errors
    /// This member's state differs and is not that of a majority.
    pub(super) async fn check_at_start(&self) -> Result<(), MemberId> {
        if self.published.cluster().members().count() < 2 {
            return Ok(());
        }
        let (hashed, newest) = match self.own_hash(Revision(0)).await {
            Ok(hashed) => hashed,
            Err(error) => {
                warn!(%error, "state not compared at the start");
                return Ok(());
            }
        };
        let Ok(others) = timeout(self.timeout, ask_all(self, STATE_HASH, hashed.hash_revision)).await else {
            warn!("state not compared at the start: no answers in time");
            return Ok(());
        };
        let verdict = compare((self.info.member(), Sum::new(&hashed, newest)), &others);
        let compared = others.iter().filter(|(_, sum)| sum.is_some()).count();
        info!(?verdict, compared, revision = %hashed.hash_revision, "state compared with the other members");
        if may_start(self.info.member(), &verdict) { Ok(()) } else { Err(self.info.member()) }
    }

    /// Compares periodically while this member leads, and transfers leadership once an alarm names this member.
    pub(super) async fn run(self: Arc<Self>, checks: IntegrityChecks, tasks: Tasks) {
        let stop = tasks.stop_signal();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.watch_over(checks) => {}
        }
    }

    async fn watch_over(&self, checks: IntegrityChecks) {
        let mut states = checks.state.map(delayed);
        let mut compactions = delayed(checks.compactions);
        let mut corrupt = self.published.corrupt();
        // Checked once in any case: the alarm may be older than this process.
        corrupt.mark_changed();
        let mut checked = Revision(0);
        let leads = || self.raft.status().borrow().is_leader;
        loop {
            tokio::select! {
                () = next(&mut states) => {
                    self.check_other_rows().await;
                    if leads() && let Err(error) = check_state(self).await {
                        info!(%error, "states of the members not compared");
                    }
                }
                _ = compactions.tick() => if leads() {
                    checked = check_compactions(self, checked).await;
                },
                changed = corrupt.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if *corrupt.borrow_and_update() {
                        error!("a CORRUPT alarm names this member: it serves no clients until it is replaced or the alarm is lifted");
                        self.transfer.away().await;
                    }
                }
            }
        }
    }
}

fn delayed(period: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn next(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => drop(ticks.tick().await),
        None => std::future::pending().await,
    }
}
