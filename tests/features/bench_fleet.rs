//! `bench fleet`: the computation as a user asks for it. What it computes is checked beside the code, and against real fleets by
//! `bench fleet --check`.

use std::process::{Command, Output};

use serde_json::Value;

fn fleet(flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_watershed")).args(["bench", "fleet"]).args(flags).output().expect("starts")
}

fn json(flags: &[&str]) -> Value {
    let output = fleet(&[flags, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn a_fleet_has_its_levels_and_a_first_limit() {
    let text = fleet(&["--levels=2,8", "--hosts=100", "--show-costs"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for part in [
        "| leader | 1 |",
        "| followers | 2 |",
        "| proxies, level 2 | 8 |",
        "one on each host | 100 |",
        "First limit: ",
        "| proxy_event |",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn more_watchers_take_more_and_more_proxies_take_less_each() {
    let memory = |flags: &[&str]| json(flags)["fleet"]["levels"][2]["memory_bytes"].as_f64().unwrap();
    let few = memory(&["--watchers=1000", "--levels=4"]);
    let many = memory(&["--watchers=1000000", "--levels=4"]);
    let spread = memory(&["--watchers=1000000", "--levels=16"]);
    assert!(few < spread && spread < many, "{few} {spread} {many}");
}

#[test]
fn what_makes_no_sense_is_refused_by_its_flag() {
    for (flag, error) in [
        ("--levels=0", "--levels 0: "),
        ("--levels=x", "--levels"),
        ("--watched-share=1.5", "--watched-share 1.5: must be from 0 to 1"),
        ("--cached-share=-1", "--cached-share"),
        ("--watchers=-1", "--watchers"),
        ("--watchers=nan", "--watchers NaN: must not be below 0"),
        ("--watchers-per-stream=0", "--watchers-per-stream 0: must be above 0"),
        ("--cores=0", "--cores 0: must be above 0"),
        ("--memory-gib=inf", "--memory-gib inf: must be above 0"),
        ("--network-mbit=0", "--network-mbit 0: "),
        ("--members=0", "--members"),
        ("--costs=/no/costs", "--costs /no/costs: "),
    ] {
        let output = fleet(&[flag]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{flag}: {said}");
        assert!(said.contains(error), "{flag}: {said}");
    }
    let output = fleet(&["--check", "--seconds=0.1", "--folder=/no/folder"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--folder /no/folder: "));
}
