use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use tokio::sync::{Semaphore, watch};
use tonic::Status;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::codegen::StdError;
use tower::Service;

use super::cache::RangeCache;
use super::http::{Pages, StatusReport};
use super::identity::{Caller, ReadPermissions};
use super::lease::{KeepAliveBroadcasts, admit, keep_alive};
use super::members::SelfMember;
use super::message_limits::{ClientBody, MessageLimits};
use super::namespace::{ResponseMemory, View, no_decompressor};
use super::revision_tracking::track_revisions;
use super::tenant::{Tenant, Tenants};
use super::watch::ProxyWatchService;
use crate::api_error::ApiError;
use crate::client::{Head, Pool, Seen};
use crate::json::{self, Asked, AskedBody, CallBody, is_json_path, is_web_socket, web_socket};
use crate::listener::{Arriving, ConnectionInfo, refused_head};
use crate::pages::{BrowserRules, HealthService, Profiles};
use crate::pb::encoded::watch_server::WatchServer;
use crate::pb::healthpb::health_server::HealthServer;
use crate::pb::methods::{self, METHODS, Method, MethodKind};
use crate::shutdown::Tasks;
use crate::telemetry::{GrpcCalls, GrpcMethod, Metrics, RequestBody};

const GRPC: &str = "application/grpc";
/// Calls of methods that this version does not know, each a stream of its own upstream, until a member has begun to
/// answer; more are refused.
const UNKNOWN_CALLS_MAX: usize = 1024;
/// The member has the last word on the size of a message; this is what its size may be at most.
const JSON_LIMITS: json::Limits = json::Limits { message_bytes_max: 64 * 1024 * 1024 };
const COMPACT: &str = "/etcdserverpb.KV/Compact";

/// What one serving thread of the proxy needs.
#[derive(Clone)]
pub struct WorkerParts {
    /// Way to the cluster, of this thread alone.
    pub pool: Pool,
    /// Which client sees which keys.
    pub tenants: Tenants,
    /// The Watch service of each tenant, of this thread alone.
    pub watches: HashMap<Arc<Tenant>, ProxyWatchService>,
    /// The range cache of each tenant that has one, of all threads.
    pub caches: HashMap<Arc<Tenant>, RangeCache>,
    /// The keep-alives of all threads.
    pub leases: KeepAliveBroadcasts,
    /// What callers may read, where it is asked.
    pub permissions: Option<ReadPermissions>,
    /// Whether `grpc.health.v1` says that nothing is served.
    pub paused: watch::Receiver<bool>,
    /// Of calls of clients.
    pub limits: MessageLimits,
    /// The pool by which that is found out, of all threads; its endpoints are those that people are shown.
    pub health_pool: Pool,
    /// The only listener that shows people the state of the proxy; none for all.
    pub status_listener: Option<usize>,
    /// What MemberList answers; none for the real list.
    pub self_member: Option<SelfMember>,
    /// Memory for answers that are rewritten, of all threads.
    pub response_memory: ResponseMemory,
    /// The registry `/proxy/metrics` shows.
    pub metrics: Metrics,
    /// Whether profiles are served.
    pub profiles: Option<Profiles>,
    /// Counts calls; [`proxy_calls`] makes it.
    pub calls: GrpcCalls,
    /// Where tasks of the thread run.
    pub tasks: Tasks,
}

/// Registers the `grpc_server_*` metrics of a proxy.
pub fn proxy_calls(metrics: &Metrics) -> GrpcCalls {
    let method = |method: &Method| GrpcMethod {
        service: method.service,
        name: method.name,
        kind: method.kind.label(),
        unreadable: None,
    };
    GrpcCalls::register(metrics, false, METHODS.iter().map(method))
}

/// Everything on the proxy's port. Cheap to clone.
#[derive(Clone)]
pub struct ProxyService {
    worker: Arc<Worker>,
}

struct Worker {
    pool: Pool,
    tenants: Tenants,
    /// A view for each tenant that does not see the whole key space.
    views: HashMap<Arc<Tenant>, View>,
    watches: HashMap<Arc<Tenant>, WatchServer<ProxyWatchService>>,
    /// All of them: a compaction concerns every tenant.
    watch_hubs: Vec<ProxyWatchService>,
    caches: HashMap<Arc<Tenant>, RangeCache>,
    permissions: Option<ReadPermissions>,
    health: HealthServer<HealthService>,
    limits: MessageLimits,
    self_member: Option<SelfMember>,
    leases: KeepAliveBroadcasts,
    pages: Pages,
    calls: GrpcCalls,
    unknown_calls: Semaphore,
    tasks: Tasks,
}

