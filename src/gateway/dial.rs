use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rustix::io::Errno;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use super::cause::Cause;
use super::client::ClientRules;
use super::loop_questions::LoopQuestions;
use super::metrics::GatewayMetrics;
use super::routes::Routes;
use super::stream::Stream;
use super::upstream::{Assigned, Upstream};
use super::upstreams::Upstreams;
use crate::config::ListenAddress;
use crate::net::{AddressTime, DialError, Endpoint, TcpDialer, TcpSilence, is_same_socket};

/// Endpoints marked down that are tried when no other is left.
const LAST_RESORT_MAX: usize = 3;
/// Pause while the queue of a unix socket is full, which the kernel does not wait for.
const QUEUE_PAUSE: Duration = Duration::from_millis(5);

/// Makes connections to endpoints.
#[derive(Debug)]
pub(super) struct Dialer {
    pub(super) routes: ArcSwap<Routes>,
    pub(super) metrics: Arc<GatewayMetrics>,
    pub(super) connect_timeout: Duration,
    /// What is asked of clients.
    pub(super) rules: ClientRules,
    /// Where the gateway itself listens: a connection there would come back for ever.
    pub(super) own: ListenAddress,
    pub(super) loops: LoopQuestions,
    /// Held during a check whether any endpoint takes connections.
    pub(super) checking: tokio::sync::Mutex<()>,
}

impl Dialer {
    /// Connects to the endpoint that the balancer chooses of these, or else to the next one that works. None when no endpoint
    /// takes the connection.
    pub(super) async fn dial(&self, upstreams: &Upstreams) -> Option<(Stream, Assigned)> {
        let started = Instant::now();
        let mut tried = Vec::new();
        while let Some(assigned) = upstreams.pick(&tried) {
            match self.try_one(assigned.upstream()).await {
                Ok(stream) => return Some(self.connected(assigned, stream, started)),
                Err(error) if is_our_shortage(&error) => return None,
                Err(_) => tried.push(assigned.upstream().clone()),
            }
        }
        // An endpoint marked down may work again: it is tried before the client is refused.
        let rest = upstreams.last_resort(LAST_RESORT_MAX, &tried);
        let mut attempts: FuturesUnordered<_> =
            rest.into_iter().map(async |assigned| (self.try_one(assigned.upstream()).await, assigned)).collect();
        while let Some((outcome, assigned)) = attempts.next().await {
            if let Ok(stream) = outcome {
                return Some(self.connected(assigned, stream, started));
            }
        }
        None
    }

    /// One attempt, within the connect timeout, look-up included.
    pub(super) async fn try_one(&self, upstream: &Upstream) -> io::Result<Stream> {
        let started = Instant::now();
        let outcome = self.connect(upstream).await;
        match &outcome {
            Ok(_) => {
                upstream.metrics.connect_seconds.observe(started.elapsed().as_secs_f64());
                upstream.took_connection();
            }
            Err(error) if is_our_shortage(error) => {}
            Err(error) => {
                upstream.metrics.connect_failures.inc();
                upstream.mark_down(Cause::of(error), &error.to_string());
            }
        }
        outcome
    }

    /// A connection to the endpoint, within the connect timeout, look-up included. Changes nothing that is known of it.
    pub(super) async fn connect(&self, upstream: &Upstream) -> io::Result<Stream> {
        connect(upstream.endpoint(), self.connect_timeout, &self.own).await
    }

    fn connected(&self, assigned: Assigned, stream: Stream, started: Instant) -> (Stream, Assigned) {
        assigned.upstream().metrics.connected.inc();
        self.metrics.connect_seconds.observe(started.elapsed().as_secs_f64());
        (stream, assigned)
    }
}

