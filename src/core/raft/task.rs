use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use super::node::{Committed, RaftError, RaftNode};
use super::wal_writer::WalWriter;
use crate::core::wal::WalSnapshot;
use crate::types::{LogIndex, MemberId, Term};

/// Messages to the raft thread at once; a full inbox refuses proposals.
const INBOX_MAX: usize = 8192;
/// Messages taken in one turn, so that ticks are never far behind.
const TURN_MAX: usize = 1024;
/// Pause before the only voter tries again to lead.
const CAMPAIGN_RETRY: Duration = Duration::from_millis(1);

/// Why a proposal was not taken.
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
    /// Whether this member leads, has committed in its term, and no other member has a vote: then nothing can
    /// have been acknowledged that it has not applied.
    pub reads_are_local: bool,
}

/// Where committed entries go.
pub trait CommitSink: Send {
    /// Takes entries in log order. Must not wait for the raft thread.
    fn committed(&mut self, entries: Vec<Committed>);
}

enum Inbox {
    Propose(Bytes),
    /// Only while this member leads in the term; never forwarded.
    ProposeAsLeader(Bytes, Term),
    ReadIndex(oneshot::Sender<LogIndex>),
    Persisted(u64),
    Snapshot(WalSnapshot, LogIndex),
    Stop,
}

/// Numbers that many threads read and the raft thread or apply writes.
#[derive(Debug, Default)]
struct Shared {
    term: AtomicU64,
    committed: AtomicU64,
    applied: AtomicU64,
    reads_are_local: AtomicBool,
}

/// Way in to the raft thread. Cheap to clone; holds none of its state.
#[derive(Clone, Debug)]
pub struct RaftHandle {
    inbox: SyncSender<Inbox>,
    shared: Arc<Shared>,
    status: watch::Receiver<RaftStatus>,
    behind_max: u64,
}

impl RaftHandle {
    /// Puts an encoded request on its way into the log; its outcome comes from apply.
    ///
    /// # Errors
    /// When too much is under way, or the member stops; the request is not in the log then.
    pub fn propose(&self, request: Bytes) -> Result<(), ProposeError> {
        self.put(Inbox::Propose(request))
    }

    /// Like [`propose`](Self::propose), but the entry enters the log in `term`, proposed by this member as its leader,
    /// or not at all: what a leader decides by its own clock must not reach the log of the next one. Entries proposed
    /// this way keep their order among each other.
    ///
    /// # Errors
    /// As `propose`, and when it is known already that this member does not lead in `term`. A leadership that ends
    /// later drops the request without a word.
    pub fn propose_as_leader(&self, request: Bytes, term: Term) -> Result<(), ProposeError> {
        let status = *self.status.borrow();
        if !status.is_leader || status.term != term {
            return Err(ProposeError::NotLeader);
        }
        self.put(Inbox::ProposeAsLeader(request, term))
    }

    fn put(&self, message: Inbox) -> Result<(), ProposeError> {
        if self.committed().0.saturating_sub(self.applied().0) > self.behind_max {
            return Err(ProposeError::Overloaded);
        }
        // A full queue is an answer, not a wait: the client backs off, memory stays bounded.
        self.inbox.try_send(message).map_err(|error| match error {
            TrySendError::Full(_) => ProposeError::Overloaded,
            TrySendError::Disconnected(_) => ProposeError::Stopped,
        })
    }

    /// The index a linearizable read must see applied, confirmed by a quorum; none when that could not be asked.
    pub async fn read_index(&self) -> Option<LogIndex> {
        let (reply, index) = oneshot::channel();
        self.inbox.try_send(Inbox::ReadIndex(reply)).ok()?;
        index.await.ok()
    }

    /// Whether a linearizable read may take the newest published state without asking anybody.
    pub fn reads_are_local(&self) -> bool {
        self.shared.reads_are_local.load(Ordering::Acquire)
    }

