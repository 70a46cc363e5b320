use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use futures::{FutureExt, Stream};
use tonic::{Code, Status};

use super::hub::ShardHandle;
use super::outbox::Taken;
use super::routes::Filters;
use super::shard::Create;
use super::source::Source;
use crate::pb::encoded::WatchResponse;
use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchRequest};
use crate::types::{KeyRange, Revision};

/// Requests read before a response is sent.
const REQUESTS_PER_POLL: usize = 32;
/// Unsent answers to requests at which a stream reads no further request: its client does not read either.
const CONTROLS_MAX: u32 = 64;
/// Progress requests of one stream that wait for the owner of its sources; more are as good as none.
const PROGRESS_WAITING_MAX: u32 = 64;

/// Decides what a stream's watchers may read and where. One per stream: it knows who the client is.
pub trait Desk: Send {
    /// Admits a watch of `range` from `start` (0: from now).
    fn admit(&mut self, range: &KeyRange, start: Revision) -> Ruling;

    /// The newest revision known, for the header of a refusal.
    fn revision(&self) -> Revision;

    /// The status of a stream whose client went away.
    fn canceled(&self) -> Status;
}

/// An admission that is being asked for.
pub type Decision = BoxFuture<'static, Result<Admission, Refusal>>;

/// Answer of [`Desk::admit`].
pub enum Ruling {
    /// Decided.
    Now(Result<Admission, Refusal>),
    /// To be asked for; the stream reads no further request meanwhile, so that answers keep the order of requests.
    Later(Decision),
}

/// Where an admitted watcher reads.
#[derive(Debug)]
pub struct Admission {
    /// Covers the range asked for.
    pub source: Arc<Source>,
    /// A revision the cluster has reached; a watch from now starts behind it. 0 when the log's head will do.
    pub after: Revision,
    /// The compacted revision if the start is known to be below it: the watch is created and cancelled at once. Else 0;
    /// what the log itself knows of compactions counts besides.
    pub compacted: Revision,
}

/// Why a watch is not admitted.
#[derive(Debug)]
pub enum Refusal {
    /// The create request is answered with a cancellation; the stream goes on.
    Watch {
        /// For the header.
        revision: Revision,
        /// For the client.
        reason: String,
    },
    /// The whole stream ends.
    Stream(Status),
}

/// One watch stream: requests in, responses out. Polling it does both.
pub struct WatchStream<I> {
    shard: ShardHandle,
    stream: u32,
    requests: Option<I>,
    desk: Box<dyn Desk>,
    admitting: Option<Box<(Create, Decision)>>,
    refreshing: Option<BoxFuture<'static, bool>>,
    /// Progress requests the refresh in flight answers, and those that came after it began.
    progress_now: u32,
    progress_next: u32,
    /// When the last response was given out, and its events: the next poll tells that it has been sent.
    sending: Option<(Instant, u32)>,
}

