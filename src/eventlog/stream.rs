use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{BoxFuture, join_all, ready};
use futures::stream::FuturesOrdered;
use futures::{FutureExt, Stream, StreamExt};
use tokio::time::timeout;
use tonic::{Code, Status};

use super::admission::{Admission, Admit, Refusal, WatchAdmission};
use super::handle::WatcherSetHandle;
use super::routes::Filters;
use super::send_queue::Taken;
use super::source::Source;
use super::watcher_set::Create;
use crate::api_error::ApiError;
use crate::pb::encoded::WatchResponse;
use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchRequest};
use crate::types::{KeyRange, Revision};

/// Requests read before a response is sent.
const REQUESTS_PER_POLL: usize = 32;
/// Unsent answers to requests at which a stream reads no further request: its client does not read either.
const CONTROLS_MAX: u32 = 64;
/// Requests of one stream that are being decided, or wait behind one that is.
const WAITING_MAX: usize = 64;
/// Progress requests of one stream that wait for the owner of its sources; more are as good as none.
const PROGRESS_WAITING_MAX: u32 = 64;
/// How often the sources that are behind others of the stream are asked again for one answer, and how long each time.
const CATCH_UPS_MAX: u32 = 8;
const CATCH_UP_MAX: Duration = Duration::from_millis(500);

/// Requests that are decided at the same time and carried out one after the other.
type Waiting = FuturesOrdered<BoxFuture<'static, Step>>;

/// A request, decided.
enum Step {
    Create(Box<Create>, Result<Admission, Refusal>),
    Cancel(i64),
    Progress,
}

/// One watch stream: requests in, responses out. Polling it does both.
pub struct WatchStream<I> {
    watcher_set: WatcherSetHandle,
    stream: u32,
    requests: Option<I>,
    admission: Box<dyn WatchAdmission>,
    /// Requests behind a create that is being admitted, that one included; none when there is nothing.
    waiting: Option<Box<Waiting>>,
    refreshing: Option<BoxFuture<'static, bool>>,
    /// Progress requests the refresh in flight answers, and those that came after it began.
    progress_now: u32,
    progress_next: u32,
    /// How often sources were asked again for that answer.
    catch_ups: u32,
    /// When the last response was handed to the connection, and its events; the next poll means that it has been sent.
    sending: Option<(Instant, u32)>,
}

