use std::path::PathBuf;

use super::super::error::ConfigError;
use super::raw::RawServerConfig;
use crate::config::ListenUrl;
use crate::net::IdentityFiles;

/// Files for TLS between members, in which both sides prove who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerTlsFiles {
    /// What this member shows when it is dialled.
    pub accepting: IdentityFiles,
    /// What it shows when it dials.
    pub dialling: IdentityFiles,
    /// Whose certificates it takes.
    pub authorities: PathBuf,
}

impl PeerTlsFiles {
    /// What the flags ask for; nothing without a certificate.
    ///
    /// etcd lets members dial without showing a certificate; here that takes plain http.
    ///
    /// # Errors
    /// Files that are useless without another, and https URLs without files.
    pub(super) fn from_flags(raw: &RawServerConfig, urls: &[ListenUrl]) -> Result<Option<Self>, ConfigError> {
        let tls = urls.iter().filter(|url| url.is_tls()).count();
        let accepting = identity("peer-cert-file, --peer-key-file", &raw.peer_cert_file, &raw.peer_key_file)?;
        let Some(accepting) = accepting else {
            return match tls {
                0 => Ok(None),
                _ => wrong("listen-peer-urls", "https needs --peer-cert-file and --peer-key-file"),
            };
        };
        if raw.peer_trusted_ca_file.is_empty() {
            return wrong("peer-trusted-ca-file", "must be given: members take no certificates of unknown authorities");
        }
        if tls < urls.len() {
            return wrong("listen-peer-urls", "must all be https when --peer-cert-file is given");
        }
        let flags = "peer-client-cert-file, --peer-client-key-file";
        let dialling = identity(flags, &raw.peer_client_cert_file, &raw.peer_client_key_file)?;
        let dialling = dialling.unwrap_or_else(|| accepting.clone());
        Ok(Some(Self { accepting, dialling, authorities: (&raw.peer_trusted_ca_file).into() }))
    }
}

fn identity(flags: &'static str, certificates: &str, key: &str) -> Result<Option<IdentityFiles>, ConfigError> {
    match (certificates.is_empty(), key.is_empty()) {
        (true, true) => Ok(None),
        (false, false) => Ok(Some(IdentityFiles { certificates: certificates.into(), key: key.into() })),
        _ => wrong(flags, "each needs the other"),
    }
}

fn wrong<T>(flag: &'static str, reason: &str) -> Result<T, ConfigError> {
    Err(ConfigError::Value { flag, reason: reason.to_owned() })
}
