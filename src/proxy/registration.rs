use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use tonic::Status;
use tracing::{info, warn};

use super::namespace::Namespace;
use crate::client::{Carried, Channel, FollowedRange, follow_range};
use crate::discovery::NamingEntry;
use crate::net::Backoff;
use crate::pb::etcdserverpb::kv_client::KvClient;
use crate::pb::etcdserverpb::lease_client::LeaseClient;
use crate::pb::etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, Member, PutRequest};
use crate::pb::mvccpb::KeyValue;
use crate::shutdown::Tasks;
use crate::types::KeyRange;

/// Pauses before registering or listing again: a thousand proxies lose a member at the same time.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How long one request may take.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// Registered proxies that are kept; more are left out.
const REGISTERED_MAX: usize = 16 * 1024;

/// What a proxy registers, and where.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Put before all keys.
    pub namespace: Namespace,
    /// Shared by the proxies that know of each other.
    pub prefix: String,
    /// `host:port` for clients, without a scheme: gRPC's resolvers dial it as it is.
    pub address: String,
    /// Host name.
    pub name: String,
    /// Of the lease that the registration ends with, in seconds.
    pub ttl: i64,
    /// For the URLs in MemberList of proxies that registered without one.
    pub scheme: &'static str,
}

/// The registered proxies, in the order of their keys. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct RegisteredProxies {
    members: Arc<ArcSwap<Vec<Member>>>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Metadata {
    name: String,
}

impl RegisteredProxies {
    /// As MemberList names them; empty before the list is read.
    pub fn members(&self) -> Arc<Vec<Member>> {
        self.members.load_full()
    }

    /// Registers a proxy until `tasks` stop, and follows the list of all that are registered.
    pub fn start(channel: Channel, registration: Registration, tasks: &Tasks) -> Self {
        let proxies = Self::default();
        let registrar = Arc::new(Registrar { channel, registration, proxies: proxies.clone() });
        let (stop, task) = (tasks.stop_signal(), registrar.clone());
        tasks.spawn(async move {
            let mut lease = None;
            tokio::select! {
                () = stop.cancelled() => {}
                () = task.stay_registered(&mut lease) => {}
            }
            if let Some(lease) = lease {
                // Clients are to look elsewhere now, not when the lease has ended.
                let _ = timeout(REQUEST_MAX, task.revoke(lease)).await;
            }
        });
        let stop = tasks.stop_signal();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = registrar.follow() => {}
            }
        });
        proxies
    }
}

struct Registrar {
    channel: Channel,
    registration: Registration,
    proxies: RegisteredProxies,
}

