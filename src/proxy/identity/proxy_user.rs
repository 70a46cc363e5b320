use super::read_permissions::ReadPermissions;
use crate::client::Channel;

/// The user that the proxy itself is for the cluster. What it reads is shared by all callers that may read it.
#[derive(Clone)]
pub struct ProxyUser {
    /// Sends requests as this user; its pool should not be used elsewhere.
    pub channel: Channel,
    /// Whether a caller may read what this user has read.
    pub permissions: ReadPermissions,
}
