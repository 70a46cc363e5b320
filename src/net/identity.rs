use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_rustls::rustls::SignatureScheme;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tracing::{info, warn};

use super::pem::{self, TlsError, certificates, read, unusable};

/// The files of a certificate and its key, in PEM form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The certificate, then those between it and the authority.
    pub certificates: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// A certificate and its key, read again when the files change, as etcd does: a handshake shows what they hold then.
#[derive(Debug)]
pub struct Identity {
    /// None for one that was given as text.
    files: Option<IdentityFiles>,
    loaded: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    key: Arc<CertifiedKey>,
    /// Of the files that were last read, whether they could be used or not.
    stamps: Option<[Stamp; 2]>,
}

/// What differs when a file was written again or replaced: device, inode, seconds and nanoseconds of the last change of
/// its inode.
type Stamp = (u64, u64, i64, i64);

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn from_files(files: IdentityFiles) -> Result<Self, TlsError> {
        // Before the contents, so that a change in between is noticed later.
        let stamps = files.stamps().ok();
        let key = files.read()?;
        Ok(Self { files: Some(files), loaded: Mutex::new(Loaded { key, stamps }) })
    }

    /// From PEM texts.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let key = parse(certificates, key)?;
        Ok(Self { files: None, loaded: Mutex::new(Loaded { key, stamps: None }) })
    }

    /// What to show now. Files that cannot be used, such as a new certificate whose key has not been written yet, leave
    /// what was shown before.
    fn current(&self) -> Arc<CertifiedKey> {
        let mut loaded = self.loaded.lock();
        if let Some(files) = &self.files {
            let stamps = files.stamps().ok();
            if stamps.is_some() && stamps != loaded.stamps {
                loaded.stamps = stamps;
                match files.read() {
                    Ok(key) => {
                        info!(certificates = %files.certificates.display(), "certificate was read again");
                        loaded.key = key;
                    }
                    Err(error) => {
                        warn!(certificates = %files.certificates.display(), %error, "changed certificate is not used");
                    }
                }
            }
        }
        loaded.key.clone()
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
    fn read(&self) -> Result<Arc<CertifiedKey>, TlsError> {
        parse(&read(&self.certificates)?, &read(&self.key)?)
    }

    fn stamps(&self) -> io::Result<[Stamp; 2]> {
        let stamp = |path: &Path| {
            let file = std::fs::metadata(path)?;
            io::Result::Ok((file.dev(), file.ino(), file.ctime(), file.ctime_nsec()))
        };
        Ok([stamp(&self.certificates)?, stamp(&self.key)?])
    }
}

fn parse(chain: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates("certificate", chain)?;
    let key = CertifiedKey::from_der(chain, pem::key(key)?, &ring::default_provider()).map_err(unusable)?;
    Ok(Arc::new(key))
}
