use std::fmt;
use std::time::Duration;

use clap::{ArgAction, Args};

use super::super::discovery::SrvConfig;
use super::super::error::ConfigError;
use super::super::golang::GoDuration;
use super::super::proxy_user::UserAndPassword;
use crate::net::{Alpn, ClientTlsConfig, Endpoint};

/// etcd's text.
const SEVERAL: &str = "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \
                       \"discovery-endpoints\" or \"discovery-srv\"";

/// Flags by which a member without data finds the others; all of etcd but `--discovery-dns`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Discovery")]
pub struct RawDiscovery {
    /// Domain whose SRV records name the members of a cluster that begins, in place of --initial-cluster.
    #[arg(long, default_value = "", value_name = "DOMAIN")]
    pub discovery_srv: String,
    /// Suffix of the service in the names of those records.
    #[arg(long, default_value = "", value_name = "NAME")]
    pub discovery_srv_name: String,
    /// DNS server to ask for them, as ADDRESS or ADDRESS:PORT; those of the system unless given. Not a flag of etcd.
    #[arg(long, default_value = "", value_name = "ADDRESS")]
    pub discovery_dns: String,
    /// Token of a cluster that begins, in the registry of --discovery-endpoints.
    #[arg(long, default_value = "")]
    pub discovery_token: String,
    /// Members of the etcd cluster that is the registry.
    #[arg(long, default_value = "", value_name = "ENDPOINTS")]
    pub discovery_endpoints: String,
    /// How long a connection attempt to the registry may take.
    #[arg(long, default_value = "2s", value_name = "DURATION")]
    pub discovery_dial_timeout: GoDuration,
    /// How long a request to it may take.
    #[arg(long, default_value = "5s", value_name = "DURATION")]
    pub discovery_request_timeout: GoDuration,
    /// Silence after which a connection to it is pinged.
    #[arg(long, default_value = "2s", value_name = "DURATION")]
    pub discovery_keepalive_time: GoDuration,
    /// Wait for the answer to such a ping.
    #[arg(long, default_value = "6s", value_name = "DURATION")]
    pub discovery_keepalive_timeout: GoDuration,
    /// Speak plain to endpoints of the registry without a scheme, unless certificates are given.
    #[arg(long, default_value_t = true, action = ArgAction::Set)]
    pub discovery_insecure_transport: bool,
    /// Take any certificate of the registry: for tests only.
    #[arg(long, default_value_t = false, action = ArgAction::Set)]
    pub discovery_insecure_skip_tls_verify: bool,
    /// Certificate shown to the registry.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub discovery_cert: String,
    /// Its key.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub discovery_key: String,
    /// Authorities whose certificates the registry has.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub discovery_cacert: String,
    /// User of the registry: NAME, or NAME:PASSWORD.
    #[arg(long, default_value = "", value_name = "USER")]
    pub discovery_user: String,
    /// Password of --discovery-user.
    #[arg(long, default_value = "", value_name = "PASSWORD")]
    pub discovery_password: String,
    /// What a member beyond the size of the cluster does: exit. With --discovery-token, proxy is not supported yet.
    #[arg(long, default_value = "exit", value_name = "exit")]
    pub discovery_fallback: String,
}

/// Where a member without data finds the members of its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InitialDiscovery {
    /// In SRV records.
    Srv(SrvConfig),
    /// In another etcd cluster.
    Registry(Box<TokenDiscovery>),
}

/// An etcd cluster in which members of a cluster that begins register themselves.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenDiscovery {
    /// What the cluster is known by there.
    pub token: String,
    /// Members of the registry; at least one.
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
    /// Who the member is there.
    pub user: Option<UserAndPassword>,
}

impl fmt::Debug for TokenDiscovery {
    /// Without the token: who has it can register.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenDiscovery").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl RawDiscovery {
    /// None where `--initial-cluster` counts, of which `has_list` says whether it was given.
    pub(super) fn checked(&self, has_list: bool) -> Result<Option<InitialDiscovery>, ConfigError> {
        let raw = self;
        let (has_srv, has_endpoints) = (!raw.discovery_srv.is_empty(), !raw.discovery_endpoints.is_empty());
        if [has_list, has_srv, has_endpoints].into_iter().filter(|given| *given).count() > 1 {
            return Err(ConfigError::Other(SEVERAL.to_owned()));
        }
        if raw.discovery_token.is_empty() == has_endpoints {
            return Err(ConfigError::Other("both --discovery-token and --discovery-endpoints must be set".to_owned()));
        }
        if has_endpoints && raw.discovery_fallback == "proxy" {
            return Err(ConfigError::NotSupported("discovery-fallback"));
        }
        if has_endpoints {
            return Ok(Some(InitialDiscovery::Registry(Box::new(self.registry()?))));
        }
        let srv = SrvConfig::from_flags(&raw.discovery_srv, &raw.discovery_srv_name, false, &raw.discovery_dns);
        let srv = srv.map_err(|(flag, reason)| ConfigError::Value { flag, reason })?;
        Ok(srv.map(InitialDiscovery::Srv))
    }

