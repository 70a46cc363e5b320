//! The configuration file: `--config-file`, YAML or JSON with etcd's keys.
//!
//! A key is the name of a flag, apart from the paths in [`PATHS`]; a new flag needs no line here unless its key differs.
//! Values have JSON's types as in etcd: a duration is a whole number of nanoseconds. `yaml.rs` reads the text. A file
//! replaces arguments and variables as a whole. The gateway has none in etcd: in its file ([`Notation::Flags`]) every key is the
//! name of a flag, and a value may be written as on the command line, too.

pub(super) mod yaml;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use yaml::{Node, Value};

use super::error::ConfigError;
use super::flag_type::FlagType;

/// The flag that names the file.
const CONFIG_FILE: &str = "config-file";
/// Longest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most values in it.
const NODES_MAX: usize = 10_000;

/// Paths of the file that are not the name of a flag: path, flag.
const PATHS: &[(&str, &str)] = &[
    ("client-transport-security.cert-file", "cert-file"),
    ("client-transport-security.key-file", "key-file"),
    ("client-transport-security.client-cert-file", "client-cert-file"),
    ("client-transport-security.client-key-file", "client-key-file"),
    ("client-transport-security.client-cert-auth", "client-cert-auth"),
    ("client-transport-security.trusted-ca-file", "trusted-ca-file"),
    ("client-transport-security.auto-tls", "auto-tls"),
    ("client-transport-security.allowed-cn", "client-cert-allowed-cn"),
    ("client-transport-security.allowed-hostname", "client-cert-allowed-hostname"),
    ("peer-transport-security.cert-file", "peer-cert-file"),
    ("peer-transport-security.key-file", "peer-key-file"),
    ("peer-transport-security.client-cert-file", "peer-client-cert-file"),
    ("peer-transport-security.client-key-file", "peer-client-key-file"),
    ("peer-transport-security.client-cert-auth", "peer-client-cert-auth"),
    ("peer-transport-security.trusted-ca-file", "peer-trusted-ca-file"),
    ("peer-transport-security.auto-tls", "peer-auto-tls"),
    ("peer-transport-security.allowed-cn", "peer-cert-allowed-cn"),
    ("peer-transport-security.allowed-hostname", "peer-cert-allowed-hostname"),
    ("peer-transport-security.skip-client-san-verification", "peer-skip-client-san-verification"),
    ("socket-options.reuse-port", "socket-reuse-port"),
    ("socket-options.reuse-address", "socket-reuse-address"),
    ("discovery-config.token", "discovery-token"),
    ("discovery-config.client.endpoints", "discovery-endpoints"),
    ("discovery-config.client.dial-timeout", "discovery-dial-timeout"),
    ("discovery-config.client.request-timeout", "discovery-request-timeout"),
    ("discovery-config.client.keepalive-time", "discovery-keepalive-time"),
    ("discovery-config.client.keepalive-timeout", "discovery-keepalive-timeout"),
    ("discovery-config.client.secure.insecure-transport", "discovery-insecure-transport"),
    ("discovery-config.client.secure.insecure-skip-tls-verify", "discovery-insecure-skip-tls-verify"),
    ("discovery-config.client.secure.cert", "discovery-cert"),
    ("discovery-config.client.secure.key", "discovery-key"),
    ("discovery-config.client.secure.cacert", "discovery-cacert"),
    ("discovery-config.client.auth.username", "discovery-user"),
    ("discovery-config.client.auth.password", "discovery-password"),
];

/// Flags that etcd does not read from a file, under any key.
const NOT_IN_FILES: &[&str] = &[
    "config-file",
    "client-crl-file",
    "peer-crl-file",
    "raft-read-timeout",
    "raft-write-timeout",
    "cluster-active-size",
    "cluster-remove-delay",
    "cluster-sync-interval",
    "config",
    "force",
    "max-result-buffer",
    "max-retry-attempts",
    "peer-heartbeat-interval",
    "peer-election-timeout",
    "retry-interval",
    "snapshot",
    "v",
    "version",
    "vv",
];

