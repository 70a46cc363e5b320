use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use super::cause::Cause;
use super::client::ClientRules;
use super::loop_questions::LoopQuestions;
use super::metrics::GatewayMetrics;
use super::routes::Routes;
use super::shortage::Shortage;
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
        let attempt = |assigned: Assigned| async move { (self.try_one(assigned.upstream()).await, assigned) };
        let (stream, assigned) = first_taken(upstreams, attempt).await?;
        assigned.upstream().metrics.connected.inc();
        self.metrics.connect_seconds.observe(started.elapsed().as_secs_f64());
        Some((stream, assigned))
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
            Err(error) => note_failure(upstream, error),
        }
        outcome
    }

    /// A connection to the endpoint, within the connect timeout, look-up included. Changes nothing that is known of it.
    pub(super) async fn connect(&self, upstream: &Upstream) -> io::Result<Stream> {
        connect(upstream.endpoint(), self.connect_timeout, &self.own).await
    }
}

/// The first attempt that succeeds: at the endpoints that the balancer chooses, one after the other, then at some that are down.
async fn first_taken<S, F: Future<Output = (io::Result<S>, Assigned)>>(
    upstreams: &Upstreams,
    attempt: impl Fn(Assigned) -> F,
) -> Option<(S, Assigned)> {
    let mut tried = Vec::new();
    while let Some(assigned) = upstreams.pick(&tried) {
        match attempt(assigned).await {
            (Ok(stream), assigned) => return Some((stream, assigned)),
            (Err(error), _) if Shortage::of(&error) == Some(Shortage::General) => return None,
            (Err(_), assigned) => tried.push(assigned.upstream().clone()),
        }
    }
    // An endpoint marked down may work again: it is tried before the client is refused.
    let rest = upstreams.last_resort(LAST_RESORT_MAX, &tried);
    let mut attempts: FuturesUnordered<F> = rest.into_iter().map(attempt).collect();
    while let Some((outcome, assigned)) = attempts.next().await {
        if let Ok(stream) = outcome {
            return Some((stream, assigned));
        }
    }
    None
}

/// A shortage on this side does not count against the endpoint.
fn note_failure(upstream: &Upstream, error: &io::Error) {
    if Shortage::of(error).is_none() {
        upstream.metrics.connect_failures.inc();
        upstream.mark_down(Cause::of(error), &error.to_string());
    }
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
        ListenAddress::Tcp(own) if is_own(address, *own)? => Err(itself()),
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
///
/// # Errors
/// A shortage, which leaves it open.
fn is_own(address: SocketAddr, own: SocketAddr) -> io::Result<bool> {
    let (ip, own_ip) = (address.ip().to_canonical(), own.ip().to_canonical());
    if address.port() != own.port() {
        return Ok(false);
    }
    if ip == own_ip || ip.is_unspecified() {
        return Ok(true);
    }
    if !own_ip.is_unspecified() {
        return Ok(false);
    }
    let bind = |ip: IpAddr| UdpSocket::bind(SocketAddr::new(ip, 0)).map(drop);
    is_local(ip, bind, |ip| TcpDialer::source_towards(SocketAddr::new(ip, address.port())))
}

/// Whether this machine has the address. Only such an address can be bound, unless the system allows any other, too (`ip_nonlocal_bind`): then
/// it has to be the one from which this machine reaches it.
///
/// # Errors
/// A shortage, which leaves it open.
fn is_local(
    ip: IpAddr,
    bind: impl Fn(IpAddr) -> io::Result<()>,
    source_towards: impl Fn(IpAddr) -> io::Result<IpAddr>,
) -> io::Result<bool> {
    let can_bind = |ip| known(bind(ip)).map(|bound| bound.is_some());
    if !can_bind(ip)? {
        return Ok(false);
    }
    if ip.is_loopback() || !can_bind(foreign(ip))? {
        return Ok(true);
    }
    Ok(known(source_towards(ip))? == Some(ip))
}

/// An address of the same family that this machine does not have: it is for documentation.
fn foreign(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::new(203, 0, 113, 77).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77).into(),
    }
}

