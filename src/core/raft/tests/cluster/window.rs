//! What is on its way to one member and not confirmed by it: the leader holds all of it in memory.

use super::super::super::node::{IN_FLIGHT_BYTES_MAX, MESSAGE_BYTES_MAX};
use super::*;

const SLOW: MemberId = MemberId(3);
/// Heads of messages and entries.
const HEADS_MAX: usize = 64 * 1024;

impl Cluster {
    /// Member 1 leads, and what it sends to member 3 arrives when a test says so.
    fn with_slow_member() -> Self {
        let mut cluster = Self::new(3);
        cluster.elect(1);
        cluster.slow = Some((SLOW, VecDeque::new()));
        cluster
    }

    fn propose(&mut self, entries: usize, entry_bytes: usize) {
        let data = Bytes::from(vec![7; entry_bytes]);
        let node = self.node(1);
        for _ in 0..entries {
            node.propose(vec![data.clone()], node.term()).expect("there is room");
        }
    }

    fn queue(&mut self) -> &mut VecDeque<(MemberId, Outbound)> {
        &mut self.slow.as_mut().expect("a slow member").1
    }

    fn bytes_on_their_way(&mut self) -> usize {
        self.queue().iter().map(|(_, message)| message.bytes.len()).sum()
    }

    /// Delivers one message after the other until the slow member has applied all; gives the most bytes that waited.
    fn catch_up(&mut self) -> usize {
        let mut most = self.bytes_on_their_way();
        for _ in 0..10_000 {
            if self.site(3).node.committed() == self.node(1).last_index() {
                return most;
            }
            match self.queue().pop_front() {
                Some((from, message)) => self.take(from, &message),
                None => self.tick(1),
            }
            self.settle();
            most = most.max(self.bytes_on_their_way());
        }
        panic!("the member does not catch up: {:?}", self.node(1).progress());
    }
}

fn bound(largest_message: usize) -> usize {
    IN_FLIGHT_BYTES_MAX as usize + largest_message + HEADS_MAX
}

// The library bounds the messages to one member and not their bytes: a member that came back was sent 512 messages of
// 512 KiB at once, and the leader held 350 MB more.
#[test]
fn a_member_that_comes_back_gets_what_it_missed_in_portions() {
    let mut cluster = Cluster::with_slow_member();
    cluster.isolate(3);
    for _ in 0..256 {
        cluster.propose(1, 256 * 1024);
        cluster.settle();
    }
    cluster.cut.clear();
    let most = cluster.catch_up();
    assert!(most <= bound(MESSAGE_BYTES_MAX as usize), "{most} bytes at once");
    // One after the other would take a round trip each.
    assert!(most >= IN_FLIGHT_BYTES_MAX as usize, "only {most} bytes at once");
    assert_eq!(cluster.site(3).applied.len(), 256);
}

// All proposals of a turn went to the leader as one message. Of 50 clients with 1.4 MiB each it was longer than a frame:
// it was dropped, and all of them waited for their timeout.
#[test]
fn proposals_go_to_the_leader_in_messages_of_bounded_size() {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.tick(1);
    let sizes = [vec![1400 * 1024; 50], vec![1000; 1024], vec![1000, 600_000, 1000, 1000]].concat();
    let requests: Vec<Bytes> = sizes.iter().map(|&bytes| Bytes::from(vec![7; bytes])).collect();
    let node = cluster.node(2);
    node.propose(requests.clone(), node.term()).expect("there is a leader");
    let step = node.poll().expect("no fault").expect("something to send");
    let longest = step.send.iter().map(|message| message.bytes.len()).max().expect("messages");
    // `--max-request-bytes` leaves this much of a frame, and more.
    assert!(longest <= 1400 * 1024 + 256, "{longest} bytes in one message");
    let small = sizes.iter().filter(|&&bytes| bytes == 1000).count() * 1100;
    assert!(step.send.len() <= 51 + 2 + small / MESSAGE_BYTES_MAX as usize, "{} messages", step.send.len());
    cluster.waiting.extend(step.send.into_iter().map(|message| (MemberId(2), message)));
    cluster.settle();
    assert!(cluster.site(1).applied == requests, "all of them, in their order");
}

// What is proposed in one go is sent from what is not on disk yet, which has no bound of its own.
#[test]
fn what_is_proposed_while_a_member_confirms_nothing_waits_at_the_leader() {
    for (entries, entry_bytes) in [(64, 1 << 20), (10, 6 << 20), (20_000, 1000)] {
        let mut cluster = Cluster::with_slow_member();
        cluster.propose(entries, entry_bytes);
        cluster.settle();
        let largest = entry_bytes.max(MESSAGE_BYTES_MAX as usize);
        let limit = bound(largest) + 20 * entries;
        let now = cluster.bytes_on_their_way();
        assert!(now <= limit, "{now} bytes for {entries} of {entry_bytes}");
        // It answers heartbeats, and the library sends one more message for each answer.
        cluster.tick(100);
        let now = cluster.bytes_on_their_way();
        assert!(now <= limit, "{now} bytes for {entries} of {entry_bytes} after 100 heartbeats");
        let most = cluster.catch_up();
        assert!(most <= limit, "{most} bytes for {entries} of {entry_bytes}");
    }
}

// The follower's inbox drops what does not fit and tells nobody. With nothing more to be sent nothing would show it.
#[test]
fn a_member_that_dropped_all_that_may_be_on_its_way_is_sent_it_again() {
    let mut cluster = Cluster::with_slow_member();
    cluster.propose(64, 1 << 20);
    cluster.settle();
    assert!(cluster.bytes_on_their_way() >= IN_FLIGHT_BYTES_MAX as usize);
    cluster.queue().clear();
    let most = cluster.catch_up();
    assert!(most <= bound(1 << 20), "{most} bytes at once");
}

// How much is on its way is told by the log in memory, which can be cut meanwhile.
#[test]
fn a_log_that_was_cut_does_not_lift_the_bound() {
    let mut cluster = Cluster::with_slow_member();
    for _ in 0..64 {
        cluster.propose(1, 1 << 20);
        cluster.settle();
        cluster.save(1);
    }
    // Each answer to a heartbeat is a reason to ask for what is no longer in the log.
    cluster.tick(3);
    let now = cluster.bytes_on_their_way();
    assert!(now <= bound(1 << 20), "{now} bytes at once");
    let most = cluster.catch_up();
    assert!(most <= bound(1 << 20), "{most} bytes at once");
}
