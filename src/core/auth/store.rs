use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prost::Message;

use super::error::AuthError;
use super::intervals::is_permission_range;
use super::simple_tokens::simple_token;
use super::state::{AuthState, Identity, ROOT, UserEntry, is_without_password};
use crate::core::backend::{Backend, BackendError, Change, Table};
use crate::pb::authpb::{Role, User, UserAddOptions};
use crate::pb::etcdserverpb::{
    AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest,
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGrantRoleRequest,
    AuthUserRevokeRoleRequest, InternalAuthenticateRequest,
};
use crate::types::LogIndex;

const ENABLED_ROW: &[u8] = b"authEnabled";
const REVISION_ROW: &[u8] = b"authRevision";

/// What a change means for tokens.
#[derive(Clone, PartialEq, Eq)]
pub enum AuthFact {
    /// A user logged in with a simple token.
    LoggedIn {
        /// The user.
        user: Arc<str>,
        /// The whole token.
        token: String,
        /// The entry that made it.
        index: LogIndex,
    },
    /// The tokens of a user end.
    UserChanged(Arc<str>),
    /// All tokens end.
    Disabled,
}

/// Users and roles; owned by apply. Each change returns the rows to store.
#[derive(Debug, Default)]
pub struct AuthStore {
    state: Arc<AuthState>,
}

type Changes = Result<Vec<Change>, AuthError>;

impl AuthStore {
    /// Reads the stored rows. One that cannot be read is left out and named in the log: etcd would not start.
    ///
    /// # Errors
    /// The backend cannot be read.
    pub fn open(backend: &Backend) -> Result<Self, BackendError> {
        let mut state = AuthState::default();
        for (row, value) in backend.rows(Table::Auth)? {
            match &row[..] {
                ENABLED_ROW => state.enabled = value[..] == [1],
                REVISION_ROW => {
                    let revision = <[u8; 8]>::try_from(&value[..]).map_or(0, u64::from_be_bytes);
                    state.revision = revision.max(1);
                }
                _ => {}
            }
        }
        for (row, value) in backend.rows(Table::AuthRoles)? {
            match (String::from_utf8(row.to_vec()), Role::decode(value)) {
                (Ok(name), Ok(role)) => drop(state.roles.insert(name, Arc::new(role))),
                _ => tracing::error!(role = %row.escape_ascii(), "stored role is unreadable"),
            }
        }
        for (row, value) in backend.rows(Table::AuthUsers)? {
            match (std::str::from_utf8(&row), User::decode(value)) {
                (Ok(name), Ok(mut user)) => {
                    user.roles.sort_unstable();
                    let entry = UserEntry::new(user, &state.roles);
                    state.users.insert(name.into(), Arc::new(entry));
                }
                _ => tracing::error!(user = %row.escape_ascii(), "stored user is unreadable"),
            }
        }
        Ok(Self { state: Arc::new(state) })
    }

    /// The present state.
    pub fn state(&self) -> &Arc<AuthState> {
        &self.state
    }

    /// Turns auth on.
    ///
    /// # Errors
    /// There is no user root with the role root.
    pub fn enable(&mut self) -> Changes {
        if self.state.enabled {
            tracing::info!("authentication is already enabled; ignored auth enable request");
            return Ok(Vec::new());
        }
        let root = self.state.users.get(ROOT).ok_or(AuthError::RootUserNotExist)?;
        if !root.user.roles.iter().any(|role| role == ROOT) {
            return Err(AuthError::RootRoleNotExist);
        }
        self.edit().enabled = true;
        tracing::info!("enabled authentication");
        Ok(vec![enabled_row(true)])
    }

    /// Turns auth off.
    pub fn disable(&mut self, facts: &mut Vec<AuthFact>) -> Vec<Change> {
        if !self.state.enabled {
            return Vec::new();
        }
        self.edit().enabled = false;
        facts.push(AuthFact::Disabled);
        tracing::info!("disabled authentication");
        self.committed(vec![enabled_row(false)])
    }

    /// Notes a login; the password was compared before it was proposed.
    ///
    /// # Errors
    /// Auth is off, or there is no such user with a password any more.
    pub fn authenticate(
        &self,
        request: &InternalAuthenticateRequest,
        index: LogIndex,
        facts: &mut Vec<AuthFact>,
    ) -> Result<Identity, AuthError> {
        self.state.check_login(&request.name)?;
        let identity = self.state.identity(&request.name);
        if !request.simple_token.is_empty() {
            let token = simple_token(&request.simple_token, index);
            facts.push(AuthFact::LoggedIn { user: identity.user.clone(), token, index });
        }
        Ok(identity)
    }

