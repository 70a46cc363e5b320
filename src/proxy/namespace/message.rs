use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use tonic::Status;
use tonic::codec::{CompressionEncoding, DecodeBuf, Decoder, Streaming};

pub(in crate::proxy) use crate::pb::frame::PREFIX_BYTES;
use crate::pb::frame::Prefix;

const PLAIN: u8 = 0;
const COMPRESSED: u8 = 1;

/// Reads the body of a call that has one request message, and returns that message, uncompressed, with its prefix.
///
/// A gRPC library reads the first frame of such a body and ignores the rest, another one may read it differently: only a
/// body that is exactly one frame is read alike by all, so anything else is refused.
///
/// # Errors
/// With code and text of etcd's gRPC library.
pub(in crate::proxy) async fn one_message<B>(headers: &HeaderMap, body: B, bytes_max: usize) -> Result<Bytes, Status>
where
    B: HttpBody<Data: Send, Error: Into<tonic::codegen::StdError>>,
{
    let encoding = match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
        None | Some(b"identity") => None,
        Some(b"gzip") => Some(CompressionEncoding::Gzip),
        Some(other) => return Err(no_decompressor(other)),
    };
    let body = Limited::new(body, PREFIX_BYTES + bytes_max).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            Status::resource_exhausted(format!("grpc: received message larger than max ({bytes_max})"))
        } else {
            Status::from_error(error)
        }
    })?;
    // Trailers of a request have no meaning in gRPC; they end here.
    let frame = body.to_bytes();
    let flag = checked(&frame)?;
    match (flag, encoding) {
        (PLAIN, _) => Ok(frame),
        (COMPRESSED, None) => Err(Status::internal("grpc: compressed flag set with identity or empty encoding")),
        (COMPRESSED, Some(_)) => uncompressed(frame, encoding, bytes_max).await,
        (other, _) => Err(Status::internal(format!("grpc: received unexpected payload format {other}"))),
    }
}

/// The refusal of messages in an encoding that the proxy does not read.
pub(in crate::proxy) fn no_decompressor(encoding: &[u8]) -> Status {
    let name = String::from_utf8_lossy(encoding);
    Status::unimplemented(format!("grpc: Decompressor is not installed for grpc-encoding {name:?}"))
}

/// The flag of a body that is one whole frame and nothing else.
fn checked(body: &[u8]) -> Result<u8, Status> {
    if body.is_empty() {
        return Err(Status::internal(
            "cardinality violation: received no request message from non-client-streaming RPC",
        ));
    }
    let cut_short = || Status::internal("unexpected EOF");
    let (prefix, message) = Prefix::split(body).ok_or_else(cut_short)?;
    match message.len().cmp(&prefix.length) {
        std::cmp::Ordering::Less => Err(cut_short()),
        std::cmp::Ordering::Equal => Ok(prefix.flag),
        std::cmp::Ordering::Greater => Err(Status::internal(
            "cardinality violation: received multiple request messages for non-client-streaming RPC",
        )),
    }
}

async fn uncompressed(frame: Bytes, encoding: Option<CompressionEncoding>, bytes_max: usize) -> Result<Bytes, Status> {
    let mut messages = Streaming::new_request(Whole, Full::new(frame), encoding, Some(bytes_max));
    let message = messages.message().await?;
    message.ok_or_else(|| Status::internal("grpc: failed to decompress the received message"))
}

/// "Decodes" a message to itself, with the prefix of an uncompressed one.
struct Whole;

impl Decoder for Whole {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = message.remaining();
        let mut out = BytesMut::with_capacity(PREFIX_BYTES + length);
        out.put_slice(&Prefix::plain(length));
        out.put(message);
        Ok(Some(out.freeze()))
    }
}