impl ProxyService {
    /// The service of one serving thread; made on that thread.
    pub fn new(parts: WorkerParts) -> Self {
        let WorkerParts {
            pool,
            tenants,
            watches,
            caches,
            leases,
            permissions,
            paused,
            limits,
            health_pool,
            status_listener,
            self_member,
            response_memory,
            metrics,
            profiles,
            calls,
            tasks,
        } = parts;
        let watch_hubs = watches.values().cloned().collect();
        let watches = watches.into_iter().map(|(tenant, watch)| (tenant, watch_server(watch))).collect();
        let namespaced = tenants.all().filter(|tenant| !tenant.namespace.is_whole());
        let views = namespaced
            .map(|tenant| {
                (tenant.clone(), View::new(&tenant.namespace, tenant.admin, &pool, response_memory.clone(), &tasks))
            })
            .collect();
        let status = StatusReport::new(health_pool, metrics.clone(), tenants.clone(), caches.clone());
        let pages = Pages::new(pool.clone(), metrics, profiles, status, status_listener);
        let unknown_calls = Semaphore::new(UNKNOWN_CALLS_MAX);
        Self {
            worker: Arc::new(Worker {
                pool,
                tenants,
                views,
                watches,
                watch_hubs,
                caches,
                permissions,
                health: HealthServer::new(HealthService::following(paused)),
                limits,
                self_member,
                leases,
                pages,
                calls,
                unknown_calls,
                tasks,
            }),
        }
    }
}

impl Service<Request<Incoming>> for ProxyService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let worker = self.worker.clone();
        Box::pin(async move { Ok(worker.answer(request).await) })
    }
}

impl Worker {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let is_grpc = request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(GRPC.as_bytes()));
        if !is_grpc {
            // There are no flags for them, as in etcd: every origin and every name is taken.
            let rules = BrowserRules::default();
            return rules.guarded(false, request, |request| Box::pin(self.clone().http(request))).await;
        }
        if let Some(refusal) = refused_head(&request) {
            return refusal;
        }
        self.call(request.map(|body| CallBody::Grpc(Asked::Http(body)))).await
    }

    async fn call_as_json(&self, request: Request<Asked<Incoming>>) -> Response<Body> {
        json::answer(request, JSON_LIMITS, |request| self.call(request)).await
    }

    async fn http(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        if is_json_path(request.uri().path()) {
            if is_web_socket(&request) {
                let worker = self.clone();
                return web_socket(request, &self.tasks, |request| async move { worker.call_as_json(request).await });
            }
            return self.call_as_json(request.map(Asked::Http)).await;
        }
        self.pages.answer(&request.into_parts().0).await.map(Body::new)
    }

    /// A call, whichever way it came.
    async fn call(&self, mut request: Request<AskedBody>) -> Response<Body> {
        let Some(connection) = request.extensions().get::<Arc<ConnectionInfo>>() else {
            return self.counted(request).await;
        };
        let seen: Seen = connection.value();
        request.extensions_mut().insert(seen.clone());
        let wrapped = request.uri().path() == "/etcdserverpb.KV/RangeStream";
        let named = Caller::with_certificate(&request);
        let answer = track_revisions(self.counted(request).await, wrapped, seen);
        match named {
            Some(caller) => caller.told_in(answer),
            None => answer,
        }
    }

    async fn counted(&self, request: Request<AskedBody>) -> Response<Body> {
        let Ok(number) = METHODS.binary_search_by(|method| method.path.cmp(request.uri().path())) else {
            // An unknown method is passed on too, without metrics.
            return self.limited(request.map(RequestBody::uncounted)).await;
        };
        let call = self.calls.start(number, request.headers());
        let response = self.limited(request.map(|body| call.request(body))).await;
        call.response(response).map(Body::new)
    }

    async fn limited(&self, request: Request<RequestBody<AskedBody>>) -> Response<Body> {
        let answer = self.grpc(request.map(|body| self.limits.request(body))).await;
        self.limits.answer(answer)
    }

    async fn grpc(&self, request: Request<ClientBody>) -> Response<Body> {
        let tenant = self.tenants.of(request.headers());
        let view = self.views.get(tenant);
        if request.uri().path() == COMPACT && (view.is_none() || tenant.admin) {
            join_all(self.watch_hubs.iter().map(ProxyWatchService::before_compaction)).await;
        }
        match request.uri().path() {
            "/grpc.health.v1.Health/Check" | "/grpc.health.v1.Health/List" | "/grpc.health.v1.Health/Watch" => {
                answered(self.health.clone().call(request).await)
            }
            "/etcdserverpb.Cluster/MemberList" => match &self.self_member {
                Some(member) => member.answer(),
                None => self.within(view, request).await,
            },
            "/etcdserverpb.KV/Range" => match self.caches.get(tenant) {
                Some(cache) => match cache.answer(request).await {
                    Ok(answer) => answer,
                    Err(request) => self.within(view, request).await,
                },
                None => self.within(view, request).await,
            },
            "/etcdserverpb.Watch/Watch" => match self.watches.get(self.tenants.of(request.headers())) {
                Some(watch) => answered(watch.clone().call(request).await),
                None => Status::internal("no watch hub for this client").into_http(),
            },
            "/etcdserverpb.Lease/LeaseKeepAlive" => {
                match admit(&self.leases, request.headers()) {
                    Some(admission) => keep_alive(admission, view.map(View::ownership), request),
                    // Too many broadcasts, or an encoding to refuse: only a tenant that sees all leases may go to a member directly.
                    None if view.is_none() => self.within(None, request).await,
                    None => refuse_stream(request.headers()).into_http(),
                }
            }
            path if changes_permissions(path) => {
                let answer = self.within(view, request).await;
                // Before the client is told: what it reads from then on is permitted anew.
                if let Some(permissions) = &self.permissions {
                    permissions.forget();
                }
                answer
            }
            _ => self.within(view, request).await,
        }
    }

    async fn within<B>(&self, view: Option<&View>, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + Unpin + 'static,
    {
        // Boxed: a call that is answered here would be as large as one that is passed on.
        match view {
            Some(view) => Box::pin(view.answer(request)).await,
            None => Box::pin(self.pass(request)).await,
        }
    }

    /// Passes the bytes of request and answer on. So do those of an unknown method: the member decides.
    async fn pass<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + Unpin + 'static,
    {
        let (parts, body) = request.into_parts();
        let connection = parts.extensions.get::<Arc<ConnectionInfo>>().cloned();
        let method = methods::find(parts.uri.path());
        let head = Head::from_request(parts);
        match method {
            // Collected before it is sent, so that it can be sent again.
            Ok(method) if method.kind == MethodKind::Unary => {
                let (body, _until_answered) = Arriving::collected(body, connection);
                self.pool.request(&head, body).await
            }
            Ok(_) => self.pool.request(&head, body).await,
            Err(_) => match self.unknown_calls.try_acquire() {
                Ok(_until_answered) => self.pool.request(&head, body).await,
                Err(_) => Status::resource_exhausted(ApiError::TooManyRequests.text()).into_http(),
            },
        }
    }
}

