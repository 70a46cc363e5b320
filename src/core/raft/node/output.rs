//! What is to be done: messages to send, groups to persist, entries to apply, and what has to wait for what.

use protobuf::Message as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

use super::super::log::{conf_state_from_raft, from_raft, hard_state_from_raft};
use super::super::members::{ChangeKind, ProposedChange};
use super::super::peer::{Lane, Outbound};
use super::super::step::{Committed, CommittedKind, PersistGroup, RaftError, Step};
use super::RaftNode;
use super::read::read_context;
use crate::core::wal::{HardState, WalEntry, WalSnapshot};
use crate::types::{LogIndex, LogPosition, MemberId, Term};

/// Groups given to the disk at once. A member whose disk hangs stops taking part after so many, and another leads.
const GROUPS_MAX: usize = 4;

impl RaftNode {
    /// Whether the state at `position` is about to be installed.
    pub fn is_installing(&self, position: LogPosition) -> bool {
        let announced = self.raw.raft.raft_log.unstable_snapshot().as_ref().map(|snapshot| {
            let metadata = snapshot.get_metadata();
            LogPosition { index: LogIndex(metadata.index), term: Term(metadata.term) }
        });
        announced == Some(position) || self.prepared_snapshots.iter().any(|(_, queued)| *queued == position)
    }

    /// A group, and all before it, are durable.
    pub fn persisted(&mut self, number: u64) {
        while self.persisting.front().is_some_and(|first| *first <= number) {
            self.persisting.pop_front();
        }
        self.noting_change = self.noting_change.filter(|noting| *noting > number);
        let upto = if self.persisting.is_empty() { self.newest } else { number };
        self.bound_sending();
        self.raw.on_persist_ready(upto);
        while let Some((_, messages)) = self.held.pop_front_if(|(wait, _)| *wait <= number) {
            self.released.extend(messages);
        }
    }

    /// What to do next; none when there is nothing, or when enough waits for the disk: the next group fills
    /// meanwhile.
    ///
    /// # Errors
    /// When a committed membership change cannot be read.
    pub fn poll(&mut self) -> Result<Option<Step>, RaftError> {
        let mut step = Step { send: std::mem::take(&mut self.released), ..Step::default() };
        if let Some((number, position)) = self.prepared_snapshots.front()
            && self.persisting.front().is_none_or(|first| first > number)
        {
            step.install = Some(*position);
            self.prepared_snapshots.pop_front();
            return Ok(Some(step));
        }
        self.step_postponed();
        self.take_proposals_after_transfer();
        self.fill_windows();
        let groups_max = if self.is_sole_voter() { 1 } else { GROUPS_MAX };
        let ready = self.noting_change.is_none() && self.persisting.len() < groups_max && self.raw.has_ready();
        if ready {
            self.take_ready(&mut step)?;
        }
        self.hand_out(&mut step);
        Ok((ready || !step.send.is_empty() || !step.committed.is_empty()).then_some(step))
    }

    /// Hands committed entries to apply, up to the first one that must wait.
    fn hand_out(&mut self, step: &mut Step) {
        while let Some(entry) = self.withheld.front() {
            if self.noting_change.is_some() || (self.removes_this(entry) && !self.may_leave(entry.index)) {
                return;
            }
            step.committed.extend(self.withheld.pop_front());
        }
    }

    fn removes_this(&self, entry: &Committed) -> bool {
        matches!(&entry.kind, CommittedKind::Members(change)
            if change.kind == ChangeKind::Remove && change.member == self.member)
    }

    /// Records that the member `by` has applied the removal of this one. Returns whether this one may end at once: not while
    /// this member knows that the removal is committed and the voters that are left may not know.
    pub fn told_removed(&mut self, by: MemberId) -> bool {
        self.told_removed.insert(by);
        let removal = self.withheld.iter().find(|entry| self.removes_this(entry));
        removal.is_none_or(|entry| self.may_leave(entry.index))
    }

    /// Whether the others can do without this member, whose removal is committed at `index`.
    ///
    /// They count it as a voter until they know that its removal is committed. If it alone knows and goes, one that is
    /// left of two waits for ever. So it stays until as many other voters have said that they know as had to confirm the
    /// entry, or a leader has told it. What a member answers about this is on its disk by then.
    fn may_leave(&self, index: LogIndex) -> bool {
        let tracker = self.raw.raft.prs();
        let voters = tracker.conf().voters();
        if self.told_committed >= index.0 || !voters.contains(self.member.0) {
            return true;
        }
        let others = tracker.iter().filter(|(id, _)| **id != self.member.0 && voters.contains(**id));
        let confirmed = |committed| self.is_leader() && committed >= index.0;
        let know = others.filter(|(id, progress)| {
            confirmed(progress.committed_index) || self.told_removed.contains(&MemberId(**id))
        });
        know.count() >= voters.ids().len() / 2
    }

