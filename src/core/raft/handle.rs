use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::check::PeerMessage;
use super::members::{MembersDecision, ProposedChange};
use super::peer::{PeerProgress, RaftDetails, RefusedMessage};
use crate::core::reply::{self, Reply};
use crate::core::wal::WalSnapshot;
use crate::types::{LogIndex, MemberId, Term};

/// Messages to the raft thread at once.
const INBOX_MAX: usize = 8192;
/// Those of them that may come from clients; the rest is for peers, the disk and apply.
const CLIENT_MESSAGES_MAX: usize = 6144;
/// Bytes of peers' messages in the inbox, for a raft thread that a slow disk holds up. One message is taken even when it
/// alone is larger; what does not fit is dropped, as with a full inbox.
const PEER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A request on its way into the log.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// Its id.
    pub request: u64,
    /// It enters the log in this term, or never.
    pub term: Term,
    /// The request, encoded.
    pub bytes: Bytes,
}

/// Why a proposal or a read was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The inbox is full, or apply is too far behind.
    #[error("too many requests under way")]
    Overloaded,
    /// Another member leads now.
    #[error("not the leader")]
    NotLeader,
    /// The raft thread has ended.
    #[error("member is stopping")]
    Stopped,
}

/// Who leads, as this member sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RaftStatus {
    /// The leader, if one is known.
    pub leader: Option<MemberId>,
    /// The current term.
    pub term: Term,
    /// Whether this member leads.
    pub is_leader: bool,
    /// Whether nothing can have been acknowledged that this member has not applied.
    pub reads_are_local: bool,
}

impl RaftStatus {
    /// The term, if its leader is known.
    pub fn term_with_leader(&self) -> Option<Term> {
        self.leader.map(|_| self.term)
    }
}

/// What comes to the raft thread. Only [`RaftHandle`] makes one.
pub enum Inbox {
    Propose(Proposal),
    /// Only while this member leads; never forwarded.
    ProposeAsLeader(Proposal),
    ProposeMembers(ProposedChange, Term),
    ReadIndex(Reply<LogIndex>),
    Progress(oneshot::Sender<Vec<PeerProgress>>),
    Details(oneshot::Sender<RaftDetails>),
    /// With its bytes.
    Message(PeerMessage, usize),
    /// Answered with whether the state will be installed.
    Snapshot(PeerMessage, oneshot::Sender<bool>),
    Unreachable(MemberId),
    SnapshotSent(MemberId, bool),
    TransferLeader(MemberId),
    /// Answered with whether this member may end.
    ToldRemoved(MemberId, oneshot::Sender<bool>),
    Persisted(u64),
    StateSaved(WalSnapshot, LogIndex),
    BoundLog(WalSnapshot),
    /// Something outside the inbox wants to be looked at.
    Wake,
    Stop,
}

impl Inbox {
    pub(super) fn is_of_client(&self) -> bool {
        matches!(
            self,
            Self::Propose(_)
                | Self::ProposeAsLeader(_)
                | Self::ProposeMembers(..)
                | Self::ReadIndex(_)
                | Self::Progress(_)
                | Self::Details(_)
        )
    }
}

/// Numbers that many threads read and the raft thread or apply writes.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) term: AtomicU64,
    pub(super) committed: AtomicU64,
    pub(super) applied: AtomicU64,
    pub(super) reads_are_local: AtomicBool,
    /// Messages of clients in the inbox.
    pub(super) from_clients: AtomicUsize,
    /// Bytes of peers' messages in the inbox.
    pub(super) peer_bytes: AtomicUsize,
    /// Whether requests from peers are dropped, because the state on disk is too far behind.
    state_disk_late: AtomicBool,
    /// Apply's decisions. Not in the inbox: apply must never wait for a full queue. A cluster has one change under way,
    /// so only a member that catches up ever has several here.
    pub(super) decisions: Mutex<VecDeque<MembersDecision>>,
    pub(super) progress: ArcSwap<Vec<PeerProgress>>,
    pub(super) refused: AtomicU64,
    /// Heartbeats that were sent late.
    pub(super) late_heartbeats: AtomicU64,
    /// Read requests that were under way when their leader changed.
    pub(super) lost_reads: AtomicU64,
}

/// Way in to the raft thread. Cheap to clone; holds none of its state.
#[derive(Clone, Debug)]
pub struct RaftHandle {
    pub(super) member: MemberId,
    pub(super) inbox: SyncSender<Inbox>,
    pub(super) shared: Arc<Shared>,
    pub(super) status: watch::Receiver<RaftStatus>,
    pub(super) behind_max: u64,
}

