use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{ArgAction, Args};
use url::{Position, Url};

use super::error::ConfigError;
use super::golang::GoDuration;
use crate::net::{Alpn, ClientTlsConfig, Endpoint};
use crate::types::Credentials;

/// Flags of the two protocols by which members that begin a cluster find each other; all of them are etcd's.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Discovery")]
pub struct RawMemberRegistry {
    /// URL under which the members of the cluster register, as `watershed discovery serve` makes them.
    #[arg(long, default_value = "", value_name = "URL")]
    pub discovery: String,
    /// HTTP proxy on the way to that URL.
    #[arg(long, default_value = "", value_name = "URL")]
    pub discovery_proxy: String,
    /// Token under which the members of the cluster register in the etcd cluster of --discovery-endpoints.
    #[arg(long, default_value = "")]
    pub discovery_token: String,
    /// Members of that etcd cluster.
    #[arg(long, default_value = "", value_name = "ENDPOINTS")]
    pub discovery_endpoints: String,
    /// How long a connection attempt to it may take.
    #[arg(long, default_value = "2s", value_name = "DURATION")]
    pub discovery_dial_timeout: GoDuration,
    /// How long a request to it, or to the URL, may take.
    #[arg(long, default_value = "5s", value_name = "DURATION")]
    pub discovery_request_timeout: GoDuration,
    /// Silence after which a connection to it is pinged.
    #[arg(long, default_value = "2s", value_name = "DURATION")]
    pub discovery_keepalive_time: GoDuration,
    /// Wait for the answer to such a ping.
    #[arg(long, default_value = "6s", value_name = "DURATION")]
    pub discovery_keepalive_timeout: GoDuration,
    /// Speak plain to --discovery-endpoints without a scheme, unless certificates are given.
    #[arg(long, default_value_t = true, action = ArgAction::Set)]
    pub discovery_insecure_transport: bool,
    /// Take any certificate of --discovery-endpoints, or of the URL: for tests only.
    #[arg(long, default_value_t = false, action = ArgAction::Set)]
    pub discovery_insecure_skip_tls_verify: bool,
    /// Certificate shown to --discovery-endpoints, or to the URL.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub discovery_cert: String,
    /// Its key.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub discovery_key: String,
    /// Authorities whose certificates --discovery-endpoints, or the URL, have.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub discovery_cacert: String,
    /// User of the cluster of --discovery-endpoints: NAME, or NAME:PASSWORD.
    #[arg(long, default_value = "", value_name = "USER")]
    pub discovery_user: String,
    /// Password of --discovery-user.
    #[arg(long, default_value = "", value_name = "PASSWORD")]
    pub discovery_password: String,
}

/// Where the members of a cluster that begins register themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberRegistry {
    /// Under a URL, by the protocol of etcd 2 to 3.6.
    Url(UrlRegistry),
    /// Under a token in an etcd cluster.
    Token(TokenRegistry),
}

/// A URL under which members register.
#[derive(Clone, PartialEq, Eq)]
pub struct UrlRegistry {
    /// As it was given; the cluster is known by it.
    pub url: String,
    /// Where it is.
    pub endpoint: Endpoint,
    /// As the header Host has it.
    pub host: String,
    /// Of the token, without a slash at its end.
    pub path: String,
    /// The header Authorization, where the URL has a user.
    pub authorization: Option<String>,
    /// What is asked in place of it.
    pub proxy: Option<HttpProxy>,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// With https.
    pub tls: ClientTlsConfig,
}

/// An HTTP proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpProxy {
    /// Where it is.
    pub endpoint: Endpoint,
    /// The header Proxy-Authorization, where its URL has a user.
    pub authorization: Option<String>,
}

