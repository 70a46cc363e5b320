use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// A TCP address whose host may be a name that is looked up when it is used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// Name or address, IPv6 without brackets; empty for "every local address".
    pub fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn new(host: String, port: u16) -> Self {
        Self { host, port }
    }

    /// Port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address when no look-up is needed.
    pub fn literal(&self) -> Option<SocketAddr> {
        self.host.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, self.port))
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl FromStr for HostPort {
    type Err = &'static str;

    /// Reads `host:port`, `[v6]:port` or `:port`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "must have the form host:port";
        let (host, port) = text.rsplit_once(':').ok_or(FORM)?;
        let port = port.parse().map_err(|_| "must end with a port number")?;
        if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            inner.parse::<Ipv6Addr>().map_err(|_| "has no IPv6 address between the brackets")?;
            return Ok(Self { host: inner.to_owned(), port });
        }
        if host.contains(|c: char| c.is_whitespace() || "/@[]?#:".contains(c)) {
            return Err(FORM);
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_as_they_were_written() {
        for text in ["127.0.0.1:1", "[::1]:2379", "etcd-0.example:80", ":5"] {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
        }
        for text in ["", "a", "a:", "::1:5", "[::1:5", "a/b:5", "a:70000", "[x]:1", "a b:1", "u@h:1"] {
            assert!(text.parse::<HostPort>().is_err(), "{text}");
        }
    }
}
