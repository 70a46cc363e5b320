//! The file of `--tenants-file`: who may use the proxy, and which keys of the cluster each of them sees.
//!
//! `fields.rs` takes the keys of a mapping one by one, so that what is left over is an error with its line; `read.rs` makes
//! [`TenantConfig`]s of them, each in an `entry.rs` with its lines, and `check.rs` compares the tenants with one another: names, namespaces, matches. A file is
//! taken as a whole or not at all.

mod check;
mod entry;
mod fields;
mod read;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;

use crate::types::Credentials;

pub use read::{ListenerFacts, read_tenants_file};

/// One tenant as the file describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantConfig {
    /// Unique; for logs and labels of metrics.
    pub name: String,
    /// What is put before all its keys; never empty.
    pub namespace: Bytes,
    /// Tenants whose namespaces lie within this one's, or are the same.
    pub contains: Vec<String>,
    /// Requests for which one of these holds are the tenant's.
    pub matches: Vec<TenantMatch>,
    /// Who its requests are for the cluster; none for what each of them says itself.
    pub upstream: Option<TenantCredentials>,
    /// Whether requests that change something are refused.
    pub read_only: bool,
    /// Whether calls that reach beyond the namespace are open.
    pub admin: bool,
    /// What its wishes to compact the cluster do.
    pub compact: CompactRight,
    /// What it may use.
    pub limits: TenantLimits,
}

/// What the wish of a tenant to compact the cluster does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompactRight {
    /// It is refused.
    #[default]
    Deny,
    /// The cluster is compacted.
    Allow,
    /// The cluster is compacted at the lowest wish of the tenants with this right that are active.
    Agreed,
}

/// What a tenant may use; none is as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantLimits {
    /// Calls in a second, and at once.
    pub requests_per_second: Option<u64>,
    /// Bytes of requests and answers in a second.
    pub bytes_per_second: Option<u64>,
    /// Open watches.
    pub watches: Option<u64>,
    /// Leases at once.
    pub leases: Option<u64>,
    /// Keys that exist.
    pub stored_keys: Option<u64>,
    /// Bytes of those keys, without the namespace, and of their values.
    pub stored_bytes: Option<u64>,
    /// Bytes of one answer to a range or a transaction.
    pub answer_bytes: Option<u64>,
}

/// What a request must have; all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TenantMatch {
    /// It came on this listener.
    pub listen: Option<SocketAddr>,
    /// Its connection was opened for this server name, in small letters.
    pub sni: Option<String>,
    /// The certificate of its client has this common name.
    pub common_name: Option<String>,
    /// The certificate of its client has this DNS name, in small letters.
    pub dns_name: Option<String>,
    /// This is the only URI of the certificate of its client.
    pub spiffe_id: Option<String>,
    /// Its token was given to this user of the cluster.
    pub user: Option<String>,
}

/// Who a tenant is for the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TenantCredentials {
    /// A user that logs in.
    Password(Credentials),
    /// The user that a certificate names.
    Certificate {
        /// The certificate.
        cert_file: PathBuf,
        /// Its key.
        key_file: PathBuf,
    },
}
