use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::node::Failure;
use super::stored::Stored;
use crate::client::{Client, UpstreamWatch};
use crate::discovery::RegistryKeys;
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, PutRequest,
    RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest, WatchResponse,
};
use crate::pb::mvccpb::event::EventType;
use crate::pb::mvccpb::{Event, KeyValue};
use crate::types::KeyRange;

/// How long one request to the cluster may take.
const REQUEST_MAX: Duration = Duration::from_secs(7);

/// A token at a revision of the store.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) revision: i64,
    /// None for a token whose members were registered by etcd's v3 discovery after its size was gone.
    pub(super) size: Option<Stored>,
    /// In the order of their ids.
    pub(super) members: Vec<Stored>,
    /// The lease of the size; 0 for none.
    lease: i64,
}

/// The cluster that keeps the tokens. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Store {
    client: Client,
    token_ttl: Option<Duration>,
    keys_max: u32,
}

/// A member of a token that came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Created(Stored),
    Updated(Stored),
    /// What it was, and the revision since which it is gone.
    Deleted(Stored, i64),
}

/// The changes of a token from a revision on, one of which is wanted.
pub(super) struct Changes {
    watch: UpstreamWatch,
    /// The revision of the store when it was opened.
    pub(super) revision: i64,
    keys: RegistryKeys,
}

impl Store {
    pub(super) fn new(client: Client, token_ttl: Option<Duration>, keys_max: u32) -> Self {
        Self { client, token_ttl, keys_max }
    }

    /// Makes a token for so many members; gives the size as stored.
    pub(super) async fn create(&self, token: &str, size: usize) -> Result<Stored, Failure> {
        in_time(async {
            if let Some(failure) = self.no_room().await? {
                return Ok(Err(failure));
            }
            let lease = self.grant().await?;
            let (key, value) = (RegistryKeys::new(token).size, size.to_string());
            let put = PutRequest { key: key.clone().into(), value: value.clone().into(), lease, ..Default::default() };
            let absent = Compare::absent(key);
            let answer = self.client.kv().txn(txn(vec![absent], Request::RequestPut(put))).await;
            let revision = match answer.map(|answer| answer.into_inner()) {
                Ok(answer) if answer.succeeded => answer.header.unwrap_or_default().revision,
                outcome => {
                    self.revoke(lease).await;
                    let index = outcome?.header.unwrap_or_default().revision;
                    return Ok(Err(Failure::exists(format!("{token}/_config/size"), index)));
                }
            };
            Ok(Ok(Stored { name: "size".to_owned(), value, created: revision, modified: revision }))
        })
        .await
    }

    /// The token, if it exists. It lasts for another time to live.
    pub(super) async fn read(&self, token: &str) -> Result<Token, Failure> {
        let read = in_time(async { self.read_once(token).await.map(Ok) }).await?;
        if read.size.is_none() && read.members.is_empty() {
            return Err(Failure::not_found(token, read.revision));
        }
        Ok(read)
    }

    async fn read_once(&self, token: &str) -> Result<Token, Status> {
        let keys = RegistryKeys::new(token);
        let (key, range_end) = KeyRange::prefix(keys.token.clone().into()).to_wire();
        let request = RangeRequest { key, range_end, limit: i64::from(self.keys_max), ..Default::default() };
        let answer = self.client.kv().range(request).await?.into_inner();
        let revision = answer.header.unwrap_or_default().revision;
        let mut read = Token { revision, size: None, members: Vec::new(), lease: 0 };
        for kv in answer.kvs {
            if let Some(member) = member_of(&keys, &kv) {
                read.members.push(member);
            } else if kv.key == keys.size {
                read.size = Some(stored("size", &kv));
                read.lease = kv.lease;
            }
        }
        self.renew(read.lease).await;
        Ok(read)
    }

