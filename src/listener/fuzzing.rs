//! For fuzz targets only: what watches the frames of a connection, without the connection.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::codegen::StdError;

use super::arriving::Arriving;
use super::connection_info::{Accepted, ConnectionInfo};
use super::frames::Frames;
use super::paced::Paced;
use super::pings::PingPolicy;

/// Kind, flags and stream of every frame whose head has come, in pieces of `step` bytes, and how many bytes must come before
/// another frame may.
pub fn frames(bytes: &[u8], step: usize) -> (Vec<(u8, u8, u32)>, usize) {
    let (mut frames, mut heads) = (Frames::default(), Vec::new());
    for piece in bytes.chunks(step.max(1)) {
        frames.walk(piece, |head| heads.push((head.kind, head.flags, head.stream)));
    }
    (heads, frames.unfinished())
}

/// The stream of a connection as a listener reads it: paced, and ended for too many pings.
pub fn watched(io: impl AsyncRead + AsyncWrite + Unpin, min_time: Duration) -> impl AsyncRead + AsyncWrite + Unpin {
    Paced::new(PingPolicy::new(io, Some(min_time)))
}

/// What a request body of these chunks hands on, and the bytes that are still counted once all of it is read.
pub async fn arrived<B>(body: B, message_bytes_max: usize) -> (Vec<Bytes>, usize)
where
    B: Body<Data = Bytes, Error = StdError> + Unpin,
{
    let all = Arc::new(AtomicUsize::new(0));
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let accepted = Accepted { listener: 0, local: address, peer: address };
    let connection = Arc::new(ConnectionInfo::new(accepted, None, all.clone(), Arc::default()));
    let mut body = Arriving::messages(body, Some(connection), message_bytes_max);
    let mut chunks = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        chunks.extend(frame.into_data().ok());
    }
    drop(body);
    (chunks, all.load(std::sync::atomic::Ordering::Relaxed))
}
