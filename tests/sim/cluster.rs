//! A simulated cluster: members, network, disks, clients and watchers under one clock in one thread.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::sync::oneshot;
use watershed::core::backend::Table;
use watershed::core::cluster::AddContext;
use watershed::core::peer::{CallError, Purpose, Refusal, answer};
use watershed::core::raft::{ChangeKind, Lane, Outbound, RaftHandle, plant};
use watershed::core::server::Bootstrap;
use watershed::pb::etcdserverpb::{InternalRaftRequest, PutRequest};
use watershed::types::{ClusterId, KeyRange, MemberId};

use super::checkers::{History, WatchRecord};
use super::client::{Answer, Ask, Clients, NOBODY, OpId, everything};
use super::context::{Context, Counts, Event, MILLI, Micros, Mutation, SECOND, Settings, Work, must};
use super::disk::{EIO, ENOSPC, Effect, Fault, Kept, Lie, SimDisk};
use super::model::recode;
use super::network::{Message, Network};
use super::process::{ELECTION, Failure, Process, REMOVED};
use super::recover;
use super::surroundings::Call;
use super::watcher::Watcher;

/// Small, so that logs have many segments.
const SEGMENT_BYTES: u64 = 16 * 1024;

/// A member: what remains when its process ends.
pub struct Member {
    pub id: MemberId,
    birth: Bootstrap,
    pub disk: SimDisk,
    pub process: Option<Process>,
    boots: u32,
    pub paused_until: Micros,
    /// The disk was told to refuse.
    breaking: bool,
    /// Its disk lies until the next loss of power, which takes all it lied about.
    pub lies_once: bool,
    /// Scripts that make it fail find the reasons in `failures`.
    pub expect_failures: bool,
    pub failures: Vec<Failure>,
    /// It was removed from the cluster, and ends.
    retires: bool,
    /// It has ended for that reason.
    retired: bool,
}

impl Member {
    fn new(id: MemberId, birth: Bootstrap) -> Self {
        Self {
            id,
            birth,
            disk: SimDisk::new(SEGMENT_BYTES),
            process: None,
            boots: 0,
            paused_until: 0,
            breaking: false,
            lies_once: false,
            expect_failures: false,
            failures: Vec::new(),
            retires: false,
            retired: false,
        }
    }
}

pub struct SimCluster {
    pub context: Context,
    pub members: Vec<Member>,
    pub network: Network,
    pub clients: Clients,
    pub watchers: Vec<Watcher>,
    runtime: tokio::runtime::Runtime,
    /// Clients go on.
    busy: bool,
    /// So many of the next db snapshots are cut off on their way.
    pub snapshots_to_lose: u32,
    /// Connections that were ever made.
    connections: u64,
    /// Calls between members without an answer so far.
    calls: BTreeMap<u64, OpenCall>,
    calls_made: u64,
}

/// Who asks, who is asked, and where the answer goes.
type OpenCall = (usize, usize, oneshot::Sender<Result<Bytes, CallError>>);

/// The result of a simulation in which every check held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub trace: u64,
    pub counts: Counts,
}

/// Runs one simulation from beginning to end.
///
/// # Panics
/// When a promise is broken; the message begins with the seed.
pub fn run(settings: &Settings) -> Summary {
    played(settings).finish()
}

/// The same, and what the clients saw.
pub fn recorded(settings: &Settings) -> History {
    let mut cluster = played(settings);
    let operations = std::mem::take(&mut cluster.clients.recorded);
    let watchers = cluster.watchers.iter_mut().enumerate();
    let watches = watchers.flat_map(|(client, watcher)| {
        let records = std::mem::take(&mut watcher.recorded);
        records.into_iter().map(move |record| WatchRecord { client: client as u32, ..record })
    });
    History { notes: [("seed".to_owned(), settings.seed.to_string())].into(), operations, watches: watches.collect() }
}

fn played(settings: &Settings) -> SimCluster {
    // Every simulation that has a fault runs on a thread of its own.
    if let Some(Mutation::InDriver(fault)) = settings.mutation {
        plant(Some(fault));
    }
    let mut cluster = SimCluster::new(settings.clone());
    let runtime = cluster.runtime.handle().clone();
    let _entered = runtime.enter();
    cluster.boot();
    cluster.run_for(settings.faulty);
    if settings.healthy {
        cluster.recover();
    }
    cluster.compare_members();
    cluster
}

