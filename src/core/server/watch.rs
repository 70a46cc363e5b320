//! The Watch service: permission to watch, and the end of streams that require a leader.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use super::authenticator::Authenticator;
use super::caller::Caller;
use super::error::auth_status;
use super::published::Published;
use crate::api_error::{ApiError, cancel_reason};
use crate::core::auth::{Access, Identity};
use crate::core::watch::CoreWatch;
use crate::eventlog::{
    Admission, Admit, HeaderSource, Refusal, WatchAdmission, WatchLimits, WatchStream, WatcherSetHandle,
};
use crate::pb::encoded;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchRequest};
use crate::shutdown::Tasks;
use crate::telemetry::WatchMetrics;
use crate::types::{KeyRange, Revision, Term};

/// Election timeouts without a leader after which streams that require one end.
const LEADERLESS_TIMEOUTS: u32 = 3;

/// Decides whether a caller may read a range.
pub type ReadCheck = Arc<dyn Fn(&Caller, &KeyRange) -> ReadDecision + Send + Sync>;

/// Answer of a [`ReadCheck`].
pub enum ReadDecision {
    /// Known.
    Now(Result<(), Status>),
    /// To be waited for: the caller's token may be of an entry that is not applied here yet.
    Later(BoxFuture<'static, Result<(), Status>>),
}

/// Asks for permission by users and roles.
pub(super) fn read_check(authenticator: Arc<Authenticator>, published: Arc<Published>) -> ReadCheck {
    Arc::new(move |caller, range| match authenticator.identify_now(caller) {
        Some(Ok(None)) => ReadDecision::Now(Ok(())),
        Some(Ok(Some(who))) => ReadDecision::Now(check_read(&published, &who, range)),
        Some(Err(error)) => ReadDecision::Now(Err(error.into())),
        None => {
            let (authenticator, published) = (authenticator.clone(), published.clone());
            let (caller, range) = (caller.clone(), range.clone());
            ReadDecision::Later(Box::pin(async move {
                match authenticator.identify(&caller).await? {
                    Some(who) => check_read(&published, &who, &range),
                    None => Ok(()),
                }
            }))
        }
    })
}

/// The range goes to the check in the form in which the client sent it: open at its end, or one key.
fn check_read(published: &Published, who: &Identity, range: &KeyRange) -> Result<(), Status> {
    let (key, range_end) = range.to_wire();
    published.auth().check(who, Access::Read, &key, &range_end).map_err(auth_status)
}

/// What the Watch services of a member share.
#[derive(Clone)]
pub struct WatchContext {
    /// The member's log.
    pub watch: CoreWatch,
    /// Cluster, member and term for response headers.
    pub header_source: Arc<HeaderSource>,
    /// Bounds and periods.
    pub limits: WatchLimits,
    /// Counters.
    pub metrics: WatchMetrics,
    /// Permission to read.
    pub may_read: ReadCheck,
    /// Whether the state of this member is known to be damaged: all streams end.
    pub corrupt: watch::Receiver<bool>,
    /// Without a leader for three of these, streams that want one end.
    pub election_timeout: Duration,
}

/// The Watch service of one serving thread.
#[derive(Clone)]
pub struct WatchService {
    context: Arc<WatchContext>,
    watchers: WatcherSetHandle,
    /// No leader for so long that streams which want one end.
    leaderless: watch::Sender<bool>,
}

impl WatchService {
    /// Starts the watchers of a serving thread, on its runtime. `worker` is the number of the thread.
    ///
    /// `status` is any record of the leadership; `read` takes from it whether a leader is known, and the term.
    pub fn start<S: Send + Sync + 'static>(
        context: Arc<WatchContext>,
        worker: usize,
        status: watch::Receiver<S>,
        read: fn(&S) -> (bool, Term),
        tasks: &Tasks,
    ) -> Self {
        let handle = WatcherSetHandle::start(
            context.limits.clone(),
            context.header_source.clone(),
            context.metrics.clone(),
            // Only spreads progress notifications: the same start gives the same spread.
            worker as u64,
            ApiError::Stopped.into(),
            tasks,
        );
        let service = Self { context, watchers: handle, leaderless: watch::Sender::new(false) };
        let follower = service.clone();
        let stop = tasks.stop_signal();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = follower.follow_leader(status, read) => {}
                () = follower.follow_alarm() => {}
            }
        });
        service
    }

    /// The answers of a stream with this single watch, for locks and elections inside the member.
    pub(super) fn single(
        &self,
        caller: &Caller,
        create: WatchCreateRequest,
    ) -> impl Stream<Item = Result<encoded::WatchResponse, Status>> + use<> {
        use futures::StreamExt;
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests = futures::stream::iter([Ok(request)]).chain(futures::stream::pending());
        let admission = MemberWatchAdmission { context: self.context.clone(), caller: caller.clone() };
        WatchStream::new(self.watchers.clone(), requests, Box::new(admission), false)
    }

    /// True while there has been no leader for so long that streams which want one end.
    pub(super) fn leaderless(&self) -> watch::Receiver<bool> {
        self.leaderless.subscribe()
    }

    /// Never completes.
    async fn follow_alarm(&self) {
        let mut corrupt = self.context.corrupt.clone();
        while corrupt.wait_for(|corrupt| *corrupt).await.is_ok() {
            self.watchers.end_streams(&ApiError::Corrupt.into(), false);
            if corrupt.wait_for(|corrupt| !corrupt).await.is_err() {
                break;
            }
        }
        std::future::pending().await
    }

    async fn follow_leader<S>(&self, mut status: watch::Receiver<S>, read: fn(&S) -> (bool, Term)) {
        let patience = self.context.election_timeout * LEADERLESS_TIMEOUTS;
        loop {
            let (known, term) = read(&status.borrow_and_update());
            self.context.header_source.set_term(term);
            if known {
                if status.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let known = async |status: &mut watch::Receiver<S>| status.wait_for(|s| read(s).0).await.is_ok();
            let found = match tokio::time::timeout(patience, known(&mut status)).await {
                Ok(found) => found,
                Err(_) => {
                    self.watchers.end_streams(&ApiError::NoLeader.into(), true);
                    self.leaderless.send_replace(true);
                    let found = known(&mut status).await;
                    self.leaderless.send_replace(false);
                    found
                }
            };
            if !found {
                return;
            }
        }
    }
}

