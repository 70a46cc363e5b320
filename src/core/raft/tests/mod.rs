mod cluster;
mod hostile;

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;

use super::*;
use crate::core::wal::{HardState, WalEntry, WalEntryKind, WalSnapshot};
use crate::pb::walpb;
use crate::types::{LogIndex, LogPosition, MemberId, Term};

const MEMBER: MemberId = MemberId(7);

/// A new cluster of one: its log holds the entry that adds the member.
fn node_with(log: Vec<WalEntry>, hard_state: HardState, applied: LogPosition) -> RaftNode {
    let conf_state = walpb::ConfState { voters: vec![MEMBER.0], ..Default::default() };
    let config = NodeConfig {
        member: MEMBER,
        election_ticks: 10,
        heartbeat_ticks: 1,
        pre_vote: true,
        applied: applied.index,
        seed: 1,
    };
    RaftNode::new(&config, LogTail::new(applied, log, &hard_state, &conf_state)).expect("a valid log")
}

fn fresh() -> RaftNode {
    let hard_state = HardState { term: Term(1), vote: None, commit: LogIndex(1) };
    node_with(bootstrap_entries(&[(MEMBER, b"{}".to_vec())]), hard_state, LogPosition::default())
}

/// Does what the shell does, with a disk that is done at once. Gives what was committed and what was written.
fn settle(node: &mut RaftNode) -> (Vec<Committed>, Vec<WalEntry>) {
    let (mut committed, mut written) = (Vec::new(), Vec::new());
    while let Some(step) = node.poll().expect("no fault") {
        if let Some(group) = step.persist {
            written.extend(group.entries);
            node.persisted(group.number);
        }
        for entry in &step.committed {
            if let CommittedKind::Members(change) = &entry.kind {
                // As apply does, which knows nobody of id 0.
                let decision = MembersDecision { index: entry.index, accepted: change.member != MemberId(0) };
                node.members_decided(decision).expect("in order");
            }
        }
        if let Some(last) = step.committed.last() {
            node.applied(last.index);
        }
        committed.extend(step.committed);
    }
    (committed, written)
}

fn leader() -> (RaftNode, Vec<WalEntry>) {
    let mut node = fresh();
    settle(&mut node);
    node.campaign().expect("the only voter may");
    let (_, written) = settle(&mut node);
    assert!(node.is_ready_leader() && node.is_sole_voter());
    (node, written)
}

/// A message as it travels.
fn encoded(message: &::raft::eraftpb::Message) -> Bytes {
    protobuf::Message::write_to_bytes(message).expect("in memory").into()
}