impl SimCluster {
    pub fn new(settings: Settings) -> Self {
        let mut context = Context::new(settings);
        let count = context.settings.members;
        let ids: Vec<MemberId> = (1..=count as u64).map(MemberId).collect();
        let members = ids.iter().map(|id| Member::new(*id, recover::birth(*id, &ids, Vec::new()))).collect();
        let mut network = Network::default();
        network.grow(count);
        let clients = Clients::new(&mut context, count);
        let watchers = (0..context.settings.watchers).map(|_| Watcher::new(&mut context)).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        Self {
            context,
            members,
            network,
            clients,
            watchers,
            runtime,
            busy: true,
            snapshots_to_lose: 0,
            connections: 0,
            calls: BTreeMap::new(),
            calls_made: 0,
        }
    }

    /// Starts members and watchers, and the faults.
    pub fn boot(&mut self) {
        for member in 0..self.members.len() {
            let delay = self.context.random.u64(..300 * MILLI);
            self.context.after(delay, Event::Start(member));
        }
        for watcher in 0..self.watchers.len() {
            Watcher::schedule(&mut self.context, watcher);
        }
        self.context.after(2 * SECOND, Event::Nemesis);
        if self.context.mutated(Mutation::DiskLies) {
            self.members.iter().for_each(|member| member.disk.lie(Lie::Everything));
        }
    }

    pub fn run_for(&mut self, span: Micros) {
        let until = self.context.now + span;
        while let Some(event) = self.context.next(until) {
            self.event(event);
            self.follow_members();
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Start(member) => self.start(member),
            Event::Process { member, boot, work } => {
                if self.postponed(member, &event) {
                    return;
                }
                let place = &mut self.members[member];
                if let Some(process) = place.process.as_mut().filter(|process| process.boot == boot) {
                    let done = process.work(&mut self.context, work);
                    self.after_work(member, done);
                    if matches!(work, Work::Tick) {
                        self.keep_connected(member);
                    }
                }
            }
            Event::Deliver(message) => self.deliver(message),
            Event::SnapshotSent { member, boot, to, delivered } => {
                self.tell(member, boot, &event, |raft| raft.snapshot_sent(to, delivered));
            }
            Event::Unreachable { member, boot, to } => self.tell(member, boot, &event, |raft| raft.unreachable(to)),
            Event::Call { number, to, method, body } => {
                if self.postponed(to, &Event::Call { number, to, method, body: body.clone() }) {
                    return;
                }
                if let Some(process) = self.members[to].process.as_mut() {
                    process.call(&mut self.context, number, method, body);
                    self.after_work(to, Ok(()));
                }
            }
            Event::CallAnswer(number, answer) => self.call_answered(number, answer),
            Event::Retire(member) => {
                let place = &self.members[member];
                let removed = self.context.truth.cluster.is_removed(place.id);
                must!(self.context, removed, "{} ends as a removed member, and is none", place.id);
                self.end(member, false);
                self.members[member].retired = true;
            }
            Event::Request(op) => {
                let Some(member) = self.clients.ops.get(&op).map(|op| op.member) else { return };
                if self.postponed(member, &event) {
                    return;
                }
                let Some(asked) = self.clients.ops.get(&op) else { return };
                let Some(process) = self.members[member].process.as_mut() else {
                    self.context.after(MILLI, Event::Answer(op, Answer::Lost));
                    return;
                };
                if !process.serves() {
                    self.context.after(MILLI, Event::Answer(op, Answer::Lost));
                    return;
                }
                if let Some(number) = process.request(&mut self.context, op, &asked.ask) {
                    self.clients.proposed(op, number);
                }
            }
            Event::Answer(op, Answer::NotLeader(Some(leader))) if self.forward(op, leader) => {}
            Event::Answer(op, answer) => self.clients.answered(&mut self.context, op, answer),
            Event::GiveUp(op) => self.clients.give_up(&mut self.context, op),
            Event::Next(client) => {
                if self.busy {
                    self.clients.next(&mut self.context, client);
                }
            }
            Event::Watch(watcher) => self.watch(watcher),
            Event::Nemesis => {
                if self.context.faulty {
                    self.nemesis();
                    let pause = self.context.random.u64(200 * MILLI..6 * SECOND);
                    self.context.after(pause, Event::Nemesis);
                }
            }
        }
    }

    /// Tells a process what its transport has found out.
    fn tell(&mut self, member: usize, boot: u32, event: &Event, what: impl FnOnce(&RaftHandle)) {
        if self.postponed(member, event) {
            return;
        }
        let process = self.members[member].process.as_mut().filter(|process| process.boot == boot);
        if let Some(process) = process {
            what(&process.raft);
            self.poke(member);
        }
    }

