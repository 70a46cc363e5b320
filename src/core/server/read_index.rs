use std::time::Duration;

use prometheus::IntCounter;
use tokio::time::{Instant, timeout_at};

use crate::api_error::ApiError;
use crate::core::apply::ApplyHandle;
use crate::core::raft::RaftHandle;
use crate::types::LogIndex;

/// Linearizable reads: asks raft for an index that a quorum confirms, and waits until this member has applied it.
pub struct ReadIndex {
    raft: RaftHandle,
    apply: ApplyHandle,
    /// How long a read may wait for both.
    timeout: Duration,
    /// Reads whose index was not confirmed in time.
    slow: IntCounter,
}

impl ReadIndex {
    /// `slow` counts the reads whose index was not confirmed within `timeout`.
    pub fn new(raft: RaftHandle, apply: ApplyHandle, timeout: Duration, slow: IntCounter) -> Self {
        Self { raft, apply, timeout, slow }
    }

    /// Completes when the published state is at least as new as every write acknowledged before the call.
    ///
    /// # Errors
    /// [`ApiError::Timeout`] when no quorum confirmed it, or it was not applied, in time;
    /// [`ApiError::TooManyRequests`] and [`ApiError::Stopped`] when no quorum could be asked.
    pub async fn linearizable(&self) -> Result<(), ApiError> {
        if self.raft.reads_are_local() {
            // The only voter acknowledges a write after publishing it.
            return Ok(());
        }
        let deadline = Instant::now() + self.timeout;
        let Ok(asked) = timeout_at(deadline, self.raft.read_index()).await else {
            self.slow.inc();
            return Err(ApiError::Timeout);
        };
        self.wait_applied(asked?, deadline).await
    }

    /// Completes when everything up to `index` is published.
    ///
    /// # Errors
    /// [`ApiError::Timeout`] at `deadline`; [`ApiError::Stopped`] when apply has ended before.
    pub async fn wait_applied(&self, index: LogIndex, deadline: Instant) -> Result<(), ApiError> {
        let mut progress = self.apply.progress();
        match timeout_at(deadline, progress.wait_for(|applied| *applied >= index)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ApiError::Stopped),
            Err(_) => Err(ApiError::Timeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;

    use super::*;
    use crate::core::apply::ApplyProgress;
    use crate::core::raft::{ProposeError, RaftInbox};

    // A full inbox and a member that ends were answered as a timeout at once, and counted as slow.
    #[tokio::test(start_paused = true)]
    async fn only_a_read_that_waited_is_a_timeout() {
        let inbox = RaftInbox::new();
        let raft = RaftHandle::for_inbox(&inbox);
        let (_progress, apply) = ApplyProgress::new(Arc::default(), LogIndex(0));
        let slow = IntCounter::new("slow", "slow").unwrap();
        let reads = ReadIndex::new(raft.clone(), apply, Duration::from_secs(5), slow.clone());
        assert_eq!(reads.linearizable().await, Err(ApiError::Timeout));
        assert_eq!(slow.get(), 1);
        while raft.read_index().now_or_never() != Some(Err(ProposeError::Overloaded)) {}
        assert_eq!(reads.linearizable().await, Err(ApiError::TooManyRequests));
        assert_eq!(slow.get(), 1);
        let ended = RaftHandle::for_inbox(&RaftInbox::new());
        assert_eq!(ended.read_index().await, Err(ProposeError::Stopped));
    }
}
