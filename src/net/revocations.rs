use std::collections::HashSet;
use std::path::Path;

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_parser::pem::Pem;
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::names::{CertificateNames, without_zeros};
use super::pem::{TlsError, read};

/// Serial numbers of certificates that are not accepted any more. As in etcd, a number counts whoever signed list and
/// certificate.
#[derive(Debug, Default)]
pub(super) struct Revocations(HashSet<Vec<u8>>);

impl Revocations {
    /// From a certificate revocation list in DER form, as etcd takes it, or from one or more in PEM form.
    pub(super) fn from_file(path: &Path) -> Result<Self, TlsError> {
        Self::parse(&read(path)?)
            .map_err(|reason| TlsError::Pem { what: format!("certificate revocation list {}", path.display()), reason })
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut revocations = Self::default();
        if !bytes.starts_with(b"-----BEGIN") {
            revocations.add(bytes)?;
            return Ok(revocations);
        }
        // Each authority signs a list of its own.
        let mut lists = Pem::iter_from_buffer(bytes).peekable();
        if lists.peek().is_none() {
            return Err("no PEM: there is no block in it".to_owned());
        }
        for list in lists {
            let list = list.map_err(|error| format!("no PEM: {error}"))?;
            revocations.add(&list.contents)?;
        }
        Ok(revocations)
    }

    /// Adds what a list in DER form holds.
    fn add(&mut self, der: &[u8]) -> Result<(), String> {
        let (_, list) = CertificateRevocationList::from_der(der).map_err(|error| format!("no list: {error}"))?;
        self.0.extend(list.iter_revoked_certificates().map(|revoked| without_zeros(revoked.raw_serial()).to_vec()));
        Ok(())
    }

    /// Whether the certificate is in the list. What cannot be read does not get this far: its chain was verified.
    pub(super) fn contains(&self, certificate: &CertificateDer<'_>) -> bool {
        CertificateNames::of(certificate).is_some_and(|names| self.0.contains(&names.serial))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::Authority;

    #[test]
    fn both_forms_of_a_list_are_read() {
        let authority = Authority::new();
        let (der, pem) = authority.revoke(&[7, 300]);
        for bytes in [der, pem.into_bytes()] {
            let list = Revocations::parse(&bytes).unwrap();
            assert!(list.0.contains(&vec![7]) && list.0.contains(&vec![1, 44]) && list.0.len() == 2);
        }
    }

    #[test]
    fn all_lists_of_a_file_count() {
        // Cause: only the first was read, and certificates that another authority had revoked were accepted.
        let [(_, one), (_, other)] = [7, 300].map(|serial| Authority::new().revoke(&[serial]));
        let list = Revocations::parse(format!("{one}\n{other}\n").as_bytes()).unwrap();
        assert!(list.0.contains(&vec![7]) && list.0.contains(&vec![1, 44]) && list.0.len() == 2);
        let damaged = format!("{one}\n-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
        assert!(Revocations::parse(damaged.as_bytes()).is_err());
    }

    #[test]
    fn what_is_no_list_is_refused() {
        assert!(Revocations::parse(b"").is_err() && Revocations::parse(b"-----BEGIN X").is_err());
        assert!(Revocations::parse(b"-----BEGINNING").is_err());
        proptest::proptest!(|(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300))| {
            let _ = Revocations::parse(&bytes);
        });
    }
}
