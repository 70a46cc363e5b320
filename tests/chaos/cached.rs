//! Clients behind proxies that answer ranges from their caches: two in front of the members, one in front of these two.
//!
//! All clients, direct ones too, are one history: a range from a cache that misses a write acknowledged before it, or
//! that shows a state that never was, has no place in it.

use std::time::Duration;

use watershed::client::Client;

use super::stage::{Stage, run};
use crate::harness::{Process, Scrape, client, free_port, http_get, own_binary, until};
use crate::workload::Plan;

/// Answers of a cache come within this time, on a machine with other work, too.
const ANSWERS_WITHIN: Duration = Duration::from_secs(110);

/// One proxy, started again on its port when it is killed.
struct Proxy {
    flags: Vec<String>,
    endpoint: String,
    process: Process,
    client: Client,
}

impl Proxy {
    fn start(stage: &Stage, upstream: &[&str], flags: &[&str]) -> Self {
        let endpoint = format!("127.0.0.1:{}", free_port());
        let own = [format!("--endpoints={}", upstream.join(",")), format!("--listen-addr={endpoint}")];
        let words = ["grpc-proxy", "start", "--cache=linearizable"].into_iter().chain(flags.iter().copied());
        let flags: Vec<String> = words.map(str::to_owned).chain(own).collect();
        let process = Self::spawn(stage, &flags);
        Self { client: client(&endpoint), endpoint, flags, process }
    }

    fn spawn(stage: &Stage, flags: &[String]) -> Process {
        Process::start(&own_binary(), flags, stage.cluster.path(), "proxy")
    }

    fn restart(&mut self, stage: &mut Stage) {
        stage.fault(format!("kill proxy {}", self.endpoint));
        self.process.kill();
        self.process = Self::spawn(stage, &self.flags);
    }

    async fn metrics(&self) -> Option<Scrape> {
        let answers = http_get(&self.endpoint, "GET", "/proxy/metrics").await;
        if answers.is_ok() { Some(Scrape::of(&self.endpoint, "/proxy/metrics").await) } else { None }
    }

    /// Waits until it has answered so many more ranges from its cache.
    async fn until_answers(&self, count: f64) {
        let answers = async || {
            let metrics = self.metrics().await?;
            Some(metrics.sum("watershed_proxy_cache_answers_total", ""))
        };
        let before = until("the proxy", answers).await;
        let enough = async || (answers().await? >= before + count).then_some(());
        if tokio::time::timeout(ANSWERS_WITHIN, until("answers of the cache", enough)).await.is_err() {
            let metrics = self.metrics().await.unwrap_or_default();
            let cache = metrics.0.iter().filter(|(name, _)| name.starts_with("watershed_proxy_cache_"));
            let cache: Vec<_> = cache.flat_map(|(_, family)| &family.series).collect();
            let (flags, output) = (self.flags.join(" "), self.process.output());
            panic!("{flags}: no {count} answers of the cache within {ANSWERS_WITHIN:?}: {cache:#?}\n{output}");
        }
    }
}

/// All keys in one replica; keys in two replicas that do not fit together; and a cascade.
async fn proxies(stage: &mut Stage) -> [Proxy; 3] {
    let members: Vec<String> = (0..3).map(|number| stage.cluster.endpoint(number).to_owned()).collect();
    let members: Vec<&str> = members.iter().map(String::as_str).collect();
    let first = Proxy::start(stage, &members, &["--cache-prefix=k"]);
    let second = Proxy::start(stage, &members, &["--cache-prefix=k0,k", "--cache-bytes=2600"]);
    let upper = Proxy::start(stage, &[&first.endpoint, &second.endpoint], &["--cache-prefix=k"]);
    for proxy in [&first, &second, &upper] {
        stage.also(&proxy.client, 4);
        proxy.until_answers(10.0).await;
    }
    [first, second, upper]
}

fn plan() -> Plan {
    // Half of the clients are behind the proxies.
    Plan { per_member: 1, over_all: 2, requests_per_second: 150, leases: 1, ..Plan::default() }
}

#[test]
fn cached_reads_are_linearizable_while_members_and_proxies_are_killed() {
    run("cached-kills", &[], &plan(), async |stage| {
        let mut proxies = proxies(stage).await;
        for _ in 0..stage.times() {
            let killed = stage.any().await;
            stage.kill(killed);
            stage.writes(40).await;
            stage.cluster.restart(killed).await;
            let proxy = stage.random.usize(..proxies.len());
            proxies[proxy].restart(stage);
            stage.writes(40).await;
            for proxy in &proxies {
                proxy.until_answers(10.0).await;
            }
        }
        let metrics = proxies[1].metrics().await.expect("metrics");
        assert!(metrics.sum("watershed_proxy_cache_state_changes_total", "evicted") > 0.0, "nothing was evicted");
        for proxy in &proxies {
            let metrics = proxy.metrics().await.expect("metrics");
            assert_eq!(metrics.sum("watershed_proxy_cache_state_changes_total", "\"gap\""), 0.0, "disorder");
        }
        stage.hold(proxies.map(|proxy| proxy.process));
    });
}

#[test]
fn cached_reads_are_linearizable_while_a_member_hangs_or_is_cut_off() {
    run("cached-cuts", &[], &plan(), async |stage| {
        let proxies = proxies(stage).await;
        for round in 0..stage.times() {
            let number = stage.any().await;
            if round % 2 == 0 {
                stage.fault(format!("cut off {number}"));
                stage.cluster.network.around(&[number], |link| link.cut = true);
                stage.last(500..2500).await;
                stage.cluster.network.heal();
            } else {
                stage.pause(number);
                stage.last(300..1500).await;
                stage.resume(number);
            }
            stage.writes(40).await;
        }
        for proxy in &proxies {
            proxy.until_answers(10.0).await;
        }
        stage.hold(proxies.map(|proxy| proxy.process));
    });
}
