//! Several nodes in one thread: what one sends the others get, unless the test holds it back.

mod window;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::core::wal::WalSnapshot;

/// Messages delivered before a test calls it a loop.
const MESSAGES_MAX: usize = 100_000;

struct Site {
    node: RaftNode,
    /// Requests applied, in order.
    applied: Vec<Bytes>,
    reads: BTreeMap<u64, LogIndex>,
    position: LogPosition,
    installed: Vec<LogPosition>,
    /// The commit index that a start would find.
    commit_on_disk: LogIndex,
}

struct Cluster {
    sites: BTreeMap<MemberId, Site>,
    /// Links that lose everything: from, to.
    cut: BTreeSet<(MemberId, MemberId)>,
    /// Members whose disk does not finish anything.
    stuck: BTreeSet<MemberId>,
    lose_appends: bool,
    /// Members whose state on disk is too far behind: see [`RaftHandle::set_state_disk_late`].
    late: BTreeSet<MemberId>,
    /// States on their way, if they take long.
    slow_states: Option<Vec<(MemberId, Outbound)>>,
    waiting: Vec<(MemberId, Outbound)>,
    /// A member that gets what is on the append lane one by one, and what waits for it.
    slow: Option<(MemberId, VecDeque<(MemberId, Outbound)>)>,
    /// Groups the stuck disks hold.
    unsynced: BTreeMap<MemberId, Vec<u64>>,
}

fn config(id: u64, applied: LogIndex) -> NodeConfig {
    NodeConfig { member: MemberId(id), election_ticks: 10, heartbeat_ticks: 1, pre_vote: true, applied, seed: id }
}

impl Cluster {
    fn new(members: u64) -> Self {
        let context = |id: u64| (MemberId(id), format!("{{\"id\":{id}}}").into_bytes());
        let log = bootstrap_entries(&(1..=members).map(context).collect::<Vec<_>>());
        let hard_state = HardState { term: Term(1), vote: None, commit: LogIndex(members) };
        let nothing = walpb::ConfState::default();
        let site = |id: u64| {
            let tail = LogTail::new(LogPosition::default(), log.clone(), &hard_state, &nothing);
            let node = RaftNode::new(&config(id, LogIndex(0)), tail).expect("a valid log");
            (MemberId(id), Site::new(node))
        };
        let mut cluster = Self {
            sites: (1..=members).map(site).collect(),
            cut: BTreeSet::new(),
            stuck: BTreeSet::new(),
            lose_appends: false,
            late: BTreeSet::new(),
            slow_states: None,
            waiting: Vec::new(),
            slow: None,
            unsynced: BTreeMap::new(),
        };
        cluster.settle();
        cluster
    }

    fn site(&mut self, id: u64) -> &mut Site {
        self.sites.get_mut(&MemberId(id)).expect("a member")
    }

    fn node(&mut self, id: u64) -> &mut RaftNode {
        &mut self.site(id).node
    }

    /// Does what every shell does, and delivers, until nothing moves.
    fn settle(&mut self) {
        let mut delivered = 0;
        loop {
            for (&id, site) in &mut self.sites {
                let unsynced = self.unsynced.entry(id).or_default();
                if !self.stuck.contains(&id) {
                    for number in std::mem::take(unsynced) {
                        site.node.persisted(number);
                    }
                }
                while let Some(step) = site.node.poll().expect("no fault") {
                    self.waiting.extend(step.send.into_iter().map(|message| (id, message)));
                    if let Some(group) = step.persist {
                        if let Some(state) = group.hard_state {
                            site.commit_on_disk = state.commit;
                        }
                        match self.stuck.contains(&id) {
                            true => unsynced.push(group.number),
                            false => site.node.persisted(group.number),
                        }
                    }
                    if let Some(position) = step.install {
                        site.installed.push(position);
                        site.applied.clear();
                        site.position = position;
                        site.node.applied(position.index);
                    }
                    site.reads.extend(step.reads);
                    site.apply(step.committed);
                }
            }
            if self.waiting.is_empty() {
                return;
            }
            for (from, message) in std::mem::take(&mut self.waiting) {
                delivered += 1;
                assert!(delivered < MESSAGES_MAX, "the cluster does not come to rest");
                self.deliver(from, &message);
            }
        }
    }