/// An etcd cluster in which members register under a token.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenRegistry {
    /// What the cluster is known by there.
    pub token: String,
    /// Members of that etcd cluster; at least one.
    pub endpoints: Vec<Endpoint>,
    /// How long a connection attempt may take.
    pub dial_timeout: Duration,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// Silence after which a connection is pinged.
    pub keepalive_time: Duration,
    /// Wait for the answer.
    pub keepalive_timeout: Duration,
    /// For endpoints with https, and for those without a scheme.
    pub tls: Option<ClientTlsConfig>,
    /// Who asks.
    pub user: Option<Credentials>,
}

impl fmt::Debug for UrlRegistry {
    /// Without the token: who has it can register.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UrlRegistry").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl fmt::Debug for HttpProxy {
    /// Without the user.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpProxy").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl fmt::Debug for TokenRegistry {
    /// Without the token: who has it can register.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenRegistry").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl MemberRegistry {
    /// The flag that names it, without dashes.
    pub fn flag(&self) -> &'static str {
        match self {
            Self::Url(_) => "discovery",
            Self::Token(_) => "discovery-token",
        }
    }

    /// What tells this registry and its token from others, and does not tell the token.
    pub fn fingerprint(&self) -> String {
        let text = match self {
            Self::Url(registry) => format!("url {}{}", registry.host, registry.path),
            // The cluster that has the token may have other members by now.
            Self::Token(registry) => format!("token {}", registry.token),
        };
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What members take for the token of their cluster.
    pub fn cluster_token(&self) -> &str {
        match self {
            Self::Url(registry) => &registry.url,
            Self::Token(registry) => &registry.token,
        }
    }
}

impl RawMemberRegistry {
    /// None where no flag names one.
    pub(super) fn checked(&self) -> Result<Option<MemberRegistry>, ConfigError> {
        let raw = self;
        if raw.discovery_token.is_empty() != raw.discovery_endpoints.is_empty() {
            return Err(ConfigError::Other("both --discovery-token and --discovery-endpoints must be set".to_owned()));
        }
        if !raw.discovery.is_empty() && !raw.discovery_endpoints.is_empty() {
            let text = "both --discovery and --discovery-endpoints are set, choose one";
            return Err(ConfigError::Other(text.to_owned()));
        }
        if raw.discovery.is_empty() && !raw.discovery_proxy.is_empty() {
            return Err(wrong("discovery-proxy", "has no effect without --discovery".to_owned()));
        }
        if raw.discovery_request_timeout.0.is_zero() {
            return Err(wrong("discovery-request-timeout", "must be >0".to_owned()));
        }
        Ok(match (raw.discovery.is_empty(), raw.discovery_endpoints.is_empty()) {
            (false, _) => Some(MemberRegistry::Url(raw.url()?)),
            (_, false) => Some(MemberRegistry::Token(raw.token()?)),
            _ => None,
        })
    }

    fn url(&self) -> Result<UrlRegistry, ConfigError> {
        let url = Url::parse(&self.discovery).map_err(|error| wrong("discovery", error.to_string()))?;
        let endpoint = endpoint_of(&url).map_err(|reason| wrong("discovery", reason))?;
        let path = url.path().trim_end_matches('/');
        if path.is_empty() || url.query().is_some() || url.fragment().is_some() {
            let reason = "must be a URL with a token as its path, without a query".to_owned();
            return Err(wrong("discovery", reason));
        }
        let proxy = match self.discovery_proxy.as_str() {
            "" => None,
            text => Some(proxy(text).map_err(|reason| wrong("discovery-proxy", reason))?),
        };
        Ok(UrlRegistry {
            endpoint,
            host: url[Position::BeforeHost..Position::AfterPort].to_owned(),
            path: path.to_owned(),
            authorization: authorization(&url),
            url: self.discovery.clone(),
            proxy,
            request_timeout: self.discovery_request_timeout.0,
            tls: self.tls()?.unwrap_or_else(|| ClientTlsConfig::new(Alpn::Http1)),
        })
    }

