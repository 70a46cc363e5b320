use tokio::sync::watch;

use super::endpoint_set::{Discovery, EndpointSet, ListedEndpoint};
use crate::net::HostPort;

/// Endpoints somebody wrote down. [`replace`](Self::replace) changes them in a running process.
#[derive(Debug)]
pub struct StaticList {
    current: watch::Sender<EndpointSet>,
}

impl StaticList {
    /// These, with equal shares.
    pub fn new(addresses: impl IntoIterator<Item = HostPort>) -> Self {
        Self { current: watch::Sender::new(equal_shares(addresses)) }
    }

    /// Puts another list in place of the current one.
    pub fn replace(&self, endpoints: EndpointSet) {
        self.current.send_replace(endpoints);
    }
}

impl Discovery for StaticList {
    fn endpoints(&self) -> watch::Receiver<EndpointSet> {
        self.current.subscribe()
    }
}

fn equal_shares(addresses: impl IntoIterator<Item = HostPort>) -> EndpointSet {
    addresses.into_iter().map(|address| ListedEndpoint { address, priority: 0, weight: 0 }).collect()
}
