//! Messages that no honest member sends. None may panic, change anything, or reach the library.

use ::raft::eraftpb::{ConfState, Entry, Message, MessageType, Snapshot};

use super::*;

const LEADER: MemberId = MemberId(1);
const OTHER: MemberId = MemberId(2);

/// A follower of three, in term 3, with a log of five entries of which four are committed.
pub(super) fn follower() -> RaftNode {
    let conf_state = walpb::ConfState { voters: vec![1, 2, MEMBER.0], ..Default::default() };
    let entry = |index| WalEntry {
        kind: crate::core::wal::WalEntryKind::Normal,
        term: Term(3),
        index: LogIndex(index),
        data: "x".into(),
    };
    let log = (1..=5).map(entry).collect();
    let hard_state = HardState { term: Term(3), vote: Some(LEADER), commit: LogIndex(4) };
    let config = NodeConfig {
        member: MEMBER,
        election_ticks: 10,
        heartbeat_ticks: 1,
        pre_vote: true,
        applied: LogIndex(0),
        seed: 3,
    };
    let tail = LogTail::new(LogPosition::default(), log, &hard_state, &conf_state);
    let mut node = RaftNode::new(&config, tail).expect("a valid log");
    settle(&mut node);
    node
}

pub(super) fn message(kind: MessageType, change: impl FnOnce(&mut Message)) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    (message.from, message.to, message.term) = (LEADER.0, MEMBER.0, 3);
    change(&mut message);
    message
}

pub(super) fn parse(message: &Message) -> Result<PeerMessage, RefusedMessage> {
    let bytes = encoded(message);
    match message.get_msg_type() {
        MessageType::MsgSnapshot => PeerMessage::snapshot(MEMBER, LEADER, &bytes),
        _ => PeerMessage::parse(MEMBER, LEADER, &bytes),
    }
}

fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, data: "y".into(), ..Entry::default() }
}

fn snapshot(index: u64, term: u64, voters: &[u64], learners: &[u64]) -> Message {
    message(MessageType::MsgSnapshot, |message| {
        let mut state = ConfState::default();
        state.set_voters(voters.to_vec());
        state.set_learners(learners.to_vec());
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (index, term);
        metadata.set_conf_state(state);
        message.set_snapshot(snapshot);
    })
}

#[test]
fn impossible_messages_are_refused_by_their_looks() {
    use MessageType::*;
    let cases = [
        ("another sender", message(MsgHeartbeat, |m| m.from = 9)),
        ("another receiver", message(MsgHeartbeat, |m| m.to = 9)),
        ("no term", message(MsgHeartbeat, |m| m.term = 0)),
        ("the last term there is", message(MsgRequestVote, |m| m.term = u64::MAX)),
        ("append behind the end without a term", message(MsgAppend, |m| m.index = 9)),
        (
            "the same with entries",
            message(MsgAppend, |m| {
                m.index = 9;
                m.set_entries(vec![entry(10, 3)].into());
            }),
        ),
        ("entries with a gap", message(MsgAppend, |m| m.set_entries(vec![entry(1, 3), entry(3, 3)].into()))),
        ("entries of falling terms", message(MsgAppend, |m| m.set_entries(vec![entry(1, 3), entry(2, 2)].into()))),
        ("entries of the future", message(MsgAppend, |m| m.set_entries(vec![entry(1, 4)].into()))),
        ("a proposal of nothing", message(MsgPropose, |_| {})),
        ("a proposal of an empty entry", message(MsgPropose, |m| m.set_entries(vec![Entry::default()].into()))),
        (
            "a proposal for no term",
            message(MsgPropose, |m| {
                m.term = 0;
                m.set_entries(vec![Entry { data: "z".into(), ..Entry::default() }].into());
            }),
        ),
        ("a read without context", message(MsgReadIndex, |m| m.term = 0)),
        ("a local message", message(MsgHup, |_| {})),
        ("a local report", message(MsgUnreachable, |_| {})),
        ("a transfer asked for by nobody", message(MsgTransferLeader, |_| {})),
        ("a snapshot request", message(MsgAppendResponse, |m| m.request_snapshot = 1)),
        ("a voter that learns", snapshot(9, 3, &[1, 2, MEMBER.0], &[2])),
        ("a snapshot of nobody", snapshot(9, 3, &[], &[])),
        ("a snapshot of nothing", snapshot(0, 0, &[1], &[])),
        ("a snapshot of the future", snapshot(9, 4, &[1], &[])),
    ];
    for (name, message) in cases {
        assert!(parse(&message).is_err(), "{name}");
    }
    assert!(PeerMessage::parse(MEMBER, LEADER, &encoded(&snapshot(9, 3, &[1, MEMBER.0], &[]))).is_err());
    assert!(PeerMessage::snapshot(MEMBER, LEADER, &encoded(&message(MsgHeartbeat, |_| {}))).is_err());
    assert!(PeerMessage::parse(MEMBER, LEADER, &Bytes::from_static(b"\xff\xff\xff")).is_err());
}

