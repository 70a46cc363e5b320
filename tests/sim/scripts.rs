//! Known ways in which clusters have failed, played step by step.

use bytes::Bytes;
use watershed::core::cluster::AddContext;
use watershed::core::raft::ChangeKind;
use watershed::pb::etcdserverpb::{CompactionRequest, InternalRaftRequest, LeaseGrantRequest, PutRequest};
use watershed::types::{KeyRange, MemberId};

use super::client::{Ask, NOBODY, OpId, everything};
use super::cluster::SimCluster;
use super::context::{MILLI, Micros, SECOND, Settings};
use super::disk::Lie;
use super::process::{ELECTION, Process};
use super::recover;
use super::watcher::Watcher;

/// A cluster in which nothing happens by chance.
struct Stage {
    cluster: SimCluster,
}

impl Stage {
    fn new(members: usize, seed: u64) -> Self {
        let settings = Settings {
            seed,
            members,
            clients: 0,
            watchers: 0,
            faulty: 0,
            healthy: true,
            mutation: None,
            recorded: false,
        };
        let mut cluster = SimCluster::new(settings);
        cluster.context.faulty = false;
        let mut stage = Self { cluster };
        stage.play(|cluster| {
            cluster.boot();
            cluster.run_for(4 * ELECTION);
        });
        stage
    }

    /// Runs a part of the script on the cluster's runtime.
    fn play<T>(&mut self, part: impl FnOnce(&mut SimCluster) -> T) -> T {
        let runtime = self.cluster.runtime();
        let _entered = runtime.enter();
        part(&mut self.cluster)
    }

    fn run_for(&mut self, span: Micros) {
        self.play(|cluster| cluster.run_for(span));
    }

    fn leaders(&self) -> Vec<usize> {
        let leads = |at: &usize| self.cluster.members[*at].process.as_ref().is_some_and(Process::leads);
        (0..self.cluster.members.len()).filter(leads).collect()
    }

    fn leader(&self) -> usize {
        let leaders = self.leaders();
        *leaders.first().expect("somebody leads")
    }

    fn other_than(&self, members: &[usize]) -> usize {
        (0..self.cluster.members.len()).find(|member| !members.contains(member)).expect("one more")
    }

    fn ask(&mut self, member: usize, ask: Ask) -> OpId {
        self.cluster.clients.begin(&mut self.cluster.context, NOBODY, member, ask)
    }

    fn put(&mut self, member: usize) -> OpId {
        let value = format!("at {}", self.cluster.context.now);
        let put = PutRequest { key: "k1".into(), value: value.into(), ..Default::default() };
        self.ask(member, Ask::Write(InternalRaftRequest { put: Some(put), ..Default::default() }))
    }

    fn read(&mut self, member: usize) -> OpId {
        self.ask(member, Ask::Read { request: everything(), linearizable: true })
    }

    /// Writes and waits: the write must take effect and be answered within `span`.
    fn write_within(&mut self, member: usize, span: Micros) {
        let before = self.cluster.context.truth.model.revision();
        let op = self.put(member);
        self.run_for(span);
        assert!(!self.cluster.clients.ops.contains_key(&op), "a write was not answered within {span} µs");
        assert!(self.cluster.context.truth.model.revision() > before, "a write failed");
    }

    /// Writes one after another without waiting for each.
    fn write_many(&mut self, member: usize, count: i64) {
        let before = self.cluster.context.truth.model.revision();
        for _ in 0..count {
            self.put(member);
            self.run_for(50 * MILLI);
        }
        self.run_for(SECOND);
        assert_eq!(self.cluster.context.truth.model.revision(), before + count, "all of them took effect");
    }

    fn pause(&mut self, member: usize, span: Micros) {
        self.cluster.members[member].paused_until = self.cluster.context.now + span;
    }

    /// Cuts a member off in both directions.
    fn isolate(&mut self, member: usize, span: Micros) {
        let until = self.cluster.context.now + span;
        for other in 0..self.cluster.members.len() {
            self.cluster.network.cut(member, other, until);
            self.cluster.network.cut(other, member, until);
        }
    }

    fn reads(&self) -> u64 {
        self.cluster.context.counts.reads
    }
}

