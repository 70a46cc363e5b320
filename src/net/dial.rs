use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

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
    /// From the resolver, or from the last address that was tried.
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
}

impl TcpDialer {
    /// Connects to the first address that answers, in the order of the resolver.
    ///
    /// # Errors
    /// That of the last address.
    pub async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, DialError> {
        self.connect_where(host, port, 0, |_| Ok(())).await
    }

    /// Connects to the first address that answers and that `check` accepts, beginning at address number `first`, modulo
    /// their count.
    ///
    /// # Errors
    /// That of the last address.
    pub async fn connect_where(
        &self,
        host: &str,
        port: u16,
        first: usize,
        check: impl Fn(SocketAddr) -> io::Result<()>,
    ) -> Result<TcpStream, DialError> {
        let deadline = match self.address_time {
            AddressTime::Shared(limit) => Some(Instant::now() + limit),
            AddressTime::Unbounded | AddressTime::Each(_) => None,
        };
        let found = tokio::net::lookup_host((host, port));
        let mut addresses: Vec<SocketAddr> = match deadline {
            Some(deadline) => timeout_at(deadline, found).await.map_err(|_| DialError::LookupTimeout)??.collect(),
            None => found.await?.collect(),
        };
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
                let stream = TcpStream::connect(address).await?;
                self.silence.prepare(&stream)?;
                io::Result::Ok(stream)
            };
            let connected = match limit {
                Some(limit) => timeout(limit, connect).await,
                None => Ok(connect.await),
            };
            match connected {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error.into(),
                Err(_) => last = DialError::Timeout,
            }
        }
        Err(last)
    }
}
