//! One run of a member: the thin shell around its state machines, as `core::raft::task`, `core::apply::task` and
//! `core::server` are in the program. It holds no logic that those do not have.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use prost::Message;
use watershed::bolt::BoltFile;
use watershed::core::alarm::AlarmStore;
use watershed::core::apply::{
    Applier, ApplierConfig, Batch, LeaseFact, PendingRequests, PreparedSnapshots, open_leases,
};
use watershed::core::backend::{Backend, BackendError, Table};
use watershed::core::lease::{Lease, LeaseStore, Lessor, LessorConfig, RenewError};
use watershed::core::mvcc::{Compaction, Progress, Store, StoreReader};
use watershed::core::raft::{
    ChangeKind, Committed, LogTail, MembersDecision, NodeConfig, Outbound, PeerMessage, PersistGroup, ProposedChange,
    RaftNode, ReadQueue, Stepped, snapshot_message,
};
use watershed::core::server::{Bootstrap, RecoverError, stored_members};
use watershed::core::wal::{Wal, WalSnapshot};
use watershed::core::watch::CoreWatch;
use watershed::eventlog::{HeaderSource, WatchLimits, WatcherSetHandle};
use watershed::pb::etcdserverpb::{
    InternalRaftRequest, LeaseCheckpoint, LeaseCheckpointRequest, LeaseRevokeRequest, RangeRequest, RangeResponse,
};
use watershed::shutdown::Tasks;
use watershed::telemetry::{Metrics, WatchMetrics};
use watershed::types::{ClusterId, LeaseId, LogIndex, LogPosition, MemberId, Revision, Term};

use super::client::{Answer, Ask, OpId};
use super::context::{Context, Event, MILLI, Micros, Mutation, SECOND, Work};
use super::disk::SimDisk;
use super::model::{Reply, TTL_MIN, recode};
use super::recover;

/// As in the program with its defaults.
pub const TICK: Micros = 100 * MILLI;
pub const ELECTION: Micros = SECOND;
const EXPIRY_TICKS: u64 = 2;
const HELD_FOR: Micros = 2 * SECOND;
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

enum Job {
    Group(PersistGroup),
    Saved(WalSnapshot),
}

/// What apply is to do, in order.
enum Due {
    Entry(Committed),
    /// A state to put in place of the present one.
    Install(LogPosition),
}

/// Who waits for an index that is confirmed and applied.
#[derive(Clone, Debug)]
enum Reader {
    Range(OpId, RangeRequest),
    /// The deadlines of a new leader.
    Deadlines(Term),
    Renewal(OpId, LeaseId, Term),
}

/// A request of a client.
#[derive(Debug)]
struct Write {
    op: OpId,
    since: Micros,
    request: Bytes,
}

/// Who waits for a request to be applied.
#[derive(Debug)]
enum Waiter {
    /// A client, whose request is proposed again when it is lost.
    Client(Write),
    /// A renewal whose checkpoint is cleared.
    Renewal(OpId, i64),
}

pub struct Process {
    /// Place of the member among all.
    pub place: usize,
    pub boot: u32,
    pub member: MemberId,
    /// Its clock goes this many thousandths of the real one.
    pace: u64,
    started: Micros,
    ticks: u64,
    pub node: RaftNode,
    wal: Wal<SimDisk>,
    jobs: Vec<Job>,
    writing: bool,
    reads: ReadQueue<Reader>,
    /// Requests of clients that are to be proposed, at first or again.
    held: VecDeque<(u64, Write)>,
    due: VecDeque<Due>,
    apply_scheduled: bool,
    applier: Applier,
    decisions: Vec<MembersDecision>,
    prepared_snapshots: PreparedSnapshots,
    pub applied: LogIndex,
    pending: PendingRequests<Waiter>,
    /// Readers whose index is not applied yet.
    waiting_reads: Vec<(LogIndex, Reader)>,
    /// Renewals of leases that have run out and are not revoked yet.
    waiting_renewals: Vec<(LeaseId, OpId)>,
    compactions: VecDeque<Compaction>,
    pub backend: Backend,
    marked: LogIndex,
    pub reader: StoreReader,
    pub leases: Arc<RwLock<LeaseStore>>,
    lessor: Lessor,
    /// The term this member leads in.
    led_in: Option<Term>,
    /// The same, once deadlines count.
    lessor_term: Option<Term>,
    pub watch: CoreWatch,
    pub watchers: WatcherSetHandle,
    tasks: Tasks,
    next_request: u64,
    /// Answers that are ready to go.
    answers: Vec<(OpId, Answer)>,
    /// Took requests from some moment on: the only voter answers reads by itself, once it has replayed its log.
    serves: bool,
    /// Messages that are ready to go.
    pub outbox: Vec<Outbound>,
}