/// Of two voters one is removed while the network or the power of the other one fails; it ends as soon as anybody has
/// applied its removal. Whoever is left goes on alone.
#[test]
fn of_two_voters_one_is_removed() {
    const ROUNDS: u64 = 240;
    let mut alone = 0;
    for round in 0..ROUNDS {
        let mut stage = Stage::new(2, round);
        let leader = stage.leader();
        let (removed, left) = if round % 2 == 0 { (leader, 1 - leader) } else { (1 - leader, leader) };
        let id = stage.cluster.members[removed].id;
        stage.play(|cluster| cluster.propose_members(leader, ChangeKind::Remove, id, Vec::new()));
        stage.run_for(round * 150);
        stage.isolate(left, 5 * SECOND);
        if round % 3 == 0 {
            stage.play(|cluster| cluster.crash(left, true));
        }
        stage.run_for(5 * SECOND);
        let decided = |stage: &Stage| stage.cluster.context.truth.cluster.is_removed(id);
        alone += u64::from(decided(&stage));
        // Enough for an election, for what is in the logs, and for the end of the removed one.
        stage.run_for(16 * ELECTION);
        if decided(&stage) {
            assert!(stage.cluster.members[removed].process.is_none());
        }
        stage.write_within(left, 4 * ELECTION);
    }
    assert!(alone > ROUNDS / 10 && alone < ROUNDS, "{alone} of {ROUNDS} were removed while nothing got through");
}

/// A voter was cut off while a member was added and became the leader: it hears the leader that is in none of its lists.
#[test]
fn a_member_that_was_away_follows_a_leader_it_does_not_know() {
    follows_an_unknown_leader();
}

/// The script of that name; planted faults run it, too.
pub fn follows_an_unknown_leader() {
    let mut stage = Stage::new(3, 20);
    let leader = stage.leader();
    let away = stage.other_than(&[leader]);
    let added = MemberId(4);
    stage.cluster.add_member(added);
    stage.isolate(away, 12 * SECOND);
    let member = watershed::core::cluster::Member { is_learner: true, ..recover::member(added) };
    for (kind, json) in [
        (ChangeKind::AddLearner, AddContext::add(member, 1).to_json()),
        (ChangeKind::AddVoter, AddContext::promote(added).to_json()),
    ] {
        stage.play(|cluster| cluster.propose_members(leader, kind, added, json));
        stage.run_for(4 * ELECTION);
    }
    let process = stage.cluster.members[leader].process.as_mut().expect("it leads");
    process.raft.transfer_leader(added);
    stage.play(|cluster| cluster.poke(leader));
    stage.run_for(2 * ELECTION);
    assert_eq!(stage.leaders(), [3], "the added member leads");
    let knows = |stage: &Stage| {
        stage.cluster.members[away].process.as_ref().is_some_and(|process| process.cluster().member(added).is_some())
    };
    assert!(!knows(&stage), "the one that was away knows nothing of it");
    stage.run_for(6 * ELECTION);
    assert!(knows(&stage), "the unknown leader was not heard");
    assert_eq!(stage.leaders(), [3]);
    stage.write_within(away, ELECTION);
    stage.play(|cluster| cluster.compare_members());
}

/// A member that was paused does not answer with old data. The answers are checked as they arrive.
#[test]
fn a_leader_that_was_paused_shows_nothing_stale() {
    let mut stage = Stage::new(3, 18);
    let (reads, elections) = (stage.reads(), stage.cluster.context.counts.leader_changes);
    const ROUNDS: u64 = 500;
    let mut in_time = 0;
    for _ in 0..ROUNDS {
        let leader = stage.leader();
        // One that is under way when the leader stops, and some that wait for it to go on.
        stage.read(leader);
        stage.run_for(stage.cluster.context.now % (2 * MILLI));
        stage.pause(leader, 4 * SECOND);
        stage.read(leader);
        stage.run_for(3500 * MILLI);
        let other = stage.other_than(&[leader]);
        let before = stage.cluster.context.truth.model.revision();
        let write = stage.put(other);
        stage.run_for(450 * MILLI);
        // Now and then the one who applies it is slow.
        in_time += u64::from(!stage.cluster.clients.ops.contains_key(&write));
        stage.read(leader);
        stage.run_for(2 * SECOND);
        assert!(stage.cluster.context.truth.model.revision() > before, "a write failed");
    }
    assert!(in_time > ROUNDS * 9 / 10, "{in_time} writes were done while the old leader was away");
    assert!(stage.cluster.context.counts.leader_changes - elections >= ROUNDS, "each pause made another member lead");
    assert!(stage.reads() - reads >= ROUNDS, "the reads were answered: {}", stage.reads() - reads);
}

