use super::process::answer;
use crate::config::{ConfigError, WrongFlag, removed_flag};
use crate::telemetry::{LogConfig, init_logging};
use crate::types::API_VERSION;

/// What etcd's parser prints below a flag it refuses.
const USAGE: &str = "\
Usage:

  etcd [flags]
    Start a server.

  etcd --version
    Show the version.

  etcd -h | --help
    List the flags.

  etcd --config-file
    Read the configuration from a file; other flags and variables are ignored then.

  etcd gateway
    Run the TCP gateway.

  etcd grpc-proxy
    Run the gRPC proxy.
";

/// Answers `--help` and `--version`, or reports why a server has no configuration; gives the exit code.
///
/// As in etcd, what its flag parser refuses is a line of text with the usage, and everything else a line of the log.
pub(super) fn no_server(error: &ConfigError) -> u8 {
    match error {
        ConfigError::Help(help) => return answer(help),
        ConfigError::Version => return version(),
        error if error.exit_code() == 2 => {
            eprintln!("{error}");
            if let ConfigError::Flag { wrong: WrongFlag::Unknown { flag, .. }, .. } = error
                && let Some(hint) = removed_flag(flag)
            {
                eprintln!("{hint}");
            }
            eprint!("{USAGE}");
        }
        error => {
            // The configuration that says how to log is the one that is wrong.
            let _ = init_logging(&LogConfig::default());
            tracing::warn!(%error, "failed to verify flags");
        }
    }
    error.exit_code()
}

/// etcd's four lines, so that scripts which read them go on working, and our own.
pub(super) fn version() -> u8 {
    answer(&format!(
        "etcd Version: {API_VERSION}\nGit SHA: {}\nGo Version: none\nGo OS/Arch: {}/{}\nWatershed Version: {}\n",
        option_env!("WATERSHED_GIT_SHA").unwrap_or("not recorded"),
        std::env::consts::OS,
        match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        },
        env!("CARGO_PKG_VERSION"),
    ))
}
