use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::client::Endpoint;
use crate::net::{AddressTime, ByteStream, TcpDialer, TcpSilence};

const TCP: TcpDialer = TcpDialer {
    // Shorter than between gateway and member: a connection that carries calls of many is given up sooner.
    silence: TcpSilence {
        probe_after: Duration::from_secs(10),
        probe_every: Duration::from_secs(5),
        max: Duration::from_secs(20),
    },
    address_time: AddressTime::Each(Duration::from_secs(1)),
    from: None,
};

/// Opens byte streams to endpoints, without TLS; tests put failures in.
pub(crate) trait Dialer: fmt::Debug + Send + Sync {
    /// The caller bounds the time.
    fn dial<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn ByteStream>>>;
}

/// TCP to the addresses that the system's resolver gives, or unix sockets.
#[derive(Debug, Default)]
pub(super) struct TcpDials(AtomicUsize);

impl Dialer for TcpDials {
    fn dial<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn ByteStream>>> {
        // Each attempt begins at another address, so that one that leads nowhere does not keep the name from use.
        let first = self.0.fetch_add(1, Ordering::Relaxed);
        async move { TCP.connect_endpoint(endpoint, first).await.map_err(io::Error::other) }.boxed()
    }
}
