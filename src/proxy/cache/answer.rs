use std::pin::Pin;
use std::task::{Context, Poll};
use std::vec;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use tonic::Status;
use tonic::body::Body;

use super::range::Found;
use crate::pb::encoded::{RangeResponse, RangeStreamResponse, ResponseHeader};
use crate::pb::frame::{PREFIX_BYTES, Prefix, framed};

/// Bytes handed to HTTP/2 at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// Tag of a pair, and the longest length behind it.
const PAIR_HEAD_BYTES_MAX: usize = 11;
const KVS_FIELD: u32 = 2;
/// Largest answer, a member's own limit.
const ANSWER_BYTES_MAX: usize = i32::MAX as usize;

/// The answer to a range, status OK; none when it is larger than an answer may be.
///
/// Its pairs are shared with the replica and copied as the client takes them.
pub(super) fn range_answer(header: ResponseHeader, found: Found) -> Option<Response<Body>> {
    let head = RangeResponse { header: Some(header), ..Default::default() };
    let tail = RangeResponse { more: found.more, count: found.count, ..Default::default() };
    let pairs: usize = found.kvs.iter().map(|kv| 1 + encoded_len_varint(kv.len() as u64) + kv.len()).sum();
    let length = head.encoded_len() + pairs + tail.encoded_len();
    if length > ANSWER_BYTES_MAX {
        return None;
    }
    let mut begun = BytesMut::with_capacity((PREFIX_BYTES + length).min(CHUNK_BYTES + PAIR_HEAD_BYTES_MAX));
    begun.put_slice(&Prefix::plain(length));
    head.encode_raw(&mut begun);
    let state = State::Message { begun, kvs: found.kvs.into_iter(), unwritten: Bytes::new(), tail };
    Some(successful(AnswerBody { state, bytes_left: (PREFIX_BYTES + length) as u64 }))
}

/// The answer to a range as `RangeStream` gives it: messages of pairs, the last of which alone has header, `more` and `count`.
pub(super) fn stream_answer(header: ResponseHeader, found: Found) -> Response<Body> {
    let last = RangeResponse { header: Some(header), kvs: Vec::new(), more: found.more, count: found.count };
    successful(StreamBody { kvs: found.kvs.into_iter(), last: Some(last), over: false })
}

fn successful(body: impl HttpBody<Data = Bytes, Error = Status> + Send + 'static) -> Response<Body> {
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// The trailers of a call that succeeded.
fn status_ok() -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    Frame::trailers(trailers)
}

/// Messages with pairs, then the status. A message is made when the client takes it, and ends with the pair that fills it.
struct StreamBody {
    kvs: vec::IntoIter<Bytes>,
    /// What the last message has besides pairs, until it was given.
    last: Option<RangeResponse>,
    over: bool,
}

impl HttpBody for StreamBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(last) = self.last.take() else {
            let ended = std::mem::replace(&mut self.over, true);
            return Poll::Ready((!ended).then(|| Ok(status_ok())));
        };
        let (mut kvs, mut bytes) = (Vec::new(), 0);
        while bytes < CHUNK_BYTES
            && let Some(kv) = self.kvs.next()
        {
            bytes += kv.len();
            kvs.push(kv);
        }
        let range = if self.kvs.len() == 0 {
            RangeResponse { kvs, ..last }
        } else {
            self.last = Some(last);
            RangeResponse { kvs, ..RangeResponse::default() }
        };
        let message = RangeStreamResponse { range_response: Some(range) };
        Poll::Ready(Some(Ok(Frame::data(framed(&message)))))
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }
}

/// One message, then the status.
struct AnswerBody {
    state: State,
    bytes_left: u64,
}

