use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use http::uri::Authority;

use super::host_port::HostPort;

/// Where clients reach a member: a TCP address or a unix socket, with TLS or without.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Of a unix socket, the name of its file.
    authority: Authority,
    /// 0 for a unix socket without one.
    port: u16,
    security: Security,
    /// Small, as most endpoints have nothing of it.
    rest: Option<Arc<Rest>>,
}

/// What few endpoints have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Rest {
    /// Of a unix socket.
    socket: Option<PathBuf>,
    /// Of a host whose name need not be looked up.
    addresses: Option<Box<[IpAddr]>>,
    /// In the certificate, where it is not that of the host.
    server_name: Option<Box<str>>,
}

/// What the scheme of an endpoint says of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Security {
    /// Nothing, or `unix`: TLS if the client has a configuration for it.
    Open,
    /// `http`.
    Plain,
    /// `https` or `unixs`.
    Tls,
}

/// Why a text is no endpoint. Every variant names the text as it was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Nothing between two commas.
    #[error("empty endpoint, expected HOST:PORT or http://HOST:PORT")]
    Empty,
    /// A scheme that is none of etcd's.
    #[error("endpoint {text:?}: unknown scheme {scheme:?}, expected http, https, unix or unixs")]
    UnknownScheme {
        /// As written.
        text: String,
        /// The part before `://`.
        scheme: String,
    },
    /// No port.
    #[error("endpoint {text:?}: port is missing, expected HOST:PORT")]
    NoPort {
        /// As written.
        text: String,
    },
    /// Neither a name nor an address, a port that is no number, a path or a query.
    #[error("endpoint {text:?}: {why}, expected HOST:PORT or http://HOST:PORT")]
    Malformed {
        /// As written.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Endpoint {
    /// Host name or address, IPv6 without brackets; of a unix socket, the name of its file.
    pub fn host(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }

    /// Port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The path of a unix socket.
    pub fn socket(&self) -> Option<&Path> {
        self.rest.as_ref()?.socket.as_deref()
    }

    /// Whether a client uses TLS with it; `configured` says whether the client was given certificates.
    pub fn uses_tls(&self, configured: bool) -> bool {
        match self.security {
            Security::Open => configured,
            Security::Plain => false,
            Security::Tls => true,
        }
    }

    /// The same endpoint with the answer of [`uses_tls`](Self::uses_tls) in it, so that two spellings of one are equal.
    #[must_use]
    pub fn settled(self, configured: bool) -> Self {
        let security = if self.uses_tls(configured) { Security::Tls } else { Security::Plain };
        Self { security, ..self }
    }

    /// The name or address that the certificate of the server must have.
    pub fn server_name(&self) -> &str {
        self.rest.as_ref().and_then(|rest| rest.server_name.as_deref()).unwrap_or_else(|| self.host())
    }

    /// The same endpoint, whose certificate has another name than its host.
    #[must_use]
    pub fn certified_as(self, name: &str) -> Self {
        let server_name = (name != self.host()).then(|| name.into());
        self.with(|rest| Rest { server_name, ..rest })
    }

    /// Whether both are the same host and port, with or without TLS, whatever else is known of them.
    pub fn is_same_place(&self, other: &Self) -> bool {
        (&self.authority, self.uses_tls(false), self.socket())
            == (&other.authority, other.uses_tls(false), other.socket())
    }

    /// The addresses of its host where they are known; otherwise the name is looked up for each connection.
    pub fn addresses(&self) -> Option<&[IpAddr]> {
        self.rest.as_ref()?.addresses.as_deref()
    }

    /// The same endpoint at these addresses, tried in this order.
    #[must_use]
    pub fn with_addresses(self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let addresses = Some(addresses.into_iter().collect());
        self.with(|rest| Rest { addresses, ..rest })
    }

    fn with(self, change: impl FnOnce(Rest) -> Rest) -> Self {
        let rest = change(self.rest.as_deref().cloned().unwrap_or_default());
        Self { rest: (rest != Rest::default()).then(|| rest.into()), ..self }
    }

    /// `host:port`, the authority of a request.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Reads a comma-separated list, as flags carry it.
    ///
    /// # Errors
    /// The first text that is no endpoint.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, EndpointError> {
        text.split(',').map(Self::of_client).collect()
    }

    /// Reads one of a list. Its port is that of clients, 2379, where none is given.
    ///
    /// # Errors
    /// That it is no endpoint.
    pub fn of_client(text: &str) -> Result<Self, EndpointError> {
        Self::read(text, true)
    }
}