/// Rests of leases are noted often, so that even short ones have theirs.
fn new_lessor(leases: Vec<Lease>) -> Lessor {
    Lessor::new(LessorConfig { checkpoint_interval: Duration::from_secs(3), ..LessorConfig::default() }, leases)
}

impl Drop for Process {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

impl Process {
    /// Opens what is on the disk and starts every part.
    pub fn start(
        context: &mut Context,
        place: usize,
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
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let store = Store::open(opened.backend.clone()).map_err(|error| text(&error))?;
        let reader = store.reader();
        let alarms = opened.backend.rows(Table::Alarm).map_err(|error| text(&error))?;
        let leases = open_leases(&opened.backend, &store, TTL_MIN).map_err(|error| text(&error))?;
        let leases = Arc::new(RwLock::new(leases));
        let lessor = new_lessor(leases.read().all());
        let member = opened.metadata.member;
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
        let node = RaftNode::new(&config, log).map_err(|error| text(&error))?;
        let watch = CoreWatch::inline(reader.clone(), EVENT_LOG_BYTES);
        let tasks = Tasks::new();
        let limits = WatchLimits {
            stream_bytes_max: 600,
            stream_responses_max: 4,
            catch_up_revisions_max: 5,
            catch_up_bytes_max: 400,
            progress_interval: Some(Duration::from_secs(1 << 30)),
            ..WatchLimits::default()
        };
        let header_source = Arc::new(HeaderSource::new(ClusterId(1), member, Term(0)));
        let metrics = WatchMetrics::register(&Metrics::default());
        let stopped = tonic::Status::unavailable("stopped");
        let watchers = WatcherSetHandle::start(limits, header_source, metrics, boot.into(), stopped, &tasks);
        let applier_config = ApplierConfig { quota_bytes: -1 };
        let alarms = AlarmStore::open(&alarms);
        let mut applier =
            Applier::new(store, leases.clone(), opened.members, alarms, opened.backend.clone(), applier_config);
        let compactions = applier.store().take_unfinished_compaction().into_iter().collect();
        let mut process = Self {
            place,
            boot,
            member,
            // The checkers of histories know of no clocks that differ.
            pace: if context.settings.recorded { 1000 } else { context.random.u64(982..=1018) },
            started: context.now,
            ticks: 0,
            node,
            wal: opened.wal,
            jobs: Vec::new(),
            writing: false,
            reads: ReadQueue::default(),
            held: VecDeque::new(),
            due: VecDeque::new(),
            apply_scheduled: false,
            applier,
            decisions: Vec::new(),
            prepared_snapshots: PreparedSnapshots::default(),
            applied: opened.position.index,
            pending: PendingRequests::default(),
            waiting_reads: Vec::new(),
            waiting_renewals: Vec::new(),
            compactions,
            marked: opened.position.index,
            backend: opened.backend,
            reader,
            leases,
            lessor,
            led_in: None,
            lessor_term: None,
            watch,
            watchers,
            tasks,
            next_request: (member.0 & 0xffff) << 48 | u64::from(boot) << 32,
            answers: Vec::new(),
            serves: context.mutated(Mutation::EarlyService),
            outbox: Vec::new(),
        };
        context.note("start", [member.0, boot.into(), process.applied.0]);
        process.schedule(context, TICK, Work::Tick);
        if !process.compactions.is_empty() {
            process.schedule(context, 10 * MILLI, Work::CompactionSlice);
        }
        let checkpoint = context.random.u64(SECOND..8 * SECOND);
        process.schedule(context, checkpoint, Work::Checkpoint);
        process.turn(context)?;
        Ok(process)
    }