    /// Adds a user.
    ///
    /// # Errors
    /// No name, a name in use, a hash that is not base64.
    pub fn user_add(&mut self, request: &AuthUserAddRequest) -> Changes {
        if request.name.is_empty() {
            return Err(AuthError::UserEmpty);
        }
        if self.state.users.contains_key(request.name.as_str()) {
            return Err(AuthError::UserExists);
        }
        let options = request.options.unwrap_or(UserAddOptions { no_password: false });
        let password = if options.no_password { Bytes::new() } else { decoded(&request.hashed_password)? };
        let name = Bytes::copy_from_slice(request.name.as_bytes());
        let row = self.put_user(User { name, password, roles: Vec::new(), options: Some(options) });
        tracing::info!("user-name" = request.name, "added a user");
        Ok(self.committed(vec![row]))
    }

    /// Removes a user; its tokens end.
    ///
    /// # Errors
    /// The user root while auth is on, or no such user.
    pub fn user_delete(&mut self, request: &AuthUserDeleteRequest, facts: &mut Vec<AuthFact>) -> Changes {
        if self.state.enabled && request.name == ROOT {
            return Err(AuthError::InvalidManagement);
        }
        self.user(&request.name)?;
        self.edit().users.remove(request.name.as_str());
        facts.push(AuthFact::UserChanged(request.name.as_str().into()));
        tracing::info!("user-name" = request.name, "deleted a user");
        let row = Change::delete(Table::AuthUsers, request.name.clone().into_bytes());
        Ok(self.committed(vec![row]))
    }

    /// Replaces the hash of a user; its tokens end.
    ///
    /// # Errors
    /// No such user, or a hash that is not base64.
    pub fn user_change_password(
        &mut self,
        request: &AuthUserChangePasswordRequest,
        facts: &mut Vec<AuthFact>,
    ) -> Changes {
        let mut user = self.user(&request.name)?;
        let without = is_without_password(&user);
        user.password = if without { Bytes::new() } else { decoded(&request.hashed_password)? };
        let row = self.put_user(user);
        facts.push(AuthFact::UserChanged(request.name.as_str().into()));
        tracing::info!("user-name" = request.name, "changed a password of a user");
        Ok(self.committed(vec![row]))
    }

    /// Gives a role to a user. One that it has changes nothing.
    ///
    /// # Errors
    /// No such user, no such role; the role root need not exist.
    pub fn user_grant_role(&mut self, request: &AuthUserGrantRoleRequest) -> Changes {
        let mut user = self.user(&request.user)?;
        if request.role != ROOT && !self.state.roles.contains_key(&request.role) {
            return Err(AuthError::RoleNotFound);
        }
        let Err(at) = user.roles.binary_search(&request.role) else {
            tracing::warn!(
                "user-name" = request.user,
                "duplicate-role-name" = request.role,
                "ignored grant role request to a user"
            );
            return Ok(Vec::new());
        };
        user.roles.insert(at, request.role.clone());
        let row = self.put_user(user);
        tracing::info!("user-name" = request.user, "added-role-name" = request.role, "granted a role to a user");
        Ok(self.committed(vec![row]))
    }

    /// Takes a role from a user.
    ///
    /// # Errors
    /// The role root of the user root while auth is on, no such user, or not its role.
    pub fn user_revoke_role(&mut self, request: &AuthUserRevokeRoleRequest) -> Changes {
        if self.state.enabled && request.name == ROOT && request.role == ROOT {
            return Err(AuthError::InvalidManagement);
        }
        let mut user = self.user(&request.name)?;
        let at = user.roles.binary_search(&request.role).map_err(|_| AuthError::RoleNotGranted)?;
        user.roles.remove(at);
        let row = self.put_user(user);
        tracing::info!("user-name" = request.name, "revoked-role-name" = request.role, "revoked a role from a user");
        Ok(self.committed(vec![row]))
    }

    /// Adds a role without permissions.
    ///
    /// # Errors
    /// No name, or a name in use.
    pub fn role_add(&mut self, request: &AuthRoleAddRequest) -> Changes {
        if request.name.is_empty() {
            return Err(AuthError::RoleEmpty);
        }
        if self.state.roles.contains_key(&request.name) {
            return Err(AuthError::RoleExists);
        }
        let name = Bytes::copy_from_slice(request.name.as_bytes());
        let row = self.put_role(&request.name, Role { name, key_permission: Vec::new() });
        tracing::info!("role-name" = request.name, "created a role");
        Ok(self.committed(vec![row]))
    }

    /// Removes a role, from its users as well.
    ///
    /// # Errors
    /// The role root while auth is on, or no such role.
    pub fn role_delete(&mut self, request: &AuthRoleDeleteRequest) -> Changes {
        if self.state.enabled && request.role == ROOT {
            return Err(AuthError::InvalidManagement);
        }
        if self.edit().roles.remove(&request.role).is_none() {
            return Err(AuthError::RoleNotFound);
        }
        let mut changes = vec![Change::delete(Table::AuthRoles, request.role.clone().into_bytes())];
        for mut user in self.users_with(&request.role) {
            user.roles.retain(|role| *role != request.role);
            changes.push(self.put_user(user));
        }
        tracing::info!("role-name" = request.role, "deleted a role");
        Ok(self.committed(changes))
    }

