//! The environment of one process's drivers: a disk that takes its time, a queue to apply, a network, and the observer of
//! apply.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{oneshot, watch};
use watershed::api_error::ApiError;
use watershed::core::alarm::AlarmStore;
use watershed::core::apply::{
    AppliedRequest, Applier, ApplyHandle, ApplyObserver, LeaseFact, ProposalOutcome, SharedPendingRequests,
};
use watershed::core::cluster::{ClusterStore, Member};
use watershed::core::mvcc::{HashKv, OperationCounts, RevisionEvents, StoreReader};
use watershed::core::peer::{CallError, Peer, PeerSet, Purpose};
use watershed::core::raft::{
    CommitSink, Committed, GroupWriter, MembersDecision, Outbound, PeerSink, PersistGroup, Proposal, ProposeError,
    ProposedChange, RaftHandle, RaftStatus, WalDriver, WalJob,
};
use watershed::core::server::{ComparedMember, Failure, LeaderAccess, LeaseClock, ReadIndex, checkpoint_request};
use watershed::core::watch::CoreWatch;
use watershed::pb::etcdserverpb::alarm_request::AlarmAction;
use watershed::pb::etcdserverpb::{
    AlarmRequest, AlarmType, InternalRaftRequest, LeaseCheckpointRequest, ResponseHeader,
};
use watershed::types::{ClusterId, LeaseId, LogIndex, LogPosition, MemberId, Revision, Term};

use super::context::Mutation;
use super::disk::SimDisk;

/// The thread that writes the log, as the raft driver sees it.
#[derive(Clone)]
pub struct SimWriter(Rc<RefCell<Writer>>);

struct Writer {
    log: WalDriver<SimDisk>,
    jobs: Vec<WalJob>,
    /// The disk is at work until an event says that it has finished.
    busy: bool,
    failed: Option<String>,
}

impl Writer {
    fn write(&mut self, jobs: Vec<WalJob>, report: impl FnMut(u64)) {
        if let Err(error) = self.log.write(jobs, report) {
            self.failed.get_or_insert(format!("{:#}", anyhow::Error::from(error)));
        }
    }
}

impl SimWriter {
    pub fn new(log: WalDriver<SimDisk>) -> Self {
        Self(Rc::new(RefCell::new(Writer { log, jobs: Vec::new(), busy: false, failed: None })))
    }

    /// Whether the disk is to begin now.
    pub fn begins(&self) -> bool {
        let writer = &mut *self.0.borrow_mut();
        let begins = !writer.busy && !writer.jobs.is_empty() && writer.failed.is_none();
        writer.busy |= begins;
        begins
    }

    /// Keeps the disk from beginning; tells whether it had not begun.
    pub fn stall(&self) -> bool {
        !std::mem::replace(&mut self.0.borrow_mut().busy, true)
    }

    /// The disk has had the time it needs: only now the files change, and a crash before leaves nothing.
    pub fn written(&self, report: impl FnMut(u64)) {
        let writer = &mut *self.0.borrow_mut();
        let jobs = std::mem::take(&mut writer.jobs);
        writer.write(jobs, report);
        writer.busy = writer.failed.is_some();
    }

    /// The process dies in the middle of what it writes.
    pub fn die(&self) {
        if self.0.borrow().busy {
            self.written(|_| {});
        }
    }

    /// Why the log cannot be written.
    pub fn failed(&self) -> Option<String> {
        self.0.borrow().failed.clone()
    }
}

impl GroupWriter for SimWriter {
    fn is_idle(&self) -> bool {
        let writer = self.0.borrow();
        writer.jobs.is_empty() && !writer.busy
    }

    fn write_here(&mut self, group: PersistGroup) -> bool {
        let mut durable = false;
        self.0.borrow_mut().write(vec![WalJob::Group(group)], |_| durable = true);
        durable
    }

    fn queue(&mut self, job: WalJob) {
        self.0.borrow_mut().jobs.push(job);
    }
}

/// What apply is to do, in order.
pub enum Due {
    Entry(Committed),
    /// A snapshot that replaces the state.
    Install(LogPosition),
}

/// The queue to apply.
#[derive(Clone)]
pub struct SimSink {
    pub due: Rc<RefCell<VecDeque<Due>>>,
    /// Entries that nobody has compared with what others committed.
    pub unchecked: Rc<RefCell<Vec<Committed>>>,
    pub pending: Arc<SharedPendingRequests>,
}

impl CommitSink for SimSink {
    fn committed(&mut self, entries: Vec<Committed>) {
        self.unchecked.borrow_mut().extend(entries.iter().cloned());
        self.due.borrow_mut().extend(entries.into_iter().map(Due::Entry));
    }

    fn install(&mut self, position: LogPosition) {
        self.due.borrow_mut().push_back(Due::Install(position));
    }

    fn dropped(&mut self, request: u64, term: Term) {
        self.pending.dropped(request, term);
    }
}

/// Messages that leave the process.
#[derive(Clone, Default)]
pub struct SimPeers(Rc<RefCell<Outbox>>);

