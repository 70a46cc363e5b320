//! `make-mirror`: copies keys and their changes to another cluster, in order, for as long as the process runs.
//!
//! `run.rs` is the loop: first every key at one revision (unless `--rev` names where to start), then each change from
//! the next revision on. `source.rs` reads and watches, `destination.rs` writes and tries again; either side may be
//! away for a time. `rename.rs` says what a key is called over there.

mod destination;
mod rename;
mod run;
mod source;

pub(super) use run::run;
