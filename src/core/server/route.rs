use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, Version, header::CONTENT_TYPE};
use http_body::{Body as HttpBody, Frame};
use hyper::body::Incoming;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Status};
use tower::Service;

use super::auth::AuthService;
use super::authenticator::Authenticator;
use super::cluster::ClusterService;
use super::http::{HttpHandler, is_over_tls};
use super::kv::KvService;
use super::lease::LeaseService;
use super::long_answer::{self, ANSWER_BYTES_MAX};
use super::maintenance::MaintenanceService;
use super::metrics::CoreMetrics;
use super::published::Published;
use super::recipe_store::CoreRecipeStore;
use super::watch::WatchService;
use crate::api_error::ApiError;
use crate::core::raft::RaftHandle;
use crate::json::{self, Asked, AskedBody, CallBody, is_json_path, is_web_socket, web_socket};
use crate::listener::{Arriving, ConnectionInfo, refused_head};
use crate::pages::{HealthService, not_found, text};
use crate::pb::encoded::{kv_server::KvServer, watch_server::WatchServer};
use crate::pb::etcdserverpb::{
    auth_server::AuthServer, cluster_server::ClusterServer, lease_server::LeaseServer,
    maintenance_server::MaintenanceServer,
};
use crate::pb::healthpb::health_server::HealthServer;
use crate::pb::methods::{self, Method, MethodKind};
use crate::pb::v3electionpb::election_server::ElectionServer;
use crate::pb::v3lockpb::lock_server::LockServer;
use crate::recipes::{ElectionService, LockService};
use crate::shutdown::Tasks;

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

// A name that is text would be parsed for each call.
static CLIENT_API_VERSION: HeaderName = HeaderName::from_static("client-api-version");
static HAS_LEADER: HeaderName = HeaderName::from_static("hasleader");

/// etcd's words.
const CERTIFICATE_THROUGH_GATEWAY: &str =
    "CommonName of client sending a request against gateway will be ignored and not used as expected\n";
/// What a learner serves; of ranges only the serializable ones.
const LEARNER_METHODS: [(&str, &str); 3] =
    [("etcdserverpb.KV", "Range"), ("etcdserverpb.Maintenance", "Status"), ("etcdserverpb.Maintenance", "Snapshot")];

/// The services of one serving thread: no reference count of theirs is shared by two.
pub(super) struct Services {
    pub(super) kv: Arc<KvService>,
    pub(super) watch: WatchService,
    pub(super) lease: LeaseService,
    pub(super) cluster: Arc<ClusterService>,
    pub(super) maintenance: Arc<MaintenanceService>,
    pub(super) auth: Arc<AuthService>,
}

/// What is spoken on a listener for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Everything.
    Any,
    /// gRPC only: there are listeners for the rest.
    Grpc,
    /// Everything but gRPC.
    Http,
}

impl Traffic {
    /// etcd's name for it in logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Any => "grpc+http",
            Self::Grpc => "grpc",
            Self::Http => "http",
        }
    }
}

/// What the router looks at before any service.
pub(super) struct RouterParts {
    pub(super) published: Arc<Published>,
    pub(super) raft: RaftHandle,
    pub(super) metrics: Arc<CoreMetrics>,
    pub(super) max_message_bytes: usize,
    pub(super) authenticator: Arc<Authenticator>,
    /// Whether calls may come as JSON.
    pub(super) json: bool,
    /// Whether the gRPC health service says that nothing is served.
    pub(super) paused: watch::Receiver<bool>,
    /// By the number of the listener; past the end it is [`Traffic::Any`].
    pub(super) traffic: Arc<[Traffic]>,
}

/// What clients can reach on one serving thread: gRPC services by path, HTTP for the rest. Cheap to clone.
#[derive(Clone)]
pub struct Router(Arc<Servers>);

struct Servers {
    published: Arc<Published>,
    raft: RaftHandle,
    metrics: Arc<CoreMetrics>,
    max_message_bytes: usize,
    authenticator: Arc<Authenticator>,
    json: bool,
    traffic: Arc<[Traffic]>,
    leaderless: watch::Receiver<bool>,
    http: HttpHandler,
    tasks: Tasks,
    kv: KvServer<KvService>,
    watch: WatchServer<WatchService>,
    lease: LeaseServer<LeaseService>,
    cluster: ClusterServer<ClusterService>,
    maintenance: MaintenanceServer<MaintenanceService>,
    auth: AuthServer<AuthService>,
    lock: LockServer<LockService<CoreRecipeStore>>,
    election: ElectionServer<ElectionService<CoreRecipeStore>>,
    health: HealthServer<HealthService>,
}

