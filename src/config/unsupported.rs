use std::ffi::OsString;
use std::str::FromStr;

use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches, value_parser};

use super::error::{ConfigError, FlagWords};
use super::flags::{Parsed, Variables, parse_flags};
use super::golang::GoDuration;

/// A way to run the program that has flags of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of the modes")]
pub enum Mode {
    Server,
    Gateway,
    Proxy,
}

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of the kinds")]
pub enum FlagKind {
    Bool,
    Int,
    Duration,
    Text,
    /// One of these texts.
    OneOf(&'static [&'static str]),
}

/// How a flag that no code reads is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// Any value is accepted and changes nothing.
    Ignored,
    /// Its feature does not exist yet: any value but the default is refused.
    NotYet,
}

/// A flag of etcd that has no effect here.
#[derive(Clone, Copy, Debug)]
pub struct UnsupportedFlag {
    /// Without dashes.
    pub name: &'static str,
    /// What it takes.
    pub kind: FlagKind,
    /// As etcd has it, in the flag's notation.
    pub default: &'static str,
    /// What happens to it.
    pub support: Support,
    /// Why it has no effect, for the help text.
    pub why: &'static str,
}

use FlagKind::{Bool, Duration, Int, OneOf, Text};
use Mode::{Proxy, Server};
use Support::{Ignored, NotYet};

/// What etcd 3.7 takes for `--v2-deprecation`.
const V2_DEPRECATIONS: &[&str] = &["write-only", "write-only-skip-check", "write-only-drop-data", "gone"];

/// Flags that share modes, treatment and reason: name, kind, default.
struct Group {
    modes: &'static [Mode],
    support: Support,
    why: &'static str,
    flags: &'static [(&'static str, FlagKind, &'static str)],
}

const fn ignored(
    modes: &'static [Mode],
    why: &'static str,
    flags: &'static [(&'static str, FlagKind, &'static str)],
) -> Group {
    Group { modes, support: Ignored, why, flags }
}

const fn not_yet(
    modes: &'static [Mode],
    why: &'static str,
    flags: &'static [(&'static str, FlagKind, &'static str)],
) -> Group {
    Group { modes, support: NotYet, why, flags }
}

/// Every flag of etcd, of any mode, that is known here and read by nothing. A flag that is in no row has an effect:
/// `tests.rs` fails for one that has none.
const GROUPS: &[Group] = &[
    ignored(
        &[Server],
        "the log is kept as far as members and the state on disk need it, see --snapshot-count",
        &[("max-wals", Int, "5"), ("max-snapshots", Int, "5")],
    ),
    ignored(
        &[Server],
        "a setting of etcd's bbolt file; the state is checkpointed behind the log",
        &[
            ("backend-bbolt-freelist-type", Text, ""),
            ("backend-batch-interval", Duration, "0s"),
            ("backend-batch-limit", Int, "0"),
        ],
    ),
    ignored(
        &[Server],
        "peers notice a silent connection by raft's timers",
        &[("raft-read-timeout", Duration, "5s"), ("raft-write-timeout", Duration, "5s")],
    ),
    ignored(
        &[Server],
        "a member that starts waits the usual time for a leader",
        &[("initial-election-tick-advance", Bool, "true")],
    ),
    ignored(
        &[Server],
        "memory is not locked; run without swap, as etcd recommends",
        &[("memory-mlock", Bool, "false")],
    ),
    ignored(&[Server], "sockets are always bound with SO_REUSEADDR", &[("socket-reuse-address", Bool, "false")]),
    ignored(&[Server], "there is no v2 store", &[("v2-deprecation", OneOf(V2_DEPRECATIONS), "write-only")]),
    ignored(&[Server], "the state of a downgrade is not polled", &[("downgrade-check-time", Duration, "5s")]),
    ignored(
        &[Server],
        "no effect in etcd either",
        &[
            ("cluster-active-size", Text, ""),
            ("cluster-remove-delay", Text, ""),
            ("cluster-sync-interval", Text, ""),
            ("config", Text, ""),
            ("force", Bool, "false"),
            ("max-result-buffer", Text, ""),
            ("max-retry-attempts", Text, ""),
            ("peer-heartbeat-interval", Text, ""),
            ("peer-election-timeout", Text, ""),
            ("retry-interval", Text, ""),
            ("snapshot", Bool, "false"),
            ("v", Bool, "false"),
            ("vv", Bool, "false"),
        ],
    ),
    ignored(
        &[Proxy],
        "no serializable answer is older than what the client's connection was shown",
        &[("experimental-serializable-ordering", Bool, "false")],
    ),
    ignored(
        &[Proxy],
        "--cache=linearizable answers linearizable reads without leases on keys",
        &[("experimental-leasing-prefix", Text, "")],
    ),
    not_yet(&[Proxy], "", &[("experimental-enable-grpc-logging", Bool, "false")]),
];

