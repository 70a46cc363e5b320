use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tonic::Status;
use tracing::info;

use crate::client::{Carried, Channel, Head, Method, framed, unframed};
use crate::net::Backoff;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{
    RangeRequest, RangeResponse, ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse,
};
use crate::pb::mvccpb::event::EventType;
use crate::pb::mvccpb::{Event, KeyValue};
use crate::proxy::cache::{PROGRESS_WATCH_ID, ProgressRequests, progress_request};
use crate::proxy::identity::Identity;
use crate::proxy::limits::{Limits, Stored};
use crate::proxy::namespace::Namespace;
use crate::types::Revision;

const RANGE: &str = "/etcdserverpb.KV/Range";
/// Pairs of the first page; the following ones have as many as fill about so many bytes.
const FIRST_PAGE: i64 = 16;
const PAGE_BYTES: i64 = 1024 * 1024;
const PAGE_MAX: i64 = 2048;
/// Pauses before it is tried again.
const AGAIN_FIRST: Duration = Duration::from_millis(200);
const AGAIN_MAX: Duration = Duration::from_secs(10);
/// Pauses before progress is requested again, while a request waits for a revision that the watch has not come to.
const PROGRESS_FIRST: Duration = Duration::from_millis(2);
const PROGRESS_MAX: Duration = Duration::from_millis(50);

/// Whether what a tenant has stored is being counted, and with whose credentials where neither proxy nor tenant is a user.
#[derive(Debug, Default)]
pub(super) struct Counting {
    runs: AtomicBool,
    /// Whether the credentials of the next request are to be noted.
    wants_caller: AtomicBool,
    caller: Mutex<Identity>,
    noted: Notify,
}

/// Counts what a tenant has stored: all of it once, page by page at one revision, and from there on by a watch.
pub(super) struct StoredCount {
    pub channel: Channel,
    /// Reads with the credentials of callers.
    pub as_caller: bool,
    pub namespace: Namespace,
    pub limits: Arc<Limits>,
    pub counting: Arc<Counting>,
}

/// Where the count is.
struct Position {
    cluster: u64,
    /// Of the newest event that is in it.
    revision: i64,
    /// There was nothing up to this revision that is not in it. Members before 3.4.25 and 3.5.8 may say so too early; then a
    /// request may be refused that would have found room.
    seen: i64,
    /// What the events of a revision have added whose last part has not come yet.
    part: Stored,
}

/// Why counting goes no further.
enum End {
    /// The watch ended; the count stands and may go on from its revision.
    Interrupted(Status),
    /// There are events that cannot be had any more.
    Gap(Status),
    /// The limits are gone.
    Unlimited,
}

impl Counting {
    /// Whether it has to be begun, with the credentials of this request; whoever is told so does it.
    pub fn is_due(&self, headers: &HeaderMap) -> bool {
        let due = !self.runs.load(Ordering::Relaxed) && !self.runs.swap(true, Ordering::Relaxed);
        if due {
            self.note(headers);
        } else if self.wants_caller.load(Ordering::Relaxed) && self.wants_caller.swap(false, Ordering::Relaxed) {
            self.note(headers);
            self.noted.notify_one();
        }
        due
    }

    fn note(&self, headers: &HeaderMap) {
        *self.caller.lock() = Identity::of(headers);
    }
}

impl StoredCount {
    /// Counts for as long as there are limits. What was counted last stands while the cluster does not answer.
    pub async fn run(self) {
        loop {
            self.count().await;
            self.limits.forget_stored();
            self.counting.runs.store(false, Ordering::Relaxed);
            // A request that came since the limits were gone has seen that it runs.
            if !self.limits.counts_stored() || self.counting.runs.swap(true, Ordering::Relaxed) {
                break;
            }
        }
    }

    /// Counts until the limits are gone.
    async fn count(&self) {
        let mut backoff = Backoff::new(AGAIN_FIRST, AGAIN_MAX);
        let mut position = None;
        loop {
            let end = match &mut position {
                None => match self.all().await {
                    Ok(found) => self.follow(position.insert(found), &mut backoff).await,
                    Err(status) => End::Interrupted(status),
                },
                Some(position) => self.follow(position, &mut backoff).await,
            };
            let status = match end {
                End::Interrupted(status) => status,
                End::Gap(status) => {
                    position = None;
                    status
                }
                End::Unlimited => return,
            };
            if position.is_none() {
                info!(%status, "what a tenant has stored is counted again");
            }
            self.limits.stored_not_counted(status.message().to_owned());
            let noted = self.counting.noted.notified();
            self.counting.wants_caller.store(self.as_caller, Ordering::Relaxed);
            // Other credentials are tried at once.
            let _ = tokio::time::timeout(backoff.pause(), noted).await;
        }
    }

