use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::super::error::ConfigError;
use super::super::file::yaml::{self, Node};
use super::super::namespace_flag::from_hex;
use super::super::proxy_user::read_password_file;
use super::check::check;
use super::entry::Entry;
use super::fields::{Fields, Located, Wrong, text};
use super::{CompactRight, TenantConfig, TenantCredentials, TenantLimits, TenantMatch};
use crate::net::listening_address;
use crate::types::Credentials;

/// Longest file that is read, and most values in it.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
const NODES_MAX: usize = 1_000_000;
/// Tenants of one process.
const TENANTS_MAX: usize = 10_000;
/// Ways to be one tenant.
const MATCHES_MAX: usize = 1_000;
/// A name is a label of metrics.
const NAME_BYTES_MAX: usize = 64;
/// Part of every key of the tenant.
const NAMESPACE_BYTES_MAX: usize = 1024;

/// What the listeners of the proxy can know of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerFacts {
    /// The server name it asks for.
    pub tls: bool,
    /// Its certificate.
    pub client_certificates: bool,
    /// Where metrics are served, and so no tenant.
    pub metrics: Option<SocketAddr>,
}

/// Reads and checks a file of tenants. Files that it names are relative to its folder.
///
/// # Errors
/// The first thing that is wrong, with its line and field.
pub fn read_tenants_file(path: &Path, listeners: ListenerFacts) -> Result<Vec<TenantConfig>, ConfigError> {
    let wrong = |reason: String| ConfigError::File { path: path.to_owned(), reason };
    let mut content = Vec::new();
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(|error| wrong(error.to_string()))?;
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err(wrong(format!("is longer than {FILE_BYTES_MAX} bytes")));
    }
    let content = String::from_utf8(content).map_err(|_| wrong("is not UTF-8".to_owned()))?;
    tenants(&content, path.parent().unwrap_or(Path::new("")), listeners).map_err(wrong)
}

/// The tenants of a file's text.
pub(super) fn tenants(content: &str, folder: &Path, listeners: ListenerFacts) -> Result<Vec<TenantConfig>, String> {
    let root = yaml::parse(content, NODES_MAX)?;
    let entries = entries(&root, folder, listeners).map_err(|wrong| wrong.to_string())?;
    check(&entries).map_err(|wrong| wrong.to_string())?;
    Ok(entries.into_iter().map(|entry| entry.tenant).collect())
}

fn entries(root: &Node, folder: &Path, listeners: ListenerFacts) -> Result<Vec<Entry>, Wrong> {
    let mut fields = Fields::of(root, "")?;
    let list = fields.list("tenants")?.ok_or_else(|| fields.wrong("needs a list \"tenants\""))?;
    fields.finish()?;
    if list.value.len() > TENANTS_MAX {
        return Err(list.wrong(format!("has more than {TENANTS_MAX} items")));
    }
    list.value.into_iter().map(|item| entry(item, folder, listeners)).collect()
}

