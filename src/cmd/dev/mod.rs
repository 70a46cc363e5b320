//! A whole tier on loopback in one process, to try things out: members, gateway and proxy.
//!
//! `run.rs` reads the flags. `single.rs` is one member, all of whose clients see the same keys; `several.rs` is a cluster, whose
//! members may find each other by a registry of discovery tokens, with two tenants. `parts.rs` is what both need.

mod parts;
mod run;
mod several;
mod single;

pub use run::run;
