use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::Incoming;
use prometheus::{IntCounter, IntGauge};
use tokio::time::timeout;
use tonic::body::Body;
use tracing::info;

use super::node::{Failure, Node, answer, answer_text, deletion_text, with_index};
use super::path::Place;
use super::store::{Change, Changes, Store};
use crate::client::{Client, ClientConfig};
use crate::config::RegistryConfig;
use crate::listener::{self, ListenerConfig, Protection, Serving, answering, bind};
use crate::net::{ClientTls, ServerTls};
use crate::pages::{JSON, Page, TEXT, health_json, not_found, page, text};
use crate::shutdown::Tasks;
use crate::telemetry::{Metrics, TEXT_CONTENT_TYPE};

/// Members of one cluster.
const SIZE_MAX: usize = 1000;
/// Size of a token that is made without one, as etcd's public registry had it.
const SIZE_DEFAULT: usize = 3;
const BODY_BYTES_MAX: usize = 16 * 1024;
const VALUE_BYTES_MAX: usize = 8 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// A wait ends without an answer after this time: clients ask again.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// Connections at once; most of them wait for members.
const CONNECTIONS_MAX: usize = 4096;
/// Requests that wait at once, over all connections, which may have many of them each with HTTP/2: each is a watch stream at the
/// cluster. More are refused, and clients ask again later.
const WAITS_MAX: i64 = 4096;
const GRACE: Duration = Duration::from_secs(1);

/// What all requests share.
struct Registry {
    store: Store,
    /// Before a token, with its slash.
    advertise_url: String,
    metrics: Metrics,
    created: IntCounter,
    registered: IntCounter,
    waiting: IntGauge,
}

/// A registry that serves.
#[derive(Debug)]
pub struct RunningRegistry {
    serving: Serving,
}

impl RunningRegistry {
    /// Where it can be asked.
    pub fn address(&self) -> Option<SocketAddr> {
        self.serving.addresses().first().copied()
    }

    /// Takes no new connections and lets open requests finish.
    pub async fn finish(self) {
        self.serving.finish().await;
    }
}

/// Starts a registry; it stops with `tasks`, or by [`RunningRegistry::finish`].
///
/// # Errors
/// Files that cannot be read and an address that cannot be bound; names the flag.
pub fn start(config: &RegistryConfig, tasks: &Tasks) -> anyhow::Result<RunningRegistry> {
    let upstream_tls = config.upstream_tls.as_ref().map(ClientTls::new).transpose();
    let client = Client::connect(ClientConfig {
        tls: upstream_tls.context("--cert, --key, --cacert")?,
        user: config.user.clone(),
        ..ClientConfig::new(config.endpoints.clone())
    })
    .context("--endpoints")?;
    let tls = config.listen_tls.as_ref().map(ServerTls::new).transpose().context("--cert-file, --key-file")?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let socket = bind(config.listen).context("--listen-addr")?.speaking(tls.map_or(Protection::Plain, Protection::Tls));
    let address = socket.local_addr().context("--listen-addr")?;
    let advertise_url = config.advertise_url.clone().unwrap_or_else(|| format!("{scheme}://{}", reachable(address)));
    let metrics = Metrics::new();
    let registry = Arc::new(Registry {
        store: Store::new(client, config.token_ttl, config.keys_max),
        advertise_url: format!("{advertise_url}/"),
        created: metrics.counter("watershed_registry_tokens_created_total", "Discovery tokens that were made."),
        registered: metrics.counter("watershed_registry_members_registered_total", "Members that registered."),
        waiting: metrics.gauge("watershed_registry_waits", "Requests that wait for a change of members."),
        metrics,
    });
    let listener = ListenerConfig {
        serving_threads: 1,
        max_concurrent_streams: 100,
        connections_max: CONNECTIONS_MAX,
        grace: GRACE,
        ..ListenerConfig::default()
    };
    let serving = listener::serve(vec![socket], listener, move |_| answering(registry.clone(), handle), tasks)?;
    info!(%address, advertise_url, "serving the discovery URL protocol");
    Ok(RunningRegistry { serving })
}

/// The address for URLs: nobody can dial a wildcard, the name of this host stands for it.
fn reachable(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        return format!("{}:{}", rustix::system::uname().nodename().to_string_lossy(), address.port());
    }
    address.to_string()
}

