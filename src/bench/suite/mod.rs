//! `bench suite`: every figure that has a floor, for this program and for another side by side.
//!
//! `rows.rs` is the table of what is measured, with floors and aims. A row sets up its sides (`members.rs`, `proxies.rs`,
//! `gateways.rs`; `programs.rs` starts the processes, `loopback.rs` asks them), and `run.rs` measures them in turns. A load is `watershed bench` as a
//! process of its own (`load.rs`), so one run leaves nothing behind for the next. `noise.rs` says how busy the machine was with other
//! things, `judge.rs` makes ratios and verdicts of the rounds; `report.rs` prints, `html.rs` and `plot.rs` draw, `document.rs` puts the table
//! into a document.

mod document;
pub(super) mod gateways;
mod html;
mod judge;
pub(super) mod load;
pub(super) mod loopback;
pub(super) mod members;
mod noise;
mod plot;
pub(super) mod programs;
pub(super) mod proxies;
mod report;
mod rows;
pub(super) mod run;
mod side;

pub(super) use run::run;
