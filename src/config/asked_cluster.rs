use std::time::Duration;

use clap::{ArgAction, Args};

use super::error::ConfigError;
use super::golang::GoDuration;
use crate::net::ClientTlsConfig;
use crate::types::Credentials;

/// Flags of a gateway that asks a cluster for its endpoints.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Endpoints told by a cluster")]
pub struct RawAskedCluster {
    /// Pause between two readings of the member list, whose members are the endpoints then; 0 reads none.
    #[arg(long, default_value = "0s")]
    pub endpoints_auto_sync_interval: GoDuration,
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
    /// User of it, as NAME:PASSWORD; it needs to read below the prefix, and any user may read the member list.
    #[arg(long, default_value = "", value_name = "USER")]
    pub resolver_user: String,
}

/// What a gateway asks a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AskedFor {
    /// What registered itself below this prefix, written without the slash behind it.
    Registrations {
        /// Before the keys of registrations.
        prefix: String,
    },
    /// Its members, at this interval.
    Members {
        /// Pause between two questions.
        interval: Duration,
    },
}

/// The cluster that tells a gateway its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedCluster {
    /// What it is asked.
    pub asked_for: AskedFor,
    /// TLS with it.
    pub tls: Option<ClientTlsConfig>,
    /// Who the gateway is for it.
    pub user: Option<Credentials>,
}

impl AskedCluster {
    /// Below which the endpoints registered themselves.
    pub fn prefix(&self) -> Option<&str> {
        match &self.asked_for {
            AskedFor::Registrations { prefix } => Some(prefix),
            AskedFor::Members { .. } => None,
        }
    }

    /// At which it is asked for its members.
    pub fn interval(&self) -> Option<Duration> {
        match self.asked_for {
            AskedFor::Registrations { .. } => None,
            AskedFor::Members { interval } => Some(interval),
        }
    }
}

impl RawAskedCluster {
    /// None where no cluster is asked.
    pub(super) fn checked(&self) -> Result<Option<AskedCluster>, ConfigError> {
        let raw = self;
        let wrong = |flag, reason: String| ConfigError::Value { flag, reason };
        let (ca, cert, key) = (&raw.resolver_cacert, &raw.resolver_cert, &raw.resolver_key);
        let tls = ClientTlsConfig::from_flags(ca, cert, key, raw.resolver_insecure_skip_tls_verify)
            .map_err(|reason| wrong("resolver-cert, --resolver-key", reason))?;
        let user = match raw.resolver_user.split_once(':') {
            Some((name, password)) if !name.is_empty() => {
                Some(Credentials { name: name.to_owned(), password: password.to_owned() })
            }
            None if raw.resolver_user.is_empty() => None,
            _ => return Err(wrong("resolver-user", "must be NAME:PASSWORD".to_owned())),
        };
        let interval = raw.endpoints_auto_sync_interval.0;
        let asked_for = match (raw.resolver_prefix.as_str(), interval.is_zero()) {
            ("", true) if tls.is_none() && user.is_none() => return Ok(None),
            ("", true) => {
                let reason = "or --endpoints-auto-sync-interval is needed by the other --resolver flags".to_owned();
                return Err(wrong("resolver-prefix", reason));
            }
            ("", false) => AskedFor::Members { interval },
            (prefix, true) => AskedFor::Registrations { prefix: prefix.to_owned() },
            _ => {
                let reason = "asks for members and --resolver-prefix for proxies: give one of both".to_owned();
                return Err(wrong("endpoints-auto-sync-interval", reason));
            }
        };
        Ok(Some(AskedCluster { asked_for, tls, user }))
    }
}
