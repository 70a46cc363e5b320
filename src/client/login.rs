use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tonic::Status;
use tracing::debug;

use super::method::Method;
use super::pool::{Head, Pool, unframed};
use super::token_lifetime::TokenLifetime;
use super::turns::{Turn, Turns};
use crate::api_error::ApiError;
use crate::pb::etcdserverpb::{AuthenticateRequest, AuthenticateResponse};
use crate::pb::frame::framed;
use crate::telemetry::unix_seconds;
use crate::types::Credentials;

const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";
/// A token that was given later is not why a watch was refused.
const DOUBTED_AGE: Duration = Duration::from_secs(1);
/// How long a request waits for the renewal of its token, which is still good: without a quorum nobody can log in, and members go on to
/// answer serializable reads.
const RENEWAL_WAIT: Duration = Duration::from_secs(1);
/// How long the renewal itself may take, for which nobody waits any more: a cluster may be set to make passwords slow to check. Who needs a
/// login meanwhile, because the token was refused, waits for its end.
const RENEWAL_MAX: Duration = Duration::from_secs(10);

/// A user of the cluster and the token of its last login.
///
/// At most one Authenticate is in progress: who needs a token meanwhile waits and takes the same outcome, so that any
/// number of requests costs the cluster one password check. A token that ends soon is renewed by the next request that
/// carries one, while the others go on with it.
///
/// A task authenticates, and who waits holds no lock: see [`Turns`].
#[derive(Debug)]
pub(super) struct Login {
    credentials: Credentials,
    /// The right to authenticate.
    turns: Arc<Turns>,
    last: ArcSwap<Last>,
    lifetime: Mutex<TokenLifetime>,
}

/// The last login and its number, so that an answer is never taken for one to a later token.
#[derive(Debug)]
struct Last {
    number: u64,
    outcome: Option<Authenticated>,
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
    pub(super) fn new(credentials: Credentials) -> Arc<Self> {
        let none = Last { number: 0, outcome: None, at: Instant::now(), renew_at: None };
        Arc::new(Self {
            credentials,
            turns: Arc::default(),
            last: ArcSwap::from_pointee(none),
            lifetime: Mutex::default(),
        })
    }

    /// The token of the last login; logs in when there is none.
    ///
    /// # Errors
    /// What the cluster answered to the login.
    pub(super) async fn token(self: &Arc<Self>, pool: &Pool) -> Result<Token, Status> {
        let last = self.last.load_full();
        match &last.outcome {
            Some(Ok(_)) if last.is_due() => Ok(self.renewed(pool).await),
            Some(Ok(value)) => Ok(Token { number: last.number, value: value.clone() }),
            Some(Err(_)) | None => self.log_in(pool, last.number).await,
        }
    }

    /// A later token than `refused`, which a member refused with this text.
    ///
    /// # Errors
    /// What the cluster answered to the login.
    pub(super) async fn later(self: &Arc<Self>, pool: &Pool, refused: &Token, text: &str) -> Result<Token, Status> {
        self.learn(refused, text);
        self.log_in(pool, refused.number).await
    }

    /// Logs in for the next request that needs a token, unless that happened since `refused` was sent, which a member
    /// refused with this text.
    pub(super) fn forget(&self, refused: &Token, text: &str) {
        self.learn(refused, text);
        self.last.rcu(|last| match last.number == refused.number {
            true => Arc::new(Last { outcome: None, ..**last }),
            false => last.clone(),
        });
    }

