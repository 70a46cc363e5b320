//! Every metric that is registered has code that fills it.
//!
//! Whether those of a member move as etcd's do is the business of `tests/features/metrics.rs` and
//! `tests/cluster/metrics.rs`; this finds a metric that no code can move, in any mode.

use super::source::{module_of, root, sources};

/// What fills a metric.
const WRITES: [&str; 8] = [".inc(", ".inc_by(", ".dec(", ".add(", ".sub(", ".set(", ".observe(", ".with_label_values("];
/// The owner of a metric that is handed on as a whole.
const OWNERS: [&str; 5] = ["metrics", "server", "disk", "mvcc", "bytes"];
/// What registers a metric outside `telemetry/rooms.rs`.
const KINDS: [&str; 10] = [
    "counter(",
    "counter_vec(",
    "float_counter(",
    "float_gauge(",
    "float_gauge_vec(",
    "gauge(",
    "gauge_vec(",
    "histogram(",
    "histogram_vec(",
    "durations(",
];

/// The sources outside tests, by path.
fn texts() -> Vec<(String, String)> {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    files.retain(|file| !module_of(file).contains(&"tests".to_owned()));
    let text = |file: &std::path::PathBuf| {
        let text = std::fs::read_to_string(file).expect("a source file");
        let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
        (file.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned(), code)
    };
    files.iter().map(text).collect()
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// The fields of the structs in `telemetry/rooms.rs`.
fn metric_fields(rooms: &str) -> Vec<&str> {
    let declared = rooms.lines().filter(|line| line.contains("(\"etcd_") || line.contains("(\"watershed_"));
    declared.filter_map(|line| line.trim().split_once(": ").map(|(field, _)| field)).collect()
}

/// Whether a source fills the metric of this field, or hands it to what does.
fn fills(source: &str, field: &str) -> bool {
    source.match_indices(&format!(".{field}")).any(|(at, found)| {
        let rest = source[at + found.len()..].trim_start();
        let line = source[..at].rsplit('\n').next().unwrap_or_default();
        let owner = line.rsplit(|letter: char| !is_word(letter)).next().unwrap_or_default();
        WRITES.iter().any(|write| rest.starts_with(write))
            || rest.starts_with(',') && line.contains("raise_to(")
            || rest.starts_with(".clone()") && OWNERS.contains(&owner)
    })
}

/// The names under which a source registers metrics of its own: of a field or of a variable.
fn registered(source: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for (at, found) in source.match_indices("metrics").filter(|(at, _)| !source[..*at].ends_with(is_word)) {
        let Some(call) = source[at + found.len()..].trim_start().strip_prefix('.') else { continue };
        let before = source[..at].trim_end();
        if let Some(before) = before.strip_suffix(['=', ':'])
            && KINDS.iter().any(|kind| call.starts_with(kind))
        {
            names.extend(before.trim_end().rsplit(|letter: char| !is_word(letter)).next());
        }
    }
    names
}

/// Whether a source fills the metric in this variable or field, or lends it to what does.
fn fills_named(source: &str, name: &str) -> bool {
    source.match_indices(name).filter(|(at, _)| !source[..*at].ends_with(is_word)).any(|(at, _)| {
        let rest = source[at + name.len()..].trim_start();
        let lent = source[..at].ends_with("(&") && rest.starts_with(',');
        let is_argument = |(_, before): (&str, &str)| !before.contains([')', ';']);
        let counted =
            rest.starts_with(".clone()") && source[..at].rsplit_once("Counted::new(").is_some_and(is_argument);
        lent || counted || WRITES.iter().any(|write| rest.starts_with(write)) || rest.starts_with(".as_ref().map(")
    })
}

#[test]
fn every_metric_of_the_core_is_filled() {
    // Sixteen were not.
    let (rooms, others): (Vec<_>, Vec<_>) = texts().into_iter().partition(|(path, _)| path == "src/telemetry/rooms.rs");
    let fields = metric_fields(&rooms[0].1);
    assert!(fields.len() > 80, "{} fields found", fields.len());
    let unfilled: Vec<_> =
        fields.into_iter().filter(|field| !others.iter().any(|(_, text)| fills(text, field))).collect();
    assert!(unfilled.is_empty(), "registered and filled by nobody: {unfilled:?}");
    assert!(
        fills("core.metrics.puts\n    .inc_by(1);", "puts") && !fills("metrics.puts.get(); a.puts.clone()", "puts")
    );
}

#[test]
fn every_metric_of_the_other_modes_is_filled() {
    let folder = |path: &str| path.split('/').nth(1).unwrap_or_default().to_owned();
    let texts = texts();
    let (mut seen, mut unfilled) = (0, Vec::new());
    for (path, text) in texts.iter().filter(|(path, _)| !path.starts_with("src/telemetry/metrics")) {
        for name in registered(text) {
            seen += 1;
            let mut near = texts.iter().filter(|(other, _)| folder(other) == folder(path));
            if !near.any(|(_, text)| fills_named(text, name)) {
                unfilled.push(format!("{path}: {name}"));
            }
        }
    }
    assert!(seen >= 35, "{seen} found: are they registered in another way now?");
    assert!(unfilled.is_empty(), "registered and filled by nobody: {unfilled:?}");
    assert_eq!(registered("open: metrics.gauge(\"a\", \"b\"), let x = metrics\n.counter(\"c\")"), ["open", "x"]);
    assert!(!fills_named("open.get(); reopen.inc();", "open") && fills_named("self.open.inc();", "open"));
    assert!(
        fills_named("Counted::new(metrics.open.clone())", "open") && !fills_named("copy(metrics.open.clone())", "open")
    );
}