#[derive(Default)]
struct Outbox {
    messages: Vec<Outbound>,
    raft: Option<RaftHandle>,
    /// Something left while reads were local: whoever hears it may lead, or acknowledge.
    too_late: bool,
}

impl SimPeers {
    pub fn watch(&self, raft: RaftHandle) {
        self.0.borrow_mut().raft = Some(raft);
    }

    /// What has left, and whether reads were local then.
    pub fn take(&self) -> (Vec<Outbound>, bool) {
        let outbox = &mut *self.0.borrow_mut();
        (std::mem::take(&mut outbox.messages), outbox.too_late)
    }
}

impl PeerSink for SimPeers {
    fn send(&mut self, messages: Vec<Outbound>) {
        let outbox = &mut *self.0.borrow_mut();
        outbox.too_late |= outbox.raft.as_ref().is_some_and(RaftHandle::reads_are_local);
        outbox.messages.extend(messages);
    }
}

/// The peers of one process and its connections. A connection has a number, and is open as long as both sides have it.
pub struct SimTransport {
    pub peers: PeerSet,
    pub dialled: BTreeMap<(MemberId, Purpose), u64>,
    pub accepted: BTreeMap<(MemberId, Purpose), u64>,
}

impl SimTransport {
    pub fn new(member: MemberId) -> Self {
        let peers = PeerSet::new(ClusterId(1), member);
        Self { peers, dialled: BTreeMap::new(), accepted: BTreeMap::new() }
    }

    /// Follows the member list.
    pub fn set_peers<'a>(&mut self, members: impl Iterator<Item = &'a Member>, removed: &BTreeSet<MemberId>) {
        let members = members.map(|member| Peer { id: member.member_id(), urls: member.peer_urls.clone() });
        let accepted = &self.accepted;
        let is_connected = |peer| accepted.keys().any(|(from, _)| *from == peer);
        for ended in self.peers.set_peers(members.collect(), removed.clone(), is_connected).ended {
            self.dialled.retain(|(peer, _), _| *peer != ended);
            self.accepted.retain(|(peer, _), _| *peer != ended);
        }
    }
}

/// What apply did.
#[derive(Default)]
pub struct Happened {
    /// This member was removed.
    pub removed: bool,
    pub installed: Vec<LogIndex>,
    pub compactions: u64,
}

/// Passes what apply did on to watchers, deadlines, connections and consensus, as the server does.
pub struct SimObserver {
    pub member: MemberId,
    pub transport: Rc<RefCell<SimTransport>>,
    pub records: Arc<Mutex<Records>>,
    pub raft: RaftHandle,
    pub watch: CoreWatch,
    pub leases: Arc<LeaseClock>,
    pub happened: Rc<RefCell<Happened>>,
    pub mutation: Option<Mutation>,
    pub random: fastrand::Rng,
}

impl ApplyObserver for SimObserver {
    fn applied_request(&mut self, _: &AppliedRequest, _: Duration) {}

    fn operations(&mut self, _: &OperationCounts) {}

    fn events(&mut self, events: Vec<RevisionEvents>) {
        if self.mutation != Some(Mutation::LostEvents) || self.random.u8(..50) > 0 {
            self.watch.append(events);
        }
    }

    fn leases(&mut self, facts: &[LeaseFact]) {
        self.leases.apply_facts(facts);
    }

    fn members_decided(&mut self, mut decisions: Vec<MembersDecision>) {
        if self.mutation == Some(Mutation::DeafConsensus) {
            // The first three are the cluster's beginning.
            decisions.iter_mut().for_each(|decision| decision.accepted &= decision.index.0 <= 3);
        }
        self.raft.members_decided(decisions);
    }

    fn records(&mut self, cluster: &ClusterStore, alarms: &AlarmStore) {
        self.records.lock().set(cluster, alarms);
        self.transport.borrow_mut().set_peers(cluster.members(), cluster.removed());
        self.happened.borrow_mut().removed |= cluster.is_removed(self.member);
    }

    fn installed(&mut self, applier: &Applier) {
        if self.mutation != Some(Mutation::NoJump) {
            self.watch.jump();
        }
        self.leases.replace(applier.leases());
        self.records(applier.cluster(), applier.alarms());
        self.happened.borrow_mut().installed.push(applier.position().index);
    }

    fn applied(&mut self, index: LogIndex) {
        self.raft.set_applied(index);
    }

    fn over_quota(&mut self) {}

    fn compaction_slice(&mut self, _: Duration) {}

    fn compacted(&mut self, _: usize, _: Duration) {
        self.happened.borrow_mut().compactions += 1;
    }

    fn failed(&mut self, _: String) {}
}

/// What the leader's answers to lease requests need of their process.
#[derive(Clone)]
pub struct SimAccess {
    pub raft: RaftHandle,
    pub reads: Arc<ReadIndex>,
    pub leases: Arc<LeaseClock>,
    pub pending: Arc<SharedPendingRequests>,
    pub next_request: Arc<AtomicU64>,
    pub member: MemberId,
    pub reader: StoreReader,
    pub apply: ApplyHandle,
    pub records: Arc<Mutex<Records>>,
    /// Calls to other members that were not sent yet.
    pub calls: Arc<Mutex<Vec<Call>>>,
}

