use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Body as HttpBody;
use http_body_util::Full;
use hyper::body::Incoming;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Semaphore, watch};
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::codegen::StdError;
use tonic::{Code, Status};
use tower::Service;

use super::answer::unary;
use super::cache::ReadAhead;
use super::compaction::{after_compaction, before_compaction, when_successful};
use super::http::{PageListeners, Pages, StatusReport};
use super::identity::{Caller, ReadPermissions};
use super::lease::{KeepAliveBroadcasts, admit, keep_alive};
use super::limits::{MeteredRequest, metered_answer};
use super::members::SelfMember;
use super::message_limits::{ClientBody, MessageLimits};
use super::namespace::{KnownLeases, PREFIX_BYTES, ResponseMemory, View, clean_headers, no_decompressor, one_message};
use super::revision_tracking::track_revisions;
use super::tenants::{Membership, NotATenant, Tenant, TenantUpstream, Tenants};
use super::watch::ProxyWatchService;
use crate::api_error::ApiError;
use crate::client::{Channel, Head, Pool, Seen, unframed};
use crate::json::{self, Asked, AskedBody, CallBody, is_json_path, is_web_socket, web_socket};
use crate::listener::{Arriving, ConnectionInfo, WorkerId, refused_head};
use crate::pages::{BrowserRules, HealthService, Profiles, not_found};
use crate::pb::encoded::watch_server::WatchServer;
use crate::pb::etcdserverpb::{AuthenticateRequest, AuthenticateResponse, CompactionRequest};
use crate::pb::healthpb::health_server::HealthServer;
use crate::pb::methods::{self, METHODS, Method, MethodKind};
use crate::shutdown::Tasks;
use crate::telemetry::{GrpcCalls, GrpcMethod, Metrics, RequestBody};
use crate::types::Revision;

const GRPC: &str = "application/grpc";
/// Calls of methods that this version does not know, each a stream of its own upstream, until a member has begun to
/// answer; more are refused.
const UNKNOWN_CALLS_MAX: usize = 1024;
/// The member has the last word on the size of a message; this is what its size may be at most.
const JSON_LIMITS: json::Limits = json::Limits { message_bytes_max: 64 * 1024 * 1024 };
const RANGE: &str = "/etcdserverpb.KV/Range";
const COMPACT: &str = "/etcdserverpb.KV/Compact";
const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";
/// Of the name and the password of a user.
const AUTHENTICATE_BYTES_MAX: usize = 64 * 1024;
/// Of a revision.
const COMPACT_BYTES_MAX: usize = 1024;
/// A message of a watch stream, and of the health service: what tonic takes.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What one serving thread of the proxy needs.
#[derive(Clone)]
pub struct WorkerParts {
    /// Way to the cluster, of this thread alone.
    pub pool: Pool,
    /// Which client sees which keys.
    pub tenants: Tenants,
    /// What tenants need of the cluster, of all threads.
    pub upstream: Arc<TenantUpstream>,
    /// On which listeners pages are served.
    pub page_listeners: PageListeners,
    /// The keep-alives of all threads, and of all tenants whose requests go on with the credentials of clients.
    pub leases: KeepAliveBroadcasts,
    /// What callers may read, where it is asked.
    pub permissions: Option<ReadPermissions>,
    /// Whether `grpc.health.v1` says that nothing is served.
    pub paused: watch::Receiver<bool>,
    /// Of calls of clients.
    pub limits: MessageLimits,
    /// The pool by which that is found out, of all threads; its endpoints are those that people are shown.
    pub health_pool: Pool,
    /// What MemberList answers; none for the real list.
    pub self_member: Option<SelfMember>,
    /// Memory for answers that are rewritten, of all threads.
    pub response_memory: ResponseMemory,
    /// Which leases belong to which namespace, of all threads.
    pub known_leases: KnownLeases,
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
    upstream: Arc<TenantUpstream>,
    /// Of the tenants that have sent a request to this thread, by their ids.
    services: Mutex<HashMap<u64, Arc<TenantServices>>>,
    permissions: Option<ReadPermissions>,
    health: HealthServer<HealthService>,
    limits: MessageLimits,
    self_member: Option<SelfMember>,
    /// Of all tenants whose requests go on with the credentials of clients.
    leases: KeepAliveBroadcasts,
    response_memory: ResponseMemory,
    known_leases: KnownLeases,
    pages: Pages,
    calls: GrpcCalls,
    unknown_calls: Semaphore,
    number: usize,
    tasks: Tasks,
}

