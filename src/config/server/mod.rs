//! The server's flags: etcd's names, variables, defaults and refusals.
//!
//! `raw.rs` mirrors the flags that mean something here, `others.rs` lists those that are accepted without effect or
//! refused until their feature exists, `check.rs` turns the raw config into [`ServerConfig`], `cluster.rs` knows the
//! rules of `--initial-cluster`, `parts.rs` the smaller values.

mod check;
mod cluster;
mod others;
mod parts;
mod raw;

pub use check::{Notice, ServerConfig, ServerConfigError, parse_server_config};
pub use parts::{AutoCompaction, Quota};
pub use raw::RawServerConfig;