    /// Registers a member, once.
    pub(super) async fn register(&self, token: &str, id: &str, value: String) -> Result<Stored, Failure> {
        let before = self.read(token).await?;
        let Some(size) = &before.size else {
            return Err(Failure::not_found(format!("{token}/_config/size"), before.revision));
        };
        let index = before.revision;
        if before.members.iter().any(|member| member.name == id) {
            return Err(Failure::exists(format!("{token}/{id}"), index));
        }
        if size.value.parse().is_ok_and(|size: usize| before.members.len() >= size) {
            return Err(Failure::full(token, index));
        }
        in_time(async {
            if let Some(failure) = self.no_room().await? {
                return Ok(Err(failure));
            }
            let keys = RegistryKeys::new(token);
            let (key, lease) = (keys.member(id), before.lease);
            let put = PutRequest { key: key.clone().into(), value: value.clone().into(), lease, ..Default::default() };
            let compare = vec![Compare::exists(keys.size), Compare::absent(key.clone())];
            match self.client.kv().txn(txn(compare, Request::RequestPut(put))).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    let revision = answer.header.unwrap_or_default().revision;
                    if !answer.succeeded {
                        // Either somebody has just come with this id, or the token has just ended: the caller will see.
                        return Ok(Err(Failure::exists(format!("{token}/{id}"), revision)));
                    }
                    Ok(Ok(Stored { name: id.to_owned(), value, created: revision, modified: revision }))
                }
                // The lease of the token has ended.
                Err(status) if status.code() == Code::NotFound => Ok(Err(Failure::not_found(token, index))),
                Err(status) => Err(status),
            }
        })
        .await
    }

    /// Takes a member away; gives what it was, and the revision.
    pub(super) async fn remove(&self, token: &str, id: &str) -> Result<(Stored, i64), Failure> {
        in_time(async {
            let key = RegistryKeys::new(token).member(id).into();
            let request = DeleteRangeRequest { key, prev_kv: true, ..Default::default() };
            let answer = self.client.kv().delete_range(request).await?.into_inner();
            let revision = answer.header.unwrap_or_default().revision;
            Ok(match answer.prev_kvs.first() {
                Some(kv) => Ok((stored(id, kv), revision)),
                None => Err(Failure::not_found(format!("{token}/{id}"), revision)),
            })
        })
        .await
    }

    /// The changes of a token's members, or of one of them, from a revision on; from now on without one.
    pub(super) async fn changes(&self, token: &str, id: Option<&str>, from: Option<i64>) -> Result<Changes, Failure> {
        let keys = RegistryKeys::new(token);
        let (key, range_end) = match id {
            Some(id) => (keys.member(id).into(), Bytes::new()),
            None => KeyRange::prefix(keys.members.clone().into()).to_wire(),
        };
        let start_revision = from.unwrap_or_default();
        let create = WatchCreateRequest { key, range_end, start_revision, prev_kv: true, ..Default::default() };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        in_time(async {
            let (mut watch, _) = self.client.channel().open_watch(&HeaderMap::new()).await?;
            let closed = || Status::unavailable("the stream is closed");
            watch.requests.send(create).await.map_err(|_| closed())?;
            let answer = watch.answers.message().await?.ok_or_else(closed)?;
            let revision = answer.header.as_ref().map_or(0, |header| header.revision);
            if !answer.canceled && from.is_some() {
                // A member says in a second answer that the history is compacted; whether it will is known here already.
                let oldest = self.compacted(start_revision).await?;
                if let Some(oldest) = oldest {
                    return Ok(Err(Failure::cleared(oldest, start_revision, revision)));
                }
            }
            Ok(match cancelled(&answer) {
                Some(failure) => {
                    self.client.logs_in_after(&answer.cancel_reason);
                    Err(failure)
                }
                None => Ok(Changes { watch, revision, keys }),
            })
        })
        .await
    }

    /// The oldest revision that can be watched, if this one cannot.
    async fn compacted(&self, revision: i64) -> Result<Option<i64>, Status> {
        let request = RangeRequest { key: RegistryKeys::ALL.into(), revision, count_only: true, ..Default::default() };
        match self.client.kv().range(request).await {
            Err(status) if status.code() == Code::OutOfRange && status.message().contains("compacted") => {
                Ok(Some(revision.saturating_add(1)))
            }
            // A revision to come.
            Err(status) if status.code() == Code::OutOfRange => Ok(None),
            Err(status) => Err(status),
            Ok(_) => Ok(None),
        }
    }

    /// Whether the cluster answers.
    pub(super) async fn check(&self) -> Result<(), String> {
        let answer = timeout(REQUEST_MAX, self.keys()).await.map_err(|_| "no answer in time".to_owned())?;
        answer.map(|_| ()).map_err(|status| status.message().to_owned())
    }

    /// Why no key may be stored any more.
    async fn no_room(&self) -> Result<Option<Failure>, Status> {
        let most = self.keys_max;
        let is_full = self.keys().await? >= i64::from(most);
        Ok(is_full.then(|| Failure::store(format!("{most} tokens and members are stored (--keys-max)"))))
    }

    /// How many keys there are of all tokens.
    async fn keys(&self) -> Result<i64, Status> {
        let (key, range_end) = KeyRange::prefix(RegistryKeys::ALL.into()).to_wire();
        let request = RangeRequest { key, range_end, count_only: true, ..Default::default() };
        Ok(self.client.kv().range(request).await?.into_inner().count)
    }

    /// A lease for a token; 0 where tokens do not end.
    async fn grant(&self) -> Result<i64, Status> {
        let Some(ttl) = self.token_ttl else { return Ok(0) };
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let granted = self.client.lease().lease_grant(LeaseGrantRequest { ttl, id: 0 }).await?;
        Ok(granted.into_inner().id)
    }

    async fn revoke(&self, lease: i64) {
        if lease != 0 {
            // It ends by itself otherwise.
            let _ = self.client.lease().lease_revoke(LeaseRevokeRequest { id: lease }).await;
        }
    }

    /// Has a token last for another time to live. One that cannot be renewed ends earlier, which its next reader sees.
    async fn renew(&self, lease: i64) {
        if lease == 0 {
            return;
        }
        let requests = tokio_stream::iter([LeaseKeepAliveRequest { id: lease }]);
        let renewed = async { self.client.lease().lease_keep_alive(requests).await?.into_inner().message().await };
        if let Err(status) = renewed.await {
            tracing::warn!(%status, "a token could not be renewed");
        }
    }
}

