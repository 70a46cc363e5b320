//! Certificates for tests.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{CertificateParams, KeyPair, SerialNumber};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore};

use issuer::{Issuer, common_name};

use super::{Authorities, Identity, IdentityFiles, TlsPolicy};

#[path = "../../tests/harness/issuer.rs"]
mod issuer;

/// A certificate authority.
pub(crate) struct Authority {
    issuer: Issuer,
    serial: AtomicU64,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self { issuer: Issuer::new(), serial: AtomicU64::new(1000) }
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
        (self.issuer.sign(&params, &key).expect("signed").pem(), key.serialize_pem())
    }

    pub(crate) fn identity(&self, name: &str) -> Identity {
        let (certificate, key) = self.sign(name);
        Identity::from_pem(certificate.as_bytes(), key.as_bytes()).expect("usable")
    }

    /// A list of revoked certificates, in DER and in PEM form.
    pub(crate) fn revoke(&self, serials: &[u64]) -> (Vec<u8>, String) {
        let list = self.issuer.revoke(serials.iter().map(|&serial| SerialNumber::from(serial)));
        (list.der().to_vec(), list.pem().expect("PEM"))
    }
}

/// Gives a certificate this common name.
pub(crate) fn named(name: &str) -> impl FnOnce(&mut CertificateParams) + use<> {
    let subject = common_name(name);
    move |params| params.distinguished_name = subject
}

/// Writes certificate and key to files called `name`.
pub(crate) fn write(folder: &Path, name: &str, (certificate, key): (String, String)) -> IdentityFiles {
    let files =
        IdentityFiles { certificates: folder.join(format!("{name}.crt")), key: folder.join(format!("{name}.key")) };
    std::fs::write(&files.certificates, certificate).expect("written");
    std::fs::write(&files.key, key).expect("written");
    files
}

/// The first bytes of a TLS client that connects to `host` and offers these protocols.
pub(crate) fn client_hello(host: &str, protocols: &[&str]) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(TlsPolicy::default().provider());
    let config = config.with_safe_default_protocol_versions().expect("versions");
    let mut config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(host.to_owned()).expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("written to memory");
    bytes
}
