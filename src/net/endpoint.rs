use std::fmt;
use std::str::FromStr;

use http::uri::Authority;

/// Where clients reach a member: host and port, without TLS for now.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    authority: Authority,
    port: u16,
}

/// Why a text is no endpoint. Every variant names the text as it was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Nothing between two commas.
    #[error("empty endpoint, expected HOST:PORT or http://HOST:PORT")]
    Empty,
    /// https, or a socket path.
    #[error("endpoint {text:?}: {scheme} is not supported yet, use http://HOST:PORT")]
    NotSupported {
        /// As written.
        text: String,
        /// What it asked for.
        scheme: &'static str,
    },
    /// A scheme that is none of etcd's.
    #[error("endpoint {text:?}: unknown scheme {scheme:?}, expected http")]
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
    /// Host name or address, IPv6 without brackets.
    pub fn host(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }

    /// Port.
    pub fn port(&self) -> u16 {
        self.port
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
        text.split(',').map(str::parse).collect()
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Err(EndpointError::Empty);
        }
        let malformed = |why| EndpointError::Malformed { text: text.to_owned(), why };
        let rest = match trimmed.split_once("://") {
            None => trimmed,
            Some(("http", rest)) => rest,
            Some(("https", _)) => {
                return Err(EndpointError::NotSupported { text: text.to_owned(), scheme: "TLS (https)" });
            }
            Some(("unix" | "unixs", _)) => {
                return Err(EndpointError::NotSupported { text: text.to_owned(), scheme: "a unix socket" });
            }
            Some((scheme, _)) => {
                return Err(EndpointError::UnknownScheme { text: text.to_owned(), scheme: scheme.to_owned() });
            }
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(malformed("it has a path or a query"));
        }
        if rest.contains('@') {
            return Err(malformed("it has a user name"));
        }
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
        Ok(Self { authority, port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.authority.as_str())
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
            ("https://a:1", "\"https://a:1\": TLS (https) is not supported yet"),
            ("unix:///tmp/s", "unix socket is not supported yet"),
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
    fn a_list_is_separated_by_commas() {
        assert_eq!(Endpoint::parse_list("a:1,http://b:2").expect("parses").len(), 2);
        assert_eq!(Endpoint::parse_list("a:1,"), Err(EndpointError::Empty));
    }
}
