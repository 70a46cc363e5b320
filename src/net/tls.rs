use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::identity::Identity;
use super::pem::{TlsError, certificates, read, unusable};

/// Whose certificates are accepted. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Authorities(Arc<RootCertStore>);

/// The accepting side of TLS. Cheap to clone.
#[derive(Clone)]
pub struct ServerTls(Arc<ServerConfig>);

/// The dialling side of TLS. Cheap to clone.
#[derive(Clone)]
pub struct ClientTls(Arc<ClientConfig>);

/// What the client of an accepted connection showed and asked for.
#[derive(Clone, Debug, Default)]
pub struct TlsPeer {
    /// Its certificate, then those between it and the authority; empty when it showed none.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The name of the server it wants (SNI).
    pub sni: Option<Box<str>>,
}

impl Authorities {
    /// From PEM text.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for authority in certificates("authorities", pem)? {
            roots.add(authority).map_err(unusable)?;
        }
        Ok(Self(Arc::new(roots)))
    }

    /// From a file in PEM form, which is read once.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn from_file(path: &Path) -> Result<Self, TlsError> {
        Self::from_pem(&read(path)?)
    }
}

impl ServerTls {
    /// Shows `identity` and serves only clients that show a certificate of one of `authorities`.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn mutual(identity: Identity, authorities: &Authorities) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(authorities.0.clone(), provider.clone())
            .build()
            .map_err(|error| TlsError::Unusable(error.to_string()))?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(identity));
        Ok(Self(Arc::new(config)))
    }

    /// Does the handshake on an accepted connection.
    ///
    /// # Errors
    /// When the client breaks off, or does not show a certificate that is accepted.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<(server::TlsStream<TcpStream>, TlsPeer)> {
        let stream = TlsAcceptor::from(self.0.clone()).accept(stream).await?;
        let (_, session) = stream.get_ref();
        let certificates = session.peer_certificates().unwrap_or_default();
        let certificates = certificates.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let peer = TlsPeer { certificates, sni: session.server_name().map(Into::into) };
        Ok((stream, peer))
    }
}

impl ClientTls {
    /// Accepts servers that show a certificate of one of `authorities`, and shows `identity` when it is asked.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn new(identity: Option<Identity>, authorities: &Authorities) -> Result<Self, TlsError> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(authorities.0.clone());
        let config = match identity {
            Some(identity) => config.with_client_cert_resolver(Arc::new(identity)),
            None => config.with_no_client_auth(),
        };
        Ok(Self(Arc::new(config)))
    }

    /// Does the handshake on a new connection to `host`, whose certificate must be valid for that name or address.
    ///
    /// # Errors
    /// When the server breaks off, or its certificate is not accepted.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<client::TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        TlsConnector::from(self.0.clone()).connect(name, stream).await
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}
