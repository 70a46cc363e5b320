//! The checkers reject what they must, and accept what they must.

#[allow(unused_imports, reason = "other test programs use the rest")]
#[path = "mod.rs"]
mod checkers;

mod generated;
mod planted;
