use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls;
use tokio_rustls::rustls::SignatureScheme;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

use super::followed::Followed;
use super::names::CertificateNames;
use super::pem::{self, TlsError, certificates, read, unusable};

/// The files of a certificate and its key, in PEM form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The certificate, then those between it and the authority.
    pub certificates: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// A certificate and its key, read again when the files change, as etcd does.
#[derive(Debug)]
pub struct Identity(Followed<CertifiedKey>);

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn from_files(files: IdentityFiles) -> Result<Self, TlsError> {
        let paths = vec![files.certificates.clone(), files.key.clone()];
        Followed::open("certificate", paths, move || files.read()).map(Self)
    }

    /// From PEM texts.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        parse("certificate", certificates, "key", key).map(|key| Self(Followed::fixed(key)))
    }

    fn current(&self) -> Arc<CertifiedKey> {
        self.0.current()
    }

    /// The common name of the certificate; none when it is empty.
    pub fn common_name(&self) -> Option<Box<str>> {
        let key = self.0.current();
        key.cert.first().and_then(CertificateNames::of)?.common_name
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl IdentityFiles {
    fn read(&self) -> Result<CertifiedKey, TlsError> {
        let (certificates, key) = (self.certificates.display(), self.key.display());
        parse(
            &format!("certificate {certificates}"),
            &read(&self.certificates)?,
            &format!("key {key}"),
            &read(&self.key)?,
        )
    }
}

fn parse(chain_name: &str, chain: &[u8], key_name: &str, key: &[u8]) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(chain_name, chain)?;
    let key = pem::key(key_name, key)?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::Mismatch { certificates: chain_name.to_owned(), key: key_name.to_owned() }
        }
        error => unusable(error),
    })
}
