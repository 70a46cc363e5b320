use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::client::{HEADER_BYTES_MAX, Seen, peek_header, peek_wrapped_header};
use crate::pb::frame::{Messages, Part};

/// Notes the revision of every message of an answer before the client gets it.
pub(super) fn track_revisions(answer: Response<Body>, wrapped: bool, seen: Seen) -> Response<Body> {
    answer.map(|body| Body::new(TrackedBody { body, headers: Headers { wrapped, ..Headers::default() }, seen }))
}

struct TrackedBody {
    body: Body,
    headers: Headers,
    seen: Seen,
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let Self { headers, seen, .. } = &mut *self;
            headers.read(data, seen);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Reads the header of each message in the bytes of an answer, however they are cut.
#[derive(Debug, Default)]
struct Headers {
    /// Whether the header is one message deeper.
    wrapped: bool,
    messages: Messages,
    /// Beginning of the current message.
    head: Vec<u8>,
    /// Bytes of the current message that surely hold its header; zero once it was read.
    wanted: usize,
}

impl Headers {
    fn read(&mut self, mut data: &[u8], seen: &Seen) {
        while !data.is_empty() {
            let (taken, part) = self.messages.next(data);
            match part {
                Part::Prefix => {}
                // A compressed message is not looked into.
                Part::Begin(prefix) => {
                    self.wanted = if prefix.is_plain() { prefix.length.min(HEADER_BYTES_MAX) } else { 0 };
                }
                Part::Message if self.wanted > 0 => {
                    self.head.extend_from_slice(&data[..taken.min(self.wanted - self.head.len())]);
                    if self.head.len() == self.wanted {
                        let peek = if self.wrapped { peek_wrapped_header } else { peek_header };
                        if let Some(header) = peek(&self.head).filter(|header| header.revision > 0) {
                            seen.show(header);
                        }
                        self.head.clear();
                        self.wanted = 0;
                    }
                }
                Part::Message => {}
            }
            data = &data[taken..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{PeekedHeader, framed};
    use crate::pb::etcdserverpb::{PutResponse, RangeResponse, RangeStreamResponse, ResponseHeader};

    fn header(revision: i64) -> Option<ResponseHeader> {
        Some(ResponseHeader { cluster_id: 7, member_id: u64::MAX, revision, raft_term: 3 })
    }

    #[test]
    fn every_message_counts_however_it_is_cut() {
        let long = RangeResponse { header: header(4), count: 1, kvs: vec![Default::default(); 100], more: true };
        let mut bytes = Vec::new();
        for message in [
            framed(&long),
            framed(&PutResponse::default()),
            framed(&PutResponse { header: header(9), ..Default::default() }),
            framed(&long),
        ] {
            bytes.extend_from_slice(&message);
        }
        for size in [1, 2, 3, 5, 6, 7, 50, 51, 52, 60, 1000] {
            let (mut headers, seen) = (Headers::default(), Seen::default());
            for piece in bytes.chunks(size) {
                headers.read(piece, &seen);
            }
            assert!(headers.head.is_empty() && headers.wanted == 0, "{size}");
            let shown = format!("{seen:?}");
            let expected = Seen::default();
            expected.show(PeekedHeader { cluster_id: 7, revision: 9 });
            assert_eq!(shown, format!("{expected:?}"), "{size}");
        }
    }

    #[test]
    fn the_header_of_a_range_stream_is_one_message_deeper() {
        let range = RangeResponse { header: header(4), ..Default::default() };
        let (mut headers, seen) = (Headers { wrapped: true, ..Headers::default() }, Seen::default());
        headers.read(&framed(&RangeStreamResponse { range_response: Some(range) }), &seen);
        assert!(format!("{seen:?}").contains("revision: 4"));
    }
}