    fn deliver(&mut self, from: MemberId, message: &Outbound) {
        if self.cut.contains(&(from, message.to)) || (self.lose_appends && message.lane == Lane::Append) {
            return;
        }
        if let (Lane::Snapshot, Some(slow)) = (message.lane, &mut self.slow_states) {
            slow.push((from, message.clone()));
            return;
        }
        if let Some((slow, queue)) = &mut self.slow
            && (*slow, Lane::Append) == (message.to, message.lane)
        {
            queue.push_back((from, message.clone()));
            return;
        }
        self.take(from, message);
    }

    fn take(&mut self, from: MemberId, message: &Outbound) {
        let Some(site) = self.sites.get_mut(&message.to) else { return };
        let parsed = match message.lane {
            Lane::Snapshot => PeerMessage::snapshot(message.to, from, &message.bytes),
            _ => PeerMessage::parse(message.to, from, &message.bytes),
        };
        let parsed = parsed.expect("honest members send nothing else");
        if self.late.contains(&message.to) && parsed.has_requests() {
            return;
        }
        let stepped = site.node.step(parsed).expect("no fault");
        assert_eq!(stepped, Stepped::Taken);
        if message.lane == Lane::Snapshot
            && let Some(sender) = self.sites.get_mut(&from)
        {
            sender.node.snapshot_sent(message.to, true);
        }
    }

    fn tick(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.sites.values_mut().for_each(|site| site.node.tick());
            self.settle();
        }
    }

    fn elect(&mut self, id: u64) {
        self.node(id).campaign().expect("it may");
        self.settle();
        assert!(self.node(id).is_ready_leader());
    }

    fn put(&mut self, at: u64, request: &'static str) {
        super::propose(self.node(at), &[request]);
        self.settle();
    }

    fn change_members(&mut self, at: u64, change: &ProposedChange) -> Result<(), RaftError> {
        let node = self.node(at);
        node.propose_members(change, node.term())
    }

    /// The state of a member is on disk, and it forgets all of its log.
    fn save(&mut self, id: u64) {
        let position = self.site(id).position;
        let conf_state = self.node(id).conf_state();
        let saved = WalSnapshot { index: position.index, term: position.term, conf_state };
        self.node(id).state_saved(&saved, position.index);
    }

    fn isolate(&mut self, id: u64) {
        for &other in self.sites.keys() {
            self.cut.insert((MemberId(id), other));
            self.cut.insert((other, MemberId(id)));
        }
    }

    fn applied(&self) -> Vec<&[Bytes]> {
        self.sites.values().map(|site| site.applied.as_slice()).collect()
    }
}

impl Site {
    fn new(node: RaftNode) -> Self {
        Self {
            node,
            applied: Vec::new(),
            reads: BTreeMap::new(),
            position: LogPosition::default(),
            installed: Vec::new(),
            commit_on_disk: LogIndex(0),
        }
    }

    fn apply(&mut self, committed: Vec<Committed>) {
        for entry in committed {
            self.position = entry.position();
            match entry.kind {
                CommittedKind::Empty => {}
                CommittedKind::Request(data) => self.applied.push(data),
                CommittedKind::Members(_) => {
                    let decision = MembersDecision { index: entry.index, accepted: true };
                    self.node.members_decided(decision).expect("in order");
                }
            }
        }
        self.node.applied(self.position.index);
    }
}

