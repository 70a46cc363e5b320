//! `grpc-proxy start --cache`: ranges answered from replicas are those of a member.
//!
//! `fresh.rs` has what a read must show, `same.rs` that every answer is byte for byte the member's, `bounds.rs` memory,
//! namespaces, permissions and faults, `promoted.rs` what is cached because it is read often, `watched.rs` the watches of what is cached.

mod bounds;
mod fresh;
mod promoted;
mod same;
mod watched;

use watershed::client::Client;
use watershed::pb::etcdserverpb::{PutRequest, RangeRequest, RangeResponse};

use crate::harness::{Deployment, Process, Scrape, client, until};

/// A proxy that caches.
pub struct Cached {
    _process: Process,
    pub endpoint: String,
    pub client: Client,
}

impl Cached {
    /// Starts a proxy in front of the member, and reads `key` until the answer comes from its cache.
    pub async fn start(deployment: &Deployment, flags: &[&str], key: &'static str) -> Self {
        let flags: Vec<&str> = ["--cache=linearizable"].into_iter().chain(flags.iter().copied()).collect();
        let (process, endpoint) = deployment.also_front("grpc-proxy", &flags).await;
        let cached = Self { _process: process, client: client(&endpoint), endpoint };
        cached.until_answers(key).await;
        cached
    }

    /// Starts a proxy whose cache is as it is without flags for it.
    pub async fn start_empty(deployment: &Deployment, flags: &[&str]) -> Self {
        let (process, endpoint) = deployment.also_front("grpc-proxy", flags).await;
        Self { _process: process, client: client(&endpoint), endpoint }
    }

    pub async fn until_answers(&self, key: &'static str) {
        until("answers of the cache", || async move {
            let before = self.answers().await;
            self.get(key, false).await;
            (self.answers().await > before).then_some(())
        })
        .await;
    }

    pub async fn metrics(&self) -> Scrape {
        Scrape::of(&self.endpoint, "/proxy/metrics").await
    }

    /// Ranges answered from the cache.
    pub async fn answers(&self) -> f64 {
        self.metrics().await.sum("watershed_proxy_cache_answers_total", "")
    }

    pub async fn range(&self, request: RangeRequest) -> RangeResponse {
        self.client.kv().range(request).await.expect("range").into_inner()
    }

    pub async fn get(&self, key: &'static str, serializable: bool) -> RangeResponse {
        self.range(RangeRequest { key: key.into(), serializable, ..Default::default() }).await
    }

    pub async fn put(&self, key: &'static str, value: &str) -> i64 {
        let request = PutRequest { key: key.into(), value: value.to_owned().into(), ..Default::default() };
        self.client.kv().put(request).await.expect("put").into_inner().header.expect("header").revision
    }
}

/// The value of the only pair.
pub fn value(answer: &RangeResponse) -> Option<String> {
    answer.kvs.first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned())
}
