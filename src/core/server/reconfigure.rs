use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tracing::{info, warn};

use super::caller::Caller;
use super::error::Failure;
use super::limits::Limits;
use super::proposer::Proposer;
use super::published::Published;
use super::read_index::ReadIndex;
use crate::api_error::ApiError;
use crate::core::cluster::{AddContext, ClusterStore, Member, added_member_id};
use crate::core::peer::PeerTransport;
use crate::core::raft::{ChangeKind, PeerProgress, RaftHandle};
use crate::types::MemberId;

/// How long a connection must have held to count as healthy.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
/// Share of the leader's log, in percent, that a learner must have to be promoted.
const READY_PERCENT: u64 = 90;
/// How long a promotion waits for this member to apply what is committed.
const APPLIED_WAIT: Duration = Duration::from_secs(1);
/// What `--strict-reconfig-check` looks at.
pub(super) struct Reconfiguration<'a> {
    pub cluster: &'a ClusterStore,
    pub own: MemberId,
    /// Since when it is connected to a member.
    pub active_since: &'a dyn Fn(MemberId) -> Option<std::time::Instant>,
    pub now: std::time::Instant,
}

impl Reconfiguration<'_> {
    /// Whether a member may be added: the voters must still be able to decide when the new one does not start.
    pub(super) fn may_add(&self, is_learner: bool) -> Result<(), ApiError> {
        let (voters, started) = (self.cluster.voters().count(), self.started(None));
        // With one voter, any addition makes the new member necessary for a quorum.
        let growing_from_one = voters == 1 && started == 1;
        if !is_learner && !growing_from_one && started < quorum(voters + 1) {
            return Err(ApiError::NotEnoughStartedMembers);
        }
        if voters > 1 && self.connected() < quorum(voters + 1) {
            return Err(ApiError::Unhealthy);
        }
        Ok(())
    }

    /// Whether a member may be removed: the voters that are left must be able to decide.
    pub(super) fn may_remove(&self, id: MemberId) -> Result<(), ApiError> {
        if self.cluster.member(id).is_some_and(|member| member.is_learner) {
            return Ok(());
        }
        let left = self.cluster.voters().filter(|voter| voter.member_id() != id).count();
        if self.started(Some(id)) < quorum(left) {
            return Err(ApiError::NotEnoughStartedMembers);
        }
        // A voter that is not connected does not count towards the quorum anyway.
        if id != self.own && (self.active_since)(id).is_none() {
            return Ok(());
        }
        let voters = self.cluster.voters().count();
        if self.connected().saturating_sub(1) < 1 + voters.saturating_sub(1) / 2 {
            return Err(ApiError::Unhealthy);
        }
        Ok(())
    }

    /// Whether there may be one more voter that has started.
    pub(super) fn may_promote(&self) -> Result<(), ApiError> {
        if self.started(None) + 1 < quorum(self.cluster.voters().count() + 1) {
            return Err(ApiError::NotEnoughStartedMembers);
        }
        Ok(())
    }

    /// Voters that have ever started.
    fn started(&self, without: Option<MemberId>) -> usize {
        self.cluster.voters().filter(|voter| voter.is_started() && Some(voter.member_id()) != without).count()
    }

    /// Voters that this member has been connected to for a while, itself among them.
    fn connected(&self) -> usize {
        let is_connected = |id| {
            id == self.own
                || (self.active_since)(id).is_some_and(|since| self.now.duration_since(since) > HEALTH_INTERVAL)
        };
        self.cluster.voters().filter(|voter| is_connected(voter.member_id())).count()
    }
}

