use std::collections::BTreeMap;

use serde::Deserialize;

use super::failure::Failure;
use super::own_status::{Answers, StatusPage};
use super::print::draw_table;
use super::session::{Session, show};

const PAGE: StatusPage =
    StatusPage { path: "/gateway/status", missing: "it is not the metrics address of a gateway of this program" };

/// What is shown of the report of a gateway; it has more.
#[derive(Deserialize)]
struct Report {
    version: String,
    up_ms: u64,
    accepting: bool,
    connections: i64,
    connections_max: u64,
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    endpoint: String,
    state: String,
    reason: Option<String>,
    priority: Option<u16>,
    weight: Option<u16>,
    origin: Option<String>,
    connections: u64,
    connected: u64,
    connect_failures: u64,
    check_failures: u64,
    ejections: BTreeMap<String, u64>,
    #[serde(default)]
    route: Option<String>,
}

/// `gateway status`: the endpoint table of each gateway, whose metrics address `--endpoints` names.
pub(super) async fn status(session: Session) -> Result<(), Failure> {
    match PAGE.ask(&session).await? {
        Answers::Json(text) => show(text),
        Answers::Reports(reports) => reports.iter().try_for_each(|(endpoint, report)| show(tables(endpoint, report))),
    }
}

fn tables(endpoint: &str, report: &Report) -> Vec<u8> {
    let mut out = draw_table(
        &["GATEWAY", "VERSION", "UP", "ACCEPTING", "CONNECTIONS", "AT MOST"],
        &[vec![
            endpoint.to_owned(),
            report.version.clone(),
            format!("{}s", report.up_ms / 1000),
            report.accepting.to_string(),
            report.connections.to_string(),
            report.connections_max.to_string(),
        ]],
    );
    let number = |number: Option<u16>| number.map(|number| number.to_string()).unwrap_or_default();
    let row = |one: &Endpoint| {
        let ejections: Vec<String> = one.ejections.iter().map(|(cause, count)| format!("{cause} {count}")).collect();
        vec![
            one.endpoint.clone(),
            one.state.clone(),
            one.origin.clone().unwrap_or_default(),
            number(one.priority),
            number(one.weight),
            one.connections.to_string(),
            one.connected.to_string(),
            (one.connect_failures + one.check_failures).to_string(),
            ejections.join(", "),
            one.route.clone().unwrap_or_default(),
            one.reason.clone().unwrap_or_default(),
        ]
    };
    let endpoints: Vec<_> = report.endpoints.iter().map(row).collect();
    out.extend(draw_table(
        &[
            "ENDPOINT",
            "STATE",
            "FROM",
            "PRIORITY",
            "WEIGHT",
            "OPEN",
            "CONNECTED",
            "FAILURES",
            "WENT DOWN",
            "ROUTE",
            "REASON",
        ],
        &endpoints,
    ));
    out
}
