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
    /// [`ApiError::Timeout`] when no quorum confirmed it, or it was not applied, in time.
    pub async fn linearizable(&self) -> Result<(), ApiError> {
        if self.raft.reads_are_local() {
            // The only voter acknowledges a write after publishing it.
            return Ok(());
        }
        let deadline = Instant::now() + self.timeout;
        let asked = timeout_at(deadline, self.raft.read_index()).await;
        let Ok(Some(index)) = asked else {
            self.slow.inc();
            return Err(ApiError::Timeout);
        };
        self.wait_applied(index, deadline).await
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
