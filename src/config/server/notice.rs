use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use super::super::flags::Parsed;
use super::super::removed::successor;
use super::super::unsupported::{Mode, ignored_flags};

/// The shortest interval between progress notifications.
pub(super) const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Variables with etcd's prefix that are no flags and no mistakes.
const NO_FLAGS: &[&str] = &["ETCD_UNSUPPORTED_ARCH"];

/// Something about the flags that does not stop the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The configuration comes from this file (info).
    ConfigFile(PathBuf),
    /// The file has a key that means nothing (warn).
    UnknownKey {
        /// As it was written, with the sections around it.
        key: String,
        /// Where.
        line: usize,
        /// What does the same today.
        successor: Option<&'static str>,
    },
    /// The variable stands in for its flag (info).
    UsedVariable(String),
    /// The flag has no effect here (info).
    Ignored(&'static str),
    /// The flag is deprecated in etcd (warn).
    Deprecated(&'static str),
    /// The variable names no flag (warn).
    UnknownVariable(String),
    /// Larger than recommended (warn).
    LargeRequests(u64),
    /// bcrypt has no such cost (warn).
    BcryptCost(u64),
    /// Something the operator should know (warn).
    Warning(&'static str),
    /// A URL without TLS where certificates are given (warn).
    PlainUrl {
        /// What is said of it.
        text: &'static str,
        /// The URL.
        url: String,
    },
    /// The interval between progress notifications was raised to the shortest one (warn).
    ShortProgressInterval(Duration),
    /// Names of rotated files have no local time (warn).
    RotationInUtc,
    /// Where connections to other members come from (info); no own peer URL gives an address for it (warn).
    PeerLocalAddress(Option<IpAddr>),
    /// The address that is advertised in place of `localhost` (info).
    DefaultHost(Ipv4Addr),
}

impl Notice {
    /// Writes the log line.
    pub fn log(&self) {
        match self {
            Self::PeerLocalAddress(Some(address)) => {
                tracing::info!(LocalAddr = %address, "setting member local address")
            }
            Self::PeerLocalAddress(None) => {
                tracing::warn!("unable to set a member local address due to lack of suitable local addresses")
            }
            Self::DefaultHost(host) => tracing::info!(%host, "detected default host for advertise"),
            Self::ConfigFile(path) => tracing::info!(
                path = %path.display(),
                "loaded server configuration, other configuration command line flags and environment variables will be \
                 ignored if provided"
            ),
            Self::UnknownKey { key, line, successor } => {
                tracing::warn!(key, line, successor, "unrecognized key in the configuration file");
            }
            Self::UsedVariable(variable) => {
                tracing::info!("variable-name" = variable, "recognized and used environment variable");
            }
            Self::Ignored(flag) => tracing::info!(flag, "flag has no effect"),
            Self::Deprecated(text) => tracing::warn!("{text}"),
            Self::UnknownVariable(variable) if variable == "ETCD_VERSION" => {
                tracing::warn!(key = variable, "cannot set special environment variable");
            }
            // The value may be a secret.
            Self::UnknownVariable(variable) => tracing::warn!(
                "environment-variable" = variable,
                successor = successor(&flag_name(variable)),
                "unrecognized environment variable"
            ),
            Self::LargeRequests(bytes) => {
                tracing::warn!(max_request_bytes = bytes, "exceeded recommended request limit of 10 MiB");
            }
            Self::BcryptCost(given) => {
                tracing::warn!(given, "use default bcrypt cost instead of the invalid given cost");
            }
            Self::Warning(text) => tracing::warn!("{text}"),
            Self::PlainUrl { text, url } => tracing::warn!(url, "{text}"),
            Self::ShortProgressInterval(asked) => tracing::warn!(
                ?asked,
                minimum = ?PROGRESS_INTERVAL_MIN,
                "adjusting watch progress notify interval to minimum period"
            ),
            Self::RotationInUtc => tracing::warn!("localtime has no effect: names of rotated log files are in UTC"),
        }
    }
}

/// What to say about flags, variables and keys, whatever their values are.
pub(super) fn notices(parsed: &Parsed) -> Vec<Notice> {
    let mut notices: Vec<Notice> = parsed.variables_used().map(Notice::UsedVariable).collect();
    notices.extend(ignored_flags(parsed, Mode::Server).map(Notice::Ignored));
    let deprecated = [
        ("max-snapshots", "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8."),
        (
            "v2-deprecation",
            "--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value is enforced, ignoring \
             user input.",
        ),
    ];
    let given = deprecated.into_iter().filter(|(flag, _)| parsed.is_given(flag));
    notices.extend(given.map(|(_, text)| Notice::Deprecated(text)));
    let unknown = parsed.unknown_variables.iter().filter(|name| !NO_FLAGS.contains(&name.as_str()));
    notices.extend(unknown.cloned().map(Notice::UnknownVariable));
    let keys = parsed.unknown_keys.iter();
    notices.extend(keys.map(|(key, line)| Notice::UnknownKey {
        key: key.clone(),
        line: *line,
        successor: successor(key),
    }));
    notices
}

/// The flag a variable of etcd stands for.
fn flag_name(variable: &str) -> String {
    variable.trim_start_matches("ETCD_").to_lowercase().replace('_', "-")
}
