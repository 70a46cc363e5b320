use std::io;

use http::StatusCode;

use super::dial::Dialer;
use super::error::GatewayError;
use super::shortage::Shortage;
use super::stream::Stream;
use super::upstream::Upstream;
use crate::client::{health_check, http_page_on};
use crate::config::{HealthCheckConfig, HealthCheckKind};
use crate::net::ClientTls;
use crate::shutdown::Tasks;

/// What members answer: the path of etcd since 3.4.29, and that of all before.
const READY_PATH: &str = "/readyz";
const HEALTH_PATH: &str = "/health";
/// Bytes of an answer that are quoted.
const QUOTED_MAX: usize = 200;

/// What an endpoint is asked on a connection to it.
#[derive(Clone, Debug)]
pub(super) enum Probe {
    /// Nothing: that it took the connection is enough.
    Connect,
    /// A page over HTTP/1.1 that has to be answered with 200; none for `/readyz`, or `/health` where there is no such page.
    Http { path: Option<String>, tls: Option<ClientTls> },
    /// Its gRPC health service.
    Grpc { tls: Option<ClientTls> },
}

/// Why an endpoint did not pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    /// There is no connection to it.
    #[error(transparent)]
    Connect(#[from] io::Error),
    /// It does not answer as it should.
    #[error("{0}")]
    Answer(String),
}

impl ProbeError {
    /// Whether the reason is on this side, so that nothing is known of the endpoint.
    pub(super) fn is_our_shortage(&self) -> bool {
        matches!(self, Self::Connect(error) if Shortage::of(error).is_some())
    }
}

impl Probe {
    /// Reads the certificates.
    pub(super) fn new(config: &HealthCheckConfig) -> Result<Self, GatewayError> {
        let tls = || config.tls.as_ref().map(ClientTls::new).transpose().map_err(GatewayError::HealthCheckTls);
        Ok(match &config.kind {
            HealthCheckKind::Tcp => Self::Connect,
            HealthCheckKind::Http { path } => Self::Http { path: path.clone(), tls: tls()? },
            HealthCheckKind::Grpc => Self::Grpc { tls: tls()? },
        })
    }

    /// Asks once; the caller bounds the time.
    ///
    /// # Errors
    /// Why the endpoint should get no clients.
    pub(super) async fn ask(&self, upstream: &Upstream, dialer: &Dialer, tasks: &Tasks) -> Result<(), ProbeError> {
        let stream = connect(upstream, dialer).await?;
        match self {
            Self::Connect => Ok(()),
            Self::Grpc { tls } => {
                let checked = health_check(upstream.endpoint(), Box::new(stream), tls.as_ref(), tasks);
                checked.await.map_err(ProbeError::Answer)
            }
            Self::Http { path, tls } => {
                let (endpoint, tls) = (upstream.endpoint(), tls.as_ref());
                let first = path.as_deref().unwrap_or(READY_PATH);
                let mut page = http_page_on(Box::new(stream), endpoint, tls, first).await.map_err(unanswered)?;
                if path.is_none() && page.status() == StatusCode::NOT_FOUND {
                    let stream = Box::new(connect(upstream, dialer).await?);
                    page = http_page_on(stream, endpoint, tls, HEALTH_PATH).await.map_err(unanswered)?;
                }
                match page.status() {
                    StatusCode::OK => Ok(()),
                    status => {
                        let reason = format!("HTTP status {}: {}", status.as_u16(), gist(page.body()));
                        Err(ProbeError::Answer(reason))
                    }
                }
            }
        }
    }
}

async fn connect(upstream: &Upstream, dialer: &Dialer) -> io::Result<Stream> {
    let mut stream = dialer.connect(upstream).await?;
    dialer.rules.introduce(None, &mut stream).await?;
    Ok(stream)
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn unanswered(error: io::Error) -> ProbeError {
    ProbeError::Answer(error.to_string())
}

/// The line of an answer that says what is wrong: the first check that failed, or else the first line.
fn gist(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(4096)]);
    let failed = text.lines().find(|line| line.starts_with("[-]"));
    failed.or_else(|| text.lines().next()).unwrap_or_default().chars().take(QUOTED_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failed_check_is_quoted() {
        assert_eq!(
            gist(b"[+]data_corruption ok\n[-]linearizable_read failed: no leader\n"),
            "[-]linearizable_read failed: no leader"
        );
        assert_eq!(gist(b"{\"health\":\"false\"}"), "{\"health\":\"false\"}");
        assert_eq!(gist(b""), "");
        assert_eq!(gist(&[b'x'; 10_000]).len(), QUOTED_MAX);
    }
}
