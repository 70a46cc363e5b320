//! Who may import whom: holds the table, reads every `crate::…` and `super::…` path in `src/`, fails on a new arrow.
//!
//! Inside one crate the compiler allows any import. Adding an arrow is fine: change [`TABLE`] and its twin in
//! ARCHITECTURE.md in that commit, and say why.

#[path = "architecture/circles.rs"]
mod circles;
#[path = "architecture/metrics.rs"]
mod metrics;
#[path = "architecture/source.rs"]
mod source;
#[path = "architecture/words.rs"]
mod words;

use std::collections::BTreeSet;

use source::{as_strs, module_of, paths, room_of, root, sources, tokens, without_tests};

/// Every room may name these; they name nothing of ours but what the table says.
const FOUNDATIONS: [&str; 4] = ["types", "pb", "telemetry", "shutdown"];

const STATE_ROOMS: [&str; 5] = ["core::mvcc", "core::lease", "core::auth", "core::cluster", "core::alarm"];

/// Room, and what it may name besides itself and the foundations.
const TABLE: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("pb", &[]),
    // Messages of gRPC bodies are counted.
    ("telemetry", &["pb"]),
    ("shutdown", &[]),
    ("api_error", &[]),
    ("net", &[]),
    ("config", &["net"]),
    ("eventlog", &["api_error"]),
    ("tree", &[]),
    ("listener", &["net", "api_error"]),
    ("pages", &[]),
    // Bodies count as unfinished requests of their connection.
    ("json", &["listener"]),
    ("bolt", &[]),
    ("recipes", &["api_error", "net"]),
    ("core::wal", &[]),
    ("core::backend", &["bolt"]),
    ("core::mvcc", &["core::backend", "tree"]),
    ("core::lease", &["core::backend"]),
    ("core::auth", &["core::backend"]),
    ("core::cluster", &["core::backend"]),
    ("core::alarm", &["core::backend"]),
    ("core::reply", &[]),
    ("core::raft", &["core::reply", "core::wal"]),
    // Lanes and encoded messages are the words of `core::raft`.
    ("core::peer", &["core::raft", "net", "listener", "api_error"]),
    // Committed entries and the sink they go to are the words of `core::raft`.
    ("core::apply", &["STATE", "core::backend", "core::raft", "core::reply", "eventlog"]),
    // The reason of a refused read is a text of the API.
    ("core::watch", &["STATE", "core::backend", "eventlog", "api_error"]),
    // A snapshot that a leader sends is a db snapshot.
    ("core::server", &["CORE", "bolt", "api_error", "config", "eventlog", "recipes", "listener", "pages", "json"]),
    ("client", &["api_error", "net"]),
    // The layout of the keys is in one place.
    ("registry", &["client", "config", "discovery", "listener", "net", "pages"]),
    ("discovery", &["client", "config", "net"]),
    (
        "proxy",
        &[
            "client",
            "discovery",
            "api_error",
            "config",
            "eventlog",
            "tree",
            "recipes",
            "listener",
            "net",
            "pages",
            "json",
        ],
    ),
    ("gateway", &["client", "discovery", "api_error", "config", "eventlog", "net", "pages"]),
    ("ctl", &["client", "discovery", "api_error", "config", "net"]),
    // The files of a member that does not run.
    ("utl", &["bolt", "config", "core::backend", "core::cluster", "core::lease", "core::mvcc", "core::wal"]),
    ("bench", &["client", "discovery", "api_error", "config", "net"]),
    ("cmd", &["EVERYTHING"]),
    ("main", &["cmd"]),
];

/// How ARCHITECTURE.md names a group of rooms.
fn in_words(name: &str) -> String {
    match name {
        "STATE" => "`core::{mvcc, lease, auth, cluster, alarm}`".into(),
        "CORE" => "all of `core`".into(),
        "EVERYTHING" => "everything".into(),
        room => format!("`{room}`"),
    }
}

fn may_name(room: &str, other: &str) -> bool {
    if room == other || FOUNDATIONS.contains(&other) && !FOUNDATIONS.contains(&room) && room != "main" {
        return true;
    }
    let Some((_, allowed)) = TABLE.iter().find(|(name, _)| *name == room) else { return false };
    allowed.iter().any(|&entry| match entry {
        "STATE" => STATE_ROOMS.contains(&other),
        "CORE" => other.starts_with("core::") && TABLE.iter().any(|(name, _)| *name == other),
        // Nothing names `cmd`, and the binary is no room.
        "EVERYTHING" => other != "main",
        entry => entry == other,
    })
}

/// A path that leaves its room.
#[derive(Debug, PartialEq)]
struct Arrow {
    line: usize,
    to: String,
}

/// The arrows in the text of one file that the table does not have.
fn violations(module: &[&str], source: &str) -> Vec<Arrow> {
    let room = room_of(module);
    paths(module, source)
        .into_iter()
        .filter_map(|(line, path)| {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            // `crate::core` alone, or the crate root, is no room: name what you want.
            let to = room_of(&path);
            (!may_name(&room, &to)).then_some(Arrow { line, to })
        })
        .collect()
}

