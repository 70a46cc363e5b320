use prometheus::{IntCounter, IntGauge};

use super::refusal::Limit;

/// The rows of one tenant.
#[derive(Debug)]
pub(super) struct TenantCounters {
    /// Whether no other tenant is counted in the same rows.
    pub own: bool,
    pub requests: IntCounter,
    pub bytes: IntCounter,
    pub watches: IntGauge,
    pub stored_keys: IntGauge,
    pub stored_bytes: IntGauge,
    pub refused: [IntCounter; Limit::ALL.len()],
}

impl TenantCounters {
    pub fn refused(&self, limit: Limit) -> &IntCounter {
        &self.refused[limit as usize]
    }
}