async fn handle(registry: Arc<Registry>, request: Request<Incoming>) -> Response<Body> {
    match request.uri().path() {
        "/metrics" => return whole(page(StatusCode::OK, TEXT_CONTENT_TYPE, registry.metrics.render())),
        "/health" => {
            let outcome = registry.store.check().await;
            let status = if outcome.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            return whole(page(status, JSON, health_json(&outcome)));
        }
        _ => {}
    }
    let Some(place) = Place::of(request.uri().path()) else { return whole(not_found()) };
    let method = request.method().clone();
    let fields = match Fields::of(request).await {
        Ok(fields) => fields,
        Err(failure) => return whole(failure.page()),
    };
    let outcome = match (&method, place) {
        (&Method::GET | &Method::PUT | &Method::POST, Place::New) => registry.new_token(&fields).await,
        (&Method::GET, place) if fields.is_true("wait") => registry.wait(place, &fields).await,
        (&Method::GET, place) => registry.read(place).await,
        (&Method::PUT, place @ (Place::Size(_) | Place::Member(..))) => registry.write(place, &fields).await,
        (&Method::DELETE, Place::Member(token, id)) => registry.remove(&token, &id).await,
        _ => {
            let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
            refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, PUT, DELETE"));
            return whole(refused);
        }
    };
    outcome.unwrap_or_else(|failure| whole(failure.page()))
}

impl Registry {
    /// Makes a token, whose URL is the answer.
    async fn new_token(&self, fields: &Fields) -> Result<Response<Body>, Failure> {
        let size = match fields.get("size") {
            Some(size) => size_of(size)?,
            None => SIZE_DEFAULT,
        };
        let token = format!("{:032x}", random_token()?);
        self.store.create(&token, size).await?;
        self.created.inc();
        info!(size, "made a discovery token");
        Ok(whole(page(StatusCode::OK, TEXT, format!("{}{token}", self.advertise_url))))
    }

    async fn read(&self, place: Place) -> Result<Response<Body>, Failure> {
        let (token, id) = match place {
            Place::New => return Ok(whole(not_found())),
            Place::Token(token) => (token, None),
            Place::Size(token) => (token, Some(None)),
            Place::Member(token, id) => (token, Some(Some(id))),
        };
        let read = self.store.read(&token).await?;
        let index = read.revision;
        let node = match &id {
            None => Node::token(&token, read.size.as_ref().map_or(0, |size| size.created), &read.members),
            Some(None) => {
                let missing = || Failure::not_found(format!("{token}/_config/size"), index);
                Node::size(&token, &read.size.ok_or_else(missing)?)
            }
            Some(Some(id)) => {
                let missing = || Failure::not_found(format!("{token}/{id}"), index);
                Node::member(&token, read.members.iter().find(|member| member.name == *id).ok_or_else(missing)?)
            }
        };
        Ok(whole(answer(StatusCode::OK, index, answer_text("get", node))))
    }

    /// A member registers, or the operator makes a token of a chosen name.
    async fn write(&self, place: Place, fields: &Fields) -> Result<Response<Body>, Failure> {
        let value = fields.get("value").unwrap_or_default();
        let (node, index) = match place {
            Place::Size(token) => {
                let size = self.store.create(&token, size_of(value)?).await?;
                self.created.inc();
                (Node::size(&token, &size), size.modified)
            }
            Place::Member(token, id) => {
                if fields.get("prevExist") != Some("false") {
                    return Err(Failure::invalid("prevExist must be false: a member registers once"));
                }
                if value.len() > VALUE_BYTES_MAX || !value.contains('=') {
                    return Err(Failure::invalid("value must be NAME=PEER-URL, for each peer URL of the member"));
                }
                let member = self.store.register(&token, &id, value.to_owned()).await?;
                self.registered.inc();
                info!(id, value, "a member registered");
                (Node::member(&token, &member), member.modified)
            }
            Place::New | Place::Token(_) => return Ok(whole(not_found())),
        };
        Ok(whole(answer(StatusCode::CREATED, index, answer_text("create", node))))
    }

    async fn remove(&self, token: &str, id: &str) -> Result<Response<Body>, Failure> {
        let (member, index) = self.store.remove(token, id).await?;
        Ok(whole(answer(StatusCode::OK, index, deletion_text(Node::member(token, &member), index))))
    }