impl Router {
    /// Connects `services` to the paths of their methods.
    pub(super) fn new(services: Services, member: RouterParts, http: HttpHandler, tasks: Tasks) -> Self {
        let RouterParts { published, raft, metrics, max_message_bytes, authenticator, json, traffic, paused } = member;
        macro_rules! server {
            ($server:ident, $service:expr) => {
                $server::from_arc($service)
                    .max_decoding_message_size(max_message_bytes)
                    .max_encoding_message_size(ANSWER_BYTES_MAX)
                    .accept_compressed(CompressionEncoding::Gzip)
            };
        }
        let Services { kv, watch, lease, cluster, maintenance, auth } = services;
        let leaderless = watch.leaderless();
        let recipes = CoreRecipeStore::new(kv.clone(), lease.clone(), watch.clone());
        Self(Arc::new(Servers {
            kv: server!(KvServer, kv),
            watch: server!(WatchServer, Arc::new(watch)),
            lease: server!(LeaseServer, Arc::new(lease)),
            cluster: server!(ClusterServer, cluster),
            maintenance: server!(MaintenanceServer, maintenance),
            auth: server!(AuthServer, auth),
            lock: server!(LockServer, Arc::new(LockService::new(recipes.clone(), tasks.clone()))),
            election: server!(ElectionServer, Arc::new(ElectionService::new(recipes, tasks.clone()))),
            health: server!(HealthServer, Arc::new(HealthService::following(paused))),
            published,
            raft,
            metrics,
            max_message_bytes,
            authenticator,
            json,
            traffic,
            leaderless,
            http,
            tasks,
        }))
    }
}

impl Servers {
    fn grpc(&self, request: Request<AskedBody>) -> Answer {
        let method = match methods::find(request.uri().path()) {
            Ok(method) => method,
            Err(text) => return ready(Status::unimplemented(text)),
        };
        let observed = self.metrics.start(method, request.headers());
        if let Err(status) = self.admit(method, request.headers()) {
            observed.finish(status.code() as i32);
            return ready(status);
        }
        let leaderless = ends_without_leader(method, request.headers()).then(|| self.leaderless.clone());
        let limit = self.max_message_bytes;
        let connection = request.extensions().get::<Arc<ConnectionInfo>>().cloned();
        let request = request.map(|body| Arriving::messages(observed.request(body), connection, limit));
        let answer: Answer = match method.service {
            "etcdserverpb.KV" => self.kv.clone().call(request),
            "etcdserverpb.Watch" => self.watch.clone().call(request),
            "etcdserverpb.Lease" => self.lease.clone().call(request),
            "etcdserverpb.Cluster" => self.cluster.clone().call(request),
            "etcdserverpb.Maintenance" => self.maintenance.clone().call(request),
            "etcdserverpb.Auth" => self.auth.clone().call(request),
            "v3lockpb.Lock" => self.lock.clone().call(request),
            "v3electionpb.Election" => self.election.clone().call(request),
            "grpc.health.v1.Health" => self.health.clone().call(request),
            other => return ready(Status::unimplemented(format!("unknown service {other}"))),
        };
        let slow = self.metrics.slow_call_limit();
        Box::pin(async move {
            let response = reword(long_answer::detach(answer.await?), limit);
            let response = match leaderless {
                Some(leaderless) => response.map(|body| Body::new(LeaderBody::new(body, leaderless))),
                None => response,
            };
            CoreMetrics::warn_if_slow_call(slow, &observed, method);
            Ok(observed.response(response).map(Body::new))
        })
    }

    fn traffic<B>(&self, request: &Request<B>) -> Traffic {
        let connection = request.extensions().get::<Arc<ConnectionInfo>>();
        connection.and_then(|connection| self.traffic.get(connection.listener)).copied().unwrap_or(Traffic::Any)
    }

    /// A call as JSON: another form of the same call.
    async fn json(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let connection = request.extensions().get::<Arc<ConnectionInfo>>();
        if connection.is_some_and(|connection| self.authenticator.is_user_by_certificate(connection)) {
            return text(StatusCode::BAD_REQUEST, CERTIFICATE_THROUGH_GATEWAY).map(Body::new);
        }
        if is_web_socket(&request) {
            let servers = self.clone();
            return web_socket(request, &self.tasks, |request| async move { servers.call_as_json(request).await });
        }
        self.call_as_json(request.map(Asked::Http)).await
    }