    /// Has the next request log in, where the token of a watch that was denied may be what was wrong: it is not new. Nothing is learned of
    /// how long tokens live. True, too, where there is a later one.
    pub(super) fn doubt(&self, denied: &Token) -> bool {
        let last = self.last.load_full();
        if denied.number < last.number {
            return true;
        }
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
    async fn renewed(self: &Arc<Self>, pool: &Pool) -> Token {
        let Some(turn) = self.turns.take() else { return self.current() };
        // Another request may have renewed it, or have had it refused.
        if self.last.load().is_due() {
            let (login, task_pool, stop) = (self.clone(), pool.clone(), pool.tasks().stop_signal());
            // Not given up when the caller leaves: each one would begin anew, and none would get to the end of a slow login.
            let renewal = pool.tasks().spawn(async move {
                let outcome = tokio::select! {
                    outcome = timeout(RENEWAL_MAX, login.authenticate(&task_pool)) => outcome,
                    () = stop.cancelled() => return,
                };
                login.end_renewal(outcome.unwrap_or_else(|_| Err(ApiError::Timeout.into())));
                drop(turn);
            });
            let _ = timeout(RENEWAL_WAIT, renewal).await;
        }
        self.current()
    }

    fn end_renewal(&self, outcome: Authenticated) {
        match outcome {
            Ok(value) => {
                self.lifetime.lock().renewed();
                let _ = self.keep(Ok(value));
            }
            // The last one is still good: whether it is refused decides.
            Err(status) => {
                debug!(user = self.credentials.name, %status, "token not renewed");
                self.put_off_renewal();
            }
        }
    }

    fn put_off_renewal(&self) {
        let renew_at = Some(TokenLifetime::retry_at(Instant::now()));
        self.last.rcu(|last| Arc::new(Last { outcome: last.outcome.clone(), renew_at, ..**last }));
    }

    /// Takes note of how old a token was when it was refused because members have forgotten it. That users or roles changed
    /// since, or that authentication was off, says nothing of how long tokens live.
    fn learn(&self, refused: &Token, text: &str) {
        if ApiError::from_cancel_reason(text) != Some(ApiError::InvalidAuthToken) {
            return;
        }
        let last = self.last.load();
        if last.number == refused.number && matches!(last.outcome, Some(Ok(Some(_)))) {
            self.lifetime.lock().refused(last.at.elapsed());
        }
    }

    /// Makes this the last login. Only who has the turn does.
    fn keep(&self, outcome: Authenticated) -> Result<Token, Status> {
        let now = Instant::now();
        let number = self.last.load().number + 1;
        let token = outcome.as_ref().ok().and_then(Option::as_ref);
        let renew_at = token.and_then(|token| self.lifetime.lock().renew_at(token, unix_seconds(), now));
        self.last.store(Arc::new(Last { number, outcome: Some(outcome.clone()), at: now, renew_at }));
        with_number(number, outcome)
    }

    /// Logs in, unless a login after number `seen` has ended meanwhile.
    async fn log_in(self: &Arc<Self>, pool: &Pool, seen: u64) -> Result<Token, Status> {
        loop {
            // Before the look at the last login, so that none is missed that ends in between.
            let ended = self.turns.ended();
            let turn = self.turns.take();
            let last = self.last.load_full();
            if let Some(outcome) = &last.outcome
                && last.number > seen
            {
                return with_number(last.number, outcome.clone());
            }
            match turn {
                Some(turn) => return self.authenticate_in_task(turn, pool).await,
                None => ended.await,
            }
        }
    }

    /// Authenticates for as long as the caller is there, whether it is polled or not.
    async fn authenticate_in_task(self: &Arc<Self>, turn: Turn, pool: &Pool) -> Result<Token, Status> {
        let (mut tell, told) = oneshot::channel();
        let (login, task_pool) = (self.clone(), pool.clone());
        pool.tasks().spawn(async move {
            let outcome = tokio::select! {
                outcome = login.authenticate(&task_pool) => outcome,
                () = tell.closed() => return,
            };
            let outcome = login.keep(outcome);
            drop(turn);
            // The caller may have left meanwhile.
            let _ = tell.send(outcome);
        });
        told.await.unwrap_or_else(|_| Err(ApiError::Stopped.into()))
    }

    async fn authenticate(&self, pool: &Pool) -> Authenticated {
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

/// The header with the token, none with auth off.
type Authenticated = Result<Option<HeaderValue>, Status>;

impl Last {
    fn is_due(&self) -> bool {
        self.renew_at.is_some_and(|at| at <= Instant::now())
    }
}

fn with_number(number: u64, outcome: Authenticated) -> Result<Token, Status> {
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
