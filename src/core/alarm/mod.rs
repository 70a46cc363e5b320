//! Raised alarms, by member and type. Persistent, replicated, changed by apply only.

mod store;

pub use store::AlarmStore;
