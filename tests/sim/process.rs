//! One run of a member: the program's drivers. This file decides when each of them goes on, which in the program threads,
//! channels and clocks do.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io::{Read, Write as _};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use prost::Message;
use tokio::sync::oneshot;
use watershed::api_error::ApiError;
use watershed::core::alarm::AlarmStore;
use watershed::core::apply::{
    Applier, ApplierConfig, ApplyDriver, ApplyHandle, ApplyProgress, PROPOSE_PAUSE, PreparedSnapshots, ProposalDriver,
    ProposalEnd, ProposalOutcome, ProposalStep, SharedPendingRequests, open_leases,
};
use watershed::core::auth::AuthStore;
use watershed::core::backend::{Backend, Table};
use watershed::core::lease::{LeaseStore, Lessor, LessorConfig};
use watershed::core::mvcc::{Store, StoreReader};
use watershed::core::raft::{
    ChangeKind, Committed, CommittedKind, LogTail, NodeConfig, Outbound, PeerMessage, PlantedFault, ProposedChange,
    RaftDriver, RaftHandle, RaftInbox, RaftNode, WalDriver,
};
use watershed::core::server::{
    Bootstrap, Failure as LeaseFailure, LeaseClock, LeaseDriver, RENEW, ReadIndex, ReceivedSnapshot, RecoverError,
    Renewal, WalCompaction, answer_as_leader, answer_comparison, check_compactions, check_state, checkpoint_request,
    read_renewed, renewals_body, write_db_snapshot,
};
use watershed::core::watch::CoreWatch;
use watershed::eventlog::{HeaderSource, WatchLimits, WatcherSetHandle};
use watershed::pb::etcdserverpb::{InternalRaftRequest, LeaseRevokeRequest, RangeRequest, RangeResponse};
use watershed::shutdown::Tasks;
use watershed::telemetry::{DiskMetrics, Metrics, ServerMetrics, WatchMetrics};
use watershed::types::{ClusterId, LeaseId, LogIndex, MemberId, Revision, Term};

use super::client::{Answer, Ask, OpId};
use super::context::{Context, Event, MILLI, Micros, Mutation, SECOND, Work};
use super::disk::SimDisk;
use super::model::{Reply, TTL_MIN, recode};
use super::recover;
use super::surroundings::{
    Call, Due, Happened, Records, SimAccess, SimObserver, SimPeers, SimSink, SimTransport, SimWriter,
};

/// As in the program with its defaults.
pub const TICK: Micros = 100 * MILLI;
pub const ELECTION: Micros = SECOND;
const EXPIRY_TICKS: u64 = 2;
const LEASE_CHECKPOINT_TICKS: u64 = 5;
const REQUEST_TIMEOUT: Micros = 7 * SECOND;
const PROPOSE_MEMBERS_PAUSE: Micros = SECOND / 2;
/// Pause between two comparisons of states, about.
const COMPARE: Micros = 6 * SECOND;
const BEHIND_MAX: u64 = 5000;
/// Small, so that much happens in little time.
const CATCH_UP_ENTRIES: u64 = 4;
const SNAPSHOT_COUNT: u64 = 12;
const EVENT_LOG_BYTES: usize = 4000;
const SLICE_RECORDS: usize = 20;
const SEGMENTS_MIN: usize = 2;
/// Why a member that was removed does not start.
pub const REMOVED: &str = "removed";

/// Why a process ended by itself.
pub type Failure = String;

type Waiting<T> = Pin<Box<dyn Future<Output = T>>>;
type Confirmation = Waiting<Result<(), ApiError>>;
type RenewalAnswer = Waiting<Result<Bytes, LeaseFailure>>;

/// A proposal on its way through the log.
struct Write {
    /// The client that waits; nobody waits for a membership change.
    op: Option<OpId>,
    deadline: Micros,
    entry: Entry,
    proposal: ProposalDriver,
    outcome: Option<oneshot::Receiver<ProposalOutcome>>,
    pause_until: Micros,
    /// When a membership change is sent again, for raft drops a second one while another is in progress.
    again_at: Micros,
}

enum Entry {
    Request(Box<InternalRaftRequest>),
    Members(ProposedChange),
}

impl Entry {
    fn id(&self) -> u64 {
        match self {
            Self::Request(request) => request.id,
            Self::Members(change) => change.request,
        }
    }
}

