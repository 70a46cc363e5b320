//! For fuzz targets only: what is read of certificates and lists of revoked ones, and whom a listener accepts, without a
//! connection.

use std::net::IpAddr;

use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;

use super::followed::Followed;
use super::names::CertificateNames;
use super::revocations::Revocations;
use super::verify::{ClientVerifier, ServerVerifier};
use super::{AllowedNames, Authorities, TlsPolicy};

/// What a certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The common name.
    pub common_name: Option<String>,
    /// Names among the alternative names.
    pub dns_names: Vec<String>,
    /// Addresses among them.
    pub addresses: Vec<IpAddr>,
    /// The serial number without leading zeros.
    pub serial: Vec<u8>,
}

/// The names of a certificate; none for what is no certificate.
pub fn names(der: &[u8]) -> Option<Names> {
    let names = CertificateNames::of(&CertificateDer::from(der))?;
    let CertificateNames { common_name, dns_names, addresses, serial, .. } = names;
    Some(Names { common_name: common_name.map(Into::into), dns_names, addresses, serial })
}

/// Whether a certificate is valid for `host`, and otherwise the text for the operator; none for what is no certificate.
pub fn valid_for(der: &[u8], host: &str) -> Option<Result<(), String>> {
    let names = CertificateNames::of(&CertificateDer::from(der))?;
    Some(if names.is_valid_for(host) { Ok(()) } else { Err(names.invalid_for(host)) })
}

/// Whether the names of a certificate are among those that are allowed.
pub fn allowed(names: &AllowedNames, der: &[u8]) -> bool {
    names.allow(&CertificateDer::from(der))
}

/// Whether a list of revoked certificates has this one; none for what is no list.
pub fn revoked(list: &[u8], der: &[u8]) -> Option<bool> {
    Revocations::parse(list).ok().map(|list| list.contains(&CertificateDer::from(der)))
}

/// Whether a listener serves a client that shows this certificate and those between it and an authority.
pub fn accepts_client(
    authorities: &Authorities,
    names: &AllowedNames,
    list: Option<&[u8]>,
    der: &[u8],
    between: &[&[u8]],
) -> bool {
    let list = list.and_then(|list| Revocations::parse(list).ok()).map(Followed::fixed);
    let verifier = ClientVerifier::new(authorities.clone(), TlsPolicy::default().provider(), names.clone(), list);
    let between: Vec<_> = between.iter().map(|der| CertificateDer::from(*der)).collect();
    verifier.verify_client_cert(&CertificateDer::from(der), &between, UnixTime::now()).is_ok()
}

/// Whether a dialling side accepts a server that shows this certificate, when it dials `host`.
pub fn accepts_server(authorities: &Authorities, names: &AllowedNames, der: &[u8], host: &str) -> bool {
    let Ok(name) = ServerName::try_from(host.to_owned()) else { return false };
    let verifier = ServerVerifier::new(Some(authorities.clone()), TlsPolicy::default().provider(), names.clone());
    verifier.verify_server_cert(&CertificateDer::from(der), &[], &name, &[], UnixTime::now()).is_ok()
}
