use std::sync::Arc;
use std::time::Instant;

use super::caller::Caller;
use super::error::Failure;
use super::published::Published;
use super::read_index::ReadIndex;
use crate::api_error::ApiError;
use crate::core::apply::{ApplyHandle, Login};
use crate::core::auth::{
    AuthError, AuthFact, AuthState, Identity, JwtError, JwtKeys, ROOT, SimpleTokens, TokenIndex, random_letters,
    simple_token,
};
use crate::listener::ConnectionInfo;
use crate::telemetry::unix_seconds;
use crate::types::LogIndex;

/// How logged-in users are known (`--auth-token`).
pub(super) enum Tokens {
    /// No user can log in.
    None,
    Simple(Box<SimpleTokens>),
    Jwt(Box<JwtKeys>),
}

/// Finds the user of a caller, and checks its permissions against the published users and roles.
pub(super) struct Authenticator {
    published: Arc<Published>,
    reads: Arc<ReadIndex>,
    apply: ApplyHandle,
    tokens: Tokens,
    /// Whether the CommonName of a client certificate is a user (`--client-cert-auth`).
    certificates: bool,
    /// Tokens of entries up to here were made before this process started, and ended with the one before.
    started_at: LogIndex,
}

/// Permission to read, given at an auth revision.
#[derive(Clone, Copy, Debug)]
#[must_use = "the auth revision is compared once more after the read"]
pub(super) struct ReadPermit(Option<u64>);

/// What a look at this member's state says of a caller.
enum Seen {
    /// Auth is off.
    Off,
    Known(Identity),
    /// A token whose entry is not applied here yet, if there is one.
    Ahead,
    Invalid,
}

impl Authenticator {
    pub(super) fn new(
        published: Arc<Published>,
        reads: Arc<ReadIndex>,
        apply: ApplyHandle,
        tokens: Tokens,
        certificates: bool,
        started_at: LogIndex,
    ) -> Self {
        Self { published, reads, apply, tokens, certificates, started_at }
    }

    /// Whether the client of this connection shows a certificate that would make it a user, were it not for the JSON
    /// gateway, where certificates count for nothing.
    pub(super) fn is_user_by_certificate(&self, connection: &ConnectionInfo) -> bool {
        self.certificates
            && self.published.auth_is_enabled()
            && connection.common_name.as_deref().is_some_and(|name| !name.is_empty())
    }

    /// Who a caller is; none while auth is off. Costs one load then.
    ///
    /// # Errors
    /// "Invalid auth token"; no answer from a quorum for a token that this member does not know yet.
    pub(super) async fn identify(&self, caller: &Caller) -> Result<Option<Identity>, ApiError> {
        match self.look(caller) {
            Seen::Off => Ok(None),
            Seen::Known(identity) => Ok(Some(identity)),
            Seen::Invalid => Err(ApiError::InvalidAuthToken),
            Seen::Ahead => {
                // After this, everything that was acknowledged is applied, logins too.
                self.reads.linearizable().await?;
                match self.look(caller) {
                    Seen::Off => Ok(None),
                    Seen::Known(identity) => Ok(Some(identity)),
                    Seen::Ahead | Seen::Invalid => Err(ApiError::InvalidAuthToken),
                }
            }
        }
    }

    /// The user of a caller if it needs no wait; none if it takes [`identify`](Self::identify).
    pub(super) fn identify_now(&self, caller: &Caller) -> Option<Result<Option<Identity>, ApiError>> {
        match self.look(caller) {
            Seen::Off => Some(Ok(None)),
            Seen::Known(identity) => Some(Ok(Some(identity))),
            Seen::Invalid => Some(Err(ApiError::InvalidAuthToken)),
            Seen::Ahead => None,
        }
    }

    fn look(&self, caller: &Caller) -> Seen {
        if !self.published.auth_is_enabled() {
            return Seen::Off;
        }
        let auth = self.published.auth();
        let Caller::Client { connection, through_gateway, .. } = caller else {
            return Seen::Known(auth.identity(ROOT));
        };
        if let Some(token) = caller.token() {
            return self.look_up(&auth, token);
        }
        if caller.has_token() {
            // One that is no text.
            return Seen::Invalid;
        }
        let name = match connection {
            Some(connection) if self.certificates && !through_gateway && !connection.certificates.is_empty() => {
                // One without a name is a user without a name, as in etcd: credentials, and no permission.
                Some(connection.common_name.as_deref().unwrap_or_default())
            }
            _ => None,
        };
        Seen::Known(name.map_or_else(Identity::default, |user| auth.identity(user)))
    }