    /// Tells that state up to `snapshot` is on disk: the log keeps `keep` entries before it, no more.
    pub fn state_saved(&self, snapshot: WalSnapshot, keep: u64) {
        let compact = LogIndex(snapshot.index.0.saturating_sub(keep));
        // Lost when the inbox is full; the next one says more.
        let _ = self.inbox.try_send(Inbox::Snapshot(snapshot, compact));
    }

    /// Called by apply, once everything up to `index` is in the published state.
    pub fn set_applied(&self, index: LogIndex) {
        self.shared.applied.store(index.0, Ordering::Release);
    }

    /// How far the published state is.
    pub fn applied(&self) -> LogIndex {
        LogIndex(self.shared.applied.load(Ordering::Acquire))
    }

    /// How far the cluster agreed.
    pub fn committed(&self) -> LogIndex {
        LogIndex(self.shared.committed.load(Ordering::Acquire))
    }

    /// The current term.
    pub fn term(&self) -> Term {
        Term(self.shared.term.load(Ordering::Acquire))
    }

    /// Changes of leader and term.
    pub fn status(&self) -> watch::Receiver<RaftStatus> {
        self.status.clone()
    }
}

/// What the raft thread works with.
pub struct TaskConfig<S> {
    /// Length of a tick.
    pub tick: Duration,
    /// Entries that may be committed and not yet applied before proposals are refused.
    pub behind_max: u64,
    /// Where committed entries go.
    pub sink: S,
    /// Called once when consensus cannot go on; the member must stop.
    pub failed: Arc<dyn Fn(String) + Send + Sync>,
}

/// The raft thread, between being set up and being stopped.
#[derive(Debug)]
pub struct RaftTask {
    handle: RaftHandle,
    thread: Option<JoinHandle<()>>,
}

/// Set up before the thread starts, so that the WAL writer can report to it.
pub struct RaftInbox {
    sender: SyncSender<Inbox>,
    receiver: Receiver<Inbox>,
}