    fn registry(&self) -> Result<TokenDiscovery, ConfigError> {
        let raw = self;
        let value = |flag, reason: String| ConfigError::Value { flag, reason };
        let endpoints = Endpoint::parse_list(&raw.discovery_endpoints)
            .map_err(|error| value("discovery-endpoints", error.to_string()))?;
        let (cacert, cert, key) = (&raw.discovery_cacert, &raw.discovery_cert, &raw.discovery_key);
        let tls = ClientTlsConfig::from_flags(cacert, cert, key, raw.discovery_insecure_skip_tls_verify)
            .map_err(|reason| value("discovery-cert, --discovery-key", reason))?;
        let usual = || (!raw.discovery_insecure_transport).then(|| ClientTlsConfig::new(Alpn::H2));
        if raw.discovery_token.contains(|letter: char| letter.is_control() || letter == '/') {
            return Err(value("discovery-token", format!("{:?} is no token", raw.discovery_token)));
        }
        if raw.discovery_request_timeout.0.is_zero() {
            return Err(value("discovery-request-timeout", "must be >0".to_owned()));
        }
        Ok(TokenDiscovery {
            token: raw.discovery_token.clone(),
            endpoints,
            dial_timeout: raw.discovery_dial_timeout.0,
            request_timeout: raw.discovery_request_timeout.0,
            keepalive_time: raw.discovery_keepalive_time.0,
            keepalive_timeout: raw.discovery_keepalive_timeout.0,
            tls: tls.or_else(usual),
            user: self.user()?,
        })
    }

    fn user(&self) -> Result<Option<UserAndPassword>, ConfigError> {
        let (user, password) = (&self.discovery_user, &self.discovery_password);
        let (name, password) = match user.split_once(':') {
            _ if user.is_empty() => return Ok(None),
            _ if !password.is_empty() => (user.as_str(), password.as_str()),
            Some((name, password)) => (name, password),
            // etcd asks for it, which a service cannot answer.
            None => {
                let reason = "needs NAME:PASSWORD or --discovery-password".to_owned();
                return Err(ConfigError::Value { flag: "discovery-user", reason });
            }
        };
        Ok(Some(UserAndPassword { name: name.to_owned(), password: password.to_owned() }))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        discovery: RawDiscovery,
    }

    fn checked(line: &str, has_list: bool) -> Result<Option<InitialDiscovery>, String> {
        let flags = Flags::try_parse_from(std::iter::once("x").chain(line.split_whitespace())).expect("readable");
        flags.discovery.checked(has_list).map_err(|error| error.to_string())
    }

    const TOKEN: &str = "--discovery-token=t --discovery-endpoints=http://a:1,b:2";

    #[test]
    fn one_way_to_find_members_is_chosen() {
        assert_eq!(checked("", true), Ok(None));
        assert!(matches!(checked("--discovery-srv=example.com", false), Ok(Some(InitialDiscovery::Srv(_)))));
        assert!(matches!(checked(TOKEN, false), Ok(Some(InitialDiscovery::Registry(_)))));
        for (line, has_list) in [(TOKEN, true), ("--discovery-srv=a", true)] {
            assert!(checked(line, has_list).unwrap_err().starts_with("multiple discovery or bootstrap flags are set."));
        }
        assert!(checked(&format!("{TOKEN} --discovery-srv=a"), false).unwrap_err().starts_with("multiple discovery"));
        for line in ["--discovery-token=t", "--discovery-endpoints=a:1"] {
            let error = checked(line, false).unwrap_err();
            assert_eq!(error, "both --discovery-token and --discovery-endpoints must be set");
        }
        for (flags, flag) in [
            ("--discovery-fallback=proxy", "--discovery-fallback"),
            ("--discovery-user=u", "--discovery-user"),
            ("--discovery-cert=c", "--discovery-cert"),
            ("--discovery-request-timeout=0", "--discovery-request-timeout"),
        ] {
            let error = checked(&format!("{TOKEN} {flags}"), false).unwrap_err();
            assert!(error.contains(flag), "{error}");
        }
        let error = checked("--discovery-token=t --discovery-endpoints=a", false).unwrap_err();
        assert!(error.starts_with("--discovery-endpoints: "), "{error}");
        let error = checked("--discovery-token=a/b --discovery-endpoints=a:1", false).unwrap_err();
        assert!(error.starts_with("--discovery-token: "), "{error}");
    }

    #[test]
    fn the_registry_is_reached_as_the_flags_say() {
        let registry = |flags: &str| match checked(&format!("{TOKEN} {flags}"), false) {
            Ok(Some(InitialDiscovery::Registry(registry))) => registry,
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
}
