use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwapOption;
use http::{HeaderName, HeaderValue};
use tonic::body::Body;

use super::pool::{Head, Pool};

const TOKEN: HeaderName = HeaderName::from_static("token");
const REQUIRE_LEADER: HeaderName = HeaderName::from_static("hasleader");

/// The transport under the generated clients: a [`Pool`] and what this client adds to each request. Cheap to clone.
///
/// Its calls never fail as such: trouble on the way is an answer with a gRPC status.
#[derive(Clone, Debug)]
pub struct Channel {
    pool: Pool,
    identity: Arc<Identity>,
}

/// What a client adds to each of its requests.
#[derive(Debug, Default)]
pub(super) struct Identity {
    pub(super) token: ArcSwapOption<HeaderValue>,
    pub(super) require_leader: bool,
}

impl Identity {
    fn mark(&self, headers: &mut http::HeaderMap) {
        if let Some(token) = self.token.load().as_deref()
            && !headers.contains_key(TOKEN)
        {
            headers.insert(TOKEN, token.clone());
        }
        if self.require_leader && !headers.contains_key(REQUIRE_LEADER) {
            headers.insert(REQUIRE_LEADER, HeaderValue::from_static("true"));
        }
    }
}

impl Channel {
    /// A channel that adds nothing of its own.
    pub fn new(pool: Pool) -> Self {
        Self { pool, identity: Arc::default() }
    }

    pub(super) fn with_identity(pool: Pool, identity: Identity) -> Self {
        Self { pool, identity: Arc::new(identity) }
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }
}

impl tower::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let mut head = Head::from_request(parts);
        self.identity.mark(&mut head.headers);
        let pool = self.pool.clone();
        Box::pin(async move { Ok(pool.request(&head, body).await) })
    }
}