    /// Gives a permission to a role; one for the same range is replaced.
    ///
    /// # Errors
    /// No permission, a range that no permission may have, no such role.
    pub fn role_grant_permission(&mut self, request: &AuthRoleGrantPermissionRequest) -> Changes {
        let permission = request.perm.clone().ok_or(AuthError::PermissionNotGiven)?;
        if !is_permission_range(&permission.key, &permission.range_end) {
            return Err(AuthError::InvalidManagement);
        }
        let mut role = self.role(&request.name)?;
        let same = role
            .key_permission
            .iter_mut()
            .find(|known| known.key == permission.key && known.range_end == permission.range_end);
        match same {
            Some(known) => known.perm_type = permission.perm_type,
            None => {
                let at = role.key_permission.partition_point(|known| known.key <= permission.key);
                role.key_permission.insert(at, permission.clone());
            }
        }
        let changes = self.put_role_of_users(&request.name, role);
        tracing::info!(
            "role-name" = request.name,
            key = %permission.key.escape_ascii(),
            "range-end" = %permission.range_end.escape_ascii(),
            "granted/updated a permission to a role"
        );
        Ok(self.committed(changes))
    }

    /// Takes the permission for exactly this range from a role.
    ///
    /// # Errors
    /// No such role, or not its permission.
    pub fn role_revoke_permission(&mut self, request: &AuthRoleRevokePermissionRequest) -> Changes {
        let mut role = self.role(&request.role)?;
        let before = role.key_permission.len();
        role.key_permission.retain(|known| known.key != request.key || known.range_end != request.range_end);
        if role.key_permission.len() == before {
            return Err(AuthError::PermissionNotGranted);
        }
        let changes = self.put_role_of_users(&request.role, role);
        tracing::info!(
            "role-name" = request.role,
            key = %request.key.escape_ascii(),
            "range-end" = %request.range_end.escape_ascii(),
            "revoked a permission on range"
        );
        Ok(self.committed(changes))
    }

    fn edit(&mut self) -> &mut AuthState {
        Arc::make_mut(&mut self.state)
    }

    /// Counts a change.
    fn committed(&mut self, mut changes: Vec<Change>) -> Vec<Change> {
        let state = self.edit();
        state.revision += 1;
        changes.push(Change::put(Table::Auth, REVISION_ROW, state.revision.to_be_bytes().to_vec()));
        changes
    }

    fn user(&self, name: &str) -> Result<User, AuthError> {
        Ok(self.state.users.get(name).ok_or(AuthError::UserNotFound)?.user.clone())
    }

    fn role(&self, name: &str) -> Result<Role, AuthError> {
        Ok(self.state.roles.get(name).ok_or(AuthError::RoleNotFound)?.as_ref().clone())
    }

    fn users_with(&self, role: &str) -> Vec<User> {
        let has = |user: &&User| user.roles.iter().any(|one| one == role);
        self.state.users.values().map(|entry| &entry.user).filter(has).cloned().collect()
    }

    fn put_user(&mut self, user: User) -> Change {
        let name: Arc<str> = String::from_utf8_lossy(&user.name).into();
        let row = Change::put(Table::AuthUsers, user.name.clone(), user.encode_to_vec());
        let state = self.edit();
        let entry = UserEntry::new(user, &state.roles);
        state.users.insert(name, Arc::new(entry));
        row
    }

    fn put_role(&mut self, name: &str, role: Role) -> Change {
        let row = Change::put(Table::AuthRoles, role.name.clone(), role.encode_to_vec());
        self.edit().roles.insert(name.to_owned(), Arc::new(role));
        row
    }

    /// Stores a role, and merges the permissions of its users anew. Their rows stay as they are.
    fn put_role_of_users(&mut self, name: &str, role: Role) -> Vec<Change> {
        let row = self.put_role(name, role);
        for user in self.users_with(name) {
            self.put_user(user);
        }
        vec![row]
    }
}

fn enabled_row(enabled: bool) -> Change {
    Change::put(Table::Auth, ENABLED_ROW, vec![u8::from(enabled)])
}

/// The hash in a request. Members hash before they propose, so that a password itself is never in the log.
fn decoded(hashed_password: &str) -> Result<Bytes, AuthError> {
    STANDARD.decode(hashed_password).map(Bytes::from).map_err(|_| AuthError::NoPasswordUser)
}

#[cfg(test)]
mod tests;
