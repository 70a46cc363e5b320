use std::ffi::OsString;
use std::path::PathBuf;

/// Why the flags of a mode give no configuration, on one line that names the flag; [`Help`](Self::Help) and
/// [`Version`](Self::Version) are no errors.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts name the fields")]
pub enum ConfigError {
    /// The operator asked for the list of flags.
    #[error("{0}")]
    Help(String),
    /// The operator asked for the version.
    #[error("version")]
    Version,
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    #[error("{0:?} is not a valid flag")]
    Stray(String),
    #[error("flag needs an argument: -{0}")]
    MissingValue(String),
    #[error("invalid value {value:?} for flag -{flag}: {reason}")]
    Invalid { flag: String, value: String, reason: String },
    #[error("invalid boolean value {value:?} for -{flag}: parse error")]
    InvalidBool { flag: String, value: String },
    #[error("invalid value {value:?} for {variable}: {reason}")]
    InvalidVariable { variable: String, value: String, reason: String },
    /// The configuration file, or what it says.
    #[error("{}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    /// Flag and variable at once: etcd refuses to choose.
    #[error(
        "conflicting environment variable {variable:?} is shadowed by corresponding command-line flag \
         (either unset environment variable or disable flag): --{flag}"
    )]
    Shadowed { variable: String, flag: String },
    #[error("not valid UTF-8: {0:?}")]
    NotUtf8(OsString),
    /// Anything else that the parser of flags finds.
    #[error("{0}")]
    Other(String),
    /// The value requires a feature that does not exist yet.
    #[error("--{0} is not supported yet")]
    NotSupported(&'static str),
    #[error("--{flag}: {source}")]
    Url { flag: &'static str, source: UrlError },
    /// A value of the right form that cannot work; `flag` may name several.
    #[error("--{flag}: {reason}")]
    Value { flag: &'static str, reason: String },

    #[error("enabling feature gate {gate} requires enabling feature gate {needed}")]
    GateNeeded { gate: &'static str, needed: &'static str },
    /// The default would advertise an address that this member does not listen on.
    #[error("--advertise-client-urls is required when --listen-client-urls is set explicitly")]
    AdvertiseMissing,
    #[error("--{0} must be >0 (set to 0ms)")]
    ZeroTimer(&'static str),
    /// Both in milliseconds.
    #[error("--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat}ms]")]
    TimerRatio { election: u64, heartbeat: u64 },
    #[error("--election-timeout[{0}ms] is too long, and should be set less than 50000ms")]
    ElectionTooLong(u64),
    #[error("initial cluster unset and no discovery endpoints found (--initial-cluster)")]
    NoCluster,
    #[error("--initial-cluster: initial cluster {0} has duplicate url")]
    DuplicateUrl(String),
    #[error("couldn't find local name {0:?} in the initial cluster configuration (--name, --initial-cluster)")]
    NotInCluster(String),
    /// An own URL in `--initial-cluster` only.
    #[error("--initial-cluster has {entry} but missing from --initial-advertise-peer-urls={advertised} ({reason})")]
    NotAdvertised { entry: String, advertised: String, reason: String },
    /// An own URL in `--initial-advertise-peer-urls` only.
    #[error("--initial-advertise-peer-urls has {url} but missing from --initial-cluster={cluster}")]
    NotListed { url: String, cluster: String },
    /// Own URLs that are the same as text, yet cannot be compared.
    #[error("failed to resolve {advertised} to match --initial-cluster={cluster} ({reason})")]
    NotResolved { advertised: String, cluster: String, reason: String },
}

impl ConfigError {
    /// The exit code of etcd for this error: 2 for what its flag parser refuses (an unknown flag, a value of the wrong
    /// form), 1 for what it finds later.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unknown(_) | Self::MissingValue(_) | Self::Invalid { .. } | Self::InvalidBool { .. } => 2,
            _ => 1,
        }
    }
}

/// Why a URL is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts name the fields")]
pub enum UrlError {
    #[error("URL scheme must be http, https, unix, or unixs: {0}")]
    Scheme(String),
    #[error("URL must contain the path of a socket: {0}")]
    NoPath(String),
    #[error(r#"URL address does not have the form "host:port": {0}"#)]
    HostPort(String),
    #[error("URL must not contain a path: {0}")]
    Path(String),
    /// A host name where only an address can be bound.
    #[error("expected IP in URL for binding ({0})")]
    NotAnAddress(String),
    #[error("no URL given")]
    Empty,
    /// More than the header of a peer connection holds.
    #[error("list of URLs is too long: {bytes} bytes")]
    TooLong { bytes: usize },
}
