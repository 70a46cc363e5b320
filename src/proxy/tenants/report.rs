use serde::Serialize;

use super::tenant::{Tenant, TenantUser};
use crate::proxy::limits::UsageReport;

/// A tenant as people are shown it.
#[derive(Debug, Serialize)]
pub(in crate::proxy) struct TenantReport {
    name: String,
    /// Bytes that are not printable are escaped.
    namespace: String,
    read_only: bool,
    admin: bool,
    /// What a wish to compact does: `deny`, `allow` or `agreed`.
    compact: &'static str,
    /// Who it is for the cluster: `login`, `certificate`, or none for what each request says itself.
    upstream: Option<&'static str>,
    #[serde(flatten)]
    usage: UsageReport,
}

impl TenantReport {
    fn new(tenant: &Tenant) -> Self {
        Self {
            name: tenant.name.to_string(),
            namespace: tenant.namespace.prefix().escape_ascii().to_string(),
            read_only: tenant.rights.read_only,
            admin: tenant.rights.admin,
            compact: match tenant.compaction {
                Some(_) => "agreed",
                None if tenant.rights.admin || tenant.rights.compact => "allow",
                None => "deny",
            },
            upstream: tenant.user.as_ref().map(|user| match user {
                TenantUser::Login(_) => "login",
                TenantUser::Certificate(_) => "certificate",
            }),
            usage: UsageReport::new(&tenant.limits),
        }
    }

    /// Of these tenants, those with the most calls, at most `max`. Where all clients are one tenant, there are none.
    pub(in crate::proxy) fn busiest<'t>(tenants: impl Iterator<Item = &'t Tenant>, max: usize) -> Vec<Self> {
        let mut reports: Vec<Self> = tenants.filter(|tenant| !tenant.name.is_empty()).map(Self::new).collect();
        reports.sort_by(|one, other| {
            other.usage.requests.cmp(&one.usage.requests).then_with(|| one.name.cmp(&other.name))
        });
        reports.truncate(max);
        reports
    }
}
