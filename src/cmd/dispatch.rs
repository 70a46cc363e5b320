use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::process::{answer, refuse};
use super::usage::version;
use crate::config::{ConfigError, Variables, parse_server_config};
use crate::ctl::Program;

const HELP: &str = "\
Watershed, a coordination store with the etcd v3 API and its access tier

Usage:
  watershed [flags]                  run a server; its flags are etcd's and follow below
  watershed gateway start [flags]    run the TCP gateway
  watershed grpc-proxy start [flags] run the gRPC proxy
  watershed discovery serve [flags]  run a registry of discovery tokens for clusters that are about to start
  watershed dev [flags]              run server, gateway and proxy on loopback, to try things out
  watershed ctl <command>            talk to a cluster, as etcdctl does
  watershed utl <command>            work on snapshots and on files of a stopped member, as etcdutl does
  watershed bench <command>          put load on a cluster and measure
  watershed version                  show the version

Every mode explains its flags with --help.
";

/// Runs the program and returns its exit code. `args` starts with the program's name: under a name of etcd's, as
/// through a link, it behaves as that program.
pub fn run(args: Vec<OsString>) -> u8 {
    let name = args.first().and_then(|path| Path::new(path).file_name()).and_then(OsStr::to_str);
    let args = args.get(1..).unwrap_or_default();
    match name {
        Some("etcd") => run_as_etcd(args),
        Some("etcdctl") => super::ctl::run(Program::Etcdctl, args),
        Some("etcdutl") => super::utl::run("etcdutl", args),
        _ => run_as_watershed(args),
    }
}

/// The server, unless the first word names one of etcd's two proxies.
fn run_as_etcd(args: &[OsString]) -> u8 {
    match args.first().and_then(|arg| arg.to_str()) {
        Some("gateway" | "grpc-proxy") => run_as_watershed(args),
        _ => super::server::run(args),
    }
}

fn run_as_watershed(args: &[OsString]) -> u8 {
    let word = |at: usize| args.get(at).and_then(|arg| arg.to_str());
    match (word(0), word(1)) {
        (Some("version" | "--version" | "-version"), _) => version(),
        (Some("help" | "--help" | "-help" | "-h" | "--h"), _) => help(),
        (Some("gateway"), Some(_)) if starts(args) => super::gateway::run(&without_start(args)),
        (Some("grpc-proxy"), Some(_)) if starts(args) => super::grpc_proxy::run(&without_start(args)),
        (Some(mode @ ("gateway" | "grpc-proxy")), None | Some("--help" | "-h")) => {
            answer(&format!("Usage:\n  watershed {mode} start [flags]    (--help lists them)\n"))
        }
        (Some(mode @ ("gateway" | "grpc-proxy")), Some(other)) => {
            refuse(format!("unknown command {other:?} for \"watershed {mode}\", there is only start"))
        }
        (Some("discovery"), Some("serve")) => super::discovery::run(&args[2..]),
        (Some("discovery"), None | Some("--help" | "-h")) => {
            answer("Usage:\n  watershed discovery serve [flags]    (--help lists them)\n")
        }
        (Some("discovery"), Some(other)) => {
            refuse(format!("unknown command {other:?} for \"watershed discovery\", there is only serve"))
        }
        (Some("dev"), _) => super::dev::run(&args[1..]),
        (Some("utl"), _) => super::utl::run("watershed utl", &args[1..]),
        (Some("ctl"), _) => super::ctl::run(Program::Ctl, &args[1..]),
        (Some("bench"), Some("tcp-pingpong" | "tcp-bulk" | "tcp-connect" | "tcp-idle")) => {
            crate::bench::tcp::run(&args[1..])
        }
        (Some("bench"), _) => super::bench::run(&args[1..]),
        (Some(word), _) if !word.starts_with('-') => refuse(format!("unknown command {word:?}, see watershed --help")),
        _ => super::server::run(args),
    }
}

/// Whether the word after the mode, or after flags of the mode, is `start`: etcd takes both orders.
fn starts(args: &[OsString]) -> bool {
    let first_is_flag = args[1].as_encoded_bytes().starts_with(b"-");
    args[1] == "start" || first_is_flag && args.iter().any(|arg| arg == "start")
}

/// The flags, without the mode and its first `start`.
fn without_start(args: &[OsString]) -> Vec<OsString> {
    let at = args.iter().position(|arg| arg == "start").unwrap_or_default();
    args.iter().enumerate().filter(|(place, _)| *place != 0 && *place != at).map(|(_, arg)| arg.clone()).collect()
}

/// The modes, then the server's flags.
fn help() -> u8 {
    match parse_server_config(&["--help".into()], &Variables::none()) {
        Err(ConfigError::Help(flags)) => answer(&format!("{HELP}\n{flags}")),
        _ => answer(HELP),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit_code(line: &str) -> u8 {
        run(std::iter::once("watershed").chain(line.split_whitespace()).map(OsString::from).collect())
    }

    #[test]
    fn words_that_are_no_mode_are_refused() {
        assert_eq!(exit_code("--version"), 0);
        assert_eq!(exit_code("--help"), 0);
        assert_eq!(exit_code("sever"), 1);
        assert_eq!(exit_code("gateway stop"), 1);
        assert_eq!(exit_code("gateway"), 0);
        assert_eq!(exit_code("discovery"), 0);
        assert_eq!(exit_code("discovery server"), 1);
        assert_eq!(exit_code("discovery serve --token-ttl=x"), 1);
        // Flags may stand before the word.
        assert_eq!(exit_code("gateway --endpoints=127.0.0.1:1 start --help"), 0);
        assert_eq!(exit_code("grpc-proxy --endpoints 127.0.0.1:1 start --help"), 0);
        assert_eq!(exit_code("gateway --endpoints=::bad:: start"), 1);
    }

    #[test]
    fn a_name_of_etcds_chooses_the_program() {
        let exit_code = |line: &str| run(line.split_whitespace().map(OsString::from).collect());
        assert_eq!(exit_code("/usr/local/bin/etcdctl version"), 0);
        assert_eq!(exit_code("etcdctl ctl version"), 1);
        assert_eq!(exit_code("/x/etcdutl version"), 0);
        assert_eq!(exit_code("etcdutl get k"), 1);
        assert_eq!(exit_code("/x/etcd --version"), 0);
        assert_eq!(exit_code("/x/etcd gateway"), 0);
        // Not a mode of etcd.
        assert_eq!(exit_code("/x/etcd version"), 1);
        assert_eq!(exit_code("/x/etcd --no-such-flag"), 2);
    }
}
