use std::path::Path;

use super::super::error::ConfigError;
use super::notice::Notice;
use super::raw::RawServerConfig;
use crate::config::ListenUrl;
use crate::net::{
    AllowedNames, Alpn, ClientAuth, ClientTlsConfig, IdentityFiles, SelfSigned, ServerAuth, ServerIdentity,
    ServerTlsConfig, TlsPolicy,
};

/// Years for which a certificate that this process makes may be valid.
pub(in crate::config) const YEARS_MAX: u32 = 1000;

/// TLS of a server, as the flags ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// For clients with https and unixs URLs, and for addresses of metrics.
    pub clients: Option<ServerTlsConfig>,
    /// A certificate that etcd would show when it dials itself: only checked.
    pub client_identity: Option<IdentityFiles>,
    /// Whether the common name of a client's certificate names its user.
    pub client_cert_auth: bool,
    /// Between members.
    pub peers: Option<PeerTlsConfig>,
    /// When this member becomes a proxy of others.
    pub upstream: Option<ClientTlsConfig>,
}

/// TLS between members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerTlsConfig {
    /// When this member is dialled.
    pub accepting: ServerTlsConfig,
    /// When it dials.
    pub dialling: ClientTlsConfig,
}

/// Where a server listens.
pub(super) struct ListenUrls<'a> {
    pub(super) clients: &'a [ListenUrl],
    pub(super) metrics: &'a [ListenUrl],
    pub(super) peers: &'a [ListenUrl],
}

impl TlsConfig {
    /// What the flags ask for, and what there is to say about it.
    ///
    /// # Errors
    /// Files that are useless without another, values that do not go together, and https URLs without a certificate.
    pub(super) fn from_flags(
        raw: &RawServerConfig,
        urls: &ListenUrls<'_>,
        data_dir: &Path,
    ) -> Result<(Self, Vec<Notice>), ConfigError> {
        let policy = TlsPolicy::parse(&raw.tls_min_version, &raw.tls_max_version, &raw.cipher_suites);
        let policy = policy.map_err(|reason| wrong("tls-min-version, --tls-max-version, --cipher-suites", reason))?;
        let mut notices = Vec::new();
        let self_signed = |auto: bool, flag, dir: &str, urls: &[ListenUrl]| -> Result<_, ConfigError> {
            if !auto {
                return Ok(None);
            }
            let years = raw.self_signed_cert_validity;
            if years == 0 {
                let reason = "selfSignedCertValidity is invalid,it should be greater than 0";
                return Err(wrong("self-signed-cert-validity", reason.into()));
            }
            if years > YEARS_MAX {
                return Err(wrong(
                    "self-signed-cert-validity",
                    format!("{years} years are more than {YEARS_MAX} ({flag})"),
                ));
            }
            let hosts = urls.iter().filter_map(|url| url.host()).collect();
            Ok(Some(SelfSigned { dir: data_dir.join("fixtures").join(dir), hosts, years }))
        };
        let given = identity("cert-file, --key-file", &raw.cert_file, &raw.key_file)?;
        let made = self_signed(raw.auto_tls, "--auto-tls", "client", urls.clients)?;
        let clients = match (given, made) {
            (Some(files), made) => {
                notices.extend(made.map(|_| Notice::Warning("ignoring client auto TLS since certs given")));
                let revocations = path(&raw.client_crl_file);
                let flags = "client-cert-allowed-cn, --client-cert-allowed-hostname";
                Some(ServerTlsConfig {
                    clients: client_auth(&raw.trusted_ca_file, raw.client_cert_auth),
                    allowed: allowed(flags, &raw.client_cert_allowed_cn, &raw.client_cert_allowed_hostname)?,
                    revocations,
                    policy: policy.clone(),
                    ..ServerTlsConfig::new(ServerIdentity::Files(files))
                })
            }
            (None, Some(made)) => Some(self_signed_config(made, &policy)),
            (None, None) => None,
        };
        check_urls(urls, clients.is_some(), raw.client_cert_auth, &mut notices)?;

        let given = identity("peer-cert-file, --peer-key-file", &raw.peer_cert_file, &raw.peer_key_file)?;
        let flags = "peer-client-cert-file, --peer-client-key-file";
        let shown = identity(flags, &raw.peer_client_cert_file, &raw.peer_client_key_file)?;
        let made = self_signed(raw.peer_auto_tls, "--peer-auto-tls", "peer", urls.peers)?;
        let peers = match (given, made) {
            (Some(files), made) => {
                notices.extend(made.map(|_| Notice::Warning("ignoring peer auto TLS since certs given")));
                Some(peers(raw, files, shown, &policy)?)
            }
            // A certificate that a member made for itself cannot be verified.
            (None, Some(made)) => Some(PeerTlsConfig {
                accepting: self_signed_config(made, &policy),
                dialling: ClientTlsConfig {
                    servers: ServerAuth::Skip,
                    policy: policy.clone(),
                    ..ClientTlsConfig::new(Alpn::Http1)
                },
            }),
            (None, None) => None,
        };
        for url in urls.peers {
            match (url.is_tls(), &peers) {
                (true, None) => {
                    let reason = format!("cannot listen on TLS for {url}: KeyFile and CertFile are not presented");
                    return Err(wrong("listen-peer-urls, --peer-cert-file, --peer-key-file", reason));
                }
                (false, Some(_)) => {
                    let text = "scheme is HTTP while key and cert files are present; ignoring key and cert files";
                    notices.push(Notice::PlainUrl { text, url: url.to_string() });
                }
                _ => {}
            }
            if raw.peer_client_cert_auth && !url.is_tls() {
                let text =
                    "scheme is HTTP while --peer-client-cert-auth is enabled; ignoring client cert auth for this URL";
                notices.push(Notice::PlainUrl { text, url: url.to_string() });
            }
        }
        let client_identity =
            identity("client-cert-file, --client-key-file", &raw.client_cert_file, &raw.client_key_file)?;
        let upstream = clients.as_ref().map(|clients| ClientTlsConfig {
            servers: match path(&raw.trusted_ca_file) {
                Some(file) => ServerAuth::File(file),
                None => ServerAuth::System,
            },
            // What this member would want of a client, the others want of it.
            identity: (clients.clients != ClientAuth::None)
                .then(|| client_identity.clone().or_else(|| files_of(&clients.identity)))
                .flatten(),
            policy,
            ..ClientTlsConfig::new(Alpn::H2)
        });
        let client_cert_auth = raw.client_cert_auth;
        Ok((Self { clients, client_identity, client_cert_auth, peers, upstream }, notices))
    }
}