pub struct Process {
    /// Index of the member in the cluster.
    pub index: usize,
    pub boot: u32,
    pub member: MemberId,
    /// Its clock goes this many thousandths of the real one.
    pace: u64,
    started: Micros,
    /// What its clock says, in microseconds.
    clock: Arc<AtomicU64>,
    ticks: u64,
    inbox: RaftInbox,
    pub raft: RaftHandle,
    driver: RaftDriver<SimWriter, SimSink, SimPeers>,
    raft_scheduled: bool,
    writer: SimWriter,
    sink: SimSink,
    peers: SimPeers,
    pub transport: Rc<RefCell<SimTransport>>,
    /// Whether this member may end because others say that it was removed.
    told_removed: Vec<oneshot::Receiver<bool>>,
    /// It was removed, and ends.
    pub removed: bool,
    /// It has failed, and ends soon.
    ending: bool,
    apply: ApplyDriver<SimObserver>,
    applied: ApplyHandle,
    apply_scheduled: bool,
    slice_scheduled: bool,
    /// Compactions wait until it is taken away.
    pub holds_compactions: bool,
    happened: Rc<RefCell<Happened>>,
    prepared_snapshots: Arc<PreparedSnapshots>,
    pub backend: Backend,
    wal_compaction: WalCompaction,
    pub reader: StoreReader,
    pub leases: Arc<RwLock<LeaseStore>>,
    lease_driver: LeaseDriver,
    access: SimAccess,
    confirming: Option<Confirmation>,
    revokes: Vec<oneshot::Receiver<ProposalOutcome>>,
    pub watch: CoreWatch,
    pub watchers: WatcherSetHandle,
    tasks: Tasks,
    writes: Vec<Write>,
    reads: Vec<(OpId, Micros, RangeRequest, Confirmation)>,
    renewals: Vec<(OpId, LeaseId, RenewalAnswer)>,
    /// Renewals of leases that have run out and are not revoked yet.
    run_out: Vec<(OpId, Waiting<()>)>,
    /// Answers that are ready to go.
    answers: Vec<(OpId, Answer)>,
    /// A comparison of states, with the revision up to which those after compactions are done.
    comparing: Option<Waiting<Revision>>,
    compared: Revision,
    /// Calls of other members, by their number.
    answering: Vec<(u64, Waiting<Result<Bytes, LeaseFailure>>)>,
    /// Those that are answered.
    pub answered: Vec<(u64, Bytes)>,
    /// The value of the next put differs in one bit when it is applied.
    pub flips_next_put: bool,
    /// Took requests from some moment on: the only voter answers reads by itself, once it has replayed its log.
    serves: bool,
    /// Messages that are ready to go.
    pub outbox: Vec<Outbound>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

fn text(error: impl std::fmt::Display) -> Failure {
    error.to_string()
}

impl Process {
    /// Opens what is on the disk and starts every part.
    pub fn start(
        context: &mut Context,
        index: usize,
        boot: u32,
        disk: &SimDisk,
        birth: &Bootstrap,
    ) -> Result<Self, Failure> {
        let opened = recover::open(&disk.next_run(), birth).map_err(|error| match error {
            RecoverError::Removed { .. } => REMOVED.to_owned(),
            other => format!("{:#}", anyhow::Error::from(other)),
        })?;
        if opened.recovered.cut.is_some() {
            context.counts.torn_tails += 1;
        }
        let member = opened.metadata.member;
        let store = Store::open(opened.backend.clone()).map_err(text)?;
        let reader = store.reader();
        let leases = Arc::new(RwLock::new(open_leases(&opened.backend, &store, TTL_MIN).map_err(text)?));
        let alarms = AlarmStore::open(&opened.backend.rows(Table::Alarm).map_err(text)?);
        let auth = AuthStore::open(&opened.backend).map_err(text)?;
        let pending = Arc::new(SharedPendingRequests::default());
        let (progress, apply_handle) = ApplyProgress::new(pending.clone(), opened.position.index);

        let config = NodeConfig {
            member,
            election_ticks: (ELECTION / TICK) as usize,
            heartbeat_ticks: 1,
            pre_vote: true,
            applied: opened.position.index,
            seed: context.random.u64(..),
        };
        let conf_state = opened.members.conf_state();
        let log = LogTail::new(opened.log_base, opened.recovered.entries, &opened.recovered.hard_state, &conf_state);
        let node = RaftNode::new(&config, log).map_err(text)?;
        let metrics = Metrics::default();
        let writer = SimWriter::new(WalDriver::new(opened.wal, SEGMENTS_MIN, DiskMetrics::register(&metrics)));
        let sink = SimSink { due: Rc::default(), unchecked: Rc::default(), pending: pending.clone() };
        let (peers, inbox) = (SimPeers::default(), RaftInbox::new());
        let (driver, raft) = RaftDriver::new(node, writer.clone(), sink.clone(), peers.clone(), &inbox, BEHIND_MAX);
        peers.watch(raft.clone());
        raft.set_applied(opened.position.index);

        let clock = Arc::new(AtomicU64::new(0));
        let of_leases = clock.clone();
        // Rests of leases are noted often, so that even short ones have theirs.
        let lessor_config = LessorConfig { checkpoint_interval: Duration::from_secs(3), ..LessorConfig::default() };
        let lessor = Lessor::new(lessor_config, leases.read().all());
        let now = move || Duration::from_micros(of_leases.load(Ordering::Relaxed));
        let lease_clock = Arc::new(LeaseClock::with_time(leases.clone(), lessor, Box::new(now)));
        let watch = CoreWatch::inline(reader.clone(), EVENT_LOG_BYTES);
        let tasks = Tasks::new();
        let watchers = watcher_set(&metrics, member, boot, &tasks);

        let mut transport = SimTransport::new(member);
        match opened.members.members().next() {
            Some(_) => transport.set_peers(opened.members.members(), opened.members.removed()),
            None => transport.set_peers(birth.running.iter(), opened.members.removed()),
        }
        let transport = Rc::new(RefCell::new(transport));
        let records = Arc::new(Mutex::new(Records::default()));
        records.lock().set(&opened.members, &alarms);
        let happened = Rc::<RefCell<Happened>>::default();
        let observer = SimObserver {
            member,
            transport: transport.clone(),
            records: records.clone(),
            raft: raft.clone(),
            watch: watch.clone(),
            leases: lease_clock.clone(),
            happened: happened.clone(),
            mutation: context.settings.mutation,
            random: fastrand::Rng::with_seed(context.random.u64(..)),
        };
        let applier_config = ApplierConfig { quota_bytes: -1 };
        let applier =
            Applier::new(store, leases.clone(), opened.members, alarms, auth, opened.backend.clone(), applier_config);
        let prepared_snapshots = Arc::new(PreparedSnapshots::default());
        let apply = ApplyDriver::new(applier, observer, progress, prepared_snapshots.clone());
        let first_request = (member.0 & 0xffff) << 48 | u64::from(boot) << 32;
        let slow = ServerMetrics::register(&metrics).slow_read_indexes.clone();
        let timeout = Duration::from_micros(REQUEST_TIMEOUT);
        let reads = ReadIndex::new(raft.clone(), apply_handle.clone(), timeout, slow);
        let access = SimAccess {
            member,
            reader: reader.clone(),
            apply: apply_handle.clone(),
            records: records.clone(),
            calls: Arc::default(),
            raft: raft.clone(),
            reads: Arc::new(reads),
            leases: lease_clock.clone(),
            pending,
            next_request: Arc::new(AtomicU64::new(first_request)),
        };
        let mut process = Self {
            index,
            boot,
            member,
            // The checkers of histories know of no clocks that differ.
            pace: if context.settings.recorded { 1000 } else { context.random.u64(982..=1018) },
            started: context.now,
            clock,
            ticks: 0,
            inbox,
            raft,
            driver,
            raft_scheduled: false,
            writer,
            sink,
            peers,
            transport,
            told_removed: Vec::new(),
            removed: false,
            ending: false,
            apply,
            applied: apply_handle,
            apply_scheduled: false,
            slice_scheduled: false,
            holds_compactions: false,
            happened,
            prepared_snapshots,
            wal_compaction: WalCompaction::new(opened.backend.clone(), SNAPSHOT_COUNT),
            backend: opened.backend,
            reader,
            leases,
            lease_driver: LeaseDriver::new(lease_clock, Duration::from_micros(ELECTION)),
            access,
            confirming: None,
            revokes: Vec::new(),
            watch,
            watchers,
            tasks,
            writes: Vec::new(),
            reads: Vec::new(),
            renewals: Vec::new(),
            run_out: Vec::new(),
            answers: Vec::new(),
            comparing: None,
            compared: Revision(0),
            answering: Vec::new(),
            answered: Vec::new(),
            flips_next_put: false,
            serves: context.planted(PlantedFault::ReadsLocalBeforeReplay),
            outbox: Vec::new(),
        };
        context.note("start", [member.0, boot.into(), process.applied().0]);
        process.schedule(context, TICK, Work::Tick);
        let checkpoint = context.random.u64(SECOND..8 * SECOND);
        process.schedule(context, checkpoint, Work::Checkpoint);
        process.schedule(context, COMPARE, Work::Compare);
        process.turn(context)?;
        Ok(process)
    }