/// A follower stops with its question under way.
#[test]
fn a_follower_that_was_paused_shows_nothing_stale() {
    let mut stage = Stage::new(3, 118);
    let reads = stage.reads();
    const ROUNDS: u64 = 500;
    for round in 0..ROUNDS {
        let leader = stage.leader();
        let follower = stage.other_than(&[leader]);
        stage.read(follower);
        stage.run_for(round % 7 * MILLI);
        stage.pause(follower, SECOND);
        stage.write_within(leader, 500 * MILLI);
        stage.read(follower);
        stage.run_for(2 * SECOND);
    }
    assert!(stage.reads() - reads >= ROUNDS, "the reads were answered: {}", stage.reads() - reads);
}

/// A transfer to somebody who cannot take over ends, and writes go on within two election timeouts.
#[test]
fn a_transfer_to_nobody_useful_is_bounded() {
    let mut stage = Stage::new(3, 40);
    let transfer = |stage: &mut Stage, to: MemberId| {
        let leader = stage.leader();
        let process = stage.cluster.members[leader].process.as_mut().expect("it leads");
        process.raft.transfer_leader(to);
        stage.play(|cluster| cluster.poke(leader));
        leader
    };
    // To a member that is cut off, one that is behind, one that never was, and a learner.
    let leader = stage.leader();
    let target = stage.other_than(&[leader]);
    stage.isolate(target, 5 * SECOND);
    let id = stage.cluster.members[target].id;
    let leader = transfer(&mut stage, id);
    stage.run_for(2 * ELECTION);
    stage.write_within(leader, ELECTION);
    stage.run_for(6 * SECOND);

    let leader = stage.leader();
    let target = stage.other_than(&[leader]);
    stage.isolate(target, 4 * SECOND);
    stage.write_many(leader, 40);
    stage.run_for(SECOND);
    let id = stage.cluster.members[target].id;
    transfer(&mut stage, id);
    stage.run_for(3 * ELECTION);
    let leader = stage.leader();
    stage.write_within(leader, 2 * ELECTION);

    let leader = transfer(&mut stage, MemberId(77));
    stage.write_within(leader, 2 * ELECTION);

    let learner = MemberId(4);
    stage.play(|cluster| {
        cluster.add_member(learner);
        let member = watershed::core::cluster::Member { is_learner: true, ..recover::member(learner) };
        cluster.propose_members(leader, ChangeKind::AddLearner, learner, AddContext::add(member, 1).to_json());
        cluster.run_for(4 * ELECTION);
    });
    let leader = transfer(&mut stage, learner);
    stage.write_within(leader, 2 * ELECTION);
    assert_eq!(stage.leaders().len(), 1);
}

/// A leader whose disk hangs does not end leases that its successor has renewed.
#[test]
fn a_leader_with_a_stuck_disk_ends_no_lease() {
    let mut stage = Stage::new(3, 41);
    let leader = stage.leader();
    let grant = LeaseGrantRequest { id: 7, ttl: 4 };
    stage.ask(leader, Ask::Write(InternalRaftRequest { lease_grant: Some(grant), ..Default::default() }));
    stage.run_for(SECOND);
    stage.play(|cluster| cluster.stall_disk(leader, 30 * SECOND));
    let renewals = stage.cluster.context.counts.renewals;
    for _ in 0..80 {
        // Whoever is asked passes it on to the leader it knows.
        let member = stage.other_than(&[leader]);
        stage.ask(member, Ask::Renew(7));
        stage.put(member);
        stage.run_for(500 * MILLI);
        assert!(stage.cluster.context.truth.model.leases.contains_key(&7), "the lease lives");
    }
    assert!(stage.cluster.context.counts.renewals - renewals > 60, "renewals went on");
    assert_ne!(stage.leader(), leader, "somebody else leads");
    stage.run_for(7 * SECOND);
    assert!(!stage.cluster.context.truth.model.leases.contains_key(&7), "nobody renews it any more");
}

