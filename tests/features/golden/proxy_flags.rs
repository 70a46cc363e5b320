//! The flags of `grpc-proxy start` with their defaults, as etcd 3.7.1 lists them, against those that our proxy lists.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::{is_stock, server_binary};

/// Where a default of ours is another one, and why.
const DIFFERENT: &[(&str, &str)] = &[
    ("advertise-client-url", "the address it listens on, in etcd too unless --listen-addr is given"),
    ("max-send-bytes", "the member decides, which answers with an error of its own"),
    ("max-recv-bytes", "grpc-go's maximum, that of every client"),
];

fn transcript() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/interop/golden/grpc_proxy_flags.txt")
}

fn help() -> String {
    let program = server_binary();
    let output = Command::new(&program).args(["grpc-proxy", "start", "--help"]).output().expect("it starts");
    String::from_utf8([output.stdout, output.stderr].concat()).expect("text")
}

/// Flags and defaults in the list of etcd's: `--name type  text (default value)`.
fn etcds(help: &str) -> BTreeMap<String, String> {
    let lines = help.lines().filter_map(|line| line.trim_start().strip_prefix("--"));
    let flag = |line: &str| {
        let name = line.split_whitespace().next().expect("a name").to_owned();
        let default = line.rsplit_once("(default ").and_then(|(_, value)| value.strip_suffix(')'));
        (name, default.unwrap_or_default().trim_matches(['"', '[', ']']).to_owned())
    };
    lines.map(flag).collect()
}

/// The same in ours: the default stands in brackets on one of the lines below the name.
fn ours(help: &str) -> BTreeMap<String, String> {
    let mut flags = BTreeMap::new();
    let mut current = String::new();
    for line in help.lines() {
        if let Some(flag) = line.trim_start().strip_prefix("--") {
            current = flag.split([' ', '=', '[']).next().expect("a name").to_owned();
            flags.insert(current.clone(), String::new());
        }
        if let Some((_, value)) = line.rsplit_once("[default: ") {
            let value = value.split(']').next().unwrap_or_default();
            flags.insert(current.clone(), value.trim_matches('"').to_owned());
        }
    }
    flags
}

/// A duration in the shortest form, and what is off or empty as nothing.
fn plain(value: &str) -> &str {
    match value {
        "false" | "0" | "0s" => "",
        _ => value.strip_suffix("0m0s").unwrap_or(value),
    }
}

#[test]
fn every_flag_of_etcds_proxy_is_listed_with_its_default() {
    let path = transcript();
    if is_stock() {
        let listed = etcds(&help());
        let text: String =
            listed.iter().map(|(name, default)| format!("{name} {default}").trim_end().to_owned() + "\n").collect();
        if std::env::var_os("WATERSHED_GOLDEN_WRITE").is_some() {
            std::fs::write(&path, &text).expect("written");
        }
        let recorded = std::fs::read_to_string(&path).expect("the transcript");
        assert_eq!(text, recorded);
        return;
    }
    let listed = ours(&help());
    let recorded = std::fs::read_to_string(&path).expect("the transcript");
    for line in recorded.lines() {
        let (name, default) = line.split_once(' ').unwrap_or((line, ""));
        let own = listed.get(name).unwrap_or_else(|| panic!("--{name} is not listed: {listed:?}"));
        let differs = DIFFERENT.iter().any(|(known, _)| *known == name);
        assert!(differs || plain(own) == plain(default), "--{name}: {own:?}, etcd has {default:?}");
    }
    assert!(recorded.lines().count() > 35, "{recorded}");
}
