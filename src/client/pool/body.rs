use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use h2::client::ResponseFuture;
use http::{HeaderMap, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio_util::sync::DropGuard;
use tonic::Status;
use tonic::body::Body;

use super::connection::InFlight;
use super::fault::{Fault, status_of};
use super::header::{HEADER_BYTES_MAX, PeekedHeader, peek_header, peek_wrapped_header};
use crate::client::Endpoint;
use crate::pb::frame::{PREFIX_BYTES, Prefix};

/// An answer on its way back, as bytes. A break becomes trailers with a status, never a broken body.
#[derive(Debug)]
pub struct UpstreamBody {
    state: State,
    endpoint: Endpoint,
    broken: bool,
    /// Read ahead, see [`peek`](Self::peek).
    ahead: VecDeque<Frame<Bytes>>,
    /// Ends what feeds the request when the answer is dropped.
    feeding: Option<DropGuard>,
    in_flight: InFlight,
}

#[derive(Debug)]
enum State {
    Waiting(ResponseFuture),
    Streaming(RecvStream),
    Done,
}

impl UpstreamBody {
    pub(super) fn waiting(answer: ResponseFuture, endpoint: Endpoint, in_flight: InFlight) -> Self {
        Self {
            state: State::Waiting(answer),
            endpoint,
            broken: false,
            ahead: VecDeque::new(),
            feeding: None,
            in_flight,
        }
    }

    pub(super) fn streaming(stream: RecvStream, endpoint: Endpoint, in_flight: InFlight) -> Self {
        Self {
            state: State::Streaming(stream),
            endpoint,
            broken: false,
            ahead: VecDeque::new(),
            feeding: None,
            in_flight,
        }
    }

    pub(super) fn stop_with(&mut self, feeding: DropGuard) {
        self.feeding = Some(feeding);
    }

    /// The member at the other end.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether the end was ours to word, because the stream or its connection broke.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Waits for the answer's head.
    pub(super) async fn into_response(mut self) -> Response<Body> {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Waiting(answer) => match answer.await {
                Ok(answer) => answer.map(|stream| {
                    self.state = State::Streaming(stream);
                    Body::new(self)
                }),
                Err(error) => Fault::from_stream(&error, &self.endpoint).into_status().into_http(),
            },
            state => {
                self.state = state;
                Response::new(Body::new(self))
            }
        }
    }

    /// Waits for the header of the first message; none when there is no message, or it is compressed. `wrapped` when
    /// field 1 of the message is the answer with the header.
    pub(super) async fn peek(&mut self, wrapped: bool) -> Option<PeekedHeader> {
        let mut first = Vec::new();
        loop {
            let frame = poll_fn(|cx| self.poll_next(cx)).await?;
            let data = frame.data_ref().map(|data| data.slice(..data.len().min(PREFIX_BYTES + HEADER_BYTES_MAX)));
            self.ahead.push_back(frame);
            first.extend_from_slice(&data?);
            let Some((prefix, message)) = Prefix::split(&first) else { continue };
            if message.len() >= prefix.length.min(HEADER_BYTES_MAX) {
                let peek = if wrapped { peek_wrapped_header } else { peek_header };
                return prefix.is_plain().then(|| peek(message)).flatten();
            }
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        if let State::Waiting(answer) = &mut self.state {
            match ready!(Pin::new(answer).poll(cx)) {
                Ok(answer) => {
                    let (parts, stream) = answer.into_parts();
                    if parts.headers.contains_key(Status::GRPC_STATUS) {
                        self.state = State::Done;
                        return Poll::Ready(Some(Frame::trailers(parts.headers)));
                    }
                    self.state = State::Streaming(stream);
                }
                Err(error) => return Poll::Ready(Some(self.end_with(&error))),
            }
        }
        let State::Streaming(stream) = &mut self.state else { return Poll::Ready(None) };
        match ready!(stream.poll_data(cx)) {
            Some(Ok(data)) => {
                self.in_flight.heard();
                // The reader has it: the member may send as much again.
                let _ = stream.flow_control().release_capacity(data.len());
                Poll::Ready(Some(Frame::data(data)))
            }
            Some(Err(error)) => Poll::Ready(Some(self.end_with(&error))),
            None => match ready!(stream.poll_trailers(cx)) {
                Ok(Some(trailers)) => {
                    self.state = State::Done;
                    Poll::Ready(Some(Frame::trailers(trailers)))
                }
                Ok(None) => {
                    self.state = State::Done;
                    Poll::Ready(None)
                }
                Err(error) => Poll::Ready(Some(self.end_with(&error))),
            },
        }
    }

    fn end_with(&mut self, error: &h2::Error) -> Frame<Bytes> {
        self.state = State::Done;
        self.broken = true;
        let mut trailers = HeaderMap::new();
        // The text is our own and short; were it ever unfit for a header, the code alone would go.
        if status_of(error, &self.endpoint).add_header(&mut trailers).is_err() {
            trailers.insert(Status::GRPC_STATUS, http::HeaderValue::from_static("14"));
        }
        Frame::trailers(trailers)
    }
}

impl HttpBody for UpstreamBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(frame) = self.ahead.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        self.poll_next(cx).map(|frame| frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            _ if !self.ahead.is_empty() => false,
            State::Waiting(_) => false,
            State::Streaming(stream) => stream.is_end_stream(),
            State::Done => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