fn peers(
    raw: &RawServerConfig,
    files: IdentityFiles,
    shown: Option<IdentityFiles>,
    policy: &TlsPolicy,
) -> Result<PeerTlsConfig, ConfigError> {
    let flags = "peer-cert-allowed-cn, --peer-cert-allowed-hostname";
    let allowed = allowed(flags, &raw.peer_cert_allowed_cn, &raw.peer_cert_allowed_hostname)?;
    let servers = match path(&raw.peer_trusted_ca_file) {
        Some(file) => ServerAuth::File(file),
        None => ServerAuth::System,
    };
    Ok(PeerTlsConfig {
        dialling: ClientTlsConfig {
            servers,
            identity: Some(shown.unwrap_or_else(|| files.clone())),
            allowed: allowed.clone(),
            policy: policy.clone(),
            alpn: Alpn::Http1,
        },
        accepting: ServerTlsConfig {
            clients: client_auth(&raw.peer_trusted_ca_file, raw.peer_client_cert_auth),
            allowed,
            revocations: path(&raw.peer_crl_file),
            checks_addresses: !raw.peer_skip_client_san_verification,
            policy: policy.clone(),
            ..ServerTlsConfig::new(ServerIdentity::Files(files))
        },
    })
}

fn check_urls(
    urls: &ListenUrls<'_>,
    has_certificate: bool,
    client_cert_auth: bool,
    notices: &mut Vec<Notice>,
) -> Result<(), ConfigError> {
    for url in urls.clients {
        if url.is_tls() && !has_certificate {
            let text = "TLS key/cert (--cert-file, --key-file) must be provided for client url";
            return Err(ConfigError::Other(format!("{text} {url} with HTTPS scheme")));
        }
        let mut plain = |text| notices.push(Notice::PlainUrl { text, url: url.to_string() });
        if !url.is_tls() && has_certificate {
            plain("scheme is http or unix while key and cert files are present; ignoring key and cert files");
        }
        if !url.is_tls() && client_cert_auth {
            plain("scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL");
        }
    }
    if !has_certificate && urls.metrics.iter().any(ListenUrl::is_tls) {
        let text = "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url";
        return Err(ConfigError::Other(text.to_owned()));
    }
    Ok(())
}

fn allowed(flags: &'static str, names: &str, hosts: &str) -> Result<AllowedNames, ConfigError> {
    let (names, hosts) = (list(names), list(hosts));
    AllowedNames::new(names.clone(), hosts.clone()).ok_or_else(|| {
        let reason =
            format!("AllowedCNs and AllowedHostnames are mutually exclusive (cns={names:?}, hostnames={hosts:?})");
        wrong(flags, reason)
    })
}

/// As in etcd, whoever is given authorities asks for certificates.
fn client_auth(authorities: &str, required: bool) -> ClientAuth {
    match (authorities, required) {
        ("", false) => ClientAuth::None,
        ("", true) => ClientAuth::System,
        (file, _) => ClientAuth::File(file.into()),
    }
}

fn files_of(identity: &ServerIdentity) -> Option<IdentityFiles> {
    match identity {
        ServerIdentity::Files(files) => Some(files.clone()),
        ServerIdentity::SelfSigned(_) => None,
    }
}

fn self_signed_config(made: SelfSigned, policy: &TlsPolicy) -> ServerTlsConfig {
    ServerTlsConfig { policy: policy.clone(), ..ServerTlsConfig::new(ServerIdentity::SelfSigned(made)) }
}

pub(in crate::config) fn identity(
    flags: &'static str,
    certificates: &str,
    key: &str,
) -> Result<Option<IdentityFiles>, ConfigError> {
    match (certificates.is_empty(), key.is_empty()) {
        (true, true) => Ok(None),
        (false, false) => Ok(Some(IdentityFiles { certificates: certificates.into(), key: key.into() })),
        _ => {
            let reason = format!("KeyFile and CertFile must both be present[key: {key}, cert: {certificates}]");
            Err(wrong(flags, reason))
        }
    }
}

fn path(file: &str) -> Option<std::path::PathBuf> {
    (!file.is_empty()).then(|| file.into())
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn wrong(flag: &'static str, reason: String) -> ConfigError {
    ConfigError::Value { flag, reason }
}