    fn tls(&self) -> Result<Option<ClientTlsConfig>, ConfigError> {
        let (cacert, cert, key) = (&self.discovery_cacert, &self.discovery_cert, &self.discovery_key);
        ClientTlsConfig::from_flags(cacert, cert, key, self.discovery_insecure_skip_tls_verify)
            .map_err(|reason| wrong("discovery-cert, --discovery-key", reason))
    }

    fn token(&self) -> Result<TokenRegistry, ConfigError> {
        let raw = self;
        let endpoints = Endpoint::parse_list(&raw.discovery_endpoints)
            .map_err(|error| wrong("discovery-endpoints", error.to_string()))?;
        let usual = || (!raw.discovery_insecure_transport).then(|| ClientTlsConfig::new(Alpn::H2));
        if raw.discovery_token.contains(|letter: char| letter.is_control() || letter == '/') {
            return Err(wrong("discovery-token", format!("{:?} is no token", raw.discovery_token)));
        }
        Ok(TokenRegistry {
            token: raw.discovery_token.clone(),
            endpoints,
            dial_timeout: raw.discovery_dial_timeout.0,
            request_timeout: raw.discovery_request_timeout.0,
            keepalive_time: raw.discovery_keepalive_time.0,
            keepalive_timeout: raw.discovery_keepalive_timeout.0,
            tls: raw.tls()?.or_else(usual),
            user: raw.user()?,
        })
    }

    fn user(&self) -> Result<Option<Credentials>, ConfigError> {
        let (user, password) = (&self.discovery_user, &self.discovery_password);
        let (name, password) = match user.split_once(':') {
            _ if user.is_empty() => return Ok(None),
            _ if !password.is_empty() => (user.as_str(), password.as_str()),
            Some((name, password)) => (name, password),
            // etcd asks for it, which a service cannot answer.
            None => return Err(wrong("discovery-user", "needs NAME:PASSWORD or --discovery-password".to_owned())),
        };
        Ok(Some(Credentials { name: name.to_owned(), password: password.to_owned() }))
    }
}

fn wrong(flag: &'static str, reason: String) -> ConfigError {
    ConfigError::Value { flag, reason }
}

/// Host and port of a URL.
fn endpoint_of(url: &Url) -> Result<Endpoint, String> {
    let place = match (url.scheme(), url.host_str(), url.port_or_known_default()) {
        (scheme @ ("http" | "https"), Some(host), Some(port)) => format!("{scheme}://{host}:{port}"),
        _ => return Err("must be an http or https URL".to_owned()),
    };
    place.parse().map_err(|error| format!("{error}"))
}

/// A proxy's URL, whose scheme may be left out, as etcd has it.
fn proxy(text: &str) -> Result<HttpProxy, String> {
    let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = Url::parse(&text).map_err(|error| error.to_string())?;
    Ok(HttpProxy { endpoint: endpoint_of(&url)?, authorization: authorization(&url) })
}

/// The header for the user in a URL.
fn authorization(url: &Url) -> Option<String> {
    let (name, password) = (url.username(), url.password().unwrap_or_default());
    let user = format!("{}:{}", percent_decoded(name), percent_decoded(password));
    (!name.is_empty()).then(|| format!("Basic {}", STANDARD.encode(user)))
}