impl Registrar {
    async fn stay_registered(&self, lease: &mut Option<i64>) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        loop {
            match timeout(REQUEST_MAX, self.register(lease)).await {
                Ok(Ok((id, ttl))) => {
                    backoff.reset();
                    let Registration { address, prefix, .. } = &self.registration;
                    info!(address, prefix, lease = id, ttl, "registered the proxy");
                    self.keep_alive(id, ttl).await;
                    *lease = None;
                    warn!(address, prefix, "the registration of the proxy has expired, it registers again");
                }
                Ok(Err(status)) => warn!(%status, "the proxy could not be registered"),
                Err(_) => warn!("the proxy could not be registered in time"),
            }
            sleep(backoff.pause()).await;
        }
    }

    /// Writes the registration with a lease of its own; gives that and its TTL.
    async fn register(&self, lease: &mut Option<i64>) -> Result<(i64, i64), Status> {
        let Registration { namespace, prefix, address, name, ttl, .. } = &self.registration;
        let id = match *lease {
            // What was granted for an attempt that failed.
            Some(id) => id,
            None => {
                let grant = LeaseGrantRequest { ttl: *ttl, id: 0 };
                let granted = LeaseClient::new(self.channel.clone()).lease_grant(grant).await?.into_inner();
                *lease.insert(granted.id)
            }
        };
        let metadata = serde_json::to_string(&Metadata { name: name.clone() });
        let metadata = metadata.map_err(|error| Status::internal(error.to_string()))?;
        let entry = NamingEntry { op: 0, addr: address.clone(), metadata: metadata.into() };
        let value = serde_json::to_vec(&entry).map_err(|error| Status::internal(error.to_string()))?;
        let key = namespace.add_prefix(format!("{prefix}/{address}").as_bytes());
        let put = PutRequest { key, value: value.into(), lease: id, ..Default::default() };
        match KvClient::new(self.channel.clone()).put(put).await {
            Ok(_) => Ok((id, *ttl)),
            Err(status) => {
                if status.code() == tonic::Code::NotFound {
                    *lease = None;
                }
                Err(status)
            }
        }
    }

    /// Keeps the lease alive until the cluster says that it is gone.
    async fn keep_alive(&self, id: i64, ttl: i64) {
        let pause = Duration::from_secs(ttl.unsigned_abs()) / 3;
        loop {
            sleep(pause).await;
            let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
            loop {
                match timeout(REQUEST_MAX, self.renew(id)).await {
                    Ok(Ok(true)) => break,
                    Ok(Ok(false)) => return,
                    // Whether it still exists is for the cluster to say.
                    Ok(Err(_)) | Err(_) => sleep(backoff.pause()).await,
                }
            }
        }
    }

    async fn renew(&self, id: i64) -> Result<bool, Status> {
        let renewed = self.renewed(id).await;
        if let Err(status) = &renewed {
            // The channel sees the head of the answer alone: a token that a stream ends for is not known to be refused.
            self.channel.refused(&Carried::default(), status.message());
        }
        renewed
    }

    async fn renewed(&self, id: i64) -> Result<bool, Status> {
        let requests = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
        let mut answers = LeaseClient::new(self.channel.clone()).lease_keep_alive(requests).await?.into_inner();
        let answer = answers.message().await?.ok_or_else(|| Status::unavailable("the stream has ended"))?;
        Ok(answer.ttl > 0)
    }

    async fn revoke(&self, id: i64) {
        let _ = LeaseClient::new(self.channel.clone()).lease_revoke(LeaseRevokeRequest { id }).await;
    }

    async fn follow(&self) {
        let under = KeyRange::prefix(format!("{}/", self.registration.prefix).into());
        let (key, range_end) = self.registration.namespace.upstream_range(&under);
        let range = FollowedRange { key, range_end, pairs_max: REGISTERED_MAX };
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        loop {
            let read = |kv: &KeyValue| read_entry(&kv.value, self.registration.scheme);
            let status = follow_range(&self.channel, &range, &mut backoff, read, |members| self.publish(members)).await;
            tracing::debug!(%status, "the registered proxies are listed again");
            sleep(backoff.pause()).await;
        }
    }

    fn publish(&self, members: &BTreeMap<Bytes, Member>) {
        self.proxies.members.store(Arc::new(members.values().cloned().collect()));
    }
}

fn read_entry(value: &[u8], scheme: &str) -> Option<Member> {
    let entry = NamingEntry::read(value)?;
    let metadata: Metadata = match &entry.metadata {
        serde_json::Value::String(text) => serde_json::from_str(text).ok()?,
        _ => return None,
    };
    let url = match entry.addr.contains("://") {
        true => entry.addr,
        false => format!("{scheme}://{}", entry.addr),
    };
    Some(Member { name: metadata.name, client_ur_ls: vec![url], ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_those_of_etcds_naming_package() {
        let metadata = serde_json::to_string(&Metadata { name: "h".into() }).unwrap();
        let entry = NamingEntry { op: 0, addr: "a:1".into(), metadata: metadata.into() };
        let text = serde_json::to_string(&entry).unwrap();
        assert_eq!(text, r#"{"Op":0,"Addr":"a:1","Metadata":"{\"name\":\"h\"}"}"#);
        let read = read_entry(text.as_bytes(), "https").unwrap();
        assert_eq!((read.name.as_str(), &read.client_ur_ls[..]), ("h", &["https://a:1".to_owned()][..]));
        let given = text.replace("a:1", "http://a:1");
        assert_eq!(read_entry(given.as_bytes(), "https").unwrap().client_ur_ls, ["http://a:1"]);
    }

    #[test]
    fn what_is_no_registration_of_a_proxy_is_none() {
        for junk in [
            "",
            "{",
            "[]",
            r#"{"Op":0,"Addr":"","Metadata":"{\"name\":\"h\"}"}"#,
            r#"{"Op":0,"Addr":"a:1","Metadata":null}"#,
            r#"{"Op":0,"Addr":"a:1","Metadata":"no json"}"#,
            r#"{"Op":0,"Addr":"a:1","Metadata":{"name":"h"}}"#,
        ] {
            assert!(read_entry(junk.as_bytes(), "http").is_none(), "{junk}");
        }
    }
}