    fn schedule(&self, context: &mut Context, delay: Micros, work: Work) {
        context.after(delay, Event::Process { member: self.place, boot: self.boot, work });
    }

    /// Time since the start by this process's clock.
    fn clock(&self, context: &Context) -> Duration {
        let mut micros = (context.now - self.started) * self.pace / 1000;
        if context.mutated(Mutation::HastyLessor) {
            micros *= 2;
        }
        Duration::from_micros(micros)
    }

    pub fn leads(&self) -> bool {
        self.node.is_leader()
    }

    /// Does a piece of work that was scheduled.
    pub fn work(&mut self, context: &mut Context, work: Work) -> Result<(), Failure> {
        match work {
            Work::Tick => self.tick(context)?,
            Work::Written => self.written(context)?,
            Work::Apply => self.apply(context)?,
            Work::Checkpoint => self.checkpoint(context)?,
            Work::CompactionSlice => self.compaction_slice(context),
        }
        self.turn(context)
    }

    fn tick(&mut self, context: &mut Context) -> Result<(), Failure> {
        self.ticks += 1;
        self.node.tick();
        context.whisper(format_args!("tick {} {:?} of {:?}", self.member, self.node, self.node.conf_state().voters));
        self.held.retain(|(_, write)| context.now - write.since <= HELD_FOR);
        if self.ticks.is_multiple_of(EXPIRY_TICKS) {
            self.expire(context);
        }
        self.schedule(context, TICK * 1000 / self.pace, Work::Tick);
        Ok(())
    }

    /// A message of a peer has arrived.
    pub fn receive(&mut self, context: &mut Context, from: MemberId, bytes: &Bytes) -> Result<(), Failure> {
        context.whisper(format_args!("{from} to {}: {bytes:x?}", self.member));
        match PeerMessage::parse(self.member, from, bytes) {
            Ok(message) => match self.node.step(message) {
                Ok(Stepped::Taken) => {}
                Ok(Stepped::Refused(reason)) => context.note("refused", [self.member.0, reason.len() as u64, 0]),
                Err(error) => return Err(error.to_string()),
            },
            Err(error) => context.fail(format_args!("an honest message was refused: {error}")),
        }
        self.turn(context)
    }

    /// A client's request has arrived. Tells the number it is in the log under.
    pub fn request(&mut self, context: &mut Context, op: OpId, ask: &Ask) -> Result<Option<u64>, Failure> {
        let mut number = None;
        match ask {
            Ask::Write(request) => {
                let mut request = request.clone();
                request.id = self.request_id();
                number = Some(request.id);
                context.truth.waiting.insert(request.id, op);
                let write = Write { op, since: context.now, request: request.encode_to_vec().into() };
                self.held.push_back((request.id, write));
            }
            Ask::Read { request, linearizable } => {
                if *linearizable && !context.mutated(Mutation::ReadWithoutIndex) {
                    self.confirm(context, Reader::Range(op, request.clone()));
                } else {
                    self.read(op, request);
                }
            }
            Ask::Renew(lease) => match self.lessor_term {
                Some(term) => self.confirm(context, Reader::Renewal(op, LeaseId(*lease), term)),
                None => self.answers.push((op, Answer::NotLeader(self.node.leader()))),
            },
        }
        self.turn(context)?;
        Ok(number)
    }