#[test]
fn what_any_member_proposes_all_apply_in_one_order() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    for (at, request) in [(1, "a"), (2, "b"), (3, "c"), (2, "d")] {
        cluster.put(at, request);
    }
    cluster.tick(2);
    assert!(cluster.applied().iter().all(|applied| *applied == ["a", "b", "c", "d"]), "{:?}", cluster.applied());
    assert_eq!(cluster.node(3).leader(), Some(MemberId(1)));
    let matched: Vec<_> = cluster.node(1).progress().into_iter().map(|progress| progress.matched).collect();
    assert_eq!(matched, [cluster.node(1).last_index(); 3]);
}

#[test]
fn a_leader_that_is_gone_is_replaced_and_finds_back() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.isolate(1);
    cluster.put(1, "lost");
    cluster.tick(40);
    let leader = [2, 3].into_iter().find(|&id| cluster.node(id).is_ready_leader()).expect("a new leader");
    assert!(!cluster.node(1).is_leader(), "without a quorum it steps down");
    cluster.put(leader, "kept");
    cluster.cut.clear();
    cluster.tick(3);
    assert!(cluster.applied().iter().all(|applied| *applied == ["kept"]), "{:?}", cluster.applied());
}

#[test]
fn a_promise_leaves_after_it_is_durable() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.stuck.extend([MemberId(2), MemberId(3)]);
    cluster.put(1, "a");
    assert!(cluster.applied().iter().all(|applied| applied.is_empty()), "no follower has it on disk");
    cluster.stuck.remove(&MemberId(3));
    cluster.settle();
    assert_eq!(cluster.site(1).applied, ["a"]);

    // A vote is a promise too.
    let mut cluster = Cluster::new(3);
    cluster.stuck.extend([MemberId(2), MemberId(3)]);
    cluster.node(1).campaign().expect("it may");
    cluster.settle();
    assert!(!cluster.node(1).is_leader());
    cluster.stuck.clear();
    cluster.settle();
    assert!(cluster.node(1).is_leader());
}

#[test]
fn the_disk_of_the_leader_may_be_the_slowest() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.stuck.insert(MemberId(1));
    cluster.put(1, "a");
    assert_eq!((cluster.site(2).applied.len(), cluster.site(3).applied.len()), (1, 1), "two of three have it");
    assert!(cluster.site(1).applied.is_empty(), "the leader applies what it has on disk itself");
}

#[test]
fn a_member_whose_state_disk_is_late_follows_and_catches_up() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(1);
    cluster.late.insert(MemberId(3));
    for _ in 0..20 {
        cluster.put(1, "a");
    }
    cluster.tick(100);
    assert_eq!([1, 2, 3].map(|id| cluster.site(id).applied.len()), [20, 20, 0]);
    assert_eq!(cluster.node(3).leader(), Some(MemberId(1)), "it hears of the leader");
    cluster.late.clear();
    cluster.tick(5);
    assert_eq!(cluster.site(3).applied.len(), 20);
    // Without a quorum that takes requests nothing is committed, and the leader stays.
    cluster.late.extend([MemberId(2), MemberId(3)]);
    cluster.put(1, "b");
    cluster.tick(100);
    assert!(cluster.node(1).is_ready_leader());
    assert_eq!([1, 2, 3].map(|id| cluster.site(id).applied.len()), [20; 3]);
    cluster.late.clear();
    cluster.tick(5);
    assert_eq!([1, 2, 3].map(|id| cluster.site(id).applied.len()), [21; 3]);
    // A late leader takes none from others, and goes on leading.
    cluster.late.insert(MemberId(1));
    cluster.put(2, "lost");
    cluster.tick(100);
    assert!(cluster.node(1).is_ready_leader());
    assert_eq!([1, 2, 3].map(|id| cluster.site(id).applied.len()), [21; 3]);
}

#[test]
fn a_new_leader_finds_a_member_whose_state_disk_was_late() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(1);
    cluster.late.insert(MemberId(3));
    for _ in 0..20 {
        cluster.put(1, "a");
    }
    cluster.node(1).transfer_leader(MemberId(2));
    cluster.settle();
    assert!(cluster.node(2).is_ready_leader());
    cluster.tick(20);
    assert_eq!((cluster.site(3).applied.len(), cluster.node(3).leader()), (0, Some(MemberId(2))));
    cluster.late.clear();
    cluster.tick(5);
    assert_eq!(cluster.site(3).applied.len(), 20);
}

