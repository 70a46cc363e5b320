use futures::StreamExt;
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, Streaming};
use tonic::{Code, Status};

use super::dispatch::Pool;
use super::head::Head;
use crate::client::{Endpoint, Lane};
use crate::pb::codec::LeanCodec;
use crate::pb::etcdserverpb::{WatchRequest, WatchResponse};
use crate::pb::frame::framed;

/// Requests of one stream that wait to be sent; the sender waits while it is full.
const REQUESTS_MAX: usize = 128;

/// A watch stream to some member. Dropping both halves cancels it.
#[derive(Debug)]
pub struct UpstreamWatch {
    /// Requests to send.
    pub requests: mpsc::Sender<WatchRequest>,
    /// The member's answers; they end with its status.
    pub answers: Streaming<WatchResponse>,
    /// The member.
    pub endpoint: Endpoint,
}

impl Pool {
    /// Opens a watch stream with this metadata and returns at once: a member sends nothing before the first request.
    /// A refusal of the stream itself is the first thing `answers` yields.
    ///
    /// # Errors
    /// When no member can be reached.
    pub async fn open_watch(&self, metadata: &HeaderMap) -> Result<UpstreamWatch, Status> {
        let head = Head::grpc("/etcdserverpb.Watch/Watch", metadata.clone());
        let stream = self.open(Lane::Watch, &head).await?;
        let endpoint = stream.body.endpoint().clone();
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let frames =
            ReceiverStream::new(receiver).map(|request: WatchRequest| Ok::<_, Status>(Frame::data(framed(&request))));
        let body = stream.feed(StreamBody::new(frames), self.tasks());
        let decoder = LeanCodec::<WatchRequest, WatchResponse>::default().decoder();
        let answers = Streaming::new_response(decoder, body, StatusCode::OK, None, Some(i32::MAX as usize));
        Ok(UpstreamWatch { requests, answers, endpoint })
    }
}

/// The one message of a unary answer.
///
/// # Errors
/// The status of the answer, or why it is no answer.
pub async fn unframed<M: Message + Default + 'static>(answer: http::Response<tonic::body::Body>) -> Result<M, Status> {
    let (parts, body) = answer.into_parts();
    if let Some(status) = Status::from_header_map(&parts.headers)
        && status.code() != Code::Ok
    {
        return Err(status);
    }
    let decoder = LeanCodec::<M, M>::default().decoder();
    let mut stream = Streaming::new_response(decoder, body, parts.status, None, Some(i32::MAX as usize));
    match stream.message().await? {
        Some(message) => Ok(message),
        None => Err(Status::internal("answer without a message")),
    }
}
