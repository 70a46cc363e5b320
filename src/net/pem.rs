use std::io;
use std::path::Path;

use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say what variants and fields are")]
pub enum TlsError {
    #[error("open {path}: {reason}")]
    Read { path: String, reason: String },
    /// The text is no PEM, or holds nothing of this kind.
    #[error("{what} cannot be read: {reason}")]
    Pem { what: String, reason: String },
    /// A key that is protected by a password.
    #[error("{0} is encrypted, which is not supported: write it without a password, as by `openssl pkey`")]
    EncryptedKey(String),
    #[error("tls: private key does not match public key ({certificates}, {key})")]
    Mismatch { certificates: String, key: String },
    /// Of a kind that is not supported, or broken.
    #[error("certificate cannot be used: {0}")]
    Unusable(String),
    #[error("write {path}: {reason}")]
    Write { path: String, reason: String },
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path)
        .map_err(|error| TlsError::Read { path: path.display().to_string(), reason: system_text(&error) })
}

/// The text of the system without its number, as Go has it.
pub(super) fn system_text(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// `what` names the text in errors.
pub(super) fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |reason: String| TlsError::Pem { what: what.to_owned(), reason };
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(|reason| error(reason.to_string()))?;
    if read.is_empty() {
        return Err(error("no certificate in it".into()));
    }
    Ok(read)
}

pub(super) fn unusable(error: rustls::Error) -> TlsError {
    TlsError::Unusable(error.to_string())
}

/// `what` names the text in errors.
pub(super) fn key(what: &str, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    // Either in the label or, in the old form, in a header below it.
    if pem.split(|&byte| byte == b'\n').any(|line| is_mark_of_encryption(line.trim_ascii_end())) {
        return Err(TlsError::EncryptedKey(what.to_owned()));
    }
    // The library's error may quote the text.
    let reason = "no private key in PEM form in it".to_owned();
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| TlsError::Pem { what: what.to_owned(), reason })
}

fn is_mark_of_encryption(line: &[u8]) -> bool {
    line.starts_with(b"-----BEGIN ENCRYPTED") || (line.starts_with(b"Proc-Type:") && line.ends_with(b"ENCRYPTED"))
}
