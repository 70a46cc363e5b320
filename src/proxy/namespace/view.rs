use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::Full;
use prost::Message;
use tonic::body::Body;
use tonic::{Request, Status};
use tower::Service;

use super::keys::Namespace;
use super::message::{PREFIX_BYTES, one_message};
use super::ownership::{OwnLeases, Ownership};
use super::room::{AnswerRoom, BoundedChannel, held_until_sent};
use super::store::ViewStore;
use crate::api_error::ApiError;
use crate::client::{Channel, Head, Method, Pool, Seen, framed};
use crate::listener::{Arriving, ConnectionInfo};
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::kv_client::KvClient;
use crate::pb::etcdserverpb::kv_server::KvServer;
use crate::pb::etcdserverpb::lease_client::LeaseClient;
use crate::pb::etcdserverpb::lease_server::LeaseServer;
use crate::pb::etcdserverpb::{AlarmRequest, AuthStatusRequest, AuthenticateRequest, MemberListRequest, StatusRequest};
use crate::pb::methods;
use crate::pb::v3electionpb::election_server::ElectionServer;
use crate::pb::v3lockpb::lock_server::LockServer;
use crate::proxy::lease::LeaseOwnership;
use crate::proxy::service::RequestBody;
use crate::proxy::tenant::Tenant;
use crate::recipes::{ElectionService, LockService};
use crate::shutdown::Tasks;

/// A member's own bound is far lower and worded by it; this one keeps a tenant from filling the proxy's memory.
const REQUEST_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The API as one tenant sees it. Cheap to clone.
#[derive(Clone)]
pub(in crate::proxy) struct View {
    pub(super) namespace: Namespace,
    pub(super) admin: bool,
    pub(super) kv: KvClient<BoundedChannel>,
    pub(super) lease: LeaseClient<Channel>,
    pub(super) ownership: Arc<Ownership>,
    pub(super) pool: Pool,
    pub(super) tasks: Tasks,
}

impl View {
    pub(in crate::proxy) fn new(tenant: &Tenant, pool: &Pool, room: AnswerRoom, tasks: &Tasks) -> Self {
        let channel = Channel::new(pool.clone());
        let bounded = BoundedChannel::new(channel.clone(), room);
        let kv = KvClient::new(bounded).max_decoding_message_size(i32::MAX as usize);
        let ownership = Ownership::new(
            KvClient::new(channel.clone()).max_decoding_message_size(i32::MAX as usize),
            &tenant.namespace,
        );
        let lease = LeaseClient::new(channel).max_decoding_message_size(i32::MAX as usize);
        Self {
            namespace: tenant.namespace.clone(),
            admin: tenant.admin,
            ownership: Arc::new(ownership),
            kv,
            lease,
            pool: pool.clone(),
            tasks: tasks.clone(),
        }
    }

    /// Decides which leases the tenant may keep alive.
    pub(in crate::proxy) fn ownership(&self) -> Arc<dyn LeaseOwnership> {
        Arc::new(OwnLeases(self.ownership.clone()))
    }

