use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{CipherSuite, SupportedCipherSuite, SupportedProtocolVersion};

use super::p521;

/// Versions of TLS and cipher suites that are spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsPolicy {
    min: TlsVersion,
    max: TlsVersion,
    /// For TLS 1.2, in the order of preference; empty for all.
    suites: Vec<CipherSuite>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum TlsVersion {
    Tls12,
    Tls13,
}

impl Default for TlsPolicy {
    fn default() -> Self {
        Self { min: TlsVersion::Tls12, max: TlsVersion::Tls13, suites: Vec::new() }
    }
}

/// Suites of Go's list that are considered safe there and are not supported here.
const NOT_SUPPORTED: [&str; 4] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
];

/// Suites of Go's list that are broken or weak.
const INSECURE: [&str; 13] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_FALLBACK_SCSV",
];

impl TlsPolicy {
    /// From the lowest and the highest version, `TLS1.2`, `TLS1.3` or empty for our own limit, and a comma list of
    /// cipher suites by Go's names.
    ///
    /// # Errors
    /// etcd's texts for values that do not go together; a suite that cannot be used is named.
    pub fn parse(min: &str, max: &str, suites: &str) -> Result<Self, String> {
        let lowest = version(min)?.unwrap_or(TlsVersion::Tls12);
        let highest = version(max)?;
        if highest.is_some_and(|highest| lowest > highest) {
            return Err(format!("min version ({min}) is greater than max version ({max})"));
        }
        let suites: Vec<&str> = suites.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        if lowest == TlsVersion::Tls13 && !suites.is_empty() {
            return Err("cipher suites cannot be configured when only TLS1.3 is enabled".to_owned());
        }
        let suites = suites.into_iter().map(suite).collect::<Result<_, _>>()?;
        Ok(Self { min: lowest, max: highest.unwrap_or(TlsVersion::Tls13), suites })
    }

    pub(super) fn provider(&self) -> Arc<CryptoProvider> {
        let mut provider = ring::default_provider();
        provider.signature_verification_algorithms = p521::signature_verification_algorithms();
        if !self.suites.is_empty() {
            // As in Go, those of TLS 1.3 are not up to the operator.
            let (tls13, tls12): (Vec<SupportedCipherSuite>, Vec<SupportedCipherSuite>) =
                provider.cipher_suites.iter().copied().partition(|suite| suite.tls13().is_some());
            let chosen = self.suites.iter().filter_map(|&name| tls12.iter().find(|suite| suite.suite() == name));
            provider.cipher_suites = tls13.into_iter().chain(chosen.copied()).collect();
        }
        Arc::new(provider)
    }

    pub(super) fn versions(&self) -> Vec<&'static SupportedProtocolVersion> {
        let all = [(TlsVersion::Tls12, &TLS12), (TlsVersion::Tls13, &TLS13)];
        all.into_iter().filter(|(version, _)| (self.min..=self.max).contains(version)).map(|(_, known)| known).collect()
    }
}

fn version(text: &str) -> Result<Option<TlsVersion>, String> {
    match text {
        "" => Ok(None),
        "TLS1.2" => Ok(Some(TlsVersion::Tls12)),
        "TLS1.3" => Ok(Some(TlsVersion::Tls13)),
        other => Err(format!("unexpected TLS version {other:?} (must be one of: TLS1.2, TLS1.3)")),
    }
}

fn suite(name: &str) -> Result<CipherSuite, String> {
    Ok(match name {
        "TLS_AES_128_GCM_SHA256" => CipherSuite::TLS13_AES_128_GCM_SHA256,
        "TLS_AES_256_GCM_SHA384" => CipherSuite::TLS13_AES_256_GCM_SHA384,
        "TLS_CHACHA20_POLY1305_SHA256" => CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256" => CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384" => CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256" => CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384" => CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256" | "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" => {
            CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        }
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256" | "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" => {
            CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
        }
        _ if NOT_SUPPORTED.contains(&name) => return Err(format!("TLS cipher suite {name:?} is not supported")),
        _ if INSECURE.contains(&name) => return Err(format!("TLS cipher suite {name:?} is insecure")),
        _ => return Err(format!("unexpected TLS cipher suite {name:?}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(min: &str, max: &str, suites: &str) -> String {
        TlsPolicy::parse(min, max, suites).unwrap_err()
    }

    #[test]
    fn versions_are_limited() {
        let count = |min, max| TlsPolicy::parse(min, max, "").unwrap().versions().len();
        assert_eq!((count("TLS1.2", ""), count("TLS1.2", "TLS1.2"), count("TLS1.3", ""), count("", "")), (2, 1, 1, 2));
        assert_eq!(refusal("TLS1.0", "", ""), "unexpected TLS version \"TLS1.0\" (must be one of: TLS1.2, TLS1.3)");
        assert_eq!(refusal("TLS1.3", "TLS1.2", ""), "min version (TLS1.3) is greater than max version (TLS1.2)");
        let text = "cipher suites cannot be configured when only TLS1.3 is enabled";
        assert_eq!(refusal("TLS1.3", "", "TLS_AES_128_GCM_SHA256"), text);
    }

    #[test]
    fn suites_have_gos_names() {
        let names = "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256";
        let provider = TlsPolicy::parse("TLS1.2", "", names).unwrap().provider();
        let tls12: Vec<_> = provider.cipher_suites.iter().filter(|suite| suite.tls13().is_none()).collect();
        assert_eq!((tls12.len(), provider.cipher_suites.len()), (2, 5));
        assert_eq!(refusal("", "", "TLS_NOPE"), "unexpected TLS cipher suite \"TLS_NOPE\"");
        let weak = "TLS_RSA_WITH_RC4_128_SHA";
        assert_eq!(refusal("", "", weak), format!("TLS cipher suite {weak:?} is insecure"));
        let old = "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA";
        assert_eq!(refusal("", "", old), format!("TLS cipher suite {old:?} is not supported"));
    }
}