/// Ticks after which a leader knows that a member is away: two election timeouts.
const UNTIL_AWAY: usize = 20;

#[test]
fn a_member_far_behind_gets_a_state() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.isolate(3);
    cluster.tick(UNTIL_AWAY);
    for request in ["a", "b", "c"] {
        cluster.put(1, request);
    }
    cluster.save(1);
    cluster.save(2);
    cluster.put(1, "d");
    cluster.cut.clear();
    cluster.tick(5);
    let third = cluster.site(3);
    assert_eq!((third.installed.len(), third.applied.as_slice()), (1, ["d".into()].as_slice()));
    assert_eq!(third.node.conf_state().voters, [1, 2, 3]);
    // And goes on from there, also as leader.
    cluster.node(1).transfer_leader(MemberId(3));
    cluster.settle();
    assert!(cluster.node(3).is_ready_leader());
    cluster.put(3, "e");
    cluster.tick(1);
    assert_eq!(cluster.site(1).applied.last(), Some(&"e".into()));
}

// A member that lags by a few hundred milliseconds, as behind a slow sync, is not to need a state for it.
#[test]
fn what_a_member_that_answers_lacks_is_kept() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.put(1, "a");
    cluster.isolate(3);
    cluster.put(1, "b");
    cluster.put(1, "c");
    cluster.save(1);
    assert_eq!(cluster.node(1).log_tail().len(), 2, "it had a");
    // Cause: right after the leader had looked who answers, nobody had answered since.
    cluster.tick(UNTIL_AWAY / 2);
    cluster.save(1);
    assert_eq!(cluster.node(1).log_tail().len(), 2, "it answered in the last election timeout");
    // Cause: what was kept for it stayed until the next state on disk, for ever where nobody writes.
    cluster.tick(UNTIL_AWAY / 2);
    assert_eq!(cluster.node(1).log_tail().len(), 0, "it is away");
}

// Cause: for a member that answered but confirmed nothing more, as with a disk that hangs, 1 GiB of any entries was kept.
#[test]
fn what_a_member_that_answers_lacks_is_kept_within_bounds() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.put(1, "a");
    cluster.isolate(3);
    // The leader holds these bytes once, its log counts them for each entry: 480 MiB.
    let data = Bytes::from(vec![7; 8 << 20]);
    for _ in 0..60 {
        let node = cluster.node(1);
        node.propose(vec![data.clone()], node.term()).expect("there is a leader");
        cluster.settle();
        cluster.save(2);
        cluster.site(2).applied.clear();
    }
    cluster.save(1);
    let kept = cluster.node(1).log_tail().len();
    assert!((30..=32).contains(&kept), "{kept} entries");
}

/// The leader, 1, has begun to send its state to 3, which was away.
fn with_a_state_on_its_way() -> Cluster {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.isolate(3);
    cluster.tick(UNTIL_AWAY);
    cluster.put(1, "a");
    cluster.save(1);
    cluster.put(1, "b");
    cluster.cut.clear();
    cluster.slow_states = Some(Vec::new());
    cluster.tick(5);
    cluster
}

#[test]
fn what_follows_a_state_is_kept_until_it_has_arrived() {
    let mut cluster = with_a_state_on_its_way();
    cluster.put(1, "c");
    cluster.save(1);
    let states = cluster.slow_states.take().expect("they are slow");
    assert_eq!(states.len(), 1);
    cluster.waiting.extend(states);
    cluster.settle();
    cluster.tick(5);
    let third = cluster.site(3);
    assert_eq!((third.installed.len(), third.applied.as_slice()), (1, ["b".into(), "c".into()].as_slice()));
}