fn percent_decoded(text: &str) -> String {
    // Only a plus sign differs between a form and a part of a URL.
    let form = format!("x={}", text.replace('+', "%2B").replace('&', "%26"));
    url::form_urlencoded::parse(form.as_bytes()).next().map(|(_, value)| value.into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        registry: RawMemberRegistry,
    }

    fn checked(line: &str) -> Result<Option<MemberRegistry>, String> {
        let flags = Flags::try_parse_from(std::iter::once("x").chain(line.split_whitespace())).expect("readable");
        flags.registry.checked().map_err(|error| error.to_string())
    }

    const TOKEN: &str = "--discovery-token=t --discovery-endpoints=http://a:1,b:2";

    #[test]
    fn one_registry_at_most_is_chosen_and_refusals_name_the_flag() {
        assert_eq!(checked(""), Ok(None));
        for line in ["--discovery-token=t", "--discovery-endpoints=a:1"] {
            assert_eq!(checked(line).unwrap_err(), "both --discovery-token and --discovery-endpoints must be set");
        }
        for (line, start) in [
            (format!("{TOKEN} --discovery=http://d/t"), "both --discovery and --discovery-endpoints are set"),
            ("--discovery-proxy=p:1".to_owned(), "--discovery-proxy: has no effect without --discovery"),
            ("--discovery=d/t".to_owned(), "--discovery: relative URL without a base"),
            ("--discovery=ftp://d/t".to_owned(), "--discovery: must be an http or https URL"),
            ("--discovery=http://d".to_owned(), "--discovery: must be a URL with a token as its path"),
            ("--discovery=http://d/t?x".to_owned(), "--discovery: must be a URL with a token as its path"),
            ("--discovery=http://d/t --discovery-proxy=ftp://p".to_owned(), "--discovery-proxy: must be an http"),
            (format!("{TOKEN} --discovery-user=u"), "--discovery-user: needs NAME:PASSWORD"),
            (format!("{TOKEN} --discovery-cert=c"), "--discovery-cert, --discovery-key: "),
            (format!("{TOKEN} --discovery-request-timeout=0"), "--discovery-request-timeout: must be >0"),
            ("--discovery-token=t --discovery-endpoints=a:".to_owned(), "--discovery-endpoints: "),
            ("--discovery-token=a/b --discovery-endpoints=a:1".to_owned(), "--discovery-token: "),
        ] {
            let error = checked(&line).unwrap_err();
            assert!(error.starts_with(start), "{line}: {error}");
        }
    }

    #[test]
    fn an_etcd_cluster_is_reached_as_the_flags_say() {
        let registry = |flags: &str| match checked(&format!("{TOKEN} {flags}")) {
            Ok(Some(MemberRegistry::Token(registry))) => registry,
            other => panic!("{other:?}"),
        };
        let plain = registry("");
        assert_eq!((plain.endpoints.len(), plain.tls.is_some(), plain.user.is_some()), (2, false, false));
        assert_eq!(plain.request_timeout, Duration::from_secs(5));
        assert!(registry("--discovery-insecure-transport=false").tls.is_some());
        assert!(registry("--discovery-cacert=ca").tls.is_some());
        let user = |flags: &str| registry(flags).user.map(|user| (user.name, user.password));
        let expected = Some(("u".to_owned(), "p".to_owned()));
        assert_eq!(user("--discovery-user=u:p"), expected);
        assert_eq!(user("--discovery-user=u --discovery-password=p"), expected);
        assert!(!format!("{plain:?}").contains("\"t\""));
    }

    #[test]
    fn a_url_is_a_place_and_a_path() {
        let registry = |line: &str| match checked(line) {
            Ok(Some(MemberRegistry::Url(registry))) => registry,
            other => panic!("{other:?}"),
        };
        let plain = registry("--discovery=https://discovery.example/v2/keys/_etcd/registry/t/");
        assert_eq!(
            (plain.endpoint.to_string().as_str(), plain.host.as_str()),
            ("discovery.example:443", "discovery.example")
        );
        assert_eq!((plain.path.as_str(), plain.authorization), ("/v2/keys/_etcd/registry/t", None));
        assert!(plain.endpoint.uses_tls(false));
        let full = registry("--discovery=http://u%40x:p+q@[::1]:2389/t --discovery-proxy=me@proxy:3128");
        assert_eq!((full.endpoint.to_string().as_str(), full.host.as_str()), ("[::1]:2389", "[::1]:2389"));
        assert_eq!(full.authorization, Some(format!("Basic {}", STANDARD.encode("u@x:p+q"))));
        let proxy = full.proxy.as_ref().expect("a proxy");
        assert_eq!((proxy.endpoint.to_string().as_str(), proxy.authorization.is_some()), ("proxy:3128", true));
        assert!(!format!("{full:?}").contains("/t"));
    }
}
