use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::net::HostPort;

/// Where a gateway listens, as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayAddress {
    /// No host is every local address; a name is looked up.
    Tcp(HostPort),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<SocketAddr> for GatewayAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address.into())
    }
}

impl FromStr for GatewayAddress {
    type Err = &'static str;

    /// Reads `host:port`, or what etcd's clients dial for a unix socket: `unix:PATH` or `unix://PATH`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("unixs:") {
            return Err("has TLS in its scheme, which the gateway does not end: use unix://");
        }
        let Some(path) = text.strip_prefix("unix:") else { return text.parse().map(Self::Tcp) };
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() || path.ends_with('/') || path.contains('\0') {
            return Err("must have the path of a socket behind unix://");
        }
        Ok(Self::Unix(path.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_paths_are_told_apart() {
        let shown = |text: &str| text.parse::<GatewayAddress>().map(|address| address.to_string());
        assert_eq!(shown("127.0.0.1:1").as_deref(), Ok("127.0.0.1:1"));
        for text in ["unix:///run/g.sock", "unix:/run/g.sock"] {
            assert_eq!(shown(text).as_deref(), Ok("unix:/run/g.sock"), "{text}");
        }
        assert_eq!(shown("unix://localhost:7").as_deref(), Ok("unix:localhost:7"));
        for text in ["unix:", "unix://", "unix:///run/", "unixs:///run/g.sock", "http://a:1", "/run/g.sock"] {
            assert!(shown(text).is_err(), "{text}");
        }
    }
}