#[test]
fn nested_groups_do_not_reach_the_parser() {
    // Field 20, a group in a group in a group …; and the same inside an entry.
    let groups = [0xa3, 0x01].repeat(200_000);
    let mut inside = vec![0x3a];
    prost::encoding::encode_varint(groups.len() as u64, &mut inside);
    inside.extend_from_slice(&groups);
    for bytes in [groups, inside] {
        assert!(PeerMessage::parse(MEMBER, LEADER, &bytes.into()).is_err());
    }
}

#[test]
fn what_the_log_forbids_changes_nothing() {
    let heartbeat = |term, commit, from: MemberId| {
        let mut forged = message(MessageType::MsgHeartbeat, |message| message.commit = commit);
        (forged.term, forged.from) = (term, from.0);
        PeerMessage::parse(MEMBER, from, &encoded(&forged)).expect("looks honest")
    };
    let mut node = follower();
    let before = (node.term(), node.committed(), node.leader());
    assert!(matches!(node.step(heartbeat(3, 99, OTHER)), Ok(Stepped::Refused(_))), "from one who does not lead");
    assert!(matches!(node.step(heartbeat(4, 99, OTHER)), Ok(Stepped::Refused(_))), "from a leader just elected");
    assert_eq!((node.term(), node.committed(), node.leader()), before);

    // A member that starts without what it had confirmed knows no leader. It refused every heartbeat for ever, and the leader
    // sends nothing else before it has an answer.
    let mut again = follower();
    assert!(matches!(again.step(heartbeat(4, 99, OTHER)), Ok(Stepped::Refused(_))));
    assert!(matches!(again.step(heartbeat(4, 99, OTHER)), Err(RaftError::LostLog { .. })), "and once more");

    // Entries that were confirmed in this term and are gone: going on would be lying to the cluster.
    assert_eq!(node.step(heartbeat(3, 4, LEADER)).expect("no fault"), Stepped::Taken);
    assert!(matches!(node.step(heartbeat(3, 6, LEADER)), Err(RaftError::LostLog { .. })));
}

/// A change of the member with this id, as an entry of the log.
fn change_of(member: MemberId, index: u64) -> Entry {
    let change = ProposedChange { request: 1, kind: ChangeKind::Remove, member, context: Bytes::new() };
    Entry { index, term: 3, ..change.to_entry() }
}

// Cause: `member remove 0` was proposed, and no member could read the entry: the only one stopped at each start, and
// followers refused the append for ever.
#[test]
fn a_change_of_nobody_in_the_log_is_read_and_passed_over() {
    let mut node = follower();
    let before = node.conf_state();
    let append = message(MessageType::MsgAppend, |message| {
        (message.index, message.log_term, message.commit) = (5, 3, 7);
        message.set_entries(vec![change_of(MemberId(0), 6), entry(7, 3)].into());
    });
    assert_eq!(node.step(parse(&append).expect("a follower takes it")).expect("no fault"), Stepped::Taken);
    let (committed, written) = settle(&mut node);
    assert_eq!((node.committed(), node.conf_state()), (LogIndex(7), before));
    assert!(committed.iter().any(|entry| matches!(&entry.kind,
        CommittedKind::Members(change) if change.member == MemberId(0))));

    // The same log at a start, with one member.
    let mut log = log_of(["a", "b"]).0;
    let last = log.last().expect("entries").clone();
    let next = LogIndex(last.index.0 + 1);
    log.push(WalEntry { index: next, term: last.term, ..written[0].clone() });
    let hard_state = HardState { term: last.term, vote: Some(MEMBER), commit: next };
    let mut node = node_with(log, hard_state, LogPosition::default());
    settle(&mut node);
    node.campaign().expect("the only voter may");
    propose(&mut node, &["after"]);
    settle(&mut node);
    propose(&mut node, &["after"]);
    assert_eq!(requests(&settle(&mut node).0), [b"after"]);
}