    async fn call_as_json(&self, request: Request<Asked<Incoming>>) -> Response<Body> {
        let limits = json::Limits { message_bytes_max: self.max_message_bytes };
        let call = |request| self.grpc(request).map(|Ok(response)| response);
        json::answer(request, limits, call).await
    }

    /// What is checked before any method: capability, learner, client version, leader.
    fn admit(&self, method: &Method, headers: &HeaderMap) -> Result<(), Status> {
        let wants_leader = wants_leader(headers);
        // A check that requires a leader tells what the member is good for; any other only that it answers.
        if method.service == "grpc.health.v1.Health" && !wants_leader {
            return Ok(());
        }
        if self.published.cluster().version().is_none() {
            return Err(ApiError::NotCapable.into());
        }
        if self.published.is_learner() && !LEARNER_METHODS.contains(&(method.service, method.name)) {
            return Err(ApiError::NotSupportedForLearner.into());
        }
        let client = match headers.get(&CLIENT_API_VERSION) {
            None => None,
            Some(version) => match std::str::from_utf8(version.as_bytes()) {
                Ok(version) => Some(version),
                Err(_) => return Err(ApiError::InvalidClientApiVersion.into()),
            },
        };
        self.metrics.client_request(method.kind, client);
        if gives_data(method) {
            self.published.may_serve()?;
        }
        if wants_leader && self.raft.term_with_leader().is_none() {
            return Err(ApiError::NoLeader.into());
        }
        Ok(())
    }
}

fn wants_leader(headers: &HeaderMap) -> bool {
    headers.get(&HAS_LEADER).is_some_and(|value| value.as_bytes() == b"true")
}

/// Whether the answers are a stream that ends when there is no leader for too long. Those of a watch end themselves.
fn ends_without_leader(method: &Method, headers: &HeaderMap) -> bool {
    let is_stream = matches!(method.kind, MethodKind::ServerStream | MethodKind::BidiStream);
    is_stream && method.service != "etcdserverpb.Watch" && wants_leader(headers)
}

/// The answers of a stream that wants a leader: without one for too long, "no leader" is its end.
struct LeaderBody {
    answers: Body,
    leaderless: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
}

impl LeaderBody {
    fn new(answers: Body, mut leaderless: watch::Receiver<bool>) -> Self {
        let leaderless = Box::pin(async move {
            if leaderless.wait_for(|leaderless| *leaderless).await.is_err() {
                // The member stops.
                std::future::pending().await
            }
        });
        Self { answers, leaderless, ended: false }
    }
}

impl HttpBody for LeaderBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.leaderless.as_mut().poll(cx).is_ready() {
            self.ended = true;
            self.answers = Body::empty();
            let mut trailers = HeaderMap::new();
            let added = Status::from(ApiError::NoLeader).add_header(&mut trailers);
            return Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))));
        }
        let frame = std::task::ready!(Pin::new(&mut self.answers).poll_frame(cx));
        self.ended = match &frame {
            Some(Ok(frame)) => frame.is_trailers(),
            _ => true,
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.answers.is_end_stream()
    }
}

/// Whether answers come from the stored state. Those that an operator needs to examine a damaged member do not.
fn gives_data(method: &Method) -> bool {
    match method.service {
        "etcdserverpb.Maintenance" => method.name == "Snapshot",
        "etcdserverpb.Cluster" | "etcdserverpb.Auth" | "grpc.health.v1.Health" => false,
        _ => true,
    }
}

impl Service<Request<Incoming>> for Router {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Answer {
        let is_grpc = request
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|content| content.as_bytes().starts_with(b"application/grpc"));
        let traffic = self.0.traffic(&request);
        if is_grpc {
            if traffic == Traffic::Http {
                return Box::pin(async move { Ok(not_found().map(Body::new)) });
            }
            if let Some(refusal) = refused_head(&request) {
                return ready_http(refusal);
            }
            return self.0.grpc(request.map(|body| CallBody::Grpc(Asked::Http(body))));
        }
        if traffic == Traffic::Grpc || request.version() == Version::HTTP_2 && !is_over_tls(&request) {
            // Without TLS, HTTP/2 is for gRPC alone.
            return ready_http(not_grpc(request.headers()));
        }
        let http = self.0.http.clone();
        if self.0.json && is_json_path(request.uri().path()) {
            let servers = self.0.clone();
            return Box::pin(async move {
                Ok(http.guarded(request, |request| async move { servers.json(request).await }).await)
            });
        }
        Box::pin(async move { Ok(http.answer(request).await) })
    }
}

