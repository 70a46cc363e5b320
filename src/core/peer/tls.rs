use std::fmt;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};

/// Both sides of TLS between members: each shows a certificate, and takes one only from the authorities it trusts.
#[derive(Clone)]
pub struct PeerTls {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The text is no PEM, or holds nothing of this kind.
    #[error("{what} cannot be read: {reason}")]
    Pem {
        /// Certificate, key or authorities.
        what: &'static str,
        /// What the reader said.
        reason: String,
    },
    /// Certificate and key do not fit, or are of a kind that is not supported.
    #[error("certificate cannot be used: {0}")]
    Unusable(String),
}

/// The PEM texts of one side.
#[derive(Clone, Copy, Debug)]
pub struct PeerIdentity<'a> {
    /// The certificate, then those between it and the authority.
    pub certificates: &'a [u8],
    /// Its key.
    pub key: &'a [u8],
}

impl PeerTls {
    /// TLS in which both sides prove who they are. `dialling` is what this member shows when it dials; as a rule the
    /// same as what it shows when it is dialled.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn mutual(
        accepting: PeerIdentity<'_>,
        dialling: PeerIdentity<'_>,
        authorities: &[u8],
    ) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in certificates("authorities", authorities)? {
            roots.add(authority).map_err(unusable)?;
        }
        let roots = Arc::new(roots);
        Ok(Self {
            server: Arc::new(server(&provider, accepting, roots.clone())?),
            client: Arc::new(client(&provider, dialling, roots)?),
        })
    }

    /// Shows nothing when it dials.
    #[cfg(test)]
    pub(super) fn anonymous(self, authorities: &[u8]) -> Self {
        let mut roots = RootCertStore::empty();
        for authority in certificates("authorities", authorities).expect("valid") {
            roots.add(authority).expect("valid");
        }
        let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("valid")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { client: Arc::new(client), ..self }
    }

    /// For the listener of the peer port.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// Proves the identity of both sides on a fresh connection to `host`.
    pub(super) async fn connect(&self, host: &str, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
        TlsConnector::from(self.client.clone()).connect(name, stream).await
    }
}

impl fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerTls").finish_non_exhaustive()
    }
}

fn server(
    provider: &Arc<CryptoProvider>,
    identity: PeerIdentity<'_>,
    roots: Arc<RootCertStore>,
) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
        .build()
        .map_err(|error| TlsError::Unusable(error.to_string()))?;
    ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates("certificate", identity.certificates)?, key(identity.key)?)
        .map_err(unusable)
}

fn client(
    provider: &Arc<CryptoProvider>,
    identity: PeerIdentity<'_>,
    roots: Arc<RootCertStore>,
) -> Result<ClientConfig, TlsError> {
    ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates("certificate", identity.certificates)?, key(identity.key)?)
        .map_err(unusable)
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(|error| TlsError::Pem { what, reason: error.to_string() })?;
    if read.is_empty() {
        return Err(TlsError::Pem { what, reason: "no certificate in it".into() });
    }
    Ok(read)
}

fn key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| TlsError::Pem { what: "key", reason: error.to_string() })
}

fn unusable(error: rustls::Error) -> TlsError {
    TlsError::Unusable(error.to_string())
}