/// One bit of a value differs on one member: the comparison of states names it, and nobody else, whoever leads and whatever
/// fails meanwhile.
#[test]
fn a_member_with_a_flipped_value_is_named() {
    const ROUNDS: u64 = 24;
    for round in 0..ROUNDS {
        let members = if round % 4 == 3 { 5 } else { 3 };
        let mut stage = Stage::new(members, 300 + round);
        let victim = round as usize % members;
        let healthy = stage.other_than(&[victim]);
        // All of it before the first comparison: an alarm stops writes.
        for number in 0..6 {
            // The last one: a value that is overwritten goes with the compaction.
            if number == 5 {
                stage.cluster.members[victim].process.as_mut().expect("it runs").flips_next_put = true;
            }
            stage.put(healthy);
            stage.run_for(80 * MILLI);
        }
        stage.run_for(600 * MILLI);
        assert!(stage.cluster.context.truth.damaged.contains(&(victim as u64 + 1)), "the value was changed");
        if round % 2 == 0 {
            let revision = stage.cluster.context.truth.model.revision();
            let compaction = CompactionRequest { revision, ..Default::default() };
            stage.ask(healthy, Ask::Write(InternalRaftRequest { compaction: Some(compaction), ..Default::default() }));
        }
        let leader = stage.leader();
        match round % 3 {
            0 => stage.isolate(stage.other_than(&[victim, leader]), 3 * SECOND),
            1 => stage.play(|cluster| cluster.crash(healthy, false)),
            _ => {}
        }
        // Several comparisons of each kind.
        stage.run_for(120 * SECOND);
        assert!(stage.cluster.context.counts.accused > 0, "round {round}: no alarm was raised");
        let id = stage.cluster.members[victim].id;
        for member in &stage.cluster.members {
            let named = member.process.as_ref().map(Process::corrupt).unwrap_or_default();
            let right = |named: &MemberId| *named == id || *named == MemberId(0);
            assert!(named.contains(&id) && named.iter().all(right), "round {round}: {named:?}");
        }
    }
}

/// A member gets a whole state; its watchers miss nothing, and those of the future stay silent until then.
#[test]
fn watches_go_on_over_a_snapshot_from_the_leader() {
    for compacted in [false, true] {
        let mut stage = Stage::new(3, 55);
        let leader = stage.leader();
        let behind = stage.other_than(&[leader]);
        stage.write_within(leader, SECOND);
        let now = stage.cluster.context.truth.model.revision();
        let everything = KeyRange::From("\0".into());
        for start in [1, now, now + 1, now + 30, now + 90] {
            let watcher = Watcher::at(everything.clone(), start, behind);
            stage.play(|cluster| cluster.add_watcher(watcher));
        }
        stage.run_for(2 * SECOND);
        stage.isolate(behind, 30 * SECOND);
        stage.write_many(leader, 80);
        if compacted {
            let compaction = CompactionRequest { revision: now + 50, ..Default::default() };
            stage.ask(leader, Ask::Write(InternalRaftRequest { compaction: Some(compaction), ..Default::default() }));
        }
        stage.run_for(40 * SECOND);
        assert!(stage.cluster.context.counts.snapshots > 0, "a state was sent");
        stage.write_many(leader, 20);
        stage.run_for(5 * SECOND);
        let newest = stage.cluster.context.truth.model.revision();
        for watcher in &stage.cluster.watchers {
            assert_eq!(watcher.seen, newest, "compacted: {compacted}");
        }
        stage.play(|cluster| cluster.compare_members());
    }
}

/// A snapshot from the leader replaces a state in the middle of a compaction; what is left of it goes on in the new state.
#[test]
fn a_compaction_goes_on_over_a_snapshot_from_the_leader() {
    compacts_over_a_snapshot();
}

