//! Certificates, keys and lists of revoked certificates, in DER and PEM form: reading any bytes ends in a value or in an
//! error. A certificate that was changed is not accepted, one that is listed is refused, and its names are those it was made
//! with.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use rcgen::{CertificateParams, KeyPair, SanType, SerialNumber};
use watershed::net::fuzzing::{accepts_client, accepts_server, allowed, names, revoked, valid_for};
use watershed::net::{AllowedNames, Authorities, Identity, ServerTls};

use issuer::{Issuer, common_name};

#[path = "../../tests/harness/issuer.rs"]
mod issuer;

const LABELS: [&str; 7] = [
    "CERTIFICATE",
    "X509 CRL",
    "PRIVATE KEY",
    "EC PRIVATE KEY",
    "RSA PRIVATE KEY",
    "ENCRYPTED PRIVATE KEY",
    "CERTIFICATE REQUEST",
];

struct Samples {
    issuer: Issuer,
    authorities: Authorities,
    /// Of every certificate made here.
    key: KeyPair,
    certificate: Vec<u8>,
    list: Vec<u8>,
}

fn samples() -> &'static Samples {
    static SAMPLES: OnceLock<Samples> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let issuer = Issuer::new();
        let authorities = Authorities::from_pem(issuer.pem().as_bytes()).expect("usable");
        let key = KeyPair::generate().expect("a key");
        let names = ["localhost", "*.example.com", "127.0.0.1", "::1"].map(str::to_owned);
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name = common_name("alice");
        params.serial_number = Some(SerialNumber::from(7_u64));
        let certificate = issuer.sign(&params, &key).expect("signed").der().to_vec();
        let list = list_of(&issuer, &[&[9], &[1, 44]]);
        Samples { issuer, authorities, key, certificate, list }
    })
}

fn list_of(issuer: &Issuer, serials: &[&[u8]]) -> Vec<u8> {
    issuer.revoke(serials.iter().map(|serial| SerialNumber::from(serial.to_vec()))).der().to_vec()
}

fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der)).into_bytes()
}

/// Changes bytes at places of the input's choice.
fn changed(bytes: &[u8], changes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for change in changes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
        bytes[at] ^= change[2];
    }
    bytes
}

fn certificate(der: &[u8]) {
    let Samples { authorities, certificate, list, .. } = samples();
    for host in ["localhost", "a.example.com", "127.0.0.1", "[::1]", "", ".", "alice"] {
        if let Some(Err(text)) = valid_for(der, host) {
            assert!(text.starts_with("x509: "));
        }
    }
    let read = names(der);
    for allowing in [
        AllowedNames::CommonNames(vec!["alice".to_owned()]),
        AllowedNames::CommonNames(vec![String::new()]),
        AllowedNames::HostNames(vec!["localhost".to_owned()]),
    ] {
        assert!(read.is_some() || !allowed(&allowing, der), "no certificate, and yet allowed");
    }
    let _ = revoked(list, der);
    if der != certificate {
        assert!(!accepts_client(authorities, &AllowedNames::Any, None, der, &[]), "a forged certificate");
        assert!(!accepts_client(authorities, &AllowedNames::Any, None, der, &[certificate]), "a forged certificate");
        assert!(!accepts_server(authorities, &AllowedNames::Any, der, "localhost"), "a forged certificate");
    }
}

fn files(chain: &[u8], key: &[u8]) {
    let _ = Authorities::from_pem(chain);
    if let Ok(identity) = Identity::from_pem(chain, key) {
        let _ = identity.common_name();
        assert!(ServerTls::mutual(identity, &samples().authorities).is_ok());
    }
}