/// Proposes for the present term.
fn propose(node: &mut RaftNode, requests: &[&'static str]) {
    let requests = requests.iter().map(|request| Bytes::from(*request)).collect();
    node.propose(requests, node.term()).expect("there is a leader");
}

/// The log of a leader that committed these requests, and its hard state. The commit index is never synced for itself,
/// so the last one is lost.
fn log_of(requests: [&'static str; 2]) -> (Vec<WalEntry>, HardState) {
    let (mut node, mut log) = leader();
    propose(&mut node, &requests);
    log.extend(settle(&mut node).1);
    log.splice(0..0, bootstrap_entries(&[(MEMBER, b"{}".to_vec())]));
    (log, HardState { term: node.term(), vote: Some(MEMBER), commit: LogIndex(1) })
}

fn requests(committed: &[Committed]) -> Vec<&[u8]> {
    let texts = committed.iter().filter_map(|entry| match &entry.kind {
        CommittedKind::Request(data) => Some(data.as_ref()),
        _ => None,
    });
    texts.collect()
}

#[test]
fn a_new_log_adds_its_member_first() {
    let mut node = fresh();
    let (committed, _) = settle(&mut node);
    let [first] = committed.as_slice() else { panic!("one entry, not {committed:?}") };
    let CommittedKind::Members(change) = &first.kind else { panic!("a membership change") };
    assert_eq!((change.member, change.kind), (MEMBER, ChangeKind::AddVoter));
    assert_eq!(node.conf_state().voters, [MEMBER.0]);
}

#[test]
fn nothing_is_committed_before_it_is_durable() {
    let (mut node, _) = leader();
    propose(&mut node, &["a"]);
    let step = node.poll().expect("no fault").expect("something to write");
    assert_eq!(step.committed, []);
    let group = step.persist.expect("an entry");

    // The disk is busy: the next group fills, nothing is given out.
    propose(&mut node, &["b"]);
    propose(&mut node, &["c"]);
    assert!(node.poll().expect("no fault").is_none());

    node.persisted(group.number);
    let step = node.poll().expect("no fault").expect("the next step");
    assert_eq!(requests(&step.committed), [b"a"]);
    let group = step.persist.expect("the next group");
    assert_eq!(group.entries.len(), 2, "what came in meanwhile shares one sync");
    node.persisted(group.number);
    let (committed, _) = settle(&mut node);
    assert_eq!(requests(&committed), [b"b", b"c"]);
}

#[test]
fn a_restart_commits_what_the_log_holds_once_it_leads() {
    let (mut log, hard_state) = log_of(["a", "b"]);
    let mut again = node_with(log.clone(), hard_state, LogPosition::default());
    settle(&mut again);
    again.campaign().expect("the only voter may");
    let (committed, _) = settle(&mut again);
    assert_eq!(requests(&committed), [b"a", b"b"]);
    assert!(again.term() > hard_state.term);

    // State on disk that covers the first request: it does not come again.
    let position = LogPosition { index: log[2].index, term: log[2].term };
    let mut later = node_with(log.split_off(3), hard_state, position);
    settle(&mut later);
    later.campaign().expect("the only voter may");
    assert_eq!(requests(&settle(&mut later).0), [b"b"]);
}

#[test]
fn after_a_restart_no_read_is_local_before_the_log_is_applied() {
    // Found by etcd's robustness scenario Issue14685: the only member of a cluster led again, its first entry was
    // committed, and it answered reads while apply was still at work on the log: without the last acknowledged writes.
    let (log, hard_state) = log_of(["a", "b"]);
    let mut again = node_with(log, hard_state, LogPosition::default());
    settle(&mut again);
    again.campaign().expect("the only voter may");
    let mut committed = Vec::new();
    while let Some(step) = again.poll().expect("no fault") {
        if let Some(group) = step.persist {
            again.persisted(group.number);
        }
        committed.extend(step.committed);
    }
    assert!(again.is_ready_leader() && again.is_alone());
    assert_eq!(requests(&committed), [b"a", b"b"]);
    for entry in &committed {
        assert!(!again.reads_are_local(), "entry {} is not applied yet", entry.index);
        again.applied(entry.index);
    }
    assert!(again.reads_are_local());
}

#[test]
fn reads_are_confirmed_under_a_number_of_their_own() {
    let (mut node, _) = leader();
    let (first, second) = (node.read_index(), node.read_index());
    assert_ne!(first, second);
    let mut confirmed = Vec::new();
    while let Some(step) = node.poll().expect("no fault") {
        confirmed.extend(step.reads);
    }
    assert_eq!(confirmed, [(first, node.committed()), (second, node.committed())]);
}

/// A disk that is done at once.
struct FastDisk;

impl GroupWriter for FastDisk {
    fn is_idle(&self) -> bool {
        true
    }

    fn write_here(&mut self, _: PersistGroup) -> bool {
        true
    }

    fn queue(&mut self, _: WalJob) {}
}

/// Proposals that were dropped.
#[derive(Clone, Default)]
struct Dropped(Rc<RefCell<Vec<(u64, Term)>>>);

impl CommitSink for Dropped {
    fn committed(&mut self, _: Vec<Committed>) {}

    fn install(&mut self, _: LogPosition) {}

    fn dropped(&mut self, request: u64, term: Term) {
        self.0.borrow_mut().push((request, term));
    }
}

struct NoPeers;

impl PeerSink for NoPeers {
    fn send(&mut self, _: Vec<Outbound>) {}
}

// Without the term, the drop of a proposal for an earlier term counted for the one that followed it: the request was
// proposed a third time while the second was in the log.
#[test]
fn a_dropped_proposal_is_named_with_its_term() {
    let (node, _) = leader();
    let (mut inbox, dropped) = (RaftInbox::new(), Dropped::default());
    let (mut driver, handle) = RaftDriver::new(node, FastDisk, dropped.clone(), NoPeers, &inbox, 10);
    let now = driver.node().term();
    let before = Term(now.0 - 1);
    for (request, term) in [(1, before), (1, now), (2, before)] {
        handle.propose(Proposal { request, term, bytes: Bytes::from_static(b"a") }).expect("there is room");
    }
    driver.take(inbox.messages()).expect("no fault");
    assert_eq!(*dropped.0.borrow(), [(1, before), (2, before)]);
}

/// Peers whose queues have room for so many bytes.
struct SmallQueues(usize);

impl PeerSink for SmallQueues {
    fn send(&mut self, _: Vec<Outbound>) {}

    fn append_room(&self, _: MemberId) -> usize {
        self.0
    }
}

// Cause: what the queue to the leader had no room for was dropped there, and its clients waited for their timeout.
#[test]
fn what_does_not_fit_into_the_queue_to_the_leader_is_told() {
    let mut node = hostile::follower();
    let heartbeat = hostile::message(::raft::eraftpb::MessageType::MsgHeartbeat, |_| {});
    node.step(hostile::parse(&heartbeat).expect("honest")).expect("no fault");
    assert!(node.leader().is_some() && !node.is_leader());
    let (mut inbox, dropped) = (RaftInbox::new(), Dropped::default());
    let (mut driver, handle) = RaftDriver::new(node, FastDisk, dropped.clone(), SmallQueues(2500), &inbox, 10);
    let term = driver.node().term();
    for request in 1..=4 {
        handle.propose(Proposal { request, term, bytes: vec![7; 1000].into() }).expect("there is room");
    }
    driver.take(inbox.messages()).expect("no fault");
    assert_eq!(*dropped.0.borrow(), [(3, term), (4, term)]);
}

#[test]
fn compaction_forgets_only_what_it_is_told() {
    let (mut node, _) = leader();
    propose(&mut node, &["a", "b", "c"]);
    settle(&mut node);
    let last = node.committed();
    let conf_state = node.conf_state();
    let saved = WalSnapshot { index: last, term: node.term(), conf_state };
    node.state_saved(&saved, LogIndex(last.0 - 1));
    propose(&mut node, &["d"]);
    assert_eq!(requests(&settle(&mut node).0), [b"d"]);
}

// The log in memory had a bound in entries only: 10,000 and those for members that are behind, whatever their size.
#[test]
fn the_log_in_memory_is_bounded_in_bytes() {
    let (mut node, _) = leader();
    let data = Bytes::from(vec![7; 1 << 20]);
    for _ in 0..2000 {
        node.propose(vec![data.clone()], node.term()).expect("there is a leader");
        settle(&mut node);
    }
    let last = node.last_index();
    let saved = |index| WalSnapshot { index, term: node.term(), conf_state: node.conf_state() };
    let (half, all) = (saved(LogIndex(last.0 - 1000)), saved(last));
    node.bound_log(&half);
    assert_eq!(node.log_tail().len(), 1000, "what is not on disk is kept");
    node.bound_log(&all);
    let kept = node.log_tail().len();
    assert!((250..=256).contains(&kept), "{kept} entries");
    node.bound_log(&all);
    assert_eq!(node.log_tail().len(), kept);
}

#[test]
fn a_log_that_a_member_has_not_confirmed_may_take_more() {
    let data = Bytes::from(vec![7; 1 << 20]);
    let entry =
        |index| WalEntry { kind: WalEntryKind::Normal, term: Term(1), index: LogIndex(index), data: data.clone() };
    let log = (1..=2000).map(entry).collect();
    let tail = LogTail::new(LogPosition::default(), log, &HardState::default(), &walpb::ConfState::default());
    let kept = |confirmed| 2000 - tail.over_bytes(LogIndex(confirmed)).0;
    assert_eq!(kept(1200), 800, "its entries are kept");
    assert!((1000..=1024).contains(&kept(0)), "{}", kept(0));
    assert!((250..=256).contains(&kept(1900)), "{}", kept(1900));
    assert!((250..=256).contains(&kept(u64::MAX)), "{}", kept(u64::MAX));
}