// Cause: a state counted as arrived when its member had begun to install it. A log that was cut meanwhile had it sent the next one.
#[test]
fn what_follows_a_state_is_kept_while_it_is_installed() {
    let mut cluster = with_a_state_on_its_way();
    cluster.isolate(3);
    cluster.node(1).snapshot_sent(MemberId(3), true);
    cluster.put(1, "c");
    cluster.save(1);
    assert_eq!(cluster.node(1).log_tail().len(), 2);
    cluster.tick(290);
    cluster.save(1);
    assert_eq!(cluster.node(1).log_tail().len(), 2);
    // It may be gone for good.
    cluster.tick(10);
    cluster.save(1);
    assert_eq!(cluster.node(1).log_tail().len(), 0);
}

#[test]
fn large_entries_that_follow_a_state_are_kept_until_it_has_arrived() {
    let mut cluster = with_a_state_on_its_way();
    assert_eq!(cluster.slow_states.as_ref().map(Vec::len), Some(1));
    // The leader holds these bytes once, its log counts them for each entry: 1.2 GiB.
    let data = Bytes::from(vec![7; 8 << 20]);
    for _ in 0..150 {
        let node = cluster.node(1);
        node.propose(vec![data.clone()], node.term()).expect("there is a leader");
        cluster.settle();
        cluster.save(2);
        cluster.site(2).applied.clear();
    }
    let (position, conf_state) = (cluster.site(1).position, cluster.node(1).conf_state());
    let saved = WalSnapshot { index: position.index, term: position.term, conf_state };
    let node = cluster.node(1);
    node.bound_log(&saved);
    assert_eq!(node.log_tail().len(), 151);
    // The member is asked where its log ends, and has confirmed none of them.
    node.snapshot_sent(MemberId(3), false);
    node.bound_log(&saved);
    let kept = node.log_tail().len();
    assert!((120..=128).contains(&kept), "{kept} entries");
}

#[test]
fn a_transfer_to_nobody_ends_and_writes_go_on() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.isolate(2);
    cluster.node(1).transfer_leader(MemberId(2));
    cluster.node(1).transfer_leader(MemberId(77));
    let node = cluster.node(1);
    assert!(node.propose(vec!["a".into()], node.term()).is_err(), "it is handing over");
    cluster.put(3, "meanwhile");
    assert_eq!(cluster.site(1).applied, [""; 0]);
    cluster.tick(11);
    cluster.put(1, "b");
    assert_eq!(cluster.site(3).node.committed(), cluster.node(1).committed());
    assert_eq!(cluster.site(1).applied, ["meanwhile", "b"]);
}

#[test]
fn a_request_enters_the_log_in_its_term_or_never() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    super::propose(cluster.node(2), &["late"]);
    let [sent] = cluster.node(2).poll().expect("no fault").expect("a message").send.try_into().expect("one");
    let late = |to| {
        let mut message = raft::eraftpb::Message::default();
        protobuf::Message::merge_from_bytes(&mut message, &sent.bytes).expect("a message");
        (message.from, message.to) = (2, to);
        PeerMessage::parse(MemberId(to), MemberId(2), &encoded(&message)).expect("honest")
    };
    for (from, to) in [(1, 3), (3, 1)] {
        cluster.node(from).transfer_leader(MemberId(to));
        cluster.settle();
    }
    assert!(cluster.node(1).is_ready_leader());
    for to in [1, 3] {
        let node = cluster.node(to);
        let last = node.last_index();
        assert_eq!(node.step(late(to)).expect("no fault"), Stepped::Taken);
        assert!(node.poll().expect("no fault").is_none(), "{to} does not pass it on");
        assert_eq!(node.last_index(), last, "{to} leads, or follows, in another term");
    }
    let node = cluster.node(2);
    let over = Term(node.term().0 - 1);
    assert!(node.propose(vec!["late".into()], over).is_err(), "and nobody sends it any more");
    cluster.put(2, "in time");
    assert_eq!(cluster.applied(), [["in time"], ["in time"], ["in time"]]);
}