impl RaftInbox {
    /// An empty inbox.
    pub fn new() -> Self {
        let (sender, receiver) = sync_channel(INBOX_MAX);
        Self { sender, receiver }
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

impl RaftTask {
    /// Starts the thread on `node`, writing through `writer`.
    ///
    /// # Errors
    /// When the thread cannot start.
    pub fn start<S: CommitSink + 'static>(
        node: RaftNode,
        writer: WalWriter,
        inbox: RaftInbox,
        config: TaskConfig<S>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (status_sender, status) = watch::channel(RaftStatus::default());
        let behind_max = config.behind_max;
        let handle = RaftHandle { inbox: inbox.sender, shared: shared.clone(), status, behind_max };
        let failed = config.failed.clone();
        let worker = Worker {
            node,
            writer,
            inbox: inbox.receiver,
            shared,
            status: status_sender,
            sink: config.sink,
            reads: HashMap::new(),
        };
        let tick = config.tick;
        let thread = std::thread::Builder::new().name("raft".into()).spawn(move || {
            if let Err(error) = worker.run(tick) {
                failed(format!("{:#}", anyhow::Error::from(error)));
            }
        })?;
        Ok(Self { handle, thread: Some(thread) })
    }

    /// The way in.
    pub fn handle(&self) -> RaftHandle {
        self.handle.clone()
    }

    /// Ends the thread after what it has begun is on disk. Blocks until then.
    pub fn stop(mut self) {
        let _ = self.handle.inbox.send(Inbox::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker<S> {
    node: RaftNode,
    // Dropped before the writer: its thread must not wait for room in an inbox that nobody empties.
    inbox: Receiver<Inbox>,
    writer: WalWriter,
    shared: Arc<Shared>,
    status: watch::Sender<RaftStatus>,
    sink: S,
    /// Readers waiting for each read request under way; all that ask in one turn share the next request.
    reads: HashMap<u64, Vec<oneshot::Sender<LogIndex>>>,
}

impl<S: CommitSink> Worker<S> {
    fn run(mut self, tick: Duration) -> Result<(), RaftError> {
        let mut next_tick = Instant::now() + tick;
        let mut stopping = false;
        while !stopping {
            self.drive()?;
            let mut wait = next_tick.saturating_duration_since(Instant::now());
            if self.node.is_sole_voter() && !self.node.is_leader() {
                // Nobody else can win, so nothing is gained by an election timeout. The library refuses while a
                // membership change from the log is not applied yet; apply does not wake this thread.
                self.node.campaign()?;
                self.drive()?;
                wait = wait.min(CAMPAIGN_RETRY);
            }
            let first = match self.inbox.recv_timeout(wait) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            stopping = self.take_turn(first)?;
            let now = Instant::now();
            if now >= next_tick {
                self.node.tick();
                // Ticks missed during a pause of the whole process are not made up for: nobody else saw them either.
                next_tick = now + tick;
            }
        }
        self.drive()?;
        if let Some(state) = self.node.take_deferred() {
            self.writer.hard_state(state);
        }
        Ok(())
    }

    /// Takes everything that waits, up to a bound; tells whether to stop.
    fn take_turn(&mut self, first: Option<Inbox>) -> Result<bool, RaftError> {
        let mut proposals = Vec::new();
        let mut led = Vec::new();
        let mut readers = Vec::new();
        let mut stop = false;
        self.node.applied(LogIndex(self.shared.applied.load(Ordering::Acquire)));
        let Some(first) = first else { return Ok(false) };
        let inbox = &self.inbox;
        let rest = std::iter::from_fn(|| inbox.try_recv().ok());
        for message in std::iter::once(first).chain(rest).take(TURN_MAX) {
            match message {
                Inbox::Propose(request) => proposals.push(request),
                Inbox::ProposeAsLeader(request, term) => led.push((request, term)),
                Inbox::ReadIndex(reader) => readers.push(reader),
                Inbox::Persisted(number) => self.node.persisted(number),
                Inbox::Snapshot(snapshot, compact) => {
                    self.node.compact(compact);
                    self.writer.snapshot(snapshot);
                }
                Inbox::Stop => stop = true,
            }
        }
        // Asked right before the proposal: what else came in this turn may have ended the leadership.
        let term = self.node.is_leader().then(|| self.node.term());
        proposals.extend(led.into_iter().filter(|(_, led_in)| Some(*led_in) == term).map(|(request, _)| request));
        if !proposals.is_empty() {
            // Refused without a leader: the proposers run into their timeout, as they do when a leader is lost.
            if let Err(error) = self.node.propose(proposals) {
                tracing::debug!(%error, "proposals dropped");
            }
        }
        if !readers.is_empty() {
            let number = self.node.read_index();
            self.reads.insert(number, readers);
        }
        Ok(stop)
    }

    /// Does what the node asks for until it asks for nothing more.
    fn drive(&mut self) -> Result<(), RaftError> {
        while let Some(step) = self.node.poll()? {
            if let Some(group) = step.persist {
                self.writer.persist(group);
            }
            // Readable before apply acknowledges anything from this step.
            self.shared.committed.store(self.node.committed().0, Ordering::Release);
            if !step.committed.is_empty() {
                self.sink.committed(step.committed);
            }
            for (number, index) in step.reads {
                for reader in self.reads.remove(&number).unwrap_or_default() {
                    let _ = reader.send(index);
                }
            }
        }
        self.publish_status();
        Ok(())
    }

    fn publish_status(&mut self) {
        let status = RaftStatus {
            leader: self.node.leader(),
            term: self.node.term(),
            is_leader: self.node.is_leader(),
            reads_are_local: self.node.is_sole_voter() && self.node.is_ready_leader(),
        };
        self.shared.term.store(status.term.0, Ordering::Release);
        self.shared.reads_are_local.store(status.reads_are_local, Ordering::Release);
        self.status.send_if_modified(|current| {
            let changed = *current != status;
            *current = status;
            changed
        });
        self.reads.retain(|_, readers| {
            readers.retain(|reader| !reader.is_closed());
            !readers.is_empty()
        });
    }
}