#[test]
fn no_arrow_is_missing_from_the_table() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    assert!(files.len() > 20, "found the sources");
    let mut wrong = Vec::new();
    for file in files {
        let module = module_of(&file);
        if module.is_empty() || module == ["core"] {
            continue; // `lib.rs` and `core/mod.rs` hold the list of rooms only.
        }
        let source = std::fs::read_to_string(&file).expect("source is readable");
        for arrow in violations(&as_strs(&module), &source) {
            let name = file.strip_prefix(root()).expect("below the root").display();
            wrong.push(format!("{name}:{}: `{}` names `{}`", arrow.line, room_of(&as_strs(&module)), arrow.to));
        }
    }
    assert!(wrong.is_empty(), "not in the import table:\n{}", wrong.join("\n"));
}

/// The rooms that have files.
fn rooms() -> BTreeSet<String> {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let modules = files.iter().map(|file| module_of(file));
    modules
        .filter(|module| !module.is_empty() && *module != ["core"])
        .map(|module| room_of(&as_strs(&module)))
        .collect()
}

#[test]
fn every_room_has_a_row_and_every_row_a_room() {
    let rows: BTreeSet<String> = TABLE.iter().map(|(room, _)| (*room).to_owned()).collect();
    assert_eq!(rooms(), rows, "rooms in src/, rows in the table");
}

fn architecture_md() -> String {
    std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md")
}

/// The parts between backticks; `a/{b,c}/d` stands for `a/b/d` and `a/c/d`.
fn quoted(text: &str) -> Vec<String> {
    let parts = text.split('`').skip(1).step_by(2);
    parts
        .flat_map(|part| match part.split_once('{').and_then(|(head, rest)| Some((head, rest.split_once('}')?))) {
            Some((head, (names, tail))) => {
                names.split(',').map(|name| format!("{head}{}{tail}", name.trim())).collect::<Vec<_>>()
            }
            None => vec![part.to_owned()],
        })
        .collect()
}

#[test]
fn the_code_map_shows_every_room_and_nothing_else() {
    let text = architecture_md();
    let map = text.lines().skip_while(|line| !line.starts_with("| Where | What |")).skip(2);
    let places: Vec<String> = map
        .take_while(|line| line.starts_with('|'))
        .flat_map(|line| quoted(line.split('|').nth(1).unwrap_or_default()))
        .collect();
    for place in &places {
        let path = root().join(place);
        assert!(path.exists() && path.is_dir() == place.ends_with('/'), "the code map shows `{place}`");
    }
    let shown: BTreeSet<String> = places
        .iter()
        .filter_map(|place| place.strip_prefix("src/"))
        .map(|place| place.trim_end_matches('/').trim_end_matches(".rs").replace('/', "::"))
        .collect();
    assert_eq!(rooms(), shown, "rooms in src/, rooms in the code map of ARCHITECTURE.md");
}

#[test]
fn files_that_the_guides_name_are_there() {
    for guide in ["CONTRIBUTING.md", "README.md", "tests/README.md"] {
        let text = std::fs::read_to_string(root().join(guide)).expect(guide);
        let named = quoted(&text).into_iter().filter(|name| {
            let begins = ["src/", "tests/", "proto/", "docs/"].iter().any(|folder| name.starts_with(folder));
            begins && !name.contains(['<', ' '])
        });
        let missing: Vec<String> = named.filter(|name| !root().join(name).exists()).collect();
        assert!(missing.is_empty(), "{guide} names {missing:?}");
    }
}

#[test]
fn only_rooms_at_the_edge_name_tonic() {
    let text = architecture_md();
    let rule = text.lines().skip_while(|line| !line.starts_with("- **`tonic` stops at the edge.**"));
    let rule: Vec<&str> =
        rule.enumerate().take_while(|(at, line)| *at == 0 || line.starts_with("  ")).map(|(_, line)| line).collect();
    let allowed: BTreeSet<String> = quoted(&rule.join(" ")).into_iter().filter(|name| name != "tonic").collect();
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let found: BTreeSet<String> = files
        .iter()
        .map(|file| (module_of(file), std::fs::read_to_string(file).expect("source is readable")))
        .filter(|(module, source)| !module.contains(&"tests".to_owned()) && names_tonic(source))
        .map(|(module, _)| room_of(&as_strs(&module)))
        .collect();
    assert_eq!(found, allowed, "rooms that name tonic, rooms in the rule of ARCHITECTURE.md");
}

/// Whether code outside tests has a path that begins with `tonic`.
fn names_tonic(source: &str) -> bool {
    without_tests(&tokens(source)).windows(2).any(|pair| pair[0].1 == "tonic" && pair[1].1 == "::")
}

#[test]
fn error_texts_are_in_one_file() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut found = Vec::new();
    for file in files.iter().filter(|file| !module_of(file).contains(&"tests".to_owned())) {
        let source = std::fs::read_to_string(file).expect("source is readable");
        let code = source.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        if code.contains("\"etcdserver: ") {
            found.push(file.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned());
        }
    }
    assert_eq!(found, ["src/api_error.rs"], "texts of errors");
}

