use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::Status;
use tracing::debug;

use super::matching::{ClientFacts, TenantRule};
use super::tenant::Tenant;
use super::token_users::{TokenUsers, token};
use crate::api_error::ApiError;
use crate::listener::ConnectionInfo;

/// The tenants of one file.
#[derive(Debug, Default)]
pub struct TenantSet {
    tenants: Vec<Arc<Tenant>>,
    rules: Vec<(TenantRule, Arc<Tenant>)>,
    /// Whether any of them is known by the user of a token.
    by_user: bool,
    everybody: bool,
}

impl TenantSet {
    /// Adds a tenant, to which the requests belong for which one of `rules` holds.
    pub fn add(&mut self, tenant: Arc<Tenant>, rules: impl IntoIterator<Item = TenantRule>) {
        for rule in rules {
            self.by_user |= rule.needs_user();
            self.rules.push((rule, tenant.clone()));
        }
        self.tenants.push(tenant);
    }

    /// All of them.
    pub fn tenants(&self) -> &[Arc<Tenant>] {
        &self.tenants
    }
}

/// The tenant of each client. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tenants {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    set: ArcSwap<TenantSet>,
    /// How often the set was replaced.
    changes: watch::Sender<u64>,
    users: TokenUsers,
}

/// Why a request is nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum NotATenant {
    /// Nothing that is known of it is said of a tenant.
    Unknown,
    /// Its token was given by no login that this proxy has seen.
    UnknownToken,
    /// It has no token, and tenants are known by theirs.
    NoToken,
    /// It would be of several.
    Ambiguous,
}

impl From<NotATenant> for Status {
    fn from(reason: NotATenant) -> Self {
        match reason {
            NotATenant::Unknown => {
                Status::permission_denied("the gRPC proxy serves no tenant that matches this client")
            }
            // Clients of etcd log in again for it.
            NotATenant::UnknownToken => ApiError::InvalidAuthToken.into(),
            NotATenant::NoToken => ApiError::UserEmpty.into(),
            NotATenant::Ambiguous => {
                Status::permission_denied("this client matches more than one tenant of the gRPC proxy")
            }
        }
    }
}

/// The last tenant found for a connection.
#[derive(Clone, Default)]
struct Found(Arc<Mutex<Option<FoundTenant>>>);

struct FoundTenant {
    changes: u64,
    user: Option<Arc<str>>,
    tenant: Arc<Tenant>,
}

impl Tenants {
    /// All clients are this tenant, for ever.
    pub fn everybody(tenant: Tenant) -> Self {
        let set = TenantSet { tenants: vec![Arc::new(tenant)], everybody: true, ..TenantSet::default() };
        Self::new(set)
    }