impl RaftHandle {
    /// Heartbeats that this member sent late, as the leader.
    pub fn late_heartbeats(&self) -> u64 {
        self.shared.late_heartbeats.load(Ordering::Relaxed)
    }

    /// Read requests that had to be asked again because the leader changed.
    pub fn lost_reads(&self) -> u64 {
        self.shared.lost_reads.load(Ordering::Relaxed)
    }

    /// Puts a request on its way into the log. Its outcome comes from apply; [`CommitSink::dropped`](super::CommitSink::dropped) hears when it went
    /// nowhere.
    ///
    /// # Errors
    /// When too much is under way, or the member stops; the request is not in the log then.
    pub fn propose(&self, proposal: Proposal) -> Result<(), ProposeError> {
        self.admit()?;
        self.send_as_client(Inbox::Propose(proposal))
    }

    /// Like [`propose`](Self::propose), but only this member puts it into the log, as the leader of the proposal's
    /// term: what a leader decides by its own clock must not reach the log of the next one. Entries proposed this way
    /// keep their order among each other.
    ///
    /// # Errors
    /// As `propose`, and when it is known already that this member does not lead in that term.
    pub fn propose_as_leader(&self, proposal: Proposal) -> Result<(), ProposeError> {
        let status = *self.status.borrow();
        if !status.is_leader || status.term != proposal.term {
            return Err(ProposeError::NotLeader);
        }
        self.admit()?;
        self.send_as_client(Inbox::ProposeAsLeader(proposal))
    }

    /// Puts a membership change on its way into the log, in `term` or never; see [`propose`](Self::propose).
    ///
    /// # Errors
    /// As `propose`.
    pub fn propose_members(&self, change: ProposedChange, term: Term) -> Result<(), ProposeError> {
        self.send_as_client(Inbox::ProposeMembers(change, term))
    }

    fn admit(&self) -> Result<(), ProposeError> {
        match self.committed().0.saturating_sub(self.applied().0) > self.behind_max {
            true => Err(ProposeError::Overloaded),
            false => Ok(()),
        }
    }

    /// A full queue is an answer, not a wait: the client backs off, memory stays bounded.
    fn send_as_client(&self, message: Inbox) -> Result<(), ProposeError> {
        let queued = &self.shared.from_clients;
        if queued.fetch_add(1, Ordering::Relaxed) >= CLIENT_MESSAGES_MAX {
            queued.fetch_sub(1, Ordering::Relaxed);
            return Err(ProposeError::Overloaded);
        }
        self.inbox.try_send(message).map_err(|error| {
            queued.fetch_sub(1, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => ProposeError::Overloaded,
                TrySendError::Disconnected(_) => ProposeError::Stopped,
            }
        })
    }