/// The script of that name; planted faults run it, too.
pub fn compacts_over_a_snapshot() {
    let mut stage = Stage::new(3, 56);
    let leader = stage.leader();
    let behind = stage.other_than(&[leader]);
    let compact = |stage: &mut Stage| {
        let compaction =
            CompactionRequest { revision: stage.cluster.context.truth.model.revision(), ..Default::default() };
        stage.ask(leader, Ask::Write(InternalRaftRequest { compaction: Some(compaction), ..Default::default() }));
        stage.run_for(SECOND);
    };
    stage.write_many(leader, 60);
    stage.cluster.members[behind].process.as_mut().expect("it runs").holds_compactions = true;
    compact(&mut stage);
    stage.isolate(behind, 5 * SECOND);
    stage.write_many(leader, 60);
    compact(&mut stage);
    stage.run_for(10 * SECOND);
    assert!(stage.cluster.context.counts.snapshots > 0, "a snapshot was sent");
    stage.cluster.members[behind].process.as_mut().expect("it runs").holds_compactions = false;
    stage.write_many(leader, 20);
    stage.run_for(5 * SECOND);
    stage.play(|cluster| cluster.compacted());
    stage.play(|cluster| cluster.compare_members());
}

/// A state that is cut off on its way twenty times arrives in the end.
#[test]
fn a_state_that_is_cut_off_again_and_again_arrives() {
    let mut stage = Stage::new(3, 31);
    let leader = stage.leader();
    let behind = stage.other_than(&[leader]);
    stage.isolate(behind, 20 * SECOND);
    stage.write_many(leader, 80);
    stage.cluster.snapshots_to_lose = 20;
    for _ in 0..120 {
        stage.run_for(SECOND);
        let leader = stage.leader();
        stage.write_within(leader, SECOND);
    }
    assert_eq!(stage.cluster.snapshots_to_lose, 0, "all of them were cut off");
    let applied = stage.cluster.members[behind].process.as_ref().map(|process| process.applied().0);
    assert_eq!(applied, Some(stage.cluster.context.truth.committed()));
    stage.play(|cluster| cluster.compare_members());
}

/// A disk that lied. The others go on; the member itself gets its log anew from them, or stops with a message that
/// says what happened. Neither ends anything by a panic.
#[test]
fn a_member_whose_disk_lied_does_no_harm_to_the_others() {
    let mut stage = Stage::new(3, 29);
    let leader = stage.leader();
    let liar = stage.other_than(&[leader]);
    stage.cluster.members[liar].expect_failures = true;
    stage.cluster.members[liar].disk.lie(Lie::Everything);
    stage.cluster.members[liar].lies_once = true;
    stage.write_many(leader, 8);
    stage.play(|cluster| cluster.crash(liar, true));
    stage.write_many(leader, 20);
    stage.run_for(15 * SECOND);
    assert_eq!(stage.leader(), leader);
    let liar = &stage.cluster.members[liar];
    let clear = |failure: &String| failure.contains("synced entries were lost") || failure.contains("is corrupt");
    assert!(liar.failures.iter().all(clear), "{:?}", liar.failures);
    let applied = liar.process.as_ref().map(|process| process.applied().0);
    assert!(!liar.failures.is_empty() || applied == Some(stage.cluster.context.truth.committed()), "{applied:?}");
}

mod trio {
    //! Three nodes without shells: every message is in the hands of the script.

    use watershed::core::raft::{
        CommittedKind, LogTail, MembersDecision, NodeConfig, Outbound, PeerMessage, RaftNode, bootstrap_entries,
    };
    use watershed::core::wal::HardState;
    use watershed::types::{LogIndex, LogPosition, Term};

    use super::*;

    /// Types of messages, field 1 of each.
    const APPEND_RESPONSE: u8 = 4;
    const HEARTBEAT_RESPONSE: u8 = 9;

    fn kind(message: &Outbound) -> u8 {
        if message.bytes.first() == Some(&8) { message.bytes.get(1).copied().unwrap_or(0) } else { 0 }
    }

    struct Trio {
        nodes: Vec<RaftNode>,
        applied: Vec<LogIndex>,
        /// Messages nobody has received yet.
        wire: Vec<(usize, Outbound)>,
        confirmed: Vec<(usize, u64, LogIndex)>,
    }

