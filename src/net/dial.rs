use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};

use super::client_tls::{Alpn, ClientTls, ClientTlsConfig};
use super::endpoint::Endpoint;
use super::tcp_silence::TcpSilence;

/// A byte stream in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// How the time of an attempt is divided between the addresses of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressTime {
    /// The caller bounds the whole attempt.
    Unbounded,
    /// This long for each address of a name that has several; the caller bounds the whole attempt.
    Each(Duration),
    /// This long for the look-up and all addresses; each address gets an even share of what is left.
    Shared(Duration),
}

/// Why there is no TCP connection.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say what the variants are")]
pub enum DialError {
    /// From the resolver, or from one of the addresses that were tried: the last of those that tell most of the endpoint.
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the name has no address")]
    NoAddress,
    #[error("look-up timed out")]
    LookupTimeout,
    #[error("connect timed out")]
    Timeout,
}

/// Opens TCP connections; a name is resolved again for each of them.
#[derive(Clone, Copy, Debug)]
pub struct TcpDialer {
    /// What each connection gets.
    pub silence: TcpSilence,
    /// Time for the look-up and for each address.
    pub address_time: AddressTime,
    /// The address of this host that connections come from; the system chooses when there is none.
    pub from: Option<IpAddr>,
}

impl TcpDialer {
    /// Connects to the first address that answers, in the order of the resolver.
    ///
    /// # Errors
    /// That of the last address, unless an earlier one tells more of the endpoint.
    pub async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, DialError> {
        self.connect_where(host, port, 0, |_| Ok(())).await
    }

    /// Connects to an endpoint by what it is, without TLS, beginning at address number `first` of its name.
    ///
    /// # Errors
    /// That of the last address, unless an earlier one tells more of the endpoint.
    pub async fn connect_endpoint(&self, endpoint: &Endpoint, first: usize) -> Result<Box<dyn ByteStream>, DialError> {
        Ok(match endpoint.socket() {
            Some(path) => Box::new(UnixStream::connect(path).await?),
            None => Box::new(self.connect_endpoint_where(endpoint, first, |_| Ok(())).await?),
        })
    }

    /// Connects to the first address of an endpoint that answers and that `check` accepts; its name is looked up unless
    /// its addresses are known.
    ///
    /// # Errors
    /// That of the last address, unless an earlier one tells more of the endpoint.
    pub async fn connect_endpoint_where(
        &self,
        endpoint: &Endpoint,
        first: usize,
        check: impl Fn(SocketAddr) -> io::Result<()>,
    ) -> Result<TcpStream, DialError> {
        let Some(known) = endpoint.addresses() else {
            return self.connect_where(endpoint.host(), endpoint.port(), first, check).await;
        };
        let addresses = known.iter().map(|&ip| SocketAddr::new(ip, endpoint.port())).collect();
        self.connect_to(addresses, self.deadline(), first, check).await
    }

    /// Connects to the first address that answers and that `check` accepts, beginning at address number `first`, modulo
    /// their count.
    ///
    /// # Errors
    /// That of the last address, unless an earlier one tells more of the endpoint.
    pub async fn connect_where(
        &self,
        host: &str,
        port: u16,
        first: usize,
        check: impl Fn(SocketAddr) -> io::Result<()>,
    ) -> Result<TcpStream, DialError> {
        let deadline = self.deadline();
        let found = tokio::net::lookup_host((host, port));
        let found = match deadline {
            Some(deadline) => timeout_at(deadline, found).await.map_err(|_| DialError::LookupTimeout)?,
            None => found.await,
        };
        let addresses = found.map_err(|error| shortage().unwrap_or(error))?.collect();
        self.connect_to(addresses, deadline, first, check).await
    }

    /// The address of this host from which the system makes connections to `address`. Nothing is sent.
    ///
    /// # Errors
    /// Where it has none, and those of a new socket.
    pub fn source_towards(address: SocketAddr) -> io::Result<IpAddr> {
        let unspecified: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind(SocketAddr::new(unspecified, 0))?;
        socket.connect(address)?;
        Ok(socket.local_addr()?.ip())
    }

