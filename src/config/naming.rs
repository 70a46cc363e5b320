use clap::{ArgAction, Args};

use super::error::ConfigError;
use super::proxy_user::UserAndPassword;
use crate::net::ClientTlsConfig;

/// Flags of a gateway in front of what registered in the cluster of its endpoints.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Registered proxies")]
pub struct RawNaming {
    /// Prefix below which proxies registered in the cluster of --endpoints (their --resolver-prefix): connections go to them.
    #[arg(long, default_value = "", value_name = "PREFIX")]
    pub resolver_prefix: String,
    /// Authorities whose certificates that cluster has.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub resolver_cacert: String,
    /// Certificate shown to it.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub resolver_cert: String,
    /// Its key.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub resolver_key: String,
    /// Take any certificate of it: for tests only.
    #[arg(long, default_value_t = false, action = ArgAction::Set)]
    pub resolver_insecure_skip_tls_verify: bool,
    /// User of it, as NAME:PASSWORD; it needs to read below the prefix.
    #[arg(long, default_value = "", value_name = "USER")]
    pub resolver_user: String,
}

/// Where the endpoints of a gateway registered themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamingConfig {
    /// Before the keys of registrations, without the slash behind it.
    pub prefix: String,
    /// TLS with the cluster.
    pub tls: Option<ClientTlsConfig>,
    /// Who the gateway is for it.
    pub user: Option<UserAndPassword>,
}

impl RawNaming {
    /// None without a prefix.
    pub(super) fn checked(&self) -> Result<Option<NamingConfig>, ConfigError> {
        let raw = self;
        let wrong = |flag, reason: String| ConfigError::Value { flag, reason };
        let (ca, cert, key) = (&raw.resolver_cacert, &raw.resolver_cert, &raw.resolver_key);
        let tls = ClientTlsConfig::from_flags(ca, cert, key, raw.resolver_insecure_skip_tls_verify)
            .map_err(|reason| wrong("resolver-cert, --resolver-key", reason))?;
        let user = match raw.resolver_user.split_once(':') {
            Some((name, password)) if !name.is_empty() => {
                Some(UserAndPassword { name: name.to_owned(), password: password.to_owned() })
            }
            None if raw.resolver_user.is_empty() => None,
            _ => return Err(wrong("resolver-user", "must be NAME:PASSWORD".to_owned())),
        };
        if raw.resolver_prefix.is_empty() {
            return match tls.is_some() || user.is_some() {
                true => Err(wrong("resolver-prefix", "is needed by the other --resolver flags".to_owned())),
                false => Ok(None),
            };
        }
        Ok(Some(NamingConfig { prefix: raw.resolver_prefix.clone(), tls, user }))
    }
}