    /// Of a member that knows no leader the watch would never come to what the others have: it ends, and another one is asked.
    fn metadata(&self) -> HeaderMap {
        let caller = if self.as_caller { self.counting.caller.lock().clone() } else { Identity::default() };
        caller.with_require_leader(true).metadata()
    }

    /// Applies the events above `position`, which goes along.
    async fn follow(&self, position: &mut Position, backoff: &mut Backoff) -> End {
        let (mut watch, carried) = match self.channel.open_watch(&self.metadata()).await {
            Ok(opened) => opened,
            Err(status) => return End::Interrupted(status),
        };
        let (key, range_end) = self.namespace.range().to_wire();
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision: position.revision + 1,
            prev_kv: true,
            fragment: true,
            ..WatchCreateRequest::default()
        };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        if watch.requests.send(create).await.is_err() {
            return End::Interrupted(Status::unavailable("the watch stream is closed"));
        }
        // A watch that goes on begins with all of a revision.
        position.part = Stored::default();
        let mut awaited = self.limits.stored_awaited();
        let mut progress = ProgressRequests::new(PROGRESS_FIRST, PROGRESS_MAX);
        progress.awaited(Revision(position.seen), target(&mut awaited), Instant::now());
        loop {
            tokio::select! {
                answer = watch.answers.next() => {
                    let answer = match answer {
                        Some(Ok(answer)) => answer,
                        Some(Err(status)) => return self.interrupted(&carried, status),
                        None => return End::Interrupted(Status::unavailable("the member ended the watch stream")),
                    };
                    let answered = answer.watch_id == PROGRESS_WATCH_ID;
                    match self.receive(position, &answer) {
                        Ok(()) => {}
                        Err(End::Interrupted(status)) => return self.interrupted(&carried, status),
                        Err(end) => return end,
                    }
                    backoff.reset();
                    progress.reached(answered, Revision(position.seen), target(&mut awaited), Instant::now());
                }
                // The sender lives as long as the limits.
                Ok(()) = awaited.changed() => {
                    progress.awaited(Revision(position.seen), target(&mut awaited), Instant::now());
                }
                () = self.limits.stored_has_gone_back() => {
                    return End::Gap(Status::out_of_range("the cluster is behind what was counted"));
                }
                () = progress.is_due() => progress.again(Revision(position.seen), target(&mut awaited)),
            }
            if progress.take(Instant::now()) {
                // A stream that takes no more requests sends no answers either, and is cut for that.
                let _ = watch.requests.try_send(progress_request());
            }
        }
    }

    /// Takes one answer of the watch.
    fn receive(&self, position: &mut Position, answer: &WatchResponse) -> Result<(), End> {
        if answer.compact_revision != 0 {
            return Err(End::Gap(Status::out_of_range("the events since the last count are compacted")));
        }
        if answer.canceled {
            return Err(End::Interrupted(Status::unavailable(answer.cancel_reason.clone())));
        }
        if !self.limits.counts_stored() {
            return Err(End::Unlimited);
        }
        let header = answer.header.unwrap_or_default();
        // A proxy of another make names none in some answers.
        if header.cluster_id != 0 && header.cluster_id != position.cluster {
            return Err(End::Gap(Status::out_of_range("the endpoints are those of another cluster")));
        }
        for event in &answer.events {
            match added(&self.namespace, event) {
                Some(more) => position.part += more,
                None => return Err(End::Gap(Status::out_of_range("an event without what was there before"))),
            }
        }
        match answer.events.last().and_then(|event| event.kv.as_ref()) {
            Some(_) if answer.fragment => {}
            Some(last) => {
                position.revision = last.mod_revision;
                position.seen = position.seen.max(last.mod_revision);
                self.limits.add_stored(std::mem::take(&mut position.part), last.mod_revision);
            }
            None if answer.watch_id == PROGRESS_WATCH_ID => {
                position.seen = position.seen.max(header.revision);
                self.limits.see_stored(header.revision);
            }
            None => {}
        }
        Ok(())
    }

    fn interrupted(&self, carried: &Carried, status: Status) -> End {
        self.channel.refused(carried, status.message());
        End::Interrupted(status)
    }

    /// Counts all that is stored.
    async fn all(&self) -> Result<Position, Status> {
        let (mut key, range_end) = self.namespace.range().to_wire();
        let (mut stored, mut limit) = (Stored::default(), FIRST_PAGE);
        let mut at: Option<ResponseHeader> = None;
        loop {
            let revision = at.map_or(0, |header| header.revision);
            let page = RangeRequest { key, range_end: range_end.clone(), limit, revision, ..RangeRequest::default() };
            let head = Head::grpc(RANGE, self.metadata());
            let answer = self.channel.exchange(Method::of(RANGE), &head, framed(&page)).await;
            let answer: RangeResponse = unframed(answer).await?;
            let header = answer.header.ok_or_else(|| Status::internal("answer without a header"))?;
            let ResponseHeader { cluster_id: cluster, revision, .. } = *at.get_or_insert(header);
            answer.kvs.iter().for_each(|kv| stored += of_pair(&self.namespace, kv));
            let Some(last) = answer.kvs.last().filter(|_| answer.more) else {
                self.limits.set_stored(stored, revision);
                return Ok(Position { cluster, revision, seen: revision, part: Stored::default() });
            };
            key = Bytes::from([&last.key[..], &[0]].concat());
            limit = (PAGE_BYTES * stored.keys / stored.bytes.max(1)).clamp(1, PAGE_MAX);
        }
    }
}

