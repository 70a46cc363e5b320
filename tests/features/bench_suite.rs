//! `bench suite` with our own program as the other side.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const OURS: &str = env!("CARGO_BIN_EXE_watershed");

fn suite(folder: &Path, flags: &[&str]) -> Output {
    let folder = format!("--folder={}", folder.display());
    Command::new(OURS).args(["bench", "suite", &folder]).args(flags).output().expect("starts")
}

#[test]
fn a_suite_measures_both_sides_and_writes_its_reports() {
    let folder = tempfile::tempdir().unwrap();
    let against = format!("--against={OURS}");
    let rows = "--rows=put-1,secure-range,proxy-cached-linearizable,gateway-pingpong,gateway-endpoint-dies,gateway-connections";
    let document = folder.path().join("document.md");
    std::fs::write(&document, "head\n<!-- bench suite -->\nold\n<!-- end of bench suite -->\n").unwrap();
    let into = format!("--document={}", document.display());
    let output = suite(folder.path(), &[&against, rows, "--rounds=1", "--seconds=0.3", &into]);
    let said = String::from_utf8_lossy(&output.stderr);
    let read = |name: &str| {
        std::fs::read_to_string(folder.path().join(name)).unwrap_or_else(|error| panic!("{error}: {said}"))
    };
    let json: Value = serde_json::from_str(&read("report.json")).unwrap();
    assert!(output.status.success(), "{said}");
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 6);
    for row in rows {
        assert_eq!(row["not_run"], Value::Null, "{said}");
        assert_eq!(row["sides"][0], "watershed");
        assert_eq!(row["sides"][1], "peer");
        assert!(row["figures"][0]["value"].is_number(), "{row}");
        assert!(row["moments"][0]["spin_ms"].as_f64().unwrap() > 0.0);
    }
    assert!(rows[0]["samples"][1][0]["figures"]["operations"].as_f64().unwrap() > 0.0);
    assert!(!rows[0]["samples"][0][0]["latencies"].as_array().unwrap().is_empty());
    // Not below 1 for certain: on a busy machine all reads of so short a load come before the replica is loaded.
    assert!(rows[2]["samples"][0][0]["figures"]["upstream reads per read"].as_f64().unwrap() > 0.0, "{}", rows[2]);
    let said_of_haproxy = rows[3]["sides"].as_array().unwrap().iter().chain(rows[3]["notes"].as_array().unwrap());
    assert!(said_of_haproxy.filter(|text| text.as_str().unwrap().starts_with("haproxy")).count() == 1, "{}", rows[3]);
    // Each way there is, the one without a gateway included, opened connections.
    let ways = rows[5]["samples"].as_array().unwrap();
    assert!(rows[5]["sides"].as_array().unwrap().last().unwrap() == "direct" && ways.len() >= 3, "{}", rows[5]);
    for way in ways {
        assert!(way[0]["figures"]["per second"].as_f64().unwrap() > 0.0, "{}", rows[5]);
    }
    assert!(ways[0][0]["figures"]["cpu µs"].is_number(), "{}", rows[5]);
    let (markdown, html) = (read("report.md"), read("report.html"));
    assert!(markdown.contains("| put-1 |") && String::from_utf8_lossy(&output.stdout).contains(&markdown));
    assert!(html.contains("<svg") && html.contains("<h2>secure-range</h2>"));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "only the document and the reports are left: {left:?}");
    let document = std::fs::read_to_string(&document).unwrap();
    assert!(document.starts_with("head\n<!-- bench suite -->\n") && document.contains(markdown.trim()), "{document}");
}

#[test]
fn a_program_that_is_no_etcd_is_a_row_that_was_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let output = suite(folder.path(), &["--against=/bin/false", "--rows=put-1", "--rounds=1", "--seconds=0.1"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("not run: process ended with exit status: 1"), "{text}");
}

#[test]
fn wrong_flags_are_refused_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let against = format!("--against={OURS}");
    let against = against.as_str();
    for (flags, error) in [
        (vec!["--against=/no/such/etcd"], "--against /no/such/etcd: there is no such program"),
        (vec![against, "--rows=put-2"], "--rows put-2: there are put-64, "),
        (vec![against, "--seconds=0"], "--seconds 0: must be above 0"),
        (vec![against, "--haproxy=/no/haproxy"], "--haproxy /no/haproxy: there is no such program"),
        (vec![against, "--nginx=/no/nginx"], "--nginx /no/nginx: there is no such program"),
        (vec![against, "--document=/no/document"], "--document /no/document: "),
        (vec![against, "--document=/dev/null"], "--document /dev/null: has no line "),
        (vec![], "--against"),
    ] {
        let output = suite(folder.path(), &flags);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{flags:?}");
        assert!(said.contains(error), "{flags:?}: {said}");
    }
}