fn entry(item: Located<&Node>, folder: &Path, listeners: ListenerFacts) -> Result<Entry, Wrong> {
    let mut fields = Fields::of(item.value, item.field)?;
    let name = fields.text("name")?.ok_or_else(|| fields.wrong("needs a name"))?;
    if name.value.len() > NAME_BYTES_MAX || !name.value.bytes().all(is_name_byte) {
        return Err(name.wrong(format!("must be at most {NAME_BYTES_MAX} letters, digits, '.', '_' and '-'")));
    }
    let namespace = namespace(&mut fields)?;
    let contains = fields.list("contains")?.map(|list| list.value.into_iter().map(text).collect());
    let contains: Vec<Located<String>> = contains.transpose()?.unwrap_or_default();
    let list = fields.list("match")?.filter(|list| !list.value.is_empty());
    let list = list.ok_or_else(|| fields.wrong("needs a match: without one no request is this tenant's"))?;
    if list.value.len() > MATCHES_MAX {
        return Err(list.wrong(format!("has more than {MATCHES_MAX} items")));
    }
    let matches = list.value.into_iter().map(|item| one_match(item, listeners));
    let matches: Vec<Located<TenantMatch>> = matches.collect::<Result<_, Wrong>>()?;
    let upstream = match fields.below("upstream")? {
        None => None,
        Some(upstream) => Some(credentials(upstream, folder)?),
    };
    if let Some(credentials) = &upstream
        && let Some(by_user) = matches.iter().find(|one| one.value.user.is_some())
    {
        let reason = "a request that is known by its token goes to the cluster with that token, so it cannot have the \
                      credentials of \"upstream\"";
        return Err(credentials.wrong(format!("{reason} (line {})", by_user.line)));
    }
    let (read_only, admin) = (fields.boolean("read-only")?, fields.boolean("admin")?);
    if read_only && admin {
        return Err(fields.wrong("cannot be both read-only and admin"));
    }
    let compact = compact(&mut fields, read_only)?;
    let limits = fields.below("limits")?.map(limits).transpose()?.unwrap_or_default();
    fields.finish()?;
    let tenant = TenantConfig {
        name: name.value.clone(),
        namespace: namespace.value.clone(),
        contains: contains.iter().map(|name| name.value.clone()).collect(),
        matches: matches.iter().map(|one| one.value.clone()).collect(),
        upstream: upstream.map(|credentials| credentials.value),
        read_only,
        admin,
        compact,
        limits,
    };
    Ok(Entry { tenant, name: name.with(()), namespace: namespace.with(()), matches, contains })
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

fn namespace(fields: &mut Fields<'_>) -> Result<Located<Bytes>, Wrong> {
    let namespace = match (fields.text("namespace")?, fields.text("namespace-hex")?) {
        (None, None) => return Err(fields.wrong("needs a namespace")),
        (Some(text), None) => text.clone().with(Bytes::from(text.value)),
        (None, Some(hex)) => hex.try_map(|hex| from_hex(hex).map_err(str::to_owned))?,
        (Some(_), Some(hex)) => return Err(hex.wrong("the namespace is given twice")),
    };
    if namespace.value.starts_with(&[0]) {
        return Err(namespace.wrong("keys that begin with a zero byte are reserved for the proxy"));
    }
    if namespace.value.len() > NAMESPACE_BYTES_MAX {
        return Err(namespace.wrong(format!("is longer than {NAMESPACE_BYTES_MAX} bytes")));
    }
    Ok(namespace)
}

fn one_match(item: Located<&Node>, listeners: ListenerFacts) -> Result<Located<TenantMatch>, Wrong> {
    let mut fields = Fields::of(item.value, item.field.clone())?;
    let address = |text: &String| {
        let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
        address.map(listening_address).ok_or_else(|| "must be an IP address and a port".to_owned())
    };
    let listen = fields.text("listen")?.map(|text| text.try_map(address)).transpose()?;
    if let Some(listen) = listen.as_ref().filter(|listen| Some(listen.value) == listeners.metrics) {
        return Err(listen.wrong("is the address of --metrics-addr"));
    }
    let needs = |field: &Option<Located<String>>, there: bool, flags: &str| match field {
        Some(field) if !there => Err(field.wrong(format!("no listener knows it without {flags}"))),
        _ => Ok(()),
    };
    let small = |text: Option<Located<String>>| {
        text.map(|text| text.clone().with(text.value.trim_end_matches('.').to_ascii_lowercase()))
    };
    let (sni, dns_name) = (small(fields.text("sni")?), small(fields.text("dns-name")?));
    let (common_name, spiffe_id) = (fields.text("common-name")?, fields.text("spiffe-id")?);
    needs(&sni, listeners.tls, "--cert-file and --key-file")?;
    for field in [&dns_name, &common_name, &spiffe_id] {
        needs(field, listeners.client_certificates, "--trusted-ca-file")?;
    }
    if let Some(id) = spiffe_id.as_ref().filter(|id| !is_spiffe_id(&id.value)) {
        return Err(id.wrong("must have the form spiffe://TRUST-DOMAIN/PATH"));
    }
    let user = fields.text("user")?;
    let found = TenantMatch {
        listen: listen.map(|listen| listen.value),
        sni: sni.map(|name| name.value),
        common_name: common_name.map(|name| name.value),
        dns_name: dns_name.map(|name| name.value),
        spiffe_id: spiffe_id.map(|id| id.value),
        user: user.map(|user| user.value),
    };
    if found == TenantMatch::default() {
        return Err(fields.wrong("must name one of listen, sni, common-name, dns-name, spiffe-id and user"));
    }
    fields.finish()?;
    Ok(item.with(found))
}

fn is_spiffe_id(text: &str) -> bool {
    let rest = text.strip_prefix("spiffe://");
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains(['?', '#', '@']))
}

fn compact(fields: &mut Fields<'_>, read_only: bool) -> Result<CompactRight, Wrong> {
    let Some(text) = fields.text("compact")? else { return Ok(CompactRight::Deny) };
    let right = match text.value.as_str() {
        "deny" => CompactRight::Deny,
        "allow" => CompactRight::Allow,
        "agreed" => CompactRight::Agreed,
        _ => return Err(text.wrong("must be deny, allow or agreed")),
    };
    if read_only && right != CompactRight::Deny {
        return Err(text.wrong("a tenant that is read-only compacts nothing"));
    }
    Ok(right)
}

fn limits(mut fields: Fields<'_>) -> Result<TenantLimits, Wrong> {
    let limits = TenantLimits {
        requests_per_second: fields.number("requests-per-second")?,
        bytes_per_second: fields.number("bytes-per-second")?,
        watches: fields.number("watches")?,
        leases: fields.number("leases")?,
        stored_keys: fields.number("stored-keys")?,
        stored_bytes: fields.number("stored-bytes")?,
        answer_bytes: fields.number("answer-bytes")?,
    };
    fields.finish()?;
    Ok(limits)
}

fn credentials(mut fields: Fields<'_>, folder: &Path) -> Result<Located<TenantCredentials>, Wrong> {
    let line = fields.line;
    let file = |text: Located<String>| text.clone().with(folder.join(text.value));
    let (user, password) = (fields.text("user")?, fields.text("password")?);
    let password_file = fields.text("password-file")?.map(file);
    let (cert_file, key_file) = (fields.text("cert-file")?.map(file), fields.text("key-file")?.map(file));
    const WAYS: &str = "needs user and one of password and password-file, or cert-file and key-file";
    let value = match (user, password, password_file, cert_file, key_file) {
        (Some(user), Some(password), None, None, None) => by_password(user.value, password.value),
        (Some(user), None, Some(file), None, None) => {
            by_password(user.value, file.try_map(|file: &PathBuf| read_password_file(file))?.value)
        }
        (None, None, None, Some(cert), Some(key)) => {
            TenantCredentials::Certificate { cert_file: cert.value, key_file: key.value }
        }
        _ => return Err(fields.wrong(WAYS)),
    };
    let field = fields.wrong("").field;
    fields.finish()?;
    Ok(Located { line, field, value })
}

fn by_password(name: String, password: String) -> TenantCredentials {
    TenantCredentials::Password(Credentials { name, password })
}
