//! Whether the states of the members agree, and what follows when they do not.
//!
//! Members compare hashes of their history at equal revisions: each one when it starts, the leader periodically
//! (`--corrupt-check-time`), and the leader after compactions (`--compact-hash-check-time`), which leave a hash
//! behind on every member. The hash reads every row, and each row carries a checksum, so the same walk finds rows
//! that the disk has changed; then the member stops by itself. A member that differs is named by a CORRUPT alarm,
//! which stays until an operator lifts it; `docs/reliability.md` says how such a member is replaced.

mod verdict;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use prost::Message;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tracing::{error, info, warn};

use self::verdict::{Sum, Verdict, ahead, compare, may_start};
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
use crate::core::peer::PeerTransport;
use crate::core::raft::RaftHandle;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::{AlarmRequest, AlarmType, HashKvRequest, HashKvResponse};
use crate::shutdown::Tasks;
use crate::types::{ClusterId, MemberId, Revision};

/// Asks for the hash of the state at a revision: `HashKVRequest`, `HashKVResponse`.
pub(super) const STATE_HASH: &str = "hashkv";
/// Asks for the hash that the compaction at a revision left behind, in the same messages.
pub(super) const COMPACTION_HASH: &str = "hashkv.compaction";
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

impl CorruptionCheck {
    /// Answers another member.
    pub(super) async fn answer(&self, method: &str, body: Bytes) -> Result<Bytes, Failure> {
        let request = HashKvRequest::decode(body).map_err(|_| Failure::Other("unreadable request".to_owned()))?;
        let asked = Revision(request.revision);
        let (hashed, newest) = if method == COMPACTION_HASH {
            let kept = self.store.compaction_hashes();
            let kept = kept.into_iter().find(|kept| kept.hash_revision == asked);
            (kept.ok_or(ApiError::Compacted)?, self.store.snapshot().revision())
        } else {
            self.wait_for_revision(asked).await;
            self.own_hash(asked).await?
        };
        let answer = HashKvResponse {
            header: Some(self.info.header(newest)),
            hash: hashed.hash,
            compact_revision: hashed.compact_revision.0,
            hash_revision: hashed.hash_revision.0,
        };
        Ok(answer.encode_to_vec().into())
    }

