use std::ffi::OsString;
use std::io::Write;

use super::args::{self, Action, Bench, Load, Refusal, WatchArgs};
use super::report::{Measured, Report};
use super::requests::{Job, Mixed, Puts, Ranges, TxnPuts};
use super::setup::Setup;
use super::wire::CallError;
use super::{compare, keepalive, unary, watch};

/// Runs one command line, whose first word is the program's name, and returns the exit code: 0 when everything asked
/// for happened, 1 after any error or lost event.
pub fn run(words: Vec<OsString>) -> u8 {
    let load = match args::read(words) {
        Ok(Bench { action: Action::Load(load) }) => load,
        Ok(Bench { action: Action::Compare(args) }) => {
            return match compare::run(&args) {
                Ok((text, clean)) => print(&text, u8::from(!clean)),
                Err(error) => refuse(&error.0),
            };
        }
        Err(Refusal::Help(text)) => return print(&text, 0),
        Err(Refusal::Wrong(text)) => return refuse(&text),
    };
    let json = load.common().json;
    match measure(&load) {
        Ok(report) => {
            let text = if json { report.json() + "\n" } else { report.text() };
            print(&text, u8::from(!report.is_clean()))
        }
        Err(error) => refuse(&error.0),
    }
}

fn refuse(text: &str) -> u8 {
    eprintln!("Error: {text}");
    1
}

fn print(text: &str, code: u8) -> u8 {
    // A reader that had enough is no failure of the run.
    let _ = std::io::stdout().write_all(text.as_bytes());
    code
}

/// Runs one load.
pub(super) fn measure(load: &Load) -> Result<Report, CallError> {
    let common = load.common();
    let setup = Setup::prepare(common)?;
    let measured = measured(load, &setup)?;
    Ok(Report::new(load.name(), setup.endpoints(), (common.conns, common.clients), measured, &setup.meter))
}

fn measured(load: &Load, setup: &Setup) -> Result<Measured, CallError> {
    match load {
        Load::Put(args) => unary::run(setup, &Job::new(&args.common, Puts::new(args)?)),
        Load::Range(args) => unary::run(setup, &Job::new(&args.common, Ranges::new(args))),
        Load::TxnPut(args) => unary::run(setup, &Job::new(&args.common, TxnPuts::new(args)?)),
        Load::Mixed(args) => unary::run(setup, &Job::new(&args.common, Mixed::new(args)?)),
        Load::Watch(args) => watch::run(setup, args, fan_out(args)),
        Load::WatchLatency(args) => watch::run(setup, args, latency(args)),
        Load::LeaseKeepalive(args) => keepalive::run(setup, args),
    }
}

/// What `watch` leaves open: one watcher on each stream, puts as fast as they are answered.
fn fan_out(args: &WatchArgs) -> watch::Shape {
    watch::Shape { watchers_per_stream: args.watchers_per_stream.unwrap_or(1), put_rate: args.put_rate.unwrap_or(0.0) }
}

/// What `watch-latency` leaves open: etcd's shape.
fn latency(args: &WatchArgs) -> watch::Shape {
    watch::Shape {
        watchers_per_stream: args.watchers_per_stream.unwrap_or(10),
        put_rate: args.put_rate.unwrap_or(100.0),
    }
}