#[test]
fn one_change_of_members_at_a_time() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    let change = |kind, member| ProposedChange { request: 9, kind, member: MemberId(member), context: Bytes::new() };
    cluster.change_members(1, &change(ChangeKind::Remove, 3)).expect("a leader takes it");
    assert!(cluster.change_members(1, &change(ChangeKind::Remove, 2)).is_err(), "one at a time");
    cluster.settle();
    assert_eq!(cluster.node(1).conf_state().voters, [1, 2]);
    cluster.change_members(1, &change(ChangeKind::AddLearner, 4)).expect("the first is applied");
    cluster.settle();
    cluster.change_members(2, &change(ChangeKind::Update, 1)).expect("a follower sends it on");
    cluster.settle();
    let state = cluster.node(2).conf_state();
    assert_eq!((state.voters, state.learners), (vec![1, 2], vec![4]));
}

fn removal(id: u64) -> ProposedChange {
    ProposedChange { request: 0, kind: ChangeKind::Remove, member: MemberId(id), context: Bytes::new() }
}

/// Two voters, of which 1 leads. The removal of one is in both logs, and that is all anybody knows.
fn removed_of_two(id: u64) -> Cluster {
    let mut cluster = Cluster::new(2);
    cluster.elect(1);
    cluster.stuck.insert(MemberId(2));
    cluster.change_members(1, &removal(id)).expect("a leader takes it");
    cluster.settle();
    cluster.stuck.clear();
    cluster
}

#[test]
fn that_a_change_of_members_is_committed_is_on_disk_before_anybody_hears_of_it() {
    let mut cluster = removed_of_two(2);
    cluster.stuck.insert(MemberId(1));
    cluster.tick(5);
    let removed = cluster.node(1).committed();
    assert!(cluster.site(1).position.index < removed && cluster.node(2).committed() < removed);
    cluster.stuck.clear();
    cluster.settle();
    assert!(cluster.node(1).is_sole_voter());
    assert_eq!(cluster.site(1).commit_on_disk, removed);
    assert_eq!(cluster.node(2).conf_state().voters, [1], "it has heard of it");
}

#[test]
fn a_leader_that_is_removed_goes_when_the_others_know() {
    let mut cluster = removed_of_two(1);
    let removed = cluster.node(1).last_index();
    cluster.cut.insert((MemberId(1), MemberId(2)));
    cluster.settle();
    // That the removal is committed does not get through. If 1 went now, 2 would wait for its vote for ever.
    assert!(cluster.node(1).committed() == removed && cluster.node(2).committed() < removed);
    cluster.tick(60);
    assert_eq!(cluster.node(1).conf_state().voters, [1, 2]);
    cluster.cut.clear();
    cluster.tick(60);
    assert!(cluster.node(2).is_sole_voter() && cluster.node(2).is_ready_leader());
    assert!(cluster.site(2).commit_on_disk >= removed);
}

#[test]
fn a_leader_that_is_removed_believes_the_other_voters() {
    let mut cluster = removed_of_two(1);
    assert!(cluster.node(1).told_removed(MemberId(2)), "as long as it does not know itself, somebody else does");
    let mut cluster = removed_of_two(1);
    cluster.cut.insert((MemberId(1), MemberId(2)));
    cluster.settle();
    assert!(!cluster.node(1).told_removed(MemberId(3)), "without a vote nobody can go on");
    assert!(cluster.node(1).told_removed(MemberId(2)));
    cluster.settle();
    assert_eq!(cluster.node(1).conf_state().voters, [2]);
}

#[test]
fn the_last_voter_goes_on_alone() {
    let mut cluster = Cluster::new(2);
    cluster.elect(1);
    cluster.change_members(1, &removal(1)).expect("a leader takes it");
    cluster.tick(1);
    cluster.isolate(1);
    assert!(cluster.node(2).is_sole_voter());
    // While its log is being written it must not campaign: the library wants all of it on disk.
    cluster.stuck.insert(MemberId(2));
    cluster.tick(60);
    cluster.stuck.clear();
    cluster.settle();
    cluster.tick(40);
    assert!(cluster.node(2).is_ready_leader());
}

