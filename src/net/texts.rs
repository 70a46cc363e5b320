use std::error::Error;
use std::io;

use tokio_rustls::rustls::{
    self, AlertDescription, CertificateError, InvalidMessage, PeerIncompatible, pki_types::ServerName,
};

/// What went wrong in a handshake or on a TLS connection, in Go's words: operators of etcd search for them.
pub(super) fn text(error: &io::Error) -> String {
    let known = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match known {
        Some(error) => tls_text(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
        None => error.to_string(),
    }
}

/// An I/O error of the same kind that says it.
pub(super) fn reworded(error: io::Error) -> io::Error {
    let is_tls = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
    if is_tls { io::Error::new(error.kind(), text(&error)) } else { error }
}

pub(super) fn tls_text(error: &rustls::Error) -> String {
    match error {
        rustls::Error::AlertReceived(alert) => format!("remote error: tls: {}", alert_text(*alert)),
        rustls::Error::InvalidCertificate(error) => certificate_text(error),
        rustls::Error::NoCertificatesPresented => "tls: client didn't provide a certificate".to_owned(),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            "tls: first record does not look like a TLS handshake".to_owned()
        }
        rustls::Error::PeerIncompatible(reason) => match reason {
            PeerIncompatible::NoCipherSuitesInCommon => {
                "tls: no cipher suite supported by both client and server".to_owned()
            }
            PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::SupportedVersionsExtensionRequired => {
                "tls: client offered only unsupported versions".to_owned()
            }
            PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::ServerDoesNotSupportTls12Or13 => {
                "tls: server selected unsupported protocol version".to_owned()
            }
            reason => format!("tls: peer is incompatible: {reason:?}"),
        },
        rustls::Error::NoApplicationProtocol => "tls: client requested unsupported application protocols".to_owned(),
        error => format!("tls: {error}"),
    }
}

fn certificate_text(error: &CertificateError) -> String {
    let reason = match error {
        // Only the lists of allowed names say it so; a wrong name of a server comes with names.
        CertificateError::NotValidForName => return "client certificate authentication failed".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let expected = match expected {
                ServerName::IpAddress(address) => std::net::IpAddr::from(*address).to_string(),
                name => name.to_str().into_owned(),
            };
            let presented: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
            match presented.is_empty() {
                true => format!("certificate is not valid for any names, but wanted to match {expected}"),
                false => format!("certificate is valid for {}, not {expected}", presented.join(", ")),
            }
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => "certificate has expired or is not yet valid".to_owned(),
        CertificateError::UnknownIssuer => "certificate signed by unknown authority".to_owned(),
        CertificateError::Revoked => "certificate is revoked".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "certificate specifies an incompatible key usage".to_owned()
        }
        other => other.to_string(),
    };
    format!("tls: failed to verify certificate: x509: {reason}")
}

/// The library writes names as `DnsName("a")` and `IpAddress(127.0.0.1)`.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    inner.trim_matches('"')
}

/// As Go's crypto/tls prints alerts.
fn alert_text(alert: AlertDescription) -> String {
    let text = match alert {
        AlertDescription::CloseNotify => "close notify",
        AlertDescription::UnexpectedMessage => "unexpected message",
        AlertDescription::BadRecordMac => "bad record MAC",
        AlertDescription::RecordOverflow => "record overflow",
        AlertDescription::HandshakeFailure => "handshake failure",
        AlertDescription::BadCertificate => "bad certificate",
        AlertDescription::UnsupportedCertificate => "unsupported certificate",
        AlertDescription::CertificateRevoked => "revoked certificate",
        AlertDescription::CertificateExpired => "expired certificate",
        AlertDescription::CertificateUnknown => "unknown certificate",
        AlertDescription::IllegalParameter => "illegal parameter",
        AlertDescription::UnknownCA => "unknown certificate authority",
        AlertDescription::AccessDenied => "access denied",
        AlertDescription::DecodeError => "error decoding message",
        AlertDescription::DecryptError => "error decrypting message",
        AlertDescription::ProtocolVersion => "protocol version not supported",
        AlertDescription::InsufficientSecurity => "insufficient security level",
        AlertDescription::InternalError => "internal error",
        AlertDescription::UserCanceled => "user canceled",
        AlertDescription::UnrecognisedName => "unrecognized name",
        AlertDescription::CertificateRequired => "certificate required",
        AlertDescription::NoApplicationProtocol => "no application protocol",
        other => return format!("alert({})", u8::from(other)),
    };
    text.to_owned()
}

/// The text of an error and of what caused it: some libraries only name the place.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