#[test]
fn nobody_is_changed_by_a_proposal() {
    let proposal = |member| {
        let entry = Entry { index: 0, term: 0, ..change_of(member, 0) };
        parse(&message(MessageType::MsgPropose, |message| message.set_entries(vec![entry].into())))
    };
    assert!(proposal(OTHER).is_ok());
    assert!(proposal(MemberId(0)).is_err());
}

#[test]
fn a_leader_passes_over_what_it_cannot_have_caused() {
    let (mut node, _) = leader();
    let answer = message(MessageType::MsgAppendResponse, |message| {
        message.term = 2;
        message.index = 1 << 40;
    });
    assert!(matches!(node.step(parse(&answer).expect("looks honest")), Ok(Stepped::Refused(_))));
    let proposal = message(MessageType::MsgPropose, |message| {
        message.term = 2;
        message.set_entries(vec![Entry { data: "z".into(), ..Entry::default() }].into());
    });
    let last = node.last_index();
    assert!(matches!(node.step(parse(&proposal).expect("looks honest")), Ok(Stepped::Refused(_))), "of no member");
    assert_eq!(node.last_index(), last);
}

#[test]
fn nobody_campaigns_before_its_new_state_is_in_place() {
    let mut node = follower();
    let state = PeerMessage::snapshot(MEMBER, LEADER, &encoded(&snapshot(9, 3, &[1, MEMBER.0], &[]))).expect("honest");
    assert_eq!(node.step(state).expect("no fault"), Stepped::Taken);
    settle(&mut node);
    let transfer = || PeerMessage::parse(MEMBER, LEADER, &encoded(&message(MessageType::MsgTimeoutNow, |_| {})));
    assert_eq!(node.step(transfer().expect("honest")).expect("no fault"), Stepped::Taken);
    (0..40).for_each(|_| node.tick());
    node.campaign().expect("nothing");
    assert_eq!((node.term(), node.leader()), (Term(3), Some(LEADER)));
    node.applied(LogIndex(9));
    assert_eq!(node.step(transfer().expect("honest")).expect("no fault"), Stepped::Taken);
    assert_eq!(node.term(), Term(4), "now it does");
}

mod noise {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn any_message()(
            kind in 0i32..20, term in 0u64..6, index in 0u64..9, log_term in 0u64..6, commit in 0u64..9,
            hint in 0u64..9, reject: bool, from in 1u64..4,
            entries in prop::collection::vec((0u64..9, 0u64..6), 0..4),
            meta in (0u64..9, 0u64..6), voters in prop::collection::vec(0u64..9, 0..4),
        ) -> Message {
            let kind = <MessageType as protobuf::ProtobufEnum>::from_i32(kind).unwrap_or(MessageType::MsgAppend);
            let mut message = snapshot(meta.0, meta.1, &voters, &[]);
            if kind != MessageType::MsgSnapshot {
                message = Message::default();
            }
            message.set_msg_type(kind);
            (message.to, message.from, message.term) = (MEMBER.0, from, term);
            (message.index, message.log_term, message.commit) = (index, log_term, commit);
            (message.reject, message.reject_hint) = (reject, hint);
            message.set_entries(entries.into_iter().map(|(index, term)| entry(index, term)).collect::<Vec<_>>().into());
            message
        }
    }

    proptest! {
        /// Whatever gets past the checks, the library stands it: an error or nothing, but no panic.
        #[test]
        fn no_message_panics(messages in prop::collection::vec(any_message(), 1..60)) {
            let mut node = follower();
            for message in messages {
                let from = MemberId(message.from);
                let bytes = encoded(&message);
                let parsed = match message.get_msg_type() {
                    MessageType::MsgSnapshot => PeerMessage::snapshot(MEMBER, from, &bytes),
                    _ => PeerMessage::parse(MEMBER, from, &bytes),
                };
                let Ok(parsed) = parsed else { continue };
                match node.step(parsed) {
                    Ok(_) => {}
                    Err(RaftError::LostLog { .. }) => return Ok(()),
                    Err(error) => panic!("{error}"),
                }
                node.tick();
                settle(&mut node);
            }
        }
    }
}
