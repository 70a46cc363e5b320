use std::net::{IpAddr, SocketAddr};

use clap::{ArgAction, Args};

use super::error::ConfigError;

/// The port of DNS.
const DNS_PORT: u16 = 53;
/// What DNS takes, without the names before it.
const DOMAIN_MAX: usize = 253 - "_etcd-client-ssl._tcp.".len();

/// Flags of discovery by DNS, by etcd's names; the last one is ours.
#[derive(Clone, Debug, Args)]
pub struct RawSrv {
    /// Domain whose SRV records name the endpoints, in place of --endpoints.
    #[arg(long, default_value = "", value_name = "DOMAIN")]
    pub discovery_srv: String,
    /// Suffix of the service in the names of those records.
    #[arg(long, default_value = "", value_name = "NAME")]
    pub discovery_srv_name: String,
    /// Take endpoints from SRV records that have no TLS, and do not check the certificates of the others.
    #[arg(long, default_value_t = false, action = ArgAction::Set)]
    pub insecure_discovery: bool,
    /// DNS server to ask, as ADDRESS or ADDRESS:PORT; those of the system unless given.
    #[arg(long, default_value = "", value_name = "ADDRESS")]
    pub discovery_dns: String,
}

/// Which SRV records name the endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrvConfig {
    /// The domain.
    pub domain: String,
    /// Suffix of the service; empty for none.
    pub service_name: String,
    /// Whether endpoints without TLS are taken, and certificates are not checked.
    pub insecure: bool,
    /// The server to ask; none for those of the system.
    pub dns_server: Option<SocketAddr>,
}

impl SrvConfig {
    /// From the values of flags; none without a domain.
    ///
    /// # Errors
    /// The flag and what is wrong with its value.
    pub fn from_flags(
        domain: &str,
        service_name: &str,
        insecure: bool,
        dns_server: &str,
    ) -> Result<Option<Self>, (&'static str, String)> {
        let refuse = |flag, value: &str, why: &str| Err((flag, format!("{value:?} {why}")));
        if domain.is_empty() {
            return match dns_server {
                "" => Ok(None),
                _ => refuse("discovery-dns", dns_server, "has no effect without --discovery-srv"),
            };
        }
        let labels = |name: &str| name.split('.').all(is_label);
        if domain.len() > DOMAIN_MAX || !labels(domain.strip_suffix('.').unwrap_or(domain)) {
            return refuse("discovery-srv", domain, "is no domain name");
        }
        if !service_name.is_empty() && !is_label(&format!("_etcd-client-ssl-{service_name}")) {
            return refuse("discovery-srv-name", service_name, "is no part of the name of a service");
        }
        let dns_server = match dns_server {
            "" => None,
            text => match (text.parse::<SocketAddr>(), text.parse::<IpAddr>()) {
                (Ok(address), _) => Some(address),
                (_, Ok(ip)) => Some(SocketAddr::new(ip, DNS_PORT)),
                _ => return refuse("discovery-dns", text, "must be ADDRESS or ADDRESS:PORT, not a name"),
            },
        };
        let (domain, service_name) = (domain.to_owned(), service_name.to_owned());
        Ok(Some(Self { domain, service_name, insecure, dns_server }))
    }

    /// The domain as certificates have it.
    pub fn certified_domain(&self) -> &str {
        self.domain.trim_end_matches('.')
    }
}

/// Whether it may stand between two dots of a name.
fn is_label(label: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !label.is_empty() && label.len() <= 63 && label.bytes().all(allowed)
}

impl RawSrv {
    /// None without a domain.
    pub(super) fn checked(&self) -> Result<Option<SrvConfig>, ConfigError> {
        let raw = self;
        SrvConfig::from_flags(&raw.discovery_srv, &raw.discovery_srv_name, raw.insecure_discovery, &raw.discovery_dns)
            .map_err(|(flag, reason)| ConfigError::Value { flag, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked_and_the_flag_is_named() {
        let read = |domain, name, dns| SrvConfig::from_flags(domain, name, false, dns);
        assert_eq!(read("", "", ""), Ok(None));
        let config = read("example.com.", "west", "::1").unwrap().unwrap();
        assert_eq!((config.domain.as_str(), config.service_name.as_str()), ("example.com.", "west"));
        assert_eq!(config.dns_server.unwrap().to_string(), "[::1]:53");
        let server = |dns| read("svc", "", dns).unwrap().unwrap().dns_server.unwrap().to_string();
        assert_eq!((server("127.0.0.1"), server("[::1]:5353")), ("127.0.0.1:53".into(), "[::1]:5353".into()));
        let long = "a.".repeat(150);
        for (domain, name, dns, flag) in [
            ("", "", "127.0.0.1", "discovery-dns"),
            ("a..b", "", "", "discovery-srv"),
            ("http://a", "", "", "discovery-srv"),
            (long.as_str(), "", "", "discovery-srv"),
            ("a", "x.y", "", "discovery-srv-name"),
            ("a", "", "dns.example.com", "discovery-dns"),
        ] {
            assert_eq!(read(domain, name, dns).unwrap_err().0, flag, "{domain} {name} {dns}");
        }
    }
}
