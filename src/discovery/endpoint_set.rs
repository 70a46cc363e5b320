use std::sync::Arc;

use tokio::sync::watch;

use crate::net::HostPort;

/// One endpoint and how much of the traffic it should get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedEndpoint {
    /// Where it is.
    pub address: HostPort,
    /// As in SRV records: only the lowest number with a live endpoint gets traffic.
    pub priority: u16,
    /// Share among the endpoints of one priority; 0 for all of them means equal shares.
    pub weight: u16,
}

/// The endpoints that count now, each once. Cheap to clone.
pub type EndpointSet = Arc<[ListedEndpoint]>;

/// A source of endpoints.
pub trait Discovery: Send + Sync {
    /// The current set and every later one. A sender that is gone means that the set will not change any more.
    fn endpoints(&self) -> watch::Receiver<EndpointSet>;
}