/// What this member has applied of members and alarms.
#[derive(Default)]
pub struct Records {
    pub members: Vec<MemberId>,
    /// Members that CORRUPT alarms name.
    pub corrupt: Vec<MemberId>,
}

impl Records {
    pub fn set(&mut self, cluster: &ClusterStore, alarms: &AlarmStore) {
        self.members = cluster.members().map(Member::member_id).collect();
        self.corrupt = alarms.list(AlarmType::Corrupt).iter().map(|alarm| MemberId(alarm.member_id)).collect();
    }
}

/// A question to another member.
pub struct Call {
    pub to: MemberId,
    pub method: &'static str,
    pub body: Bytes,
    pub reply: oneshot::Sender<Result<Bytes, CallError>>,
}

impl SimAccess {
    pub fn request_id(&self) -> u64 {
        self.next_request.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Registers a request and hands it to consensus.
    pub fn propose(
        &self,
        request: &InternalRaftRequest,
        term: Term,
        propose: impl FnOnce(&RaftHandle, Proposal) -> Result<(), ProposeError>,
    ) -> Result<oneshot::Receiver<ProposalOutcome>, ProposeError> {
        let proposal = Proposal { request: request.id, term, bytes: request.encode_to_vec().into() };
        self.pending.propose(request.id, term, || propose(&self.raft, proposal))
    }

    /// The same for a membership change.
    pub fn propose_members(
        &self,
        change: &ProposedChange,
        term: Term,
    ) -> Result<oneshot::Receiver<ProposalOutcome>, ProposeError> {
        self.pending.propose(change.request, term, || self.raft.propose_members(change.clone(), term))
    }

    pub fn checkpoints(&self, checkpoints: LeaseCheckpointRequest) -> InternalRaftRequest {
        InternalRaftRequest { id: self.request_id(), lease_checkpoint: Some(checkpoints), ..Default::default() }
    }
}

impl LeaderAccess for SimAccess {
    fn member(&self) -> MemberId {
        MemberId(0)
    }

    fn status(&self) -> watch::Receiver<RaftStatus> {
        self.raft.status()
    }

    fn clock(&self) -> &LeaseClock {
        &self.leases
    }

    fn renewed(&self) {}

    async fn confirm(&self) -> Result<(), Failure> {
        Ok(self.reads.linearizable().await?)
    }

    async fn clear_checkpoints(&self, leases: &[LeaseId], term: Term) -> Result<(), Failure> {
        let request = self.checkpoints(checkpoint_request(leases.iter().map(|lease| (*lease, 0))));
        match self.propose(&request, term, RaftHandle::propose_as_leader)?.await {
            Ok(ProposalOutcome::Applied(Ok(_))) => Ok(()),
            _ => Err(ApiError::LeaderChanged.into()),
        }
    }

    async fn call(&self, to: MemberId, _: &'static str, _: Bytes) -> Result<Bytes, CallError> {
        Err(CallError::UnknownPeer(to))
    }
}

impl ComparedMember for SimAccess {
    fn member(&self) -> MemberId {
        self.member
    }

    fn cluster(&self) -> ClusterId {
        ClusterId(1)
    }

    fn others(&self) -> Vec<MemberId> {
        self.records.lock().members.iter().copied().filter(|member| *member != self.member).collect()
    }

    fn is_leader(&self) -> bool {
        self.raft.status().borrow().is_leader
    }

    fn store(&self) -> &StoreReader {
        &self.reader
    }

    fn header(&self, revision: Revision) -> ResponseHeader {
        ResponseHeader { cluster_id: 1, member_id: self.member.0, revision: revision.0, ..Default::default() }
    }

    fn is_named(&self, member: MemberId) -> bool {
        self.records.lock().corrupt.contains(&member)
    }

    async fn own_hash(&self, revision: Revision) -> Result<(HashKv, Revision), Failure> {
        Ok(self.reader.hash_kv(revision)?)
    }

    async fn wait_for_revision(&self, revision: Revision) {
        let _ = self.apply.progress().wait_for(|_| self.reader.revision() >= revision).await;
    }

    async fn confirm(&self) -> Result<(), Failure> {
        Ok(self.reads.linearizable().await?)
    }

    async fn call(&self, to: MemberId, method: &'static str, body: Bytes) -> Result<Bytes, CallError> {
        let (reply, answer) = oneshot::channel();
        self.calls.lock().push(Call { to, method, body, reply });
        answer.await.unwrap_or(Err(CallError::Lost(to)))
    }

    async fn raise(&self, suspect: MemberId) -> Result<(), Failure> {
        let (action, alarm) = (AlarmAction::Activate as i32, AlarmType::Corrupt as i32);
        let alarm = Some(AlarmRequest { action, member_id: suspect.0, alarm });
        let request = InternalRaftRequest { id: self.request_id(), alarm, ..Default::default() };
        let _ = self.propose(&request, self.raft.term(), RaftHandle::propose)?.await;
        Ok(())
    }
}