    /// Whether the member is stopped; the event then happens when it goes on.
    fn postponed(&mut self, member: usize, event: &Event) -> bool {
        let until = self.members[member].paused_until;
        if until <= self.context.now {
            return false;
        }
        self.context.after(until - self.context.now, event.clone());
        true
    }

    /// Members pass renewals on to the leader, as long as there is a way.
    fn forward(&mut self, op: OpId, leader: MemberId) -> bool {
        let (Some(to), Some(asked)) =
            (self.members.iter().position(|member| member.id == leader), self.clients.ops.get_mut(&op))
        else {
            return false;
        };
        let from = std::mem::replace(&mut asked.member, to);
        if from == to || self.connection(from, to, Purpose::Calls).is_none() {
            return false;
        }
        self.context.after(2 * MILLI, Event::Request(op));
        true
    }

    fn deliver(&mut self, message: Box<Message>) {
        let mut to = message.to;
        if self.postponed(to, &Event::Deliver(message.clone())) {
            return;
        }
        if message.db_snapshot.is_some() {
            return self.deliver_snapshot(&message);
        }
        if !self.arrives(&message) {
            if message.outbound.lane == Lane::Append {
                let (member, boot) = (message.from, message.boot);
                self.context.after(MILLI, Event::Unreachable { member, boot, to: message.outbound.to });
            }
            return;
        }
        if self.context.mutated(Mutation::WrongMember) && self.context.one_in(200) {
            to = message.from;
        }
        if let Some(process) = self.members[to].process.as_mut() {
            process.receive(&mut self.context, message.sender, &message.outbound.bytes);
        }
    }

    /// A db snapshot has arrived, or not; its sender hears of it.
    fn deliver_snapshot(&mut self, message: &Message) {
        let to = message.to;
        let aborted = self.snapshots_to_lose > 0 || (self.context.faulty && self.context.one_in(4));
        self.snapshots_to_lose = self.snapshots_to_lose.saturating_sub(1);
        let mut delivered = false;
        if !aborted
            && self.arrives(message)
            && let (Some(db_snapshot), Some(process)) = (&message.db_snapshot, self.members[to].process.as_mut())
        {
            let bytes = &message.outbound.bytes;
            let done = process.receive_snapshot(&mut self.context, message.sender, bytes, db_snapshot);
            delivered = done.is_ok();
            self.after_work(to, done);
        }
        self.context.note("snapshot", [message.from as u64, to as u64, delivered.into()]);
        let told = Event::SnapshotSent { member: message.from, boot: message.boot, to: message.outbound.to, delivered };
        self.context.after(MILLI, told);
    }

    /// Whether the connection of a message is still open.
    fn arrives(&self, message: &Message) -> bool {
        let Some(process) = &self.members[message.to].process else { return false };
        let key = (message.sender, purpose_of(message.outbound.lane));
        let open = process.transport.borrow().accepted.get(&key) == Some(&message.connection);
        if open {
            let removed = process.cluster().is_removed(message.sender);
            must!(self.context, !removed, "{} takes messages of a removed member", process.member);
        }
        open && !self.network.is_cut(&self.context, message.from, message.to)
    }

    /// Sends the questions of a member and its answers to those of others.
    fn carry_calls(&mut self, member: usize) {
        const PATIENCE: Micros = 2 * SECOND;
        let Some(process) = self.members[member].process.as_mut() else { return };
        let (calls, answered) = (process.take_calls(), std::mem::take(&mut process.answered));
        for (number, answer) in answered {
            let delay = self.context.random.u64(..3 * MILLI);
            self.context.after(delay, Event::CallAnswer(number, Some(answer)));
        }
        for Call { to: id, method, body, reply } in calls {
            let to = self.index_of(id);
            let Some(to) = to.filter(|to| self.connection(member, *to, Purpose::Calls).is_some()) else {
                // The caller goes on with its next piece of work.
                let _ = reply.send(Err(CallError::Unreachable(id)));
                continue;
            };
            self.calls_made += 1;
            let number = self.calls_made;
            self.calls.insert(number, (member, to, reply));
            let delay = self.context.random.u64(..3 * MILLI);
            self.context.after(delay, Event::Call { number, to, method, body });
            self.context.after(PATIENCE, Event::CallAnswer(number, None));
        }
    }

