use std::sync::Arc;

use http::header::HeaderValue;
use http::{Request, Response};
use hyper::body::Incoming;
use tonic::body::Body;

use super::core::Core;
use super::http::HttpHandler;
use crate::core::peer::PEER_PATH;

/// What the peer port answers: who belongs to the cluster, which version this member runs, and the upgrade by which
/// the other members connect.
#[derive(Clone)]
pub struct PeerHandler {
    core: Arc<Core>,
    http: HttpHandler,
}

impl PeerHandler {
    /// Builds the handler of one member.
    pub fn new(core: Arc<Core>, http: HttpHandler) -> Self {
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

    /// Answers one request.
    pub async fn answer(self, mut request: Request<Incoming>) -> Response<Body> {
        match request.uri().path() {
            "/members" => self.members(),
            "/version" => self.http.answer(request).await,
            PEER_PATH => self.core.peers.upgrade(&mut request).map(Body::new),
            _ => super::http::not_found(),
        }
    }
}