    impl Trio {
        fn new() -> Self {
            let ids = [1, 2, 3].map(MemberId);
            let entries = bootstrap_entries(&ids.map(|id| (id, AddContext::add(recover::member(id), 0).to_json())));
            let nodes = ids.map(|member| {
                let hard_state = HardState { term: Term(1), vote: None, commit: LogIndex(3) };
                let log = LogTail::new(LogPosition::default(), entries.clone(), &hard_state, &Default::default());
                let config = NodeConfig {
                    member,
                    election_ticks: 10,
                    heartbeat_ticks: 1,
                    pre_vote: true,
                    applied: LogIndex(0),
                    seed: member.0,
                };
                RaftNode::new(&config, log).expect("a valid log")
            });
            let mut trio =
                Self { nodes: nodes.into(), applied: vec![LogIndex(0); 3], wire: Vec::new(), confirmed: Vec::new() };
            trio.poll();
            trio
        }

        /// Lets every node do what it wants; disks and apply are done at once.
        fn poll(&mut self) {
            for (at, node) in self.nodes.iter_mut().enumerate() {
                while let Some(step) = node.poll().expect("no fault") {
                    self.wire.extend(step.send.into_iter().map(|message| (at, message)));
                    if let Some(group) = step.persist {
                        node.persisted(group.number);
                    }
                    for entry in step.committed {
                        if matches!(entry.kind, CommittedKind::Members(_)) {
                            let decision = MembersDecision { index: entry.index, accepted: true };
                            node.members_decided(decision).expect("it waits");
                        }
                        self.applied[at] = entry.index;
                    }
                    node.applied(self.applied[at]);
                    self.confirmed.extend(step.reads.into_iter().map(|(number, index)| (at, number, index)));
                }
            }
        }

        /// Delivers everything until nothing is left but what `hold` keeps, which is answered.
        fn settle(&mut self, hold: impl Fn(usize, &Outbound) -> bool) -> Vec<(usize, Outbound)> {
            let mut held = Vec::new();
            loop {
                self.poll();
                if self.wire.is_empty() {
                    return held;
                }
                for (from, message) in std::mem::take(&mut self.wire) {
                    if hold(from, &message) {
                        held.push((from, message));
                    } else {
                        self.deliver(from, &message);
                    }
                }
            }
        }

        fn deliver(&mut self, from: usize, message: &Outbound) {
            let from = MemberId(from as u64 + 1);
            let message_for = PeerMessage::parse(message.to, from, &message.bytes).expect("an honest message");
            self.nodes[message.to.0 as usize - 1].step(message_for).expect("no fault");
        }

        fn elect(&mut self, at: usize, hold: impl Fn(usize, &Outbound) -> bool + Copy) -> Vec<(usize, Outbound)> {
            let mut held = Vec::new();
            for _ in 0..60 {
                if self.nodes[at].is_leader() {
                    break;
                }
                self.nodes[at].tick();
                held.extend(self.settle(hold));
            }
            assert!(self.nodes[at].is_leader());
            held
        }
    }

    fn nothing(_: usize, _: &Outbound) -> bool {
        false
    }

    /// The script of etcd #20418: a question asked twice, answers that come late, another leader in between.
    /// What the old leader is asked after that must stay unconfirmed.
    #[test]
    fn late_answers_to_an_old_question_confirm_no_new_one() {
        let mut trio = Trio::new();
        trio.elect(0, nothing);
        trio.settle(nothing);
        // A follower asks, and asks again; the leader's rounds reach everybody, the answers are on their way.
        let mut questions = Vec::new();
        let mut late = Vec::new();
        for _ in 0..2 {
            trio.nodes[1].read_index();
            trio.poll();
            questions.extend(trio.wire.iter().filter(|(from, _)| *from == 1).cloned());
            late.extend(trio.settle(|_, message| kind(message) == HEARTBEAT_RESPONSE));
        }
        assert!(questions.len() >= 2 && late.len() >= 4, "{} and {}", questions.len(), late.len());
        assert_eq!(trio.confirmed, []);
        // Nobody hears of the leader any more; another one is elected and writes.
        let cut = |from: usize, message: &Outbound| from == 0 || message.to == MemberId(1);
        for _ in 0..12 {
            trio.nodes[1].tick();
        }
        trio.settle(cut);
        trio.elect(2, cut);
        let term = trio.nodes[2].term();
        trio.nodes[2].propose(vec![Bytes::from_static(b"new")], term).expect("it leads");
        trio.settle(cut);
        let written = trio.nodes[2].committed();
        assert!(trio.nodes[0].is_leader() && trio.nodes[0].committed() < written, "the old leader knows nothing of it");
        // The old leader is asked something new; then the old questions come again, and the late answers.
        let number = trio.nodes[0].read_index();
        trio.settle(cut);
        for (from, message) in questions.iter().chain(&late) {
            trio.deliver(*from, message);
            trio.settle(cut);
        }
        let stale = trio.confirmed.iter().find(|(at, confirmed, _)| (*at, *confirmed) == (0, number));
        assert_eq!(stale, None, "a stale read was confirmed");
        // When the network heals, it learns and the question is answered from the new leader's log, or never.
        for _ in 0..30 {
            trio.nodes.iter_mut().for_each(RaftNode::tick);
            trio.settle(nothing);
        }
        let again = trio.nodes[0].read_index();
        trio.settle(nothing);
        let answer = trio.confirmed.iter().find(|(at, confirmed, _)| (*at, *confirmed) == (0, again));
        assert!(answer.is_some_and(|(.., index)| *index >= written), "{answer:?}");
    }

