use std::fmt::Display;
use std::time::Duration;

use super::asking::{Unanswered, until_answered};
use super::error::JoinError;
use super::keys::RegistryKeys;
use super::registered::{Entry, Registered};
use crate::client::{Client, ClientConfig, KeepAlive};
use crate::config::TokenRegistry;
use crate::net::{Backoff, ClientTls};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, TxnRequest};
use crate::pb::mvccpb::KeyValue;
use crate::types::KeyRange;

/// Pauses after a request that was not answered.
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
/// Shortest ping interval that stock members tolerate.
const KEEPALIVE_LEAST: Duration = Duration::from_secs(5);

/// A token in an etcd cluster, by the protocol of etcd's v3 discovery.
pub(in crate::discovery) struct OfToken {
    request_timeout: Duration,
    client: Client,
    keys: RegistryKeys,
}

impl OfToken {
    pub(super) fn connect(config: &TokenRegistry) -> Result<Self, JoinError> {
        let failed = |error: &dyn Display| JoinError::Client(error.to_string());
        let tls = config.tls.as_ref().map(ClientTls::new).transpose().map_err(|error| failed(&error))?;
        let client = Client::connect(ClientConfig {
            dial_timeout: config.dial_timeout,
            keepalive: Some(KeepAlive {
                interval: config.keepalive_time.max(KEEPALIVE_LEAST),
                timeout: config.keepalive_timeout,
                while_idle: false,
            }),
            tls,
            user: config.user.clone(),
            ..ClientConfig::new(config.endpoints.iter().cloned())
        });
        let client = client.map_err(|error| failed(&error))?;
        Ok(Self { request_timeout: config.request_timeout, client, keys: RegistryKeys::new(&config.token) })
    }

    pub(super) async fn look(&self) -> Result<Registered, JoinError> {
        let size = RangeRequest { key: self.keys.size.clone().into(), ..Default::default() };
        let (key, range_end) = KeyRange::prefix(self.keys.members.clone().into_bytes().into()).to_wire();
        let members = RangeRequest { key, range_end, ..Default::default() };
        let size = self.keys.read_size(self.read("size", size).await?.1.first())?;
        let (revision, found) = self.read("members", members).await?;
        let entry = |pair: &KeyValue| Entry {
            id: String::from_utf8_lossy(pair.key.strip_prefix(self.keys.members.as_bytes()).unwrap_or_default()).into(),
            value: String::from_utf8_lossy(&pair.value).into(),
            created: pair.create_revision,
        };
        Ok(Registered::new(size, Some(revision), found.iter().map(entry).collect()))
    }

    /// Revision and pairs.
    async fn read(&self, what: &str, request: RangeRequest) -> Result<(i64, Vec<KeyValue>), JoinError> {
        let (client, request) = (&self.client, &request);
        let answer = until_answered(what, self.request_timeout, &RETRY, || async move {
            client.kv().range(request.clone()).await.map_err(|status| Unanswered::Later(status.to_string()))
        });
        let answer = answer.await?.into_inner();
        Ok((answer.header.map_or(0, |header| header.revision), answer.kvs))
    }

    /// Writes the entry unless there is one: the revision of the first one is the place of the member.
    pub(super) async fn register(&self, id: &str, entry: &str) -> Result<(), JoinError> {
        let key = self.keys.member(id);
        let put = PutRequest { key: key.clone().into(), value: entry.to_owned().into(), ..Default::default() };
        let put = RequestOp { request: Some(Request::RequestPut(put)) };
        let txn = TxnRequest { compare: vec![Compare::absent(key)], success: vec![put], failure: Vec::new() };
        let (client, txn) = (&self.client, &txn);
        let answer = until_answered("registration", self.request_timeout, &RETRY, || async move {
            client.kv().txn(txn.clone()).await.map_err(|status| Unanswered::Later(status.to_string()))
        });
        answer.await.map(drop)
    }
}