/// Whether the attempt failed for lack of a resource of this machine, not because of the endpoint.
fn is_our_shortage(error: &io::Error) -> bool {
    let codes = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    codes.iter().any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

/// Tries the addresses of a name in the order the resolver gives, or those that are known. A name that is an address
/// costs no look-up.
async fn connect(endpoint: &Endpoint, limit: Duration, own: &ListenAddress) -> io::Result<Stream> {
    let too_slow =
        |what| io::Error::new(io::ErrorKind::TimedOut, format!("{what} takes longer than the connect timeout"));
    let itself = || io::Error::new(io::ErrorKind::InvalidInput, "this is the gateway itself");
    if let Some(path) = endpoint.socket() {
        if is_own_socket(path, own) {
            return Err(itself());
        }
        return timeout(limit, connect_unix(path)).await.unwrap_or_else(|_| Err(too_slow("connection")));
    }
    let dialer = TcpDialer { silence: TcpSilence::MEMBER, address_time: AddressTime::Shared(limit), from: None };
    let check = |address| match own {
        ListenAddress::Tcp(own) if is_own(address, *own) => Err(itself()),
        _ => Ok(()),
    };
    let connected = dialer.connect_endpoint_where(endpoint, 0, check).await.map_err(|error| match error {
        DialError::Io(error) => error,
        DialError::NoAddress => io::Error::new(io::ErrorKind::NotFound, error),
        DialError::LookupTimeout => too_slow("look-up"),
        DialError::Timeout => too_slow("connection"),
    });
    connected.map(Stream::Tcp)
}

/// Waits for a place in the queue of the socket; the caller bounds the time.
async fn connect_unix(path: &Path) -> io::Result<Stream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(QUEUE_PAUSE).await,
            connected => return connected.map(Stream::Unix),
        }
    }
}

fn is_own_socket(path: &Path, own: &ListenAddress) -> bool {
    matches!(own, ListenAddress::Unix(own) if is_same_socket(path, own))
}

/// Whether a connection to `address` would arrive at a listener on `own`.
fn is_own(address: SocketAddr, own: SocketAddr) -> bool {
    let (ip, own_ip) = (address.ip().to_canonical(), own.ip().to_canonical());
    if address.port() != own.port() {
        return false;
    }
    ip == own_ip || ip.is_unspecified() || (own_ip.is_unspecified() && is_local(address))
}

/// Only an address of this machine can be bound.
fn is_local(address: SocketAddr) -> bool {
    UdpSocket::bind(SocketAddr::new(address.ip(), 0)).is_ok()
}

/// Whether the endpoint is the gateway itself, by what its name resolves to now.
pub(super) async fn leads_back(endpoint: &Endpoint, own: &ListenAddress, limit: Duration) -> bool {
    let own = match (endpoint.socket(), own) {
        (Some(path), own) => return is_own_socket(path, own),
        (None, ListenAddress::Tcp(own)) if own.port() == endpoint.port() => *own,
        (None, _) => return false,
    };
    if let Ok(address) = endpoint.host().parse() {
        return is_own(SocketAddr::new(address, endpoint.port()), own);
    }
    match timeout(limit, tokio::net::lookup_host((endpoint.host(), endpoint.port()))).await {
        Ok(Ok(mut addresses)) => addresses.any(|address| is_own(address, own)),
        // A name that does not resolve now is looked up again when it is dialled, and so is this question.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateways_own_address_is_recognised() {
        let check = |address: &str, own: &str| is_own(address.parse().unwrap(), own.parse().unwrap());
        assert!(check("127.0.0.1:1", "127.0.0.1:1"));
        assert!(check("127.0.0.1:1", "0.0.0.0:1"));
        assert!(check("127.0.0.2:1", "0.0.0.0:1"));
        assert!(check("0.0.0.0:1", "127.0.0.1:1"));
        assert!(check("[::ffff:127.0.0.1]:1", "127.0.0.1:1"));
        assert!(!check("127.0.0.1:2", "127.0.0.1:1"));
        assert!(!check("127.0.0.2:1", "127.0.0.1:1"));
        assert!(!check("192.0.2.1:1", "0.0.0.0:1"));
    }
}