    fn schedule(&self, context: &mut Context, delay: Micros, work: Work) {
        context.after(delay, Event::Process { member: self.index, boot: self.boot, work });
    }

    /// Time since the start by this process's clock.
    fn set_clock(&self, context: &Context) {
        let mut micros = (context.now - self.started) * self.pace / 1000;
        if context.mutated(Mutation::HastyLessor) {
            micros *= 2;
        }
        self.clock.store(micros, Ordering::Relaxed);
    }

    pub fn leads(&self) -> bool {
        self.driver.node().is_leader()
    }

    /// Does a piece of work that was scheduled.
    pub fn work(&mut self, context: &mut Context, work: Work) -> Result<(), Failure> {
        self.set_clock(context);
        match work {
            Work::Tick => self.tick(context)?,
            Work::Raft => {
                self.raft_scheduled = false;
                self.turn(context)?;
            }
            Work::Written => self.writer.written(self.inbox.persisted()),
            Work::Apply => self.apply(context)?,
            Work::Checkpoint => self.checkpoint(context)?,
            Work::CompactionSlice => self.compaction_slice(context),
            Work::Compare => self.compare(context),
            Work::End => return Err(self.writer.failed().unwrap_or_default()),
        }
        self.follow(context);
        Ok(())
    }

    // Consensus.