    fn take_ready(&mut self, step: &mut Step) -> Result<(), RaftError> {
        let mut ready = self.raw.ready();
        for state in ready.take_read_states() {
            if let Some((member, run, number)) = read_context(&state.request_ctx)
                && (member, run) == (self.member, self.run)
            {
                step.reads.push((number, LogIndex(state.index)));
            }
        }
        let number = ready.number();
        self.newest = number;
        let snapshot = Some(ready.snapshot().get_metadata()).filter(|metadata| metadata.index != 0).cloned();
        let store = self.raw.mut_store();
        if let Some(metadata) = &snapshot {
            store.install(metadata);
            self.undecided.clear();
            self.withheld.clear();
        }
        store.append(ready.entries());
        let mut commits_change = false;
        if let Some(state) = ready.hs() {
            commits_change = store.changes_members(store.commit(), LogIndex(state.commit));
            store.set_hard_state(state);
            self.deferred = Some(hard_state_from_raft(state));
        }
        let entries: Vec<WalEntry> = ready.entries().iter().map(from_raft).collect();
        let ready_syncs = ready.must_sync();
        let committed = ready.take_committed_entries();
        // The leader tells that the change is committed only once it is on its own disk: see `may_leave`.
        let mut promises = Vec::new();
        outbound(&ready.take_messages(), if commits_change { &mut promises } else { &mut step.send });
        outbound(&ready.take_persisted_messages(), &mut promises);
        self.raw.advance_append_async(ready);
        // A start counts votes by the changes it knows to be committed: a member that was removed may have ended by then, and
        // its vote would be missing for ever.
        if commits_change {
            self.noting_change = Some(number);
        }
        if ready_syncs || commits_change {
            self.persisting.push_back(number);
            let snapshot = snapshot.map(|metadata| {
                let position = LogPosition { index: LogIndex(metadata.index), term: Term(metadata.term) };
                self.prepared_snapshots.push_back((number, position));
                let conf_state = conf_state_from_raft(metadata.get_conf_state());
                WalSnapshot { index: position.index, term: position.term, conf_state }
            });
            step.persist = Some(PersistGroup { number, snapshot, entries, hard_state: self.deferred.take() });
        } else if self.persisting.is_empty() {
            self.raw.on_persist_ready(number);
        }
        match self.persisting.back() {
            Some(&wait) if !promises.is_empty() => self.held.push_back((wait, promises)),
            _ => step.send.extend(promises),
        }
        for entry in committed {
            let entry = self.convert(entry)?;
            self.withheld.push_back(entry);
        }
        Ok(())
    }

    /// A commit index that was never worth a sync of its own; to be written at a clean stop.
    pub fn take_deferred(&mut self) -> Option<HardState> {
        self.deferred.take()
    }

    fn convert(&mut self, entry: Entry) -> Result<Committed, RaftError> {
        let index = LogIndex(entry.index);
        let kind = match entry.get_entry_type() {
            EntryType::EntryNormal if entry.data.is_empty() => CommittedKind::Empty,
            EntryType::EntryNormal => CommittedKind::Request(entry.data),
            EntryType::EntryConfChange => {
                let change = ProposedChange::from_entry(&entry.data).ok_or(RaftError::BadConfChange(index))?;
                self.undecided.push_back((index, change.clone()));
                CommittedKind::Members(change)
            }
            EntryType::EntryConfChangeV2 => return Err(RaftError::BadConfChange(index)),
        };
        Ok(Committed { index, term: Term(entry.term), kind })
    }

    /// Sends a message that nothing has to be durable for.
    pub(super) fn send(&mut self, message: &Message) {
        outbound(std::slice::from_ref(message), &mut self.released);
    }
}

fn outbound(messages: &[Message], into: &mut Vec<Outbound>) {
    for message in messages {
        let lane = match message.get_msg_type() {
            MessageType::MsgSnapshot => Lane::Snapshot,
            MessageType::MsgAppend | MessageType::MsgAppendResponse | MessageType::MsgPropose => Lane::Append,
            _ => Lane::Control,
        };
        match message.write_to_bytes() {
            Ok(bytes) => into.push(Outbound { to: MemberId(message.to), lane, bytes: bytes.into() }),
            Err(error) => tracing::error!(%error, "message to a peer cannot be encoded"),
        }
    }
}
