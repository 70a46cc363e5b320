use std::sync::Arc;

use super::namespace::Namespace;

/// What a client sees of the cluster and may do to it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Tenant {
    /// The keys it sees.
    pub namespace: Namespace,
    /// Whether calls that reach beyond a namespace are open to it.
    pub admin: bool,
}

/// Who is which tenant. For now all clients are the same one; a match on listener, TLS identity or user goes here.
#[derive(Clone, Debug)]
pub struct Tenants {
    everybody: Arc<Tenant>,
}

impl Tenants {
    /// All clients are this tenant.
    pub fn everybody(tenant: Tenant) -> Self {
        Self { everybody: Arc::new(tenant) }
    }

    /// The tenant that sent this request.
    pub fn of(&self, _request: &http::HeaderMap) -> &Arc<Tenant> {
        &self.everybody
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        std::iter::once(&self.everybody)
    }
}
