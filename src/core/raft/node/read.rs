//! Linearizable reads: requests sent, told apart, and kept until this leader may answer them.

use bytes::Bytes;
use raft::eraftpb::{Entry, Message, MessageType};

use super::super::check::CONTEXT_BYTES;
use super::RaftNode;
use crate::types::MemberId;

/// Read requests kept until this leader may answer them.
const POSTPONED_MAX: usize = 4096;
/// Runs of one member whose read requests are told apart.
const RUNS_MAX: usize = 16;

impl RaftNode {
    /// Asks for the index a linearizable read must wait for; it comes back in
    /// [`Step::reads`](crate::core::raft::Step::reads) under the number returned here, or never: then ask again.
    ///
    /// Every call takes a number never used before: the library can confirm a stale read for a re-used one.
    pub fn read_index(&mut self) -> u64 {
        let number = self.next_read;
        self.next_read += 1;
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgReadIndex);
        message.from = self.member.0;
        message.set_entries(vec![Entry { data: self.context(number), ..Entry::default() }].into());
        if self.is_leader() && !self.is_ready_leader() {
            self.postpone(message);
        } else {
            // Without a leader the request is dropped, and asked again later.
            let _ = self.raw.raft.step(message);
        }
        number
    }

    fn context(&self, number: u64) -> Bytes {
        let mut context = Vec::with_capacity(CONTEXT_BYTES);
        for part in [self.member.0, self.run, number] {
            context.extend_from_slice(&part.to_be_bytes());
        }
        context.into()
    }

    pub(super) fn postpone(&mut self, message: Message) {
        if self.postponed.len() < POSTPONED_MAX {
            self.postponed.push(message);
        }
    }

    /// Whether a read request is later than all seen of its sender's run. A request that comes twice could be
    /// confirmed by answers to its first coming, and take later requests along.
    pub(super) fn is_new_read(&mut self, message: &Message) -> bool {
        let Some((member, run, number)) = message.entries.first().and_then(|entry| read_context(&entry.data)) else {
            return false;
        };
        if member.0 != message.from {
            return false;
        }
        let runs = self.reads_seen.entry(member).or_default();
        if let Some((_, last)) = runs.iter_mut().find(|(seen, _)| *seen == run) {
            return std::mem::replace(last, number.max(*last)) < number;
        }
        if runs.len() == RUNS_MAX {
            runs.pop_front();
        }
        runs.push_back((run, number));
        true
    }

    /// Reads that came before this leader's first commit are answered after it.
    pub(super) fn step_postponed(&mut self) {
        if self.postponed.is_empty() {
            return;
        }
        if !self.is_leader() {
            // Their senders ask again.
            self.postponed.clear();
        } else if self.is_ready_leader() {
            for message in std::mem::take(&mut self.postponed) {
                let _ = self.raw.raft.step(message);
            }
        }
    }
}

/// Member, run and number of a read request.
pub(super) fn read_context(context: &[u8]) -> Option<(MemberId, u64, u64)> {
    let context: &[u8; CONTEXT_BYTES] = context.try_into().ok()?;
    let (parts, _) = context.as_chunks::<8>();
    Some((MemberId(u64::from_be_bytes(parts[0])), u64::from_be_bytes(parts[1]), u64::from_be_bytes(parts[2])))
}