/// Whether a learner has nearly all of the leader's log, by the leader's progress. Raft follows apply: one of the
/// `members` that is not in it has just been added, and one that is in it and no member has just been removed.
pub(super) fn learner_is_ready(
    id: MemberId,
    leader: MemberId,
    members: &ClusterStore,
    progress: &[PeerProgress],
) -> Result<(), ApiError> {
    let of = |id| progress.iter().find(|progress| progress.member == id).map(|progress| progress.matched.0);
    let Some(ahead) = of(leader) else { return Err(ApiError::NotLeader) };
    if members.member(id).is_none() {
        return Err(ApiError::MemberNotFound);
    }
    let behind = of(id).ok_or(ApiError::LearnerNotReady)?;
    if u128::from(behind) * 100 < u128::from(ahead) * u128::from(READY_PERCENT) {
        return Err(ApiError::LearnerNotReady);
    }
    Ok(())
}

fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// Checks and proposes membership changes, one at a time.
pub(super) struct MembershipChanges {
    member: MemberId,
    raft: RaftHandle,
    reads: Arc<ReadIndex>,
    published: Arc<Published>,
    peers: PeerTransport,
    proposer: Arc<Proposer>,
    timeout: Duration,
    max_learners: usize,
    /// `--strict-reconfig-check`.
    strict: bool,
    turn: Semaphore,
}

impl MembershipChanges {
    pub(super) fn new(
        member: MemberId,
        raft: RaftHandle,
        reads: Arc<ReadIndex>,
        published: Arc<Published>,
        peers: PeerTransport,
        proposer: Arc<Proposer>,
        limits: &Limits,
    ) -> Self {
        let (timeout, max_learners, strict) =
            (limits.request_timeout, limits.max_learners, limits.strict_reconfig_check);
        Self { member, raft, reads, published, peers, proposer, timeout, max_learners, strict, turn: Semaphore::new(1) }
    }

    /// Adds a member that may then start with `--initial-cluster-state=existing`.
    ///
    /// # Errors
    /// The checks refuse, or apply does.
    pub(super) async fn add(
        &self,
        caller: &Caller,
        peer_urls: Vec<String>,
        is_learner: bool,
    ) -> Result<(Member, Vec<Member>), Failure> {
        let _turn = self.turn().await?;
        let id = self.unused_member_id(&peer_urls);
        let member = Member { id: id.0, peer_urls, is_learner, ..Member::default() };
        self.check(|checks| checks.may_add(is_learner))?;
        let kind = if is_learner { ChangeKind::AddLearner } else { ChangeKind::AddVoter };
        let context = AddContext::add(member.clone(), self.max_learners);
        let members = self.propose(caller, kind, id, context.to_json()).await?;
        Ok((member, members))
    }

    /// Removes a member; its id is never used again.
    ///
    /// # Errors
    /// The checks refuse, or apply does.
    pub(super) async fn remove(&self, caller: &Caller, id: MemberId) -> Result<Vec<Member>, Failure> {
        let _turn = self.turn().await?;
        self.check(|checks| checks.may_remove(id))?;
        self.propose(caller, ChangeKind::Remove, id, Vec::new()).await
    }

    /// Replaces a member's peer URLs.
    ///
    /// # Errors
    /// Apply refuses.
    pub(super) async fn update(
        &self,
        caller: &Caller,
        id: MemberId,
        peer_urls: Vec<String>,
    ) -> Result<Vec<Member>, Failure> {
        let _turn = self.turn().await?;
        let member = Member { id: id.0, peer_urls, ..Member::default() };
        self.propose(caller, ChangeKind::Update, id, member.to_json()).await
    }

    /// Gives a learner its vote. Only the leader knows whether it is ready.
    ///
    /// # Errors
    /// [`ApiError::NotLeader`] on any other member; the checks refuse, or apply does.
    pub(super) async fn promote(&self, caller: &Caller, id: MemberId) -> Result<Vec<Member>, Failure> {
        let _turn = self.turn().await?;
        let deadline = Instant::now() + APPLIED_WAIT;
        let applied = self.reads.wait_applied(self.raft.committed(), deadline).await;
        applied.map_err(|_| ApiError::TimeoutWaitAppliedIndex)?;
        // Not the progress of the last tick: a learner is often promoted as soon as it says that it serves.
        let progress = self.raft.progress_now().await;
        learner_is_ready(id, self.member, &self.published.cluster(), &progress).inspect_err(|error| {
            // A member that does not lead refuses nothing: it asks the leader.
            if *error != ApiError::NotLeader {
                warn!(member = %id, %error, "promotion refused");
            }
        })?;
        self.check(|checks| checks.may_promote())?;
        self.propose(caller, ChangeKind::AddVoter, id, AddContext::promote(id).to_json()).await
    }

