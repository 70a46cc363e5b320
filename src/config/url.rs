use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

use super::error::UrlError;
use crate::net::{HostPort, all_addresses, listening_address, preferred_address};

/// Longest list of peer URLs of one member.
const PEER_URLS_BYTES_MAX: usize = 2048;

/// An address a server listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenUrl {
    text: String,
    address: ListenAddress,
    tls: bool,
}

/// What to bind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// An IP or `localhost`, and a port.
    Tcp(SocketAddr),
    /// The path of a socket.
    Unix(PathBuf),
}

impl ListenAddress {
    /// None for a unix socket.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl ListenUrl {
    /// What to bind.
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// The URL as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether connections must use TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The host as it was given; none for a path without one.
    pub(super) fn host(&self) -> Option<String> {
        let (_, place) = split(&self.text).ok()?;
        match place {
            Place::Tcp(place) => Some(place.host().to_owned()),
            Place::Unix(path) => path.split(['/', ':']).next().map(str::to_owned),
        }
        .filter(|host| !host.is_empty())
    }
}

impl fmt::Display for ListenUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for ListenUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let (scheme, place) = split(text)?;
        let address = match place {
            Place::Unix(path) => ListenAddress::Unix(path.into()),
            Place::Tcp(place) => {
                ListenAddress::Tcp(bind_address(&place).ok_or_else(|| UrlError::NotAnAddress(text.to_owned()))?)
            }
        };
        Ok(Self { text: text.to_owned(), address, tls: matches!(scheme, "https" | "unixs") })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What a URL points at.
pub(super) enum Place<'a> {
    Tcp(HostPort),
    /// The path of a socket.
    Unix(&'a str),
}

/// Reads a URL that a member listens on, which must have a host.
///
/// # Errors
/// When it cannot be bound.
pub(super) fn bound_url(text: &str) -> Result<ListenUrl, UrlError> {
    match split(text)? {
        (_, Place::Tcp(place)) if place.host().is_empty() => Err(UrlError::NotAnAddress(text.to_owned())),
        _ => text.parse(),
    }
}

/// Checks a URL that others dial and gives it back as it was.
///
/// # Errors
/// When no client could dial it.
pub(super) fn advertised_url(text: &str) -> Result<String, UrlError> {
    split(text).map(|_| text.to_owned())
}

/// Checks a URL by which this member makes itself known and gives it back as it was.
///
/// # Errors
/// When no client could dial it.
pub(super) fn own_url(text: &str) -> Result<String, UrlError> {
    match split(text)? {
        (_, Place::Tcp(place)) if place.host().is_empty() => Err(UrlError::NoHost(text.to_owned())),
        _ => Ok(text.to_owned()),
    }
}

/// Checks the peer URLs of a member that is added or moved.
///
/// # Errors
/// When there is none, or one that no member could dial.
pub fn check_peer_urls(urls: &[String]) -> Result<Vec<String>, UrlError> {
    if urls.is_empty() {
        return Err(UrlError::Empty);
    }
    // A peer connection carries the URLs in a header of this form.
    let bytes: usize = urls.iter().map(|url| url.len() + 1).sum();
    if bytes > PEER_URLS_BYTES_MAX {
        return Err(UrlError::TooLong { bytes });
    }
    urls.iter()
        .map(|url| {
            let url = advertised_url(url.trim())?;
            let is_socket = url.starts_with("unix");
            let parsed = is_socket || url::Url::parse(&url).is_ok_and(|parsed| parsed.has_host());
            let plain = url.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',');
            if parsed && plain { Ok(url) } else { Err(UrlError::HostPort(url)) }
        })
        .collect()
}

/// Checks every entry of a comma list.
pub(super) fn each<T>(list: &str, check: impl Fn(&str) -> Result<T, UrlError>) -> Result<Vec<T>, UrlError> {
    let urls: Vec<T> = list.split(',').map(|url| check(url.trim())).collect::<Result<_, _>>()?;
    if list.trim().is_empty() { Err(UrlError::Empty) } else { Ok(urls) }
}

/// What a host and port stand for where a socket is bound: an IP, `localhost`, or nothing or `0.0.0.0` for every address
/// of IPv6 and IPv4.
pub(super) fn bind_address(place: &HostPort) -> Option<SocketAddr> {
    match place.host() {
        "localhost" => Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), place.port())),
        "" => Some(all_addresses(place.port())),
        _ => place.literal().map(listening_address),
    }
}

/// An address to bind that is not that of a URL: the host may also be any name, of whose addresses one is taken, as in etcd's proxy.
pub(super) fn listen_address(place: &HostPort) -> Result<SocketAddr, String> {
    if let Some(address) = bind_address(place) {
        return Ok(address);
    }
    let found = (place.host(), place.port()).to_socket_addrs().map_err(|error| error.to_string())?;
    preferred_address(found).ok_or_else(|| "the name has no address".to_owned())
}