    fn deadline(&self) -> Option<Instant> {
        match self.address_time {
            AddressTime::Shared(limit) => Some(Instant::now() + limit),
            AddressTime::Unbounded | AddressTime::Each(_) => None,
        }
    }

    async fn connect_to(
        &self,
        mut addresses: Vec<SocketAddr>,
        deadline: Option<Instant>,
        first: usize,
        check: impl Fn(SocketAddr) -> io::Result<()>,
    ) -> Result<TcpStream, DialError> {
        let count = addresses.len();
        addresses.rotate_left(first % count.max(1));
        let mut last = DialError::NoAddress;
        for (tried, address) in addresses.into_iter().enumerate() {
            let limit = match (self.address_time, deadline) {
                (_, Some(deadline)) => {
                    Some(deadline.saturating_duration_since(Instant::now()) / (count - tried) as u32)
                }
                (AddressTime::Each(limit), _) if count > 1 => Some(limit),
                _ => None,
            };
            let connect = async {
                check(address)?;
                let stream = match self.from {
                    None => TcpStream::connect(address).await?,
                    Some(from) => connect_from(from, address).await?,
                };
                self.silence.prepare(&stream)?;
                io::Result::Ok(stream)
            };
            let connected = match limit {
                Some(limit) => timeout(limit, connect).await,
                None => Ok(connect.await),
            };
            match connected {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => {
                    let error = DialError::Io(if self.from.is_none() { explained(error, address) } else { error });
                    if Tells::of(&error) >= Tells::of(&last) {
                        last = error;
                    }
                }
                Err(_) => last = DialError::Timeout,
            }
        }
        Err(last)
    }
}

/// What the error of one address tells. A name with addresses of both families is often reachable by one of them alone: what the
/// other one fails with must not hide what is wrong with the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tells {
    /// There was no address.
    Nothing,
    /// This host has no route to the address, or no address of its family.
    NoWay,
    /// No port of this host is free for connections to the address.
    NoPort,
    /// Something of the endpoint, or a shortage that concerns all addresses.
    More,
}

impl Tells {
    fn of(error: &DialError) -> Self {
        match error {
            DialError::NoAddress => Self::Nothing,
            DialError::Io(error) if has_code(error, &[Errno::ADDRNOTAVAIL]) => Self::NoPort,
            DialError::Io(error) if is_no_way(error) => Self::NoWay,
            _ => Self::More,
        }
    }
}

fn has_code(error: &io::Error, codes: &[Errno]) -> bool {
    codes.iter().any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

fn is_no_way(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::AddrNotAvailable, io::ErrorKind::NetworkUnreachable];
    kinds.contains(&error.kind()) || has_code(error, &[Errno::AFNOSUPPORT])
}

/// The system has one error for "no port is free" and for "no address of this family". The first passes and keeps the code of the
/// system; the second gets words in its place.
fn explained(error: io::Error, address: SocketAddr) -> io::Error {
    let has_no_source = || TcpDialer::source_towards(address).is_err_and(|error| is_no_way(&error));
    if has_code(&error, &[Errno::ADDRNOTAVAIL]) && has_no_source() {
        let text = format!("this host has no address from which {address} can be reached");
        return io::Error::new(io::ErrorKind::AddrNotAvailable, text);
    }
    error
}

/// Why no socket can be opened now, if so. A look-up that fails for lack of descriptors or memory does not say so.
fn shortage() -> Option<io::Error> {
    let codes = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).err().filter(|error| has_code(error, &codes))
}

async fn connect_from(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = match (from, to) {
        (IpAddr::V4(_), SocketAddr::V4(_)) => TcpSocket::new_v4()?,
        (IpAddr::V6(_), SocketAddr::V6(_)) => TcpSocket::new_v6()?,
        _ => {
            let text = format!("{to} cannot be dialled from {from}: no suitable address found");
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, text));
        }
    };
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(to).await
}