/// The port of clients where an endpoint of a list is written without one.
const CLIENT_PORT: u16 = 2379;

/// A host as it is written, with the port of clients where it has none.
pub fn with_client_port(host: &str) -> Cow<'_, str> {
    let behind_brackets = host.rsplit(']').next().unwrap_or_default();
    if host.is_empty() || behind_brackets.contains(':') {
        return host.into();
    }
    format!("{host}:{CLIENT_PORT}").into()
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        Self::read(text, false)
    }
}

impl Endpoint {
    /// Reads an endpoint; one without a port gets that of clients, or is an error.
    fn read(text: &str, defaults: bool) -> Result<Self, EndpointError> {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Err(EndpointError::Empty);
        }
        let malformed = |why| EndpointError::Malformed { text: text.to_owned(), why };
        let (security, rest) = match trimmed.split_once(':') {
            Some(("unix", path)) => return unix_socket(text, path, Security::Open),
            Some(("unixs", path)) => return unix_socket(text, path, Security::Tls),
            _ => match trimmed.split_once("://") {
                None => (Security::Open, trimmed),
                Some(("http", rest)) => (Security::Plain, rest),
                Some(("https", rest)) => (Security::Tls, rest),
                Some((scheme, _)) => {
                    return Err(EndpointError::UnknownScheme { text: text.to_owned(), scheme: scheme.to_owned() });
                }
            },
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(malformed("it has a path or a query"));
        }
        if rest.contains('@') {
            return Err(malformed("it has a user name"));
        }
        let rest = if defaults { with_client_port(rest) } else { rest.into() };
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || (host.starts_with('[') && host.ends_with(']')) => (host, port),
            Some((_, port)) if !port.ends_with(']') => {
                return Err(malformed("an IPv6 address needs brackets"));
            }
            _ => return Err(EndpointError::NoPort { text: text.to_owned() }),
        };
        if host.is_empty() || host == "[]" {
            return Err(malformed("the host is missing"));
        }
        if port.is_empty() {
            return Err(EndpointError::NoPort { text: text.to_owned() });
        }
        let port = port.parse().map_err(|_| malformed("the port is no number from 1 to 65535"))?;
        if port == 0 {
            return Err(malformed("the port is no number from 1 to 65535"));
        }
        let authority = rest.parse().map_err(|_| malformed("the host is no name or address"))?;
        Ok(Self { authority, port, security, rest: None })
    }
}

/// Reads what follows `unix:`: a path, absolute or not, with `//` before it or not.
fn unix_socket(text: &str, path: &str, security: Security) -> Result<Endpoint, EndpointError> {
    let malformed = |why| EndpointError::Malformed { text: text.to_owned(), why };
    let path = path.strip_prefix("//").unwrap_or(path);
    let name = path.rsplit('/').next().unwrap_or_default();
    if name.is_empty() || path.contains('\0') {
        return Err(malformed("the path of the socket is missing"));
    }
    let port = name.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or_default();
    // A file may have any name, a request cannot.
    let authority = name.parse().unwrap_or_else(|_| Authority::from_static("localhost"));
    let rest = Some(Arc::new(Rest { socket: Some(path.into()), ..Rest::default() }));
    Ok(Endpoint { authority, port, security, rest })
}

impl From<&Endpoint> for HostPort {
    fn from(endpoint: &Endpoint) -> Self {
        Self::new(endpoint.host().to_owned(), endpoint.port())
    }
}

impl From<HostPort> for Endpoint {
    /// Without a word on TLS. A name that no request can carry serves those only that pass bytes on.
    fn from(address: HostPort) -> Self {
        let authority = address.to_string().parse().unwrap_or_else(|_| Authority::from_static("localhost"));
        Self { authority, port: address.port(), security: Security::Open, rest: None }
    }
}

