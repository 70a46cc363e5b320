use std::sync::Arc;

use tokio::sync::watch;

use crate::net::Endpoint;

/// One endpoint and how much of the traffic it should get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedEndpoint {
    /// Where it is, and whether TLS is spoken there.
    pub endpoint: Endpoint,
    /// As in SRV records: only the lowest number with a live endpoint gets traffic.
    pub priority: u16,
    /// Share among the endpoints of one priority; 0 for all of them means equal shares.
    pub weight: u16,
}

impl ListedEndpoint {
    /// An endpoint with the same share as all others.
    pub fn new(endpoint: impl Into<Endpoint>) -> Self {
        Self { endpoint: endpoint.into(), priority: 0, weight: 0 }
    }
}

/// The endpoints that count now, each once. Cheap to clone.
pub type EndpointSet = Arc<[ListedEndpoint]>;

/// A source of endpoints.
pub trait Discovery: Send + Sync {
    /// The current set, which is there from the start, and every later one. A sender that is gone means that the set
    /// will not change any more.
    fn endpoints(&self) -> watch::Receiver<EndpointSet>;

    /// What it is, for logs.
    fn name(&self) -> &'static str;
}

/// The current endpoints of a source, as the client dials them.
pub fn current_endpoints(source: &dyn Discovery) -> Vec<Endpoint> {
    dialled(&source.endpoints().borrow())
}

/// The endpoints of a set, as the client dials them.
pub fn dialled(set: &EndpointSet) -> Vec<Endpoint> {
    set.iter().map(|listed| listed.endpoint.clone()).collect()
}