/// Keys whose empty text leaves the default, as etcd has it.
const EMPTY_IS_DEFAULT: &[&str] = &[
    "listen-peer-urls",
    "listen-client-urls",
    "listen-client-http-urls",
    "listen-metrics-urls",
    "initial-advertise-peer-urls",
    "advertise-client-urls",
    "cors",
    "host-whitelist",
    "data-dir",
    "wal-dir",
    "initial-cluster-state",
];

/// Keys whose zero leaves the default, as etcd has it; their flags refuse it.
const ZERO_IS_DEFAULT: &[&str] = &["self-signed-cert-validity"];

/// Keys that hold a list of texts; their flags take a comma list.
const LISTS: &[&str] = &[
    "cipher-suites",
    "log-outputs",
    "client-cert-allowed-cn",
    "client-cert-allowed-hostname",
    "peer-cert-allowed-cn",
    "peer-cert-allowed-hostname",
    "discovery-endpoints",
];

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notation {
    /// As that of an etcd member.
    Etcd,
    /// Every key is the name of a flag; durations and lists may be written as their flags take them.
    Flags,
}

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FileValues {
    /// By flag, in the notation of the flag.
    pub values: BTreeMap<String, String>,
    /// Line of each.
    pub lines: BTreeMap<String, usize>,
    /// Keys that mean nothing, with their lines.
    pub unknown: Vec<(String, usize)>,
}

/// Reads a file for a command that has these flags.
///
/// # Errors
/// A file that cannot be read, is no YAML, or holds a value of the wrong type.
pub(super) fn read(path: &Path, flags: &Flags<'_>) -> Result<FileValues, ConfigError> {
    let failed = |reason: String| ConfigError::File { path: path.into(), reason };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| failed("yaml: invalid UTF-8".to_owned()))?;
    values(&text, flags).map_err(failed)
}

fn values(text: &str, flags: &Flags<'_>) -> Result<FileValues, String> {
    let root = yaml::parse(text.strip_prefix('\u{feff}').unwrap_or(text), NODES_MAX)?;
    let mut found = FileValues::default();
    match root.value {
        Value::Null => {}
        Value::Map(pairs) => section("", pairs, flags, &mut found)?,
        other => return Err(format!("line {}: cannot unmarshal {} into a configuration", root.line, other.kind())),
    }
    Ok(found)
}

/// Reads a mapping whose keys lie below `prefix`, which is empty or ends with a dot.
fn section(prefix: &str, pairs: Vec<(Node, Node)>, flags: &Flags<'_>, found: &mut FileValues) -> Result<(), String> {
    for (key, node) in pairs {
        let line = key.line;
        let Value::Text(name) = key.value else {
            return Err(format!("line {line}: cannot unmarshal {} into a key", key.value.kind()));
        };
        if name == "<<" {
            return Err(format!("line {line}: merge keys (<<) are not supported"));
        }
        // As in etcd, the case of a key does not matter.
        let path = format!("{prefix}{}", name.to_ascii_lowercase());
        let below = format!("{path}.");
        if flags.notation == Notation::Etcd && PATHS.iter().any(|(known, _)| known.starts_with(&below)) {
            match node.value {
                Value::Map(inner) => section(&below, inner, flags, found)?,
                Value::Null if path != "peer-transport-security" => {}
                Value::Null => return Err(format!("line {line}: invalid {path}")),
                other => return Err(format!("line {line}: cannot unmarshal {} into field {path}", other.kind())),
            }
            continue;
        }
        let Some((flag, kind)) = flags.of_path(&path) else {
            found.unknown.push((format!("{prefix}{name}"), line));
            continue;
        };
        let value = flags.text(flag, kind, &node.value).map_err(|expected| {
            format!("line {}: cannot unmarshal {} into field {path} of type {expected}", node.line, node.value.kind())
        })?;
        let is_default = |value: &str| {
            value.is_empty() && EMPTY_IS_DEFAULT.contains(&flag) || value == "0" && ZERO_IS_DEFAULT.contains(&flag)
        };
        // The last of a repeated key wins; null changes nothing.
        if let Some(value) = value.filter(|value| !is_default(value)) {
            found.lines.insert(flag.to_owned(), line);
            found.values.insert(flag.to_owned(), value);
        }
    }
    Ok(())
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Text(text) => Some(text.clone()),
        _ => None,
    }
}