/// Whether a call may change who may read what.
fn changes_permissions(path: &str) -> bool {
    const READ_ONLY: [&str; 6] = ["Authenticate", "AuthStatus", "UserGet", "UserList", "RoleGet", "RoleList"];
    path.strip_prefix("/etcdserverpb.Auth/").is_some_and(|name| !READ_ONLY.contains(&name))
}

/// Why a keep-alive stream of a namespace cannot join a keep-alive broadcast.
fn refuse_stream(headers: &HeaderMap) -> Status {
    match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
        None | Some(b"identity" | b"gzip") => Status::resource_exhausted("too many identities keep leases alive"),
        Some(encoding) => no_decompressor(encoding),
    }
}

fn watch_server(service: ProxyWatchService) -> WatchServer<ProxyWatchService> {
    WatchServer::new(service).accept_compressed(CompressionEncoding::Gzip).max_encoding_message_size(i32::MAX as usize)
}

fn answered(outcome: Result<Response<Body>, Infallible>) -> Response<Body> {
    match outcome {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_change_permissions() {
        let changing = METHODS.iter().filter(|method| changes_permissions(method.path)).map(|method| method.name);
        let expected = [
            "AuthDisable",
            "AuthEnable",
            "RoleAdd",
            "RoleDelete",
            "RoleGrantPermission",
            "RoleRevokePermission",
            "UserAdd",
            "UserChangePassword",
            "UserDelete",
            "UserGrantRole",
            "UserRevokeRole",
        ];
        assert_eq!(changing.collect::<Vec<_>>(), expected);
    }

    /// The size of what a function returns.
    fn returned<A, B, R>(_: impl FnOnce(A, B) -> R) -> usize {
        size_of::<R>()
    }

    /// Cause to look for: each call allocated, moved and held room for the state of calls that are passed on or come as JSON, and
    /// a tenth of the CPU time of a cached range went into moving it.
    #[test]
    fn the_state_of_rare_calls_is_not_part_of_every_call() {
        let bytes = returned(Worker::answer);
        assert!(bytes < 10 * 1024, "{bytes}");
    }
}
