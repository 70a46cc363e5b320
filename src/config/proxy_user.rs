use std::path::Path;

use clap::Args;

use super::error::ConfigError;
use crate::net::ClientTlsConfig;
use crate::types::Credentials;

/// Flags of the user that the proxy itself is for the cluster; etcd's proxy has none of them.
#[derive(Clone, Debug, Default, Args)]
pub struct RawProxyUser {
    /// User of the cluster that reads for all clients, as NAME or NAME:PASSWORD.
    #[arg(long, default_value = "", value_name = "USER")]
    pub user: String,
    /// Its password.
    #[arg(long, default_value = "", value_name = "PASSWORD")]
    pub password: String,
    /// File with its password, without the line's end.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub password_file: String,
    /// Certificate shown to members instead of a password, on connections that carry no request of a client; its common
    /// name is the user.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub user_cert: String,
    /// Its key.
    #[arg(long, default_value = "", value_name = "FILE")]
    pub user_key: String,
}

/// Who the proxy itself is for the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProxyUserConfig {
    /// A user that logs in.
    Password(Credentials),
    /// The user that a certificate names.
    Certificate(ClientTlsConfig),
}

impl RawProxyUser {
    /// The user, if one is given; `authorities` and `skip` are those of the members' certificates.
    ///
    /// # Errors
    /// Names the flags.
    pub fn checked(&self, authorities: &str, skip: bool) -> Result<Option<ProxyUserConfig>, ConfigError> {
        let by_password = user_and_password(&self.user, &self.password, &self.password_file)?;
        if self.user_cert.is_empty() && self.user_key.is_empty() {
            return Ok(by_password.map(ProxyUserConfig::Password));
        }
        if by_password.is_some() {
            let reason = "the proxy is one user: give a password or a certificate".to_owned();
            return Err(ConfigError::Value { flag: "user, --user-cert", reason });
        }
        let tls = ClientTlsConfig::from_flags(authorities, &self.user_cert, &self.user_key, skip);
        let tls = tls.map_err(|reason| ConfigError::Value { flag: "user-cert, --user-key", reason })?;
        Ok(tls.map(ProxyUserConfig::Certificate))
    }
}

/// The user of `--user`, `--password` and `--password-file`, each empty for none.
///
/// # Errors
/// Names the flags.
pub(super) fn user_and_password(
    user: &str,
    password: &str,
    password_file: &str,
) -> Result<Option<Credentials>, ConfigError> {
    let wrong = |flag, reason: &str| Err(ConfigError::Value { flag, reason: reason.to_owned() });
    let (name, inline) = match user.split_once(':') {
        Some((name, password)) => (name, password),
        None => (user, ""),
    };
    let from_file = !password_file.is_empty();
    if name.is_empty() {
        return match user.is_empty() && password.is_empty() && !from_file {
            true => Ok(None),
            false => wrong("user", "a password needs the name of a user"),
        };
    }
    let given = [!inline.is_empty(), !password.is_empty(), from_file].into_iter().filter(|&given| given).count();
    if given != 1 {
        return wrong("user", "needs one of NAME:PASSWORD, --password and --password-file");
    }
    let password = match from_file {
        true => read_password_file(Path::new(password_file)).map_err(ConfigError::Other)?,
        false => format!("{inline}{password}"),
    };
    Ok(Some(Credentials { name: name.to_owned(), password }))
}

/// The password in a file.
///
/// # Errors
/// Names the file.
pub(super) fn read_password_file(path: &Path) -> Result<String, String> {
    let wrong = |reason: String| format!("{}: {reason}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() || password.contains('\n') {
        return Err(wrong("must hold a password and nothing else".to_owned()));
    }
    Ok(password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(user: &str, password: &str, file: &str) -> RawProxyUser {
        RawProxyUser {
            user: user.to_owned(),
            password: password.to_owned(),
            password_file: file.to_owned(),
            ..RawProxyUser::default()
        }
    }

    fn password(raw: &RawProxyUser) -> Result<(String, String), String> {
        match raw.checked("", false) {
            Ok(Some(ProxyUserConfig::Password(user))) => Ok((user.name, user.password)),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_password_comes_one_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let path = path.to_str().unwrap();
        let pair = |name: &str, password: &str| Ok((name.to_owned(), password.to_owned()));
        assert_eq!(password(&raw("a:b:c", "", "")), pair("a", "b:c"));
        assert_eq!(password(&raw("a", "b", "")), pair("a", "b"));
        for text in ["b", "b\n", "b\r\n"] {
            std::fs::write(path, text).unwrap();
            assert_eq!(password(&raw("a", "", path)), pair("a", "b"));
        }
        for text in ["", "\n", "b\nc\n"] {
            std::fs::write(path, text).unwrap();
            let error = password(&raw("a", "", path)).unwrap_err();
            assert!(error.contains(path) && error.contains("a password and nothing else"), "{error}");
        }
        for (user, given, file) in [("a", "", ""), ("a:b", "c", ""), ("a:b", "", path), ("a", "b", path)] {
            assert!(password(&raw(user, given, file)).unwrap_err().starts_with("--user: needs one of"));
        }
        for (user, given, file) in [("", "b", ""), ("", "", path), (":b", "", "")] {
            assert!(password(&raw(user, given, file)).unwrap_err().contains("needs the name"));
        }
        assert_eq!(RawProxyUser::default().checked("", false), Ok(None));
    }

    #[test]
    fn a_certificate_takes_the_place_of_a_password() {
        let by_certificate = |user: &str| RawProxyUser {
            user: user.to_owned(),
            user_cert: "c".to_owned(),
            user_key: "k".to_owned(),
            ..RawProxyUser::default()
        };
        let tls = match by_certificate("").checked("a", false).unwrap() {
            Some(ProxyUserConfig::Certificate(tls)) => tls,
            other => panic!("{other:?}"),
        };
        assert_eq!(tls.identity.unwrap().key, Path::new("k"));
        let error = by_certificate("a:b").checked("a", false).unwrap_err().to_string();
        assert_eq!(error, "--user, --user-cert: the proxy is one user: give a password or a certificate");
        let error = RawProxyUser { user_key: String::new(), ..by_certificate("") }.checked("", false).unwrap_err();
        assert!(error.to_string().starts_with("--user-cert, --user-key: KeyFile and CertFile"), "{error}");
    }

    #[test]
    fn the_password_is_not_printed() {
        let config = raw("a:secret", "", "").checked("", false).unwrap();
        assert!(!format!("{config:?}").contains("secret"));
    }
}