    /// Takes a message that came from the member `from`. With a full inbox it is dropped: consensus repeats what
    /// matters. So is one with requests while the state disk is late, see
    /// [`set_state_disk_late`](Self::set_state_disk_late).
    ///
    /// # Errors
    /// When no honest member sends this; its connection should be closed.
    pub fn receive(&self, from: MemberId, bytes: Bytes) -> Result<(), RefusedMessage> {
        let message = PeerMessage::parse(self.member, from, &bytes).inspect_err(|_| self.count_refused())?;
        if self.shared.state_disk_late.load(Ordering::Relaxed) && message.has_requests() {
            return Ok(());
        }
        let queued = &self.shared.peer_bytes;
        let before = queued.fetch_add(bytes.len(), Ordering::Relaxed);
        let fits = before == 0 || before + bytes.len() <= PEER_BYTES_MAX;
        if !fits || self.inbox.try_send(Inbox::Message(message, bytes.len())).is_err() {
            queued.fetch_sub(bytes.len(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Takes a snapshot message whose db snapshot is prepared. The reply says whether the state will be installed; without
    /// an answer it will not.
    pub fn receive_snapshot(&self, message: PeerMessage) -> oneshot::Receiver<bool> {
        let (reply, accepted) = oneshot::channel();
        let _ = self.inbox.try_send(Inbox::Snapshot(message, reply));
        accepted
    }

    /// Whether the state on disk is too far behind what is applied. While it is, this member takes no requests from other
    /// members, so that what it applies has a bound in memory: it confirms no new entries, as with a log disk that
    /// hangs, and goes on answering heartbeats. Whoever sets it must look again without waiting for apply, which has
    /// nothing to do meanwhile.
    pub fn set_state_disk_late(&self, late: bool) {
        let known = &self.shared.state_disk_late;
        if known.load(Ordering::Relaxed) == late || known.swap(late, Ordering::Relaxed) == late {
            return;
        }
        match late {
            true => tracing::warn!("state on disk is too far behind; entries of other members are not taken"),
            false => tracing::info!("state on disk has caught up; entries of other members are taken again"),
        }
    }

    fn count_refused(&self) {
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Messages of peers that were refused.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Log entries do not get through to `peer`.
    pub fn unreachable(&self, peer: MemberId) {
        let _ = self.inbox.try_send(Inbox::Unreachable(peer));
    }

    /// The transfer of a snapshot to `peer` has ended.
    pub fn snapshot_sent(&self, peer: MemberId, delivered: bool) {
        // Must not get lost: until then the leader sends this peer nothing else.
        let _ = self.inbox.send(Inbox::SnapshotSent(peer, delivered));
    }

    /// The member `by` says that this one was removed. The reply says whether this member may end at once;
    /// without an answer it may not yet.
    pub fn told_removed(&self, by: MemberId) -> oneshot::Receiver<bool> {
        let (reply, may_end) = oneshot::channel();
        let _ = self.inbox.try_send(Inbox::ToldRemoved(by, reply));
        may_end
    }

    /// Transfers leadership to `to` if this member leads; [`status`](Self::status) shows when another one does.
    pub fn transfer_leader(&self, to: MemberId) {
        let _ = self.inbox.try_send(Inbox::TransferLeader(to));
    }

    /// Passes apply's decisions on membership changes on, in log order and before
    /// [`set_applied`](Self::set_applied) reaches them.
    pub fn members_decided(&self, decisions: impl IntoIterator<Item = MembersDecision>) {
        self.shared.decisions.lock().extend(decisions);
        let _ = self.inbox.try_send(Inbox::Wake);
    }

    /// The progress of every member, about a tick ago; empty unless this member leads.
    pub fn progress(&self) -> Arc<Vec<PeerProgress>> {
        self.shared.progress.load_full()
    }

    /// The progress of every member as it is now; empty unless this member leads, or when it could not be asked.
    pub async fn progress_now(&self) -> Vec<PeerProgress> {
        let (reply, progress) = oneshot::channel();
        match self.send_as_client(Inbox::Progress(reply)) {
            Ok(()) => progress.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// What the node holds beside its status; none when it could not be asked.
    pub async fn details(&self) -> Option<RaftDetails> {
        let (reply, details) = oneshot::channel();
        self.send_as_client(Inbox::Details(reply)).ok()?;
        details.await.ok()
    }

    /// The index a linearizable read must see applied, confirmed by a quorum; waits as long as there is none.
    ///
    /// # Errors
    /// When too much is under way, or the member stops; no quorum was asked then.
    pub async fn read_index(&self) -> Result<LogIndex, ProposeError> {
        let (reply, index) = reply::channel();
        self.send_as_client(Inbox::ReadIndex(reply))?;
        index.await.map_err(|_| ProposeError::Stopped)
    }

    /// Whether a linearizable read may take the newest published state without asking other members.
    pub fn reads_are_local(&self) -> bool {
        self.shared.reads_are_local.load(Ordering::Acquire)
    }

    /// State up to `snapshot` is on disk: the log keeps `keep` entries before it, no more.
    pub fn state_saved(&self, snapshot: WalSnapshot, keep: u64) {
        let compact = LogIndex(snapshot.index.0.saturating_sub(keep));
        // Lost when the inbox is full; the next one covers more.
        let _ = self.inbox.try_send(Inbox::StateSaved(snapshot, compact));
    }

    /// State up to `snapshot` is on disk: the log in memory forgets entries before it if they take too many bytes, which is
    /// not marked in the log on disk.
    pub fn bound_log(&self, snapshot: WalSnapshot) {
        // Lost when the inbox is full, like the above.
        let _ = self.inbox.try_send(Inbox::BoundLog(snapshot));
    }

    /// Called by apply, once everything up to `index` is in the published state.
    pub fn set_applied(&self, index: LogIndex) {
        self.shared.applied.store(index.0, Ordering::Release);
    }

    /// The index last passed to [`set_applied`](Self::set_applied).
    fn applied(&self) -> LogIndex {
        LogIndex(self.shared.applied.load(Ordering::Acquire))
    }

    /// The commit index.
    pub fn committed(&self) -> LogIndex {
        LogIndex(self.shared.committed.load(Ordering::Acquire))
    }

    /// The current term.
    pub fn term(&self) -> Term {
        Term(self.shared.term.load(Ordering::Acquire))
    }

    /// The term, if its leader is known.
    pub fn term_with_leader(&self) -> Option<Term> {
        self.status.borrow().term_with_leader()
    }

    /// Changes of leader and term.
    pub fn status(&self) -> watch::Receiver<RaftStatus> {
        self.status.clone()
    }
}

#[cfg(test)]
impl RaftHandle {
    /// A handle for tests that look at the inbox themselves, or fill it.
    pub(crate) fn for_inbox(inbox: &RaftInbox) -> Self {
        Self {
            member: MemberId(1),
            inbox: inbox.sender.clone(),
            shared: Arc::default(),
            status: watch::channel(RaftStatus::default()).1,
            behind_max: 0,
        }
    }
}

/// Set up before the thread starts, so that the WAL writer can report to it.
pub struct RaftInbox {
    pub(super) sender: SyncSender<Inbox>,
    pub(super) receiver: Receiver<Inbox>,
    /// What [`has_messages`](Self::has_messages) has found.
    found: Option<Inbox>,
}

impl RaftInbox {
    /// An empty inbox.
    pub fn new() -> Self {
        let (sender, receiver) = sync_channel(INBOX_MAX);
        Self { sender, receiver, found: None }
    }

    /// Whether anything has come that was not taken yet. This and [`messages`](Self::messages) are for those who call a
    /// [`RaftDriver`](super::RaftDriver) without a thread.
    pub fn has_messages(&mut self) -> bool {
        if self.found.is_none() {
            self.found = self.receiver.try_recv().ok();
        }
        self.found.is_some()
    }

    /// Takes what has come.
    pub fn messages(&mut self) -> impl Iterator<Item = Inbox> {
        self.found.take().into_iter().chain(self.receiver.try_iter())
    }

    /// For [`WalObserver::persisted`](super::WalObserver).
    pub fn persisted(&self) -> Box<dyn Fn(u64) + Send> {
        let sender = self.sender.clone();
        Box::new(move |number| {
            // The raft thread always empties its inbox, and outlives the writer.
            let _ = sender.send(Inbox::Persisted(number));
        })
    }
}

impl Default for RaftInbox {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use protobuf::Message as _;
    use raft::eraftpb::{Entry, Message, MessageType};

    use super::*;

    /// Of member 2, for member 1.
    fn message(kind: MessageType, entries: Vec<Entry>) -> Bytes {
        let mut message = Message { from: 2, to: 1, term: 1, index: 1, log_term: 1, ..Message::default() };
        message.set_msg_type(kind);
        message.set_entries(entries.into());
        message.write_to_bytes().unwrap().into()
    }

    // The bound for changes that are not on disk held for a member's own clients. What other members sent was taken and
    // applied without end.
    #[test]
    fn a_late_state_disk_keeps_requests_of_other_members_out_and_nothing_else() {
        let inbox = RaftInbox::new();
        let handle = RaftHandle::for_inbox(&inbox);
        let taken = |kind: MessageType, data: &'static [u8]| {
            let entries = match kind {
                MessageType::MsgHeartbeat => Vec::new(),
                MessageType::MsgAppend => vec![Entry { data: data.into(), index: 2, term: 1, ..Entry::default() }],
                _ => vec![Entry { data: data.into(), ..Entry::default() }],
            };
            handle.receive(MemberId(2), message(kind, entries)).unwrap();
            inbox.receiver.try_iter().count() == 1
        };
        handle.set_state_disk_late(true);
        assert!(!taken(MessageType::MsgAppend, b"request"));
        assert!(!taken(MessageType::MsgPropose, b"request"));
        assert!(taken(MessageType::MsgAppend, b""), "a new leader's first entry");
        assert!(taken(MessageType::MsgHeartbeat, b""));
        handle.set_state_disk_late(false);
        assert!(taken(MessageType::MsgAppend, b"request"));
        assert!(taken(MessageType::MsgPropose, b"request"));
    }

    // The inbox had a bound for messages and none for bytes: 8,192 appends of 512 KiB.
    #[test]
    fn a_raft_thread_that_is_held_up_is_not_handed_bytes_without_end() {
        let inbox = RaftInbox::new();
        let handle = RaftHandle::for_inbox(&inbox);
        let entry = Entry { data: vec![7; 1 << 20].into(), index: 2, term: 1, ..Entry::default() };
        let bytes = message(MessageType::MsgAppend, vec![entry]);
        for _ in 0..2 * PEER_BYTES_MAX / bytes.len() {
            handle.receive(MemberId(2), bytes.clone()).unwrap();
        }
        let queued = inbox.receiver.try_iter().count();
        assert_eq!(queued, PEER_BYTES_MAX / bytes.len());
        assert_eq!(handle.shared.peer_bytes.load(Ordering::Relaxed), queued * bytes.len());
    }
}
