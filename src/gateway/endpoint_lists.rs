use std::sync::Arc;
use std::time::Duration;

use tracing::info;

use super::balance::Division;
use super::check::{Care, watch_over};
use super::dial::{Dialer, leads_back};
use super::error::GatewayError;
use super::routes::{Route, Routes};
use super::upstreams::Upstreams;
use crate::config::{ListenAddress, RouteConfig};
use crate::discovery::{EndpointSet, ListedEndpoint};
use crate::net::Endpoint;
use crate::shutdown::Tasks;

/// Changes which endpoints a gateway has, and has each of them looked after. Cheap to clone.
#[derive(Clone, Debug)]
pub struct EndpointLists {
    pub(super) dialer: Arc<Dialer>,
    pub(super) division: Division,
    pub(super) care: Care,
    pub(super) tasks: Tasks,
}

impl EndpointLists {
    /// # Errors
    /// The first endpoint that is the gateway itself; `flag` names where it was written.
    pub async fn refuse_itself(&self, flag: &'static str, endpoints: &[Endpoint]) -> Result<(), GatewayError> {
        refuse_itself(flag, endpoints, &self.dialer.own, self.dialer.connect_timeout).await
    }

    /// Replaces the endpoints for all connections that no route takes.
    pub(super) fn replace_default(&self, set: &EndpointSet) {
        self.replace(&self.dialer.routes.load().default, set);
    }

    /// Replaces the routes. Connections on a route that stays, and what is known of its endpoints, are not touched; on one that is gone
    /// they get the time to drain. Tells whether anything has changed.
    pub fn replace_routes(&self, routes: &[RouteConfig]) -> bool {
        let old = self.dialer.routes.load_full();
        let mut changed = routes.len() != old.rules.len();
        let mut rules = Vec::new();
        for (at, config) in routes.iter().enumerate() {
            let known = old.rules.iter().position(|route| route.matching == config.matching);
            let upstreams = known.map_or_else(|| self.none_yet(), |at| old.rules[at].upstreams.clone());
            changed |= known != Some(at) || !upstreams.are(&config.endpoints);
            rules.push(Route { matching: config.matching.clone(), upstreams });
        }
        let lists: Vec<_> = rules.iter().map(|route| route.upstreams.clone()).collect();
        for (upstreams, config) in lists.iter().zip(routes) {
            self.replace(upstreams, &config.endpoints.iter().cloned().map(ListedEndpoint::new).collect());
        }
        // Only now: a new route has no endpoint before, and its connections would be closed.
        self.dialer.routes.store(Arc::new(Routes { rules, default: old.default.clone() }));
        for gone in old.rules.iter().filter(|route| !lists.iter().any(|kept| Arc::ptr_eq(kept, &route.upstreams))) {
            info!(route = %gone.matching, "route is gone");
            self.replace(&gone.upstreams, &EndpointSet::default());
        }
        changed
    }

    fn none_yet(&self) -> Arc<Upstreams> {
        Arc::new(Upstreams::new(self.division, fastrand::Rng::new(), self.dialer.metrics.clone()))
    }

    fn replace(&self, upstreams: &Arc<Upstreams>, set: &EndpointSet) {
        for upstream in upstreams.replace(set) {
            let (upstreams, dialer, care) = (upstreams.clone(), self.dialer.clone(), self.care.clone());
            self.tasks.spawn(watch_over(upstream, upstreams, dialer, care, self.tasks.clone()));
        }
    }
}

/// Whether there is no endpoint but the gateway on `own`.
pub(super) async fn is_itself_alone(set: &EndpointSet, own: &ListenAddress, limit: Duration) -> bool {
    for listed in set.iter() {
        if !leads_back(&listed.endpoint, own, limit).await {
            return false;
        }
    }
    !set.is_empty()
}

/// # Errors
/// The first endpoint that is the gateway on `own`.
pub(super) async fn refuse_itself(
    flag: &'static str,
    endpoints: &[Endpoint],
    own: &ListenAddress,
    limit: Duration,
) -> Result<(), GatewayError> {
    for endpoint in endpoints {
        if leads_back(endpoint, own, limit).await {
            return Err(GatewayError::SelfLoop { flag, endpoint: endpoint.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_itself(texts: &[&str]) -> bool {
        let own = ListenAddress::Tcp("127.0.0.1:7".parse().unwrap());
        let set: EndpointSet =
            texts.iter().map(|text| ListedEndpoint::new(text.parse::<Endpoint>().unwrap())).collect();
        is_itself_alone(&set, &own, Duration::from_secs(60)).await
    }

    // Cause: where all members advertise the gateway, it followed their list, and had no endpoint but itself until its restart.
    #[tokio::test]
    async fn a_list_with_nothing_but_the_gateway_is_known() {
        assert!(is_itself(&["127.0.0.1:7", "https://127.0.0.1:7"]).await);
        assert!(!is_itself(&["127.0.0.1:7", "127.0.0.1:8"]).await);
        assert!(!is_itself(&[]).await);
    }
}
