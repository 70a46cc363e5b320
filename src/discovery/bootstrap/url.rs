use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::asking::{Unanswered, until_answered};
use super::error::JoinError;
use super::keys::size_in;
use super::registered::{Entry, Registered};
use crate::client::{PAGE_DIALER, http_answer_on};
use crate::config::{HttpProxy, UrlRegistry};
use crate::net::{Alpn, Backoff, ByteStream, ClientTls, secure};

/// Pauses after a request that was not answered: those of etcd.
const RETRY: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(256));
/// How long a change is waited for before the members are read again.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// A thousand members with their URLs.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The answer of a proxy to CONNECT.
const TUNNEL_BYTES_MAX: usize = 16 * 1024;

/// Codes of the v2 API.
const KEY_NOT_FOUND: u64 = 100;
const CLUSTER_FULL: u64 = 103;
const KEY_EXISTS: u64 = 105;

/// A discovery URL: etcd's v2 keys API below a path.
pub(in crate::discovery) struct OfUrl {
    config: UrlRegistry,
    tls: ClientTls,
}

/// A success of the v2 API.
#[derive(Debug, Deserialize)]
struct Answer {
    node: Node,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Node {
    key: String,
    value: String,
    nodes: Vec<Node>,
    created_index: i64,
}

/// A failure of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Failure {
    error_code: u64,
    #[serde(default)]
    message: String,
    #[serde(default)]
    cause: String,
}

/// A failure that says something of the token, or none of an answer.
enum Outcome {
    Failed(Failure),
    Unanswered(Unanswered),
}

impl Node {
    fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or_default()
    }
}

impl OfUrl {
    pub(super) fn new(config: &UrlRegistry) -> Result<Self, JoinError> {
        let tls = ClientTls::new(&config.tls).map_err(|error| JoinError::Client(error.to_string()))?;
        Ok(Self { config: config.clone(), tls })
    }

    pub(super) async fn look(&self) -> Result<Registered, JoinError> {
        let size = "/_config/size";
        let (_, found) = self.read("size", size).await?;
        let size = size_in(&format!("{}{size}", self.config.path), &found.value)?;
        let (index, found) = self.read("members", "").await?;
        let members = found.nodes.into_iter().filter(|node| node.name() != "_config");
        let entry = |node: Node| Entry { id: node.name().to_owned(), value: node.value, created: node.created_index };
        Ok(Registered::new(size, index, members.map(entry).collect()))
    }

    async fn read(&self, what: &str, below: &str) -> Result<(Option<i64>, Node), JoinError> {
        until_answered(what, self.config.request_timeout, &RETRY, || async move {
            self.ask(Method::GET, below, "").await.map_err(|outcome| match outcome {
                Outcome::Failed(failure) if failure.error_code == KEY_NOT_FOUND => {
                    Unanswered::Never(JoinError::SizeNotFound(format!("{}/_config/size", self.config.path)))
                }
                other => other.into_unanswered(),
            })
        })
        .await
    }

    /// Writes the entry. One that was there before is another member's, but for that of an attempt whose answer was lost.
    pub(super) async fn register(&self, id: &str, entry: &str) -> Result<(), JoinError> {
        let below = format!("/{id}?prevExist=false");
        let form = url::form_urlencoded::Serializer::new(String::new()).append_pair("value", entry).finish();
        let (below, form, attempted) = (&below, &form, &AtomicBool::new(false));
        until_answered("registration", self.config.request_timeout, &RETRY, || async move {
            let again = attempted.swap(true, Ordering::Relaxed);
            match self.ask(Method::PUT, below, form).await {
                Ok(_) => Ok(()),
                Err(Outcome::Failed(failure)) if failure.error_code == KEY_EXISTS => {
                    let found = self.ask(Method::GET, &format!("/{id}"), "").await;
                    match found {
                        Ok((_, node)) if again && node.value == entry => Ok(()),
                        _ => Err(Unanswered::Never(JoinError::DuplicateId(id.to_owned()))),
                    }
                }
                // Others were faster: who they are is read again.
                Err(Outcome::Failed(failure)) if failure.error_code == CLUSTER_FULL => Ok(()),
                Err(other) => Err(other.into_unanswered()),
            }
        })
        .await
    }

