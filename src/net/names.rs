use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What a certificate says of its holder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateNames {
    /// The last common name of the subject, as Go reads it; none when it is empty.
    pub common_name: Option<Box<str>>,
    /// Names among the alternative names of the subject.
    pub dns_names: Vec<String>,
    /// URIs among them.
    pub uris: Vec<String>,
    /// Addresses among them.
    pub addresses: Vec<IpAddr>,
    /// The serial number without leading zeros.
    pub serial: Vec<u8>,
}

/// Whose verified certificates are accepted, by what they say of their holder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AllowedNames {
    /// All.
    #[default]
    Any,
    /// Those with one of these common names.
    CommonNames(Vec<String>),
    /// Those that are valid for one of these names or addresses.
    HostNames(Vec<String>),
}

impl CertificateNames {
    /// None for what is no certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let common_name = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok()).last();
        let mut names = Self {
            common_name: common_name.filter(|name| !name.is_empty()).map(Into::into),
            serial: without_zeros(certificate.raw_serial()).to_vec(),
            ..Self::default()
        };
        let alternative = certificate.subject_alternative_name().ok().flatten();
        for name in alternative.into_iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::DNSName(name) => names.dns_names.push((*name).to_owned()),
                GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
                GeneralName::IPAddress(bytes) => names.addresses.extend(address(bytes)),
                _ => {}
            }
        }
        Some(names)
    }

    /// Whether a server or client with this certificate may call itself `host`: a name, or an address.
    pub(super) fn is_valid_for(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return self.addresses.iter().any(|valid| valid.to_canonical() == address.to_canonical());
        }
        self.dns_names.iter().any(|pattern| matches(pattern, host))
    }

    /// Checks that a client that came from `client` may show it, as etcd does between members: one of its addresses is
    /// that address, or one of its names has it.
    ///
    /// etcd asks for the names of the address, too, which is the only way to check a name with `*`; here a
    /// certificate with such a name is accepted from everywhere.
    ///
    /// # Errors
    /// Go's or etcd's text.
    pub(super) async fn check_address(&self, client: IpAddr) -> Result<(), String> {
        let client = client.to_canonical();
        let is_valid = self.addresses.is_empty() && self.dns_names.is_empty()
            || self.is_valid_for(&client.to_string())
            || self.dns_names.iter().any(|name| name.starts_with("*."));
        if is_valid {
            return Ok(());
        }
        if self.dns_names.is_empty() {
            return Err(self.invalid_for(&client.to_string()));
        }
        for name in &self.dns_names {
            let Ok(mut found) = tokio::net::lookup_host((name.as_str(), 0)).await else { continue };
            if found.any(|address| address.ip().to_canonical() == client) {
                return Ok(());
            }
        }
        Err(format!("tls: {:?} does not match any of DNSNames {:?}", client.to_string(), self.dns_names))
    }

    /// Why it is not valid for `host`, in Go's words.
    pub(super) fn invalid_for(&self, host: &str) -> String {
        let valid: Vec<String> = match host.parse::<IpAddr>() {
            Ok(_) if self.addresses.is_empty() => {
                return format!("x509: cannot validate certificate for {host} because it doesn't contain any IP SANs");
            }
            Ok(_) => self.addresses.iter().map(ToString::to_string).collect(),
            Err(_) => self.dns_names.clone(),
        };
        if valid.is_empty() {
            return format!("x509: certificate is not valid for any names, but wanted to match {host}");
        }
        format!("x509: certificate is valid for {}, not {host}", valid.join(", "))
    }
}

impl AllowedNames {
    /// From a list of common names and one of host names, of which one has to be empty.
    pub fn new(common_names: Vec<String>, host_names: Vec<String>) -> Option<Self> {
        match (common_names.is_empty(), host_names.is_empty()) {
            (true, true) => Some(Self::Any),
            (false, true) => Some(Self::CommonNames(common_names)),
            (true, false) => Some(Self::HostNames(host_names)),
            (false, false) => None,
        }
    }

    pub(super) fn allow(&self, certificate: &CertificateDer<'_>) -> bool {
        let names = || CertificateNames::of(certificate);
        match self {
            Self::Any => true,
            Self::CommonNames(allowed) => names().is_some_and(|names| {
                let name = names.common_name.as_deref().unwrap_or_default();
                allowed.iter().any(|allowed| allowed == name)
            }),
            Self::HostNames(allowed) => {
                names().is_some_and(|names| allowed.iter().any(|allowed| names.is_valid_for(allowed)))
            }
        }
    }
}

pub(super) fn without_zeros(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|&&byte| byte == 0).count();
    &serial[zeros..]
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(bytes).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|bytes| Ipv6Addr::from(bytes).into())
}

/// A `*` stands for one label, the first.
fn matches(pattern: &str, host: &str) -> bool {
    let (pattern, host) = (pattern.trim_end_matches('.'), host.trim_end_matches('.'));
    if pattern.is_empty() || host.is_empty() {
        return false;
    }
    match pattern.strip_prefix("*.") {
        Some(rest) => {
            host.split_once('.').is_some_and(|(label, host)| !label.is_empty() && host.eq_ignore_ascii_case(rest))
        }
        None => pattern.eq_ignore_ascii_case(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_go() {
        let names = CertificateNames {
            dns_names: vec!["a.example".into(), "*.B.example".into(), "*".into()],
            addresses: vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
            ..CertificateNames::default()
        };
        for valid in ["a.example", "A.EXAMPLE.", "x.b.example", "127.0.0.1", "[::1]", "::ffff:127.0.0.1"] {
            assert!(names.is_valid_for(valid), "{valid}");
        }
        for invalid in ["", ".", "b.example", "x.y.b.example", ".b.example", "127.0.0.2", "x.a.example", "foo"] {
            assert!(!names.is_valid_for(invalid), "{invalid}");
        }
        assert_eq!(names.invalid_for("10.0.0.1"), "x509: certificate is valid for 127.0.0.1, ::1, not 10.0.0.1");
        assert_eq!(names.invalid_for("c"), "x509: certificate is valid for a.example, *.B.example, *, not c");
    }

    #[test]
    fn common_names_and_host_names_exclude_each_other() {
        let list = || vec!["a".to_owned()];
        assert_eq!(AllowedNames::new(Vec::new(), Vec::new()), Some(AllowedNames::Any));
        assert_eq!(AllowedNames::new(list(), Vec::new()), Some(AllowedNames::CommonNames(list())));
        assert_eq!(AllowedNames::new(Vec::new(), list()), Some(AllowedNames::HostNames(list())));
        assert_eq!(AllowedNames::new(list(), list()), None);
    }

    #[test]
    fn what_is_no_certificate_has_no_names() {
        proptest::proptest!(|(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200))| {
            assert!(!AllowedNames::CommonNames(vec![String::new()]).allow(&CertificateDer::from(bytes)));
        });
    }
}
