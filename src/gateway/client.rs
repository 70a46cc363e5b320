use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::proxy_protocol::{Ends, header, read_header};
use super::sources::{Admitted, Sources};
use super::stream::{Accepted, Stream};
use crate::config::{ConnectionLimits, GatewayConfig, ProxyProtocol};
use crate::net::IpPrefix;

/// Time for a PROXY header, which its sender writes as soon as it is connected.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// What is asked of client connections, and what endpoints are told of them.
#[derive(Debug)]
pub(super) struct ClientRules {
    header_from: Vec<IpPrefix>,
    sources: Option<Arc<Sources>>,
    send: Option<ProxyProtocol>,
    pub(super) limits: ConnectionLimits,
}

/// A client connection that is let in.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: Stream,
    /// Its two ends, if they are TCP addresses; asked for only where they are needed.
    ends: Option<Ends>,
    /// Counts it.
    pub(super) admitted: Option<Admitted>,
}

/// Why a client is turned away.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unwelcome {
    #[error("as many connections are open as one address may have")]
    Source,
    #[error("PROXY header: {0}")]
    Header(io::Error),
    #[error("ClientHello: {0}")]
    Hello(io::Error),
    #[error("connection could not be set up: {0}")]
    Socket(#[from] io::Error),
}

impl ClientRules {
    pub(super) fn new(config: &GatewayConfig) -> Self {
        Self {
            header_from: config.proxy_protocol_from.clone(),
            sources: config.connections_per_source_max.map(|most| Arc::new(Sources::new(most))),
            send: config.send_proxy_protocol,
            limits: config.limits,
        }
    }

    /// Lets a client in: reads the PROXY header if its address is trusted to send one, and counts it. That of a unix socket has no
    /// address.
    pub(super) async fn admit(&self, accepted: Accepted) -> Result<Client, Unwelcome> {
        let mut stream = Stream::serve(accepted)?;
        if self.header_from.is_empty() && self.sources.is_none() && self.send.is_none() {
            return Ok(Client { stream, ends: None, admitted: None });
        }
        let mut ends = match &stream {
            Stream::Tcp(tcp) => Some(Ends { source: tcp.peer_addr()?, destination: tcp.local_addr()? }),
            Stream::Unix(_) => None,
        };
        if ends.is_some_and(|ends| self.header_from.iter().any(|trusted| trusted.contains(ends.source.ip()))) {
            let too_slow = |_| io::Error::new(io::ErrorKind::TimedOut, "did not come in time");
            let read = timeout(HEADER_TIMEOUT, read_header(&mut stream)).await.map_err(too_slow);
            ends = read.and_then(|read| read).map_err(Unwelcome::Header)?.or(ends);
        }
        let admitted = match (&self.sources, ends) {
            (Some(sources), Some(ends)) => Some(sources.admit(ends.source.ip()).ok_or(Unwelcome::Source)?),
            _ => None,
        };
        Ok(Client { stream, ends, admitted })
    }

    /// Writes the PROXY header of a new connection to an endpoint: that of a client, or of the gateway itself without one.
    pub(super) async fn introduce(&self, client: Option<&Client>, endpoint: &mut Stream) -> io::Result<()> {
        match self.send {
            None => Ok(()),
            // It fits into the empty socket buffer of a new connection.
            Some(version) => endpoint.write_all(&header(version, client.and_then(|client| client.ends))).await,
        }
    }
}

impl Client {
    /// Where it comes from, for logs.
    pub(super) fn source(&self) -> Option<SocketAddr> {
        self.ends.map(|ends| ends.source)
    }
}
