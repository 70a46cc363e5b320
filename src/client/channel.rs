use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body_util::BodyExt;
use tonic::Status;
use tonic::body::Body;
use tracing::debug;

use super::Endpoint;
use super::login::{Login, Token, wants_login};
use super::method::{Lane, Method};
use super::pool::{Deadline, Head, Pool, UpstreamStream, UpstreamWatch};
use crate::api_error::ApiError;
use crate::types::Credentials;

const TOKEN: HeaderName = HeaderName::from_static("token");
const REQUIRE_LEADER: HeaderName = HeaderName::from_static("hasleader");
/// Logins one request may cause. More than one happens where users or roles change all the time.
const LOGINS_MAX: usize = 3;
/// Times a write of a user by certificate is sent: each change of users between its proposal and its application refuses it.
const SENT_MAX: usize = 10;

/// The transport under the generated clients: a [`Pool`] and what this client adds to each request. Cheap to clone.
///
/// Its calls never fail as such: trouble on the way is an answer with a gRPC status.
#[derive(Clone, Debug)]
pub struct Channel {
    pool: Pool,
    identity: Arc<Identity>,
}

/// A user whose login all channels made with it share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SharedLogin {
    identity: Arc<Identity>,
}

impl SharedLogin {
    /// A user that is logged in with the first request of any of the channels.
    pub fn new(credentials: Credentials) -> Self {
        Self { identity: Arc::new(Identity { login: Some(Login::new(credentials)), ..Identity::default() }) }
    }
}

/// Which token a stream was opened with; by default the last one, whatever it is. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Carried(Option<Token>);

impl Carried {
    fn by(&self, login: &Login) -> Token {
        self.0.clone().unwrap_or_else(|| login.current())
    }
}

/// What a client adds to each of its requests.
#[derive(Debug, Default)]
pub(super) struct Identity {
    /// A token obtained elsewhere. This client cannot renew it.
    pub(super) token: Option<HeaderValue>,
    pub(super) login: Option<Arc<Login>>,
    /// Whether the user can only be the one that the certificate names.
    pub(super) by_certificate: bool,
    pub(super) require_leader: bool,
}

