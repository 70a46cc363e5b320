//! What a tenant may use: how much of each thing, and how a request learns that it was too much.
//!
//! [`Limits`] (`tenant_limits.rs`) are one tenant's: what the operator allows, which a reload replaces while everything goes on,
//! and what is used. `rate.rs` counts what passes in a second, `stored.rs` what exists and what is being added, `refusal.rs` is the answer to what was too much, `metered.rs`
//! counts the bytes of a call. `turns.rs` has the tenants take turns at the cluster. `report.rs` is what people are shown of one tenant, `metrics.rs` has a row for each, up to a bound (`counters.rs`).

mod counters;
mod metered;
mod metrics;
mod rate;
mod refusal;
mod report;
mod stored;
mod tenant_limits;
mod turns;

pub(super) use metered::{MeteredRequest, metered_answer};
pub use metrics::TenantMetrics;
pub(super) use refusal::Limit;
pub(super) use report::UsageReport;
pub(super) use stored::{Growth, NoRoom, Stored};
pub use tenant_limits::Limits;
pub use turns::Turns;
