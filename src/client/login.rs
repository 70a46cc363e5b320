use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;
use tracing::debug;

use super::config::Credentials;
use super::method::Method;
use super::pool::{Head, Pool, unframed};
use super::token_lifetime::TokenLifetime;
use crate::api_error::ApiError;
use crate::pb::etcdserverpb::{AuthenticateRequest, AuthenticateResponse};
use crate::pb::frame::framed;
use crate::telemetry::unix_seconds;

const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";
/// A token that was given later is not why a watch was refused.
const DOUBTED_AGE: Duration = Duration::from_secs(1);

/// A user of the cluster and the token of its last login.
///
/// At most one Authenticate is in progress: who needs a token meanwhile waits and takes the same outcome, so that any
/// number of requests costs the cluster one password check. A token that ends soon is renewed by the next request that
/// carries one, while the others go on with it.
#[derive(Debug)]
pub(super) struct Login {
    credentials: Credentials,
    in_progress: tokio::sync::Mutex<()>,
    last: ArcSwap<Last>,
    lifetime: Mutex<TokenLifetime>,
}

/// The last login and its number, so that an answer is never taken for one to a later token.
#[derive(Debug)]
struct Last {
    number: u64,
    outcome: Option<Result<Option<HeaderValue>, Status>>,
    at: Instant,
    /// When its token is renewed; none while nothing is known of its end.
    renew_at: Option<Instant>,
}

/// What to send along: nothing while the cluster runs without authentication.
#[derive(Clone, Debug)]
pub(super) struct Token {
    number: u64,
    pub(super) value: Option<HeaderValue>,
}

impl Login {
    pub(super) fn new(credentials: Credentials) -> Self {
        let none = Last { number: 0, outcome: None, at: Instant::now(), renew_at: None };
        Self {
            credentials,
            in_progress: tokio::sync::Mutex::default(),
            last: ArcSwap::from_pointee(none),
            lifetime: Mutex::default(),
        }
    }

    /// The token of the last login; logs in when there is none.
    ///
    /// # Errors
    /// What the cluster answered to the login.
    pub(super) async fn token(&self, pool: &Pool) -> Result<Token, Status> {
        let last = self.last.load_full();
        match &last.outcome {
            Some(Ok(_)) if last.is_due() => Ok(self.renewed(pool).await),
            Some(Ok(value)) => Ok(Token { number: last.number, value: value.clone() }),
            Some(Err(_)) | None => self.log_in(pool, last.number).await,
        }
    }

    /// A later token than `refused`.
    ///
    /// # Errors
    /// What the cluster answered to the login.
    pub(super) async fn later(&self, pool: &Pool, refused: &Token) -> Result<Token, Status> {
        self.learn(refused);
        self.log_in(pool, refused.number).await
    }

    /// Logs in for the next request that needs a token, unless that happened since `refused` was sent.
    pub(super) fn forget(&self, refused: &Token) {
        self.learn(refused);
        self.last.rcu(|last| match last.number == refused.number {
            true => Arc::new(Last { outcome: None, ..**last }),
            false => last.clone(),
        });
    }

    /// Has the next request log in, where the last token may be what was wrong: it is not new. Nothing is learned of how long
    /// tokens live.
    pub(super) fn doubt(&self) -> bool {
        let last = self.last.load_full();
        let is_old = matches!(last.outcome, Some(Ok(Some(_)))) && last.at.elapsed() >= DOUBTED_AGE;
        if is_old {
            let doubted = |now: &Arc<Last>| match now.number == last.number {
                true => Arc::new(Last { outcome: None, ..**now }),
                false => now.clone(),
            };
            self.last.rcu(doubted);
        }
        is_old
    }

    /// The token that the next request would carry.
    pub(super) fn current(&self) -> Token {
        let last = self.last.load();
        let value = last.outcome.as_ref().and_then(|outcome| outcome.as_ref().ok()).cloned().flatten();
        Token { number: last.number, value }
    }

    /// The token to carry where the last one is about to end. Who finds a login in progress carries the last one.
    async fn renewed(&self, pool: &Pool) -> Token {
        let Ok(_one) = self.in_progress.try_lock() else { return self.current() };
        let last = self.last.load_full();
        // Another request may have renewed it, or have had it refused.
        if !last.is_due() {
            return self.current();
        }
        match self.authenticate(pool).await {
            Ok(value) => {
                self.lifetime.lock().renewed();
                self.keep(last.number + 1, Ok(value));
            }
            // The last one is still good: whether it is refused decides.
            Err(status) => {
                debug!(user = self.credentials.name, %status, "token not renewed");
                let renew_at = Some(TokenLifetime::retry_at(Instant::now()));
                self.last.rcu(|last| Arc::new(Last { outcome: last.outcome.clone(), renew_at, ..**last }));
            }
        }
        self.current()
    }

    /// Takes note of how old a token was when it was refused.
    fn learn(&self, refused: &Token) {
        let last = self.last.load();
        if last.number == refused.number && matches!(last.outcome, Some(Ok(Some(_)))) {
            self.lifetime.lock().refused(last.at.elapsed());
        }
    }

    fn keep(&self, number: u64, outcome: Result<Option<HeaderValue>, Status>) {
        let now = Instant::now();
        let token = outcome.as_ref().ok().and_then(Option::as_ref);
        let renew_at = token.and_then(|token| self.lifetime.lock().renew_at(token, unix_seconds(), now));
        self.last.store(Arc::new(Last { number, outcome: Some(outcome), at: now, renew_at }));
    }

    /// Logs in, unless a login after number `seen` has ended meanwhile.
    async fn log_in(&self, pool: &Pool, seen: u64) -> Result<Token, Status> {
        let _one = self.in_progress.lock().await;
        let last = self.last.load_full();
        let outcome = match &last.outcome {
            Some(outcome) if last.number > seen => return with_number(last.number, outcome.clone()),
            _ => self.authenticate(pool).await,
        };
        let number = last.number + 1;
        self.keep(number, outcome.clone());
        with_number(number, outcome)
    }

    async fn authenticate(&self, pool: &Pool) -> Result<Option<HeaderValue>, Status> {
        let Credentials { name, password } = self.credentials.clone();
        debug!(user = name, "login");
        let request = AuthenticateRequest { name, password };
        let head = Head::grpc(AUTHENTICATE, HeaderMap::new());
        let answer = pool.exchange(Method::of(AUTHENTICATE), &head, framed(&request)).await;
        let answer: AuthenticateResponse = match unframed(answer).await {
            Ok(answer) => answer,
            Err(status) if ApiError::from_text(status.message()) == Some(ApiError::AuthNotEnabled) => return Ok(None),
            Err(status) => return Err(status),
        };
        let mut value = HeaderValue::from_str(&answer.token)
            .map_err(|_| Status::internal("the cluster answered with a token that a header cannot carry"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

impl Last {
    fn is_due(&self) -> bool {
        self.renew_at.is_some_and(|at| at <= Instant::now())
    }
}

fn with_number(number: u64, outcome: Result<Option<HeaderValue>, Status>) -> Result<Token, Status> {
    outcome.map(|value| Token { number, value })
}

/// Whether a member refused a request, or canceled a watch, for its token alone, before it did anything: another login can
/// help. A request without token is refused with the last of the three, by a cluster that has just enabled authentication.
pub(super) fn wants_login(text: &str) -> bool {
    matches!(
        ApiError::from_cancel_reason(text),
        Some(ApiError::InvalidAuthToken | ApiError::AuthOldRevision | ApiError::UserEmpty)
    )
}
