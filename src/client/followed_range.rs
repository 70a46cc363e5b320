use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use tokio::time::timeout;
use tonic::Status;

use super::channel::{Carried, Channel};
use crate::net::Backoff;
use crate::pb::etcdserverpb::kv_client::KvClient;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{RangeRequest, WatchCreateRequest, WatchRequest};
use crate::pb::mvccpb::KeyValue;
use crate::pb::mvccpb::event::EventType;

/// How long the list may take.
const LIST_MAX: Duration = Duration::from_secs(5);

/// A range of keys whose pairs are followed.
#[derive(Clone, Debug)]
pub struct FollowedRange {
    /// Its first key.
    pub key: Bytes,
    /// Its end, as requests have it.
    pub range_end: Bytes,
    /// Pairs that are kept; more are left out.
    pub pairs_max: usize,
}

/// Lists a range and follows its changes for as long as a watch of them goes; gives the reason why that ended.
///
/// `read` makes a value of a pair, or says that it counts as none. `publish` gets all of them, in the order of their keys, after the
/// list and after each change. `backoff` begins again with each answer.
pub async fn follow_range<T>(
    channel: &Channel,
    range: &FollowedRange,
    backoff: &mut Backoff,
    read: impl Fn(&KeyValue) -> Option<T>,
    publish: impl FnMut(&BTreeMap<Bytes, T>),
) -> Status {
    let mut carried = Carried::default();
    let Err(status) = list_and_watch(channel, &mut carried, range, backoff, read, publish).await;
    channel.refused(&carried, status.message());
    status
}

/// `carried` becomes what the watch was opened with.
async fn list_and_watch<T>(
    channel: &Channel,
    carried: &mut Carried,
    range: &FollowedRange,
    backoff: &mut Backoff,
    read: impl Fn(&KeyValue) -> Option<T>,
    mut publish: impl FnMut(&BTreeMap<Bytes, T>),
) -> Result<std::convert::Infallible, Status> {
    let FollowedRange { key, range_end, pairs_max } = range;
    let request = RangeRequest { key: key.clone(), range_end: range_end.clone(), ..Default::default() };
    let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(i32::MAX as usize);
    let late = |_| Status::deadline_exceeded("no answer in time");
    let listed = timeout(LIST_MAX, kv.range(request)).await.map_err(late)??.into_inner();
    let mut values = BTreeMap::new();
    let note = |values: &mut BTreeMap<Bytes, T>, kv: KeyValue| match read(&kv) {
        Some(value) if values.len() < *pairs_max || values.contains_key(&kv.key) => drop(values.insert(kv.key, value)),
        _ => drop(values.remove(&kv.key)),
    };
    for kv in listed.kvs {
        note(&mut values, kv);
    }
    publish(&values);
    let mut metadata = HeaderMap::new();
    metadata.insert("hasleader", HeaderValue::from_static("true"));
    let (mut watch, token) = channel.open_watch(&metadata).await?;
    *carried = token;
    let start_revision = listed.header.unwrap_or_default().revision + 1;
    let (key, range_end) = (key.clone(), range_end.clone());
    let create = WatchCreateRequest { key, range_end, start_revision, ..Default::default() };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    watch.requests.send(create).await.map_err(|_| Status::unavailable("the stream is closed"))?;
    loop {
        let answer = watch.answers.message().await?;
        let answer = answer.ok_or_else(|| Status::unavailable("the member ended the stream"))?;
        if answer.canceled {
            return Err(Status::unavailable(answer.cancel_reason));
        }
        backoff.reset();
        for event in answer.events {
            let deleted = event.r#type() == EventType::Delete;
            let Some(kv) = event.kv else { continue };
            match deleted {
                true => drop(values.remove(&kv.key)),
                false => note(&mut values, kv),
            }
        }
        publish(&values);
    }
}