    /// Answers any request but watches and keep-alives, which have hubs of their own.
    ///
    /// What goes upstream is encoded here from what was decoded here, so a member cannot read something else in it.
    pub(in crate::proxy) async fn answer(&self, request: http::Request<RequestBody>) -> Response<Body> {
        let method = match methods::find(request.uri().path()) {
            Ok(method) => method,
            // Unlike without a namespace: a method nobody here knows might show anything.
            Err(unknown) => return Status::unimplemented(unknown).into_http(),
        };
        let (mut parts, body) = request.into_parts();
        let body = Arriving::collected(body, parts.extensions.get::<Arc<ConnectionInfo>>().cloned());
        let frame = match one_message(&parts.headers, body, REQUEST_BYTES_MAX).await {
            Ok(frame) => frame,
            Err(status) => return status.into_http(),
        };
        clean_headers(&mut parts.headers);
        let answered = match (method.service, method.name) {
            ("etcdserverpb.KV", _) => {
                let service = KvServer::new(self.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
                served(service, parts, frame).await.map(held_until_sent)
            }
            ("etcdserverpb.Lease", _) => served(LeaseServer::new(self.clone()), parts, frame).await,
            ("v3lockpb.Lock", _) => {
                let service = LockService::new(ViewStore::new(self.clone()), self.tasks.clone());
                served(LockServer::new(service), parts, frame).await
            }
            ("v3electionpb.Election", _) => {
                let service = ElectionService::new(ViewStore::new(self.clone()), self.tasks.clone());
                served(ElectionServer::new(service), parts, frame).await
            }
            ("etcdserverpb.Maintenance" | "etcdserverpb.Cluster" | "etcdserverpb.Auth", _) => {
                self.administer(method, parts.headers, &frame).await
            }
            _ => Err(ApiError::PermissionDenied.into()),
        };
        answered.unwrap_or_else(Status::into_http)
    }

    /// Calls about the cluster: what shows and changes nothing beyond the namespace, everything with `admin`.
    async fn administer(
        &self,
        method: &'static methods::Method,
        metadata: HeaderMap,
        frame: &Bytes,
    ) -> Result<Response<Body>, Status> {
        let frame = match (method.service, method.name) {
            // Nothing was decided on its bytes, and they are one message.
            _ if self.admin => frame.clone(),
            ("etcdserverpb.Maintenance", "Status") => framed(&message::<StatusRequest>(frame)?),
            ("etcdserverpb.Cluster", "MemberList") => framed(&message::<MemberListRequest>(frame)?),
            ("etcdserverpb.Auth", "AuthStatus") => framed(&message::<AuthStatusRequest>(frame)?),
            ("etcdserverpb.Auth", "Authenticate") => framed(&message::<AuthenticateRequest>(frame)?),
            ("etcdserverpb.Maintenance", "Alarm") => {
                let request: AlarmRequest = message(frame)?;
                // Alarms may be read, not changed.
                if request.action != i32::from(AlarmAction::Get) {
                    return Err(ApiError::PermissionDenied.into());
                }
                framed(&request)
            }
            // What is left reaches beyond the namespace, or shows what does.
            _ => return Err(ApiError::PermissionDenied.into()),
        };
        let head = Head::grpc(method.path, metadata);
        Ok(self.pool.exchange(Method::of(method.path), &head, frame).await)
    }
}

/// Hands one message to a service.
async fn served<S>(mut service: S, parts: http::request::Parts, frame: Bytes) -> Result<Response<Body>, Status>
where
    S: Service<http::Request<Full<Bytes>>, Response = Response<Body>, Error = Infallible>,
{
    match service.call(http::Request::from_parts(parts, Full::new(frame))).await {
        Ok(response) => Ok(response),
        Err(never) => match never {},
    }
}

/// Decodes what follows the prefix of a frame.
fn message<M: Message + Default>(frame: &Bytes) -> Result<M, Status> {
    M::decode(frame.slice(PREFIX_BYTES..))
        .map_err(|error| Status::internal(format!("grpc: error unmarshalling request: {error}")))
}

/// The request as it goes on: metadata and connection of the caller, without what belongs to its connection and its encoding.
pub(super) fn clean<T>(request: Request<T>) -> Request<T> {
    let (metadata, mut extensions, message) = request.into_parts();
    let mut headers = metadata.into_headers();
    clean_headers(&mut headers);
    let mut request = Request::new(message);
    *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(headers);
    if let Some(seen) = extensions.remove::<Seen>() {
        request.extensions_mut().insert(seen);
    }
    request
}

fn clean_headers(headers: &mut HeaderMap) {
    for name in ["grpc-encoding", "grpc-accept-encoding", "host", "connection", "content-length", "transfer-encoding"] {
        headers.remove(name);
    }
}
