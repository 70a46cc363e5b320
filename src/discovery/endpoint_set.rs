use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::net::Endpoint;

/// What said that an endpoint is one of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A flag, such as `--endpoints`.
    Flag,
    /// SRV records of DNS.
    Srv,
    /// The member list of the cluster.
    MemberList,
    /// Registrations below a prefix in the cluster.
    Naming,
    /// The peer ports of members that registered.
    Peers,
}

impl Origin {
    /// Its name in logs, and the label `source` of metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flag => "static list",
            Self::Srv => "DNS SRV",
            Self::MemberList => "member list",
            Self::Naming => "registered endpoints",
            Self::Peers => "registered members",
        }
    }
}

/// One endpoint and how much of the traffic it should get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedEndpoint {
    /// Where it is, and whether TLS is spoken there.
    pub endpoint: Endpoint,
    /// As in SRV records: only the lowest number with a live endpoint gets traffic.
    pub priority: u16,
    /// Share among the endpoints of one priority; 0 for all of them means equal shares.
    pub weight: u16,
    /// Where it was learned.
    pub origin: Origin,
}

impl ListedEndpoint {
    /// An endpoint from a flag, with the same share as all others.
    pub fn new(endpoint: impl Into<Endpoint>) -> Self {
        Self { endpoint: endpoint.into(), priority: 0, weight: 0, origin: Origin::Flag }
    }
}

/// The endpoints that count now, each once. Cheap to clone.
pub type EndpointSet = Arc<[ListedEndpoint]>;

/// The endpoints of a set, as the client dials them.
pub fn dialled(set: &EndpointSet) -> Vec<Endpoint> {
    set.iter().map(|listed| listed.endpoint.clone()).collect()
}

/// What differs between two sets, for a line of the log.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SetChange {
    pub(super) added: Vec<String>,
    pub(super) removed: Vec<String>,
    /// Those whose priority, weight, TLS or addresses are others.
    pub(super) changed: Vec<String>,
}

impl SetChange {
    pub(super) fn between(before: &EndpointSet, after: &EndpointSet) -> Self {
        let by_name = |set: &EndpointSet| -> BTreeMap<String, ListedEndpoint> {
            set.iter().map(|listed| (listed.endpoint.to_string(), listed.clone())).collect()
        };
        let (before, after) = (by_name(before), by_name(after));
        let mut change = Self::default();
        for (name, listed) in &after {
            match before.get(name) {
                None => change.added.push(name.clone()),
                Some(old) if old != listed => change.changed.push(name.clone()),
                Some(_) => {}
            }
        }
        change.removed.extend(before.into_keys().filter(|name| !after.contains_key(name)));
        change
    }
}

impl fmt::Display for SetChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [('+', &self.added), ('-', &self.removed), ('~', &self.changed)];
        let texts = parts.iter().flat_map(|(sign, names)| names.iter().map(move |name| format!("{sign}{name}")));
        f.write_str(&texts.collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_names_what_came_what_went_and_what_is_different() {
        let set = |texts: &[(&str, u16)]| -> EndpointSet {
            let listed = |&(text, weight): &(&str, u16)| ListedEndpoint {
                weight,
                ..ListedEndpoint::new(text.parse::<Endpoint>().unwrap())
            };
            texts.iter().map(listed).collect()
        };
        let change = SetChange::between(
            &set(&[("a:1", 0), ("b:1", 0), ("d:1", 0)]),
            &set(&[("b:1", 5), ("c:1", 0), ("d:1", 0)]),
        );
        assert_eq!(change.to_string(), "+c:1 -a:1 ~b:1");
        let change = SetChange::between(&set(&[("http://a:1", 0)]), &set(&[("https://a:1", 0)]));
        assert_eq!(change.to_string(), "~a:1");
    }
}
