//! Flags of every mode, variables and the configuration file: parsing ends in a configuration or in an error that has a text,
//! and a value means the same as a flag and as a variable.
#![no_main]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use watershed::config::{
    GoDuration, ServerConfig, Variables, parse_gateway_config, parse_proxy_config, parse_server_config,
};

fn told<T>(outcome: Result<T, impl std::fmt::Display>) -> Option<T> {
    outcome.inspect_err(|error| assert!(!error.to_string().is_empty())).ok()
}

/// The long names of the flags in a help text.
fn flags_of(help: Result<impl Sized, impl std::fmt::Display>) -> Vec<String> {
    let Err(help) = help else { panic!("--help gives a text") };
    let help = help.to_string();
    let flags = help.lines().filter_map(|line| line.trim_start().strip_prefix("--"));
    let name = |flag: &str| flag.chars().take_while(|it| it.is_ascii_alphanumeric() || *it == '-').collect::<String>();
    // Reading any file is no business of a fuzz target.
    let flags: Vec<_> =
        flags.map(name).filter(|flag| !matches!(flag.as_str(), "config-file" | "version" | "help")).collect();
    assert!(flags.len() > 10, "{help}");
    flags
}

fn server_flags() -> &'static [String] {
    static FLAGS: OnceLock<Vec<String>> = OnceLock::new();
    FLAGS.get_or_init(|| flags_of(parse_server_config(&["--help".into()], &Variables::none())))
}

fn proxy_flags() -> &'static [String] {
    static FLAGS: OnceLock<Vec<String>> = OnceLock::new();
    FLAGS.get_or_init(|| flags_of(parse_proxy_config(&["--help".into()])))
}

fn gateway_flags() -> &'static [String] {
    static FLAGS: OnceLock<Vec<String>> = OnceLock::new();
    FLAGS.get_or_init(|| flags_of(parse_gateway_config(&["--help".into()])))
}

/// Lines of the input as flags: the first byte of each says which one, the rest is the value.
fn chosen<'a>(text: &'a str, flags: &'static [String]) -> BTreeMap<&'static str, &'a str> {
    let pair = |line: &'a str| {
        let first = line.chars().next()?;
        let value = &line[first.len_utf8()..];
        Some((flags[first as usize % flags.len()].as_str(), value)).filter(|_| !value.is_empty())
    };
    text.lines().filter_map(pair).collect()
}

fn arguments(values: &BTreeMap<&str, &str>) -> Vec<OsString> {
    values.iter().map(|(flag, value)| format!("--{flag}={value}").into()).collect()
}

fn from_file(text: &[u8]) {
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file");
    file.write_all(text).expect("a file");
    let mut flag = OsString::from("--config-file=");
    flag.push(file.path());
    told(parse_server_config(&[flag], &Variables::none()));
}

/// What does not depend on where a value comes from.
fn shown(config: Option<ServerConfig>) -> Option<String> {
    config.map(|config| format!("{:?}", ServerConfig { notices: Vec::new(), ..config }))
}

fn flags_and_variables(values: &BTreeMap<&str, &str>) {
    let of_flags = told(parse_server_config(&arguments(values), &Variables::none()));
    let variable = |flag: &str| format!("ETCD_{}", flag.to_uppercase().replace('-', "_"));
    let variables = values.iter().map(|(flag, value)| (variable(flag), OsString::from(value)));
    let of_variables = told(parse_server_config(&[], &Variables::new("ETCD_", variables)));
    assert_eq!(shown(of_flags), shown(of_variables), "{values:?}");
}

/// The values as keys of the file; those with a section in it are written there.
fn as_file(values: &BTreeMap<&str, &str>) -> String {
    let (mut top, mut client, mut peer) = (String::new(), String::new(), String::new());
    for (flag, value) in values {
        let is_plain = value.chars().all(|it| it.is_ascii_alphanumeric() || it == '.');
        let value = if is_plain { (*value).to_owned() } else { format!("{value:?}") };
        match (*flag, flag.strip_prefix("peer-")) {
            (_, Some(key @ ("cert-file" | "key-file" | "trusted-ca-file" | "client-cert-auth" | "crl-file"))) => {
                peer.push_str(&format!("  {key}: {value}\n"));
            }
            ("cert-file" | "key-file" | "trusted-ca-file" | "client-cert-auth" | "auto-tls", _) => {
                client.push_str(&format!("  {flag}: {value}\n"));
            }
            _ => top.push_str(&format!("{flag}: {value}\n")),
        }
    }
    for (name, section) in [("client-transport-security", client), ("peer-transport-security", peer)] {
        if !section.is_empty() {
            top.push_str(&format!("{name}:\n{section}"));
        }
    }
    top
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let lines = || text.lines().map(OsString::from).collect::<Vec<_>>();
    match kind % 10 {
        0 if !text.contains("config-file") => drop(told(parse_server_config(&lines(), &Variables::none()))),
        1 if !text.contains("CONFIG_FILE") => {
            let values = text.lines().filter_map(|line| line.split_once('='));
            let values = values.map(|(name, value)| (format!("ETCD_{name}"), OsString::from(value)));
            told(parse_server_config(&[], &Variables::new("ETCD_", values)));
        }
        2 => drop(told(parse_proxy_config(&lines()))),
        3 => drop(told(parse_gateway_config(&lines()))),
        4 => drop(text.parse::<GoDuration>()),
        5 => from_file(rest),
        6 => flags_and_variables(&chosen(text, server_flags())),
        7 => from_file(as_file(&chosen(text, server_flags())).as_bytes()),
        8 => drop(told(parse_proxy_config(&arguments(&chosen(text, proxy_flags()))))),
        9 => drop(told(parse_gateway_config(&arguments(&chosen(text, gateway_flags()))))),
        _ => {}
    }
});