    /// Waits until this member has `revision`: a follower is often a moment behind the leader.
    async fn wait_for_revision(&self, revision: Revision) {
        let mut progress = self.apply.progress();
        let reached = progress.wait_for(|_| self.store.snapshot().revision() >= revision);
        let _ = timeout(CATCH_UP_MAX, reached).await;
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

    /// Asks every other member for its hash at `revision`, all at once.
    async fn ask_all(&self, method: &'static str, revision: Revision) -> Vec<(MemberId, Option<Sum>)> {
        let cluster = Arc::clone(&self.published.cluster());
        let others = cluster.members().map(|member| member.member_id()).filter(|member| *member != self.info.member());
        let body = Bytes::from(HashKvRequest { revision: revision.0 }.encode_to_vec());
        join_all(others.map(|member| self.ask(member, method, body.clone()))).await
    }

    async fn ask(&self, member: MemberId, method: &'static str, body: Bytes) -> (MemberId, Option<Sum>) {
        match self.peers.call(member, method, body).await {
            Ok(answer) => (member, read_sum(self.info.cluster(), &answer)),
            Err(error) => {
                // Not reachable, behind, or compacted further than we are: nothing to compare this time.
                info!(%member, %error, "no hash from this member");
                (member, None)
            }
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
        let Ok(others) = timeout(self.timeout, self.ask_all(STATE_HASH, hashed.hash_revision)).await else {
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
                    if leads() && let Err(error) = self.check_state().await {
                        info!(%error, "states of the members not compared");
                    }
                }
                _ = compactions.tick() => if leads() {
                    checked = self.check_compactions(checked).await;
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

    /// Compares the whole states, and raises alarms.
    async fn check_state(&self) -> Result<(), Failure> {
        let suspects = self.suspects().await?;
        if suspects.is_empty() {
            return Ok(());
        }
        // An alarm stops all writes, so it takes two comparisons with the same result.
        if self.suspects().await? == suspects {
            self.raise(&suspects).await?;
        }
        Ok(())
    }

    /// Members to be named; 0 stands for the cluster, when it is not known who is damaged.
    async fn suspects(&self) -> Result<Vec<MemberId>, Failure> {
        let (hashed, newest) = self.own_hash(Revision(0)).await?;
        let others = self.ask_all(STATE_HASH, hashed.hash_revision).await;
        // A leader whose leadership is confirmed now has applied everything that the others answered from.
        self.reads.linearizable().await?;
        if !self.raft.status().borrow().is_leader {
            return Err(ApiError::NotLeader.into());
        }
        let now = self.store.snapshot();
        let mut suspects = ahead((now.revision(), now.compacted()), &others);
        match compare((self.info.member(), Sum::new(&hashed, newest)), &others) {
            Verdict::Equal { complete } => {
                info!(revision = %hashed.hash_revision, complete, "states of the members are equal")
            }
            Verdict::Damaged(members) => suspects.extend(members),
            Verdict::Undecided => suspects.push(MemberId(0)),
        }
        suspects.sort_unstable();
        suspects.dedup();
        if !suspects.is_empty() {
            warn!(suspects = named(&suspects), revision = %hashed.hash_revision, ?others, own = hashed.hash, "states of the members differ");
        }
        Ok(suspects)
    }

    /// Compares the hashes of compactions, newest first, until one was compared with all members. Returns the revision up
    /// to which that is done.
    async fn check_compactions(&self, checked: Revision) -> Revision {
        let kept = self.store.compaction_hashes();
        let unchecked = kept.iter().rev().take_while(|hashed| hashed.hash_revision > checked);
        for (before, hashed) in unchecked.enumerate() {
            let others = self.ask_all(COMPACTION_HASH, hashed.hash_revision).await;
            let suspects = match compare((self.info.member(), Sum::new(hashed, hashed.hash_revision)), &others) {
                Verdict::Equal { complete: true } => {
                    info!("number-of-hashes-checked" = before + 1, "finished compaction hash check");
                    return hashed.hash_revision;
                }
                Verdict::Equal { complete: false } => continue,
                Verdict::Damaged(members) => members,
                Verdict::Undecided => vec![MemberId(0)],
            };
            error!(suspects = named(&suspects), revision = %hashed.hash_revision, ?others, own = hashed.hash, "hashes of a compaction differ");
            if let Err(error) = self.raise(&suspects).await {
                warn!(%error, "CORRUPT alarm not raised");
            }
            return checked;
        }
        checked
    }

    /// Names members by CORRUPT alarms, those that are not named already.
    async fn raise(&self, suspects: &[MemberId]) -> Result<(), Failure> {
        for suspect in suspects {
            let raised = self.published.alarms().list(AlarmType::Corrupt);
            if raised.iter().any(|alarm| alarm.member_id == suspect.0) {
                continue;
            }
            error!(member = %suspect, "state differs from that of the others; raising a CORRUPT alarm");
            let alarm = AlarmRequest {
                action: AlarmAction::Activate as i32,
                member_id: suspect.0,
                alarm: AlarmType::Corrupt as i32,
            };
            self.proposer.propose(&Caller::Member, alarm).await?;
        }
        Ok(())
    }
}

/// The hash in an answer; none in the answer of a member of another cluster, which may have taken over an address.
fn read_sum(cluster: ClusterId, answer: &[u8]) -> Option<Sum> {
    let answer = HashKvResponse::decode(answer).ok()?;
    let header = answer.header.as_ref()?;
    (header.cluster_id == cluster.0).then_some(Sum {
        hash: answer.hash,
        compact_revision: Revision(answer.compact_revision),
        newest: Revision(header.revision),
    })
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

fn named(members: &[MemberId]) -> String {
    members.iter().map(MemberId::to_string).collect::<Vec<_>>().join(" ")
}