/// A certificate with these names, by one authority: what is read of it is what it was made with, and it is accepted for
/// the names that the TLS library finds in it.
fn made(common: &str, alternative: &[&[u8]], host: &str) {
    let Samples { issuer, authorities, key, .. } = samples();
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(common);
    let (mut dns_names, mut addresses) = (Vec::new(), Vec::<IpAddr>::new());
    for name in alternative {
        if let Ok(address) = <[u8; 4]>::try_from(*name) {
            addresses.push(Ipv4Addr::from(address).into());
        } else if let Ok(address) = <[u8; 16]>::try_from(*name) {
            addresses.push(Ipv6Addr::from(address).into());
        } else if let Ok(text) = std::str::from_utf8(name)
            && let Ok(name) = text.try_into()
        {
            dns_names.push(text.to_owned());
            params.subject_alt_names.push(SanType::DnsName(name));
        }
    }
    params.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
    let Ok(certificate) = issuer.sign(&params, key) else { return };
    let der = certificate.der();
    let read = names(der).expect("a certificate");
    assert_eq!(read.common_name.as_deref().unwrap_or_default(), common);
    assert_eq!((&read.dns_names, &read.addresses), (&dns_names, &addresses));
    let only = |name: &str| AllowedNames::CommonNames(vec![name.to_owned()]);
    assert!(allowed(&only(common), der) && !allowed(&only(&format!("{common}x")), der));
    let valid = valid_for(der, host).expect("a certificate").is_ok();
    assert_eq!(allowed(&AllowedNames::HostNames(vec![host.to_owned()]), der), valid);
    // A name that the library cannot read makes it refuse the certificate.
    let accepted = accepts_client(authorities, &AllowedNames::Any, None, der, &[]);
    if accepted {
        assert!(accepts_client(authorities, &only(common), None, der, &[]));
        assert!(!accepts_client(authorities, &only(&format!("{common}x")), None, der, &[]));
    }
    if accepts_server(authorities, &AllowedNames::Any, der, host) {
        assert!(valid, "{host}: the library accepts what is refused here: {dns_names:?} {addresses:?}");
    }
}

/// Lists of these serial numbers, and a certificate with one: it is revoked exactly if its number is in the list.
fn listed(serial: &[u8], serials: &[&[u8]]) {
    let Samples { issuer, authorities, key, .. } = samples();
    let list = list_of(issuer, serials);
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from(serial.to_vec()));
    let Ok(certificate) = issuer.sign(&params, key) else { return };
    let der = certificate.der();
    let bare = |serial: &[u8]| -> Vec<u8> { serial.iter().copied().skip_while(|byte| *byte == 0).collect() };
    let is_listed = serials.iter().any(|listed| bare(listed) == bare(serial));
    for list in [&list, &pem("X509 CRL", &list)] {
        assert_eq!(revoked(list, der), Some(is_listed), "{serial:x?} {serials:x?}");
        let accepted = accepts_client(authorities, &AllowedNames::Any, None, der, &[]);
        assert_eq!(accepts_client(authorities, &AllowedNames::Any, Some(list), der, &[]), accepted && !is_listed);
    }
}

/// Parts of the input: each begins with its length.
fn parts(mut rest: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some((&length, after)) = rest.split_first() {
        let (part, after) = after.split_at(usize::from(length % 64).min(after.len()));
        parts.push(part);
        rest = after;
    }
    parts
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    let label = LABELS[usize::from(kind >> 4) % LABELS.len()];
    let Samples { key, certificate: sample, list, .. } = samples();
    match kind % 10 {
        0 => certificate(rest),
        1 => certificate(&changed(sample, rest)),
        2 => {
            let (chain, key) = rest.split_at(rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len()));
            files(chain, key);
        }
        3 => files(&pem(label, rest), &pem("PRIVATE KEY", key.serialized_der())),
        4 => files(&pem("CERTIFICATE", sample), &pem(label, rest)),
        5 => {
            files(&pem("CERTIFICATE", &changed(sample, rest)), &pem("PRIVATE KEY", key.serialized_der()));
            files(&pem("CERTIFICATE", sample), &pem("PRIVATE KEY", &changed(key.serialized_der(), rest)));
        }
        6 => {
            let _ = (revoked(rest, sample), revoked(&pem(label, rest), sample));
        }
        7 => {
            let list = changed(list, rest);
            let _ = (revoked(&list, sample), revoked(&pem("X509 CRL", &list), sample));
        }
        8 => {
            let parts = parts(rest);
            let [common, host, alternative @ ..] = &parts[..] else { return };
            let (Ok(common), Ok(host)) = (std::str::from_utf8(common), std::str::from_utf8(host)) else { return };
            made(common, alternative, host);
        }
        _ => {
            let parts = parts(rest);
            let Some((serial, serials)) = parts.split_first() else { return };
            let serials: Vec<_> = serials.iter().copied().filter(|serial| !serial.is_empty()).collect();
            if !serial.is_empty() {
                listed(serial, &serials);
            }
        }
    }
});
