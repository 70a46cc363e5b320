use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::client::Endpoint;
use crate::net::TcpSilence;

/// Time for one address of a name that has several.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(1);
/// Shorter than between gateway and member: a connection that carries calls of many is given up sooner.
const SILENCE: TcpSilence = TcpSilence {
    probe_after: Duration::from_secs(10),
    probe_every: Duration::from_secs(5),
    max: Duration::from_secs(20),
};

/// A byte stream in both directions.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Opens byte streams to endpoints. A name is resolved again for each of them.
pub(crate) trait Dialer: fmt::Debug + Send + Sync {
    /// The caller bounds the time.
    fn dial<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Io>>>;
}

/// TCP to what the system's resolver says.
#[derive(Debug, Default)]
pub(super) struct TcpDialer {
    dials: AtomicUsize,
}

impl Dialer for TcpDialer {
    fn dial<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
        async move {
            let mut addresses: Vec<_> = tokio::net::lookup_host((endpoint.host(), endpoint.port())).await?.collect();
            // Each attempt begins at another address, so that one that leads nowhere does not keep the name from use.
            let first = self.dials.fetch_add(1, Ordering::Relaxed) % addresses.len().max(1);
            addresses.rotate_left(first);
            let alone = addresses.len() == 1;
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for address in addresses {
                let connect = TcpStream::connect(address);
                let connected = match alone {
                    true => connect.await,
                    false => tokio::time::timeout(ADDRESS_TIMEOUT, connect).await.unwrap_or_else(|_| Err(timed_out())),
                };
                match connected.and_then(|stream| SILENCE.prepare(&stream).map(|()| stream)) {
                    Ok(stream) => return Ok(Box::new(stream) as Box<dyn Io>),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
        .boxed()
    }
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "connect timed out")
}