/// The flags that a file may have values of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flags<'a> {
    pub known: &'a BTreeMap<String, FlagType>,
    pub notation: Notation,
}

impl Flags<'_> {
    /// The flag that a path of keys stands for.
    fn of_path<'p>(&self, path: &'p str) -> Option<(&'p str, FlagType)> {
        let nested = |flag: &str| PATHS.iter().any(|(_, known)| *known == flag);
        let flag = match (self.notation, PATHS.iter().find(|(known, _)| *known == path)) {
            (Notation::Flags, _) if path == CONFIG_FILE => return None,
            (Notation::Flags, _) => path,
            (Notation::Etcd, Some((_, flag))) => *flag,
            (Notation::Etcd, None) if nested(path) || NOT_IN_FILES.contains(&path) => return None,
            (Notation::Etcd, None) => path,
        };
        Some((flag, *self.known.get(flag)?))
    }

    /// A value in the notation of its flag, nothing for null; the error names the type that the flag has.
    fn text(&self, flag: &str, kind: FlagType, value: &Value) -> Result<Option<String>, &'static str> {
        if *value == Value::Null {
            return Ok(None);
        }
        let is_list = match (self.notation, value) {
            (Notation::Etcd, _) => LISTS.contains(&flag),
            (Notation::Flags, value) => kind == FlagType::Text && matches!(value, Value::List(_)),
        };
        if is_list {
            let Value::List(items) = value else { return Err("[]string") };
            let items: Option<Vec<String>> = items.iter().map(|item| text(&item.value)).collect();
            let joined = items.ok_or("[]string")?.join(",");
            return Ok(Some(joined).filter(|joined| !joined.is_empty()));
        }
        match (kind, value) {
            (FlagType::Bool, Value::Bool(value)) => Ok(Some(value.to_string())),
            (FlagType::Bool, _) => Err("bool"),
            (FlagType::Integer(_), Value::Int(number)) => Ok(Some(number.to_string())),
            (FlagType::Integer(_), _) => Err("int"),
            (FlagType::Duration, Value::Text(text)) if self.notation == Notation::Flags => Ok(Some(text.clone())),
            (FlagType::Duration, Value::Int(nanoseconds)) => Ok(Some(format!("{nanoseconds}ns"))),
            (FlagType::Duration, _) if self.notation == Notation::Flags => Err("time.Duration (as 1m30s)"),
            (FlagType::Duration, _) => Err("time.Duration (a whole number of nanoseconds)"),
            (FlagType::Text, value) => text(value).map(Some).ok_or("string"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::flag_type::Sign;
    use super::*;

    fn check(file: &str, expected: &str) {
        check_in(Notation::Etcd, file, expected);
    }

    fn check_in(notation: Notation, file: &str, expected: &str) {
        let flags = [
            ("name", FlagType::Text),
            ("cert-file", FlagType::Text),
            ("client-crl-file", FlagType::Text),
            ("peer-auto-tls", FlagType::Bool),
            ("client-cert-allowed-cn", FlagType::Text),
            ("peer-cert-allowed-cn", FlagType::Text),
            ("socket-reuse-port", FlagType::Bool),
            ("discovery-user", FlagType::Text),
            ("heartbeat-interval", FlagType::Integer(Sign::Unsigned)),
            ("self-signed-cert-validity", FlagType::Integer(Sign::Unsigned)),
            ("grpc-keepalive-min-time", FlagType::Duration),
            ("log-outputs", FlagType::Text),
            ("cors", FlagType::Text),
        ];
        let known = flags.into_iter().map(|(name, kind)| (name.to_owned(), kind)).collect();
        let seen = match values(file, &Flags { known: &known, notation }) {
            Err(error) => error,
            Ok(found) => {
                let values = found.values.iter().map(|(flag, value)| format!("{flag}={value}@{}", found.lines[flag]));
                let unknown = found.unknown.iter().map(|(key, line)| format!("?{key}@{line}"));
                values.chain(unknown).collect::<Vec<_>>().join(" ")
            }
        };
        assert_eq!(seen, expected, "{file}");
    }

    #[test]
    fn keys_are_flags_or_paths() {
        check("name: x\nheartbeat-interval: 100", "heartbeat-interval=100@2 name=x@1");
        check("NAME: x\nname: z", "name=z@2");
        check(
            "client-transport-security:\n  allowed-cn: [c]\npeer-transport-security:\n  auto-tls: true\n  allowed-cn: [a, b]",
            "client-cert-allowed-cn=c@2 peer-auto-tls=true@4 peer-cert-allowed-cn=a,b@5",
        );
        check("socket-options: {reuse-port: true}", "socket-reuse-port=true@1");
        check("discovery-config:\n  client:\n    auth:\n      username: u", "discovery-user=u@4");
        check("grpc-keepalive-min-time: 5000000000", "grpc-keepalive-min-time=5000000000ns@1");
        check("log-outputs: [stderr, /tmp/x]", "log-outputs=stderr,/tmp/x@1");
        check("name:\ncors: ''\nlog-outputs: []\n", "");
        check("self-signed-cert-validity: 0\nheartbeat-interval: 0", "heartbeat-interval=0@2");
        check("", "");
    }

    #[test]
    fn in_the_file_of_a_gateway_keys_and_values_are_those_of_flags() {
        let check = |file: &str, expected: &str| check_in(Notation::Flags, file, expected);
        check("cert-file: x\ndiscovery-user: u", "cert-file=x@1 discovery-user=u@2");
        check("grpc-keepalive-min-time: 5s\ncors: [a, b]", "cors=a,b@2 grpc-keepalive-min-time=5s@1");
        check("grpc-keepalive-min-time: 5\nlog-outputs: stderr", "grpc-keepalive-min-time=5ns@1 log-outputs=stderr@2");
        check("socket-options: {reuse-port: true}\nconfig-file: x", "?socket-options@1 ?config-file@2");
        check("cors: [1]", "line 1: cannot unmarshal array into field cors of type []string");
        check(
            "grpc-keepalive-min-time: [1]",
            "line 1: cannot unmarshal array into field grpc-keepalive-min-time of type time.Duration (as 1m30s)",
        );
    }

    #[test]
    fn what_means_nothing_is_told_with_its_line() {
        check("bogus: 1\ncert-file: x\nclient-crl-file: y", "?bogus@1 ?cert-file@2 ?client-crl-file@3");
        check("client-transport-security:\n  odd: 1\n", "?client-transport-security.odd@2");
    }

    #[test]
    fn a_value_of_the_wrong_type_is_refused_with_its_line() {
        let wrong =
            |line, kind, field, of| format!("line {line}: cannot unmarshal {kind} into field {field} of type {of}");
        let duration = "time.Duration (a whole number of nanoseconds)";
        check("name: x\ngrpc-keepalive-min-time: 5s", &wrong(2, "string", "grpc-keepalive-min-time", duration));
        check("heartbeat-interval: '1'", &wrong(1, "string", "heartbeat-interval", "int"));
        check("heartbeat-interval: 1.5", &wrong(1, "number 1.5", "heartbeat-interval", "int"));
        check("name: 5", &wrong(1, "number 5", "name", "string"));
        check("name: n", &wrong(1, "bool", "name", "string"));
        check("name: [a]", &wrong(1, "array", "name", "string"));
        check("log-outputs: stderr", &wrong(1, "string", "log-outputs", "[]string"));
        check("socket-options:\n  reuse-port: 1", &wrong(2, "number 1", "socket-options.reuse-port", "bool"));
        check("peer-transport-security:", "line 1: invalid peer-transport-security");
        check("client-transport-security: 5", "line 1: cannot unmarshal number 5 into field client-transport-security");
        check("- a", "line 1: cannot unmarshal array into a configuration");
        check("<<: {name: x}", "line 1: merge keys (<<) are not supported");
    }
}
