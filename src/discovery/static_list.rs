use std::sync::Arc;

use super::endpoint_set::{EndpointSet, ListedEndpoint, Origin};
use super::source::{Discovery, Followed, Published};
use crate::net::Endpoint;

/// Endpoints from a flag. [`replace`](Self::replace) changes them in a running process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StaticList {
    published: Arc<Published>,
}

impl StaticList {
    /// These, with equal shares.
    pub fn new(endpoints: impl IntoIterator<Item: Into<Endpoint>>) -> Self {
        let set = endpoints.into_iter().map(ListedEndpoint::new).collect();
        Self { published: Arc::new(Published::new(Origin::Flag, set)) }
    }

    /// Replaces the current list.
    pub fn replace(&self, endpoints: EndpointSet) {
        self.published.replace(endpoints);
    }
}

impl Discovery for StaticList {
    fn followed(&self) -> Followed {
        self.published.followed()
    }
}
