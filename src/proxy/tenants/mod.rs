//! Whose requests the proxy serves: each belongs to exactly one tenant, or is refused.
//!
//! [`Tenants`] (`set.rs`) is the set in force, which a reload replaces as a whole; it finds the [`Tenant`] (`tenant.rs`) of a
//! request by what its connection and its token say (`matching.rs`, `token_users.rs`). What tenants need of the cluster, and
//! share as far as they may, comes from [`TenantUpstream`] (`upstream.rs`). `compaction.rs` has tenants agree
//! on the revision at which the cluster is compacted; `stored.rs` counts what a tenant has stored; `report.rs` is what people are shown of a tenant; `open_call.rs` ends what is open under a
//! membership that a reload took away. docs/design/tenants.md has the
//! invariants.

mod compaction;
mod matching;
mod open_call;
mod report;
mod set;
mod stored;
mod tenant;
mod token_users;
mod upstream;

pub use compaction::AgreedCompaction;
pub use matching::TenantRule;
pub(super) use open_call::Membership;
pub(super) use report::TenantReport;
pub(super) use set::NotATenant;
pub use set::{TenantSet, Tenants};
pub use tenant::{Tenant, TenantUser};
pub use upstream::{TenantCache, TenantUpstream};
