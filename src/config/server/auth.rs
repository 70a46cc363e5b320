use std::path::PathBuf;
use std::time::Duration;

use super::super::error::ConfigError;
use super::super::golang::parse_duration;
use super::raw::RawServerConfig;

/// What `--auth-token-ttl` stands for when it says 0, and the life of a JSON web token without `ttl`.
const TOKEN_TTL: Duration = Duration::from_secs(300);
/// Costs that bcrypt allows, and what etcd takes instead of others.
const BCRYPT_COSTS: std::ops::RangeInclusive<u32> = 4..=31;
const BCRYPT_COST: u32 = 10;

/// How users log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthConfig {
    /// What stands for a logged-in user.
    pub tokens: TokenConfig,
    /// Rounds of hashing, as a power of two.
    pub bcrypt_cost: u32,
}

/// The kinds of tokens (`--auth-token`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenConfig {
    /// No user can log in.
    None,
    /// Random text that all members remember.
    Simple {
        /// How long a token is valid after its last use.
        ttl: Duration,
    },
    /// JSON web tokens. The files are read when the member starts.
    Jwt {
        /// `sign-method`.
        method: String,
        /// `pub-key`.
        public_key: Option<PathBuf>,
        /// `priv-key`.
        private_key: Option<PathBuf>,
        /// How long a token is valid.
        ttl: Duration,
    },
}

impl AuthConfig {
    /// What the flags ask for, and whether the bcrypt cost had to be replaced.
    ///
    /// # Errors
    /// An unknown kind of token, or options that are not its own.
    pub(super) fn from_flags(raw: &RawServerConfig) -> Result<(Self, bool), ConfigError> {
        let known = u32::try_from(raw.bcrypt_cost).ok().filter(|cost| BCRYPT_COSTS.contains(cost));
        let ttl = match raw.auth_token_ttl {
            0 => TOKEN_TTL,
            seconds => Duration::from_secs(seconds.into()),
        };
        let tokens = TokenConfig::parse(&raw.auth_token, ttl)
            .map_err(|reason| ConfigError::Value { flag: "auth-token", reason })?;
        Ok((Self { tokens, bcrypt_cost: known.unwrap_or(BCRYPT_COST) }, known.is_none()))
    }
}

impl TokenConfig {
    fn parse(text: &str, simple_ttl: Duration) -> Result<Self, String> {
        let invalid = || "auth: invalid auth options".to_owned();
        let mut parts = text.split(',');
        let kind = parts.next().unwrap_or_default();
        let mut options: Vec<(&str, &str)> = Vec::new();
        for part in parts {
            let (name, value) = part.split_once('=').filter(|(_, value)| !value.contains('=')).ok_or_else(invalid)?;
            if options.iter().any(|(known, _)| *known == name) {
                return Err(invalid());
            }
            options.push((name, value));
        }
        let option = |name| {
            let found = options.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
            found.filter(|value| !value.is_empty())
        };
        match kind {
            "" => Ok(Self::None),
            "simple" => Ok(Self::Simple { ttl: simple_ttl }),
            "jwt" => Ok(Self::Jwt {
                method: option("sign-method").ok_or_else(invalid)?.to_owned(),
                public_key: option("pub-key").map(PathBuf::from),
                private_key: option("priv-key").map(PathBuf::from),
                ttl: match option("ttl") {
                    Some(ttl) => parse_duration(ttl).map_err(|_| invalid())?,
                    None => TOKEN_TTL,
                },
            }),
            _ => Err(invalid()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_as_etcd_reads_them() {
        let parse = |text| TokenConfig::parse(text, Duration::from_secs(7));
        assert_eq!(parse(""), Ok(TokenConfig::None));
        assert_eq!(parse("simple"), Ok(TokenConfig::Simple { ttl: Duration::from_secs(7) }));
        assert_eq!(parse("simple,ttl=5m"), Ok(TokenConfig::Simple { ttl: Duration::from_secs(7) }), "not its option");
        let jwt = |public: Option<&str>, private: Option<&str>, seconds| {
            Ok(TokenConfig::Jwt {
                method: "RS256".to_owned(),
                public_key: public.map(PathBuf::from),
                private_key: private.map(PathBuf::from),
                ttl: Duration::from_secs(seconds),
            })
        };
        assert_eq!(parse("jwt,pub-key=/a,priv-key=/b,sign-method=RS256,ttl=10m"), jwt(Some("/a"), Some("/b"), 600));
        assert_eq!(parse("jwt,sign-method=RS256,priv-key=/b"), jwt(None, Some("/b"), 300));
        let wrong = ["jwt", "jwt,pub-key=/a", "jwt,sign-method", "jwt,sign-method=RS256,sign-method=RS256", "other"];
        for text in wrong.into_iter().chain(["simple,x", "jwt,sign-method=RS256,ttl=5", "jwt,sign-method=RS256=x"]) {
            assert_eq!(parse(text), Err("auth: invalid auth options".to_owned()), "{text}");
        }
    }
}
