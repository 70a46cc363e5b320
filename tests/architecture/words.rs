//! Words of our own that hid etcd's: they do not come back, neither alone nor as a part of a name.

use std::path::{Path, PathBuf};

use crate::source::root;

/// A word that has another one in its place.
struct Replaced {
    /// Looked for as written when it begins with a capital, otherwise in any case.
    word: &'static str,
    instead: &'static str,
    /// Below these paths; all other uses are those of the language or of etcd.
    places: &'static [&'static str],
    /// Below these the word means what it says elsewhere.
    except: &'static [&'static str],
}

const ALL: &[&str] = &["src/", "tests/", "docs/"];

const fn replaced(
    word: &'static str,
    instead: &'static str,
    places: &'static [&'static str],
    except: &'static [&'static str],
) -> Replaced {
    Replaced { word, instead, places, except }
}

const WORDS: &[Replaced] = &[
    // A simulated disk has images of its contents, the docs have pictures; files of earlier versions end in `.image`.
    replaced(
        "image",
        "db snapshot",
        ALL,
        &[
            "tests/disk/",
            "tests/crash_states/",
            "tests/sim/",
            "src/core/peer/snapshot_receive.rs",
            "src/core/peer/tests/snapshots.rs",
        ],
    ),
    replaced("images", "db snapshots", ALL, &["tests/disk/", "tests/crash_states/", "tests/sim/", "docs/metrics.md"]),
    replaced("Place", "WatcherPhase", &["src/eventlog/"], &[]),
    replaced("Lagging", "Unsynced", &["src/eventlog/", "src/core/watch/", "src/proxy/watch/"], &[]),
    replaced("Dead", "Cancelled", &["src/eventlog/"], &[]),
    replaced("shard", "WatcherSet, Worker", ALL, &[]),
    replaced("shards", "WatcherSet, Worker", ALL, &[]),
    replaced("Origin", "HeaderSource", &["src/eventlog/"], &[]),
    replaced("outbox", "SendQueue", &["src/"], &[]),
    replaced("feed", "broadcast", &["src/proxy/", "src/cmd/", "docs/"], &[]),
    replaced("feeds", "broadcasts", &["src/proxy/", "src/cmd/", "docs/"], &[]),
    replaced("desk", "service", ALL, &[]),
    replaced("ruling", "Admit", ALL, &[]),
    replaced("fence", "read index", &["src/"], &[]),
    replaced("enter", "add_prefix", &["src/proxy/namespace/"], &[]),
    replaced("leave", "strip_prefix", &["src/proxy/namespace/"], &[]),
    replaced("AnswerRoom", "ResponseMemory", ALL, &[]),
    replaced("Trust", "MemberVersions", &["src/proxy/watch/"], &[]),
    replaced("Pace", "ProgressSchedule", &["src/proxy/watch/"], &[]),
    replaced("Class", "CredentialGroup", &["src/proxy/"], &[]),
    replaced("Verdict", "PermissionCheck", &["src/proxy/"], &[]),
    replaced("hub", "KeepAliveBroadcast", &["src/proxy/lease/", "src/eventlog/"], &[]),
    replaced("seat", "subscription", ALL, &[]),
    replaced("seats", "subscriptions", ALL, &[]),
    replaced("Slot", "ClientStream", &["src/proxy/lease/"], &[]),
    replaced("Gate", "LeaseOwnership", &["src/proxy/"], &[]),
    replaced("underway", "pending requests", ALL, &[]),
    replaced("fate", "outcome", ALL, &[]),
    replaced("Installs", "PreparedSnapshots", &["src/"], &[]),
    replaced("Waiters", "PendingRequests", &["src/core/"], &[]),
    replaced("Registered", "PendingRequests", &["src/core/server/", "src/core/apply/"], &[]),
    replaced("Around", "LeaderAccess", &["src/"], &[]),
    replaced("led_term", "term_with_leader", &["src/", "tests/"], &[]),
    replaced("condemned", "corrupt", ALL, &[]),
    replaced("HttpFace", "HttpHandler", ALL, &[]),
    replaced("PeerFace", "PeerHandler", ALL, &[]),
    replaced("face", "handler", ALL, &[]),
    replaced("faces", "handlers", ALL, &[]),
    // The backend has a table of alarms.
    replaced("Alarm", "CheckpointWake", &["src/core/backend/"], &["src/core/backend/change.rs"]),
    replaced("Claims", "PreparedPositions", &["src/"], &[]),
    replaced("Home", "FileLocation, Sticky", &["src/core/", "src/client/"], &[]),
    replaced("guest", "unlisted peer", ALL, &[]),
    replaced("guests", "unlisted peers", ALL, &[]),
    replaced("roster", "PeerSet", ALL, &[]),
    replaced("promising", "redial", &["src/"], &[]),
    replaced(
        "Member",
        "UpstreamEndpoint",
        &["src/client/pool/"],
        &["src/client/pool/health_tests.rs", "src/client/pool/tests.rs"],
    ),
    replaced("Trouble", "CallError", &["src/bench/"], &[]),
    replaced("ledger", "WrittenLog", ALL, &[]),
    replaced("World", "the name of what it holds", ALL, &[]),
];