    fn call_answered(&mut self, number: u64, answer: Option<Bytes>) {
        let Some(&(from, to, _)) = self.calls.get(&number) else { return };
        let cut = answer.is_some() && self.network.is_cut(&self.context, to, from);
        if cut || self.postponed(from, &Event::CallAnswer(number, answer.clone())) {
            return;
        }
        if let Some((_, _, reply)) = self.calls.remove(&number) {
            let _ = reply.send(answer.ok_or(CallError::Lost(self.members[to].id)));
        }
        self.poke(from);
    }

    /// Tries to connect to every peer.
    fn keep_connected(&mut self, member: usize) {
        let Some(process) = &self.members[member].process else { return };
        let peers: Vec<MemberId> = process.transport.borrow().peers.peers().collect();
        for peer in peers {
            if let Some(to) = self.index_of(peer) {
                self.connection(member, to, Purpose::Control);
            }
        }
    }

    fn index_of(&self, id: MemberId) -> Option<usize> {
        self.members.iter().position(|member| member.id == id)
    }

    /// The open connection between two members, which is made if need be and if both want it.
    fn connection(&mut self, from: usize, to: usize, purpose: Purpose) -> Option<u64> {
        let answers = self.members[to].paused_until <= self.context.now;
        let (sender, receiver) = (self.members[from].process.as_ref()?, self.members[to].process.as_ref()?);
        let (mut dialling, mut accepting) =
            (sender.transport.try_borrow_mut().ok()?, receiver.transport.try_borrow_mut().ok()?);
        let (dialled, accepted) = ((receiver.member, purpose), (sender.member, purpose));
        let open = dialling.dialled.get(&dialled).filter(|number| accepting.accepted.get(&accepted) == Some(number));
        if let Some(&number) = open
            && purpose != Purpose::Snapshot
        {
            return Some(number);
        }
        let cut = self.network.is_cut(&self.context, from, to) || self.network.is_cut(&self.context, to, from);
        let urls = dialling.peers.urls(receiver.member)?;
        must!(self.context, *urls == recover::member(receiver.member).peer_urls, "{urls:?} are of another member");
        if cut || !answers {
            return None;
        }
        let hello = dialling.peers.hello(receiver.member, purpose);
        let request = hello.request("member").expect("a request");
        let judged = accepting.peers.judge(request.headers());
        if let Ok(greeting) = &judged {
            accepting.peers.admit(greeting);
        }
        let response = answer(ClusterId(1), judged.map(drop));
        match hello.answered(response.status(), response.headers()) {
            Ok(Ok(())) => {
                self.connections += 1;
                dialling.dialled.insert(dialled, self.connections);
                accepting.accepted.insert(accepted, self.connections);
                Some(self.connections)
            }
            Ok(Err(Refusal::Removed)) => {
                let by = receiver.member;
                drop((dialling, accepting));
                if let Some(process) = self.members[from].process.as_mut() {
                    process.told_removed(&mut self.context, by);
                }
                self.retire_if_removed(from);
                None
            }
            Ok(Err(Refusal::UnknownMember)) => {
                self.context.counts.unknown_peers += 1;
                None
            }
            other => self.context.fail(format_args!("{} answers {} with {other:?}", receiver.member, sender.member)),
        }
    }

    /// Every connection from one member to another breaks.
    fn reset(&mut self, from: usize, to: usize) {
        let id = self.members[from].id;
        if let Some(process) = &self.members[to].process {
            process.transport.borrow_mut().accepted.retain(|(sender, _), _| *sender != id);
        }
    }

    /// A process that knows that it was removed stops, which takes a moment.
    fn retire_if_removed(&mut self, member: usize) {
        let place = &mut self.members[member];
        if !place.retires && place.process.as_ref().is_some_and(|process| process.removed) {
            place.retires = true;
            let delay = self.context.random.u64(..SECOND);
            self.context.after(delay, Event::Retire(member));
        }
    }

    /// Members that were added begin.
    fn follow_members(&mut self) {
        for (kind, id) in std::mem::take(&mut self.context.truth.changed) {
            let Some(member) = self.members.iter().position(|member| member.id == id) else { continue };
            match kind {
                ChangeKind::AddLearner | ChangeKind::AddVoter => {
                    let delay = self.context.random.u64(..2 * SECOND);
                    self.context.after(delay, Event::Start(member));
                }
                ChangeKind::Remove | ChangeKind::Update => {}
            }
            let known = |(at, member): (usize, &Member)| self.context.truth.cluster.member(member.id).map(|_| at);
            self.clients.members = self.members.iter().enumerate().filter_map(known).collect();
        }
    }

