//! Answers in the five output formats.
//!
//! [`Printer`] holds the choice of the operator and has one method per kind of answer (`text.rs`, `auth.rs`); each format is a file of
//! functions that build text. Nothing here talks to a cluster, so every line that etcdctl prints is held by a test.

mod auth;
mod fields;
mod json;
mod printer;
mod proto;
mod rows;
mod simple;
mod table;
mod text;

#[cfg(test)]
mod tests;

pub(super) use printer::{Format, Printer};
pub(super) use rows::{EndpointHash, EndpointHealth, EndpointStatus};
pub(super) use table::draw as draw_table;
