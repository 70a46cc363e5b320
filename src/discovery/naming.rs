use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::endpoint_set::{EndpointSet, ListedEndpoint, Origin};
use super::source::{Discovery, Followed, Published};
use crate::client::{Client, FollowedRange, follow_range};
use crate::net::{Backoff, Endpoint};
use crate::pb::mvccpb::KeyValue;
use crate::shutdown::Tasks;
use crate::types::KeyRange;

/// Pauses before the registrations are listed again.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Registrations that are used; more are left out.
const ENDPOINTS_MAX: usize = 16 * 1024;

/// A registration as etcd's naming package writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NamingEntry {
    /// 0 for an address that is there.
    pub op: u8,
    /// `host:port`, with a scheme or without.
    pub addr: String,
    /// JSON of those who registered.
    pub metadata: serde_json::Value,
}

impl NamingEntry {
    /// None for what is no registration.
    pub fn read(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok().filter(|entry: &Self| !entry.addr.is_empty())
    }
}

/// Endpoints that proxies, or others, registered below a prefix in the cluster in front of which they are (`--resolver-prefix`).
#[derive(Debug)]
pub struct RegisteredEndpoints {
    followed: Followed,
}

impl RegisteredEndpoints {
    /// Waits until `client` finds one below `prefix`, then follows until `tasks` stop.
    pub async fn start(client: Client, prefix: &str, tasks: &Tasks) -> Self {
        let (key, range_end) = KeyRange::prefix(format!("{prefix}/").into()).to_wire();
        let range = FollowedRange { key, range_end, pairs_max: ENDPOINTS_MAX };
        let published = Published::new(Origin::Naming, EndpointSet::default());
        let (followed, stop) = (published.followed(), tasks.stop_signal());
        tasks.spawn(async move {
            tokio::select! { () = stop.cancelled() => {}, () = follow(&client, &range, &published) => {} }
        });
        let mut sets = followed.endpoints();
        if sets.borrow_and_update().is_empty() {
            info!(prefix, "waiting for endpoints to be registered (--resolver-prefix)");
            // The task ends with the process alone.
            let _ = sets.wait_for(|set| !set.is_empty()).await;
        }
        Self { followed }
    }
}

impl Discovery for RegisteredEndpoints {
    fn followed(&self) -> Followed {
        self.followed.clone()
    }
}

async fn follow(client: &Client, range: &FollowedRange, published: &Published) {
    let (mut backoff, channel) = (Backoff::new(RETRY_FIRST, RETRY_MAX), client.channel());
    loop {
        let publish = |found: &std::collections::BTreeMap<_, Endpoint>| published.answer(listed(found.values()));
        tokio::select! {
            status = follow_range(&channel, range, &mut backoff, endpoint, publish) => {
                published.failed(&status);
                published.pause(backoff.pause()).await;
            }
            // The next round reads all of them.
            () = published.asked() => {}
        }
    }
}

fn endpoint(kv: &KeyValue) -> Option<Endpoint> {
    let entry = NamingEntry::read(&kv.value)?;
    let endpoint = entry.addr.parse();
    if endpoint.is_err() {
        warn!(key = %kv.key.escape_ascii(), addr = entry.addr, "registered address cannot be dialled, it is left out");
    }
    endpoint.ok()
}

fn listed<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> EndpointSet {
    let mut set: Vec<ListedEndpoint> = Vec::new();
    for endpoint in endpoints {
        if !set.iter().any(|known| known.endpoint.is_same_place(endpoint)) {
            set.push(ListedEndpoint { origin: Origin::Naming, ..ListedEndpoint::new(endpoint.clone()) });
        }
    }
    set.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_used_once_and_junk_is_none() {
        let pair = |value: &str| KeyValue { value: value.to_owned().into(), ..Default::default() };
        let read =
            |value: &str| endpoint(&pair(value)).map(|endpoint| (endpoint.to_string(), endpoint.uses_tls(false)));
        assert_eq!(read(r#"{"Op":0,"Addr":"a:1","Metadata":null}"#), Some(("a:1".to_owned(), false)));
        assert_eq!(read(r#"{"Addr":"https://[::1]:2"}"#), Some(("[::1]:2".to_owned(), true)));
        for junk in ["", "[]", "{}", r#"{"Addr":""}"#, r#"{"Addr":"a"}"#] {
            assert_eq!(read(junk), None, "{junk}");
        }
        let all: Vec<Endpoint> = ["a:1", "b:1", "http://a:1"].map(|text| text.parse().unwrap()).to_vec();
        assert_eq!(listed(all.iter()).len(), 2);
    }
}