impl<I> WatchStream<I>
where
    I: Stream<Item = Result<WatchRequest, Status>> + Unpin,
{
    /// Serves `requests` on a watcher set. Must be polled on the watcher set's thread to be fast, on any thread to be right.
    pub fn new(
        watcher_set: WatcherSetHandle,
        requests: I,
        admission: Box<dyn WatchAdmission>,
        require_leader: bool,
    ) -> Self {
        let stream = watcher_set.open(require_leader);
        Self {
            watcher_set,
            stream,
            requests: Some(requests),
            admission,
            waiting: None,
            refreshing: None,
            progress_now: 0,
            progress_next: 0,
            catch_ups: 0,
            sending: None,
        }
    }

    fn read_requests(&mut self, cx: &mut Context<'_>) {
        for _ in 0..REQUESTS_PER_POLL {
            self.carry_out(cx);
            let waiting = self.waiting.as_ref().map_or(0, |waiting| waiting.len());
            if waiting >= WAITING_MAX || self.watcher_set.controls(self.stream) >= CONTROLS_MAX {
                return;
            }
            let Some(requests) = &mut self.requests else { return };
            match Pin::new(requests).poll_next(cx) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(request))) => self.handle(request),
                // The client sends no more requests; its watchers go on until it closes the stream.
                Poll::Ready(None) => self.requests = None,
                Poll::Ready(Some(Err(status))) => {
                    self.requests = None;
                    let gone = matches!(status.code(), Code::Cancelled | Code::Unknown | Code::Unavailable);
                    self.watcher_set.end_stream(self.stream, if gone { self.admission.canceled() } else { status });
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
            Some(RequestUnion::CancelRequest(request)) => self.in_turn(Step::Cancel(request.watch_id)),
            Some(RequestUnion::ProgressRequest(_)) => self.in_turn(Step::Progress),
            None => {}
        }
    }

    fn create(&mut self, request: WatchCreateRequest) {
        let refused = request.start_revision < 0;
        let create = Box::new(checked(request));
        if refused {
            let reason = ApiError::Compacted.text().to_owned();
            let refusal = Refusal::Watch { revision: self.admission.revision(), reason };
            return self.in_turn(Step::Create(create, Err(refusal)));
        }
        match self.admission.admit(&create.range, create.start) {
            Admit::Now(decision) => self.in_turn(Step::Create(create, decision)),
            Admit::Later(decision) => {
                let step = decision.map(|decision| Step::Create(create, decision));
                self.waiting.get_or_insert_default().push_back(step.boxed());
            }
        }
    }

    /// Carries a request out, behind those that wait.
    fn in_turn(&mut self, step: Step) {
        match &mut self.waiting {
            Some(waiting) => waiting.push_back(ready(step).boxed()),
            None => self.step(step),
        }
    }

    /// Carries out what is decided, in the order of the requests.
    fn carry_out(&mut self, cx: &mut Context<'_>) {
        while let Some(waiting) = &mut self.waiting {
            match waiting.poll_next_unpin(cx) {
                Poll::Ready(Some(step)) => self.step(step),
                Poll::Ready(None) => self.waiting = None,
                Poll::Pending => return,
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Create(create, decision) => self.finish_create(&create, decision),
            Step::Cancel(watch_id) => self.watcher_set.cancel(self.stream, watch_id, self.admission.revision()),
            Step::Progress => self.progress(),
        }
    }

    fn finish_create(&mut self, create: &Create, decision: Result<Admission, Refusal>) {
        match decision {
            Ok(admission) => self.watcher_set.create(self.stream, create, &admission),
            Err(Refusal::Watch { revision, reason }) => self.watcher_set.refuse(self.stream, revision, &reason),
            Err(Refusal::Stream(status)) => {
                self.requests = None;
                self.waiting = None;
                self.watcher_set.end_stream(self.stream, status);
            }
        }
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
        let sources = self.watcher_set.sources_of(self.stream);
        match refreshed(&sources) {
            Some(refreshing) => self.refreshing = Some(refreshing),
            None => self.answer_progress(true),
        }
    }

    /// Answers the progress requests of the refresh that has ended; not before sources that are behind others are as far.
    fn answer_progress(&mut self, fresh: bool) {
        if fresh {
            let behind = self.watcher_set.progress(self.stream, self.progress_now);
            if self.catch_ups < CATCH_UPS_MAX
                && let Some(refreshing) = refreshed(&behind)
            {
                self.catch_ups += 1;
                // The stream is held meanwhile.
                let bounded = async move { timeout(CATCH_UP_MAX, refreshing).await.unwrap_or(false) };
                self.refreshing = Some(bounded.boxed());
                return;
            }
        }
        self.watcher_set.release(self.stream);
        (self.progress_now, self.catch_ups) = (0, 0);
    }

    fn poll_refresh(&mut self, cx: &mut Context<'_>) {
        while let Some(refresh) = &mut self.refreshing {
            let Poll::Ready(fresh) = refresh.as_mut().poll(cx) else { return };
            self.refreshing = None;
            self.answer_progress(fresh);
            if self.refreshing.is_none() {
                self.start_refresh();
            }
        }
    }
}

/// Brings sources up to date with the cluster; none where they always are.
fn refreshed(sources: &[Arc<Source>]) -> Option<BoxFuture<'static, bool>> {
    let refreshes: Vec<_> = sources.iter().filter_map(|source| source.history().refresh()).collect();
    if refreshes.is_empty() {
        return None;
    }
    let all = join_all(refreshes);
    Some(async move { all.await.into_iter().all(|fresh| fresh) }.boxed())
}

impl<I> Stream for WatchStream<I>
where
    I: Stream<Item = Result<WatchRequest, Status>> + Unpin,
{
    type Item = Result<WatchResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some((since, events)) = this.sending.take() {
            this.watcher_set.sent(since.elapsed(), events);
        }
        this.poll_refresh(cx);
        this.read_requests(cx);
        if this.refreshing.is_some() {
            // A request just read may have started one, which needs this waker.
            this.poll_refresh(cx);
        }
        match this.watcher_set.pop(this.stream, cx.waker()) {
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
        self.watcher_set.close(self.stream);
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