/// Does the TLS handshake on a connection to `endpoint` if TLS is spoken there: by `tls`, or by what the system trusts.
///
/// # Errors
/// When the server breaks off, or its certificate is not accepted.
pub async fn secure(
    endpoint: &Endpoint,
    stream: Box<dyn ByteStream>,
    tls: Option<&ClientTls>,
    alpn: Alpn,
) -> io::Result<Box<dyn ByteStream>> {
    if !endpoint.uses_tls(tls.is_some()) {
        return Ok(stream);
    }
    let usual = || ClientTls::new(&ClientTlsConfig::new(alpn)).map_err(io::Error::other);
    let tls = tls.map_or_else(usual, |tls| Ok(tls.asking_for(alpn)))?;
    Ok(Box::new(tls.connect(endpoint.server_name(), stream).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn known_addresses_are_dialled_without_a_look_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let dialer = TcpDialer { silence: TcpSilence::MEMBER, address_time: AddressTime::Unbounded, from: None };
        let endpoint: Endpoint = format!("no-such-name.invalid:{port}").parse().expect("an endpoint");
        let known = endpoint.with_addresses(["127.0.0.1".parse().expect("an address")]);
        dialer.connect_endpoint(&known, 3).await.expect("connected");
        listener.accept().await.expect("accepted");
    }

    /// An endpoint at 127.0.0.1 and ::1, where nobody listens.
    async fn nobody_at_two_addresses() -> Endpoint {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let endpoint: Endpoint = format!("no-such-name.invalid:{port}").parse().expect("an endpoint");
        endpoint.with_addresses(["127.0.0.1", "::1"].map(|text| text.parse().expect("an address")))
    }

    #[tokio::test]
    async fn an_address_of_the_other_family_does_not_hide_what_is_wrong_with_the_endpoint() {
        // Cause: the error of the last address was told. On a host without IPv6 that was EADDRNOTAVAIL for every name with an AAAA
        // record, whatever the address of IPv4 had failed with.
        let dialer = TcpDialer { silence: TcpSilence::MEMBER, address_time: AddressTime::Unbounded, from: None };
        let endpoint = nobody_at_two_addresses().await;
        for code in [Errno::ADDRNOTAVAIL, Errno::NETUNREACH, Errno::AFNOSUPPORT] {
            let unusable = |address: SocketAddr| if address.is_ipv6() { Err(code.into()) } else { Ok(()) };
            for first in [0, 1] {
                let outcome = dialer.connect_endpoint_where(&endpoint, first, unusable).await;
                let Err(DialError::Io(error)) = outcome else { panic!("{code} {first}: {outcome:?}") };
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{code}, beginning at {first}");
            }
        }
    }

    #[test]
    fn a_lack_of_ports_is_told_from_a_lack_of_addresses() {
        let error = |code: Errno| DialError::Io(code.into());
        assert_eq!(Tells::of(&error(Errno::ADDRNOTAVAIL)), Tells::NoPort);
        for code in [Errno::NETUNREACH, Errno::AFNOSUPPORT] {
            assert_eq!(Tells::of(&error(code)), Tells::NoWay);
        }
        for code in [Errno::CONNREFUSED, Errno::HOSTUNREACH, Errno::MFILE] {
            assert_eq!(Tells::of(&error(code)), Tells::More);
        }
        assert_eq!(Tells::of(&DialError::Timeout), Tells::More);
        // This host has a loopback address: what is missing can only be a port.
        let here = "127.0.0.1:1".parse().expect("an address");
        let error = explained(Errno::ADDRNOTAVAIL.into(), here);
        assert_eq!(error.raw_os_error(), Some(Errno::ADDRNOTAVAIL.raw_os_error()));
        let worded = io::Error::new(io::ErrorKind::AddrNotAvailable, "no address");
        assert_eq!(Tells::of(&DialError::Io(worded)), Tells::NoWay);
    }

    #[tokio::test]
    async fn connections_come_from_the_address_they_are_told() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let dialer = |from: &str| TcpDialer {
            silence: TcpSilence::MEMBER,
            address_time: AddressTime::Unbounded,
            from: Some(from.parse().expect("an address")),
        };
        let second = dialer("127.0.0.2");
        let (dialled, accepted) = tokio::join!(second.connect("127.0.0.1", port), listener.accept());
        dialled.expect("connected");
        assert_eq!(accepted.expect("accepted").1.ip().to_string(), "127.0.0.2");
        let error = dialer("::1").connect("127.0.0.1", port).await.expect_err("another kind of address");
        assert!(error.to_string().ends_with("no suitable address found"), "{error}");
    }
}
