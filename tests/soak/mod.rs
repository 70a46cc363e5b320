//! Hours of a cluster of three with everything on: TLS for clients and peers, users and roles, mixed load, compaction,
//! defragmentation, watches that come and go, certificates that are replaced, members that are ended and killed.
//!
//! `load.rs` starts the clients: `writer.rs` knows what its keys must be, `watcher.rs` must miss no event, `clients.rs` has
//! the others, and `record.rs` counts and notes what was wrong. `operator.rs` is what is done to the members, `sample.rs`
//! what is measured of them, `judge.rs` what counts as flat, and `plot.rs` the picture. A run of some seconds has all of
//! it but the judgement of memory and files, which needs hours: `WATERSHED_SOAK_MINUTES=120 just soak`. Samples,
//! summary and picture go to the folder in `WATERSHED_SOAK_FOLDER`.

mod clients;
mod judge;
mod load;
mod operator;
mod plot;
mod record;
mod sample;
mod watcher;
mod writer;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use watershed::client::{Client, ClientConfig, Credentials};
use watershed::net::ClientTls;

use crate::harness::{Certificates, Cluster};
use load::Load;
use operator::Operator;
use record::Record;
use sample::Sampler;

/// How long and how fast.
pub struct Plan {
    length: Duration,
    /// Between two samples.
    sample: Duration,
    /// Between two acts of the operator.
    act: Duration,
    /// Between two requests of one writer or reader.
    request: Duration,
    /// Between two compactions, and between two clients of those that come and go.
    slow: Duration,
    /// Seconds that leases are granted for.
    ttl: Range<i64>,
    bcrypt_cost: u32,
    folder: PathBuf,
}

impl Plan {
    /// Some seconds, unless more is asked for.
    fn from_env(fallback: &TempDir) -> Self {
        let folder = std::env::var_os("WATERSHED_SOAK_FOLDER").map_or_else(|| fallback.path().to_owned(), Into::into);
        let short = Self {
            length: Duration::from_secs(6),
            sample: Duration::from_millis(500),
            act: Duration::from_millis(300),
            request: Duration::from_millis(20),
            slow: Duration::from_millis(300),
            ttl: 2..4,
            bcrypt_cost: 4,
            folder,
        };
        let Ok(minutes) = std::env::var("WATERSHED_SOAK_MINUTES") else { return short };
        Self {
            length: Duration::from_secs(60) * minutes.parse().expect("minutes"),
            sample: Duration::from_secs(10),
            act: Duration::from_secs(90),
            request: Duration::from_millis(100),
            slow: Duration::from_secs(10),
            ttl: 5..20,
            bcrypt_cost: 10,
            ..short
        }
    }

    fn is_long(&self) -> bool {
        self.length >= Duration::from_secs(600)
    }
}

/// A client towards these endpoints that logs in by name and password.
fn logged_in(endpoints: &[String], tls: ClientTls, name: &str) -> Client {
    let user = Credentials { name: name.to_owned(), password: name.to_owned() };
    let config = ClientConfig { user: Some(user), ..by_certificate(endpoints, tls) };
    Client::connect(config).expect("a client")
}

fn by_certificate(endpoints: &[String], tls: ClientTls) -> ClientConfig {
    let endpoints = endpoints.iter().map(|endpoint| endpoint.parse().expect("an endpoint"));
    ClientConfig { tls: Some(tls), ..ClientConfig::new(endpoints) }
}

#[test]
fn nothing_grows_and_nothing_is_lost() {
    let fallback = TempDir::new().expect("temporary directory");
    let plan = Plan::from_env(&fallback);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let limit = plan.length + Duration::from_secs(600);
    runtime.block_on(async { tokio::time::timeout(limit, soak(&plan)).await.expect("in time") });
}

async fn soak(plan: &Plan) {
    let certificates = Arc::new(Certificates::new(&["root", "load"]));
    let (tls, cost) = (
        [certificates.client_flags(), certificates.peer_flags()].concat(),
        format!("--bcrypt-cost={}", plan.bcrypt_cost),
    );
    let mut flags: Vec<&str> = tls.iter().map(String::as_str).collect();
    flags.extend(["--client-cert-auth", "--peer-client-cert-auth", "--snapshot-count=5000", &cost]);
    let mut cluster = Cluster::start_with(3, &flags, Some(certificates.tls("root"))).await;
    load::add_users(&cluster.client()).await;

    let endpoints: Vec<String> = (0..3).map(|number| cluster.endpoint(number).to_owned()).collect();
    let record = Arc::new(Record::default());
    let load = Load::start(plan, &endpoints, &certificates, &record);
    let mut operator = Operator::new(&certificates);
    let mut sampler = Sampler::new(&plan.folder, certificates.tls("root"));
    let begun = Instant::now();
    let mut acted = begun;
    // A short run goes on until it has had everything once.
    while begun.elapsed() < plan.length || !operator.has_done_all() || !record.lacks().is_empty() {
        sampler.take(&cluster).await;
        record.report(begun.elapsed());
        if acted.elapsed() >= plan.act {
            acted = Instant::now();
            let act = operator.next(&mut cluster, &record).await;
            sampler.note(&act);
        }
        tokio::time::sleep(plan.sample.min(plan.act)).await;
    }
    load.finish(&cluster).await;
    let states = cluster.end_states().await;
    let first = (states[0].revision, states[0].hash);
    assert!(states.iter().all(|state| (state.revision, state.hash) == first), "{states:?}");

    let svg = plot::draw(&sampler.samples);
    std::fs::write(plan.folder.join("soak.svg"), svg).expect("written");
    let verdict = judge::judge(&sampler.samples);
    let text = format!("{}\n{}", record.summary(begun.elapsed()), verdict.table());
    std::fs::write(plan.folder.join("summary.md"), &text).expect("written");
    println!("{text}");
    record.assert_sound();
    // Seconds say nothing of growth.
    assert!(!plan.is_long() || verdict.is_flat(), "{}", verdict.table());
}
