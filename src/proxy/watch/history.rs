use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Status;

use super::broadcast_handle::BroadcastHandle;
use super::config::{Periods, WatchHubConfig};
use super::events::batches;
use super::member_versions::MemberVersions;
use super::status::{is_about_token, is_refusal, refusal_of_proxy_user};
use super::upstream::{Upstream, UpstreamStream};
use crate::api_error::{ApiError, cancel_reason};
use crate::eventlog::{History, HistoryBatch, HistoryError, HistoryRequest, LogBatch};
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchProgressRequest};
use crate::proxy::{Identity, Namespace};
use crate::types::{KeyRange, MemberId, Revision};

/// Private upstream watches that read history at the same time; more wait.
const READS_MAX: usize = 32;
/// Private watches kept between two reads of the same watcher; more drop the oldest.
const IDLE_MAX: usize = 32;
/// An idle one is closed after this time, or half of it later at most.
const IDLE_FOR: Duration = Duration::from_secs(30);

/// What has left a log, or never was in it: private upstream watches of the ranges that clients asked for.
pub(super) struct UpstreamHistory {
    watches: Arc<PrivateWatches>,
    identity: Identity,
    broadcast: BroadcastHandle,
}

impl UpstreamHistory {
    pub fn new(watches: Arc<PrivateWatches>, identity: Identity, broadcast: BroadcastHandle) -> Self {
        Self { watches, identity, broadcast }
    }
}

impl History for UpstreamHistory {
    fn events(&self, request: HistoryRequest) -> BoxFuture<'static, Result<HistoryBatch, HistoryError>> {
        let (watches, identity, broadcast) = (self.watches.clone(), self.identity.clone(), self.broadcast.clone());
        async move {
            let read = watches.read(&identity, request).await;
            if let (Err(HistoryError::Compacted(compacted)), Some(source)) = (&read, broadcast.source()) {
                source.log().compact(*compacted);
            }
            read
        }
        .boxed()
    }

    fn refresh(&self) -> Option<BoxFuture<'static, bool>> {
        let (broadcast, within) = (self.broadcast.clone(), self.watches.periods.refresh_max);
        Some(async move { broadcast.refresh(within).await }.boxed())
    }
}

/// The private upstream watches of a hub.
pub(super) struct PrivateWatches {
    upstream: Arc<dyn Upstream>,
    versions: Arc<MemberVersions>,
    namespace: Namespace,
    periods: Periods,
    reads: Semaphore,
    /// Between two reads, oldest first.
    idle: Mutex<VecDeque<PrivateWatch>>,
}

/// What a private watch is for, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Position {
    identity: Identity,
    range: KeyRange,
    prev_kv: bool,
    /// First revision not handed out.
    next: Revision,
}

impl PrivateWatches {
    pub fn new(upstream: Arc<dyn Upstream>, versions: Arc<MemberVersions>, config: &WatchHubConfig) -> Self {
        let (namespace, periods) = (config.namespace.clone(), config.periods);
        Self { upstream, versions, namespace, periods, reads: Semaphore::new(READS_MAX), idle: Mutex::default() }
    }

    /// Reads a part of history. Dropping the future is safe.
    pub async fn read(&self, identity: &Identity, request: HistoryRequest) -> Result<HistoryBatch, HistoryError> {
        let Ok(_permit) = self.reads.acquire().await else {
            return Err(HistoryError::Refused(ApiError::Stopped.text().to_owned()));
        };
        let (identity, range) = (identity.clone(), request.range.clone());
        let position = Position { identity, range, prev_kv: request.prev_kv, next: request.from };
        let mut watch = self.take_idle(&position).unwrap_or_else(|| PrivateWatch::new(position));
        let batch = watch.read(self, &request).await?;
        if batch.complete_to < request.up_to {
            self.keep_idle(watch);
        }
        Ok(batch)
    }

    fn take_idle(&self, position: &Position) -> Option<PrivateWatch> {
        let mut idle = self.idle.lock();
        let at = idle.iter().position(|watch| watch.position == *position)?;
        idle.remove(at)
    }

    fn keep_idle(&self, mut watch: PrivateWatch) {
        watch.idle_since = Instant::now();
        let mut idle = self.idle.lock();
        close_old(&mut idle);
        if idle.len() >= IDLE_MAX {
            idle.pop_front();
        }
        idle.push_back(watch);
    }

    /// Closes those that nobody came back for, for as long as it is polled.
    pub async fn close_idle(&self) {
        loop {
            sleep(IDLE_FOR / 2).await;
            close_old(&mut self.idle.lock());
        }
    }

    /// Closes all that are kept: what they have received need not be in the history that the cluster has now.
    pub fn forget(&self) {
        self.idle.lock().clear();
    }

    /// How many are kept.
    #[cfg(test)]
    pub fn idle(&self) -> usize {
        self.idle.lock().len()
    }
}

fn close_old(idle: &mut VecDeque<PrivateWatch>) {
    idle.retain(|watch| watch.idle_since.elapsed() < IDLE_FOR);
}

/// One private upstream watch.
struct PrivateWatch {
    position: Position,
    stream: Option<UpstreamStream>,
    /// Whether the member answers progress requests in order. One that does not may answer ahead of the events of a watch
    /// that it has not caught up, so it is asked when it has sent none for a while, and events are not held back for that.
    ordered: bool,
    /// Received, not handed out.
    received: VecDeque<Arc<LogBatch>>,
    /// Everything up to here has been received.
    complete_to: Revision,
    /// When to request progress.
    request_at: Instant,
    idle_since: Instant,
}

/// Why one upstream stream gives no more.
enum Stop {
    Broken(Status),
    Over(HistoryError),
}

