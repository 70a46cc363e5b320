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
    /// What the parser of flags refuses, in the words of the mode.
    #[error("{}", wrong.text(*words))]
    Flag { words: FlagWords, wrong: WrongFlag },
    #[error("{0:?} is not a valid flag")]
    Stray(String),
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
    /// The exit code of etcd for this error: 2 for what the server's flag parser refuses (an unknown flag, a value of the
    /// wrong form), 1 for what it finds later and for the other modes.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Flag { words: FlagWords::Go, .. } => 2,
            _ => 1,
        }
    }
}

/// Whose texts a wrong flag gets: etcd's server reads its flags by another library than its gateway and its proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagWords {
    /// The package `flag` of Go.
    Go,
    /// The package `pflag`, which comes with cobra.
    Cobra,
}

/// A flag that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum WrongFlag {
    /// The flag's name, and the argument as it was typed.
    Unknown {
        flag: String,
        argument: String,
    },
    /// The argument as it was typed: `--=x`, `---x`.
    BadSyntax(String),
    MissingValue(String),
    Invalid {
        flag: String,
        value: String,
        reason: String,
    },
    InvalidBool {
        flag: String,
        value: String,
    },
}

impl WrongFlag {
    fn text(&self, words: FlagWords) -> String {
        use FlagWords::{Cobra, Go};
        match (self, words) {
            (Self::Unknown { flag, .. }, Go) => format!("flag provided but not defined: -{flag}"),
            // One dash is for flags of one letter.
            (Self::Unknown { flag, argument }, Cobra) if !argument.starts_with("--") => {
                let letter = flag.chars().next().unwrap_or_default();
                format!("unknown shorthand flag: {letter:?} in {argument}")
            }
            (Self::Unknown { flag, .. }, Cobra) => format!("unknown flag: --{flag}"),
            (Self::BadSyntax(argument), _) => format!("bad flag syntax: {argument}"),
            (Self::MissingValue(flag), Go) => format!("flag needs an argument: -{flag}"),
            (Self::MissingValue(flag), Cobra) => format!("flag needs an argument: --{flag}"),
            (Self::Invalid { flag, value, reason }, Go) => {
                format!("invalid value {value:?} for flag -{flag}: {reason}")
            }
            (Self::Invalid { flag, value, reason }, Cobra) => {
                format!("invalid argument {value:?} for \"--{flag}\" flag: {reason}")
            }
            (Self::InvalidBool { flag, value }, Go) => {
                format!("invalid boolean value {value:?} for -{flag}: parse error")
            }
            (Self::InvalidBool { flag, value }, Cobra) => {
                let reason = format!("strconv.ParseBool: parsing {value:?}: invalid syntax");
                format!("invalid argument {value:?} for \"--{flag}\" flag: {reason}")
            }
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
    /// A URL by which this member makes itself known, and that names no host.
    #[error("unexpected empty host ({0})")]
    NoHost(String),
    #[error("no URL given")]
    Empty,
    /// More than the header of a peer connection holds.
    #[error("list of URLs is too long: {bytes} bytes")]
    TooLong { bytes: usize },
}