    /// Answers with the next change: the head at once, the change when it comes.
    async fn wait(&self, place: Place, fields: &Fields) -> Result<Response<Body>, Failure> {
        let from = match fields.get("waitIndex") {
            None | Some("") => None,
            Some(index) => match index.parse::<i64>() {
                Ok(index) if index >= 0 => Some(index).filter(|index| *index > 0),
                _ => return Err(Failure::invalid("invalid value for \"waitIndex\"")),
            },
        };
        let (token, id) = match place {
            Place::Token(token) => (token, None),
            Place::Member(token, id) => (token, Some(id)),
            Place::New | Place::Size(_) => return Ok(whole(not_found())),
        };
        self.waiting.inc();
        let waiting = Waiting::counted(&self.waiting)?;
        let changes = self.store.changes(&token, id.as_deref(), from).await?;
        let index = changes.revision;
        let body = stream::once(async move {
            let _waiting = waiting;
            Ok::<_, Infallible>(Frame::data(Bytes::from(changed(changes, &token).await)))
        });
        let mut response = Response::new(Body::new(StreamBody::new(body)));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
        Ok(with_index(response, index))
    }
}

/// The text of the next change; nothing when there was none in time.
async fn changed(mut changes: Changes, token: &str) -> String {
    match timeout(WAIT_MAX, changes.next()).await.ok().flatten() {
        None => String::new(),
        Some(Change::Created(member)) => answer_text("create", Node::member(token, &member)),
        Some(Change::Updated(member)) => answer_text("set", Node::member(token, &member)),
        Some(Change::Deleted(member, index)) => deletion_text(Node::member(token, &member), index),
    }
}

/// One of the requests that wait, in the count of them until it ends.
struct Waiting(IntGauge);

impl Waiting {
    /// One that the count has already.
    fn counted(count: &IntGauge) -> Result<Self, Failure> {
        let waiting = Self(count.clone());
        if count.get() > WAITS_MAX {
            return Err(Failure::store(format!("{WAITS_MAX} requests wait for members already")));
        }
        Ok(waiting)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Fields of a request; those of the body count before those of the query, as with Go's `ParseForm`.
struct Fields(Vec<(String, String)>);

impl Fields {
    async fn of(request: Request<Incoming>) -> Result<Self, Failure> {
        let (parts, body) = request.into_parts();
        let body = Limited::new(body, BODY_BYTES_MAX).collect();
        let body = match timeout(BODY_TIMEOUT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return Err(Failure::invalid(format!("the request's body: {error}"))),
            Err(_) => return Err(Failure::invalid("the request's body did not come in time")),
        };
        let query = parts.uri.query().unwrap_or_default();
        let parse = |text: &[u8]| url::form_urlencoded::parse(text).into_owned().collect::<Vec<_>>();
        Ok(Self([parse(&body), parse(query.as_bytes())].concat()))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"))
    }
}

fn size_of(text: &str) -> Result<usize, Failure> {
    let size = text.trim().parse().ok().filter(|size| (1..=SIZE_MAX).contains(size));
    size.ok_or_else(|| Failure::invalid(format!("size must be a number from 1 to {SIZE_MAX}, not {text:?}")))
}

/// The system's randomness: whoever knows a token may register under it.
fn random_token() -> Result<u128, Failure> {
    let random = ring::rand::generate::<[u8; 16]>(&ring::rand::SystemRandom::new());
    random.map(|bytes| u128::from_be_bytes(bytes.expose())).map_err(|_| Failure::store("no randomness"))
}

fn whole(page: Page) -> Response<Body> {
    page.map(Body::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_wait_are_bounded() {
        // Cause: each stream of each connection could hold a watch stream at the cluster, 409,600 in all.
        let count = IntGauge::new("waits", "Requests that wait.").unwrap();
        let begin = || {
            count.inc();
            Waiting::counted(&count)
        };
        let mut waiting: Vec<Waiting> = (0..WAITS_MAX).filter_map(|_| begin().ok()).collect();
        assert_eq!((waiting.len() as i64, count.get()), (WAITS_MAX, WAITS_MAX));
        assert!(begin().is_err());
        assert_eq!(count.get(), WAITS_MAX, "who is refused does not wait");
        waiting.pop();
        assert!(begin().is_ok());
        drop(waiting);
        assert_eq!(count.get(), 0);
    }

    #[test]
    fn tokens_have_a_url_that_can_be_dialled() {
        // Cause: with --listen-addr=:2389 the URL of a new token was http://0.0.0.0:2389/…, which is another host for each member.
        let of = |address: &str| reachable(address.parse().unwrap());
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        for wildcard in ["0.0.0.0:2389", "[::]:2389"] {
            assert_eq!(of(wildcard), format!("{host}:2389"));
        }
        for address in ["127.0.0.1:2389", "[::1]:2389"] {
            assert_eq!(of(address), address);
        }
    }
}
