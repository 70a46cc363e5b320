use clap::{Arg, Command};

use super::super::flags::Parsed;

/// What happens to a flag that no room looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It tunes the inside of etcd's engine, or did so once.
    Ignored,
    /// Its feature does not exist yet: any value but the default is refused.
    NotSupported,
}

use Fate::{Ignored, NotSupported};

const BOOL: Option<bool> = Some(false);
const BOOL_ON: Option<bool> = Some(true);

/// Name, default, and whether it is a boolean.
const OTHERS: &[(&str, &str, Option<bool>, Fate)] = &[
    // The engine's own.
    ("max-wals", "5", None, Ignored),
    ("max-snapshots", "5", None, Ignored),
    ("initial-election-tick-advance", "true", BOOL_ON, Ignored),
    ("backend-bbolt-freelist-type", "", None, Ignored),
    ("backend-batch-interval", "0s", None, Ignored),
    ("backend-batch-limit", "0", None, Ignored),
    ("raft-read-timeout", "5s", None, Ignored),
    ("raft-write-timeout", "5s", None, Ignored),
    ("memory-mlock", "false", BOOL, Ignored),
    ("bootstrap-defrag-threshold-megabytes", "0", None, Ignored),
    ("downgrade-check-time", "5s", None, Ignored),
    ("v2-deprecation", "write-only", None, Ignored),
    ("logger", "zap", None, Ignored),
    // Discovery settings that mean nothing without --discovery-token.
    ("discovery-dial-timeout", "2s", None, Ignored),
    ("discovery-request-timeout", "5s", None, Ignored),
    ("discovery-keepalive-time", "2s", None, Ignored),
    ("discovery-keepalive-timeout", "6s", None, Ignored),
    ("discovery-insecure-transport", "true", BOOL_ON, Ignored),
    ("discovery-insecure-skip-tls-verify", "false", BOOL, Ignored),
    ("discovery-cert", "", None, Ignored),
    ("discovery-key", "", None, Ignored),
    ("discovery-cacert", "", None, Ignored),
    ("discovery-user", "", None, Ignored),
    ("discovery-password", "", None, Ignored),
    ("discovery-fallback", "exit", None, Ignored),
    // Details of --enable-distributed-tracing.
    ("distributed-tracing-address", "localhost:4317", None, Ignored),
    ("distributed-tracing-service-name", "etcd", None, Ignored),
    ("distributed-tracing-instance-id", "", None, Ignored),
    ("distributed-tracing-sampling-rate", "0", None, Ignored),
    // Details of --enable-log-rotation.
    ("log-rotation-config-json", "", None, Ignored),
    // Words that etcd itself only remembers.
    ("cluster-active-size", "", None, Ignored),
    ("cluster-remove-delay", "", None, Ignored),
    ("cluster-sync-interval", "", None, Ignored),
    ("config", "", None, Ignored),
    ("force", "false", BOOL, Ignored),
    ("max-result-buffer", "", None, Ignored),
    ("max-retry-attempts", "", None, Ignored),
    ("peer-heartbeat-interval", "", None, Ignored),
    ("peer-election-timeout", "", None, Ignored),
    ("retry-interval", "", None, Ignored),
    ("snapshot", "false", BOOL, Ignored),
    ("v", "false", BOOL, Ignored),
    ("vv", "false", BOOL, Ignored),
    // Not built yet.
    ("config-file", "", None, NotSupported),
    ("listen-client-http-urls", "", None, NotSupported),
    ("socket-reuse-port", "false", BOOL, NotSupported),
    ("socket-reuse-address", "false", BOOL, NotSupported),
    ("discovery-token", "", None, NotSupported),
    ("discovery-endpoints", "", None, NotSupported),
    ("discovery-srv", "", None, NotSupported),
    ("discovery-srv-name", "", None, NotSupported),
    ("cert-file", "", None, NotSupported),
    ("key-file", "", None, NotSupported),
    ("trusted-ca-file", "", None, NotSupported),
    ("client-cert-file", "", None, NotSupported),
    ("client-key-file", "", None, NotSupported),
    ("client-cert-auth", "false", BOOL, NotSupported),
    ("auto-tls", "false", BOOL, NotSupported),
    ("client-crl-file", "", None, NotSupported),
    ("client-cert-allowed-hostname", "", None, NotSupported),
    ("peer-auto-tls", "false", BOOL, NotSupported),
    ("peer-skip-client-san-verification", "false", BOOL, NotSupported),
    ("peer-crl-file", "", None, NotSupported),
    ("peer-cert-allowed-cn", "", None, NotSupported),
    ("peer-cert-allowed-hostname", "", None, NotSupported),
    ("self-signed-cert-validity", "1", None, NotSupported),
    ("cipher-suites", "", None, NotSupported),
    ("tls-min-version", "TLS1.2", None, NotSupported),
    ("tls-max-version", "", None, NotSupported),
    ("enable-pprof", "false", BOOL, NotSupported),
    ("enable-distributed-tracing", "false", BOOL, NotSupported),
    ("enable-log-rotation", "false", BOOL, NotSupported),
    // On in etcd; here the JSON gateway does not exist yet, so the value says nothing.
    ("enable-grpc-gateway", "true", BOOL_ON, Ignored),
];

/// Makes the flags known, so that they are read and listed.
pub(super) fn add_to(command: Command) -> Command {
    OTHERS.iter().fold(command, |command, &(name, default, boolean, fate)| {
        let arg = Arg::new(name).long(name).default_value(default);
        let arg = match fate {
            Ignored => arg.help("Accepted, no effect").help_heading("Without effect"),
            NotSupported => arg.help("Not supported yet").help_heading("Not supported yet"),
        };
        command.arg(if boolean.is_some() { arg.value_parser(clap::value_parser!(bool)) } else { arg })
    })
}

/// The first flag with a value that asks for a feature we lack.
pub(super) fn first_unsupported(parsed: &Parsed) -> Option<&'static str> {
    let differs = |name: &str, default: &str, boolean: Option<bool>| match boolean {
        Some(default) => parsed.matches.get_one::<bool>(name) != Some(&default),
        None => parsed.matches.get_one::<String>(name).is_some_and(|value| value != default),
    };
    let mut unsupported = OTHERS.iter().filter(|other| other.3 == NotSupported);
    unsupported.find(|&&(name, default, boolean, _)| differs(name, default, boolean)).map(|other| other.0)
}

/// The given flags that have no effect.
pub(super) fn ignored(parsed: &Parsed) -> impl Iterator<Item = &'static str> {
    OTHERS.iter().filter(|other| other.3 == Ignored && parsed.is_given(other.0)).map(|other| other.0)
}