    fn request_id(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request
    }

    /// Lets a reader go on once everything acknowledged so far is applied.
    fn confirm(&mut self, context: &mut Context, reader: Reader) {
        let early = context.mutated(Mutation::EarlyService) && self.node.is_alone() && self.node.is_ready_leader();
        if early || self.node.reads_are_local() {
            self.resume(context, reader);
        } else {
            self.reads.push(reader);
        }
    }

    fn resume(&mut self, context: &mut Context, reader: Reader) {
        match reader {
            Reader::Range(op, request) => self.read(op, &request),
            Reader::Deadlines(term) => self.start_deadlines(context, term),
            Reader::Renewal(op, lease, term) => self.renew(context, op, lease, term),
        }
    }

    /// Proposes for the present term what waits for that, once its leader is known.
    fn propose_held(&mut self, context: &mut Context) {
        let term = self.node.term();
        if self.node.leader().is_none() {
            return;
        }
        for (id, write) in std::mem::take(&mut self.held) {
            if self.node.propose(vec![write.request.clone()], term).is_err() {
                context.note("dropped", [self.member.0, id, 0]);
                self.held.push_back((id, write));
            } else if self.pending.enter(id, term, Waiter::Client(write)).is_err() {
                context.fail(format_args!("{} applies what is later than its term {term}", self.member));
            }
        }
    }

    /// Requests that are in no log and never will be.
    fn lost(&mut self, context: &mut Context, lost: Vec<(u64, Waiter)>) {
        for (id, waiter) in lost {
            context.note("lost", [self.member.0, id, 0]);
            match waiter {
                Waiter::Client(write) => {
                    context.counts.proposed_again += 1;
                    self.held.push_back((id, write));
                }
                Waiter::Renewal(op, _) => self.answers.push((op, Answer::NotLeader(self.node.leader()))),
            }
        }
    }

    /// What follows every message: decisions of apply, reads to ask for, and all that consensus wants done.
    pub fn turn(&mut self, context: &mut Context) -> Result<(), Failure> {
        for mut decision in std::mem::take(&mut self.decisions) {
            // The first three are the cluster's beginning.
            decision.accepted &= !context.mutated(Mutation::DeafConsensus) || decision.index.0 <= 3;
            self.node.members_decided(decision).map_err(|error| error.to_string())?;
        }
        self.node.applied(self.applied);
        if context.mutated(Mutation::HastyRetry) {
            let lost = self.pending.passed(self.node.term());
            self.lost(context, lost);
        }
        self.propose_held(context);
        if self.node.is_sole_voter() && !self.node.is_leader() {
            // Refused while the log is written or a membership change is not applied; then it comes up again.
            self.node.campaign().map_err(|error| error.to_string())?;
        }
        self.ask_for_reads();
        while let Some(step) = self.node.poll().map_err(|error| error.to_string())? {
            self.outbox.extend(step.send);
            if let Some(group) = step.persist {
                if context.mutated(Mutation::AckBeforePersist) {
                    self.node.persisted(group.number);
                }
                self.write(context, Job::Group(group));
            }
            if let Some(position) = step.install {
                self.due.push_back(Due::Install(position));
            }
            for entry in step.committed {
                context.committed(self.member, &entry);
                self.due.push_back(Due::Entry(entry));
            }
            self.schedule_apply(context);
            for (number, index) in step.reads {
                let index = if context.mutated(Mutation::ReadBeforeApplied) { LogIndex(0) } else { index };
                self.waiting_reads.extend(self.reads.confirmed(number).into_iter().map(|reader| (index, reader)));
                self.ask_for_reads();
            }
        }
        self.follow_leadership(context);
        self.release_reads(context);
        let upto_date = self.node.is_ready_leader() && self.applied >= self.node.committed();
        let known = !self.node.conf_state().voters.is_empty();
        self.serves |= known && (!self.node.is_sole_voter() || upto_date);
        for (op, answer) in std::mem::take(&mut self.answers) {
            let delay = context.random.u64(..5 * MILLI);
            if !context.faulty || !context.one_in(100) {
                context.after(delay, Event::Answer(op, answer));
            }
        }
        Ok(())
    }