    fn look_up(&self, auth: &AuthState, token: &str) -> Seen {
        match &self.tokens {
            Tokens::None => Seen::Invalid,
            Tokens::Jwt(keys) => keys.identity(token).map_or(Seen::Invalid, Seen::Known),
            Tokens::Simple(tokens) => {
                // Before the table: what is applied later cannot be missing from it.
                let applied = self.apply.applied();
                match (tokens.user(token, Instant::now()), TokenIndex::of(token)) {
                    (Some(user), _) => Seen::Known(Identity { user, revision: auth.revision() }),
                    (None, Some(TokenIndex(index))) if index > applied => Seen::Ahead,
                    (None, _) => Seen::Invalid,
                }
            }
        }
    }

    /// Permission to read: `check` decides by users and roles.
    ///
    /// # Errors
    /// As [`identify`](Self::identify), and what `check` says.
    pub(super) async fn may_read(
        &self,
        caller: &Caller,
        check: impl FnOnce(&AuthState, &Identity) -> Result<(), AuthError>,
    ) -> Result<ReadPermit, Failure> {
        let Some(who) = self.identify(caller).await? else { return Ok(ReadPermit(None)) };
        let auth = self.published.auth();
        check(&auth, &who)?;
        // Root passes some checks with a token of an earlier auth revision; what they were made by is what must not change.
        Ok(ReadPermit(Some(if who.is_known() { who.revision.max(auth.revision()) } else { 0 })))
    }

    /// Confirms a permission after the read: neither permissions nor users have changed meanwhile.
    ///
    /// # Errors
    /// "Revision of auth store is old".
    pub(super) fn confirm(&self, permit: ReadPermit) -> Result<(), ApiError> {
        match permit.0 {
            Some(revision) if revision != 0 && revision != self.published.auth().revision() => {
                Err(ApiError::AuthOldRevision)
            }
            _ => Ok(()),
        }
    }

    /// Demands credentials, of whomever.
    ///
    /// # Errors
    /// There are none, or no valid ones.
    pub(super) async fn require_user(&self, caller: &Caller) -> Result<(), Failure> {
        match self.identify(caller).await? {
            Some(who) => Ok(self.published.auth().check_known(&who)?),
            None => Ok(()),
        }
    }

    /// Demands the role root.
    ///
    /// # Errors
    /// The caller does not have it.
    pub(super) async fn require_admin(&self, caller: &Caller) -> Result<(), Failure> {
        match self.identify(caller).await? {
            Some(who) => Ok(self.published.auth().check_admin(&who)?),
            None => Ok(()),
        }
    }

    /// The random part of the token for a login; empty for a token that needs no entry.
    pub(super) fn letters(&self) -> Result<String, Failure> {
        match &self.tokens {
            Tokens::Simple(_) => random_letters().ok_or_else(|| Failure::Other("no randomness for a token".to_owned())),
            Tokens::None | Tokens::Jwt(_) => Ok(String::new()),
        }
    }

    /// The token for a login that was applied.
    pub(super) fn token(&self, letters: &str, login: &Login) -> Result<String, Failure> {
        match &self.tokens {
            Tokens::None => Err(AuthError::AuthFailed.into()),
            Tokens::Simple(_) => Ok(simple_token(letters, login.index)),
            Tokens::Jwt(keys) => {
                let now = unix_seconds();
                keys.sign(&login.identity, u64::try_from(now).unwrap_or_default())
                    .map_err(|error: JwtError| Failure::Other(error.to_string()))
            }
        }
    }

    /// Follows what was applied, before it is answered or shown to watches.
    pub(super) fn applied(&self, auth: &Arc<AuthState>, facts: Vec<AuthFact>) {
        // Tokens first: whoever sees the new users and roles sees that tokens ended with the old ones.
        if let Tokens::Simple(tokens) = &self.tokens {
            for fact in facts {
                match fact {
                    AuthFact::LoggedIn { user, token, index } if index > self.started_at => {
                        tokens.add(token, user, Instant::now());
                    }
                    AuthFact::LoggedIn { .. } => {}
                    AuthFact::UserChanged(user) => tokens.end_user(&user),
                    AuthFact::Disabled => tokens.clear(),
                }
            }
        }
        self.published.set_auth(auth.clone());
    }

    /// A snapshot takes the place of the state: this member has not seen which users changed.
    pub(super) fn installing(&self, auth: &Arc<AuthState>) {
        if let Tokens::Simple(tokens) = &self.tokens {
            tokens.clear();
        }
        self.published.set_auth(auth.clone());
    }
}