    fn tick(&mut self, context: &mut Context) -> Result<(), Failure> {
        self.ticks += 1;
        self.driver.take(self.inbox.messages()).map_err(text)?;
        self.driver.tick();
        let node = self.driver.node();
        context.whisper(format_args!("tick {} {node:?} of {:?}", self.member, node.conf_state().voters));
        self.drive(context)?;
        self.keep_leases(context);
        self.schedule(context, TICK * 1000 / self.pace, Work::Tick);
        Ok(())
    }

    /// The raft thread wakes up.
    pub fn turn(&mut self, context: &mut Context) -> Result<(), Failure> {
        self.set_clock(context);
        self.driver.take(self.inbox.messages()).map_err(text)?;
        self.drive(context)?;
        self.follow(context);
        Ok(())
    }

    fn drive(&mut self, context: &mut Context) -> Result<(), Failure> {
        if self.driver.drive().map_err(text)? && !self.raft_scheduled {
            self.raft_scheduled = true;
            self.schedule(context, MILLI, Work::Raft);
        }
        for entry in self.sink.unchecked.borrow_mut().drain(..) {
            context.committed(self.member, &entry);
        }
        let (messages, too_late) = self.peers.take();
        if too_late {
            context.fail(format_args!("{} sent a message while its reads were local", self.member));
        }
        self.outbox.extend(messages);
        let status = *self.raft.status().borrow();
        if status.is_leader {
            context.leads(self.member, status.term);
        }
        // A member that leads no more keeps its deadlines, with this fault.
        if (status.is_leader || !context.mutated(Mutation::LessorStays)) && self.lease_driver.follow(&status) {
            self.revokes.clear();
            self.confirming = None;
        }
        let node = self.driver.node();
        let upto_date = node.is_ready_leader() && self.applied() >= node.committed();
        let known = !node.conf_state().voters.is_empty();
        self.serves |= known && (!node.is_sole_voter() || upto_date);
        Ok(())
    }

    /// A message of a peer has arrived.
    pub fn receive(&mut self, context: &mut Context, from: MemberId, bytes: &Bytes) {
        context.whisper(format_args!("{from} to {}: {bytes:x?}", self.member));
        if let Err(error) = self.raft.receive(from, bytes.clone()) {
            context.fail(format_args!("an honest message was refused: {error}"));
        }
        self.follow(context);
    }

    /// A member that was dialled has answered that this one was removed.
    pub fn told_removed(&mut self, context: &mut Context, by: MemberId) {
        self.told_removed.push(self.raft.told_removed(by));
        self.follow(context);
    }

    /// Takes a membership change, and proposes it until it is decided or the time is over.
    pub fn change_members(&mut self, context: &mut Context, kind: ChangeKind, member: MemberId, json: Vec<u8>) {
        context.note("propose members", [self.member.0, kind as u64, member.0]);
        let change = ProposedChange { request: self.access.request_id(), kind, member, context: json.into() };
        self.write(context, None, Entry::Members(change));
        self.follow(context);
    }

    fn write(&mut self, context: &Context, op: Option<OpId>, entry: Entry) {
        let (deadline, proposal) = (context.now + REQUEST_TIMEOUT, ProposalDriver::default());
        self.writes.push(Write { op, deadline, entry, proposal, outcome: None, pause_until: 0, again_at: 0 });
    }

    // The log writer.

    fn start_writing(&mut self, context: &mut Context) {
        if !self.writer.begins() {
            return;
        }
        let delay = match context.random.u16(..2000) {
            0 if context.faulty => context.random.u64(..4 * SECOND),
            1..20 => context.random.u64(..200 * MILLI),
            _ => context.random.u64(500..5 * MILLI),
        };
        self.schedule(context, delay, Work::Written);
    }

