//! Certificates for tests.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DistinguishedName, DnType,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};

use super::{Authorities, Identity, IdentityFiles};

/// A certificate authority.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    serial: AtomicU64,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        Self { issuer: CertifiedIssuer::self_signed(params, key).expect("valid"), serial: AtomicU64::new(1000) }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub(crate) fn authorities(&self) -> Authorities {
        Authorities::from_pem(self.pem().as_bytes()).expect("usable")
    }

    /// A signed certificate for `name`, and its key.
    pub(crate) fn sign(&self, name: &str) -> (String, String) {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        self.sign_with(&[name], |params| params.serial_number = Some(SerialNumber::from(serial)))
    }

    /// A signed certificate for these names, and its key.
    pub(crate) fn sign_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        (params.signed_by(&key, &self.issuer).expect("signed").pem(), key.serialize_pem())
    }

    pub(crate) fn identity(&self, name: &str) -> Identity {
        let (certificate, key) = self.sign(name);
        Identity::from_pem(certificate.as_bytes(), key.as_bytes()).expect("usable")
    }

    /// A list of revoked certificates, in DER and in PEM form.
    pub(crate) fn revoke(&self, serials: &[u64]) -> (Vec<u8>, String) {
        let revoked = |&serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2124, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).expect("signed");
        (list.der().to_vec(), list.pem().expect("PEM"))
    }
}

/// Gives a certificate this common name.
pub(crate) fn named(common_name: &str) -> impl FnOnce(&mut CertificateParams) + use<> {
    let common_name = common_name.to_owned();
    move |params| {
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
    }
}

/// Writes certificate and key to files called `name`.
pub(crate) fn write(folder: &Path, name: &str, (certificate, key): (String, String)) -> IdentityFiles {
    let files =
        IdentityFiles { certificates: folder.join(format!("{name}.crt")), key: folder.join(format!("{name}.key")) };
    std::fs::write(&files.certificates, certificate).expect("written");
    std::fs::write(&files.key, key).expect("written");
    files
}
