//! `watershed utl`: the offline tool, also under the name `etcdutl`.

use std::ffi::OsString;
use std::io::Write;

use crate::telemetry::{LogConfig, LogFormat, init_logging};

/// Runs one command line and returns its exit code. `args` are the words after the program's name.
pub fn run(program: &str, args: &[OsString]) -> u8 {
    // Progress goes to standard error, as with etcdutl.
    if let Err(error) = init_logging(&LogConfig { format: LogFormat::Console, ..LogConfig::default() }) {
        eprintln!("Error: {error}");
        return 1;
    }
    match crate::utl::run(program, args) {
        Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("Error: {error}");
                6
            }
        },
        Err(refusal) => {
            eprintln!("Error: {}", refusal.text);
            if let Some(usage) = refusal.usage {
                eprintln!("{usage}");
            }
            refusal.code
        }
    }
}
