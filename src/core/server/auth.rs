use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::authenticator::Authenticator;
use super::caller::Caller;
use super::error::Failure;
use super::member_info::MemberInfo;
use super::password_threads::PasswordThreads;
use super::proposer::Proposer;
use super::published::Published;
use super::read_index::ReadIndex;
use crate::api_error::ApiError;
use crate::core::auth::{AuthError, AuthState, Identity, compared_part};
use crate::pb::etcdserverpb::auth_server::Auth;
use crate::pb::etcdserverpb::*;

/// Passwords compared for one login while users change; etcd has no end.
const ATTEMPTS_MAX: usize = 8;
/// Bytes of a user's name in the log.
const NAME_SHOWN_MAX: usize = 256;

/// The Auth service: users, roles, logins.
pub(super) struct AuthService {
    pub(super) info: Arc<MemberInfo>,
    pub(super) published: Arc<Published>,
    pub(super) proposer: Arc<Proposer>,
    pub(super) reads: Arc<ReadIndex>,
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) passwords: PasswordThreads,
}

impl AuthService {
    /// Reads users and roles as of now.
    async fn read<T>(
        &self,
        caller: &Caller,
        read: impl FnOnce(&AuthState, &Identity) -> Result<T, AuthError>,
    ) -> Result<T, Failure> {
        self.reads.linearizable().await?;
        let who = self.authenticator.identify(caller).await?.unwrap_or_default();
        Ok(read(&self.published.auth(), &who)?)
    }

    /// Refuses callers without the role root before anything costly is done for them. What is applied is checked again.
    async fn require_admin_before_hashing(&self, caller: &Caller) -> Result<(), Failure> {
        match self.authenticator.require_admin(caller).await {
            Ok(()) => Ok(()),
            Err(_) => {
                // It may have got the role a moment ago, from another member.
                self.reads.linearizable().await?;
                self.authenticator.require_admin(caller).await
            }
        }
    }

    /// The hash of a password as requests carry it.
    async fn hashed(&self, caller: &Caller, password: &mut String) -> Result<String, Failure> {
        self.require_admin_before_hashing(caller).await?;
        Ok(STANDARD.encode(self.passwords.hash(std::mem::take(password)).await?))
    }

    /// Compares a password and makes a token.
    async fn log_in(&self, request: AuthenticateRequest) -> Result<String, Failure> {
        // Many logins may wait here, of callers that nobody knows yet: each keeps what is needed of its request.
        let AuthenticateRequest { mut name, password } = request;
        let compared = compared_part(&password);
        drop(password);
        self.reads.linearizable().await?;
        let mut matched = None;
        for _ in 0..ATTEMPTS_MAX {
            let (hash, revision) = {
                let auth = self.published.auth();
                (auth.password_hash(&name)?, auth.revision())
            };
            if hash.is_none() {
                // Nobody's, so it can be as long as a request.
                name = String::new();
            }
            // bcrypt takes long; a hash that is the same as before needs no second comparison.
            if matched.is_none() || matched != hash {
                if !self.passwords.matches(compared.clone(), hash.clone()).await? {
                    return Err(AuthError::AuthFailed.into());
                }
                matched = hash;
            }
            let letters = self.authenticator.letters()?;
            let request =
                InternalAuthenticateRequest { name: name.clone(), simple_token: letters.clone(), ..Default::default() };
            let login = self.proposer.propose(&Caller::Member, request).await?;
            // What was compared is what held when the token was made: nothing changed, or not this password.
            if login.identity.revision == revision || self.published.auth().password_hash(&name)? == matched {
                return self.authenticator.token(&letters, &login);
            }
            info!("revision when password checked became stale; retrying");
        }
        Err(ApiError::AuthOldRevision.into())
    }
}