    /// Until a new leader has committed in its own term it confirms nothing, and then it does.
    #[test]
    fn a_new_leader_keeps_reads_until_its_first_commit() {
        let mut trio = Trio::new();
        trio.elect(0, nothing);
        trio.settle(nothing);
        let hold = |from: usize, message: &Outbound| {
            from == 0 || message.to == MemberId(1) || kind(message) == APPEND_RESPONSE
        };
        for _ in 0..12 {
            trio.nodes[1].tick();
        }
        trio.settle(hold);
        let confirmations = trio.elect(2, hold);
        assert!(!trio.nodes[2].is_ready_leader());
        let number = trio.nodes[2].read_index();
        let mut held = confirmations;
        held.extend(trio.settle(hold));
        assert_eq!(trio.confirmed, []);
        for (from, message) in held.iter().filter(|(from, message)| *from == 1 && message.to == MemberId(3)) {
            trio.deliver(*from, message);
            trio.settle(|from, message| from == 0 || message.to == MemberId(1));
        }
        let own = trio.nodes[2].committed();
        assert!(trio.nodes[2].is_ready_leader());
        assert_eq!(trio.confirmed, [(2, number, own)]);
    }

    /// Messages that were damaged or made up on their way are refused, or harmless to the process.
    #[test]
    fn damaged_messages_never_end_a_process() {
        let mut random = fastrand::Rng::with_seed(28);
        let (mut refused, mut taken) = (0, 0);
        for _ in 0..40 {
            let mut trio = Trio::new();
            for round in 0..400 {
                let at = random.usize(..3);
                match random.u8(..10) {
                    0 => {
                        let term = trio.nodes[at].term();
                        drop(trio.nodes[at].propose(vec![Bytes::from(vec![round as u8; 3])], term));
                    }
                    1 => drop(trio.nodes[at].read_index()),
                    _ => trio.nodes[at].tick(),
                }
                trio.poll();
                for (from, message) in std::mem::take(&mut trio.wire) {
                    let mut bytes = message.bytes.to_vec();
                    let damaged = random.u8(..3) == 0 && !bytes.is_empty();
                    if damaged {
                        let place = random.usize(..bytes.len());
                        match random.u8(..4) {
                            0 => bytes[place] ^= 1 << random.u8(..8),
                            1 => bytes[place] = random.u8(..),
                            2 => bytes.truncate(place),
                            _ => bytes.insert(place, random.u8(..)),
                        }
                    }
                    let sender = MemberId(from as u64 + 1);
                    match PeerMessage::parse(message.to, sender, &bytes.into()) {
                        Ok(parsed) => {
                            taken += usize::from(damaged);
                            // A message that claims what the member never confirmed ends it with an error, no panic.
                            if trio.nodes[message.to.0 as usize - 1].step(parsed).is_err() {
                                trio = Trio::new();
                                break;
                            }
                        }
                        Err(_) => {
                            assert!(damaged, "an honest message was refused");
                            refused += 1;
                        }
                    }
                }
            }
        }
        assert!(refused > 1000 && taken > 100, "{refused} refused, {taken} taken");
    }
}