    /// Sends what a process wants sent; ends it if it cannot go on.
    fn after_work(&mut self, member: usize, done: Result<(), Failure>) {
        if let Err(failure) = done {
            let expected = self.members[member].breaking || self.members[member].expect_failures;
            self.members[member].failures.push(failure.clone());
            must!(self.context, expected, "member {member} ended: {failure}");
            self.context.note("failed", [member as u64, 0, 0]);
            self.crash(member, true);
            return;
        }
        let Some(process) = self.members[member].process.as_mut() else { return };
        let outbox = std::mem::take(&mut process.outbox);
        for outbound in outbox {
            let Some(to) = self.index_of(outbound.to) else { continue };
            let connection = self.connection(member, to, purpose_of(outbound.lane));
            let Some(process) = self.members[member].process.as_ref() else { return };
            let Some(connection) = connection else {
                let (boot, to, delivered) = (process.boot, outbound.to, false);
                match outbound.lane {
                    Lane::Control => {}
                    // Who is no peer is not even dialled.
                    _ if !process.transport.borrow().peers.contains(to) => {}
                    Lane::Append => self.context.after(MILLI, Event::Unreachable { member, boot, to }),
                    Lane::Snapshot => self.context.after(MILLI, Event::SnapshotSent { member, boot, to, delivered }),
                }
                continue;
            };
            if outbound.lane != Lane::Snapshot {
                self.network.send(&mut self.context, process, to, outbound, connection);
                continue;
            }
            match process.db_snapshot(outbound.to, &outbound.bytes) {
                Ok((bytes, db_snapshot)) => {
                    let outbound = Outbound { bytes, ..outbound };
                    self.network.send_snapshot(&mut self.context, process, to, outbound, connection, db_snapshot);
                }
                Err(failure) => return self.after_work(member, Err(failure)),
            }
        }
        self.retire_if_removed(member);
        self.carry_calls(member);
    }

    fn start(&mut self, member: usize) {
        let place = &mut self.members[member];
        if place.process.is_some() || place.retired {
            return;
        }
        place.breaking = false;
        place.boots += 1;
        match Process::start(&mut self.context, member, place.boots, &place.disk, &place.birth) {
            Ok(process) => {
                place.process = Some(process);
                self.after_work(member, Ok(()));
            }
            Err(failure) if place.expect_failures => {
                place.failures.push(failure);
                place.retired = true;
            }
            Err(failure) if failure == REMOVED && self.context.truth.cluster.is_removed(place.id) => {
                place.retired = true;
            }
            Err(failure) => self.context.fail(format_args!("member {member} does not start: {failure}")),
        }
    }

    /// Ends a process at once; with `power`, what was not synced is lost as well. It comes back later.
    pub fn crash(&mut self, member: usize, power: bool) {
        if self.end(member, power) {
            self.context.counts.crashes += 1;
            self.context.note("crash", [member as u64, power.into(), 0]);
            let delay = if self.context.one_in(5) { 10 * SECOND } else { SECOND };
            let delay = self.context.random.u64(10 * MILLI..delay);
            self.context.after(delay, Event::Start(member));
        }
    }

    fn end(&mut self, member: usize, power: bool) -> bool {
        let context = &mut self.context;
        let place = &mut self.members[member];
        let Some(mut process) = place.process.take() else { return false };
        if !place.breaking {
            let calls = context.random.u64(..6);
            place.disk.fail(fault(context, calls, EIO));
            process.die_writing();
            place.disk.heal();
        }
        place.disk.end_run();
        drop(process);
        if power {
            let kept = match std::mem::take(&mut place.lies_once) {
                true => Kept::Nothing,
                false => Kept::ALL[context.random.usize(..Kept::ALL.len())],
            };
            if !context.mutated(Mutation::DiskLies) {
                place.disk.lie(None);
            }
            place.disk.lose_power(kept, &mut context.random);
        }
        place.paused_until = 0;
        true
    }