    /// What is written next takes this long.
    pub fn stall_disk(&mut self, context: &mut Context, span: Micros) {
        if self.writer.stall() {
            self.schedule(context, span, Work::Written);
        }
    }

    /// The process dies in the middle of what it writes.
    pub fn die_writing(&mut self) {
        self.writer.die();
    }

    // Apply.

    fn schedule_apply(&mut self, context: &mut Context) {
        if !self.apply_scheduled && !self.sink.due.borrow().is_empty() {
            self.apply_scheduled = true;
            let delay =
                if context.one_in(50) { context.random.u64(..500 * MILLI) } else { context.random.u64(..MILLI) };
            self.schedule(context, delay, Work::Apply);
        }
        if !self.slice_scheduled && !self.holds_compactions && self.apply.is_compacting() {
            self.slice_scheduled = true;
            let delay = if context.one_in(4) { context.random.u64(..3 * SECOND) } else { 10 * MILLI };
            self.schedule(context, delay, Work::CompactionSlice);
        }
    }

    fn apply(&mut self, context: &mut Context) -> Result<(), Failure> {
        self.apply_scheduled = false;
        let mut left = context.random.usize(1..=20);
        let mut batch = VecDeque::new();
        let mut due = self.sink.due.borrow_mut();
        while let Some(Due::Entry(mut entry)) = due.pop_front_if(|due| left > 0 && matches!(due, Due::Entry(_))) {
            left -= 1;
            if self.flips_next_put && flip(&mut entry) {
                self.flips_next_put = false;
                context.truth.damaged.insert(self.member.0);
            }
            if !context.mutated(Mutation::SkipEntry) || !context.one_in(100) {
                batch.push_back(entry);
            }
        }
        let install = if batch.is_empty() { due.pop_front() } else { None };
        drop(due);
        while !batch.is_empty() {
            self.apply.apply(&mut batch).map_err(text)?;
        }
        match install {
            Some(Due::Install(position)) => self.apply.install(position).map_err(text)?,
            // All entries of this batch were left out on purpose.
            Some(due @ Due::Entry(_)) => self.sink.due.borrow_mut().push_front(due),
            None => {}
        }
        let happened = std::mem::take(&mut *self.happened.borrow_mut());
        self.removed |= happened.removed;
        for index in happened.installed {
            context.counts.snapshots += 1;
            context.note("installed", [self.member.0, index.0, 0]);
        }
        Ok(())
    }

    fn compaction_slice(&mut self, context: &mut Context) {
        self.slice_scheduled = false;
        self.apply.compact_slice(SLICE_RECORDS, |hash| {
            if let Err(error) = hash.run() {
                context.fail(format_args!("the hash of a compaction cannot be computed: {error}"));
            }
        });
        context.counts.compactions += std::mem::take(&mut self.happened.borrow_mut().compactions);
    }

    fn checkpoint(&mut self, context: &mut Context) -> Result<(), Failure> {
        self.backend.checkpoint().map_err(text)?;
        context.counts.checkpoints += 1;
        if let Some(snapshot) = self.wal_compaction.due().map_err(text)? {
            self.raft.state_saved(snapshot, CATCH_UP_ENTRIES);
        }
        let next = context.random.u64(SECOND..8 * SECOND);
        self.schedule(context, next, Work::Checkpoint);
        Ok(())
    }

    /// A db snapshot of the newest state, and the message that announces it.
    pub fn db_snapshot(&self, to: MemberId, message: &Bytes) -> Result<(Bytes, Vec<u8>), Failure> {
        let mut source = write_db_snapshot(&self.backend, &std::env::temp_dir(), to, message)?;
        let mut bytes = Vec::new();
        source.db_snapshot.read_to_end(&mut bytes).map_err(text)?;
        Ok((source.message, bytes))
    }

    /// A db snapshot has arrived.
    pub fn receive_snapshot(
        &mut self,
        context: &mut Context,
        from: MemberId,
        message: &Bytes,
        db_snapshot: &[u8],
    ) -> Result<(), Failure> {
        let parsed = PeerMessage::snapshot(self.member, from, message).map_err(text)?;
        let mut file = tempfile::NamedTempFile::new().map_err(text)?;
        file.write_all(db_snapshot).map_err(text)?;
        let (snapshots, position) = (self.prepared_snapshots.clone(), parsed.snapshot_position());
        let received = ReceivedSnapshot::prepare(&self.backend, &snapshots, file.path(), position).map_err(text)?;
        let mut accepted = self.raft.receive_snapshot(parsed);
        self.turn(context)?;
        match accepted.try_recv() {
            Ok(true) => Ok(()),
            _ => received.refused(&snapshots).map_err(text),
        }
    }