    fn follow_leadership(&mut self, context: &mut Context) {
        let leads = self.node.is_leader().then(|| self.node.term());
        if leads == self.led_in {
            return;
        }
        self.led_in = leads;
        if !context.mutated(Mutation::LessorStays) {
            self.lessor.demote();
            self.lessor_term = None;
        }
        if let Some(term) = leads {
            context.leads(self.member, term);
            self.confirm(context, Reader::Deadlines(term));
        }
    }

    fn ask_for_reads(&mut self) {
        let era = (self.node.term().0, self.node.leader().map_or(0, |leader| leader.0));
        if self.reads.wants_request(self.ticks, era) {
            let number = self.node.read_index();
            self.reads.sent(number, self.ticks, era);
        }
    }

    fn release_reads(&mut self, context: &mut Context) {
        let (ready, waiting) =
            std::mem::take(&mut self.waiting_reads).into_iter().partition(|(index, _)| *index <= self.applied);
        self.waiting_reads = waiting;
        for (_, reader) in ready {
            self.resume(context, reader);
        }
    }

    fn read(&mut self, op: OpId, request: &RangeRequest) {
        let answer = self.reader.snapshot().range(request);
        let answer = answer.map(|answer| recode::<RangeResponse>(&answer)).map_err(|_| "refused");
        self.answers.push((op, Answer::Read(answer)));
    }

    // The log writer.

    fn write(&mut self, context: &mut Context, job: Job) {
        self.jobs.push(job);
        if !self.writing {
            self.start_writing(context);
        }
    }

    fn start_writing(&mut self, context: &mut Context) {
        self.writing = true;
        let delay = match context.random.u16(..2000) {
            0 if context.faulty => context.random.u64(..4 * SECOND),
            1..20 => context.random.u64(..200 * MILLI),
            _ => context.random.u64(500..5 * MILLI),
        };
        self.schedule(context, delay, Work::Written);
    }

    /// What is written next takes this long.
    pub fn stall_disk(&mut self, context: &mut Context, span: Micros) {
        if !self.writing {
            self.writing = true;
            self.schedule(context, span, Work::Written);
        }
    }

    /// The disk has had the time it needs: only now the files change, and a crash before leaves nothing.
    fn written(&mut self, context: &mut Context) -> Result<(), Failure> {
        let newest = self.write_jobs().map_err(|error| error.to_string())?;
        if let Some(number) = newest {
            self.node.persisted(number);
        }
        self.writing = false;
        if !self.jobs.is_empty() {
            self.start_writing(context);
        }
        Ok(())
    }

    fn write_jobs(&mut self) -> Result<Option<u64>, watershed::core::wal::WalError> {
        let (mut newest, mut release) = (None, None);
        for job in std::mem::take(&mut self.jobs) {
            match job {
                Job::Group(group) => {
                    if let Some(snapshot) = &group.snapshot {
                        self.wal.mark_snapshot(snapshot)?;
                    }
                    self.wal.append(&group.entries, group.hard_state.as_ref())?;
                    newest = Some(group.number);
                }
                Job::Saved(snapshot) => {
                    self.wal.mark_snapshot(&snapshot)?;
                    release = Some(snapshot.index);
                }
            }
        }
        self.wal.sync()?;
        if let Some(index) = release {
            self.wal.release(index, SEGMENTS_MIN)?;
        }
        Ok(newest)
    }

    /// The process dies in the middle of what it writes.
    pub fn die_writing(&mut self) {
        if self.writing {
            let _ = self.write_jobs();
        }
    }

    // Apply.

