use std::sync::Arc;

use http::{Request, Response, StatusCode};
use tonic::body::Body;

use super::checks::{self, HealthChecks};
use super::debug_vars::raft_status;
use super::member_info::MemberInfo;
use super::published::Published;
use crate::core::apply::ApplyHandle;
use crate::core::raft::RaftHandle;
use crate::listener::ConnectionInfo;
use crate::pages::{
    BrowserRules, CheckQuery, JSON, Page, Profiles, TEXT, debug_vars, health_json, metrics_page, not_found, page,
    refused_method, text,
};
use crate::telemetry::Metrics;

/// What a member answers to plain HTTP: health, version, metrics.
#[derive(Clone)]
pub struct HttpHandler {
    pub(super) checks: Arc<HealthChecks>,
    pub(super) info: Arc<MemberInfo>,
    pub(super) raft: RaftHandle,
    pub(super) apply: ApplyHandle,
    pub(super) published: Arc<Published>,
    pub(super) metrics: Metrics,
    pub(super) rules: Arc<BrowserRules>,
    pub(super) profiles: Option<Profiles>,
}

/// Whether a request came over TLS.
pub(super) fn is_over_tls<B>(request: &Request<B>) -> bool {
    request.extensions().get::<Arc<ConnectionInfo>>().is_some_and(|connection| connection.is_tls())
}

impl HttpHandler {
    /// With profiles below `/debug/pprof/`, or without them.
    #[must_use]
    pub fn with_profiles(self, profiles: Option<Profiles>) -> Self {
        Self { profiles, ..self }
    }

    /// Answers one request. Bodies of requests are not read: nothing here takes one.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Body> {
        let is_over_tls = is_over_tls(&request);
        self.routed(is_over_tls, request).await
    }

    /// The same on a port that is not for clients: as in etcd, `--host-whitelist` is about theirs alone. Others are reached
    /// under names and addresses that nobody lists.
    pub(super) async fn answer_under_any_name<B>(&self, request: Request<B>) -> Response<Body> {
        // As over TLS, the name is not looked at.
        self.routed(true, request).await
    }

    async fn routed<B>(&self, any_name: bool, request: Request<B>) -> Response<Body> {
        let answer = |request: Request<B>| async move { self.route(&request).await.map(Body::new) };
        self.rules.guarded(any_name, request, answer).await
    }

    /// Applies the rules for browsers to a request that `answer` answers.
    pub(super) async fn guarded<B, F>(
        &self,
        request: Request<B>,
        answer: impl FnOnce(Request<B>) -> F,
    ) -> Response<Body>
    where
        F: Future<Output = Response<Body>>,
    {
        let is_over_tls = is_over_tls(&request);
        self.rules.guarded(is_over_tls, request, answer).await
    }

    /// Answers one request to an address of `--listen-metrics-urls`: metrics and health, nothing else.
    pub async fn answer_metrics<B>(self, request: Request<B>) -> Response<Body> {
        match request.uri().path() {
            "/version" => not_found().map(Body::new),
            path if path.starts_with("/debug/") => not_found().map(Body::new),
            _ => self.answer_under_any_name(request).await,
        }
    }

    async fn route<B>(&self, request: &Request<B>) -> Page {
        let path = request.uri().path();
        if let Some(profiles) = self.profiles.filter(|_| Profiles::has(path)) {
            return profiles.answer(request.method(), request.uri()).await;
        }
        let known =
            matches!(path, "/version" | "/health" | "/metrics" | "/debug/vars") || checks::parse_path(path).is_some();
        if !known {
            return not_found();
        }
        if let Some(refused) = refused_method(request.method(), path) {
            return refused;
        }
        let query = CheckQuery::parse(request.uri().query());
        match path {
            "/version" => page(StatusCode::OK, JSON, super::version::versions(&self.published)),
            "/metrics" => metrics_page(request.headers(), self.metrics.render()),
            "/health" => self.health(&query).await,
            "/debug/vars" => debug_vars(raft_status(self.info.member(), &self.raft, &self.apply).await),
            _ => match checks::parse_path(path) {
                Some((kind, single)) => self.checks.run(kind, single, &query).await.into_page(&query),
                None => not_found(),
            },
        }
    }

    async fn health(&self, query: &CheckQuery) -> Page {
        let outcome = self.checks.health(query).await;
        let body = health_json(&outcome);
        if outcome.is_ok() {
            self.checks.metrics.server.health_success.inc();
            return page(StatusCode::OK, TEXT, body);
        }
        self.checks.metrics.server.health_failures.inc();
        text(StatusCode::SERVICE_UNAVAILABLE, format!("{body}\n"))
    }
}
