use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::driver::{CommitSink, GroupWriter, RaftDriver};
use super::handle::{Inbox, RaftHandle, RaftInbox};
use super::node::RaftNode;
use super::peer::PeerSink;
use super::step::RaftError;

/// Pause before the only voter tries again to lead.
const CAMPAIGN_RETRY: Duration = Duration::from_millis(1);

/// What the raft thread works with.
pub struct TaskConfig<S, P> {
    /// Length of a tick.
    pub tick: Duration,
    /// Entries that may be committed and not yet applied before proposals are refused.
    pub behind_max: u64,
    /// Where committed entries go.
    pub sink: S,
    /// Where messages to other members go.
    pub peers: P,
    /// Called once when consensus cannot go on; the member must stop.
    pub failed: Arc<dyn Fn(String) + Send + Sync>,
}

/// The raft thread, between being set up and being stopped.
#[derive(Debug)]
pub struct RaftTask {
    handle: RaftHandle,
    thread: Option<JoinHandle<()>>,
}

impl RaftTask {
    /// Starts the thread on `node`, writing through `writer`.
    ///
    /// # Errors
    /// When the thread cannot start.
    pub fn start<W, S, P>(
        node: RaftNode,
        writer: W,
        inbox: RaftInbox,
        config: TaskConfig<S, P>,
    ) -> std::io::Result<Self>
    where
        W: GroupWriter + Send + 'static,
        S: CommitSink + Send + 'static,
        P: PeerSink + Send + 'static,
    {
        let TaskConfig { tick, behind_max, sink, peers, failed } = config;
        let (driver, handle) = RaftDriver::new(node, writer, sink, peers, &inbox, behind_max);
        let worker = Worker { inbox: inbox.receiver, driver };
        let thread = std::thread::Builder::new().name("raft".into()).spawn(move || {
            // The library panics where it finds itself in an impossible state. Half a member is worse than none.
            match catch_unwind(AssertUnwindSafe(|| worker.run(tick))) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failed(format!("{:#}", anyhow::Error::from(error))),
                Err(_) => failed("consensus panicked".to_owned()),
            }
        })?;
        Ok(Self { handle, thread: Some(thread) })
    }

    /// The handle.
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

struct Worker<W, S, P> {
    // Dropped before the driver's writer: its thread must not wait on a full inbox that is no longer read.
    inbox: Receiver<Inbox>,
    driver: RaftDriver<W, S, P>,
}

impl<W: GroupWriter, S: CommitSink, P: PeerSink> Worker<W, S, P> {
    fn run(mut self, tick: Duration) -> Result<(), RaftError> {
        let mut next_tick = Instant::now() + tick;
        let mut stopping = false;
        while !stopping {
            let retries = self.driver.drive()?;
            let mut wait = next_tick.saturating_duration_since(Instant::now());
            if retries {
                wait = wait.min(CAMPAIGN_RETRY);
            }
            let first = match self.inbox.recv_timeout(wait) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            stopping = self.driver.take(first.into_iter().chain(self.inbox.try_iter()))?;
            let now = Instant::now();
            if now >= next_tick {
                self.driver.tick();
                self.driver.note_late_heartbeats(now - next_tick, tick);
                // Ticks missed during a pause of the whole process are not made up for: the other members saw no ticks of this one either.
                next_tick = now + tick;
            }
        }
        self.driver.finish()
    }
}