    fn watch(&mut self, watcher: usize) {
        Watcher::schedule(&mut self.context, watcher);
        let client = &mut self.watchers[watcher];
        if let Some((member, boot)) = client.connected_to() {
            let place = &self.members[member];
            if place.process.as_ref().is_none_or(|process| process.boot != boot) || self.context.one_in(60) {
                client.disconnect();
            } else if place.paused_until > self.context.now {
                return;
            }
        }
        if client.connected_to().is_none() {
            let any = self.clients.members[self.context.random.usize(..self.clients.members.len())];
            let member = client.only.unwrap_or(any);
            let place = &self.members[member];
            let (Some(process), true) = (&place.process, place.paused_until <= self.context.now) else { return };
            client.connect(&mut self.context, process);
        }
        self.settle();
        let responses = self.context.random.usize(1..6);
        self.watchers[watcher].read(&mut self.context, responses);
        self.settle();
    }

    /// Lets the tasks of the watcher sets run until they have nothing to do.
    fn settle(&self) {
        self.runtime.block_on(async {
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
        });
    }

    /// Causes a fault.
    fn nemesis(&mut self) {
        let count = self.members.len();
        let random = &mut self.context.random;
        let (member, other) = (random.usize(..count), random.usize(..count));
        let until = self.context.now + random.u64(300 * MILLI..12 * SECOND);
        match random.u8(..100) {
            0..22 => {
                let power = random.bool();
                self.crash(member, power);
            }
            22..25 => (0..count).for_each(|member| self.crash(member, true)),
            25..36 => {
                self.members[member].paused_until = until;
                self.context.counts.pauses += 1;
                self.context.note("pause", [member as u64, until, 0]);
            }
            36..48 => {
                let code = if random.bool() { ENOSPC } else { EIO };
                let calls = random.u64(..30);
                let place = &mut self.members[member];
                if place.process.is_some() {
                    place.disk.fail(fault(&mut self.context, calls, code));
                    place.breaking = true;
                    self.context.counts.disk_faults += 1;
                    self.context.note("disk", [member as u64, calls, 0]);
                }
            }
            48..85 if count > 1 => {
                let kind = random.u8(..6);
                let sides: Vec<bool> = (0..count).map(|_| random.bool()).collect();
                for from in 0..count {
                    for to in 0..count {
                        let (cut, worse) = match kind {
                            0 => (from == member || to == member, false),
                            1 => (from == member, false),
                            2 => (to == member, false),
                            3 => (from == member && to == other, false),
                            4 => (sides[from] != sides[to], false),
                            _ => (false, true),
                        };
                        if cut {
                            self.network.cut(from, to, until);
                        }
                        if worse {
                            self.network.worsen(from, to, until);
                        }
                    }
                }
                self.context.counts.partitions += 1;
                self.context.note("network", [kind.into(), member as u64, until]);
            }
            85..90 => {
                self.reset(member, other);
                self.reset(other, member);
            }
            90..94 if count > 1 => self.transfer(member, other),
            94..100 => {
                // Now and then two at once, by two operators at different members.
                let second = self.context.one_in(2);
                self.change_members();
                if second {
                    self.change_members();
                    self.context.counts.double_changes += 1;
                }
            }
            _ => {}
        }
    }

    fn transfer(&mut self, from: usize, to: usize) {
        let id = self.members[to].id;
        let Some(process) = self.members[from].process.as_mut() else { return };
        if process.leads() {
            process.raft.transfer_leader(id);
            self.context.counts.transfers += 1;
            self.context.note("transfer", [from as u64, to as u64, 0]);
        }
    }

    /// Adds, promotes or removes a member.
    fn change_members(&mut self) {
        const MEMBERS_MAX: usize = 9;
        let Some(leader) = self.members.iter().position(|member| member.process.as_ref().is_some_and(Process::leads))
        else {
            return;
        };
        let cluster = &self.context.truth.cluster;
        let learner = cluster.learners().next().map(|member| member.member_id());
        let voters: Vec<MemberId> = cluster.voters().map(|member| member.member_id()).collect();
        let (kind, id, json) = match learner {
            Some(learner) if self.context.random.u8(..5) > 0 => {
                let ready = self.members[leader].process.as_ref().is_some_and(|process| process.is_ready(learner));
                if !ready {
                    return;
                }
                (ChangeKind::AddVoter, learner, AddContext::promote(learner).to_json())
            }
            Some(learner) => (ChangeKind::Remove, learner, Vec::new()),
            None if voters.len() > 3 || (voters.len() > 1 && self.context.random.bool()) => {
                let voter = voters[self.context.random.usize(..voters.len())];
                (ChangeKind::Remove, voter, Vec::new())
            }
            None if self.members.len() < MEMBERS_MAX => {
                let id = MemberId(self.members.len() as u64 + 1);
                self.add_member(id);
                let member = watershed::core::cluster::Member { is_learner: true, ..recover::member(id) };
                (ChangeKind::AddLearner, id, AddContext::add(member, 1).to_json())
            }
            None => return,
        };
        let any = self.context.random.usize(..self.members.len());
        let serving = self.members[any].process.as_ref().is_some_and(Process::serves);
        self.propose_members(if serving { any } else { leader }, kind, id, json);
    }

