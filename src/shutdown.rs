//! The stop signal and the tasks that must end before the process does.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
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

/// A signal that asked the process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl Interruption {
    /// Ends the process the way the signal would have without us, so that whoever started it sees what happened.
    /// Process 1 exits with 0: the kernel does not kill it.
    pub fn pass_on(self) -> u8 {
        let signal = match self {
            Self::Interrupt => signal_hook::consts::SIGINT,
            Self::Terminate => signal_hook::consts::SIGTERM,
        };
        if std::process::id() != 1 {
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
        0
    }
}

/// SIGINT and SIGTERM since this value was made: what comes while none is waited for is not lost.
#[derive(Debug)]
pub struct Interruptions {
    interrupt: Signal,
    terminate: Signal,
}

impl Interruptions {
    /// From now on.
    ///
    /// # Errors
    /// When the process may not install signal handlers.
    pub fn new() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// The next one.
    pub async fn next(&mut self) -> Interruption {
        tokio::select! {
            _ = self.interrupt.recv() => Interruption::Interrupt,
            _ = self.terminate.recv() => Interruption::Terminate,
        }
    }
}

/// Completes at the first SIGINT or SIGTERM from now on.
///
/// # Errors
/// When the process may not install signal handlers.
pub async fn interrupted() -> io::Result<Interruption> {
    Ok(Interruptions::new()?.next().await)
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal as Number, getpid, kill_process};

    use super::*;

    #[tokio::test]
    async fn a_signal_that_comes_while_none_is_waited_for_is_not_lost() {
        // Cause: handlers were installed anew for each wait, and a SIGTERM between two of them was forgotten.
        // Other signals than those of the program, so that whoever ends the tests still can.
        let stands_for = |kind| signal(kind).unwrap();
        let mut interruptions = Interruptions {
            interrupt: stands_for(SignalKind::user_defined1()),
            terminate: stands_for(SignalKind::user_defined2()),
        };
        for (signal, expected) in [(Number::USR2, Interruption::Terminate), (Number::USR1, Interruption::Interrupt)] {
            kill_process(getpid(), signal).unwrap();
            assert_eq!(interruptions.next().await, expected);
        }
    }
}
