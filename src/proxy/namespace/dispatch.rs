use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::Body as HttpBody;
use http_body_util::Full;
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::StdError;
use tower::Service;

use super::effect::{Effect, effect};
use super::message::{PREFIX_BYTES, one_message};
use super::response_memory::held_until_sent;
use super::store::ViewStore;
use super::view::{View, clean_headers};
use crate::api_error::ApiError;
use crate::client::{Head, Method, framed};
use crate::listener::{Arriving, CollectedBytes, ConnectionInfo};
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::kv_server::KvServer;
use crate::pb::etcdserverpb::lease_server::LeaseServer;
use crate::pb::etcdserverpb::{AlarmRequest, AuthStatusRequest, AuthenticateRequest, MemberListRequest, StatusRequest};
use crate::pb::methods;
use crate::pb::txn::operations;
use crate::pb::v3electionpb::election_server::ElectionServer;
use crate::pb::v3lockpb::lock_server::LockServer;
use crate::recipes::{ElectionService, LockService};

/// The bound of a member is far lower, and its refusal is passed on; this one bounds the memory of the proxy.
const REQUEST_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Compares and operations of a transaction, for the same reason: far more than any member takes.
const OPERATIONS_MAX: usize = 64 * 1024;
/// What an operation takes when it is decoded, besides its bytes.
const OPERATION_BYTES: usize = 256;

impl View {
    /// Answers any request but watches and keep-alives, which are shared.
    ///
    /// What goes upstream is encoded here from what was decoded here, so a member cannot read something else in it.
    pub(in crate::proxy) async fn answer<B>(&self, request: http::Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + Unpin + 'static,
    {
        let method = match methods::find(request.uri().path()) {
            Ok(method) => method,
            // Passed on where there is no namespace; here an unknown method might show keys of others.
            Err(unknown) => return Status::unimplemented(unknown).into_http(),
        };
        if self.rights.read_only && effect(method.service, method.name) == Effect::Change {
            return Status::from(ApiError::PermissionDenied).into_http();
        }
        let (mut parts, body) = request.into_parts();
        let (body, until_answered) = Arriving::collected(body, parts.extensions.get::<Arc<ConnectionInfo>>().cloned());
        let frame = match one_message(&parts.headers, body, REQUEST_BYTES_MAX).await {
            Ok(frame) => frame,
            Err(status) => return status.into_http(),
        };
        if let Err(status) = admit(method, &frame, &until_answered) {
            return status.into_http();
        }
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
            _ if self.rights.admin => frame.clone(),
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
        let _turn = self.limits.turn().await?;
        Ok(self.channel.exchange(Method::of(method.path), &head, frame).await)
    }
}

/// Counts the memory that a message takes once it is decoded, and refuses what would take too much.
fn admit(method: &methods::Method, frame: &Bytes, until_answered: &CollectedBytes) -> Result<(), Status> {
    // It may have come compressed.
    let mut bytes = frame.len();
    if (method.service, method.name) == ("etcdserverpb.KV", "Txn") {
        let operations = operations(&frame[PREFIX_BYTES..], OPERATIONS_MAX);
        if operations > OPERATIONS_MAX {
            return Err(ApiError::TooManyOps.into());
        }
        bytes += operations * OPERATION_BYTES;
    }
    until_answered.grow_to(bytes)
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