/// Phrases, in any line.
const PHRASES: &[(&str, &str)] = &[("from elsewhere", "received from the leader"), ("state from another", "snapshot")];

/// Files that have other names now.
const FILES: &[&str] = &[
    "src/config/server/others.rs",
    "src/config/server/parts.rs",
    "src/core/lease/leaders.rs",
    "src/core/server/checkpoint.rs",
    "src/core/server/force.rs",
    "src/core/server/integrity.rs",
    "src/core/server/join.rs",
    "src/core/server/peer.rs",
    "src/core/server/peer_calls.rs",
    "src/core/server/peer_http.rs",
    "src/core/server/peers.rs",
    "src/ctl/go.rs",
    "src/eventlog/hub.rs",
    "src/eventlog/shard.rs",
    "src/proxy/watch/desk.rs",
    "src/proxy/watch/feed.rs",
    "src/proxy/lease/hub.rs",
    "tests/harness/world.rs",
    "tests/sim/world.rs",
];

/// The parts of the names in a line: `WatchHub` and `watch_hub` have two. The whole name is one of them.
fn parts(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for name in line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|name| !name.is_empty()) {
        found.push(name);
        for part in name.split('_') {
            let starts = part.char_indices().zip(part.chars().skip(1).map(Some).chain([None])).scan(
                'A',
                |previous, ((at, c), next)| {
                    let begins = c.is_uppercase()
                        && (previous.is_lowercase() || previous.is_numeric() || next.is_some_and(char::is_lowercase));
                    *previous = c;
                    Some((at, begins))
                },
            );
            let mut begin = 0;
            for at in starts.filter(|&(at, begins)| begins && at > 0).map(|(at, _)| at).chain([part.len()]) {
                if part.len() < name.len() || at - begin < name.len() {
                    found.push(&part[begin..at]);
                }
                begin = at;
            }
        }
    }
    found
}

/// What is wrong with a line of this file.
fn complaints(path: &str, line: &str) -> Vec<String> {
    let begins = |places: &[&str]| places.iter().any(|place| path.starts_with(place));
    let parts = parts(line);
    let words = WORDS.iter().filter(|rule| begins(rule.places) && !begins(rule.except));
    let words = words.filter(|rule| {
        let exact = rule.word.starts_with(char::is_uppercase);
        parts.iter().any(|part| if exact { *part == rule.word } else { part.eq_ignore_ascii_case(rule.word) })
    });
    let phrases = PHRASES.iter().filter(|(phrase, _)| line.contains(phrase));
    words
        .map(|rule| format!("`{}`: say `{}`", rule.word, rule.instead))
        .chain(phrases.map(|(phrase, instead)| format!("`{phrase}`: say `{instead}`")))
        .collect()
}

fn texts(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            texts(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "md") {
            found.push(path);
        }
    }
}

#[test]
fn words_that_were_replaced_do_not_come_back() {
    let mut files = Vec::new();
    for folder in ALL {
        texts(&root().join(folder), &mut files);
    }
    assert!(files.len() > 300, "found the texts");
    let mut wrong = Vec::new();
    for file in files {
        let path = file.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
        if path == "tests/architecture/words.rs" {
            continue;
        }
        if FILES.contains(&path.as_str()) {
            wrong.push(format!("{path}: this file has another name now"));
        }
        let text = std::fs::read_to_string(&file).expect("readable");
        for (number, line) in text.lines().enumerate() {
            wrong.extend(complaints(&path, line).into_iter().map(|what| format!("{path}:{}: {what}", number + 1)));
        }
    }
    assert!(wrong.is_empty(), "words that were replaced ({}):\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_planted_word_is_found() {
    let found = |path: &str, line: &str| complaints(path, line).len();
    assert_eq!(
        parts("WatchHub::watch_hub HTTPFace x2Shard"),
        ["WatchHub", "Watch", "Hub", "watch_hub", "watch", "hub", "HTTPFace", "HTTP", "Face", "x2Shard", "x2", "Shard"]
    );
    for (path, line) in [
        ("src/gateway/serve.rs", "struct Shard;"),
        ("src/gateway/serve.rs", "let gateway_shards = 1;"),
        ("src/listener/accept.rs", "// one shard per core"),
        ("tests/features/kv.rs", "use crate::harness::World;"),
        ("src/core/peer/transport.rs", "PeerRoster::new()"),
        ("src/proxy/lease/table.rs", "let slots: Vec<Slot> = view;"),
        ("src/core/backend/store.rs", "Alarm::new()"),
        ("docs/design/raft.md", "a state from elsewhere"),
        ("src/core/apply/mod.rs", "an image of the leader"),
    ] {
        assert_eq!(found(path, line), 1, "{path}: {line}");
    }
    for (path, line) in [
        ("src/core/server/http.rs", "Access-Control-Allow-Origin"),
        ("src/core/backend/change.rs", "Alarm,"),
        ("src/gateway/accept.rs", "leave the loop"),
        ("src/gateway/http.rs", "let slot = slots.acquire();"),
        ("tests/disk/image.rs", "pub struct Image;"),
        ("src/client/testing.rs", "let mut places = 1;"),
    ] {
        assert_eq!(found(path, line), 0, "{path}: {line}");
    }
}