    /// Adds a disk and an id for a member that may be added to the cluster.
    pub fn add_member(&mut self, id: MemberId) {
        let running = self.context.truth.cluster.members().cloned().collect();
        self.members.push(Member::new(id, recover::birth(id, &[], running)));
        self.network.grow(self.members.len());
    }

    pub fn propose_members(&mut self, leader: usize, kind: ChangeKind, id: MemberId, json: Vec<u8>) {
        if let Some(process) = self.members[leader].process.as_mut() {
            process.change_members(&mut self.context, kind, id, json);
        }
        self.poke(leader);
    }

    /// Lets a process follow what was done to its node.
    pub fn poke(&mut self, member: usize) {
        if let Some(process) = self.members[member].process.as_mut() {
            let done = process.turn(&mut self.context);
            self.after_work(member, done);
        }
    }

    /// Makes the disk of the log hang.
    pub fn stall_disk(&mut self, member: usize, span: Micros) {
        if let Some(process) = self.members[member].process.as_mut() {
            process.stall_disk(&mut self.context, span);
        }
    }

    pub fn add_watcher(&mut self, watcher: Watcher) {
        self.watchers.push(watcher);
        Watcher::schedule(&mut self.context, self.watchers.len() - 1);
    }

    pub fn runtime(&self) -> tokio::runtime::Handle {
        self.runtime.handle().clone()
    }

    /// Ends all faults, and requires progress.
    pub fn recover(&mut self) {
        self.context.faulty = false;
        self.network.heal();
        // What a pause has held up comes at its end.
        let paused = self.members.iter().map(|member| member.paused_until).max().unwrap_or(0);
        self.run_for(paused.saturating_sub(self.context.now));
        for member in 0..self.members.len() {
            if self.members[member].breaking {
                self.crash(member, true);
            }
            if self.members[member].boots > 0 {
                self.context.after(0, Event::Start(member));
            }
        }
        let begun = self.context.counts.acknowledged;
        self.run_for(8 * ELECTION);
        self.probe();
        let acknowledged = self.context.counts.acknowledged;
        must!(self.context, acknowledged > begun, "no client was served after the faults ended");
        self.busy = false;
        self.run_for(10 * ELECTION);
        self.caught_up();
        // Nobody renews any more: the longest lease of a client has 12 seconds.
        self.run_for(6 * ELECTION);
        let lives = self.context.truth.model.leases.len();
        must!(self.context, lives == 0, "{lives} leases live on without a renewal");
        self.caught_up();
        self.compacted();
        self.removed_have_ended();
    }

    /// Whoever was removed has learned it, from its own log or from a member that it dialled.
    fn removed_have_ended(&self) {
        let removed = |member: &&Member| self.context.truth.cluster.is_removed(member.id);
        for process in self.members.iter().filter(removed).filter_map(|member| member.process.as_ref()) {
            let peers: Vec<MemberId> = process.transport.borrow().peers.peers().collect();
            let known =
                peers.iter().filter_map(|peer| self.index_of(*peer)).any(|at| self.clients.members.contains(&at));
            must!(self.context, !known, "{} was removed, dials {peers:?} and goes on", process.member);
        }
    }

    /// Every compaction has removed what it forgets.
    pub fn compacted(&self) {
        for member in &self.members {
            let Some(process) = member.process.as_ref().filter(|process| process.serves()) else { continue };
            let rows = process.backend.rows(Table::Meta).expect("a store that works");
            let at = |name: &str| rows.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
            let (scheduled, finished) = (at("scheduledCompactRev"), at("finishedCompactRev"));
            must!(self.context, scheduled == finished, "{} does not finish the compaction at {scheduled:?}", member.id);
        }
    }

