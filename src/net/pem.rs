use std::io;
use std::path::Path;

use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say what variants and fields are")]
pub enum TlsError {
    #[error("read {path}")]
    Read { path: String, source: io::Error },
    /// The text is no PEM, or holds nothing of this kind.
    #[error("{what} cannot be read: {reason}")]
    Pem { what: &'static str, reason: String },
    /// Certificate and key do not fit, or are of a kind that is not supported.
    #[error("certificate cannot be used: {0}")]
    Unusable(String),
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.display().to_string(), source })
}

pub(super) fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(|error| TlsError::Pem { what, reason: error.to_string() })?;
    if read.is_empty() {
        return Err(TlsError::Pem { what, reason: "no certificate in it".into() });
    }
    Ok(read)
}

pub(super) fn unusable(error: rustls::Error) -> TlsError {
    TlsError::Unusable(error.to_string())
}

pub(super) fn key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| TlsError::Pem { what: "key", reason: error.to_string() })
}
