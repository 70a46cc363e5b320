use super::fields::Located;
use super::{TenantConfig, TenantMatch};

/// One tenant, and where the file says what other tenants may contradict.
pub(super) struct Entry {
    pub tenant: TenantConfig,
    pub name: Located<()>,
    pub namespace: Located<()>,
    pub matches: Vec<Located<TenantMatch>>,
    pub contains: Vec<Located<String>>,
}
