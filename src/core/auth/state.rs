use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::error::AuthError;
use super::intervals::Intervals;
use crate::pb::authpb::permission::Type;
use crate::pb::authpb::{Permission, Role, User};

/// The user that must exist, and the role that passes every check.
pub const ROOT: &str = "root";

/// Who asks: a user, and the auth revision that its token stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Empty for a request without credentials.
    pub user: Arc<str>,
    /// 0 for a request without credentials.
    pub revision: u64,
}

impl Identity {
    /// Whether the request has credentials.
    pub fn is_known(&self) -> bool {
        self.revision != 0
    }
}

/// What is asked for of a key or range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// READ.
    Read,
    /// WRITE.
    Write,
}

/// A user with the permissions of its roles.
#[derive(Clone)]
pub(super) struct UserEntry {
    /// Never empty of a name; the roles are sorted.
    pub(super) user: User,
    is_root: bool,
    read: Intervals,
    write: Intervals,
}

impl UserEntry {
    pub(super) fn new(user: User, roles: &BTreeMap<String, Arc<Role>>) -> Self {
        let is_root = user.roles.binary_search_by(|role| role.as_str().cmp(ROOT)).is_ok();
        let granted = || user.roles.iter().filter_map(|role| roles.get(role)).flat_map(|role| &role.key_permission);
        let of = |kind: Type| {
            let wanted = move |permission: &&Permission| {
                permission.perm_type == kind as i32 || permission.perm_type == Type::Readwrite as i32
            };
            Intervals::union(granted().filter(wanted).map(|permission| (&permission.key, &permission.range_end)))
        };
        let (read, write) = (of(Type::Read), of(Type::Write));
        Self { user, is_root, read, write }
    }

    fn may(&self, access: Access, key: &[u8], range_end: &[u8]) -> bool {
        let intervals = match access {
            Access::Read => &self.read,
            Access::Write => &self.write,
        };
        self.is_root || intervals.covers(key, range_end)
    }
}

/// Users and roles at one auth revision. Immutable: a change makes a new one.
#[derive(Clone)]
pub struct AuthState {
    pub(super) enabled: bool,
    pub(super) revision: u64,
    pub(super) users: BTreeMap<Arc<str>, Arc<UserEntry>>,
    pub(super) roles: BTreeMap<String, Arc<Role>>,
}

impl Default for AuthState {
    fn default() -> Self {
        Self { enabled: false, revision: 1, users: BTreeMap::new(), roles: BTreeMap::new() }
    }
}

/// Without names, and above all without hashes.
impl fmt::Debug for AuthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { enabled, revision, users, roles } = self;
        let mut shown = f.debug_struct("AuthState");
        shown.field("enabled", enabled).field("revision", revision);
        shown.field("users", &users.len()).field("roles", &roles.len()).finish()
    }
}

impl AuthState {
    /// Whether permissions are checked.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Grows with each change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The identity that a user has now.
    pub fn identity(&self, user: &str) -> Identity {
        let known = self.users.get_key_value(user).map(|(name, _)| name.clone());
        Identity { user: known.unwrap_or_else(|| user.into()), revision: self.revision }
    }

    /// Whether `who` may read or write a key, or a range in wire form.
    ///
    /// # Errors
    /// No credentials, credentials of an earlier auth revision, no permission, in this order.
    pub fn check(&self, who: &Identity, access: Access, key: &[u8], range_end: &[u8]) -> Result<(), AuthError> {
        if !self.enabled {
            return Ok(());
        }
        if !who.is_known() {
            return Err(AuthError::UserEmpty);
        }
        if who.revision < self.revision {
            return Err(AuthError::OldRevision);
        }
        match self.users.get(&*who.user) {
            Some(user) if user.may(access, key, range_end) => Ok(()),
            _ => Err(AuthError::PermissionDenied),
        }
    }

    /// Whether `who` has the role root. Its auth revision may be an old one.
    ///
    /// # Errors
    /// No credentials, no such user, not that role.
    pub fn check_admin(&self, who: &Identity) -> Result<(), AuthError> {
        if !self.enabled {
            return Ok(());
        }
        if who.user.is_empty() {
            return Err(AuthError::UserEmpty);
        }
        let user = self.users.get(&*who.user).ok_or(AuthError::UserNotFound)?;
        if user.is_root { Ok(()) } else { Err(AuthError::PermissionDenied) }
    }

    /// Whether `who` has credentials at all.
    ///
    /// # Errors
    /// It has none.
    pub fn check_known(&self, who: &Identity) -> Result<(), AuthError> {
        if !self.enabled || who.is_known() { Ok(()) } else { Err(AuthError::UserEmpty) }
    }

    /// The roles of a user, for itself or for root.
    ///
    /// # Errors
    /// Not permitted, or no such user.
    pub fn user(&self, who: &Identity, name: &str) -> Result<Vec<String>, AuthError> {
        match self.check_admin(who) {
            Err(error) if *who.user != *name => return Err(error),
            _ => {}
        }
        Ok(self.users.get(name).ok_or(AuthError::UserNotFound)?.user.roles.clone())
    }

    /// All user names in order, for root.
    ///
    /// # Errors
    /// Not permitted.
    pub fn user_names(&self, who: &Identity) -> Result<Vec<String>, AuthError> {
        self.check_admin(who)?;
        Ok(self.users.keys().map(ToString::to_string).collect())
    }

    /// The permissions of a role, for a user that has it or for root.
    ///
    /// # Errors
    /// Not permitted, or no such role.
    pub fn role(&self, who: &Identity, name: &str) -> Result<Vec<Permission>, AuthError> {
        if let Err(error) = self.check_admin(who) {
            let has = |entry: &Arc<UserEntry>| entry.user.roles.iter().any(|role| role == name);
            if !self.users.get(&*who.user).is_some_and(has) {
                return Err(error);
            }
        }
        let role = self.roles.get(name).ok_or(AuthError::RoleNotFound)?;
        if name == ROOT {
            let range_end = Bytes::from_static(&[0]);
            return Ok(vec![Permission { perm_type: Type::Readwrite as i32, key: Bytes::new(), range_end }]);
        }
        Ok(role.key_permission.clone())
    }

    /// All role names in order, for root.
    ///
    /// # Errors
    /// Not permitted.
    pub fn role_names(&self, who: &Identity) -> Result<Vec<String>, AuthError> {
        self.check_admin(who)?;
        Ok(self.roles.keys().cloned().collect())
    }

    /// The hash to compare a password with; none for a name that no user has.
    ///
    /// # Errors
    /// Auth is off, or the user logs in without a password only.
    pub fn password_hash(&self, name: &str) -> Result<Option<Bytes>, AuthError> {
        if !self.enabled {
            return Err(AuthError::NotEnabled);
        }
        match self.users.get(name) {
            None => Ok(None),
            Some(entry) if is_without_password(&entry.user) => Err(AuthError::NoPasswordUser),
            Some(entry) => Ok(Some(entry.user.password.clone())),
        }
    }

    /// Whether a token may be made for a user whose password was compared before.
    ///
    /// # Errors
    /// Auth is off, or there is no such user with a password.
    pub(super) fn check_login(&self, name: &str) -> Result<(), AuthError> {
        match self.password_hash(name) {
            Ok(Some(_)) => Ok(()),
            Ok(None) | Err(AuthError::NoPasswordUser) => Err(AuthError::AuthFailed),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn is_without_password(user: &User) -> bool {
    user.options.as_ref().is_some_and(|options| options.no_password)
}
