use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::auth::AuthService;
use super::checks::HealthChecks;
use super::cluster::ClusterService;
use super::gauges::refresh_gauges;
use super::http::HttpHandler;
use super::kv::KvService;
use super::lease::{LeaseParts, LeaseService};
use super::maintenance::MaintenanceService;
use super::parts::Parts;
use super::peer_port::PeerHandler;
use super::route::{Router, RouterParts, Services, Traffic};
use super::watch::{WatchContext, WatchService, read_check};
use crate::config::FeatureGates;
use crate::core::raft::RaftStatus;
use crate::core::reply;
use crate::core::watch::CoreWatch;
use crate::eventlog::{HeaderSource, WatchLimits};
use crate::pages::BrowserRules;
use crate::shutdown::Tasks;
use crate::telemetry::{Metrics, WatchMetrics};

/// Builds what answers on the ports of a member.
#[derive(Clone)]
pub struct ServiceBuilder {
    parts: Parts,
    watch: CoreWatch,
    /// Whether calls may come as JSON.
    json: bool,
    /// Whether the gRPC health service says during a defragmentation that nothing is served.
    pauses: bool,
    paused: watch::Sender<bool>,
}

impl ServiceBuilder {
    pub(super) fn new(parts: Parts, watch: CoreWatch) -> Self {
        Self { parts, watch, json: true, pauses: false, paused: watch::Sender::new(false) }
    }

    /// Without `json`, calls come as gRPC only.
    #[must_use]
    pub fn with_json(self, json: bool) -> Self {
        Self { json, ..self }
    }

    /// With `pauses`, the gRPC health service says `NOT_SERVING` during a defragmentation.
    #[must_use]
    pub fn pausing_for_defragmentation(self, pauses: bool) -> Self {
        Self { pauses, ..self }
    }

    /// Fills the gauges of `registry` whenever it is read.
    pub fn refresh_gauges(&self, registry: &Metrics, gates: FeatureGates) {
        refresh_gauges(registry, self.parts.clone(), gates);
    }

    /// Answers plain HTTP: health, version, metrics.
    pub fn http(&self, metrics: Metrics, rules: BrowserRules) -> HttpHandler {
        let parts = &self.parts;
        let checks = HealthChecks {
            raft: parts.raft.clone(),
            published: parts.published.clone(),
            reads: parts.reads.clone(),
            store: parts.store.clone(),
            metrics: parts.metrics.clone(),
        };
        HttpHandler {
            checks: Arc::new(checks),
            info: parts.info.clone(),
            raft: parts.raft.clone(),
            apply: parts.apply.clone(),
            published: parts.published.clone(),
            metrics,
            rules: Arc::new(rules),
            profiles: None,
        }
    }

    /// Answers on the peer port.
    pub fn peers(&self, http: HttpHandler) -> PeerHandler {
        let Parts { info, published, peers, .. } = &self.parts;
        PeerHandler { info: info.clone(), published: published.clone(), peers: peers.clone(), http }
    }

    /// What the Watch services of all serving threads share.
    pub fn watch_context(&self, metrics: WatchMetrics, progress_interval: Duration) -> Arc<WatchContext> {
        let Parts { info, published, raft, limits, .. } = &self.parts;
        Arc::new(WatchContext {
            watch: self.watch.clone(),
            header_source: Arc::new(HeaderSource::new(info.cluster(), info.member(), raft.term())),
            limits: WatchLimits {
                fragment_bytes: limits.max_message_bytes(),
                progress_interval: Some(progress_interval),
                ..WatchLimits::default()
            },
            metrics,
            may_read: read_check(self.parts.authenticator.clone(), published.clone()),
            corrupt: published.corrupt(),
            election_timeout: limits.election_timeout,
        })
    }

    /// Starts the services of one serving thread, on its runtime. `worker` is the number of the thread.
    /// `traffic` is what each listener is for.
    pub fn router(
        &self,
        watch: Arc<WatchContext>,
        worker: usize,
        traffic: Arc<[Traffic]>,
        http: HttpHandler,
        tasks: &Tasks,
    ) -> Router {
        reply::serve_here(tasks);
        let leadership = |status: &RaftStatus| (status.leader.is_some(), status.term);
        let watch = WatchService::start(watch, worker, self.parts.raft.status(), leadership, tasks);
        let Parts { published, raft, metrics, limits, .. } = &self.parts;
        let member = RouterParts {
            published: published.clone(),
            raft: raft.clone(),
            metrics: metrics.clone(),
            max_message_bytes: limits.max_message_bytes(),
            authenticator: self.parts.authenticator.clone(),
            json: self.json,
            traffic,
            paused: self.paused.subscribe(),
        };
        Router::new(self.services(watch), member, http, tasks.clone())
    }

    fn services(&self, watch: WatchService) -> Services {
        let parts = self.parts.clone();
        let kv = KvService {
            info: parts.info.clone(),
            published: parts.published.clone(),
            proposer: parts.proposer.clone(),
            reads: parts.reads.clone(),
            quota: parts.quota.clone(),
            authenticator: parts.authenticator.clone(),
            leases: parts.clock.clone(),
            store: parts.store.clone(),
            apply: parts.apply.clone(),
            answers: parts.answers.clone(),
            metrics: parts.metrics.clone(),
            limits: parts.limits.clone(),
        };
        let lease = LeaseService::new(LeaseParts {
            info: parts.info.clone(),
            published: parts.published.clone(),
            proposer: parts.proposer.clone(),
            authenticator: parts.authenticator.clone(),
            quota: parts.quota,
            leases: parts.leases,
            renewals: parts.renewals,
            store: parts.store.clone(),
            answers: parts.answers.clone(),
            timeout: parts.limits.request_timeout,
        });
        let cluster = ClusterService {
            info: parts.info.clone(),
            published: parts.published.clone(),
            reads: parts.reads.clone(),
            authenticator: parts.authenticator.clone(),
            changes: parts.changes,
            raft: parts.raft.clone(),
            peers: parts.peers,
            metrics: parts.metrics.clone(),
            timeout: parts.limits.request_timeout,
        };
        let auth = AuthService {
            info: parts.info.clone(),
            published: parts.published.clone(),
            proposer: parts.proposer.clone(),
            reads: parts.reads.clone(),
            authenticator: parts.authenticator.clone(),
            passwords: parts.passwords.clone(),
        };
        let maintenance = MaintenanceService {
            info: parts.info.clone(),
            raft: parts.raft,
            store: parts.store,
            backend: parts.backend,
            apply: parts.apply,
            published: parts.published,
            proposer: parts.proposer,
            authenticator: parts.authenticator,
            reads: parts.reads,
            transfer: parts.transfer,
            answers: parts.answers,
            metrics: parts.metrics,
            paused: self.pauses.then(|| self.paused.clone()),
            quota_bytes: parts.limits.quota_bytes,
        };
        Services {
            kv: Arc::new(kv),
            watch,
            lease,
            cluster: Arc::new(cluster),
            maintenance: Arc::new(maintenance),
            auth: Arc::new(auth),
        }
    }
}
