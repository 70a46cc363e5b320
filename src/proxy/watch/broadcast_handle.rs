use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::eventlog::{End, Source};
use crate::types::{ClusterId, Revision};

/// Requests to a broadcast that wait; the sender waits while it is full.
const COMMANDS_MAX: usize = 64;

/// Way in to a broadcast. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct BroadcastHandle {
    state: watch::Receiver<BroadcastState>,
    commands: mpsc::Sender<Command>,
}

/// How far a broadcast is.
#[derive(Clone, Debug)]
pub(super) enum BroadcastState {
    /// The member has not confirmed the watch yet. The log will begin behind this revision, or behind now when it is 0.
    Opening(Revision),
    /// The log is being filled with the history of this cluster.
    Live(Weak<Source>, ClusterId),
    /// It is over. An empty reason means that asking again may help.
    Ended(End),
}

/// What the owners of a broadcast ask of it. A dropped `oneshot` means that nothing came of it.
#[derive(Debug)]
pub(super) enum Command {
    /// Request progress; done when the member has answered.
    Refresh(oneshot::Sender<()>),
    /// The same, unless the answers of the member may arrive ahead of events; waits until the member is known.
    Renew(oneshot::Sender<()>),
    /// Move all watchers to this wider source and end.
    Supersede(Arc<Source>),
    /// End like this if the position is not before this one: the cluster has lost the history that led there. Dropped when that
    /// is done.
    EndLost(Revision, End, oneshot::Sender<()>),
}

/// A handle, and the ends that belong to the broadcast itself.
pub(super) fn broadcast_channel(
    begin: Revision,
) -> (BroadcastHandle, watch::Sender<BroadcastState>, mpsc::Receiver<Command>) {
    let (owner, state) = watch::channel(BroadcastState::Opening(begin));
    let (commands, received) = mpsc::channel(COMMANDS_MAX);
    (BroadcastHandle { state, commands }, owner, received)
}

impl BroadcastHandle {
    /// The source, once the member has confirmed the watch.
    ///
    /// # Errors
    /// How the broadcast ended.
    pub async fn live(&self) -> Result<Arc<Source>, End> {
        let mut state = self.state.clone();
        loop {
            match &*state.borrow_and_update() {
                BroadcastState::Live(source, _) => return source.upgrade().ok_or_else(End::default),
                BroadcastState::Ended(end) => return Err(end.clone()),
                BroadcastState::Opening(_) => {}
            }
            if state.changed().await.is_err() {
                return Err(End::default());
            }
        }
    }

    /// Whether watchers can still join.
    pub fn is_open(&self) -> bool {
        match &*self.state.borrow() {
            BroadcastState::Opening(_) => true,
            BroadcastState::Live(source, _) => source.strong_count() > 0,
            BroadcastState::Ended(_) => false,
        }
    }

    /// Brings the log up to the newest revision of the member; false when it did not answer in time.
    pub async fn refresh(&self, within: Duration) -> bool {
        self.request(Command::Refresh, within).await
    }

    /// The same, so that the position is not compacted; a member whose answers may arrive ahead of events is not asked.
    pub async fn renew(&self, within: Duration) -> bool {
        self.request(Command::Renew, within).await
    }

    async fn request(&self, command: fn(oneshot::Sender<()>) -> Command, within: Duration) -> bool {
        let (done, reached) = oneshot::channel();
        let refresh = async { self.commands.send(command(done)).await.is_ok() && reached.await.is_ok() };
        tokio::time::timeout(within, refresh).await.unwrap_or(false)
    }

    /// The source, while there is one.
    pub fn source(&self) -> Option<Arc<Source>> {
        match &*self.state.borrow() {
            BroadcastState::Live(source, _) => source.upgrade(),
            BroadcastState::Opening(_) | BroadcastState::Ended(_) => None,
        }
    }

    /// The head of the log, once there is one.
    pub fn head(&self) -> Option<Revision> {
        self.source().map(|source| source.log().head())
    }

    /// How far its watchers are, those to come included; none where that is not decided yet, or they are gone.
    pub fn position(&self) -> Option<Revision> {
        match &*self.state.borrow() {
            BroadcastState::Opening(begin) => Some(*begin).filter(|begin| begin.0 != 0),
            BroadcastState::Live(source, _) => source.upgrade().map(|source| source.log().head()),
            BroadcastState::Ended(_) => None,
        }
    }

    /// The cluster whose history the log has.
    pub fn cluster(&self) -> ClusterId {
        match &*self.state.borrow() {
            BroadcastState::Live(_, cluster) => *cluster,
            BroadcastState::Opening(_) | BroadcastState::Ended(_) => ClusterId(0),
        }
    }

    /// Whether both are handles of the same broadcast.
    pub fn is(&self, other: &Self) -> bool {
        self.commands.same_channel(&other.commands)
    }

    /// Moves all watchers to a wider source and ends the broadcast.
    pub async fn supersede(&self, by: Arc<Source>) {
        let _ = self.commands.send(Command::Supersede(by)).await;
    }

    /// Ends it, and its watchers like this, if it still stands at `position` or behind it, which the cluster has lost. Waits until
    /// that is done.
    pub async fn end_lost(&self, position: Revision, end: End) {
        let (done, ended) = oneshot::channel();
        if self.commands.send(Command::EndLost(position, end, done)).await.is_ok() {
            let _ = ended.await;
        }
    }
}