impl Identity {
    fn mark(&self, headers: &mut HeaderMap) {
        if let Some(token) = &self.token
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

    /// A channel whose requests are those of a user, which is logged in with the first of them.
    pub fn of_user(pool: Pool, credentials: Credentials) -> Self {
        Self::with_identity(pool, Identity { login: Some(Login::new(credentials)), ..Identity::default() })
    }

    /// The same user with requests through another pool; the two share one login.
    #[must_use]
    pub fn through(&self, pool: Pool) -> Self {
        Self { pool, identity: self.identity.clone() }
    }

    /// [`through`](Self::through), where the user goes with each request; none where a certificate may, which connections carry.
    pub fn try_through(&self, pool: &Pool) -> Option<Self> {
        self.identity.login.is_some().then(|| self.through(pool.clone()))
    }

    /// A channel whose requests are those of a user that other channels may have logged in already.
    pub fn of_login(pool: Pool, login: &SharedLogin) -> Self {
        Self { pool, identity: login.identity.clone() }
    }

    /// A channel whose requests are those of the user that the certificate of its pool names.
    pub fn of_certificate(pool: Pool) -> Self {
        Self::with_identity(pool, Identity { by_certificate: true, ..Identity::default() })
    }

    pub(super) fn with_identity(pool: Pool, identity: Identity) -> Self {
        Self { pool, identity: Arc::new(identity) }
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The token of the configured user; logs in when there is none yet.
    pub(super) async fn login(&self) -> Result<(), Status> {
        match &self.identity.login {
            Some(login) => login.token(&self.pool).await.map(drop),
            None => Ok(()),
        }
    }

    /// Sends one request message and returns the answer: [`Pool::exchange`] as the user of this channel.
    pub async fn exchange(&self, method: Method, head: &Head, payload: Bytes) -> Response<Body> {
        let mut head = head.clone();
        self.identity.mark(&mut head.headers);
        match &self.identity.login {
            Some(login) => self.exchange_as(method, head, payload, login).await,
            None => self.pool.exchange(method, &head, payload).await,
        }
    }

    /// Opens a watch stream as the user of this channel, see [`Pool::open_watch`]. What ends it or one of its watches is to
    /// be given to [`refused`](Self::refused).
    ///
    /// # Errors
    /// When no member can be reached, or what the cluster answered to the login.
    pub async fn open_watch(&self, metadata: &HeaderMap) -> Result<(UpstreamWatch, Carried), Status> {
        let mut metadata = metadata.clone();
        let carried = self.mark(&mut metadata).await?;
        Ok((self.pool.open_watch(&metadata).await?, carried))
    }

    /// Endpoints in use, see [`Pool::endpoints`].
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.pool.endpoints()
    }

    /// Opens a stream as the user of this channel, elsewhere than at `last` if possible. What ends it is to be given to
    /// [`refused`](Self::refused).
    ///
    /// # Errors
    /// When no member can be reached, or what the cluster answered to the login.
    pub async fn open_elsewhere(
        &self,
        lane: Lane,
        head: &Head,
        last: Option<&Endpoint>,
    ) -> Result<(UpstreamStream, Carried), Status> {
        let mut head = head.clone();
        let carried = self.mark(&mut head.headers).await?;
        Ok((self.pool.open_elsewhere(lane, &head, last).await?, carried))
    }

    /// Adds what this client adds to its streams.
    async fn mark(&self, headers: &mut HeaderMap) -> Result<Carried, Status> {
        self.identity.mark(headers);
        let Some(login) = &self.identity.login else { return Ok(Carried::default()) };
        let token = login.token(&self.pool).await?;
        carry(headers, &token);
        Ok(Carried(Some(token)))
    }

    /// Takes the reason for which a member ended a stream or a watch that was opened with this token. Returns whether the next
    /// request has another one because of it; it logs in, unless that has happened since the stream was opened.
    pub fn refused(&self, carried: &Carried, reason: &str) -> bool {
        match &self.identity.login {
            Some(login) if wants_login(reason) => {
                login.forget(&carried.by(login), reason);
                true
            }
            _ => false,
        }
    }

    /// [`refused`](Self::refused) for the reason for which a watch was canceled. Of one with a token that has expired etcd 3.5.1 says
    /// "permission denied", as of one that the user may not have; only with a new token that is known to be meant.
    pub fn refused_watch(&self, carried: &Carried, reason: &str) -> bool {
        let is_denied = ApiError::from_cancel_reason(reason) == Some(ApiError::PermissionDenied);
        let is_doubted = |login: &Arc<Login>| login.doubt(&carried.by(login));
        self.refused(carried, reason) || (is_denied && self.identity.login.as_ref().is_some_and(is_doubted))
    }

    /// Sends a request with the user's token, and again with another one when the member refuses it for its token.
    async fn send_as(self, mut head: Head, body: Body, login: &Arc<Login>) -> Response<Body> {
        let method = Method::of(head.path.path());
        if !method.one_request {
            let token = match login.token(&self.pool).await {
                Ok(token) => token,
                Err(status) => return status.into_http(),
            };
            // What the caller wrote into the stream is gone, so opening it again is the caller's part.
            carry(&mut head.headers, &token);
            let answer = self.pool.request(&head, body).await;
            if let Some(refusal) = refusal(&answer) {
                login.forget(&token, refusal.message());
            }
            return answer;
        }
        let payload = match body.collect().await {
            Ok(payload) => payload.to_bytes(),
            Err(status) => return status.into_http(),
        };
        self.exchange_as(method, head, payload, login).await
    }

    async fn exchange_as(&self, method: Method, mut head: Head, payload: Bytes, login: &Arc<Login>) -> Response<Body> {
        let deadline = Deadline::of(&head.headers);
        let mut token = match login.token(&self.pool).await {
            Ok(token) => token,
            Err(status) => return status.into_http(),
        };
        for _ in 0..LOGINS_MAX {
            carry(&mut head.headers, &token);
            let answer = self.pool.exchange(method, &head, payload.clone()).await;
            let Some(refusal) = refusal(&answer) else { return answer };
            token = match login.later(&self.pool, &token, refusal.message()).await {
                Ok(token) => token,
                Err(status) => return status.into_http(),
            };
            if let Err(status) = deadline.renew(&mut head.headers) {
                return status.into_http();
            }
        }
        carry(&mut head.headers, &token);
        self.pool.exchange(method, &head, payload).await
    }

    /// Sends a write again while it is refused because users changed before it was applied: it was not executed. Who has
    /// a token logs in again for that, a user by certificate has nothing to renew.
    async fn send_by_certificate(self, method: Method, mut head: Head, body: Body) -> Response<Body> {
        let payload = match body.collect().await {
            Ok(payload) => payload.to_bytes(),
            Err(status) => return status.into_http(),
        };
        let deadline = Deadline::of(&head.headers);
        for _ in 1..SENT_MAX {
            let answer = self.pool.exchange(method, &head, payload.clone()).await;
            let status = Status::from_header_map(answer.headers());
            let is_old = |status: Status| ApiError::from_text(status.message()) == Some(ApiError::AuthOldRevision);
            if !status.is_some_and(is_old) {
                return answer;
            }
            if let Err(status) = deadline.renew(&mut head.headers) {
                return status.into_http();
            }
        }
        self.pool.exchange(method, &head, payload).await
    }
}

fn carry(headers: &mut HeaderMap, token: &Token) {
    match &token.value {
        Some(value) => headers.insert(TOKEN, value.clone()),
        None => headers.remove(TOKEN),
    };
}

/// The refusal of a request for its token alone.
fn refusal(answer: &Response<Body>) -> Option<Status> {
    Status::from_header_map(answer.headers()).filter(|status| wants_login(status.message()))
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
        debug!(method = %head.path, "request");
        if self.identity.login.is_some() && !head.headers.contains_key(TOKEN) {
            let channel = self.clone();
            return Box::pin(async move {
                let identity = channel.identity.clone();
                match &identity.login {
                    Some(login) => Ok(channel.send_as(head, body, login).await),
                    None => Ok(channel.pool.request(&head, body).await),
                }
            });
        }
        let method = Method::of(head.path.path());
        if self.identity.by_certificate && method.one_request && !head.headers.contains_key(TOKEN) {
            let channel = self.clone();
            return Box::pin(async move { Ok(channel.send_by_certificate(method, head, body).await) });
        }
        let pool = self.pool.clone();
        Box::pin(async move { Ok(pool.request(&head, body).await) })
    }
}