#[test]
fn architecture_md_has_the_same_table() {
    let text = architecture_md();
    let shown: Vec<&str> = text
        .lines()
        .skip_while(|line| !line.starts_with("| Room | May name"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    let expected: Vec<String> = TABLE
        .iter()
        .map(|(room, allowed)| {
            let words: Vec<String> = allowed.iter().map(|name| in_words(name)).collect();
            let words = match (room, words.is_empty()) {
                (room, true) if FOUNDATIONS.contains(room) => "nothing of ours".into(),
                (_, true) => "the four".into(),
                (&"main", false) => format!("{} only", words.join(", ")),
                (_, false) => words.join(", "),
            };
            format!("| `{room}` | {words} |")
        })
        .collect();
    assert_eq!(shown, expected, "expected:\n{}", expected.join("\n"));
}

#[test]
fn every_tcp_connection_is_given_an_end_of_silence() {
    // Cause: a connection with bytes in flight to a host that had vanished stayed for minutes, since each place that
    // dialled or accepted set options of its own, or none.
    let mut found = Vec::new();
    sources(&root().join("src"), &mut found);
    let mut seen = 0;
    for file in found {
        let name = file.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
        let source = std::fs::read_to_string(&file).expect("readable");
        // Tests have sockets of their own; the gateway prepares its listening socket, whose options accepted ones have; the next
        // gateway comes by a unix socket; a ClientHello is read without a connection. The suite of benchmarks asks processes that
        // it has started, on loopback.
        let others = [
            "src/client/testing.rs",
            "src/gateway/accept.rs",
            "src/gateway/hot_restart.rs",
            "src/net/client_hello.rs",
            "src/bench/suite/loopback.rs",
        ];
        if name.contains("/tests") || name.ends_with("/hot_path.rs") || others.contains(&name.as_str()) {
            continue;
        }
        let code = source.split("#[cfg(test)]").next().unwrap_or_default();
        let dials = ["TcpStream::connect(", "TcpSocket::new_v"].iter().any(|opens| code.contains(opens));
        assert!(!dials || name == "src/net/dial.rs", "{name} opens connections by itself");
        if dials || [".accept()", "accept_with("].iter().any(|accepts| code.contains(accepts)) {
            seen += 1;
            assert!(code.contains("TcpSilence"), "{name} opens or accepts connections and does not prepare them");
        }
    }
    assert!(seen >= 4, "only {seen} files open or accept connections: have the calls other names now?");
}

#[test]
fn a_planted_arrow_is_caught() {
    let caught = |module: &[&str], source: &str| -> Vec<String> {
        violations(module, source).into_iter().map(|arrow| format!("{}:{}", arrow.line, arrow.to)).collect()
    };
    let none: [&str; 0] = [];
    // Plain, grouped, nested, renamed, inline in code, through `super`, through a re-export of the crate root.
    assert_eq!(caught(&["proxy", "kv"], "\nuse crate::core::mvcc::Store;"), ["2:core::mvcc"]);
    assert_eq!(
        caught(&["proxy"], "use crate::{client::Client, core::{mvcc, wal::Wal as W}, pb};"),
        ["1:core::mvcc", "1:core::wal"]
    );
    assert_eq!(caught(&["client"], "fn f() { crate::cmd::run(vec![]) }"), ["1:cmd"]);
    assert_eq!(caught(&["core", "mvcc", "store"], "use super::super::lease::Lessor;"), ["1:core::lease"]);
    assert_eq!(caught(&["core", "mvcc"], "use super::lease::Lessor;"), ["1:core::lease"]);
    assert_eq!(caught(&["types", "id"], "use crate::pb::mvccpb;"), ["1:pb"]);
    assert_eq!(caught(&["core", "apply"], "use crate::core::*;"), ["1:core::*"]);
    assert_eq!(caught(&["gateway"], "use crate::SomeReexport;"), ["1:SomeReexport"]);
    assert_eq!(caught(&["main"], "fn main() { watershed::core::server::run() }"), ["1:core::server"]);
    // And nothing else is.
    assert_eq!(caught(&["main"], "fn main() { watershed::cmd::run() }"), none);
    assert_eq!(caught(&["proxy", "kv"], "// use crate::core::mvcc;\nlet text = \"crate::core\"; 'c'"), none);
    assert_eq!(caught(&["proxy", "kv"], "let raw = r#\"crate::core::mvcc \"quoted\"\"#;"), none);
    assert_eq!(caught(&["core", "mvcc"], "mod tests { use super::*; use super::index::Index; }"), none);
    assert_eq!(caught(&["core", "mvcc", "index"], "mod tests { use super::super::store::Store; }"), none);
    assert_eq!(caught(&["core", "apply"], "use crate::core::{alarm, mvcc::Store}; use crate::eventlog;"), none);
    assert_eq!(caught(&["bench"], "fn f<'a>(x: &'a crate::client::Client) { self::g() }"), none);
}
