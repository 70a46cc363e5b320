use std::fmt;
use std::str::FromStr;

use crate::net::Endpoint;

/// The longest name of a protocol in TLS.
const ALPN_BYTES_MAX: usize = 255;

/// Connections that go to endpoints of their own, by what their TLS ClientHello says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// Which connections.
    pub matching: RouteMatch,
    /// Where they go, one endpoint at least.
    pub endpoints: Vec<Endpoint>,
}

/// Which connections take a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteMatch {
    /// The server name that the client asks for.
    pub name: NameMatch,
    /// The protocol that must be among those the client offers.
    pub alpn: Option<String>,
}

/// Which server names take a route. Names are in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameMatch {
    /// Any, and none at all.
    Any,
    /// This one.
    Exact(String),
    /// Names that end like this; it begins with a dot.
    Below(String),
}

impl RouteMatch {
    /// Whether a connection with this server name and these protocols takes the route.
    pub fn takes<'a>(&self, server_name: Option<&str>, mut protocols: impl Iterator<Item = &'a [u8]>) -> bool {
        let named = match (&self.name, server_name) {
            (NameMatch::Any, _) => true,
            (_, None) => false,
            (NameMatch::Exact(exact), Some(name)) => name.eq_ignore_ascii_case(exact),
            (NameMatch::Below(suffix), Some(name)) => {
                let split = name.len().checked_sub(suffix.len()).filter(|&split| split > 0);
                let end = split.and_then(|split| name.as_bytes().get(split..));
                end.is_some_and(|end| end.eq_ignore_ascii_case(suffix.as_bytes()))
            }
        };
        named && self.alpn.as_ref().is_none_or(|alpn| protocols.any(|offered| offered == alpn.as_bytes()))
    }
}

impl fmt::Display for RouteMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            NameMatch::Any => f.write_str("*"),
            NameMatch::Exact(name) => f.write_str(name),
            NameMatch::Below(suffix) => write!(f, "*{suffix}"),
        }?;
        self.alpn.as_ref().map_or(Ok(()), |alpn| write!(f, "/{alpn}"))
    }
}

impl FromStr for RouteMatch {
    type Err = String;

    /// Reads `NAME`, `*.NAME` or `*`, with `/PROTOCOL` behind it or not.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, alpn) = text.split_once('/').map_or((text, None), |(name, alpn)| (name, Some(alpn)));
        if alpn.is_some_and(|alpn| alpn.is_empty() || alpn.len() > ALPN_BYTES_MAX) {
            return Err(format!("{text:?} must have 1 to {ALPN_BYTES_MAX} bytes of a protocol behind the slash"));
        }
        let is_name = |name: &str| {
            let is_label = |label: &str| {
                !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            };
            name.split('.').all(is_label)
        };
        let name = match name.strip_prefix('*') {
            Some("") if alpn.is_none() => return Err("\"*\" takes every connection: use --endpoints".to_owned()),
            Some("") => NameMatch::Any,
            Some(suffix) if suffix.strip_prefix('.').is_some_and(is_name) => {
                NameMatch::Below(suffix.to_ascii_lowercase())
            }
            None if is_name(name) => NameMatch::Exact(name.to_ascii_lowercase()),
            _ => return Err(format!("{name:?} is neither a server name nor *.NAME nor *")),
        };
        Ok(Self { name, alpn: alpn.map(str::to_owned) })
    }
}

/// Reads `MATCH=ENDPOINT,…`, several of them separated by commas, into matches and lists of endpoints.
pub(super) fn routes(list: &str) -> Result<Vec<(RouteMatch, String)>, String> {
    let mut routes: Vec<(RouteMatch, String)> = Vec::new();
    for piece in list.split(',').map(str::trim).filter(|piece| !piece.is_empty()) {
        match (piece.split_once('='), routes.last_mut()) {
            (Some((matching, endpoint)), _) => {
                let matching: RouteMatch = matching.parse()?;
                if routes.iter().any(|(earlier, _)| *earlier == matching) {
                    return Err(format!("{matching} is there twice"));
                }
                routes.push((matching, endpoint.to_owned()));
            }
            (None, Some((_, more))) => {
                more.push(',');
                more.push_str(piece);
            }
            (None, None) => return Err(format!("{piece:?} must have the form NAME=host:port")),
        }
    }
    Ok(routes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_protocols_decide() {
        let takes = |route: &str, name: Option<&str>, offered: &[&str]| {
            let route: RouteMatch = route.parse().unwrap();
            assert_eq!(route, route.to_string().parse().unwrap());
            route.takes(name, offered.iter().map(|protocol| protocol.as_bytes()))
        };
        assert!(takes("A.example", Some("a.EXAMPLE"), &[]));
        assert!(!takes("a.example", Some("b.example"), &[]) && !takes("a.example", None, &[]));
        assert!(takes("*.example", Some("a.example"), &[]) && takes("*.example", Some("b.A.example"), &[]));
        for name in ["example", ".example", "aexample", "a.example.org", ""] {
            assert!(!takes("*.example", Some(name), &[]), "{name}");
        }
        assert!(takes("a.example/h2", Some("a.example"), &["http/1.1", "h2"]));
        assert!(!takes("a.example/h2", Some("a.example"), &["http/1.1"]));
        assert!(takes("*/h2", None, &["h2"]) && takes("*/h2", Some("x"), &["h2"]) && !takes("*/h2", None, &[]));
    }
}