    /// Every member takes a write and answers a read.
    fn probe(&mut self) {
        let mut ops = Vec::new();
        for member in self.clients.members.clone() {
            let value = format!("from {member}");
            let put = PutRequest { key: "probe".into(), value: value.into(), ..Default::default() };
            let write = Ask::Write(InternalRaftRequest { put: Some(put), ..Default::default() });
            let read = Ask::Read { request: everything(), linearizable: true };
            for ask in [write, read] {
                ops.push((member, self.clients.begin(&mut self.context, NOBODY, member, ask)));
            }
        }
        let before = self.context.counts.unanswered_probes;
        self.run_for(3 * ELECTION);
        for (member, op) in ops {
            let answered = !self.clients.ops.contains_key(&op);
            must!(self.context, answered, "member {member} did not answer in time after the faults ended");
        }
        let lost = self.context.counts.unanswered_probes - before;
        must!(self.context, lost == 0, "{lost} requests of a healthy cluster failed");
    }

    /// What was committed two seconds ago is everywhere, and every watcher has heard of it.
    fn caught_up(&mut self) {
        let (committed, revision) = (self.context.truth.committed(), self.context.truth.model.revision());
        self.run_for(2 * ELECTION);
        for &at in &self.clients.members {
            let member = &self.members[at];
            let applied = member.process.as_ref().map_or(0, |process| process.applied().0);
            must!(self.context, applied >= committed, "member {at} has applied {applied} of {committed}");
        }
        for watcher in &self.watchers {
            must!(self.context, watcher.seen >= revision, "a watcher has heard up to {} of {revision}", watcher.seen);
            let unseen = watcher.unseen_expiries(&self.context).next();
            must!(self.context, unseen.is_none(), "a watcher did not see the expiry {unseen:?}");
        }
    }

    /// Members that have applied the same entries have the same state, and it is the one the log says.
    pub fn compare_members(&mut self) {
        for member in 0..self.members.len() {
            // Consensus hears of what apply has decided.
            self.poke(member);
        }
        let context = &self.context;
        let mut states = std::collections::BTreeMap::new();
        for member in &self.members {
            let Some(process) = member.process.as_ref().filter(|process| process.serves()) else { continue };
            let hash = process.reader.hash_kv(watershed::types::Revision(0));
            let hash = hash.unwrap_or_else(|error| context.fail(format_args!("no hash: {error}")));
            let rows = |table| process.backend.rows(table).expect("a store that works");
            let tables = [Table::Lease, Table::Alarm, Table::Cluster, Table::Members, Table::MembersRemoved];
            let state = (hash.0.hash, hash.0.compact_revision, hash.1, tables.map(rows));
            let first = states.entry(process.applied()).or_insert_with(|| state.clone());
            must!(
                context,
                *first == state,
                "{} differs at {}: {state:?} is not {first:?}",
                member.id,
                process.applied()
            );
            let revision = process.revision().0;
            let shown = process.reader.snapshot().range(&everything()).map(|answer| recode(&answer));
            let expected = context.truth.model.range(&everything(), revision, revision);
            must!(context, shown.as_ref().ok() == Some(&expected), "{} shows {shown:?}", member.id);
            if process.applied().0 == context.truth.committed() {
                must!(context, revision == context.truth.model.revision(), "{} is at {revision}", member.id);
                let leases: Vec<i64> = process.leases.read().all().iter().map(|lease| lease.id.0).collect();
                let expected: Vec<i64> = context.truth.model.leases.keys().copied().collect();
                must!(context, leases == expected, "{} has leases {leases:?}, not {expected:?}", member.id);
            }
            let (mut raft, stored) = (process.node().conf_state(), process.cluster().conf_state());
            raft.voters.sort_unstable();
            raft.learners.sort_unstable();
            let same = raft.voters == stored.voters && raft.learners == stored.learners;
            must!(context, same, "{}: raft counts {raft:?}, the members are {stored:?}", member.id);
        }
    }

    fn finish(mut self) -> Summary {
        self.context.counts.simulations = 1;
        self.context.counts.simulated = self.context.now;
        let range = KeyRange::From("\0".into());
        let events = self.context.truth.model.events(&range, 0, i64::MAX).len() as u64;
        self.context.note("end", [self.context.truth.committed(), events, 0]);
        Summary { trace: self.context.trace, counts: self.context.counts }
    }
}

fn purpose_of(lane: Lane) -> Purpose {
    match lane {
        Lane::Control => Purpose::Control,
        Lane::Append => Purpose::Append,
        Lane::Snapshot => Purpose::Snapshot,
    }
}

/// From the `after`th operation on the disk refuses; what it refuses may have been done in part.
fn fault(context: &mut Context, after: u64, code: i32) -> Fault {
    let effect = if context.random.bool() { Effect::Some } else { Effect::Nothing };
    Fault { after, code, effect, lasts: true }
}