enum State {
    Message {
        /// Bytes of the next chunk.
        begun: BytesMut,
        kvs: vec::IntoIter<Bytes>,
        /// Rest of a pair that did not fit.
        unwritten: Bytes,
        tail: RangeResponse,
    },
    Trailers,
    Over,
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let frame = match &mut this.state {
            State::Message { begun, kvs, unwritten, tail } => {
                let (chunk, done) = next_chunk(begun, kvs, unwritten, tail);
                this.bytes_left = this.bytes_left.saturating_sub(chunk.len() as u64);
                if done {
                    this.state = State::Trailers;
                }
                Frame::data(chunk)
            }
            State::Trailers => {
                this.state = State::Over;
                status_ok()
            }
            State::Over => return Poll::Ready(None),
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Over)
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = SizeHint::new();
        hint.set_lower(self.bytes_left);
        hint
    }
}

/// The next bytes of the message; true when they are the last.
fn next_chunk(
    begun: &mut BytesMut,
    kvs: &mut vec::IntoIter<Bytes>,
    unwritten: &mut Bytes,
    tail: &RangeResponse,
) -> (Bytes, bool) {
    loop {
        let room = CHUNK_BYTES.saturating_sub(begun.len());
        if unwritten.len() >= CHUNK_BYTES && begun.is_empty() {
            return (unwritten.split_to(CHUNK_BYTES), false);
        }
        begun.put_slice(&unwritten.split_to(room.min(unwritten.len())));
        if begun.len() >= CHUNK_BYTES {
            return (begun.split().freeze(), false);
        }
        let Some(kv) = kvs.next() else {
            tail.encode_raw(begun);
            return (begun.split().freeze(), true);
        };
        encode_key(KVS_FIELD, WireType::LengthDelimited, begun);
        encode_varint(kv.len() as u64, begun);
        *unwritten = kv;
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn the_chunks_are_the_encoding() {
        for lengths in [vec![], vec![0], vec![3, 200, 0, 70_000], vec![1000; 300], vec![CHUNK_BYTES; 3], vec![500_000]]
        {
            let kvs: Vec<Bytes> = lengths.iter().map(|&length| Bytes::from(vec![b'v'; length])).collect();
            let header = ResponseHeader { cluster_id: 5, member_id: u64::MAX, revision: 300, raft_term: 2 };
            let whole = RangeResponse { header: Some(header), kvs: kvs.clone(), more: true, count: 70 };
            let answer = range_answer(header, Found { kvs, more: true, count: 70, held_bytes: 0 }).unwrap();
            let body = answer.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
            let expected = crate::client::framed(&whole);
            assert!(body.to_bytes() == expected, "{lengths:?}");
        }
    }

    #[tokio::test]
    async fn the_messages_of_a_stream_are_the_answer_in_parts() {
        for (lengths, messages) in
            [(vec![], 1), (vec![7], 1), (vec![1000; 300], 5), (vec![CHUNK_BYTES; 3], 3), (vec![9, 500_000, 9], 2)]
        {
            let kvs: Vec<Bytes> = lengths.iter().map(|&length| Bytes::from(vec![b'v'; length])).collect();
            let header = ResponseHeader { cluster_id: 5, member_id: u64::MAX, revision: 300, raft_term: 2 };
            let answer = stream_answer(header, Found { kvs: kvs.clone(), more: true, count: 70, held_bytes: 0 });
            let body = answer.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
            let (body, mut at, mut parts) = (body.to_bytes(), 0, Vec::new());
            while at < body.len() {
                let (prefix, rest) = Prefix::split(&body[at..]).unwrap();
                parts.push(RangeStreamResponse::decode(&rest[..prefix.length]).unwrap().range_response.unwrap());
                at += PREFIX_BYTES + prefix.length;
            }
            assert_eq!(parts.len(), messages, "{lengths:?}");
            let last = parts.pop().unwrap();
            assert!(parts.iter().all(|part| part.header.is_none() && !part.more && part.count == 0));
            assert_eq!((last.header, last.more, last.count), (Some(header), true, 70));
            let sent: Vec<_> = parts.into_iter().flat_map(|part| part.kvs).chain(last.kvs).collect();
            assert!(sent == kvs, "{lengths:?}");
        }
    }
}
