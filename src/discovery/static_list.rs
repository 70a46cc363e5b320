use std::sync::Arc;

use tokio::sync::watch;

use super::endpoint_set::{EndpointSet, ListedEndpoint, Origin};
use super::source::{Discovery, Published, SourceStatus};
use crate::net::Endpoint;

/// Endpoints from a flag. [`replace`](Self::replace) changes them in a running process.
#[derive(Debug)]
pub struct StaticList {
    published: Published,
}

impl StaticList {
    /// These, with equal shares.
    pub fn new(endpoints: impl IntoIterator<Item: Into<Endpoint>>) -> Self {
        let set = endpoints.into_iter().map(ListedEndpoint::new).collect();
        Self { published: Published::new(Origin::Flag, set) }
    }

    /// Replaces the current list.
    pub fn replace(&self, endpoints: EndpointSet) {
        self.published.replace(endpoints);
    }
}

impl Discovery for StaticList {
    fn endpoints(&self) -> watch::Receiver<EndpointSet> {
        self.published.followed().endpoints()
    }

    fn origin(&self) -> Origin {
        Origin::Flag
    }

    fn status(&self) -> Arc<SourceStatus> {
        self.published.followed().status()
    }
}