/// Methods whose request goes into the log as it is, and whose answer is a header.
macro_rules! auth_service {
    ($($method:ident($request:ident) -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl Auth for AuthService {
            $(async fn $method(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                let (caller, request) = Caller::split(request);
                self.proposer.propose(&caller, request).await?;
                Ok(Response::new($response { header: Some(self.info.header_now()) }))
            })*

            async fn auth_status(
                &self,
                request: Request<AuthStatusRequest>,
            ) -> Result<Response<AuthStatusResponse>, Status> {
                self.reads.linearizable().await?;
                // Needs no user; but a token that is not valid is refused, as everywhere.
                self.authenticator.identify(&Caller::of(&request)).await?;
                let (enabled, auth_revision) = {
                    let auth = self.published.auth();
                    (auth.is_enabled(), auth.revision())
                };
                Ok(Response::new(AuthStatusResponse { header: Some(self.info.header_now()), enabled, auth_revision }))
            }

            async fn authenticate(
                &self,
                request: Request<AuthenticateRequest>,
            ) -> Result<Response<AuthenticateResponse>, Status> {
                let (caller, request) = Caller::split(request);
                let name = request.name[..request.name.floor_char_boundary(NAME_SHOWN_MAX)].to_owned();
                match self.log_in(request).await {
                    Ok(token) => {
                        Ok(Response::new(AuthenticateResponse { header: Some(self.info.header_now()), token }))
                    }
                    Err(failure) => {
                        if matches!(failure, Failure::Auth(AuthError::AuthFailed | AuthError::NoPasswordUser)) {
                            warn!(user = name, remote = %caller, "invalid authentication was requested");
                        }
                        Err(failure.into())
                    }
                }
            }

            async fn user_add(
                &self,
                request: Request<AuthUserAddRequest>,
            ) -> Result<Response<AuthUserAddResponse>, Status> {
                let (caller, mut request) = Caller::split(request);
                if !request.options.is_some_and(|options| options.no_password) {
                    request.hashed_password = self.hashed(&caller, &mut request.password).await?;
                }
                request.password.clear();
                self.proposer.propose(&caller, request).await?;
                Ok(Response::new(AuthUserAddResponse { header: Some(self.info.header_now()) }))
            }

            async fn user_change_password(
                &self,
                request: Request<AuthUserChangePasswordRequest>,
            ) -> Result<Response<AuthUserChangePasswordResponse>, Status> {
                let (caller, mut request) = Caller::split(request);
                if !request.password.is_empty() {
                    request.hashed_password = self.hashed(&caller, &mut request.password).await?;
                }
                self.proposer.propose(&caller, request).await?;
                Ok(Response::new(AuthUserChangePasswordResponse { header: Some(self.info.header_now()) }))
            }

            async fn user_get(
                &self,
                request: Request<AuthUserGetRequest>,
            ) -> Result<Response<AuthUserGetResponse>, Status> {
                let (caller, request) = Caller::split(request);
                let roles = self.read(&caller, |auth, who| auth.user(who, &request.name)).await?;
                Ok(Response::new(AuthUserGetResponse { header: Some(self.info.header_now()), roles }))
            }

            async fn user_list(
                &self,
                request: Request<AuthUserListRequest>,
            ) -> Result<Response<AuthUserListResponse>, Status> {
                let users = self.read(&Caller::of(&request), AuthState::user_names).await?;
                Ok(Response::new(AuthUserListResponse { header: Some(self.info.header_now()), users }))
            }

            async fn role_get(
                &self,
                request: Request<AuthRoleGetRequest>,
            ) -> Result<Response<AuthRoleGetResponse>, Status> {
                let (caller, request) = Caller::split(request);
                let perm = self.read(&caller, |auth, who| auth.role(who, &request.role)).await?;
                Ok(Response::new(AuthRoleGetResponse { header: Some(self.info.header_now()), perm }))
            }

            async fn role_list(
                &self,
                request: Request<AuthRoleListRequest>,
            ) -> Result<Response<AuthRoleListResponse>, Status> {
                let roles = self.read(&Caller::of(&request), AuthState::role_names).await?;
                Ok(Response::new(AuthRoleListResponse { header: Some(self.info.header_now()), roles }))
            }
        }
    };
}

auth_service! {
    auth_enable(AuthEnableRequest) -> AuthEnableResponse;
    auth_disable(AuthDisableRequest) -> AuthDisableResponse;
    user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse;
    user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse;
    user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse;
    role_add(AuthRoleAddRequest) -> AuthRoleAddResponse;
    role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse;
    role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse;
    role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse;
}
