use prometheus::{IntCounter, IntGauge};

use super::refusal::Limit;

/// The rows of one tenant.
#[derive(Debug)]
pub(super) struct TenantCounters {
    pub requests: IntCounter,
    pub bytes: IntCounter,
    pub watches: IntGauge,
    pub refused: [IntCounter; Limit::ALL.len()],
}

impl TenantCounters {
    pub fn refused(&self, limit: Limit) -> &IntCounter {
        &self.refused[limit as usize]
    }
}
