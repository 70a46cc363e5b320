use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::RootCertStore;

use super::followed::Followed;
use super::pem::{TlsError, certificates, read, unusable};

/// Where systems keep the authorities they trust, the most common place first.
const SYSTEM_FILES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Whose certificates are accepted. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Authorities(Arc<Followed<RootCertStore>>);

impl Authorities {
    /// From PEM text.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(Followed::fixed(roots("authorities", pem)?))))
    }

    /// From a file in PEM form, which is read again when it changes.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn from_file(path: &Path) -> Result<Self, TlsError> {
        let file = path.to_owned();
        let read = move || roots(&format!("authorities {}", file.display()), &read(&file)?);
        Ok(Self(Arc::new(Followed::open("authorities", vec![path.to_owned()], read)?)))
    }

    /// Those the system trusts, in the file that `SSL_CERT_FILE` names or in the usual places; none where there is no
    /// such file. Certificates in it that cannot be read are left out.
    pub fn of_system() -> Self {
        let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
        let files = named.into_iter().chain(SYSTEM_FILES.into_iter().map(PathBuf::from));
        let mut store = RootCertStore::empty();
        let found = files.into_iter().find_map(|file| certificates("authorities", &read(&file).ok()?).ok());
        store.add_parsable_certificates(found.unwrap_or_default());
        Self(Arc::new(Followed::fixed(store)))
    }

    /// Those of the file, or of the system without one.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn of(file: Option<&Path>) -> Result<Self, TlsError> {
        file.map_or_else(|| Ok(Self::of_system()), Self::from_file)
    }

    pub(super) fn current(&self) -> Arc<RootCertStore> {
        self.0.current()
    }
}

fn roots(what: &str, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(what, pem)? {
        roots.add(authority).map_err(unusable)?;
    }
    Ok(roots)
}
