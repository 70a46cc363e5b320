use std::sync::Arc;

use super::upstreams::{Listed, Upstreams};
use crate::config::RouteMatch;
use crate::net::ClientHello;

/// Which endpoints a connection may go to, by what its client asks for.
#[derive(Debug)]
pub(super) struct Routes {
    pub(super) rules: Vec<Route>,
    /// For all that no rule takes.
    pub(super) default: Arc<Upstreams>,
}

/// Endpoints for some of the connections.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) matching: RouteMatch,
    pub(super) upstreams: Arc<Upstreams>,
}

impl Routes {
    /// The endpoints of every connection, where there are no rules.
    pub(super) fn only(&self) -> Option<&Arc<Upstreams>> {
        self.rules.is_empty().then_some(&self.default)
    }

    /// Those of a connection whose client said this, or nothing that could be read.
    pub(super) fn choose(&self, hello: Option<&ClientHello>) -> &Arc<Upstreams> {
        let name = hello.and_then(|hello| hello.server_name.as_deref());
        let protocols = || hello.into_iter().flat_map(|hello| &hello.protocols).map(Vec::as_slice);
        let takes_it = |route: &&Route| hello.is_some() && route.matching.takes(name, protocols());
        self.rules.iter().find(takes_it).map_or(&self.default, |route| &route.upstreams)
    }

    /// All of them, the default without a name first.
    pub(super) fn all(&self) -> impl Iterator<Item = (Option<&RouteMatch>, &Arc<Upstreams>)> {
        let rules = self.rules.iter().map(|route| (Some(&route.matching), &route.upstreams));
        std::iter::once((None, &self.default)).chain(rules)
    }

    /// Every endpoint that is listed.
    pub(super) fn endpoints(&self) -> Vec<Listed> {
        self.all().flat_map(|(_, upstreams)| upstreams.list().to_vec()).collect()
    }
}
