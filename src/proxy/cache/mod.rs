//! The coherent range cache: reads of cached prefixes answered from replicas that an upstream watch keeps current.
//!
//! Clients with the same credentials form a group (`group.rs`), with one replica for each cached prefix. A replica is a map
//! of pairs at one revision (`replica.rs`, pure), kept current by a task (`follow.rs`) that loads it (`load.rs`) and follows
//! its watch (`progress.rs` says when progress is requested, `check.rs` compares it with the cluster); what others see of it is in `shared.rs`, and broadcasts of the watch hub that read the same watch in `subscribers.rs`. Where no prefix is configured, `promotion.rs` finds those that are read often. A request enters at `service.rs`, which decides whether it may be
//! answered here: linearizable reads share reads of the cluster's revision (`read_index.rs`; `gathering.rs` says for whom one waits) and wait for their replica (`patience.rs`). `range.rs` computes what a
//! member would answer, `answer.rs` sends it. `budget.rs` bounds the memory of all replicas, `report.rs` shows them to people, `cluster.rs` is all of the
//! cluster that this room sees.
//!
//! Read `service.rs` first; docs/design/cache.md has the rules.

mod answer;
mod budget;
mod check;
mod cluster;
mod config;
mod first_progress;
mod follow;
mod gathering;
mod group;
mod load;
mod metrics;
mod pair;
mod past;
mod patience;
mod progress;
mod promotion;
mod range;
mod read_ahead;
mod read_index;
mod replica;
mod report;
mod service;
mod shared;
mod spawner;
mod subscribers;
#[cfg(test)]
mod tests;

pub use budget::CacheBudget;
pub use config::{CacheConfig, CacheReads};
pub(super) use first_progress::{PROGRESS_WATCH_ID, progress_request};
pub use metrics::CacheMetrics;
pub(super) use progress::ProgressRequests;
pub(super) use read_ahead::ReadAhead;
pub(super) use report::CachedRange;
pub use service::{CacheParts, RangeCache};
