use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};

use super::authorities::Authorities;
use super::followed::Followed;
use super::names::AllowedNames;
use super::revocations::Revocations;
use super::self_trusted::{verify_self_trusted, verify_self_trusted_server};

/// Verifies chains against authorities that may change.
struct Chains<V: ?Sized> {
    authorities: Authorities,
    provider: Arc<CryptoProvider>,
    build: fn(Arc<RootCertStore>, Arc<CryptoProvider>) -> Option<Arc<V>>,
    built: Mutex<Option<Built<V>>>,
}

/// A verifier and the authorities it was built of.
type Built<V> = (Arc<RootCertStore>, Option<Arc<V>>);

impl<V: ?Sized> Chains<V> {
    fn new(
        authorities: Authorities,
        provider: Arc<CryptoProvider>,
        build: fn(Arc<RootCertStore>, Arc<CryptoProvider>) -> Option<Arc<V>>,
    ) -> Self {
        Self { authorities, provider, build, built: Mutex::default() }
    }

    /// None where no authority is trusted.
    fn verifier(&self) -> Result<Arc<V>, Error> {
        let authorities = self.authorities.current();
        let mut built = self.built.lock();
        let verifier = match &*built {
            Some((of, verifier)) if Arc::ptr_eq(of, &authorities) => verifier.clone(),
            _ => {
                let verifier = (self.build)(authorities.clone(), self.provider.clone());
                *built = Some((authorities, verifier.clone()));
                verifier
            }
        };
        verifier.ok_or_else(|| CertificateError::UnknownIssuer.into())
    }
}

/// Whether the library refuses a certificate for a reason it has no variant for, as when it is that of an authority.
fn is_unusual(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::Other(_)))
}

/// A certificate that names a trusted authority and is not signed by it is one of an unknown authority of that name.
fn named_alike(error: Error) -> Error {
    match error {
        Error::InvalidCertificate(CertificateError::BadSignature) => CertificateError::UnknownIssuer.into(),
        error => error,
    }
}

/// What a listener demands of the certificates of its clients.
pub(super) struct ClientVerifier {
    chains: Chains<dyn ClientCertVerifier>,
    allowed: AllowedNames,
    revocations: Option<Followed<Revocations>>,
}

impl ClientVerifier {
    pub(super) fn new(
        authorities: Authorities,
        provider: Arc<CryptoProvider>,
        allowed: AllowedNames,
        revocations: Option<Followed<Revocations>>,
    ) -> Self {
        let build = |roots, provider| -> Option<Arc<dyn ClientCertVerifier>> {
            WebPkiClientVerifier::builder_with_provider(roots, provider).build().ok()
        };
        Self { chains: Chains::new(authorities, provider, build), allowed, revocations }
    }

    /// Checks certificates that were verified in an earlier connection once more: time goes on, and files change.
    pub(super) fn verify_again(&self, certificates: &[CertificateDer<'_>]) -> Result<(), Error> {
        let Some((first, others)) = certificates.split_first() else { return Err(Error::NoCertificatesPresented) };
        self.verify_client_cert(first, others, UnixTime::now()).map(drop)
    }
}

impl ClientCertVerifier for ClientVerifier {
    /// Empty, which means any: a client need not know that the authorities have changed.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verifier = self.chains.verifier()?;
        let verified = match verifier.verify_client_cert(end_entity, intermediates, now) {
            Err(refusal) if is_unusual(&refusal) => {
                let trusted = self.chains.authorities.current();
                verify_self_trusted(end_entity, &trusted, now, |usages| usages.client_auth, refusal)?;
                ClientCertVerified::assertion()
            }
            verified => verified.map_err(named_alike)?,
        };
        if !self.allowed.allow(end_entity) {
            return Err(CertificateError::NotValidForName.into());
        }
        let revoked = self.revocations.as_ref().is_some_and(|revocations| {
            let list = revocations.current();
            std::iter::once(end_entity).chain(intermediates).any(|certificate| list.contains(certificate))
        });
        if revoked { Err(CertificateError::Revoked.into()) } else { Ok(verified) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.chains.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.chains.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What a dialling side demands of the certificates of servers.
pub(super) struct ServerVerifier {
    /// None for no check at all, as with `--insecure-skip-tls-verify`.
    chains: Option<Chains<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
    allowed: AllowedNames,
}

impl ServerVerifier {
    /// Without authorities, every certificate is accepted.
    pub(super) fn new(authorities: Option<Authorities>, provider: Arc<CryptoProvider>, allowed: AllowedNames) -> Self {
        let build = |roots, provider| WebPkiServerVerifier::builder_with_provider(roots, provider).build().ok();
        let chains = authorities.map(|authorities| Chains::new(authorities, provider.clone(), build));
        Self { chains, provider, allowed }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chains) = &self.chains else { return Ok(ServerCertVerified::assertion()) };
        let verifier = chains.verifier()?;
        let verified = verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let verified = match verified {
            Err(refusal) if is_unusual(&refusal) => {
                let trusted = chains.authorities.current();
                verify_self_trusted_server(end_entity, &trusted, server_name, now, refusal)?;
                ServerCertVerified::assertion()
            }
            verified => verified.map_err(named_alike)?,
        };
        if self.allowed.allow(end_entity) { Ok(verified) } else { Err(CertificateError::NotValidForName.into()) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerVerifier").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}
