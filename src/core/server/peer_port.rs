use std::sync::Arc;

use http::header::HeaderValue;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tonic::body::Body;

use super::http::HttpHandler;
use super::member_info::MemberInfo;
use super::published::Published;
use crate::core::peer::{PEER_PATH, PeerTransport};
use crate::pages::{JSON, not_found, page};

/// What the peer port answers: who belongs to the cluster, which version this member runs, and the upgrade by which
/// the other members connect.
#[derive(Clone)]
pub struct PeerHandler {
    pub(super) info: Arc<MemberInfo>,
    pub(super) published: Arc<Published>,
    pub(super) peers: PeerTransport,
    pub(super) http: HttpHandler,
}

impl PeerHandler {
    fn members(&self) -> Response<Body> {
        let cluster = self.published.cluster();
        let members: Vec<_> = cluster.members().collect();
        let json = serde_json::to_string(&members).unwrap_or_default();
        let mut response = page(StatusCode::OK, JSON, json).map(Body::new);
        if let Ok(id) = HeaderValue::from_str(&self.info.cluster().to_string()) {
            response.headers_mut().insert("x-etcd-cluster-id", id);
        }
        response
    }

    /// Answers one request.
    pub async fn answer(self, mut request: Request<Incoming>) -> Response<Body> {
        match request.uri().path() {
            "/members" => self.members(),
            "/version" => self.http.answer_under_any_name(request).await,
            PEER_PATH => self.peers.upgrade(&mut request).map(Body::new),
            _ => not_found().map(Body::new),
        }
    }
}
