use std::io;
use std::thread::{Builder, JoinHandle};

use super::error::BackendError;
use super::scrub::ScrubCursor;
use super::store::Backend;
use super::wake::Due;

/// The thread that makes submitted changes durable, every second or every 4 MiB, and that checks some of the stored
/// rows every second in which there was less to write.
///
/// Dropping it without [`stop`](Self::stop) ends the thread after a last checkpoint, too, without waiting for it.
#[derive(Debug)]
pub struct Checkpointer {
    backend: Backend,
    thread: Option<JoinHandle<Result<(), BackendError>>>,
}

impl Checkpointer {
    /// Starts the thread. `failed` is called on it at the first error, after which no checkpoint follows: the caller
    /// ends the process.
    ///
    /// # Errors
    /// The thread cannot start.
    pub fn start(backend: Backend, failed: impl FnOnce(&BackendError) + Send + 'static) -> io::Result<Self> {
        let shared = backend.clone();
        let thread = Builder::new().name("checkpoint".into()).spawn(move || {
            let mut cursor = ScrubCursor::default();
            loop {
                let due = shared.inner().wake.wait();
                let mut done = shared.checkpoint().map(|_| ());
                if due == Due::Time && done.is_ok() {
                    done = shared.scrub_step(cursor.clone()).map(|next| cursor = next.unwrap_or_default());
                }
                if let Err(error) = done {
                    failed(&error);
                    return Err(error);
                }
                if due == Due::Last {
                    return Ok(());
                }
            }
        })?;
        Ok(Self { backend, thread: Some(thread) })
    }

    /// Makes everything submitted so far durable and ends the thread. Waits for the disk.
    ///
    /// # Errors
    /// The checkpoint's; `failed` has been called with it.
    pub fn stop(mut self) -> Result<(), BackendError> {
        self.backend.inner().wake.stop();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            // The thread's only foreign code is `failed`, which may panic to end the process.
            Some(Err(_)) | None => self.backend.inner().usable(),
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.backend.inner().wake.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::super::change::{Change, ChangeSet, Table};
    use super::*;
    use crate::types::{LogIndex, LogPosition, Term};

    fn submit(backend: &Backend, index: u64, bytes: usize) {
        let changes = vec![Change::put(Table::Lease, index.to_be_bytes().to_vec(), vec![7; bytes])];
        backend.submit(ChangeSet { position: LogPosition { index: LogIndex(index), term: Term(1) }, changes });
    }

    #[test]
    fn many_bytes_bring_the_checkpoint_forward_and_stop_makes_the_rest_durable() {
        let backend = Backend::in_memory().unwrap();
        let checkpointer = Checkpointer::start(backend.clone(), |error| unreachable!("{error}")).unwrap();
        for index in 1..=40 {
            submit(&backend, index, 1024 * 1024);
        }
        submit(&backend, 41, 10);
        checkpointer.stop().unwrap();
        assert_eq!(backend.durable().index, LogIndex(41));
        assert_eq!(backend.pending_bytes(), 0);
        assert_eq!(backend.rows(Table::Lease).unwrap().len(), 41);
    }
}