/// The revision that requests wait for.
fn target(awaited: &mut watch::Receiver<i64>) -> Revision {
    Revision(*awaited.borrow_and_update())
}

/// What an event adds; none when it does not say what was there before.
fn added(namespace: &Namespace, event: &Event) -> Option<Stored> {
    let now = event.kv.as_ref()?;
    let is_put = event.r#type == i32::from(EventType::Put);
    let mut added = if is_put { of_pair(namespace, now) } else { Stored::default() };
    match &event.prev_kv {
        Some(before) => added -= of_pair(namespace, before),
        None if is_put && now.version == 1 => {}
        None => return None,
    }
    Some(added)
}

/// A pair as its tenant sees it.
fn of_pair(namespace: &Namespace, kv: &KeyValue) -> Stored {
    let key = kv.key.len().saturating_sub(namespace.prefix().len());
    Stored { keys: 1, bytes: i64::try_from(key + kv.value.len()).unwrap_or(i64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Pool, PoolConfig};
    use crate::shutdown::Tasks;

    fn pair(key: &'static str, value: &'static str, version: i64) -> KeyValue {
        KeyValue { key: key.into(), value: value.into(), version, ..KeyValue::default() }
    }

    #[test]
    fn an_event_adds_what_is_there_after_it() {
        let namespace = Namespace::new("t/");
        let event = |r#type: EventType, kv, prev_kv| Event { r#type: r#type.into(), kv: Some(kv), prev_kv };
        let of = |keys, bytes| Some(Stored { keys, bytes });
        for (event, expected) in [
            (event(EventType::Put, pair("t/ab", "123", 1), None), of(1, 5)),
            (event(EventType::Put, pair("t/ab", "1", 2), Some(pair("t/ab", "123", 1))), of(0, -2)),
            (event(EventType::Delete, pair("t/ab", "", 0), Some(pair("t/ab", "1", 2))), of(-1, -3)),
            (event(EventType::Put, pair("t/ab", "1", 2), None), None),
            (event(EventType::Delete, pair("t/ab", "", 0), None), None),
        ] {
            assert_eq!(added(&namespace, &event), expected, "{event:?}");
        }
    }

    /// Cause: a watch of a member that was cut off from the others stayed open, and puts of a tenant near its limit were refused for
    /// as long as that lasted.
    #[tokio::test]
    async fn a_member_that_knows_no_leader_is_not_counted_at() {
        let pool = Pool::new(PoolConfig::new(Vec::new()), &Tasks::new());
        for as_caller in [false, true] {
            let count = StoredCount {
                channel: Channel::new(pool.clone()),
                as_caller,
                namespace: Namespace::new("t/"),
                limits: Arc::default(),
                counting: Arc::default(),
            };
            assert_eq!(count.metadata().get("hasleader").map(|value| value.as_bytes()), Some(&b"true"[..]));
        }
    }
}