impl<I> WatchStream<I>
where
    I: Stream<Item = Result<WatchRequest, Status>> + Unpin,
{
    /// Serves `requests` on a shard. Must be polled on the shard's thread to be fast, on any thread to be right.
    pub fn new(shard: ShardHandle, requests: I, desk: Box<dyn Desk>, require_leader: bool) -> Self {
        let stream = shard.open(require_leader);
        Self {
            shard,
            stream,
            requests: Some(requests),
            desk,
            admitting: None,
            refreshing: None,
            progress_now: 0,
            progress_next: 0,
            sending: None,
        }
    }

    fn read_requests(&mut self, cx: &mut Context<'_>) {
        for _ in 0..REQUESTS_PER_POLL {
            if !self.poll_admission(cx) || self.shard.controls(self.stream) >= CONTROLS_MAX {
                return;
            }
            let Some(requests) = &mut self.requests else { return };
            match Pin::new(requests).poll_next(cx) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(request))) => self.handle(request),
                // The client said all it has to say; its watchers live on until it closes the stream.
                Poll::Ready(None) => self.requests = None,
                Poll::Ready(Some(Err(status))) => {
                    self.requests = None;
                    let gone = matches!(status.code(), Code::Cancelled | Code::Unknown | Code::Unavailable);
                    self.shard.end_stream(self.stream, if gone { self.desk.canceled() } else { status });
                    return;
                }
            }
        }
        // More may be waiting: come back after the response that is about to be sent.
        cx.waker().wake_by_ref();
    }

    fn handle(&mut self, request: WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(request),
            Some(RequestUnion::CancelRequest(request)) => {
                self.shard.cancel(self.stream, request.watch_id, self.desk.revision());
            }
            Some(RequestUnion::ProgressRequest(_)) => self.progress(),
            None => {}
        }
    }

    fn create(&mut self, request: WatchCreateRequest) {
        if request.start_revision < 0 {
            let reason = "etcdserver: mvcc: required revision has been compacted";
            return self.shard.refuse(self.stream, self.desk.revision(), reason);
        }
        let create = checked(request);
        match self.desk.admit(&create.range, create.start) {
            Ruling::Now(decision) => self.finish_create(&create, decision),
            Ruling::Later(decision) => self.admitting = Some(Box::new((create, decision))),
        }
    }

    fn finish_create(&mut self, create: &Create, decision: Result<Admission, Refusal>) {
        match decision {
            Ok(admission) => self.shard.create(self.stream, create, &admission),
            Err(Refusal::Watch { revision, reason }) => self.shard.refuse(self.stream, revision, &reason),
            Err(Refusal::Stream(status)) => {
                self.requests = None;
                self.shard.end_stream(self.stream, status);
            }
        }
    }

    /// Whether no create request waits for its admission.
    fn poll_admission(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(waiting) = &mut self.admitting else { return true };
        let Poll::Ready(decision) = waiting.1.as_mut().poll(cx) else { return false };
        if let Some(waiting) = self.admitting.take() {
            self.finish_create(&waiting.0, decision);
        }
        true
    }

    fn progress(&mut self) {
        if self.progress_next < PROGRESS_WAITING_MAX {
            self.progress_next += 1;
        }
        if self.refreshing.is_none() {
            self.start_refresh();
        }
    }

    /// Begins to answer the progress requests that have come so far.
    fn start_refresh(&mut self) {
        self.progress_now = std::mem::take(&mut self.progress_next);
        if self.progress_now == 0 {
            return;
        }
        let sources = self.shard.sources_of(self.stream);
        let refreshes: Vec<_> = sources.iter().filter_map(|source| source.history().refresh()).collect();
        if refreshes.is_empty() {
            return self.answer_progress(true);
        }
        let all = join_all(refreshes);
        self.refreshing = Some(async move { all.await.into_iter().all(|fresh| fresh) }.boxed());
    }

    fn answer_progress(&mut self, fresh: bool) {
        for _ in 0..std::mem::take(&mut self.progress_now) {
            if fresh {
                self.shard.progress(self.stream);
            }
        }
    }

    fn poll_refresh(&mut self, cx: &mut Context<'_>) {
        while let Some(refresh) = &mut self.refreshing {
            let Poll::Ready(fresh) = refresh.as_mut().poll(cx) else { return };
            self.refreshing = None;
            self.answer_progress(fresh);
            self.start_refresh();
        }
    }
}

impl<I> Stream for WatchStream<I>
where
    I: Stream<Item = Result<WatchRequest, Status>> + Unpin,
{
    type Item = Result<WatchResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some((since, events)) = this.sending.take() {
            this.shard.sent(since.elapsed(), events);
        }
        this.poll_refresh(cx);
        this.read_requests(cx);
        if this.refreshing.is_some() {
            // A request just read may have begun one; it must know whom to wake.
            this.poll_refresh(cx);
        }
        match this.shard.pop(this.stream, cx.waker()) {
            Taken::Response { response, events } => {
                this.sending = Some((Instant::now(), events));
                Poll::Ready(Some(Ok(*response)))
            }
            Taken::Closed(status) => Poll::Ready(Some(Err(status))),
            Taken::Empty => Poll::Pending,
        }
    }
}

impl<I> Drop for WatchStream<I> {
    fn drop(&mut self) {
        self.shard.close(self.stream);
    }
}

/// Reads the wire form of a create request.
fn checked(request: WatchCreateRequest) -> Create {
    let key = if request.key.is_empty() { Bytes::from_static(b"\0") } else { request.key };
    Create {
        range: KeyRange::from_wire(key, request.range_end),
        watch_id: request.watch_id,
        start: Revision(request.start_revision),
        prev_kv: request.prev_kv,
        filters: Filters {
            no_put: request.filters.contains(&(FilterType::Noput as i32)),
            no_delete: request.filters.contains(&(FilterType::Nodelete as i32)),
        },
        progress_notify: request.progress_notify,
        fragment: request.fragment,
    }
}
