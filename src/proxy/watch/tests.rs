//! The hub between a made-up cluster and its clients, without sockets.

mod cluster;
mod scenarios;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::admission::ClientWatchAdmission;
use super::config::{Periods, WatchHubConfig};
use super::hub::WatchHub;
use super::metrics::ProxyWatchMetrics;
use super::upstream::Upstream;
use crate::eventlog::{WatchStream, WatcherSetHandle};
use crate::pb::encoded::WireEncode;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use crate::proxy::{Caller, Identity, Namespace};
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;
use cluster::FakeCluster;
use prost::Message;

/// A hub with one serving thread in front of a made-up cluster.
pub(in crate::proxy) struct Proxy<U = FakeCluster> {
    cluster: U,
    hub: WatchHub,
    watchers: WatcherSetHandle,
    metrics: ProxyWatchMetrics,
    tasks: Tasks,
}

impl Proxy {
    fn start(change: impl FnOnce(&mut WatchHubConfig)) -> Self {
        Self::over(FakeCluster::default(), change)
    }
}

impl<U: Upstream + Clone> Proxy<U> {
    pub(in crate::proxy) fn over(cluster: U, change: impl FnOnce(&mut WatchHubConfig)) -> Self {
        let mut config = WatchHubConfig::new(Namespace::default());
        let ms = Duration::from_millis;
        config.periods = Periods {
            linger: ms(40),
            retry_first: ms(1),
            retry_max: ms(5),
            progress_again: ms(1),
            refresh_max: Duration::from_secs(60),
            permission_max: ms(20),
            no_leader_max: ms(40),
            no_leader_fresh: ms(1000),
            position_max: Duration::from_secs(600),
            settled: ms(200),
            compaction_wait: ms(2000),
        };
        change(&mut config);
        let tasks = Tasks::new();
        let metrics = ProxyWatchMetrics::register(&Metrics::default());
        let hub = WatchHub::with_upstream(Arc::new(cluster.clone()), None, false, config, metrics.clone(), &tasks);
        let watchers = hub.inner.add_watcher_set(1, &tasks);
        Self { cluster, hub, watchers, metrics, tasks }
    }

    fn client(&self, identity: Identity) -> Client {
        self.client_of(Caller { identity, common_name: None })
    }

    fn client_of(&self, caller: Caller) -> Client {
        let (requests, incoming) = mpsc::channel(1024);
        let require_leader = caller.identity.require_leader();
        let admission = ClientWatchAdmission::new(&self.hub.inner, caller);
        let incoming = ReceiverStream::new(incoming);
        let stream = WatchStream::new(self.watchers.clone(), incoming, Box::new(admission), require_leader);
        Client { requests, stream }
    }

    pub(in crate::proxy) fn anonymous(&self) -> Client {
        self.client(Identity::default())
    }

    /// Upstream watches of its own, those of the range cache apart.
    pub(in crate::proxy) fn upstream_watches(&self) -> i64 {
        self.metrics.upstream_watches.get()
    }
}

impl<U> Drop for Proxy<U> {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

pub(in crate::proxy) struct Client {
    requests: mpsc::Sender<Result<WatchRequest, Status>>,
    stream: WatchStream<ReceiverStream<Result<WatchRequest, Status>>>,
}

impl Client {
    async fn send(&self, union: RequestUnion) {
        self.requests.send(Ok(WatchRequest { request_union: Some(union) })).await.unwrap();
    }

    pub(in crate::proxy) async fn create(&self, request: WatchCreateRequest) {
        self.send(RequestUnion::CreateRequest(request)).await;
    }

    async fn watch(&mut self, request: WatchCreateRequest) -> WatchResponse {
        self.create(request).await;
        self.next().await
    }

    pub(in crate::proxy) async fn progress(&self) {
        self.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    }

    pub(in crate::proxy) async fn try_next(&mut self) -> Result<WatchResponse, Status> {
        let response = self.stream.next().await.expect("watch streams end with a status")?;
        let mut wire = Vec::new();
        response.write(&mut wire);
        Ok(WatchResponse::decode(wire.as_slice()).unwrap())
    }

    async fn next(&mut self) -> WatchResponse {
        let next = tokio::time::timeout(Duration::from_secs(20), self.try_next()).await;
        next.expect("an answer").unwrap()
    }

    /// The next events as `key@revision`.
    async fn events(&mut self) -> Vec<String> {
        let response = self.next().await;
        assert!(!response.created && !response.canceled, "{response:?}");
        named(&response)
    }

    /// So many events, in however many responses they come.
    async fn all_events(&mut self, count: usize) -> Vec<String> {
        let mut events = Vec::new();
        while events.len() < count {
            events.extend(self.events().await);
        }
        events
    }
}

/// Waits until something holds that nobody announces.
async fn eventually(holds: impl Fn() -> bool) {
    let patience = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), patience).await.expect("it never came");
}

fn named(response: &WatchResponse) -> Vec<String> {
    let kvs = response.events.iter().map(|event| event.kv.as_ref().unwrap());
    kvs.map(|kv| format!("{}@{}", String::from_utf8_lossy(&kv.key), kv.mod_revision)).collect()
}

fn key(key: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.to_owned().into(), ..Default::default() }
}

fn prefix(prefix: &str) -> WatchCreateRequest {
    let range = crate::types::KeyRange::prefix(prefix.to_owned().into());
    let (key, range_end) = range.to_wire();
    WatchCreateRequest { key, range_end, ..Default::default() }
}

fn cancel(watch_id: i64) -> RequestUnion {
    RequestUnion::CancelRequest(WatchCancelRequest { watch_id })
}
