//! The stop signal and the tasks that must end before the process does.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// One tree of stop signals and the tasks below it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl Tasks {
    /// A fresh tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// The signal that tells tasks to end.
    pub fn stop_signal(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Tells every task to end; returns at once.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// A subtree that stops with this one, or earlier on its own; its tasks are waited for here too.
    pub fn child(&self) -> Self {
        Self { stop: self.stop.child_token(), tracker: self.tracker.clone() }
    }

    /// Runs a task on the current runtime that [`finish`](Self::finish) waits for.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(task)
    }

    /// Stops everything and waits until the tasks are done, `grace` at most. Tells whether all were in time.
    pub async fn finish(&self, grace: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}

/// Completes at SIGINT or SIGTERM.
///
/// # Errors
/// When the process may not install signal handlers.
pub async fn interrupted() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
