use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::HeaderValue;
use http::{Request, Response};
use hyper::body::Incoming;
use tonic::body::Body;
use tower::Service;

use super::core::Core;
use super::http::HttpFace;
use crate::core::peer::PEER_PATH;

/// What the peer port answers: who belongs to the cluster, which version this member runs, and the upgrade by which
/// the other members connect.
#[derive(Clone)]
pub struct PeerFace {
    core: Arc<Core>,
    http: HttpFace,
}

impl PeerFace {
    /// Builds the face of one member.
    pub fn new(core: Arc<Core>, http: HttpFace) -> Self {
        Self { core, http }
    }

    fn members(&self) -> Response<Body> {
        let cluster = self.core.published.cluster.load();
        let members: Vec<_> = cluster.members().collect();
        let json = serde_json::to_string(&members).unwrap_or_default();
        let mut response = super::http::json(json);
        if let Ok(id) = HeaderValue::from_str(&self.core.cluster.to_string()) {
            response.headers_mut().insert("x-etcd-cluster-id", id);
        }
        response
    }
}

/// What an address of `--listen-metrics-urls` answers: metrics and health, nothing else.
#[derive(Clone)]
pub struct MetricsFace(HttpFace);

impl MetricsFace {
    /// Builds the face of one member.
    pub fn new(http: HttpFace) -> Self {
        Self(http)
    }
}

impl Service<Request<Incoming>> for MetricsFace {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let http = self.0.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/version" => super::http::not_found(),
                _ => http.answer(request).await,
            })
        })
    }
}

impl Service<Request<Incoming>> for PeerFace {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        let face = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/members" => face.members(),
                "/version" => face.http.answer(request).await,
                PEER_PATH => face.core.peers.upgrade(&mut request).map(Body::new),
                _ => super::http::not_found(),
            })
        })
    }
}