    /// Compares states as the leader does periodically: those there are now, or those after compactions.
    fn compare(&mut self, context: &mut Context) {
        let next = context.random.u64(COMPARE / 2..COMPARE * 2);
        self.schedule(context, next, Work::Compare);
        // One that has no answer yet was given up.
        self.comparing = None;
        if !self.leads() {
            return;
        }
        context.counts.comparisons += 1;
        let (access, compared) = (self.access.clone(), self.compared);
        self.comparing = Some(match context.random.bool() {
            true => Box::pin(async move { check_compactions(&access, compared).await }),
            false => Box::pin(async move {
                let _ = check_state(&access).await;
                compared
            }),
        });
        self.follow(context);
    }

    /// Another member asks.
    pub fn call(&mut self, context: &mut Context, number: u64, method: &'static str, body: Bytes) {
        let access = self.access.clone();
        self.answering.push((number, Box::pin(async move { answer_comparison(&access, method, body).await })));
        self.follow(context);
    }

    /// Calls to other members that are ready to go.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.access.calls.lock())
    }

    /// Members that CORRUPT alarms name, as far as this member has applied.
    pub fn corrupt(&self) -> Vec<MemberId> {
        self.access.records.lock().corrupt.clone()
    }

    fn follow_comparisons(&mut self) {
        if let Some(compared) = self.comparing.as_mut().and_then(poll) {
            (self.comparing, self.compared) = (None, compared);
        }
        let answered = &mut self.answered;
        self.answering.retain_mut(|(number, waiting)| match poll(waiting) {
            // The caller hears nothing of a failure, as of a lost connection.
            Some(answer) => {
                answered.extend(answer.ok().map(|answer| (*number, answer)));
                false
            }
            None => true,
        });
    }

    // Leases.

    fn keep_leases(&mut self, context: &mut Context) {
        if self.ticks.is_multiple_of(LEASE_CHECKPOINT_TICKS) {
            self.lease_driver.checkpoint(|term, due| {
                let noted = due.into_iter().map(|due| (due.lease, due.remaining_ttl));
                let request = self.access.checkpoints(checkpoint_request(noted));
                // Nobody waits for it: one that is lost is made up for by the next.
                let _ = self.access.propose(&request, term, RaftHandle::propose_as_leader);
                self.access.pending.forget(request.id);
            });
        }
        if self.ticks.is_multiple_of(EXPIRY_TICKS) {
            self.lease_driver.look();
        }
        self.revoke_expired(context);
    }

    fn revoke_expired(&mut self, context: &mut Context) {
        for lease in self.lease_driver.expired() {
            let term = self.lease_driver.term().unwrap_or_default();
            let id = self.access.request_id();
            let lease_revoke = Some(LeaseRevokeRequest { id: lease.0 });
            let request = InternalRaftRequest { id, lease_revoke, ..Default::default() };
            context.truth.expiries.insert(id, lease.0);
            let proposed = match context.mutated(Mutation::LessorStays) {
                true => self.access.propose(&request, self.raft.term(), RaftHandle::propose),
                false => self.access.propose(&request, term, RaftHandle::propose_as_leader),
            };
            match proposed {
                Ok(outcome) => self.revokes.push(outcome),
                Err(_) => self.lease_driver.revoked(),
            }
        }
    }

    // Clients.

    /// A request of a client has arrived. Tells the number it is in the log under.
    pub fn request(&mut self, context: &mut Context, op: OpId, ask: &Ask) -> Option<u64> {
        let deadline = context.now + REQUEST_TIMEOUT;
        let mut number = None;
        match ask {
            Ask::Write(request) => {
                let id = self.access.request_id();
                let request = InternalRaftRequest { id, ..request.clone() };
                number = Some(id);
                context.truth.waiting.insert(id, op);
                self.write(context, Some(op), Entry::Request(Box::new(request)));
            }
            Ask::Read { request, linearizable } => {
                let access = self.access.clone();
                let mut waiting: Confirmation = Box::pin(async move { access.reads.linearizable().await });
                if !linearizable || context.mutated(Mutation::ReadWithoutIndex) {
                    waiting = Box::pin(async { Ok(()) });
                } else if context.mutated(Mutation::ReadBeforeApplied) {
                    let raft = self.raft.clone();
                    waiting = Box::pin(async move { raft.read_index().await.map(|_| ()).map_err(ApiError::from) });
                }
                self.reads.push((op, deadline, request.clone(), waiting));
            }
            Ask::Renew(lease) => {
                let (access, lease) = (self.access.clone(), LeaseId(*lease));
                let body = renewals_body([lease]);
                let waiting = Box::pin(async move { answer_as_leader(&access, RENEW, body).await });
                self.renewals.push((op, lease, waiting));
            }
        }
        self.follow(context);
        number
    }