/// The services of one tenant on one serving thread.
struct TenantServices {
    /// Of a tenant that does not see the whole key space.
    view: Option<View>,
    /// Made with the first watch.
    watch: OnceLock<WatchServer<ProxyWatchService>>,
    leases: KeepAliveBroadcasts,
}

impl ProxyService {
    /// The service of one serving thread; made on that thread.
    pub fn new(worker: WorkerId, parts: WorkerParts) -> Self {
        let WorkerParts {
            pool,
            tenants,
            upstream,
            page_listeners,
            leases,
            permissions,
            paused,
            limits,
            health_pool,
            self_member,
            response_memory,
            known_leases,
            metrics,
            profiles,
            calls,
            tasks,
        } = parts;
        let status = StatusReport::new(health_pool, metrics.clone(), tenants.clone());
        let pages = Pages::new(pool.clone(), metrics, profiles, status, page_listeners);
        Self {
            worker: Arc::new(Worker {
                pool,
                tenants,
                upstream,
                services: Mutex::default(),
                permissions,
                health: HealthServer::new(HealthService::following(paused)),
                limits,
                self_member,
                leases,
                response_memory,
                known_leases,
                pages,
                calls,
                unknown_calls: Semaphore::new(UNKNOWN_CALLS_MAX),
                number: worker.0,
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
        if self.pages.are_alone_for(&request) {
            return not_found().map(Body::new);
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
        if is_json_path(request.uri().path()) && !self.pages.are_alone_for(&request) {
            if is_web_socket(&request) {
                let worker = self.clone();
                return web_socket(request, &self.tasks, |request| async move { worker.call_as_json(request).await });
            }
            return self.call_as_json(request.map(Asked::Http)).await;
        }
        let head = request.into_parts().0;
        self.pages.answer(&head).await.map(Body::new)
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

    async fn grpc(&self, mut request: Request<ClientBody>) -> Response<Body> {
        let path = request.uri().path();
        if let "/grpc.health.v1.Health/Check" | "/grpc.health.v1.Health/List" | "/grpc.health.v1.Health/Watch" = path {
            return answered(self.health.clone().call(arriving(request)).await);
        }
        if path == AUTHENTICATE && self.tenants.by_user() {
            return Box::pin(self.authenticate(request)).await.unwrap_or_else(Status::into_http);
        }
        let connection = request.extensions().get::<Arc<ConnectionInfo>>().cloned();
        let tenant = match self.tenants.of(connection.as_deref(), request.headers()) {
            Ok(tenant) => tenant,
            Err(reason) => return Status::from(reason).into_http(),
        };
        if tenant.user.is_some() {
            // It is that user whatever its clients send.
            request.headers_mut().remove("token");
            request.headers_mut().remove("authorization");
        }
        if let Err(refusal) = tenant.limits.admit_call() {
            Box::pin(tenant.limits.hold_back()).await;
            return refusal.into_http();
        }
        self.upstream.note_active(&tenant, request.headers());
        self.upstream.count_stored(&tenant, request.headers());
        let request = request.map(|body| MeteredRequest::new(body, &tenant.limits));
        let services = self.services(&tenant);
        let membership = || Membership {
            tenants: self.tenants.clone(),
            tenant: tenant.clone(),
            connection: connection.clone(),
            headers: request.headers().clone(),
            user: self.tenants.user(request.headers()),
        };
        match request.uri().path() {
            "/v3lockpb.Lock/Lock" | "/v3electionpb.Election/Campaign" => {
                let membership = membership();
                let answering = Box::pin(self.answer_of(&tenant, &services, request));
                let answer = Box::pin(membership.while_it_lasts(answering)).await;
                metered_answer(answer, &tenant.limits, false)
            }
            // Counted, and never made to wait: leases would end meanwhile.
            "/etcdserverpb.Lease/LeaseKeepAlive" => {
                let membership = membership();
                let answer = Box::pin(self.answer_of(&tenant, &services, request)).await;
                membership.of_stream(metered_answer(answer, &tenant.limits, false))
            }
            "/etcdserverpb.Watch/Watch"
            | "/etcdserverpb.KV/RangeStream"
            | "/etcdserverpb.Maintenance/Snapshot"
            | "/v3electionpb.Election/Observe" => {
                let membership = membership();
                let answer = Box::pin(self.answer_of(&tenant, &services, request)).await;
                membership.of_stream(metered_answer(answer, &tenant.limits, true))
            }
            _ => {
                let answer = Box::pin(self.answer_of(&tenant, &services, request)).await;
                metered_answer(answer, &tenant.limits, false)
            }
        }
    }

    /// The answer to a request of this tenant.
    async fn answer_of(
        &self,
        tenant: &Arc<Tenant>,
        services: &TenantServices,
        request: Request<MeteredRequest<ClientBody>>,
    ) -> Response<Body> {
        let view = services.view.as_ref();
        if request.uri().path() == COMPACT {
            if tenant.compaction.is_some() {
                return Box::pin(self.wish(tenant, request)).await.unwrap_or_else(Status::into_http);
            }
            if view.is_none() || tenant.rights.admin || tenant.rights.compact {
                return Box::pin(self.compact(view, request)).await;
            }
        }
        match request.uri().path() {
            "/etcdserverpb.Cluster/MemberList" => match &self.self_member {
                Some(member) => member.answer(),
                None => self.within(view, request).await,
            },
            "/etcdserverpb.KV/Range" | "/etcdserverpb.KV/RangeStream" => {
                let cache = self.upstream.range_cache(tenant).and_then(|cache| Some((cache, cache.looks()?)));
                // Of a stream each message would have to be measured.
                let is_measured = request.uri().path() != RANGE && tenant.limits.answer_bytes_max().is_some();
                let Some((cache, look)) = cache.filter(|_| !is_measured) else {
                    return self.within(view, request).await;
                };
                match cache.answer(request, look, Some(&self.pool)).await {
                    Ok(answer) => tenant.limits.answer(answer),
                    Err(request) => self.within(view, request).await,
                }
            }
            "/etcdserverpb.Watch/Watch" => {
                let start = || ProxyWatchService::start(self.upstream.hub(tenant), self.number, tenant.tasks());
                let watch = services.watch.get_or_init(|| watch_server(start()));
                answered(watch.clone().call(arriving(request)).await)
            }
            "/etcdserverpb.Lease/LeaseKeepAlive" if tenant.rights.read_only => {
                Status::from(ApiError::PermissionDenied).into_http()
            }
            "/etcdserverpb.Lease/LeaseKeepAlive" => {
                match admit(&services.leases, request.headers()) {
                    Some(admission) => keep_alive(admission, view.map(View::ownership), request, &self.tasks),
                    // The refusal is the member's, in its own words, where the tenant may go to one directly.
                    None if view.is_none() => self.within(None, request).await,
                    None => refuse_encoding(request.headers()).into_http(),
                }
            }
            path if changes_permissions(path) => {
                let answer = self.within(view, request).await;
                // Before the client is told: what it reads from then on is permitted anew.
                if let Some(permissions) = self.permissions.as_ref().filter(|_| may_have_changed(&answer)) {
                    permissions.forget();
                }
                answer
            }
            _ => self.within(view, request).await,
        }
    }

    /// A compaction by a tenant that agrees on it with others.
    async fn wish<B>(&self, tenant: &Arc<Tenant>, request: Request<B>) -> Result<Response<Body>, Status>
    where
        B: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + Unpin + 'static,
    {
        let (parts, body) = request.into_parts();
        let (body, _until_answered) = Arriving::collected(body, parts.extensions.get::<Arc<ConnectionInfo>>().cloned());
        let asked = decoded(&parts.headers, body, COMPACT_BYTES_MAX).await?.1;
        let before = before_compaction(self.tenants.clone());
        let (answer, compacted) = self.upstream.wish(tenant, &parts.headers, asked, before).await?;
        if let Some(revision) = compacted {
            after_compaction(&self.tenants, revision);
        }
        Ok(unary(&answer))
    }

    /// A compaction that the cluster decides on.
    async fn compact<B>(&self, view: Option<&View>, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + Unpin + 'static,
    {
        before_compaction(self.tenants.clone()).await;
        let (parts, body) = request.into_parts();
        let (body, _until_answered) = Arriving::collected(body, parts.extensions.get::<Arc<ConnectionInfo>>().cloned());
        let body = match ReadAhead::read(body).await {
            Ok(body) => body,
            Err(error) => return Status::from_error(error).into_http(),
        };
        let asked = body.message().and_then(|message| CompactionRequest::decode(message).ok());
        let answer = self.within(view, Request::from_parts(parts, body)).await;
        // What is not understood here is for the member to decide.
        let Some(CompactionRequest { revision, .. }) = asked else { return answer };
        let tenants = self.tenants.clone();
        when_successful(answer, move || after_compaction(&tenants, Revision(revision)))
    }

    /// A login where tenants are known by the users of tokens: the user named is the one whose tenant it concerns, and the
    /// token of the answer is that user's.
    async fn authenticate<B>(&self, request: Request<B>) -> Result<Response<Body>, Status>
    where
        B: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + Unpin + 'static,
    {
        let (mut parts, body) = request.into_parts();
        let connection = parts.extensions.get::<Arc<ConnectionInfo>>().cloned();
        let (body, _until_answered) = Arriving::collected(body, connection.clone());
        let (frame, asked): (_, AuthenticateRequest) = decoded(&parts.headers, body, AUTHENTICATE_BYTES_MAX).await?;
        clean_headers(&mut parts.headers);
        let connection = connection.ok_or(NotATenant::Unknown)?;
        let tenant = self.tenants.of_user(&connection, &asked.name).map_err(|reason| match reason {
            // As for a user that does not exist: the answer does not tell which users are known.
            NotATenant::Unknown => ApiError::AuthFailed.into(),
            reason => Status::from(reason),
        })?;
        if let Err(refusal) = tenant.limits.admit_call() {
            tenant.limits.hold_back().await;
            return Err(refusal);
        }
        let services = self.services(&tenant);
        let request = Request::from_parts(parts, Full::new(frame));
        let answer: AuthenticateResponse = unframed(self.within(services.view.as_ref(), request).await).await?;
        self.tenants.note_token(&answer.token, &asked.name);
        Ok(unary(&answer))
    }

    /// The tenant's services on this thread; makes them with its first request.
    fn services(&self, tenant: &Tenant) -> Arc<TenantServices> {
        let mut services = self.services.lock();
        if let Some(known) = services.get(&tenant.id()) {
            return known.clone();
        }
        let now = self.tenants.current();
        services.retain(|id, _| now.tenants().iter().any(|tenant| tenant.id() == *id));
        let (channel, leases) = match &tenant.user {
            None => (Channel::new(self.pool.clone()), self.leases.clone()),
            Some(user) => {
                let channel = user.channel(&self.pool, &self.upstream.pools, tenant.tasks());
                (channel, self.upstream.keep_alives(tenant, user).clone())
            }
        };
        let (memory, known) = (self.response_memory.clone(), self.known_leases.clone());
        let (namespace, limits) = (&tenant.namespace, tenant.limits.clone());
        let view = (!namespace.is_whole())
            .then(|| View::new(namespace, tenant.rights, limits, channel, memory, known, &self.tasks));
        let made = Arc::new(TenantServices { view, watch: OnceLock::new(), leases });
        services.insert(tenant.id(), made.clone());
        made
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
            // One message, collected before it is sent, so that it can be sent again.
            Ok(Method { kind: MethodKind::Unary | MethodKind::ServerStream, .. }) => {
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

/// Whether the answer to a call that changes permissions leaves it open that it did. A member refuses in the head of its answer.
fn may_have_changed(answer: &Response<Body>) -> bool {
    let refusals = [Code::PermissionDenied, Code::Unauthenticated, Code::InvalidArgument, Code::Unimplemented];
    let code = answer.headers().get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()));
    code.is_none_or(|code| !refusals.contains(&code))
}

/// Counts the bytes of a message of the request for its connection until all of the message has come.
fn arriving<B>(request: Request<B>) -> Request<Arriving<B>> {
    let connection = request.extensions().get::<Arc<ConnectionInfo>>().cloned();
    request.map(|body| Arriving::messages(body, connection, MESSAGE_BYTES_MAX))
}

/// The one message of a request, as it came and decoded.
async fn decoded<M, B>(headers: &HeaderMap, body: B, bytes_max: usize) -> Result<(Bytes, M), Status>
where
    M: Message + Default,
    B: HttpBody<Data: Send, Error: Into<StdError>>,
{
    let frame = one_message(headers, body, bytes_max).await?;
    let message = M::decode(frame.slice(PREFIX_BYTES..))
        .map_err(|error| Status::internal(format!("grpc: error unmarshalling request: {error}")))?;
    Ok((frame, message))
}

/// Why a keep-alive stream of a namespace is not read.
fn refuse_encoding(headers: &HeaderMap) -> Status {
    no_decompressor(headers.get("grpc-encoding").map(HeaderValue::as_bytes).unwrap_or_default())
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

    /// Cause: any tenant could have the read permissions of all asked for again, by calls that were refused.
    #[test]
    fn a_refused_call_changes_no_permissions() {
        for code in (0..=16i32).map(Code::from) {
            let refused = matches!(
                code,
                Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument | Code::Unimplemented
            );
            let answer: Response<Body> = Status::new(code, "of a member").into_http();
            assert_eq!(may_have_changed(&answer), !refused, "{code:?}");
        }
        assert!(may_have_changed(&unary(&AuthenticateResponse::default())), "its status is in the trailers");
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
