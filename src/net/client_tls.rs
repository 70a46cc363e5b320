use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, HandshakeKind};
use tokio_rustls::{TlsConnector, client};

use super::authorities::Authorities;
use super::identity::{Identity, IdentityFiles};
use super::names::AllowedNames;
use super::pem::{TlsError, unusable};
use super::policy::TlsPolicy;
use super::texts::{reworded, text};
use super::verify::ServerVerifier;

/// The dialling side of TLS. Cheap to clone.
#[derive(Clone)]
pub struct ClientTls(Arc<ClientConfig>);

/// The operator's settings for connections with TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTlsConfig {
    /// Whose certificates servers have to show.
    pub servers: ServerAuth,
    /// What is shown when a server asks.
    pub identity: Option<IdentityFiles>,
    /// Which certificates of servers are accepted.
    pub allowed: AllowedNames,
    /// Versions and suites.
    pub policy: TlsPolicy,
    /// The protocol that is asked for (ALPN); members of etcd serve gRPC to those that ask for h2.
    pub alpn: Alpn,
}

/// Whose certificates servers have to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAuth {
    /// Of the authorities in the file.
    File(PathBuf),
    /// Of the authorities that the system trusts.
    System,
    /// Any certificate: a host on the path can read and change everything.
    Skip,
}

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/2.
    H2,
    /// HTTP/1.1.
    Http1,
}

impl Alpn {
    fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Self::H2 => vec![b"h2".to_vec()],
            Self::Http1 => vec![b"http/1.1".to_vec()],
        }
    }
}

impl ClientTlsConfig {
    /// Verified by the authorities of the system, without a certificate of our own.
    pub fn new(alpn: Alpn) -> Self {
        Self {
            servers: ServerAuth::System,
            identity: None,
            allowed: AllowedNames::Any,
            policy: TlsPolicy::default(),
            alpn,
        }
    }

    /// From the flags of clients: a file of authorities, certificate and key, each empty for none, and whether
    /// certificates of servers are not looked at. None when nothing of it is given.
    ///
    /// # Errors
    /// A certificate without a key, or the reverse.
    pub fn from_flags(authorities: &str, certificates: &str, key: &str, skip: bool) -> Result<Option<Self>, String> {
        if authorities.is_empty() && certificates.is_empty() && key.is_empty() && !skip {
            return Ok(None);
        }
        let identity = match (certificates.is_empty(), key.is_empty()) {
            (true, true) => None,
            (false, false) => Some(IdentityFiles { certificates: certificates.into(), key: key.into() }),
            _ => {
                return Err(format!("KeyFile and CertFile must both be present[key: {key}, cert: {certificates}]"));
            }
        };
        let servers = match authorities {
            _ if skip => ServerAuth::Skip,
            "" => ServerAuth::System,
            file => ServerAuth::File(file.into()),
        };
        Ok(Some(Self { servers, identity, ..Self::new(Alpn::H2) }))
    }
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn new(config: &ClientTlsConfig) -> Result<Self, TlsError> {
        let authorities = match &config.servers {
            ServerAuth::File(path) => Some(Authorities::from_file(path)?),
            ServerAuth::System => Some(Authorities::of_system()),
            ServerAuth::Skip => None,
        };
        let identity = config.identity.clone().map(Identity::from_files).transpose()?;
        Self::build(identity, authorities, config)
    }

    /// Whether there is a certificate to show when a server asks.
    pub fn has_certificate(&self) -> bool {
        self.0.client_auth_cert_resolver.has_certs()
    }

    /// Accepts servers that show a certificate of one of `authorities`, and shows `identity` when it is asked.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn verifying(identity: Option<Identity>, authorities: &Authorities) -> Result<Self, TlsError> {
        Self::build(identity, Some(authorities.clone()), &ClientTlsConfig::new(Alpn::Http1))
    }

    fn build(
        identity: Option<Identity>,
        authorities: Option<Authorities>,
        config: &ClientTlsConfig,
    ) -> Result<Self, TlsError> {
        let provider = config.policy.provider();
        let verifier = ServerVerifier::new(authorities, provider.clone(), config.allowed.clone());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&config.policy.versions())
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut made = match identity {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(identity)),
            None => builder.with_no_client_auth(),
        };
        made.alpn_protocols = config.alpn.protocols();
        Ok(Self(Arc::new(made)))
    }

    /// The same with another protocol.
    #[must_use]
    pub fn asking_for(&self, alpn: Alpn) -> Self {
        let protocols = alpn.protocols();
        if self.0.alpn_protocols == protocols {
            return self.clone();
        }
        let mut config = ClientConfig::clone(&self.0);
        config.alpn_protocols = protocols;
        Self(Arc::new(config))
    }

    /// Does the handshake on a new connection to `host`, whose certificate must be valid for that name or address.
    ///
    /// # Errors
    /// When the server breaks off, or its certificate is not accepted; in Go's words.
    pub async fn connect<S>(&self, host: &str, stream: S) -> io::Result<Dialed<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let connected = TlsConnector::from(self.0.clone()).connect(name, stream).await;
        connected.map(Dialed).map_err(|error| io::Error::new(error.kind(), text(&error)))
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

/// A dialled connection with TLS. Its errors are in Go's words: a server refuses certificates after the handshake.
#[derive(Debug)]
pub struct Dialed<S>(client::TlsStream<S>);

impl<S> Dialed<S> {
    /// What the server showed.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        self.0.get_ref().1.peer_certificates().unwrap_or_default()
    }

    /// Whether an earlier session was resumed.
    pub fn is_resumed(&self) -> bool {
        self.0.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Dialed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer).map_err(reworded)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Dialed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes).map_err(reworded)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx).map_err(reworded)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx).map_err(reworded)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, parts).map_err(reworded)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
