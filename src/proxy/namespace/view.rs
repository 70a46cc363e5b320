use std::convert::Infallible;
use std::sync::Arc;

use http::Response;
use http_body_util::{BodyExt, Limited};
use prost::Message;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::{Request, Status};
use tower::Service;

use super::keys::Namespace;
use super::ownership::{OwnLeases, Ownership};
use super::store::ViewStore;
use crate::api_error::ApiError;
use crate::client::{Channel, Head, Method, Pool};
use crate::pb::etcdserverpb::AlarmRequest;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::kv_client::KvClient;
use crate::pb::etcdserverpb::kv_server::KvServer;
use crate::pb::etcdserverpb::lease_client::LeaseClient;
use crate::pb::etcdserverpb::lease_server::LeaseServer;
use crate::pb::methods;
use crate::pb::v3electionpb::election_server::ElectionServer;
use crate::pb::v3lockpb::lock_server::LockServer;
use crate::proxy::lease::Gate;
use crate::proxy::service::RequestBody;
use crate::proxy::tenant::Tenant;
use crate::recipes::{ElectionService, LockService};
use crate::shutdown::Tasks;

/// A member's own bound is far lower and worded by it; this one keeps a tenant from filling the proxy's memory.
const REQUEST_BYTES_MAX: usize = 64 * 1024 * 1024;
const ALARM_BYTES_MAX: usize = 1024;

/// The API as one tenant sees it. Cheap to clone.
#[derive(Clone)]
pub(in crate::proxy) struct View {
    pub(super) namespace: Namespace,
    pub(super) admin: bool,
    pub(super) kv: KvClient<Channel>,
    pub(super) lease: LeaseClient<Channel>,
    pub(super) ownership: Arc<Ownership>,
    pub(super) pool: Pool,
    pub(super) tasks: Tasks,
}

impl View {
    pub(in crate::proxy) fn new(tenant: &Tenant, pool: &Pool, tasks: &Tasks) -> Self {
        let channel = Channel::new(pool.clone());
        let kv = KvClient::new(channel.clone()).max_decoding_message_size(i32::MAX as usize);
        let lease = LeaseClient::new(channel).max_decoding_message_size(i32::MAX as usize);
        Self {
            namespace: tenant.namespace.clone(),
            admin: tenant.admin,
            ownership: Arc::new(Ownership::new(kv.clone(), &tenant.namespace)),
            kv,
            lease,
            pool: pool.clone(),
            tasks: tasks.clone(),
        }
    }

    /// Decides which leases the tenant may keep alive.
    pub(in crate::proxy) fn gate(&self) -> Arc<dyn Gate> {
        Arc::new(OwnLeases(self.ownership.clone()))
    }

    /// Answers any request but watches and keep-alives, which have hubs of their own.
    pub(in crate::proxy) async fn answer(&self, request: http::Request<RequestBody>) -> Response<Body> {
        let method = match methods::find(request.uri().path()) {
            Ok(method) => method,
            // Unlike without a namespace: a method nobody here knows might show anything.
            Err(unknown) => return Status::unimplemented(unknown).into_http(),
        };
        let answered = match (method.service, method.name) {
            ("etcdserverpb.KV", _) => {
                KvServer::new(self.clone())
                    .accept_compressed(CompressionEncoding::Gzip)
                    .max_decoding_message_size(REQUEST_BYTES_MAX)
                    .call(request)
                    .await
            }
            ("etcdserverpb.Lease", _) => {
                LeaseServer::new(self.clone()).accept_compressed(CompressionEncoding::Gzip).call(request).await
            }
            ("v3lockpb.Lock", _) => {
                let service = LockService::new(ViewStore::new(self.clone()), self.tasks.clone());
                LockServer::new(service).accept_compressed(CompressionEncoding::Gzip).call(request).await
            }
            ("v3electionpb.Election", _) => {
                let service = ElectionService::new(ViewStore::new(self.clone()), self.tasks.clone());
                ElectionServer::new(service).accept_compressed(CompressionEncoding::Gzip).call(request).await
            }
            ("etcdserverpb.Maintenance", "Status")
            | ("etcdserverpb.Cluster", "MemberList")
            | ("etcdserverpb.Auth", "AuthStatus" | "Authenticate") => Ok(self.pass(request).await),
            ("etcdserverpb.Maintenance" | "etcdserverpb.Cluster" | "etcdserverpb.Auth", _) if self.admin => {
                Ok(self.pass(request).await)
            }
            ("etcdserverpb.Maintenance", "Alarm") => Ok(self.alarm(request).await),
            // What is left reaches beyond the namespace, or shows what does.
            _ => Ok(Status::from(ApiError::PermissionDenied).into_http()),
        };
        match answered {
            Ok(response) => response,
            Err(never) => never_happens(never),
        }
    }

    /// Alarms may be read, not changed.
    async fn alarm(&self, request: http::Request<RequestBody>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let message = match Limited::new(body, ALARM_BYTES_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return Status::from_error(error).into_http(),
        };
        // Five bytes of frame, then the request; `GET` is the default, so an empty one reads.
        let reads = message
            .split_first_chunk::<5>()
            .filter(|(frame, _)| frame[0] == 0)
            .and_then(|(_, request)| AlarmRequest::decode(request).ok())
            .is_some_and(|request| request.action == i32::from(AlarmAction::Get));
        if !reads {
            return Status::from(ApiError::PermissionDenied).into_http();
        }
        let head = Head::from_request(parts);
        self.pool.exchange(Method::of(head.path.path()), &head, message).await
    }

    async fn pass(&self, request: http::Request<RequestBody>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        self.pool.request(&Head::from_request(parts), body).await
    }
}

fn never_happens(never: Infallible) -> Response<Body> {
    match never {}
}

/// The request as it goes on: metadata of the caller, without what belongs to its connection and its encoding.
pub(super) fn clean<T>(request: Request<T>) -> Request<T> {
    let (metadata, _, message) = request.into_parts();
    let mut headers = metadata.into_headers();
    for name in ["grpc-encoding", "grpc-accept-encoding", "host", "connection", "content-length"] {
        headers.remove(name);
    }
    let mut request = Request::new(message);
    *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(headers);
    request
}