/// None for an error that is an answer.
fn known<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if Shortage::of(&error) == Some(Shortage::General) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Whether the endpoint is the gateway itself, by what its name resolves to now.
pub(super) async fn leads_back(endpoint: &Endpoint, own: &ListenAddress, limit: Duration) -> bool {
    let own = match (endpoint.socket(), own) {
        (Some(path), own) => return is_own_socket(path, own),
        (None, ListenAddress::Tcp(own)) if own.port() == endpoint.port() => *own,
        (None, _) => return false,
    };
    // What is not known now is asked again when the endpoint is dialled.
    let is_own = |address| is_own(address, own).unwrap_or(false);
    if let Ok(address) = endpoint.host().parse() {
        return is_own(SocketAddr::new(address, endpoint.port()));
    }
    match timeout(limit, tokio::net::lookup_host((endpoint.host(), endpoint.port()))).await {
        Ok(Ok(mut addresses)) => addresses.any(is_own),
        // A name that does not resolve now is looked up again when it is dialled, and so is this question.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::super::balance::Division;
    use super::*;
    use crate::config::Balance;
    use crate::discovery::ListedEndpoint;
    use crate::telemetry::Metrics;

    /// Endpoints `a`, `b` … in turn.
    fn upstreams(count: u8) -> Upstreams {
        let division = Division {
            balance: Balance::RoundRobin,
            slow_start: Duration::ZERO,
            closes_when_down: false,
            checked: false,
        };
        let metrics = Arc::new(GatewayMetrics::register(&Metrics::new()));
        let upstreams = Upstreams::new(division, fastrand::Rng::with_seed(1), metrics);
        let endpoint = |at| ListedEndpoint::new(format!("{}:1", char::from(b'a' + at)).parse::<Endpoint>().unwrap());
        upstreams.replace(&(0..count).map(endpoint).collect());
        upstreams
    }

    /// Dials endpoints of which the first fails with this code; tells which one took the connection, and whether the first is up.
    async fn dialled(code: Errno) -> (Option<String>, bool) {
        let upstreams = upstreams(2);
        let taken = first_taken(&upstreams, |assigned: Assigned| async move {
            let upstream = assigned.upstream();
            let outcome = if upstream.endpoint().host() == "a" { Err(code.into()) } else { Ok(()) };
            if let Err(error) = &outcome {
                note_failure(upstream, error);
            }
            (outcome, assigned)
        });
        let taken = taken.await.map(|((), assigned)| assigned.upstream().endpoint().host().to_owned());
        (taken, !upstreams.list()[0].upstream.is_down())
    }

    #[tokio::test]
    async fn a_lack_of_ports_for_one_endpoint_leaves_the_others_and_one_of_descriptors_none() {
        // Cause: EADDRNOTAVAIL ended the attempts, and the client was closed while another endpoint would have taken it.
        let b = || Some("b".to_owned());
        assert_eq!(dialled(Errno::ADDRNOTAVAIL).await, (b(), true));
        assert_eq!(dialled(Errno::CONNREFUSED).await, (b(), false));
        for code in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert_eq!(dialled(code).await, (None, true), "{code}");
        }
    }

    #[test]
    fn an_endpoint_that_this_host_has_no_address_for_is_down() {
        // Cause: on a host without IPv6, an endpoint of IPv6 was tried for ever as if ports had run out.
        let upstreams = upstreams(1);
        let upstream = upstreams.list()[0].upstream.clone();
        note_failure(&upstream, &Errno::ADDRNOTAVAIL.into());
        assert!(!upstream.is_down());
        note_failure(&upstream, &io::Error::new(io::ErrorKind::AddrNotAvailable, "this host has no address"));
        assert!(upstream.is_down());
    }

    #[test]
    fn the_gateways_own_address_is_recognised() {
        let check = |address: &str, own: &str| is_own(address.parse().unwrap(), own.parse().unwrap()).unwrap();
        assert!(check("127.0.0.1:1", "127.0.0.1:1"));
        assert!(check("127.0.0.1:1", "0.0.0.0:1"));
        assert!(check("127.0.0.2:1", "0.0.0.0:1"));
        assert!(check("127.0.0.2:1", "[::]:1"));
        assert!(check("0.0.0.0:1", "127.0.0.1:1"));
        assert!(check("[::ffff:127.0.0.1]:1", "127.0.0.1:1"));
        assert!(!check("127.0.0.1:2", "127.0.0.1:1"));
        assert!(!check("127.0.0.2:1", "127.0.0.1:1"));
        assert!(!check("192.0.2.1:1", "0.0.0.0:1"));
        assert!(!check("192.0.2.1:1", "[::]:1"));
    }

    #[test]
    fn an_address_that_can_be_bound_is_local_unless_all_can() {
        // Cause: with net.ipv4.ip_nonlocal_bind=1 every endpoint on the gateway's port was taken for the gateway itself.
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let own = [ip("10.0.0.7"), ip("127.0.0.1"), ip("fd00::7")];
        let of_own = |ip: IpAddr| if own.contains(&ip) { Ok(()) } else { Err(Errno::ADDRNOTAVAIL.into()) };
        let source = |to: IpAddr| Ok(if own.contains(&to) { to } else { ip("10.0.0.7") });
        for (text, expected) in [("10.0.0.7", true), ("127.0.0.1", true), ("fd00::7", true), ("10.0.0.8", false)] {
            assert_eq!(is_local(ip(text), of_own, source).unwrap(), expected, "{text}");
            assert_eq!(is_local(ip(text), |_| Ok(()), source).unwrap(), expected, "{text}, where all can be bound");
        }
        assert!(is_local(ip("127.0.0.2"), |_| Ok(()), source).unwrap(), "reached from 127.0.0.1");
        let unreachable = |_| Err(Errno::NETUNREACH.into());
        assert!(!is_local(ip("10.0.0.8"), |_| Ok(()), unreachable).unwrap());
        let short = |_| Err(Errno::MFILE.into());
        assert!(is_local(ip("10.0.0.8"), short, source).is_err(), "nobody knows");
    }
}
