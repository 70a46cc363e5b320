use std::time::Duration;

use crate::config::{Quota, ServerConfig};

/// Extra bytes a request message may have over `max_request_bytes`.
const REQUEST_OVERHEAD_BYTES: usize = 512 * 1024;

/// Limits of one member.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest encoded proposal.
    pub max_request_bytes: usize,
    /// Longest list of a transaction.
    pub max_txn_ops: usize,
    /// Memory that answers in flight may take.
    pub answer_memory_bytes: u64,
    /// Bytes the state may take; negative for no limit.
    pub quota_bytes: i64,
    /// How long a proposal may take.
    pub request_timeout: Duration,
    /// Silence of the leader after which a member starts an election.
    pub election_timeout: Duration,
    /// Shortest lease, in seconds.
    pub lease_ttl_min: i64,
    /// Learners the cluster may have.
    pub max_learners: usize,
    /// Whether membership changes that could cost the quorum are refused.
    pub strict_reconfig_check: bool,
}

impl Limits {
    /// Largest message the gRPC server takes.
    pub fn max_message_bytes(&self) -> usize {
        self.max_request_bytes + REQUEST_OVERHEAD_BYTES
    }
}

impl From<&ServerConfig> for Limits {
    fn from(config: &ServerConfig) -> Self {
        Self {
            max_request_bytes: config.max_request_bytes,
            max_txn_ops: config.max_txn_ops,
            answer_memory_bytes: config.answer_memory_bytes,
            quota_bytes: match config.quota {
                Quota::Unlimited => -1,
                Quota::Bytes(bytes) => i64::try_from(bytes).unwrap_or(i64::MAX),
            },
            request_timeout: Duration::from_secs(5) + 2 * config.election_timeout,
            election_timeout: config.election_timeout,
            // One and a half election timeouts, in whole seconds.
            lease_ttl_min: (config.election_timeout.as_millis() * 3).div_ceil(2000).max(1) as i64,
            max_learners: config.max_learners,
            strict_reconfig_check: config.strict_reconfig_check,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::REQUEST_BYTES_MAX;
    use crate::core::peer::PeerLimits;

    // Far above what raft adds to an entry: the tests of `core::raft` measure that.
    const RAFT_OVERHEAD_BYTES_MAX: usize = 1024;

    // The flag had no bound: what no frame holds was accepted, sent to the others, dropped there in silence, and again.
    #[test]
    fn the_largest_request_fits_into_a_frame() {
        assert!(REQUEST_BYTES_MAX + RAFT_OVERHEAD_BYTES_MAX <= PeerLimits::default().frame_bytes_max);
    }
}