impl From<&Endpoint> for Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        endpoint.clone()
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        HostPort::from(address).into()
    }
}

/// Without the scheme.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.socket() {
            Some(path) => write!(f, "unix:{}", path.display()),
            None => f.write_str(self.authority.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Endpoint, String> {
        text.parse().map_err(|error: EndpointError| error.to_string())
    }

    #[test]
    fn etcds_spellings_are_understood() {
        for (text, host, port) in [
            ("127.0.0.1:2379", "127.0.0.1", 2379),
            ("http://127.0.0.1:2379", "127.0.0.1", 2379),
            ("http://node-1.example:80/", "node-1.example", 80),
            ("localhost:1", "localhost", 1),
            ("[::1]:2379", "::1", 2379),
            (" 10.0.0.1:2379", "10.0.0.1", 2379),
        ] {
            let endpoint = parse(text).expect(text);
            assert_eq!((endpoint.host(), endpoint.port()), (host, port), "{text}");
        }
        assert_eq!(parse("[::1]:2379").expect("parses").to_string(), "[::1]:2379");
    }

    #[test]
    fn a_refusal_names_the_text_and_the_reason() {
        for (text, part) in [
            ("", "empty endpoint"),
            ("unix://", "the path of the socket is missing"),
            ("unixs:///tmp/", "the path of the socket is missing"),
            ("ftp://a:1", "unknown scheme \"ftp\""),
            ("localhost", "port is missing"),
            ("[::1]", "port is missing"),
            ("localhost:", "port is missing"),
            ("::1:2379", "needs brackets"),
            (":2379", "host is missing"),
            ("a:0", "no number from 1 to 65535"),
            ("a:65536", "no number from 1 to 65535"),
            ("a:x", "no number from 1 to 65535"),
            ("http://a:1/v3", "a path or a query"),
            ("u@a:1", "user name"),
            ("a b:1", "no name or address"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }

    #[test]
    fn schemes_say_what_is_known_of_tls() {
        let of = |text: &str| [false, true].map(|configured| parse(text).unwrap().uses_tls(configured));
        for text in ["a:1", "unix:///run/e.sock", "unix:e.sock"] {
            assert_eq!(of(text), [false, true], "{text}");
        }
        assert_eq!((of("http://a:1"), of("https://a:1"), of("unixs:///s")), ([false; 2], [true; 2], [true; 2]));
        let settled = |text: &str, configured| parse(text).unwrap().settled(configured);
        assert_eq!(settled("a:1", false), settled("http://a:1", true));
        assert_eq!(settled("a:1", true), settled("https://a:1", false));
    }

    #[test]
    fn sockets_have_a_path_and_a_name() {
        for (text, path, host) in [
            ("unix:///run/e.sock", "/run/e.sock", "e.sock"),
            ("unix://localhost:m1", "localhost:m1", "localhost"),
            ("unixs://d/localhost:7", "d/localhost:7", "localhost"),
            ("unix:e", "e", "e"),
        ] {
            let endpoint = parse(text).expect(text);
            assert_eq!((endpoint.socket().unwrap().to_str(), endpoint.host()), (Some(path), host), "{text}");
        }
        assert_eq!(parse("unix:///run/e.sock").unwrap().to_string(), "unix:/run/e.sock");
    }

    #[test]
    fn a_list_is_separated_by_commas() {
        assert_eq!(Endpoint::parse_list("a:1,http://b:2").expect("parses").len(), 2);
        assert_eq!(Endpoint::parse_list("a:1,"), Err(EndpointError::Empty));
        let shown =
            |list| Endpoint::parse_list(list).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
        let with_port = ["a:2379", "b:2379", "[::1]:2379", "[::1]:5"].map(str::to_owned).to_vec();
        assert_eq!(shown("a,https://b/,[::1],[::1]:5"), Ok(with_port));
        for text in ["a:", "::1", "http://", "[]", ":"] {
            assert!(shown(text).is_err(), "{text}");
        }
    }
}
