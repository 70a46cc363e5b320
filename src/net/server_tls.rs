use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::server::{Acceptor, ServerSessionMemoryCache};
use tokio_rustls::rustls::{HandshakeKind, ServerConfig};
use tokio_rustls::{LazyConfigAcceptor, server};

use super::authorities::Authorities;
use super::followed::Followed;
use super::identity::{Identity, IdentityFiles};
use super::linger::linger;
use super::names::{AllowedNames, CertificateNames};
use super::pem::{TlsError, unusable};
use super::policy::TlsPolicy;
use super::revocations::Revocations;
use super::self_signed::SelfSigned;
use super::texts::{text, tls_text};
use super::verify::ClientVerifier;

/// Sessions a listener remembers, so that clients which come back save the costly part of the handshake. One takes
/// some kilobytes with the certificates of its client.
const SESSIONS_MAX: usize = 1024;

/// The accepting side of TLS. Cheap to clone.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    /// None where clients are not asked for a certificate.
    verifier: Option<Arc<ClientVerifier>>,
    checks_addresses: bool,
}

/// The operator's settings for a listener with TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTlsConfig {
    /// What it shows.
    pub identity: ServerIdentity,
    /// Whose certificates its clients have to show.
    pub clients: ClientAuth,
    /// Which of those are accepted.
    pub allowed: AllowedNames,
    /// Certificates that are not accepted any more.
    pub revocations: Option<PathBuf>,
    /// Whether a client's certificate has to be valid for the address it comes from, if it is valid for any.
    pub checks_addresses: bool,
    /// Versions and suites.
    pub policy: TlsPolicy,
}

/// Where the certificate of a listener comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerIdentity {
    /// From the operator.
    Files(IdentityFiles),
    /// Made by this process.
    SelfSigned(SelfSigned),
}

/// Whose certificates the clients of a listener have to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// None is asked for.
    None,
    /// Of the authorities in the file.
    File(PathBuf),
    /// Of the authorities that the system trusts.
    System,
}

/// What the client of an accepted connection showed and asked for.
#[derive(Clone, Debug, Default)]
pub struct TlsPeer {
    /// Its certificate, then those between it and the authority; verified. Empty when it was not asked for any.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The common name of the first.
    pub common_name: Option<Box<str>>,
    /// The name of the server it wants (SNI).
    pub sni: Option<Box<str>>,
}

/// A client that is not served, with what is known of it.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// Why, in Go's words.
    pub reason: String,
    /// Whether the client just went away.
    pub is_eof: bool,
    /// The name of the server it wants.
    pub server_name: Box<str>,
    /// Names and addresses its certificate is valid for.
    pub valid_for: Option<(Vec<String>, Vec<IpAddr>)>,
}

impl ServerIdentity {
    /// The files; makes them when they are to be made and are not there.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn files(&self) -> Result<IdentityFiles, TlsError> {
        match self {
            Self::Files(files) => Ok(files.clone()),
            Self::SelfSigned(made) => made.files(),
        }
    }
}

impl ServerTlsConfig {
    /// A listener that shows this certificate and asks for none.
    pub fn new(identity: ServerIdentity) -> Self {
        Self {
            identity,
            clients: ClientAuth::None,
            allowed: AllowedNames::Any,
            revocations: None,
            checks_addresses: false,
            policy: TlsPolicy::default(),
        }
    }
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn new(config: &ServerTlsConfig) -> Result<Self, TlsError> {
        let identity = Identity::from_files(config.identity.files()?)?;
        let authorities = match &config.clients {
            ClientAuth::None => None,
            ClientAuth::File(path) => Some(Authorities::from_file(path)?),
            ClientAuth::System => Some(Authorities::of_system()),
        };
        let revocations = config.revocations.clone().map(|path| {
            let file = path.clone();
            Followed::open("certificate revocation list", vec![path], move || Revocations::from_file(&file))
        });
        let revocations = revocations.transpose()?;
        let policy = &config.policy;
        let verifier = authorities.map(|authorities| {
            ClientVerifier::new(authorities, policy.provider(), config.allowed.clone(), revocations)
        });
        Ok(Self { checks_addresses: config.checks_addresses, ..Self::build(identity, verifier, policy)? })
    }

    /// Shows `identity` and serves only clients that show a certificate of one of `authorities`.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn mutual(identity: Identity, authorities: &Authorities) -> Result<Self, TlsError> {
        let policy = TlsPolicy::default();
        let verifier = ClientVerifier::new(authorities.clone(), policy.provider(), AllowedNames::Any, None);
        Self::build(identity, Some(verifier), &policy)
    }

    fn build(identity: Identity, verifier: Option<ClientVerifier>, policy: &TlsPolicy) -> Result<Self, TlsError> {
        let builder = ServerConfig::builder_with_provider(policy.provider())
            .with_protocol_versions(&policy.versions())
            .map_err(unusable)?;
        let verifier = verifier.map(Arc::new);
        let builder = match verifier.clone() {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(identity));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS_MAX);
        Ok(Self { config: Arc::new(config), verifier, checks_addresses: false })
    }

    /// Does the handshake on a connection accepted from `client`.
    ///
    /// # Errors
    /// When the client breaks off, or does not show a certificate that is accepted.
    pub async fn accept<S>(
        &self,
        stream: S,
        client: Option<IpAddr>,
    ) -> Result<(server::TlsStream<S>, TlsPeer), Rejected>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let greeted = LazyConfigAcceptor::new(Acceptor::default(), stream).await;
        let greeted = greeted.map_err(|error| Rejected::of_io(&error, Box::default()))?;
        let sni: Option<Box<str>> = greeted.client_hello().server_name().map(Into::into);
        let server_name = sni.clone().unwrap_or_default();
        let stream = match greeted.into_stream(self.config.clone()).into_fallible().await {
            Ok(stream) => stream,
            Err((error, stream)) => {
                // In TLS 1.3 the client may have sent its first request already.
                linger(stream).await;
                return Err(Rejected::of_io(&error, server_name));
            }
        };
        let (_, session) = stream.get_ref();
        let certificates: Vec<_> = session.peer_certificates().unwrap_or_default().to_vec();
        let names = certificates.first().and_then(CertificateNames::of);
        let rejected = |reason| Rejected {
            reason,
            is_eof: false,
            server_name: server_name.clone(),
            valid_for: names.as_ref().map(|names| (names.dns_names.clone(), names.addresses.clone())),
        };
        if let (Some(verifier), Some(HandshakeKind::Resumed)) = (&self.verifier, session.handshake_kind()) {
            verifier.verify_again(&certificates).map_err(|error| rejected(tls_text(&error)))?;
        }
        if let (true, Some(names), Some(client)) = (self.checks_addresses, &names, client) {
            names.check_address(client).await.map_err(rejected)?;
        }
        let common_name = names.and_then(|names| names.common_name);
        Ok((stream, TlsPeer { certificates, common_name, sni }))
    }
}

impl Rejected {
    fn of_io(error: &io::Error, server_name: Box<str>) -> Self {
        let is_eof = matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
        Self { reason: text(error), is_eof, server_name, valid_for: None }
    }

    /// A client that was too slow, or began with something else than a handshake.
    pub fn early(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), is_eof: false, server_name: Box::default(), valid_for: None }
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("verifier", &self.verifier).finish_non_exhaustive()
    }
}
