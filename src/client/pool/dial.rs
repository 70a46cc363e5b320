use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::client::Endpoint;

/// Time for one address of a name that has several.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(1);
/// Quiet time before the kernel asks whether the other host is there; three questions without an answer end the
/// connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_PAUSE: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// How long sent bytes may stay without an acknowledgement: keep-alive does not run over them, and the kernel alone
/// would go on for a quarter of an hour.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(20);

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
                match connected.and_then(prepared) {
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

/// Sets what keeps a connection from outliving the host at its other end.
fn prepared(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE);
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    let keepalive = keepalive.with_interval(KEEPALIVE_PAUSE).with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections had neither, so one whose host vanished lived for a quarter of an hour.
    #[tokio::test]
    async fn the_kernel_looks_after_every_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = prepared(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap()).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED_MAX));
    }
}
