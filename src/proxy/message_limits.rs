use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::json::AskedBody;
use crate::pb::frame::{Messages, Part};
use crate::telemetry::RequestBody;

type StdError = Box<dyn std::error::Error + Send + Sync>;

/// The request of a client, over gRPC or the JSON gateway.
pub(super) type ClientBody = LimitedBody<RequestBody<AskedBody>>;

/// How long the messages of a client's calls may be, as grpc-go limits those of a client; none for as long as members take
/// and give. The length is that of the message as the client sends or receives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageLimits {
    /// Bytes of a request message, which the proxy sends to the cluster.
    pub send_bytes_max: Option<usize>,
    /// Bytes of an answer's message, which the proxy receives from the cluster.
    pub receive_bytes_max: Option<usize>,
}

impl MessageLimits {
    /// Ends a request with an error at the first message that is longer.
    pub(super) fn request<B>(self, body: B) -> LimitedBody<B> {
        LimitedBody::new(body, self.send_bytes_max, Direction::Send)
    }

    /// Replaces the first message that is longer, and what follows it, by the error.
    pub(super) fn answer(self, answer: Response<Body>) -> Response<Body> {
        match self.receive_bytes_max {
            None => answer,
            Some(_) => answer.map(|body| Body::new(LimitedBody::new(body, self.receive_bytes_max, Direction::Receive))),
        }
    }
}

/// Which way a message goes, seen from the proxy as the client of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Send,
    Receive,
}

/// A body of gRPC messages whose length is limited.
#[derive(Debug)]
pub(super) struct LimitedBody<B> {
    body: B,
    bytes_max: Option<usize>,
    direction: Direction,
    messages: Messages,
    refused: Option<Refused>,
}

/// The state of a body in which a message beyond the limit began.
#[derive(Debug)]
enum Refused {
    /// The status is not sent yet.
    With(Status),
    /// Nothing follows.
    Over,
}

impl<B> LimitedBody<B> {
    fn new(body: B, bytes_max: Option<usize>, direction: Direction) -> Self {
        Self { body, bytes_max, direction, messages: Messages::default(), refused: None }
    }

    /// What of the next bytes may pass; less than all when a message beyond the limit begins there.
    fn scan(&mut self, data: &[u8], bytes_max: usize) -> usize {
        let mut at = 0;
        while at < data.len() {
            let (bytes, part) = self.messages.next(&data[at..]);
            if let Part::Begin(prefix) = part
                && prefix.length > bytes_max
            {
                let text = match self.direction {
                    Direction::Send => "trying to send message larger than max",
                    Direction::Receive => "grpc: received message larger than max",
                };
                let status = Status::resource_exhausted(format!("{text} ({} vs. {bytes_max})", prefix.length));
                self.refused = Some(Refused::With(status));
                return at;
            }
            at += bytes;
        }
        at
    }

    /// The end of a body that was refused.
    fn end(&mut self) -> Option<Result<Frame<Bytes>, StdError>> {
        match self.refused.replace(Refused::Over) {
            Some(Refused::With(status)) if self.direction == Direction::Receive => {
                let mut trailers = http::HeaderMap::new();
                Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers)).map_err(Into::into))
            }
            Some(Refused::With(status)) => Some(Err(status.into())),
            _ => None,
        }
    }
}

impl<B> HttpBody for LimitedBody<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = self.get_mut();
        if this.refused.is_some() {
            return Poll::Ready(this.end());
        }
        let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        let Some(bytes_max) = this.bytes_max else { return Poll::Ready(Some(Ok(frame))) };
        Poll::Ready(match frame.into_data() {
            Ok(mut data) => match this.scan(&data, bytes_max) {
                all if all == data.len() => Some(Ok(Frame::data(data))),
                0 => this.end(),
                before => Some(Ok(Frame::data(data.split_to(before)))),
            },
            Err(other) => Some(Ok(other)),
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.refused {
            Some(refused) => matches!(refused, Refused::Over),
            None => self.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.bytes_max {
            None => self.body.size_hint(),
            Some(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::*;
    use crate::pb::frame::Prefix;

    fn message(length: usize) -> Vec<u8> {
        [&Prefix::plain(length)[..], &vec![7; length]].concat()
    }

    /// The data and how it ended, of a body that comes in pieces of so many bytes.
    fn pass(bytes: &[u8], piece: usize, bytes_max: Option<usize>, direction: Direction) -> (Vec<u8>, String) {
        let pieces: Vec<_> =
            bytes.chunks(piece).map(|piece| Ok::<_, StdError>(Frame::data(Bytes::copy_from_slice(piece)))).collect();
        let body = StreamBody::new(futures::stream::iter(pieces));
        let mut body = LimitedBody::new(body, bytes_max, direction);
        let (mut data, mut end) = (Vec::new(), String::from("end"));
        while let Some(frame) = body.frame().now_or_never().expect("nothing to wait for") {
            match frame.map(Frame::into_data) {
                Ok(Ok(piece)) => data.extend(piece),
                Ok(Err(trailers)) => {
                    let trailers = trailers.into_trailers().unwrap();
                    end = format!("trailers: {}", Status::from_header_map(&trailers).unwrap().message());
                }
                Err(error) => {
                    end = error.downcast_ref::<Status>().map(|status| status.message().to_owned()).unwrap();
                    break;
                }
            }
        }
        (data, end)
    }

    #[test]
    fn a_message_beyond_the_limit_ends_the_body_however_it_is_cut() {
        let good = [message(10), message(0)].concat();
        let all = [good.clone(), message(11), message(3)].concat();
        for piece in [1, 2, 5, 7, 1000] {
            assert_eq!(pass(&all, piece, None, Direction::Send), (all.clone(), "end".to_owned()));
            assert_eq!(pass(&all, piece, Some(11), Direction::Send), (all.clone(), "end".to_owned()));
            let (data, end) = pass(&all, piece, Some(10), Direction::Send);
            assert_eq!(end, "trying to send message larger than max (11 vs. 10)", "{piece}");
            assert!(data.starts_with(&good) && data.len() < good.len() + 5, "{piece}: {}", data.len());
            let (data, end) = pass(&all, piece, Some(10), Direction::Receive);
            assert_eq!(end, "trailers: grpc: received message larger than max (11 vs. 10)", "{piece}");
            assert!(data.starts_with(&good) && data.len() < good.len() + 5, "{piece}: {}", data.len());
        }
    }

    #[test]
    fn an_unlimited_answer_is_passed_as_it_is() {
        let answer = MessageLimits::default().answer(Response::new(Body::new(Full::new(Bytes::from(message(9))))));
        let body = answer.into_body().collect().now_or_never().expect("all there").expect("no error");
        assert_eq!(body.to_bytes(), message(9));
    }
}