/// Scheme and address.
pub(super) fn split(text: &str) -> Result<(&str, Place<'_>), UrlError> {
    let owned = || text.to_owned();
    if text.is_empty() {
        return Err(UrlError::Empty);
    }
    let (scheme, rest) = text.split_once("://").ok_or_else(|| UrlError::Scheme(owned()))?;
    match scheme {
        "http" | "https" => {}
        // etcd joins host and path, and so the name of the file may have a colon in it.
        "unix" | "unixs" if rest.is_empty() || rest.ends_with('/') || rest.contains('\0') => {
            return Err(UrlError::NoPath(owned()));
        }
        "unix" | "unixs" => return Ok((scheme, Place::Unix(rest))),
        _ => return Err(UrlError::Scheme(owned())),
    }
    if let Some(at) = rest.find(['/', '?', '#']) {
        let bare_slash = &rest[at..] == "/";
        return Err(if at == 0 && bare_slash { UrlError::HostPort(owned()) } else { UrlError::Path(owned()) });
    }
    let place = rest.parse().map_err(|_| UrlError::HostPort(owned()))?;
    Ok((scheme, Place::Tcp(place)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(text: &str) -> String {
        match text.parse::<ListenUrl>() {
            Ok(url) => url.address().to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn listen_urls_name_an_address() {
        assert_eq!(listen("http://localhost:2379"), "127.0.0.1:2379");
        // Cause: a listener without a host or with this one was for IPv4 alone.
        assert_eq!(listen("http://0.0.0.0:1"), "[::]:1");
        assert_eq!(listen("http://:1"), "[::]:1");
        assert_eq!(listen("http://[::1]:2379"), "[::1]:2379");
        assert_eq!(listen("http://example.com:2379"), "expected IP in URL for binding (http://example.com:2379)");
        assert_eq!(listen("http://127.0.0.1"), r#"URL address does not have the form "host:port": http://127.0.0.1"#);
        assert_eq!(
            listen("http://127.0.0.1:70000"),
            r#"URL address does not have the form "host:port": http://127.0.0.1:70000"#
        );
        assert_eq!(listen("http://127.0.0.1:1/x"), "URL must not contain a path: http://127.0.0.1:1/x");
        assert_eq!(listen("127.0.0.1:1"), "URL scheme must be http, https, unix, or unixs: 127.0.0.1:1");
        assert_eq!(listen("https://127.0.0.1:1"), "127.0.0.1:1");
        assert_eq!(listen("unix:///run/e.sock:1"), "unix:/run/e.sock:1");
        assert_eq!(listen("unixs://localhost:1"), "unix:localhost:1");
        assert_eq!(listen("unix://"), "URL must contain the path of a socket: unix://");
        assert_eq!(listen("unix:///run/"), "URL must contain the path of a socket: unix:///run/");
    }

    #[test]
    fn any_text_is_refused_without_a_panic() {
        proptest::proptest!(|(text in ".{0,40}")| { let _ = text.parse::<ListenUrl>(); });
    }

    #[test]
    fn an_advertised_url_may_hold_a_name() {
        assert_eq!(advertised_url("https://etcd.example:2379").as_deref(), Ok("https://etcd.example:2379"));
        assert_eq!(each("http://a:1,http://b:2", advertised_url).map(|urls| urls.len()), Ok(2));
        assert_eq!(each("", advertised_url), Err(UrlError::Empty));
        assert_eq!(check_peer_urls(&[" http://a:1".into()]), Ok(vec!["http://a:1".to_owned()]));
        assert_eq!(check_peer_urls(&[]), Err(UrlError::Empty));
        assert!(check_peer_urls(&["http://a:1".into(), "%".into()]).is_err());
    }

    // Cause: a name with a line break, a comma or 2 kB was stored, and the member could not connect to any other since.
    #[test]
    fn a_peer_url_can_be_told_to_others() {
        for bad in ["http://a\n:1", "http://a,b:1", "http://\u{e9}:1", "http://%zz:1", "http://:1", "http://a\0:1"] {
            assert!(check_peer_urls(&[bad.into()]).is_err(), "{bad:?}");
        }
        let long = |bytes| check_peer_urls(&[format!("http://{}:1", "b".repeat(bytes - 9))]);
        assert!(long(PEER_URLS_BYTES_MAX - 1).is_ok());
        assert_eq!(long(PEER_URLS_BYTES_MAX), Err(UrlError::TooLong { bytes: PEER_URLS_BYTES_MAX + 1 }));
    }
}