    fn schedule_apply(&mut self, context: &mut Context) {
        if self.due.is_empty() || self.apply_scheduled {
            return;
        }
        self.apply_scheduled = true;
        let delay = if context.one_in(50) { context.random.u64(..500 * MILLI) } else { context.random.u64(..MILLI) };
        self.schedule(context, delay, Work::Apply);
    }

    fn apply(&mut self, context: &mut Context) -> Result<(), Failure> {
        self.apply_scheduled = false;
        if let Some(Due::Install(position)) = self.due.front() {
            let position = *position;
            self.due.pop_front();
            self.install(context, position)?;
            self.schedule_apply(context);
            return Ok(());
        }
        let mut left = context.random.usize(1..=20);
        let (mut batch, mut reached) = (Batch::default(), LogPosition { index: self.applied, term: Term(0) });
        while let Some(Due::Entry(entry)) = self.due.pop_front_if(|due| left > 0 && matches!(due, Due::Entry(_))) {
            left -= 1;
            reached = entry.position();
            if context.mutated(Mutation::SkipEntry) && context.one_in(100) {
                continue;
            }
            self.applier.apply(entry, &mut batch).map_err(|error| error.to_string())?;
        }
        self.release(context, batch, reached);
        self.schedule_apply(context);
        Ok(())
    }

    fn install(&mut self, context: &mut Context, position: LogPosition) -> Result<(), Failure> {
        let prepared =
            self.prepared_snapshots.take(position).ok_or_else(|| format!("no state at {}", position.index))?;
        self.applier.install(prepared).map_err(|error| error.to_string())?;
        self.compactions = self.applier.store().take_unfinished_compaction().into_iter().collect();
        if !self.compactions.is_empty() {
            self.schedule(context, 10 * MILLI, Work::CompactionSlice);
        }
        if !context.mutated(Mutation::NoJump) {
            self.watch.jump();
        }
        self.lessor = new_lessor(self.applier.leases());
        self.lessor_term = None;
        // They may be in that state.
        self.pending.installed(position.term);
        self.applied = position.index;
        self.marked = self.marked.max(position.index);
        context.counts.snapshots += 1;
        context.note("installed", [self.member.0, position.index.0, position.term.0]);
        Ok(())
    }

    /// A db snapshot of the newest state, and the message that announces it.
    pub fn db_snapshot(&self, message: &Bytes) -> Result<(Bytes, Vec<u8>), Failure> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let db_snapshot = self.backend.db_snapshot().map_err(|error| text(&error))?;
        let mut bytes = Vec::new();
        db_snapshot.write(&mut bytes).map_err(|error| text(&error))?;
        // Nothing is applied between the two.
        let members = stored_members(&self.backend).map_err(|error| text(&error))?;
        let position = db_snapshot.summary().position;
        let message = snapshot_message(message, position, &members.conf_state()).map_err(|error| text(&error))?;
        Ok((message, bytes))
    }

