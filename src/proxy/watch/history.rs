use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Status;

use super::broadcast::BroadcastHandle;
use super::events::batches;
use super::hub::HubInner;
use super::upstream::UpstreamStream;
use crate::eventlog::{History, HistoryBatch, HistoryError, HistoryRequest, LogBatch};
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest};
use crate::proxy::Identity;
use crate::types::{KeyRange, Revision};

/// Private watches kept between two reads of the same watcher.
const PARKED_MAX: usize = 32;
/// How long one is kept.
const PARKED_FOR: Duration = Duration::from_secs(30);

/// What has left a log, or never was in it: private upstream watches of the ranges that clients asked for.
pub(super) struct UpstreamHistory {
    hub: Arc<HubInner>,
    identity: Identity,
    broadcast: BroadcastHandle,
}

impl UpstreamHistory {
    pub fn new(hub: Arc<HubInner>, identity: Identity, broadcast: BroadcastHandle) -> Self {
        Self { hub, identity, broadcast }
    }
}

impl History for UpstreamHistory {
    fn events(&self, request: HistoryRequest) -> BoxFuture<'static, Result<HistoryBatch, HistoryError>> {
        let (hub, identity) = (self.hub.clone(), self.identity.clone());
        async move { read_history(&hub, &identity, request).await }.boxed()
    }

    fn refresh(&self) -> Option<BoxFuture<'static, bool>> {
        let (broadcast, within) = (self.broadcast.clone(), self.hub.config.periods.refresh_max);
        Some(async move { broadcast.refresh(within).await }.boxed())
    }
}

/// Reads a part of history by a private upstream watch. Dropping the future is safe.
pub(super) async fn read_history(
    hub: &HubInner,
    identity: &Identity,
    request: HistoryRequest,
) -> Result<HistoryBatch, HistoryError> {
    let Ok(_permit) = hub.private_watches.acquire().await else {
        return Err(HistoryError::Refused("etcdserver: server stopped".to_owned()));
    };
    let (identity, range) = (identity.clone(), request.range.clone());
    let key = Key { identity, range, prev_kv: request.prev_kv, next: request.from };
    let mut private = hub.parked.take(&key).unwrap_or_else(|| Private::new(key));
    let batch = private.read(hub, &request).await?;
    if batch.complete_to < request.up_to {
        hub.parked.put(private);
    }
    Ok(batch)
}

/// What a private watch is for, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    identity: Identity,
    range: KeyRange,
    prev_kv: bool,
    /// First revision not handed out.
    next: Revision,
}

/// Private watches between two reads, oldest first.
#[derive(Default)]
pub(super) struct Parked {
    privates: parking_lot::Mutex<VecDeque<Private>>,
}

impl Parked {
    fn take(&self, key: &Key) -> Option<Private> {
        let mut privates = self.privates.lock();
        let at = privates.iter().position(|private| private.key == *key)?;
        privates.remove(at)
    }

    fn put(&self, mut private: Private) {
        private.parked_at = Instant::now();
        let mut privates = self.privates.lock();
        privates.retain(|other| other.parked_at.elapsed() < PARKED_FOR);
        if privates.len() >= PARKED_MAX {
            privates.pop_front();
        }
        privates.push_back(private);
    }
}

/// One private upstream watch.
struct Private {
    key: Key,
    stream: Option<UpstreamStream>,
    /// Received, not handed out.
    waiting: VecDeque<Arc<LogBatch>>,
    /// Everything up to here has been received.
    complete_to: Revision,
    /// When to ask for progress.
    ask_at: Instant,
    parked_at: Instant,
}

/// Why one upstream stream gives no more.
enum Stop {
    Broken(Status),
    Over(HistoryError),
}

impl Private {
    fn new(key: Key) -> Self {
        let (complete_to, now) = (Revision(key.next.0 - 1), Instant::now());
        Self { key, stream: None, waiting: VecDeque::new(), complete_to, ask_at: now, parked_at: now }
    }