impl PrivateWatch {
    fn new(position: Position) -> Self {
        let (complete_to, now) = (Revision(position.next.0 - 1), Instant::now());
        let (stream, received) = (None, VecDeque::new());
        Self { position, stream, ordered: false, received, complete_to, request_at: now, idle_since: now }
    }

    async fn read(&mut self, watches: &PrivateWatches, request: &HistoryRequest) -> Result<HistoryBatch, HistoryError> {
        let mut backoff = watches.periods.backoff();
        while !self.is_enough(request) {
            match self.receive(watches).await {
                Ok(()) => backoff.reset(),
                Err(Stop::Over(error)) => return Err(error),
                Err(Stop::Broken(status)) => {
                    tracing::debug!(%status, range = ?self.position.range, "private upstream watch is resumed");
                    self.stream = None;
                    sleep(backoff.pause()).await;
                }
            }
        }
        Ok(self.hand_out(request))
    }

    fn is_enough(&self, request: &HistoryRequest) -> bool {
        let bytes: usize = self.received.iter().map(|batch| batch.pair_bytes()).sum();
        self.complete_to >= request.up_to
            || self.received.len() >= request.revisions_max
            || bytes >= request.bytes_max
            || !self.ordered && !self.received.is_empty()
    }

    fn hand_out(&mut self, request: &HistoryRequest) -> HistoryBatch {
        let (mut out, mut bytes) = (Vec::new(), 0);
        while let Some(batch) = self.received.front() {
            if batch.revision() > request.up_to {
                break;
            }
            if out.len() >= request.revisions_max || bytes >= request.bytes_max {
                let complete_to = Revision(batch.revision().0 - 1);
                self.position.next = batch.revision();
                return HistoryBatch { batches: out, complete_to };
            }
            // As they count in the response of the watcher, which then takes all of them: its next read begins where this watch stands.
            bytes += batch.events().iter().map(|event| event.frame(self.position.prev_kv).len()).sum::<usize>();
            out.extend(self.received.pop_front());
        }
        let complete_to = self.complete_to.min(request.up_to);
        self.position.next = complete_to.next();
        HistoryBatch { batches: out, complete_to }
    }

    /// Receives one answer that moves the watch on.
    async fn receive(&mut self, watches: &PrivateWatches) -> Result<(), Stop> {
        if self.stream.is_none() {
            self.stream = Some(self.open(watches).await.map_err(|status| self.stop_for(status))?);
            // Until the watch is confirmed nothing is known of the member.
            (self.ordered, self.request_at) = (false, Instant::now() + watches.periods.settled);
        }
        loop {
            let Some(stream) = &mut self.stream else { return Ok(()) };
            let answer = tokio::select! {
                answer = stream.next() => answer.map_err(|status| self.stop_for(status))?,
                () = sleep_until(self.request_at) => {
                    // Waits only while the member takes no requests.
                    stream.send(RequestUnion::ProgressRequest(WatchProgressRequest {})).await.map_err(Stop::Broken)?;
                    let pause = if self.ordered { watches.periods.progress_again } else { watches.periods.settled };
                    self.request_at = Instant::now() + pause;
                    continue;
                }
            };
            if answer.compact_revision != 0 {
                return Err(Stop::Over(HistoryError::Compacted(Revision(answer.compact_revision))));
            }
            if answer.canceled {
                return Err(match answer.cancel_reason.is_empty() {
                    true => Stop::Broken(Status::unavailable("the member cancelled the watch without a reason")),
                    false => Stop::Over(self.refusal(answer.cancel_reason)),
                });
            }
            if answer.created {
                let member = MemberId(answer.header.unwrap_or_default().member_id);
                if !watches.versions.is_known(member) {
                    watches.versions.learn(&*watches.upstream, &self.position.identity, member).await;
                }
                self.ordered = watches.versions.has_ordered_progress(member);
                if self.ordered {
                    self.request_at = Instant::now();
                }
                continue;
            }
            if answer.events.is_empty() {
                let revision = Revision(answer.header.unwrap_or_default().revision);
                self.complete_to = self.complete_to.max(revision);
                return Ok(());
            }
            let last = answer.events.iter().rev().find_map(|event| event.kv.as_ref()).map_or(0, |kv| kv.mod_revision);
            self.received.extend(batches(&watches.namespace, answer.events));
            self.complete_to = self.complete_to.max(Revision(last));
            if !self.ordered {
                self.request_at = Instant::now() + watches.periods.settled;
            }
            return Ok(());
        }
    }

    /// What the end of the stream means.
    fn stop_for(&self, status: Status) -> Stop {
        if !is_refusal(&status) {
            return Stop::Broken(status);
        }
        Stop::Over(match self.position.identity.is_proxy() {
            true => HistoryError::Refused(refusal_of_proxy_user(&status)),
            false => self.refusal(cancel_reason(&status)),
        })
    }

    /// The refusal of the cluster as it is to be told. A client whose token alone is refused may have another one by now, which
    /// only its next stream carries.
    fn refusal(&self, reason: String) -> HistoryError {
        match self.position.identity.is_proxy() || !is_about_token(&reason) {
            true => HistoryError::Refused(reason),
            false => HistoryError::NotOnThisStream(format!("the token of the watch stream is not accepted: {reason}")),
        }
    }

    async fn open(&mut self, watches: &PrivateWatches) -> Result<UpstreamStream, Status> {
        let mut stream = watches.upstream.open_watch(&self.position.identity).await?;
        let (key, range_end) = watches.namespace.upstream_range(&self.position.range);
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision: self.complete_to.next().0,
            prev_kv: self.position.prev_kv,
            ..Default::default()
        };
        stream.send(RequestUnion::CreateRequest(create)).await?;
        Ok(stream)
    }
}
