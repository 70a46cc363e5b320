use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use tokio_rustls::rustls::pki_types::UnixTime;
use tracing::{info, warn};

use super::identity::IdentityFiles;
use super::pem::{TlsError, system_text};

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A certificate that signs itself, in files that are made at the first start and used from then on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelfSigned {
    /// Holds `cert.pem` and `key.pem`.
    pub dir: PathBuf,
    /// Names and addresses the certificate is valid for.
    pub hosts: Vec<String>,
    /// Years for which it is valid, one at least.
    pub years: u32,
}

impl SelfSigned {
    /// The files; makes them unless both are there.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn files(&self) -> Result<IdentityFiles, TlsError> {
        let files = IdentityFiles { certificates: self.dir.join("cert.pem"), key: self.dir.join("key.pem") };
        if files.certificates.exists() && files.key.exists() {
            return Ok(files);
        }
        let made = |error: rcgen::Error| TlsError::Unusable(error.to_string());
        let mut params = CertificateParams::new(self.hosts.clone()).map_err(made)?;
        let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(UnixTime::now().as_secs());
        (params.not_before, params.not_after) = (now, now + YEAR * self.years);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "etcd");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        warn!(certificate_validity_bound_not_after = %params.not_after, "automatically generate certificates");
        let key = KeyPair::generate().map_err(made)?;
        let certificate = params.self_signed(&key).map_err(made)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(|error| failed(&self.dir, &error))?;
        write(&files.certificates, 0o644, &certificate.pem())?;
        info!(path = %files.certificates.display(), "created cert file");
        write(&files.key, 0o600, &key.serialize_pem())?;
        info!(path = %files.key.display(), "created key file");
        Ok(files)
    }
}

fn write(path: &Path, mode: u32, text: &str) -> Result<(), TlsError> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &std::io::Error) -> TlsError {
    TlsError::Write { path: path.display().to_string(), reason: system_text(error) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::net::Identity;

    #[test]
    fn files_are_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("fixtures").join("client");
        let hosts = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let made = SelfSigned { dir: dir.clone(), hosts, years: 2 };
        let files = made.files().unwrap();
        Identity::from_files(files.clone()).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&files.key)), (0o700, 0o600));
        let before = std::fs::read(&files.certificates).unwrap();
        assert_eq!(made.files().unwrap(), files);
        assert_eq!(std::fs::read(&files.certificates).unwrap(), before);
    }
}
