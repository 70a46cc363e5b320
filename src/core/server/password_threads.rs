use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::error::Failure;
use crate::api_error::ApiError;
use crate::core::auth::{PASSWORD_BYTES_MAX, PasswordError, hash_password, is_password};

/// Passwords that wait for a thread; more logins are refused.
const WAITING_MAX: usize = 1024;
/// Below the threads that serve requests: a processor that both want goes to those.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

type Job = Box<dyn FnOnce() + Send>;

/// Threads that hash and compare passwords: half as many as there are processors, so that logins cannot take all of them.
///
/// They end when this is dropped, each after the password it is at.
#[derive(Clone)]
pub(super) struct PasswordThreads {
    jobs: SyncSender<Job>,
    cost: u32,
}

impl PasswordThreads {
    /// Starts them.
    ///
    /// # Errors
    /// The system has no thread.
    pub(super) fn start(cost: u32) -> std::io::Result<Self> {
        let (jobs, waiting) = sync_channel::<Job>(WAITING_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        let processors = thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..(processors / 2).max(1) {
            let waiting = waiting.clone();
            thread::Builder::new().name("passwords".to_owned()).spawn(move || work(&waiting))?;
        }
        Ok(Self { jobs, cost })
    }

    /// Hashes a password.
    ///
    /// # Errors
    /// It is too long, or too many others wait.
    pub(super) async fn hash(&self, password: String) -> Result<String, Failure> {
        let failed = |error: PasswordError| Failure::Other(error.to_string());
        // What waits for a thread is short.
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(failed(PasswordError::TooLong));
        }
        let cost = self.cost;
        let hashed = self.run(move || hash_password(&password, cost)).await?;
        hashed.map_err(failed)
    }

    /// Whether this is the password of a user with this hash; there is no such user without one. Of the password
    /// [`compared_part`](crate::core::auth::compared_part) is enough.
    ///
    /// # Errors
    /// Too many others wait.
    pub(super) async fn matches(&self, password: Box<[u8]>, hash: Option<Bytes>) -> Result<bool, Failure> {
        let cost = self.cost;
        self.run(move || is_password(&password, hash.as_deref(), cost)).await
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
        let (reply, done) = oneshot::channel();
        let job = move || {
            // Nothing for a client that has gone.
            if !reply.is_closed() {
                let _ = reply.send(work());
            }
        };
        self.jobs.try_send(Box::new(job)).map_err(|_| ApiError::TooManyRequests)?;
        done.await.map_err(|_| ApiError::Stopped.into())
    }
}

fn work(waiting: &Mutex<Receiver<Job>>) {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE) {
        tracing::debug!(%error, "priority of a password thread is not lowered");
    }
    loop {
        let next = waiting.lock().recv();
        match next {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_password_that_is_too_long_waits_for_no_thread() {
        let (jobs, waiting) = sync_channel::<Job>(WAITING_MAX);
        let no_threads = PasswordThreads { jobs, cost: 4 };
        let refused = no_threads.hash("x".repeat(PASSWORD_BYTES_MAX + 1)).now_or_never().expect("no wait");
        assert_eq!(refused.expect_err("too long").to_string(), "bcrypt: password length exceeds 72 bytes");
        assert!(waiting.try_recv().is_err(), "nothing was queued");
        assert!(no_threads.hash("x".repeat(PASSWORD_BYTES_MAX)).now_or_never().is_none(), "this one waits");
        assert!(waiting.try_recv().is_ok());
    }
}
