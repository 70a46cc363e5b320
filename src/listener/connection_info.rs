use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use http::Extensions;
use parking_lot::Mutex;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::unfinished::UnfinishedBytes;
use super::unsent::UnsentBytes;
use crate::net::TlsPeer;

/// The connection that a request came on; in the extensions of each of its requests, in an [`Arc`].
#[derive(Debug)]
pub struct ConnectionInfo {
    /// Which listener accepted it, by its index in the list that [`serve`](super::serve) was given.
    pub listener: usize,
    /// The address the client connected to; `0.0.0.0:0` on a unix socket.
    pub local: SocketAddr,
    /// The address of the client; `0.0.0.0:0` on a unix socket.
    pub peer: SocketAddr,
    /// Whether TLS is spoken on it.
    tls: bool,
    /// The client's certificate, then those between it and the authority; verified. Empty when it was not asked for one.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The common name of the first of them.
    pub common_name: Option<Box<str>>,
    /// The server name the client asked for in the TLS handshake.
    pub sni: Option<Box<str>>,
    /// Of requests that have not come whole.
    pub(super) unfinished: UnfinishedBytes,
    /// Of answers.
    pub(super) unsent: UnsentBytes,
    values: Mutex<Extensions>,
}

impl ConnectionInfo {
    /// The counts are those of all connections: bytes of unfinished requests, and of answers.
    pub(super) fn new(
        accepted: Accepted,
        peer_tls: Option<TlsPeer>,
        unfinished_of_all: Arc<AtomicUsize>,
        unsent_of_all: Arc<AtomicUsize>,
    ) -> Self {
        let Accepted { listener, local, peer } = accepted;
        let tls = peer_tls.is_some();
        let TlsPeer { certificates, common_name, sni } = peer_tls.unwrap_or_default();
        let (unfinished, unsent) = (UnfinishedBytes::new(unfinished_of_all), UnsentBytes::new(unsent_of_all));
        let values = Mutex::default();
        Self { listener, local, peer, tls, certificates, common_name, sni, unfinished, unsent, values }
    }

    /// Whether TLS is spoken on it.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// What a service keeps for as long as the connection lives: the value of this type, made when it is first asked for.
    pub fn value<T: Clone + Default + Send + Sync + 'static>(&self) -> T {
        self.values.lock().get_or_insert_default::<T>().clone()
    }
}

#[cfg(test)]
impl ConnectionInfo {
    /// A connection of a test, with the counts of [`new`](Self::new).
    pub(super) fn of_test(unfinished_of_all: Arc<AtomicUsize>, unsent_of_all: Arc<AtomicUsize>) -> Arc<Self> {
        let address = "127.0.0.1:1".parse().expect("an address");
        let accepted = Accepted { listener: 0, local: address, peer: address };
        Arc::new(Self::new(accepted, None, unfinished_of_all, unsent_of_all))
    }
}

/// What the accept loop knows of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accepted {
    pub(super) listener: usize,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
}
