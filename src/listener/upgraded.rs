use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::{Parts, downcast};
use tokio::net::TcpStream;

use super::counted::{Counted, OpenConnection};
use super::paced::Paced;
use super::pings::PingPolicy;
use crate::net::Batched;

/// The socket of a connection that HTTP has handed over, what counts it, and what was read of it already, so that another
/// runtime can serve it.
///
/// # Errors
/// The connection, if it is not plain TCP.
pub fn plain_tcp(upgraded: Upgraded) -> Result<(TcpStream, OpenConnection, Bytes), Upgraded> {
    type Served = TokioIo<Batched<Paced<PingPolicy<Counted<TcpStream>>>>>;
    let Parts { io, read_buf, .. } = downcast::<Served>(upgraded)?;
    let io = io.into_inner().into_inner().expect("only this takes it out");
    let (stream, open) = io.into_inner().into_inner().into_parts();
    Ok((stream, open, read_buf))
}

/// A connection in what the listener puts around it, for tests that serve one themselves.
#[cfg(test)]
pub(crate) fn as_served(stream: TcpStream) -> impl hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static {
    let open = OpenConnection::counted_in(std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(1)));
    TokioIo::new(crate::net::batched(Paced::new(PingPolicy::new(Counted::new(stream, open), None))).0)
}