    async fn read(&mut self, hub: &HubInner, request: &HistoryRequest) -> Result<HistoryBatch, HistoryError> {
        while !self.is_enough(request) {
            match self.receive(hub).await {
                Ok(()) => {}
                Err(Stop::Over(error)) => return Err(error),
                Err(Stop::Broken(status)) => {
                    tracing::debug!(%status, range = ?self.key.range, "private upstream watch is taken up again");
                    self.stream = None;
                    sleep(hub.config.periods.retry_first).await;
                }
            }
        }
        Ok(self.hand_out(request))
    }

    fn is_enough(&self, request: &HistoryRequest) -> bool {
        let bytes: usize = self.waiting.iter().map(|batch| batch.pair_bytes()).sum();
        self.complete_to >= request.up_to || self.waiting.len() >= request.revisions_max || bytes >= request.bytes_max
    }

    fn hand_out(&mut self, request: &HistoryRequest) -> HistoryBatch {
        let (mut out, mut bytes) = (Vec::new(), 0);
        while let Some(batch) = self.waiting.front() {
            if batch.revision() > request.up_to {
                break;
            }
            if out.len() >= request.revisions_max || bytes >= request.bytes_max {
                let complete_to = Revision(batch.revision().0 - 1);
                self.key.next = batch.revision();
                return HistoryBatch { batches: out, complete_to };
            }
            bytes += batch.pair_bytes();
            out.extend(self.waiting.pop_front());
        }
        let complete_to = self.complete_to.min(request.up_to);
        self.key.next = complete_to.next();
        HistoryBatch { batches: out, complete_to }
    }

    /// Receives one answer that moves the watch on.
    async fn receive(&mut self, hub: &HubInner) -> Result<(), Stop> {
        if self.stream.is_none() {
            self.stream = Some(self.open(hub).await.map_err(Stop::Broken)?);
            self.ask_at = Instant::now();
        }
        let Some(stream) = &mut self.stream else { return Ok(()) };
        loop {
            let answer = tokio::select! {
                answer = stream.answers.next() => answer,
                () = sleep_until(self.ask_at) => {
                    // Waits only while the member takes no requests; then it has other trouble.
                    ask(&stream.requests, RequestUnion::ProgressRequest(WatchProgressRequest {})).await.map_err(Stop::Broken)?;
                    self.ask_at = Instant::now() + hub.config.periods.progress_again;
                    continue;
                }
            };
            let answer = match answer {
                Some(Ok(answer)) => answer,
                Some(Err(status)) => return Err(Stop::Broken(status)),
                None => return Err(Stop::Broken(Status::unavailable("the member ended the watch stream"))),
            };
            if answer.compact_revision != 0 {
                return Err(Stop::Over(HistoryError::Compacted(Revision(answer.compact_revision))));
            }
            if answer.canceled {
                return Err(match answer.cancel_reason.is_empty() {
                    true => Stop::Broken(Status::unavailable("the member cancelled the watch without a reason")),
                    false => Stop::Over(HistoryError::Refused(answer.cancel_reason)),
                });
            }
            if answer.created {
                continue;
            }
            if answer.events.is_empty() {
                let revision = Revision(answer.header.unwrap_or_default().revision);
                self.complete_to = self.complete_to.max(revision);
                return Ok(());
            }
            let last = answer.events.iter().rev().find_map(|event| event.kv.as_ref()).map_or(0, |kv| kv.mod_revision);
            self.waiting.extend(batches(&hub.namespace, answer.events));
            self.complete_to = self.complete_to.max(Revision(last));
            return Ok(());
        }
    }

    async fn open(&mut self, hub: &HubInner) -> Result<UpstreamStream, Status> {
        let stream = hub.upstream.open_watch(self.key.identity.metadata()).await?;
        let (key, range_end) = self.key.range.to_wire();
        let (key, range_end) = hub.namespace.enter_range(&key, &range_end);
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision: self.complete_to.next().0,
            prev_kv: self.key.prev_kv,
            ..Default::default()
        };
        ask(&stream.requests, RequestUnion::CreateRequest(create)).await?;
        Ok(stream)
    }
}

async fn ask(requests: &mpsc::Sender<WatchRequest>, union: RequestUnion) -> Result<(), Status> {
    let request = WatchRequest { request_union: Some(union) };
    requests.send(request).await.map_err(|_| Status::unavailable("the watch stream is closed"))
}