#[tonic::async_trait]
impl encoded::watch_server::Watch for WatchService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<encoded::WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let metadata = request.metadata();
        let require_leader = metadata.get("hasleader").is_some_and(|value| value.as_bytes() == b"true");
        let admission = MemberWatchAdmission { context: self.context.clone(), caller: Caller::of(&request) };
        let stream = WatchStream::new(self.watchers.clone(), request.into_inner(), Box::new(admission), require_leader);
        #[cfg(feature = "failpoints")]
        let stream = futures::StreamExt::then(stream, |response| async move {
            if let Some(pause) = send_pause() {
                tokio::time::sleep(pause).await;
            }
            response
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

/// How long a failpoint holds each response back.
#[cfg(feature = "failpoints")]
fn send_pause() -> Option<Duration> {
    fail::fail_point!("beforeSendWatchResponse", |ms| ms?.parse().ok().map(Duration::from_millis));
    None
}

/// Admits watches of one stream: the whole store is one source, only permission is asked.
struct MemberWatchAdmission {
    context: Arc<WatchContext>,
    caller: Caller,
}

impl WatchAdmission for MemberWatchAdmission {
    fn admit(&mut self, range: &KeyRange, _start: Revision) -> Admit {
        match (self.context.may_read)(&self.caller, range) {
            ReadDecision::Now(allowed) => Admit::Now(admission(&self.context, allowed)),
            ReadDecision::Later(allowed) => {
                let context = self.context.clone();
                Admit::Later(Box::pin(async move { admission(&context, allowed.await) }))
            }
        }
    }

    fn revision(&self) -> Revision {
        self.context.watch.revision()
    }

    fn canceled(&self) -> Status {
        ApiError::WatchCanceled.into()
    }
}

fn admission(context: &WatchContext, allowed: Result<(), Status>) -> Result<Admission, Refusal> {
    match allowed {
        Ok(()) => Ok(Admission {
            source: context.watch.source(),
            after: Revision(0),
            compacted: Revision(0),
            permission: None,
            held: None,
        }),
        Err(status) => Err(Refusal::Watch { revision: context.watch.revision(), reason: cancel_reason(&status) }),
    }
}

#[cfg(test)]
mod tests;