    /// Changes asked of this member are checked and made one after the other.
    async fn turn(&self) -> Result<SemaphorePermit<'_>, Failure> {
        match tokio::time::timeout(self.timeout, self.turn.acquire()).await {
            Ok(permit) => permit.map_err(|_| ApiError::Stopped.into()),
            Err(_) => Err(ApiError::Timeout.into()),
        }
    }

    fn check(&self, rule: impl FnOnce(&Reconfiguration<'_>) -> Result<(), ApiError>) -> Result<(), Failure> {
        if !self.strict {
            return Ok(());
        }
        let cluster = self.published.cluster();
        let active_since = |id| self.peers.active_since(id);
        let (own, now) = (self.member, std::time::Instant::now());
        let checks = Reconfiguration { cluster: &cluster, own, active_since: &active_since, now };
        rule(&checks).inspect_err(|error| warn!(%error, "membership change refused by --strict-reconfig-check"))?;
        Ok(())
    }

    /// An id as etcd makes it; skips that of a removed member, which would be made again within the same second.
    #[allow(
        clippy::disallowed_methods,
        reason = "etcd's ids of added members hold the time; any other number would do"
    )]
    fn unused_member_id(&self, peer_urls: &[String]) -> MemberId {
        let cluster = self.published.cluster();
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let ids = (since.as_secs()..).map(|seconds| added_member_id(peer_urls, seconds));
        let mut unused = ids.filter(|id| id.0 != 0 && cluster.member(*id).is_none() && !cluster.is_removed(*id));
        unused.next().unwrap_or_default()
    }

    async fn propose(
        &self,
        caller: &Caller,
        kind: ChangeKind,
        member: MemberId,
        context: Vec<u8>,
    ) -> Result<Vec<Member>, Failure> {
        if member == MemberId(0) {
            // No member has this id. Earlier versions cannot read such an entry, and one of them may be in the cluster.
            return Err(ApiError::MemberNotFound.into());
        }
        let members = self.proposer.propose_members(kind, member, context).await?;
        info!(remote = %caller, %member, ?kind, "membership changed as asked");
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use bytes::Bytes;

    use super::*;
    use crate::core::cluster::MembersAction;
    use crate::types::LogIndex;

    /// Members from 1 on, this one first. `v` has started, `n` not; `l` is a learner that has, `u` one that has not.
    fn cluster(members: &str) -> ClusterStore {
        let mut store = ClusterStore::default();
        for (id, kind) in (1..).zip(members.chars()) {
            let name = if matches!(kind, 'v' | 'l') { format!("m{id}") } else { String::new() };
            let is_learner = matches!(kind, 'l' | 'u');
            let member =
                Member { id, name, is_learner, peer_urls: vec![format!("http://m{id}:1")], ..Member::default() };
            let action = if is_learner { MembersAction::AddLearner } else { MembersAction::AddVoter };
            let context = AddContext::add(member, 9).to_json();
            store.decide(action, MemberId(id), &Bytes::from(context)).expect("a new member");
        }
        store
    }

    /// Checks on `members`; the connections to them are `+` for long, `~` since a moment ago, `-` none.
    fn check(
        members: &str,
        connections: &str,
        rule: impl FnOnce(&Reconfiguration<'_>) -> Result<(), ApiError>,
        expected: Result<(), ApiError>,
    ) {
        let cluster = cluster(members);
        let start = Instant::now();
        let now = start + Duration::from_secs(60);
        let active_since = |id: MemberId| match connections.chars().nth(id.0 as usize - 1) {
            Some('+') => Some(start),
            Some('~') => Some(now - Duration::from_secs(4)),
            _ => None,
        };
        let checks = Reconfiguration { cluster: &cluster, own: MemberId(1), active_since: &active_since, now };
        assert_eq!(rule(&checks), expected, "{members} {connections}");
    }

    const FEW: Result<(), ApiError> = Err(ApiError::NotEnoughStartedMembers);
    const UNHEALTHY: Result<(), ApiError> = Err(ApiError::Unhealthy);

    #[test]
    fn additions() {
        let voter = |checks: &Reconfiguration<'_>| checks.may_add(false);
        check("v", "-", voter, Ok(()));
        // A second member that has not started is refused.
        check("vn", "--", voter, FEW);
        check("n", "-", voter, FEW);
        check("vv", "-+", voter, Ok(()));
        check("vv", "-~", voter, UNHEALTHY);
        check("vvv", "-++", voter, Ok(()));
        // With one down, what counts is whether the others would be a quorum of one more.
        check("vvv", "-+-", voter, UNHEALTHY);
        check("vvvv", "-++-", voter, Ok(()));
        check("vvvvv", "-++--", voter, UNHEALTHY);
        check("vvvvv", "-+++-", voter, Ok(()));
        check("vvn", "-+-", voter, FEW);
        let learner = |checks: &Reconfiguration<'_>| checks.may_add(true);
        check("vn", "--", learner, UNHEALTHY);
        check("v", "-", learner, Ok(()));
        check("vvv", "-++", learner, Ok(()));
    }

    #[test]
    fn removals() {
        let of = |id| move |checks: &Reconfiguration<'_>| checks.may_remove(MemberId(id));
        check("v", "-", of(1), FEW);
        check("vl", "--", of(2), Ok(()));
        check("vvv", "-+-", of(3), Ok(()));
        check("vvv", "-+-", of(2), UNHEALTHY);
        check("vvv", "-++", of(2), Ok(()));
        check("vvv", "-++", of(1), Ok(()));
        check("vvv", "-~+", of(1), UNHEALTHY);
        check("vnn", "---", of(3), FEW);
        check("vvn", "-+-", of(3), Ok(()));
        check("vv", "-+", of(2), Ok(()));
        check("vv", "-~", of(1), UNHEALTHY);
        // No member has this id; apply refuses it.
        check("vvv", "-++", of(9), Ok(()));
    }

    #[test]
    fn promotions() {
        let promote = |checks: &Reconfiguration<'_>| checks.may_promote();
        check("vl", "--", promote, Ok(()));
        check("vnl", "---", promote, Ok(()));
        check("vnnl", "----", promote, FEW);
    }

    #[test]
    fn a_learner_must_have_nearly_everything() {
        let progress = |learner| {
            [(1, 1000), (2, learner)].map(|(id, matched)| PeerProgress {
                member: MemberId(id),
                matched: LogIndex(matched),
                active: true,
            })
        };
        let members = cluster("vll");
        let ready = |id, progress: &[PeerProgress]| learner_is_ready(MemberId(id), MemberId(1), &members, progress);
        assert_eq!(ready(2, &progress(900)), Ok(()));
        assert_eq!(ready(2, &progress(899)), Err(ApiError::LearnerNotReady));
        assert_eq!(ready(2, &progress(0)), Err(ApiError::LearnerNotReady), "it has never started");
        assert_eq!(ready(3, &progress(900)), Err(ApiError::LearnerNotReady), "it was added a moment ago");
        assert_eq!(ready(4, &progress(900)), Err(ApiError::MemberNotFound));
        let removed = PeerProgress { member: MemberId(4), matched: LogIndex(1), active: false };
        let with_removed = [progress(900).to_vec(), vec![removed]].concat();
        assert_eq!(ready(4, &with_removed), Err(ApiError::MemberNotFound), "it was removed a moment ago");
        assert_eq!(ready(2, &[]), Err(ApiError::NotLeader));
    }
}
