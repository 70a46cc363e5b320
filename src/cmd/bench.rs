//! `watershed bench`: the load generator.

use std::ffi::OsString;

/// Runs one load and returns the exit code. `args` are the words after `bench`.
pub fn run(args: &[OsString]) -> u8 {
    crate::bench::run(std::iter::once("watershed bench".into()).chain(args.iter().cloned()).collect())
}