mod reads {
    use super::*;

    fn confirmed(cluster: &mut Cluster, at: u64, number: u64) -> Option<LogIndex> {
        cluster.site(at).reads.get(&number).copied()
    }

    #[test]
    fn any_member_gets_an_index_from_the_leader() {
        let mut cluster = Cluster::new(3);
        cluster.elect(1);
        cluster.put(1, "a");
        for id in 1..=3 {
            let number = cluster.node(id).read_index();
            cluster.settle();
            let committed = cluster.node(1).committed();
            assert_eq!(confirmed(&mut cluster, id, number), Some(committed));
        }
    }

    #[test]
    fn a_leader_without_a_quorum_confirms_nothing() {
        let mut cluster = Cluster::new(3);
        cluster.elect(1);
        cluster.isolate(1);
        let number = cluster.node(1).read_index();
        cluster.tick(30);
        cluster.cut.clear();
        cluster.tick(30);
        assert_eq!(confirmed(&mut cluster, 1, number), None);
    }

    #[test]
    fn before_its_first_commit_a_leader_keeps_requests() {
        let mut cluster = Cluster::new(3);
        cluster.elect(1);
        cluster.put(1, "a");
        // Votes pass, entries do not.
        cluster.lose_appends = true;
        cluster.node(1).transfer_leader(MemberId(2));
        cluster.settle();
        assert!(cluster.node(2).is_leader() && !cluster.node(2).is_ready_leader());
        cluster.tick(1);
        let (own, other) = (cluster.node(2).read_index(), cluster.node(3).read_index());
        cluster.settle();
        assert_eq!((confirmed(&mut cluster, 2, own), confirmed(&mut cluster, 3, other)), (None, None));
        cluster.lose_appends = false;
        cluster.tick(3);
        let committed = cluster.node(2).committed();
        assert_eq!(confirmed(&mut cluster, 2, own), Some(committed));
        assert_eq!(confirmed(&mut cluster, 3, other), Some(committed));
    }

    /// Two members' answers to the first coming of a request must not confirm its second coming, nor what was asked
    /// before that: etcd issue 20418.
    #[test]
    fn a_request_that_comes_twice_counts_once() {
        let mut cluster = Cluster::new(3);
        cluster.elect(1);
        cluster.node(2).read_index();
        let step = cluster.node(2).poll().expect("no fault").expect("a request");
        let [request] = step.send.as_slice() else { panic!("one message, not {:?}", step.send) };
        let message = || PeerMessage::parse(MemberId(1), MemberId(2), &request.bytes).expect("honest");
        assert_eq!(cluster.node(1).step(message()).expect("no fault"), Stepped::Taken);
        assert_eq!(cluster.node(1).step(message()).expect("no fault"), Stepped::Refused("a read request seen before"));
    }

    #[test]
    fn a_batch_is_resolved_by_any_of_its_own_numbers_only() {
        let mut queue = crate::core::raft::reads::ReadQueue::default();
        queue.push('a');
        assert!(queue.wants_request(0, (1, 1)));
        queue.sent(1, 0, (1, 1));
        queue.push('b');
        assert!(!queue.wants_request(4, (1, 1)), "one at a time");
        assert!(queue.wants_request(4, (2, 1)), "another leader knows nothing of it");
        assert!(queue.wants_request(5, (1, 1)), "it may be lost");
        queue.sent(2, 5, (1, 1));
        assert!(queue.confirmed(7).is_empty());
        assert_eq!(queue.confirmed(1), ['a']);
        assert!(queue.confirmed(2).is_empty(), "b came after it was sent first");
        assert!(queue.wants_request(5, (1, 1)));
        queue.sent(3, 5, (1, 1));
        queue.retain(|_| false);
        assert!(queue.confirmed(3).is_empty());
    }
}
