use std::ffi::OsString;
use std::io::Write;

use super::args::{self, Action, Bench, Refusal};
use super::measure::measure;
use super::wire::CallError;
use super::{compare, fleet, suite};

/// Runs one command line, whose first word is the program's name, and returns the exit code: 0 when everything asked
/// for happened, 1 after any error or lost event.
pub fn run(words: Vec<OsString>) -> u8 {
    let load = match args::read(words) {
        Ok(Bench { action: Action::Load(load) }) => load,
        Ok(Bench { action: Action::Compare(args) }) => return finish(compare::run(&args)),
        Ok(Bench { action: Action::Suite(args) }) => return finish(suite::run(&args)),
        Ok(Bench { action: Action::Fleet(args) }) => return finish(fleet::run(&args)),
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

/// The text of a run, and whether all of it went well.
fn finish(outcome: Result<(String, bool), CallError>) -> u8 {
    match outcome {
        Ok((text, clean)) => print(&text, u8::from(!clean)),
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
