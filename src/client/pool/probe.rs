use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use prost::Message;
use tonic::{Code, Status};

use super::connection::Connection;
use super::head::Head;
use super::header::{HEADER_BYTES_MAX, peek_header};
use super::standing::Standing;
use crate::api_error::ApiError;
use crate::client::Endpoint;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchRequest};
use crate::pb::frame::{PREFIX_BYTES, Prefix, framed};
use crate::pb::healthpb::HealthCheckResponse;
use crate::pb::healthpb::health_check_response::ServingStatus;

const HEALTH: &str = "/grpc.health.v1.Health/Check";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const REQUIRE_LEADER: HeaderName = HeaderName::from_static("hasleader");
/// An empty message: flag, length, no body.
const EMPTY_MESSAGE: Bytes = Bytes::from_static(&[0; PREFIX_BYTES]);

/// Waits for an answer to a health check, which needs no rights. Since the check requires a leader, the answer also tells
/// whether the member knows one, and whether it is a learner: those refuse it. Any other refusal is an answer too; one
/// that is no gRPC, or is `Unavailable`, is not.
///
/// # Errors
/// Why the endpoint is of no use.
pub(super) async fn standing(connection: &Connection, endpoint: &Endpoint) -> Result<Standing, String> {
    let metadata = HeaderMap::from_iter([(REQUIRE_LEADER, HeaderValue::from_static("true"))]);
    match ask(connection, endpoint, Head::grpc(HEALTH, metadata), EMPTY_MESSAGE, true).await? {
        First::Message(answer) => Ok(if says_not_serving(&answer) { Standing::NotServing } else { Standing::Full }),
        First::Refusal(status) => match ApiError::from_text(status.message()) {
            Some(ApiError::NoLeader) => Ok(Standing::NoLeader),
            Some(ApiError::NotSupportedForLearner) => Ok(Standing::Learner),
            _ if status.code() == Code::Unavailable => Err(status.message().to_owned()),
            _ => Ok(Standing::Full),
        },
    }
}

/// Whether the answer to a health check is `NOT_SERVING`. What it does not understand is no reason to leave an endpoint out.
fn says_not_serving(answer: &[u8]) -> bool {
    let decoded = Prefix::split(answer).and_then(|(_, message)| HealthCheckResponse::decode(message).ok());
    decoded.is_some_and(|answer| answer.status() == ServingStatus::NotServing)
}

/// Asks for the cluster id, without rights of any kind. None when the answer does not contain it.
///
/// # Errors
/// Why the endpoint is of no use.
pub(super) async fn cluster_id(connection: &Connection, endpoint: &Endpoint) -> Result<Option<u64>, String> {
    let shown =
        async |path, message, last| match ask(connection, endpoint, Head::grpc(path, HeaderMap::new()), message, last)
            .await?
        {
            First::Message(first) => Ok(Prefix::split(&first).and_then(|(_, message)| cluster_id_of(message))),
            First::Refusal(status) if status.code() == Code::Unavailable => Err(status.message().to_owned()),
            First::Refusal(_) => Ok(None),
        };
    if let Some(id) = shown(STATUS, EMPTY_MESSAGE, true).await? {
        return Ok(Some(id));
    }
    // With auth on, etcd 3.7 wants a user for this and every other call that shows the id, but refuses a watch with
    // an answer, and an answer has a header.
    let create = WatchCreateRequest { key: Bytes::from_static(b"\0"), ..Default::default() };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    shown(WATCH, framed(&request), false).await
}

/// How an answer begins.
enum First {
    /// With these bytes of a message; none when there is no message.
    Message(Vec<u8>),
    /// With an error.
    Refusal(Status),
}

/// Sends one message and reads the beginning of the first one of the answer.
async fn ask(
    connection: &Connection,
    endpoint: &Endpoint,
    head: Head,
    message: Bytes,
    last: bool,
) -> Result<First, String> {
    let (answer, mut send) =
        connection.start(head.to_request(connection.scheme(), endpoint), false).await.map_err(|e| e.to_string())?;
    // Fails when the member has answered from the head alone; its answer is what counts.
    let _ = send.send_data(message, last);
    let (parts, mut body) = answer.await.map_err(|error| error.to_string())?.into_parts();
    let kind = parts.headers.get(header::CONTENT_TYPE);
    if !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return Err(format!("not a gRPC server: HTTP status {}", parts.status.as_u16()));
    }
    if let Some(status) = Status::from_header_map(&parts.headers) {
        return Ok(First::Refusal(status));
    }
    let mut first = Vec::new();
    while first.len() < PREFIX_BYTES + HEADER_BYTES_MAX {
        match body.data().await {
            Some(Ok(data)) => {
                let _ = body.flow_control().release_capacity(data.len());
                first.extend_from_slice(&data);
            }
            Some(Err(error)) => return Err(error.to_string()),
            None => break,
        }
        if Prefix::split(&first).is_some_and(|(prefix, message)| message.len() >= prefix.length) {
            break;
        }
    }
    Ok(First::Message(first))
}

/// The cluster id in the first field of an answer, of which the end may be missing.
fn cluster_id_of(message: &[u8]) -> Option<u64> {
    peek_header(message).map(|header| header.cluster_id).filter(|&id| id != 0)
}
