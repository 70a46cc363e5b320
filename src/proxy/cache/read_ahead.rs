use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;

use crate::pb::frame::Prefix;

/// A request up to this size is looked into.
const LOOKED_BYTES_MAX: usize = 64 * 1024;

/// A request body of which a part was read; it begins with that part.
#[derive(Debug)]
pub(in crate::proxy) struct ReadAhead<B> {
    begun: Bytes,
    /// None once it has ended.
    rest: Option<B>,
}

impl<B> ReadAhead<B> {
    /// The one message of the body, if it is that and nothing else, and not compressed.
    pub fn message(&self) -> Option<Bytes> {
        let (prefix, message) = Prefix::split(&self.begun)?;
        let whole = self.rest.is_none() && prefix.is_plain() && prefix.length == message.len();
        whole.then(|| self.begun.slice_ref(message))
    }
}

impl<B> ReadAhead<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    /// Reads to the end of the body, or as much of it as is looked into.
    ///
    /// # Errors
    /// Those of the body.
    pub async fn read(mut body: B) -> Result<Self, B::Error> {
        let (mut first, mut joined) = (Bytes::new(), BytesMut::new());
        while let Some(frame) = body.frame().await {
            // Trailers of a request have no meaning in gRPC.
            let Ok(data) = frame?.into_data() else { continue };
            if first.is_empty() && joined.is_empty() {
                first = data;
            } else {
                joined.extend_from_slice(&std::mem::take(&mut first));
                joined.extend_from_slice(&data);
            }
            if first.len().max(joined.len()) > LOOKED_BYTES_MAX {
                return Ok(Self { begun: if joined.is_empty() { first } else { joined.freeze() }, rest: Some(body) });
            }
        }
        Ok(Self { begun: if joined.is_empty() { first } else { joined.freeze() }, rest: None })
    }
}

impl<B> HttpBody for ReadAhead<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if !this.begun.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.begun)))));
        }
        match &mut this.rest {
            Some(rest) => Pin::new(rest).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.begun.is_empty() && self.rest.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.rest {
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(self.begun.len() as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::stream;
    use http_body_util::StreamBody;

    use super::*;

    async fn read(chunks: &[&'static [u8]]) -> ReadAhead<impl HttpBody<Data = Bytes, Error = Infallible> + Unpin> {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Frame::data(Bytes::from_static(chunk)))).collect();
        ReadAhead::read(StreamBody::new(stream::iter(chunks))).await.unwrap()
    }

    #[tokio::test]
    async fn one_message_is_found_and_every_byte_passes_on() {
        static LONG: [u8; LOOKED_BYTES_MAX + 1] = [7; LOOKED_BYTES_MAX + 1];
        type Case = (&'static [&'static [u8]], Option<&'static [u8]>);
        static CASES: [Case; 10] = [
            (&[b"\0\0\0\0\x02ab"], Some(b"ab")),
            (&[b"\0\0\0", b"\0\x02a", b"b"], Some(b"ab")),
            (&[b"\0\0\0\0\0"], Some(b"")),
            (&[b"\x01\0\0\0\x02ab"], None),
            (&[b"\0\0\0\0\x02abc"], None),
            (&[b"\0\0\0\0\x03ab"], None),
            (&[b"\0\0"], None),
            (&[], None),
            (&[&LONG, b"rest"], None),
            (&[b"a", &LONG, b"rest"], None),
        ];
        for (chunks, message) in CASES {
            let body = read(chunks).await;
            assert_eq!(body.message().as_deref(), message);
            assert_eq!(body.collect().await.unwrap().to_bytes(), chunks.concat());
        }
    }
}
