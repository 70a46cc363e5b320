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

/// The tenant of each client. All clients are the same tenant today.
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