    /// Clients are the tenants of `set` until another one replaces it.
    pub fn new(set: TenantSet) -> Self {
        let inner =
            Inner { set: ArcSwap::from_pointee(set), changes: watch::Sender::new(0), users: TokenUsers::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Has another set in force. What is open under a membership that it does not confirm ends.
    pub fn replace(&self, set: TenantSet) {
        let set = Arc::new(set);
        let before = self.inner.set.swap(set.clone());
        self.inner.changes.send_modify(|changes| *changes += 1);
        let gone = before.tenants.iter().filter(|old| !set.tenants.iter().any(|new| Arc::ptr_eq(old, new)));
        gone.for_each(|tenant| tenant.tasks.stop());
    }

    /// The set in force.
    pub fn current(&self) -> Arc<TenantSet> {
        self.inner.set.load_full()
    }

    /// Whether all clients are one tenant.
    pub(in crate::proxy) fn is_everybody(&self) -> bool {
        self.inner.set.load().everybody
    }

    /// Whether tenants are known by the users of tokens.
    pub(in crate::proxy) fn by_user(&self) -> bool {
        self.inner.set.load().by_user
    }

    /// How often the set was replaced; changes when it is.
    pub(in crate::proxy) fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// The cluster has given a token to a user.
    pub(in crate::proxy) fn note_token(&self, token: &str, user: &str) {
        self.inner.users.note(token, user);
    }

    /// The tenant to which a request belongs.
    pub(in crate::proxy) fn of(
        &self,
        connection: Option<&ConnectionInfo>,
        headers: &HeaderMap,
    ) -> Result<Arc<Tenant>, NotATenant> {
        self.still_of(connection, headers, None)
    }

    /// The user whose token a request has, as far as tenants are known by users.
    pub(in crate::proxy) fn user(&self, headers: &HeaderMap) -> Option<Arc<str>> {
        if self.by_user() { self.inner.users.of(headers) } else { None }
    }

    /// The tenant to which an open call belongs, that was of `user` when it was opened: its token may be forgotten by now.
    pub(in crate::proxy) fn still_of(
        &self,
        connection: Option<&ConnectionInfo>,
        headers: &HeaderMap,
        user: Option<&Arc<str>>,
    ) -> Result<Arc<Tenant>, NotATenant> {
        let set = self.inner.set.load();
        if set.everybody {
            return set.tenants.first().cloned().ok_or(NotATenant::Unknown);
        }
        let Some(connection) = connection else { return Err(NotATenant::Unknown) };
        let known = || user.cloned().or_else(|| self.inner.users.of(headers));
        let user = if set.by_user { known() } else { None };
        // Before the set is looked at again: what is found in an older set is not kept as found in a newer one.
        let changes = *self.inner.changes.borrow();
        let found: Found = connection.value();
        if let Some(last) = &*found.0.lock()
            && last.changes == changes
            && last.user == user
        {
            return Ok(last.tenant.clone());
        }
        let tenant = self.find(&ClientFacts::of(connection), user.as_deref()).map_err(|reason| match reason {
            NotATenant::Unknown if set.by_user && user.is_none() => match token(headers) {
                Some(_) => NotATenant::UnknownToken,
                None => NotATenant::NoToken,
            },
            reason => reason,
        })?;
        *found.0.lock() = Some(FoundTenant { changes, user, tenant: tenant.clone() });
        Ok(tenant)
    }

    /// The tenant of a client that shows the password of `user`.
    pub(in crate::proxy) fn of_user(&self, connection: &ConnectionInfo, user: &str) -> Result<Arc<Tenant>, NotATenant> {
        self.find(&ClientFacts::of(connection), Some(user))
    }

    fn find(&self, facts: &ClientFacts, user: Option<&str>) -> Result<Arc<Tenant>, NotATenant> {
        let set = self.inner.set.load();
        let mut found: Option<&Arc<Tenant>> = None;
        for (_, tenant) in set.rules.iter().filter(|(rule, _)| rule.holds(facts, user)) {
            match found {
                Some(other) if !Arc::ptr_eq(other, tenant) => {
                    debug!(tenant = %other.name, other = %tenant.name, "a client matches two tenants");
                    return Err(NotATenant::Ambiguous);
                }
                _ => found = Some(tenant),
            }
        }
        found.cloned().ok_or(NotATenant::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TenantMatch;
    use crate::proxy::Namespace;
    use crate::shutdown::Tasks;

    fn tenant(name: &str) -> Arc<Tenant> {
        Arc::new(Tenant::new(name, Namespace::new(name.to_owned()), &Tasks::new()))
    }

    fn by_user(user: &str) -> TenantRule {
        TenantRule::new(TenantMatch { user: Some(user.to_owned()), ..TenantMatch::default() }, None)
    }

    fn on(listener: usize) -> TenantRule {
        TenantRule::new(TenantMatch::default(), Some(listener))
    }

    #[test]
    fn a_client_is_exactly_one_tenant_or_none() {
        let mut set = TenantSet::default();
        set.add(tenant("a"), [on(1), by_user("alice")]);
        set.add(tenant("b"), [on(2)]);
        let tenants = Tenants::new(set);
        let find = |listener, user| {
            tenants.find(&ClientFacts { listener, ..Default::default() }, user).map(|tenant| tenant.name.to_string())
        };
        assert_eq!(find(1, None), Ok("a".to_owned()));
        assert_eq!(find(1, Some("alice")), Ok("a".to_owned()), "two ways to be one tenant");
        assert_eq!(find(2, Some("bob")), Ok("b".to_owned()));
        assert_eq!(find(2, Some("alice")), Err(NotATenant::Ambiguous));
        assert_eq!(find(0, Some("alice")), Ok("a".to_owned()));
        assert_eq!(find(0, None), Err(NotATenant::Unknown));
        tenants.replace(TenantSet::default());
        assert_eq!(find(1, None), Err(NotATenant::Unknown));
    }

    #[test]
    fn without_a_connection_nobody_is_a_tenant() {
        let mut set = TenantSet::default();
        set.add(tenant("a"), [by_user("alice")]);
        let tenants = Tenants::new(set);
        assert_eq!(tenants.of(None, &HeaderMap::new()).err(), Some(NotATenant::Unknown));
        let everybody = Tenants::everybody(Tenant::new("", Namespace::default(), &Tasks::new()));
        assert!(everybody.of(None, &HeaderMap::new()).is_ok());
    }
}
