//! Alarms: which member reported which trouble. Persistent, replicated, changed by apply only.

mod store;

pub use store::AlarmStore;