    /// Lets everybody go on who waits for something that has happened, and the threads that have something to do.
    fn follow(&mut self, context: &mut Context) {
        self.set_clock(context);
        if context.mutated(Mutation::HastyRetry) {
            self.access.pending.resolve(Vec::new(), self.raft.term());
        }
        self.follow_leases(context);
        let removed = &mut self.removed;
        self.told_removed.retain_mut(|may_end| match may_end.try_recv() {
            Ok(may) => {
                *removed |= may;
                false
            }
            Err(error) => error == oneshot::error::TryRecvError::Empty,
        });
        let mut writes = std::mem::take(&mut self.writes);
        writes.retain_mut(|write| match self.advance(context, write) {
            Some(answer) => {
                self.answers.extend(write.op.map(|op| (op, answer)));
                false
            }
            None => true,
        });
        self.writes = writes;
        self.follow_reads(context);
        self.follow_renewals();
        self.follow_comparisons();
        self.wake_threads(context);
        for (op, answer) in std::mem::take(&mut self.answers) {
            let delay = context.random.u64(..5 * MILLI);
            if !context.faulty || !context.one_in(100) {
                context.after(delay, Event::Answer(op, answer));
            }
        }
    }

    fn wake_threads(&mut self, context: &mut Context) {
        if self.inbox.has_messages() && !self.raft_scheduled {
            self.raft_scheduled = true;
            let delay = context.random.u64(..MILLI / 10);
            self.schedule(context, delay, Work::Raft);
        }
        self.start_writing(context);
        self.schedule_apply(context);
        if self.writer.failed().is_some() && !self.ending {
            // Whoever is told ends the process; the other threads go on until then.
            self.ending = true;
            let delay = context.random.u64(..20 * MILLI);
            self.schedule(context, delay, Work::End);
        }
    }

    /// Goes on with a write; the answer, if there is one.
    fn advance(&self, context: &mut Context, write: &mut Write) -> Option<Answer> {
        if context.now >= write.deadline {
            self.access.pending.forget(write.entry.id());
            return Some(ended(write.proposal.deadline()));
        }
        loop {
            match write.proposal.step() {
                ProposalStep::AwaitLeader => write.proposal.leader_known(self.raft.term_with_leader()?),
                ProposalStep::Propose(term) => {
                    if write.outcome.is_none() {
                        let proposed = match &write.entry {
                            Entry::Request(request) => self.access.propose(request, term, RaftHandle::propose),
                            Entry::Members(change) => self.access.propose_members(change, term),
                        };
                        match proposed {
                            Ok(outcome) => write.outcome = Some(outcome),
                            Err(_) => return Some(Answer::NotExecuted),
                        }
                        write.again_at = context.now + PROPOSE_MEMBERS_PAUSE;
                    } else if let Entry::Members(change) = &write.entry
                        && context.now >= write.again_at
                    {
                        let _ = self.raft.propose_members(change.clone(), term);
                        write.again_at = context.now + PROPOSE_MEMBERS_PAUSE;
                    }
                    let outcome = write.outcome.as_mut()?.try_recv().ok()?;
                    write.outcome = None;
                    if let Some(end) = write.proposal.outcome(outcome) {
                        return Some(ended(end));
                    }
                    context.note("lost", [self.member.0, write.entry.id(), 0]);
                    context.counts.proposed_again += 1;
                    write.pause_until = context.now + PROPOSE_PAUSE.as_micros() as Micros;
                }
                ProposalStep::Pause(term) => {
                    if self.raft.status().borrow().term <= term && context.now < write.pause_until {
                        return None;
                    }
                    write.proposal.pause_over();
                }
            }
        }
    }

    fn follow_reads(&mut self, context: &Context) {
        let (reader, answers) = (&self.reader, &mut self.answers);
        self.reads.retain_mut(|(op, deadline, request, waiting)| {
            let confirmed = match poll(waiting) {
                Some(confirmed) => confirmed,
                None if context.now >= *deadline => Err(ApiError::Timeout),
                None => return true,
            };
            answers.push((*op, if confirmed.is_ok() { read(reader, request) } else { Answer::Lost }));
            false
        });
    }

