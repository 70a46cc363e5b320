//! `watershed ctl`: the command-line client, also under the name `etcdctl`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use crate::ctl::Program;

/// Runs one command line and returns its exit code. `args` are the words after the program's name.
pub fn run(program: Program, args: &[OsString]) -> u8 {
    let words = args.iter().map(|arg| arg.as_bytes().to_vec()).collect();
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error: start runtime: {error}");
            return 1;
        }
    };
    let code = runtime.block_on(crate::ctl::run(program, words, environment));
    // A thread may still wait for a line of standard input that never comes.
    runtime.shutdown_background();
    code
}
