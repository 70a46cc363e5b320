use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SerialNumber};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use watershed::client::Endpoint;
use watershed::net::{AddressTime, Alpn, ClientTls, ClientTlsConfig, TcpDialer, TcpSilence, secure};

use super::issuer::{Issuer, common_name};

/// An authority, and the files of what it signs.
pub struct Authority {
    issuer: Issuer,
    folder: PathBuf,
}

impl Authority {
    /// A new one; its certificate is in the file `name`.
    pub fn new(folder: &Path, name: &str) -> Self {
        let issuer = Issuer::new();
        std::fs::write(folder.join(name), issuer.pem()).expect("written");
        Self { issuer, folder: folder.to_owned() }
    }

    /// Signs a certificate for this host into `name.crt` and `name.key`.
    pub fn sign(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let key = KeyPair::generate().expect("a key");
        let hosts = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let mut params = CertificateParams::new(hosts).expect("names");
        params.distinguished_name = DistinguishedName::new();
        change(&mut params);
        let certificate = self.issuer.sign(&params, &key).expect("signed");
        // As a tool that renews certificates does it: the new file takes the place of the old one.
        for (kind, text) in [("crt", certificate.pem()), ("key", key.serialize_pem())] {
            let path = self.folder.join(format!("{name}.{kind}"));
            std::fs::write(path.with_extension("new"), text).expect("written");
            std::fs::rename(path.with_extension("new"), path).expect("replaced");
        }
    }

    /// The same with this CommonName, which names a user.
    pub fn sign_user(&self, name: &str, user: &str) {
        self.sign(name, |params| params.distinguished_name = common_name(user));
    }

    /// Writes a list with this serial number into the file `crl`.
    pub fn revoke(&self, serial: u64) {
        let list = self.issuer.revoke([SerialNumber::from(serial)]);
        std::fs::write(self.folder.join("crl"), list.der()).expect("written");
    }
}

/// The certificates of a deployment: `server` and `peer`; `nameless` for clients and what dials members; and one for each
/// user, whose name it has.
pub struct Certificates {
    authority: Authority,
    users: Vec<String>,
    folder: TempDir,
    /// Held while files are replaced or read here: between the two files of a pair they do not fit.
    files: Mutex<()>,
}

impl Certificates {
    pub fn new(users: &[&str]) -> Self {
        let folder = TempDir::new().expect("temporary directory");
        let users = users.iter().map(|&user| user.to_owned()).collect();
        let certificates =
            Self { authority: Authority::new(folder.path(), "ca"), users, folder, files: Mutex::new(()) };
        certificates.renew();
        certificates
    }

    /// New certificates and keys in place of all present ones.
    pub fn renew(&self) {
        let _files = self.files.lock();
        for name in ["server", "peer", "nameless"] {
            self.authority.sign(name, |_| {});
        }
        for user in &self.users {
            self.authority.sign_user(user, user);
        }
    }

    /// TLS of a client that shows this certificate.
    pub fn tls(&self, name: &str) -> ClientTls {
        let _files = self.files.lock();
        client_tls(self.folder.path(), Some(name))
    }

    /// Flags of a listener for clients, which verifies them.
    pub fn client_flags(&self) -> Vec<String> {
        self.flags("", "server")
    }

    /// Flags of a member towards its peers.
    pub fn peer_flags(&self) -> Vec<String> {
        self.flags("peer-", "peer")
    }

    /// Flags of a proxy that dials members.
    pub fn dial_flags(&self) -> Vec<String> {
        let [authority, certificate, key] = ["ca", "nameless.crt", "nameless.key"].map(|name| self.file(name));
        vec![format!("--cacert={authority}"), format!("--cert={certificate}"), format!("--key={key}")]
    }

    /// Flags of a proxy that is this user.
    pub fn user_flags(&self, user: &str) -> Vec<String> {
        let [certificate, key] = ["crt", "key"].map(|kind| self.file(&format!("{user}.{kind}")));
        vec![format!("--user-cert={certificate}"), format!("--user-key={key}")]
    }

    fn flags(&self, kind: &str, name: &str) -> Vec<String> {
        vec![
            format!("--{kind}cert-file={}", self.file(&format!("{name}.crt"))),
            format!("--{kind}key-file={}", self.file(&format!("{name}.key"))),
            format!("--{kind}trusted-ca-file={}", self.file("ca")),
        ]
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

/// TLS of a client that trusts the file `ca` and shows this certificate, if any.
pub fn client_tls(folder: &Path, name: Option<&str>) -> ClientTls {
    let file = |name: &str| folder.join(name).display().to_string();
    let (certificate, key) = match name {
        None => (String::new(), String::new()),
        Some(name) => (file(&format!("{name}.crt")), file(&format!("{name}.key"))),
    };
    let config = ClientTlsConfig::from_flags(&file("ca"), &certificate, &key, false).expect("files").expect("given");
    ClientTls::new(&config).expect("usable")
}

/// One HTTP/1.1 request; the status of the answer and its text.
pub async fn https(
    endpoint: &str,
    tls: Option<&ClientTls>,
    method: &str,
    path: &str,
    body: &str,
) -> Result<(u16, String), String> {
    let endpoint: Endpoint = endpoint.parse().expect("an endpoint");
    let dialer = TcpDialer { silence: TcpSilence::MEMBER, address_time: AddressTime::Unbounded, from: None };
    let asked = async {
        let stream = dialer.connect_endpoint(&endpoint, 0).await.map_err(std::io::Error::other)?;
        let mut stream = secure(&endpoint, stream, tls, Alpn::Http1).await?;
        // etcd knows by the accept header that a call comes as JSON, and every client sends one.
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\naccept: */*\r\nconnection: close\r\n");
        let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let text = asked.await.map_err(|error| error.to_string())?;
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(|| text.clone())?;
    Ok((status, text))
}