/// The flags of this mode that have no effect.
pub fn unsupported_flags(mode: Mode) -> impl Iterator<Item = UnsupportedFlag> {
    GROUPS.iter().filter(move |group| group.modes.contains(&mode)).flat_map(|group| {
        let &Group { support, why, .. } = group;
        group.flags.iter().map(move |&(name, kind, default)| UnsupportedFlag { name, kind, default, support, why })
    })
}

impl UnsupportedFlag {
    /// Its line in a help text.
    pub fn help(&self) -> String {
        match (self.support, self.why) {
            (Ignored, why) => format!("No effect: {why}"),
            (NotYet, "") => "Not supported yet".to_owned(),
            (NotYet, why) => format!("Not supported yet: {why}"),
        }
    }

    /// Whether its value requires a feature that does not exist yet.
    fn is_refused(&self, matches: &ArgMatches) -> bool {
        fn differs<T: FromStr + PartialEq + Clone + Send + Sync + 'static>(
            matches: &ArgMatches,
            flag: &UnsupportedFlag,
        ) -> bool {
            matches.get_one::<T>(flag.name).cloned() != flag.default.parse().ok()
        }
        self.support == NotYet
            && match self.kind {
                Bool => differs::<bool>(matches, self),
                Int => differs::<i64>(matches, self),
                Duration => differs::<GoDuration>(matches, self),
                // An empty text is no value, whatever the default is.
                Text | OneOf(_) => {
                    differs::<String>(matches, self) && matches.get_one(self.name) != Some(&String::new())
                }
            }
    }
}

/// Reads the flags of a mode into its raw configuration; those without effect are known from their table.
///
/// # Errors
/// The first thing that is wrong, also a value that requires a feature that is not supported yet.
pub(super) fn read_flags<T: CommandFactory + FromArgMatches>(
    mode: Mode,
    args: &[OsString],
    variables: &Variables,
) -> Result<(T, Parsed), ConfigError> {
    let words = if mode == Mode::Server { FlagWords::Go } else { FlagWords::Cobra };
    let parsed = parse_flags(add_to(T::command(), mode), args, variables, words)?;
    check(&parsed, mode)?;
    Ok((parsed.read()?, parsed))
}

/// Makes the flags known, so that they are read and listed.
pub(super) fn add_to(command: Command, mode: Mode) -> Command {
    unsupported_flags(mode).fold(command, |command, flag| {
        let arg = Arg::new(flag.name).long(flag.name).default_value(flag.default).help(flag.help());
        let arg = match flag.support {
            Ignored => arg.help_heading("Without effect"),
            NotYet => arg.help_heading("Not supported yet"),
        };
        command.arg(match flag.kind {
            Bool => arg.value_parser(value_parser!(bool)),
            Int => arg.value_parser(value_parser!(i64)),
            Duration => arg.value_parser(GoDuration::from_str),
            Text => arg,
            OneOf(known) => arg.value_parser(move |text: &str| match known.contains(&text) {
                true => Ok(text.to_owned()),
                false => Err(format!("invalid value {text:?}")),
            }),
        })
    })
}

/// Refuses the first flag whose value requires a feature that does not exist yet.
fn check(parsed: &Parsed, mode: Mode) -> Result<(), ConfigError> {
    match unsupported_flags(mode).find(|flag| flag.is_refused(&parsed.matches)) {
        Some(flag) => Err(ConfigError::NotSupported(flag.name)),
        None => Ok(()),
    }
}

/// The given flags that have no effect.
pub(super) fn ignored_flags(parsed: &Parsed, mode: Mode) -> impl Iterator<Item = &'static str> {
    unsupported_flags(mode).filter(|flag| flag.support == Ignored && parsed.is_given(flag.name)).map(|flag| flag.name)
}
