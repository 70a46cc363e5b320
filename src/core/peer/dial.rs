use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use url::Url;

use super::config::PeerDialer;
use super::hello::{Hello, Refusal, cluster_of};
use crate::net::{self, AddressTime, ByteStream, Endpoint, TcpDialer, TcpSilence, with_causes};
use crate::types::ClusterId;

/// A connection whose handshake is through.
pub(super) struct Dialed {
    pub(super) io: Box<dyn ByteStream>,
    /// What arrived together with the answer.
    pub(super) first: Bytes,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No URL of ours.
    #[error("peer URL {0} cannot be dialled: it needs http, or https and TLS for peers")]
    Url(String),
    /// The network, or TLS.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Neither an answer nor a refusal came.
    #[error("no answer in time")]
    Timeout,
    /// Something else than a member answered.
    #[error("{0}")]
    Http(String),
    /// A member of another cluster answered.
    #[error("{}", Refusal::WrongCluster)]
    OtherCluster {
        /// That cluster, if it was named.
        theirs: Option<ClusterId>,
    },
    /// The member refused the connection.
    #[error("refused: {0}")]
    Refused(Refusal),
}

/// Connects to the first URL where the wanted member answers. Fails with the last error, or with a refusal because this
/// member was removed.
pub(super) async fn dial_any(
    urls: &[String],
    hello: Hello,
    dialer: &PeerDialer,
    limit: Duration,
) -> Result<Dialed, DialError> {
    let mut last = DialError::Url("(none)".into());
    for url in urls {
        match timeout(limit, dial(url, hello.clone(), dialer, limit)).await {
            Ok(Ok(dialed)) => return Ok(dialed),
            Ok(Err(error @ DialError::Refused(Refusal::Removed))) => return Err(error),
            Ok(Err(error)) => last = error,
            Err(_) => last = DialError::Timeout,
        }
    }
    Err(last)
}

async fn dial(url: &str, hello: Hello, dialer: &PeerDialer, limit: Duration) -> Result<Dialed, DialError> {
    let (stream, authority) = connect_url(url, dialer, limit).await?;
    upgrade(stream, hello, &authority).await
}

/// Connects to a peer URL; returns the value of the `Host` header too.
///
/// # Errors
/// See [`DialError`]; a name that hangs is given up after `limit`, a TLS handshake is not.
pub async fn connect_url(
    url: &str,
    dialer: &PeerDialer,
    limit: Duration,
) -> Result<(Box<dyn ByteStream>, String), DialError> {
    let unusable = || DialError::Url(url.to_owned());
    let PeerDialer { tls, local_address } = dialer;
    let dialer = TcpDialer { silence: silence(limit), address_time: AddressTime::Shared(limit), from: *local_address };
    if url.starts_with("unix") {
        let endpoint: Endpoint = url.parse().map_err(|_| unusable())?;
        let stream = dialer.connect_endpoint(&endpoint, 0).await?;
        let stream: Box<dyn ByteStream> = match (url.starts_with("unixs:"), tls) {
            (false, _) => stream,
            (true, Some(tls)) => Box::new(tls.dialling.connect(endpoint.host(), stream).await?),
            (true, None) => return Err(unusable()),
        };
        return Ok((stream, endpoint.authority().to_string()));
    }
    let parsed = Url::parse(url).map_err(|_| unusable())?;
    let (Some(host), Some(port)) = (parsed.host_str(), parsed.port_or_known_default()) else { return Err(unusable()) };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let authority = format!("{host}:{port}");
    let stream: Box<dyn ByteStream> = match (parsed.scheme(), tls) {
        ("http", _) => Box::new(dialer.connect(bare, port).await?),
        ("https", Some(tls)) => Box::new(tls.dialling.connect(bare, dialer.connect(bare, port).await?).await?),
        _ => return Err(unusable()),
    };
    Ok((stream, authority))
}

impl From<net::DialError> for DialError {
    fn from(error: net::DialError) -> Self {
        match error {
            net::DialError::Io(error) => Self::Io(error),
            net::DialError::NoAddress | net::DialError::LookupTimeout | net::DialError::Timeout => Self::Timeout,
        }
    }
}

/// What both sides of a connection get: the kernel, too, gives up a peer that is gone.
pub(super) fn silence(silence_max: Duration) -> TcpSilence {
    TcpSilence { probe_after: Duration::from_secs(10), max: silence_max * 4, ..TcpSilence::MEMBER }
}

/// Asks for the change of protocol and takes the stream back.
async fn upgrade(stream: Box<dyn ByteStream>, hello: Hello, authority: &str) -> Result<Dialed, DialError> {
    let request = hello.request(authority).map_err(|error| DialError::Http(error.to_string()))?;
    let broken = |error: hyper::Error| DialError::Http(with_causes(&error));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let asked = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        match hello.answered(response.status(), response.headers()).map_err(DialError::Http)? {
            Ok(()) => Ok(()),
            Err(Refusal::WrongCluster) => Err(DialError::OtherCluster { theirs: cluster_of(response.headers()) }),
            Err(refusal) => Err(DialError::Refused(refusal)),
        }
    };
    tokio::pin!(asked);
    // `without_shutdown` gives the stream back at the answer 101, and what came after it.
    let mut connection = std::pin::pin!(connection.without_shutdown());
    let mut parts = None;
    loop {
        tokio::select! {
            biased;
            outcome = &mut asked => {
                outcome?;
                break;
            }
            ended = &mut connection, if parts.is_none() => parts = Some(ended.map_err(broken)?),
        }
    }
    let parts = match parts {
        Some(parts) => parts,
        None => connection.await.map_err(broken)?,
    };
    Ok(Dialed { io: parts.io.into_inner(), first: parts.read_buf })
}
