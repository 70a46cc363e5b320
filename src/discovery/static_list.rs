use tokio::sync::watch;

use super::endpoint_set::{Discovery, EndpointSet, ListedEndpoint};
use crate::net::Endpoint;

/// Endpoints from a flag. [`replace`](Self::replace) changes them in a running process.
#[derive(Debug)]
pub struct StaticList {
    current: watch::Sender<EndpointSet>,
}

impl StaticList {
    /// These, with equal shares.
    pub fn new(endpoints: impl IntoIterator<Item: Into<Endpoint>>) -> Self {
        Self { current: watch::Sender::new(endpoints.into_iter().map(ListedEndpoint::new).collect()) }
    }

    /// Replaces the current list.
    pub fn replace(&self, endpoints: EndpointSet) {
        self.current.send_replace(endpoints);
    }
}

impl Discovery for StaticList {
    fn endpoints(&self) -> watch::Receiver<EndpointSet> {
        self.current.subscribe()
    }

    fn name(&self) -> &'static str {
        "static list"
    }
}