impl Changes {
    /// The next change; none when the history is compacted past it or the cluster does not go on.
    pub(super) async fn next(&mut self) -> Option<Change> {
        loop {
            let answer = self.watch.answers.message().await.ok().flatten()?;
            if answer.canceled {
                return None;
            }
            if let Some(change) = answer.events.iter().find_map(|event| change(&self.keys, event)) {
                return Some(change);
            }
        }
    }
}

/// Bounds the time of what the cluster is asked, and gives its errors as failures.
async fn in_time<T>(asked: impl Future<Output = Result<Result<T, Failure>, Status>>) -> Result<T, Failure> {
    match timeout(REQUEST_MAX, asked).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(status)) => {
            tracing::warn!(%status, "the cluster that keeps the tokens refused a request");
            Err(Failure::store(status.message()))
        }
        Err(_) => {
            tracing::warn!("the cluster that keeps the tokens did not answer in time");
            Err(Failure::store("the cluster that keeps the tokens did not answer in time"))
        }
    }
}

fn cancelled(answer: &WatchResponse) -> Option<Failure> {
    let index = answer.header.as_ref().map_or(0, |header| header.revision);
    match answer {
        WatchResponse { canceled: false, .. } => None,
        WatchResponse { compact_revision: 0, cancel_reason, .. } => Some(Failure::store(cancel_reason.clone())),
        WatchResponse { compact_revision, .. } => {
            Some(Failure::cleared(compact_revision.saturating_add(1), *compact_revision, index))
        }
    }
}

fn change(keys: &RegistryKeys, event: &Event) -> Option<Change> {
    let member = member_of(keys, event.kv.as_ref()?)?;
    Some(match event.r#type() {
        EventType::Put if member.created == member.modified => Change::Created(member),
        EventType::Put => Change::Updated(member),
        EventType::Delete => {
            let before = event.prev_kv.as_ref().and_then(|kv| member_of(keys, kv));
            let revision = member.modified;
            Change::Deleted(before.unwrap_or(member), revision)
        }
    })
}

fn member_of(keys: &RegistryKeys, kv: &KeyValue) -> Option<Stored> {
    let id = kv.key.strip_prefix(keys.members.as_bytes())?;
    Some(stored(std::str::from_utf8(id).ok()?, kv))
}

fn stored(name: &str, kv: &KeyValue) -> Stored {
    let value = String::from_utf8_lossy(&kv.value).into_owned();
    Stored { name: name.to_owned(), value, created: kv.create_revision, modified: kv.mod_revision }
}

fn txn(compare: Vec<Compare>, request: Request) -> TxnRequest {
    let success = vec![RequestOp { request: Some(request) }];
    TxnRequest { compare, success, ..Default::default() }
}