    /// Waits for a change after what was read.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub(super) async fn changed_after(&self, index: Option<i64>) -> Result<(), String> {
        // Without one, the answer would be the last change, at once.
        let index = index.ok_or("the answers have no X-Etcd-Index")?;
        let below = format!("?recursive=true&wait=true&waitIndex={}", index.saturating_add(1));
        let waited = async {
            let answer = self.exchange(Method::GET, &below, "").await.map_err(|error| error.to_string())?;
            if answer.status() == StatusCode::OK { Ok(()) } else { Err(answer.status().to_string()) }
        };
        timeout(WAIT_MAX, waited).await.unwrap_or(Ok(()))
    }

    /// The index of the registry, if the answer has it, and the node of an answer.
    async fn ask(&self, method: Method, below: &str, form: &str) -> Result<(Option<i64>, Node), Outcome> {
        let later = |reason: String| Outcome::Unanswered(Unanswered::Later(reason));
        let never = |error| Outcome::Unanswered(Unanswered::Never(error));
        let answer = self.exchange(method, below, form).await.map_err(|error| later(error.to_string()))?;
        let (status, body) = (answer.status(), answer.body());
        if status.is_server_error() {
            return Err(later(format!("answered {status}")));
        }
        if status.is_redirection() {
            let to = answer.headers().get(header::LOCATION).map_or("", |to| to.to_str().unwrap_or_default());
            return Err(never(JoinError::BadEndpoint(format!("answered {status}, to {to}: name that URL"))));
        }
        if !status.is_success() {
            return Err(match serde_json::from_slice(body) {
                Ok(failure) => Outcome::Failed(failure),
                Err(_) => never(JoinError::BadEndpoint(format!("answered {status}, without JSON"))),
            });
        }
        let index = answer.headers().get("x-etcd-index").and_then(|index| index.to_str().ok()?.parse().ok());
        match serde_json::from_slice::<Answer>(body) {
            Ok(answer) => Ok((index, answer.node)),
            Err(error) => Err(never(JoinError::BadEndpoint(format!("the answer is no node of the v2 API: {error}")))),
        }
    }

    async fn exchange(&self, method: Method, below: &str, form: &str) -> io::Result<Response<Bytes>> {
        let UrlRegistry { endpoint, host, path, authorization, proxy, .. } = &self.config;
        let is_tls = endpoint.uses_tls(false);
        let target = match proxy {
            // What a proxy passes on has the whole URL.
            Some(_) if !is_tls => format!("http://{host}{path}{below}"),
            _ => format!("{path}{below}"),
        };
        let mut request = Request::builder().method(method).uri(target).header(header::HOST, host);
        if !form.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if let Some(HttpProxy { authorization: Some(authorization), .. }) = proxy.as_ref().filter(|_| !is_tls) {
            request = request.header(header::PROXY_AUTHORIZATION, authorization);
        }
        let request = request.body(Bytes::copy_from_slice(form.as_bytes())).map_err(io::Error::other)?;
        let stream = match proxy {
            None => PAGE_DIALER.connect_endpoint(endpoint, 0).await.map_err(io::Error::other)?,
            Some(proxy) => self.through(proxy, is_tls).await?,
        };
        let stream = if is_tls { secure(endpoint, stream, Some(&self.tls), Alpn::Http1).await? } else { stream };
        http_answer_on(stream, request, ANSWER_BYTES_MAX).await
    }

    /// A connection to the proxy, on which it passes bytes to the registry if that has TLS.
    async fn through(&self, proxy: &HttpProxy, is_tunnel: bool) -> io::Result<Box<dyn ByteStream>> {
        let described = |error: io::Error| io::Error::other(format!("--discovery-proxy {}: {error}", proxy.endpoint));
        let connected = async {
            let stream = PAGE_DIALER.connect_endpoint(&proxy.endpoint, 0).await.map_err(io::Error::other)?;
            let stream = if proxy.endpoint.uses_tls(false) {
                secure(&proxy.endpoint, stream, None, Alpn::Http1).await?
            } else {
                stream
            };
            match is_tunnel {
                true => self.tunnel(stream, proxy.authorization.as_deref()).await,
                false => Ok(stream),
            }
        };
        connected.await.map_err(described)
    }

    /// Asks for a tunnel; reads the answer byte by byte, as TLS begins behind it.
    async fn tunnel(
        &self,
        mut stream: Box<dyn ByteStream>,
        authorization: Option<&str>,
    ) -> io::Result<Box<dyn ByteStream>> {
        let to = self.config.endpoint.authority();
        let authorization = authorization.map(|value| format!("Proxy-Authorization: {value}\r\n")).unwrap_or_default();
        stream.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{authorization}\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() >= TUNNEL_BYTES_MAX {
                return Err(io::Error::other("the answer to CONNECT is too long"));
            }
            answer.push(stream.read_u8().await?);
        }
        let first =
            String::from_utf8_lossy(answer.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
        match first.split(' ').nth(1) {
            Some(status) if status.starts_with('2') => Ok(stream),
            _ => Err(io::Error::other(format!("refused CONNECT: {first}"))),
        }
    }
}

impl Outcome {
    /// A failure that has no meaning of its own.
    fn into_unanswered(self) -> Unanswered {
        match self {
            Self::Unanswered(unanswered) => unanswered,
            Self::Failed(Failure { error_code, message, cause }) => {
                Unanswered::Never(JoinError::Refused(format!("error code {error_code}: {message} ({cause})")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::ClientTlsConfig;

    #[tokio::test]
    async fn where_the_index_is_not_told_changes_cannot_be_waited_for() {
        // Cause: without X-Etcd-Index the index 1 was waited for, which a registry answers at once, over and over.
        let registry = OfUrl::new(&UrlRegistry {
            url: "http://registry.invalid:1/t".to_owned(),
            endpoint: "registry.invalid:1".parse().unwrap(),
            host: "registry.invalid:1".to_owned(),
            path: "/t".to_owned(),
            authorization: None,
            proxy: None,
            request_timeout: Duration::from_secs(1),
            tls: ClientTlsConfig::new(Alpn::Http1),
        });
        let reason = registry.unwrap().changed_after(None).await.unwrap_err();
        assert!(reason.contains("X-Etcd-Index"), "{reason}");
    }
}
