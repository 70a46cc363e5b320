use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::client::{HEADER_BYTES_MAX, Seen, peek_header, peek_wrapped_header};

/// Bytes of a message that are kept until its header is read, and those of the frame before it.
const FRAME_BYTES: usize = 5;

/// Notes the revision of every message of an answer before the client gets it.
pub(super) fn noted(answer: Response<Body>, wrapped: bool, seen: Seen) -> Response<Body> {
    answer.map(|body| Body::new(NotedBody { body, messages: Messages { wrapped, ..Messages::default() }, seen }))
}

struct NotedBody {
    body: Body,
    messages: Messages,
    seen: Seen,
}

impl HttpBody for NotedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let Self { messages, seen, .. } = &mut *self;
            messages.read(data, seen);
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

/// Finds the messages in the bytes of an answer, however they are cut.
#[derive(Debug, Default)]
struct Messages {
    /// Whether the header is one message deeper.
    wrapped: bool,
    /// Frame and beginning of the current message.
    head: Vec<u8>,
    /// Bytes that are left of the current message once its head was read.
    rest: usize,
}

impl Messages {
    fn read(&mut self, mut data: &[u8], seen: &Seen) {
        while !data.is_empty() {
            let skipped = self.rest.min(data.len());
            self.rest -= skipped;
            data = &data[skipped..];
            let length = self.length();
            let wanted = FRAME_BYTES + length.unwrap_or_default().min(HEADER_BYTES_MAX);
            let (taken, left) = data.split_at(data.len().min(wanted - self.head.len()));
            self.head.extend_from_slice(taken);
            data = left;
            if let Some(length) = self.length()
                && self.head.len() == FRAME_BYTES + length.min(HEADER_BYTES_MAX)
            {
                self.rest = length - length.min(HEADER_BYTES_MAX);
                // A compressed message is not looked into.
                let peek = if self.wrapped { peek_wrapped_header } else { peek_header };
                if let Some(header) =
                    peek(&self.head[FRAME_BYTES..]).filter(|header| self.head[0] == 0 && header.revision > 0)
                {
                    seen.show(header);
                }
                self.head.clear();
            }
        }
    }

    fn length(&self) -> Option<usize> {
        let frame = self.head.first_chunk::<FRAME_BYTES>()?;
        Some(u32::from_be_bytes([frame[1], frame[2], frame[3], frame[4]]) as usize)
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
            let (mut messages, seen) = (Messages::default(), Seen::default());
            for piece in bytes.chunks(size) {
                messages.read(piece, &seen);
            }
            assert!(messages.head.is_empty() && messages.rest == 0, "{size}");
            let shown = format!("{seen:?}");
            let expected = Seen::default();
            expected.show(PeekedHeader { cluster_id: 7, revision: 9 });
            assert_eq!(shown, format!("{expected:?}"), "{size}");
        }
    }

    #[test]
    fn the_header_of_a_range_stream_is_one_message_deeper() {
        let range = RangeResponse { header: header(4), ..Default::default() };
        let (mut messages, seen) = (Messages { wrapped: true, ..Messages::default() }, Seen::default());
        messages.read(&framed(&RangeStreamResponse { range_response: Some(range) }), &seen);
        assert!(format!("{seen:?}").contains("revision: 4"));
    }
}