fn ready(status: Status) -> Answer {
    ready_http(status.into_http())
}

fn ready_http(response: Response<Body>) -> Answer {
    Box::pin(std::future::ready(Ok(response)))
}

fn not_grpc(headers: &HeaderMap) -> Response<Body> {
    let content = headers.get(CONTENT_TYPE).map_or("", |value| value.to_str().unwrap_or_default());
    let mut response = Status::unknown(format!("invalid gRPC request content-type {content:?}")).into_http();
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

/// Replaces the library's text for a message that is too long by that of etcd.
fn reword(response: Response<Body>, limit: usize) -> Response<Body> {
    let Some(status) = Status::from_header_map(response.headers()) else { return response };
    match too_large(&status, limit) {
        Some(status) => status.into_http(),
        None => response,
    }
}

/// The status etcd answers when `status` is the library's for an oversized message.
pub(super) fn too_large(status: &Status, limit: usize) -> Option<Status> {
    if status.code() != Code::OutOfRange {
        return None;
    }
    let size = status.message().strip_prefix("Error, decoded message length too large: found ")?.split(' ').next()?;
    Some(Status::resource_exhausted(format!("grpc: received message larger than max ({size} vs. {limit})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_member_can_be_looked_at() {
        let given: Vec<_> = methods::METHODS.iter().filter(|method| !gives_data(method)).collect();
        let named = |name| given.iter().any(|method| method.name == name);
        assert!(
            ["Alarm", "Status", "HashKV", "Defragment", "MemberList", "MemberRemove", "Check"].map(named) == [true; 7]
        );
        assert!(["Range", "Put", "LeaseKeepAlive", "Lock", "Campaign", "Snapshot"].map(named) == [false; 6]);
    }

    struct Silent;

    impl HttpBody for Silent {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

    // Cause: only watches ended without a leader; the answers of an election were silent for ever.
    #[tokio::test]
    async fn a_stream_that_wants_a_leader_ends_without_one() {
        let (lost, leaderless) = watch::channel(false);
        let mut body = LeaderBody::new(Body::new(Silent), leaderless);
        let mut next = || body_frame(&mut body).now_or_never();
        assert!(next().is_none(), "it goes on while there is a leader");
        lost.send_replace(true);
        let frame = next().flatten().expect("an end").expect("a frame");
        let status = Status::from_header_map(frame.trailers_ref().expect("trailers")).expect("a status");
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
        assert!(matches!(next(), Some(None)) && body.is_end_stream());
    }

    fn body_frame(body: &mut LeaderBody) -> impl Future<Output = Option<Result<Frame<Bytes>, Status>>> {
        std::future::poll_fn(move |cx| Pin::new(&mut *body).poll_frame(cx))
    }

    #[test]
    fn streams_that_want_a_leader_end_without_one() {
        let mut headers = HeaderMap::new();
        let named = |headers: &HeaderMap| {
            let ending = methods::METHODS.iter().filter(|method| ends_without_leader(method, headers));
            ending.map(|method| method.name).collect::<Vec<_>>()
        };
        assert!(named(&headers).is_empty());
        headers.insert(&HAS_LEADER, http::HeaderValue::from_static("true"));
        let named = named(&headers);
        assert!(["LeaseKeepAlive", "Snapshot", "Observe"].iter().all(|name| named.contains(name)), "{named:?}");
        assert!(!["Range", "Campaign", "Lock"].iter().any(|name| named.contains(name)), "{named:?}");
    }

    #[test]
    fn oversized_messages_are_worded_as_etcd_does() {
        let library = Status::out_of_range(
            "Error, decoded message length too large: found 3000000 bytes, the limit is: 2097152 bytes",
        );
        let status = too_large(&library, 2_097_152).expect("recognised");
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), "grpc: received message larger than max (3000000 vs. 2097152)");
        assert!(too_large(&Status::out_of_range("etcdserver: mvcc: x"), 1).is_none());
    }
}