    fn follow_renewals(&mut self) {
        let (answers, run_out, raft) = (&mut self.answers, &mut self.run_out, &self.raft);
        let (revision, leases) = (self.reader.revision().0, &self.access.leases);
        self.renewals.retain_mut(|(op, lease, waiting)| {
            let Some(answered) = poll(waiting) else { return true };
            match answered.and_then(read_renewed).ok().and_then(|renewals| renewals.first().copied()) {
                Some(Renewal::Renewed(ttl)) => answers.push((*op, Answer::Renewed { ttl, revision })),
                Some(Renewal::Gone) => answers.push((*op, Answer::Renewed { ttl: 0, revision })),
                Some(Renewal::RunOut) => {
                    let (leases, lease) = (leases.clone(), *lease);
                    run_out.push((*op, Box::pin(async move { leases.gone(lease).await })));
                }
                None => answers.push((*op, Answer::NotLeader(raft.status().borrow().leader))),
            }
            false
        });
        run_out.retain_mut(|(op, gone)| {
            let waits = poll(gone).is_none();
            if !waits {
                answers.push((*op, Answer::Renewed { ttl: 0, revision }));
            }
            waits
        });
    }

    fn follow_leases(&mut self, context: &mut Context) {
        if self.lease_driver.wants_confirmation() && self.confirming.is_none() {
            let access = self.access.clone();
            self.confirming = Some(Box::pin(async move { access.reads.linearizable().await }));
        }
        if let Some(waiting) = &mut self.confirming
            && let Some(confirmed) = poll(waiting)
        {
            self.confirming = None;
            if confirmed.is_ok() && !context.mutated(Mutation::SleepyLessor) {
                self.lease_driver.confirmed(&self.raft.status().borrow());
            }
        }
        let driver = &mut self.lease_driver;
        self.revokes.retain_mut(|outcome| {
            let waits = matches!(outcome.try_recv(), Err(oneshot::error::TryRecvError::Empty));
            if !waits {
                driver.revoked();
            }
            waits
        });
        self.revoke_expired(context);
    }

    /// Whether a learner has nearly all of the leader's log.
    pub fn is_ready(&self, learner: MemberId) -> bool {
        let last = self.driver.node().last_index().0;
        let ready = |matched: u64| matched * 10 >= last * 9;
        self.raft.progress().iter().any(|peer| peer.member == learner && peer.active && ready(peer.matched.0))
    }

    // For the checks.

    pub fn node(&self) -> &RaftNode {
        self.driver.node()
    }

    pub fn cluster(&self) -> &watershed::core::cluster::ClusterStore {
        self.apply.applier().cluster()
    }

    pub fn serves(&self) -> bool {
        self.serves
    }

    pub fn applied(&self) -> LogIndex {
        *self.applied.progress().borrow()
    }

    pub fn revision(&self) -> Revision {
        self.reader.revision()
    }
}

fn watcher_set(metrics: &Metrics, member: MemberId, boot: u32, tasks: &Tasks) -> WatcherSetHandle {
    let limits = WatchLimits {
        stream_bytes_max: 600,
        stream_responses_max: 4,
        catch_up_revisions_max: 5,
        catch_up_bytes_max: 400,
        progress_interval: Some(Duration::from_secs(1 << 30)),
        ..WatchLimits::default()
    };
    let header_source = Arc::new(HeaderSource::new(ClusterId(1), member, Term(0)));
    let stopped = tonic::Status::unavailable("stopped");
    WatcherSetHandle::start(limits, header_source, WatchMetrics::register(metrics), boot.into(), stopped, tasks)
}

/// Changes a bit of the value that a put writes.
fn flip(entry: &mut Committed) -> bool {
    let CommittedKind::Request(bytes) = &mut entry.kind else { return false };
    let mut request = InternalRaftRequest::decode(bytes.clone()).expect("requests of the simulation are readable");
    let Some(put) = request.put.as_mut().filter(|put| !put.value.is_empty()) else { return false };
    let mut value = put.value.to_vec();
    value[0] ^= 1;
    put.value = value.into();
    *bytes = request.encode_to_vec().into();
    true
}

/// Looks whether something has happened that is waited for.
fn poll<T>(waiting: &mut Waiting<T>) -> Option<T> {
    match waiting.as_mut().poll(&mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    }
}

fn ended(end: ProposalEnd) -> Answer {
    match end {
        ProposalEnd::Applied(outcome) => Answer::Written(Reply::of(&outcome)),
        ProposalEnd::NoLeader | ProposalEnd::LeaderChanged => Answer::NotExecuted,
        ProposalEnd::Unknown => Answer::Lost,
    }
}

fn read(reader: &StoreReader, request: &RangeRequest) -> Answer {
    let answer = reader.snapshot().range(request);
    Answer::Read(answer.map(|answer| recode::<RangeResponse>(&answer)).map_err(|_| "refused"))
}