    /// A state has arrived. Tells whether the transfer succeeded.
    pub fn receive_state(
        &mut self,
        context: &mut Context,
        from: MemberId,
        message: &Bytes,
        db_snapshot: &[u8],
    ) -> Result<bool, Failure> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let parsed = PeerMessage::snapshot(self.member, from, message).map_err(|error| text(&error))?;
        let position = parsed.snapshot_position();
        let file =
            tempfile::NamedTempFile::new().and_then(|file| std::fs::write(file.path(), db_snapshot).map(|()| file));
        let file = file.map_err(|error| text(&error))?;
        let db_snapshot = BoltFile::open(file.path()).map_err(|error| text(&error))?;
        match self.backend.prepare(&db_snapshot, position) {
            Ok(prepared) => self.prepared_snapshots.put(prepared),
            // Consensus has the log up to there and will answer that; it needs no db snapshot.
            Err(BackendError::Outdated { .. }) => {}
            Err(error) => return Err(text(&error)),
        }
        self.node.step(parsed).map_err(|error| text(&error))?;
        if !self.node.is_installing(position)
            && let Some(unused) = self.prepared_snapshots.take_back(position)
        {
            unused.discard().map_err(|error| text(&error))?;
        }
        self.turn(context)?;
        Ok(true)
    }

    /// Publishes, then tells, then answers.
    fn release(&mut self, context: &mut Context, batch: Batch, reached: LogPosition) {
        self.applier.store().publish();
        if context.mutated(Mutation::LostEvents) && context.one_in(50) {
            context.note("lost events", [0; 3]);
        } else {
            self.watch.append(batch.events);
        }
        self.tell_lessor(context, &batch.lease_facts);
        self.applied = reached.index;
        for (id, outcome) in &batch.outcomes {
            match self.pending.take(*id) {
                Some(Waiter::Client(Write { op, .. })) => self.answers.push((op, Answer::Written(Reply::of(outcome)))),
                Some(Waiter::Renewal(op, ttl)) => self.answers.push((op, self.renewed(ttl))),
                None => {}
            }
        }
        let lost = self.pending.passed(reached.term);
        self.lost(context, lost);
        let had_none = self.compactions.is_empty();
        self.compactions.extend(batch.compactions);
        if had_none && !self.compactions.is_empty() {
            self.schedule(context, 10 * MILLI, Work::CompactionSlice);
        }
        self.decisions.extend(batch.decisions);
    }

    fn compaction_slice(&mut self, context: &mut Context) {
        let Some(compaction) = self.compactions.front_mut() else { return };
        if let Some(hash) = compaction.take_hash(self.applier.store())
            && let Err(error) = hash.run()
        {
            context.fail(format_args!("the hash of a compaction cannot be computed: {error}"));
        }
        if self.applier.compaction_slice(compaction, SLICE_RECORDS) == Progress::Done {
            self.compactions.pop_front();
            context.counts.compactions += 1;
        }
        if !self.compactions.is_empty() {
            self.schedule(context, 10 * MILLI, Work::CompactionSlice);
        }
    }

    fn checkpoint(&mut self, context: &mut Context) -> Result<(), Failure> {
        let durable = self.backend.checkpoint().map_err(|error| error.to_string())?;
        context.counts.checkpoints += 1;
        if durable.index.0 >= self.marked.0 + SNAPSHOT_COUNT {
            self.marked = durable.index;
            let members = stored_members(&self.backend).map_err(|error| error.to_string())?;
            let snapshot = WalSnapshot { index: durable.index, term: durable.term, conf_state: members.conf_state() };
            self.node.state_saved(&snapshot, LogIndex(durable.index.0.saturating_sub(CATCH_UP_ENTRIES)));
            self.write(context, Job::Saved(snapshot));
        }
        let next = context.random.u64(SECOND..8 * SECOND);
        self.schedule(context, next, Work::Checkpoint);
        Ok(())
    }

    // Leases.

    fn tell_lessor(&mut self, context: &Context, facts: &[LeaseFact]) {
        let now = self.clock(context);
        for fact in facts {
            match *fact {
                LeaseFact::Granted(lease) => self.lessor.granted(lease, now),
                LeaseFact::Checkpointed { lease, remaining_ttl } => self.lessor.checkpointed(lease, remaining_ttl),
                LeaseFact::Revoked(id) => {
                    self.lessor.revoked(id);
                    let (gone, waiting) =
                        std::mem::take(&mut self.waiting_renewals).into_iter().partition(|(lease, _)| *lease == id);
                    self.waiting_renewals = waiting;
                    let answer = self.renewed(0);
                    self.answers.extend(gone.into_iter().map(|(_, op)| (op, answer.clone())));
                }
            }
        }
    }

    /// What a leader does about leases begins once all that earlier leaders committed is applied.
    fn start_deadlines(&mut self, context: &mut Context, term: Term) {
        if self.led_in == Some(term) && !context.mutated(Mutation::SleepyLessor) {
            let now = self.clock(context);
            self.lessor.promote(now, Duration::from_micros(ELECTION));
            self.lessor_term = Some(term);
        }
    }

    fn renew(&mut self, context: &mut Context, op: OpId, id: LeaseId, term: Term) {
        if self.lessor_term != Some(term) {
            self.answers.push((op, Answer::NotLeader(self.node.leader())));
            return;
        }
        let now = self.clock(context);
        match self.lessor.renew(id, now) {
            Ok(renewed) if renewed.clear_checkpoint => {
                let noted = LeaseCheckpoint { id: id.0, remaining_ttl: 0 };
                let number = self.propose_checkpoint(vec![noted], term);
                if self.pending.enter(number, term, Waiter::Renewal(op, renewed.ttl)).is_err() {
                    self.answers.push((op, Answer::NotLeader(self.node.leader())));
                }
            }
            Ok(renewed) => self.answers.push((op, self.renewed(renewed.ttl))),
            Err(RenewError::NotFound(_)) => self.answers.push((op, self.renewed(0))),
            Err(RenewError::Expired(_)) => self.waiting_renewals.push((id, op)),
            Err(RenewError::NotPrimary) => self.answers.push((op, Answer::NotLeader(None))),
        }
    }

    fn renewed(&self, ttl: i64) -> Answer {
        Answer::Renewed { ttl, revision: self.reader.revision().0 }
    }

    fn propose_checkpoint(&mut self, checkpoints: Vec<LeaseCheckpoint>, term: Term) -> u64 {
        let id = self.request_id();
        let lease_checkpoint = Some(LeaseCheckpointRequest { checkpoints });
        let request = InternalRaftRequest { id, lease_checkpoint, ..Default::default() };
        let _ = self.node.propose_as_leader(vec![request.encode_to_vec().into()], term);
        id
    }

    fn expire(&mut self, context: &mut Context) {
        let (now, Some(term)) = (self.clock(context), self.lessor_term) else { return };
        for lease in self.lessor.expired(now, 1000) {
            let id = self.request_id();
            let revoke = Some(LeaseRevokeRequest { id: lease.0 });
            let request = InternalRaftRequest { id, lease_revoke: revoke, ..Default::default() };
            context.truth.expiries.insert(id, lease.0);
            let request = vec![request.encode_to_vec().into()];
            let _ = match context.mutated(Mutation::LessorStays) {
                true => self.node.propose(request, self.node.term()),
                false => self.node.propose_as_leader(request, term),
            };
        }
        let due = self.lessor.due_checkpoints(now, 1000);
        if !due.is_empty() {
            let noted = due.iter().map(|due| LeaseCheckpoint { id: due.lease.0, remaining_ttl: due.remaining_ttl });
            self.propose_checkpoint(noted.collect(), term);
        }
    }

    /// Puts a membership change into the log, if this member leads.
    pub fn change_members(&mut self, context: &mut Context, kind: ChangeKind, member: MemberId, json: Vec<u8>) {
        let change = ProposedChange { request: self.request_id(), kind, member, context: json.into() };
        if self.node.propose_members(&change, self.node.term()).is_ok() {
            context.note("propose members", [self.member.0, kind as u64, member.0]);
        }
    }

    /// Whether a learner has nearly all of the leader's log.
    pub fn is_ready(&self, learner: MemberId) -> bool {
        let last = self.node.last_index().0;
        self.node.progress().iter().any(|peer| peer.member == learner && peer.active && peer.matched.0 * 10 >= last * 9)
    }

    // For the checks.

    pub fn cluster(&self) -> &watershed::core::cluster::ClusterStore {
        self.applier.cluster()
    }

    pub fn serves(&self) -> bool {
        self.serves
    }

    /// Whether consensus has heard of all that apply has decided.
    pub fn decisions_taken(&self) -> bool {
        self.decisions.is_empty()
    }

    pub fn revision(&self) -> Revision {
        self.reader.revision()
    }
}
