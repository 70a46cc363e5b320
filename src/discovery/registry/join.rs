use std::fmt::Display;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::error::RegistryError;
use super::keys::{Registered, RegistryKeys};
use crate::client::{Client, ClientConfig, Credentials, KeepAlive};
use crate::config::TokenDiscovery;
use crate::net::{Backoff, ClientTls};
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, TxnRequest};
use crate::types::{KeyRange, MemberId};

/// Pauses after a request that was not answered.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Pauses between two looks while members are missing.
const LOOK_FIRST: Duration = Duration::from_millis(200);
const LOOK_MAX: Duration = Duration::from_secs(2);
/// Shortest ping interval that stock members tolerate.
const KEEPALIVE_LEAST: Duration = Duration::from_secs(5);

/// Registers a member under `entry`, which is `NAME=URL` for each of its peer URLs, and waits until the cluster is complete. A
/// member that is registered already keeps its place. The answer has the form of `--initial-cluster`.
///
/// A registry that does not answer is asked again, for ever. Whoever waits looks again instead of watching: neither a
/// compaction of the registry nor a restart of it is noticed.
///
/// # Errors
/// See [`RegistryError`].
pub async fn join_cluster(config: &TokenDiscovery, member: MemberId, entry: &str) -> Result<String, RegistryError> {
    let registry = Registry::connect(config, member)?;
    let (mut size, mut registered) = registry.look().await?;
    if !registered.has(&registry.key, size) {
        registry.refuse_when_full(&registered, size)?;
        registry.register(entry).await;
        (size, registered) = registry.look().await?;
        // Others may have been faster.
        if !registered.has(&registry.key, size) {
            registry.refuse_when_full(&registered, size)?;
        }
    }
    let mut pause = Backoff::new(LOOK_FIRST, LOOK_MAX);
    let mut seen = 0;
    while registered.len() < size {
        if seen != registered.len() {
            seen = registered.len();
            info!(registered = seen, size, "waiting for the other members of the cluster (--discovery-token)");
        }
        sleep(pause.pause()).await;
        (size, registered) = registry.look().await?;
    }
    let cluster = registered.initial_cluster(size)?;
    info!(initial_cluster = cluster, "found the initial cluster by --discovery-token");
    Ok(cluster)
}

/// The registry as one member sees it.
struct Registry<'a> {
    config: &'a TokenDiscovery,
    client: Client,
    keys: RegistryKeys,
    member: MemberId,
    /// Of this member.
    key: String,
}

impl<'a> Registry<'a> {
    fn connect(config: &'a TokenDiscovery, member: MemberId) -> Result<Self, RegistryError> {
        let failed = |error: &dyn Display| RegistryError::Client(error.to_string());
        let tls = config.tls.as_ref().map(ClientTls::new).transpose().map_err(|error| failed(&error))?;
        let user = config.user.clone().map(|user| Credentials { name: user.name, password: user.password });
        let client = Client::connect(ClientConfig {
            dial_timeout: config.dial_timeout,
            keepalive: Some(KeepAlive {
                interval: config.keepalive_time.max(KEEPALIVE_LEAST),
                timeout: config.keepalive_timeout,
                while_idle: false,
            }),
            tls,
            user,
            ..ClientConfig::new(config.endpoints.iter().cloned())
        });
        let client = client.map_err(|error| failed(&error))?;
        let keys = RegistryKeys::new(&config.token);
        let key = keys.member(member);
        Ok(Self { config, client, keys, member, key })
    }

    /// How many members there will be, and who is registered.
    async fn look(&self) -> Result<(usize, Registered), RegistryError> {
        let size = RangeRequest { key: self.keys.size.clone().into(), ..Default::default() };
        let (key, range_end) = KeyRange::prefix(self.keys.members.clone().into_bytes().into()).to_wire();
        let members = RangeRequest { key, range_end, ..Default::default() };
        let size = self.answered("read the size", async || self.client.kv().range(size.clone()).await).await;
        let size = self.keys.read_size(size.into_inner().kvs.first())?;
        let found = self.answered("read the members", async || self.client.kv().range(members.clone()).await).await;
        Ok((size, Registered::read(found.into_inner().kvs)))
    }

    fn refuse_when_full(&self, registered: &Registered, size: usize) -> Result<(), RegistryError> {
        match registered.len() < size {
            true => Ok(()),
            false => Err(RegistryError::Full { size, member: self.member.to_string() }),
        }
    }

    /// Writes the entry unless there is one: the revision of the first one is the place of the member.
    async fn register(&self, entry: &str) {
        let absent = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Create.into(),
            key: self.key.clone().into(),
            target_union: Some(TargetUnion::CreateRevision(0)),
            ..Default::default()
        };
        let put = PutRequest { key: self.key.clone().into(), value: entry.to_owned().into(), ..Default::default() };
        let put = RequestOp { request: Some(Request::RequestPut(put)) };
        let txn = TxnRequest { compare: vec![absent], success: vec![put], failure: Vec::new() };
        self.answered("register", async || self.client.kv().txn(txn.clone()).await).await;
        info!(key = self.key, entry, "registered for the cluster of --discovery-token");
    }

    /// Asks until there is an answer.
    async fn answered<T, E: Display>(&self, what: &str, ask: impl AsyncFn() -> Result<T, E>) -> T {
        let mut pause = Backoff::new(RETRY_FIRST, RETRY_MAX);
        loop {
            let reason = match timeout(self.config.request_timeout, ask()).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            let pause = pause.pause();
            warn!(what, reason, ?pause, "registry of --discovery-endpoints does not answer, it is asked again");
            sleep(pause).await;
        }
    }
}
