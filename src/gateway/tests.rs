//! Gateways between real sockets of this process; `tests/routes.rs` has those that read what clients ask for, `tests/checks.rs` health
//! checks, `tests/loops.rs` gateways that lead to one another, `tests/unix.rs` unix sockets.

mod checks;
mod loops;
mod routes;
mod unix;

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use super::error::GatewayError;
use super::listener::{Accept, Listener};
use super::proxy_protocol::{Ends, header, read_header};
use super::start::Gateway;
use super::stream::Accepted;
use crate::config::{Balance, ConnectionLimits, GatewayAddress, GatewayConfig, ListenAddress, OnEject, ProxyProtocol};
use crate::discovery::{Discovery, ListedEndpoint, StaticList};
use crate::net::Endpoint;
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

/// Only a test that hangs meets it.
const PATIENCE: Duration = Duration::from_secs(30);

fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.expect("the test makes progress")
}

struct Setup {
    gateway: Gateway,
    list: StaticList,
    metrics: Metrics,
}

impl Setup {
    async fn new(endpoints: &[SocketAddr]) -> Self {
        Self::with(endpoints, |_| {}).await
    }

    async fn with(endpoints: &[SocketAddr], adjust: impl FnOnce(&mut GatewayConfig)) -> Self {
        let mut config = GatewayConfig::new(anywhere().into(), endpoints.iter().map(|&to| to.into()).collect());
        adjust(&mut config);
        let list = StaticList::new(config.endpoints.clone());
        let metrics = Metrics::new();
        let gateway = Gateway::start(&config, &list, &metrics, &Tasks::new()).await.unwrap();
        Self { gateway, list, metrics }
    }

    async fn connect(&self) -> TcpStream {
        in_time(TcpStream::connect(self.address())).await.unwrap()
    }

    fn address(&self) -> SocketAddr {
        self.gateway.address().tcp().expect("a TCP address")
    }

    /// Waits until a client is counted that was turned away: it is closed before that.
    async fn until_refused(&self, reason: &str) {
        let line = format!("watershed_gateway_refused_total{{reason=\"{reason}\"}}");
        in_time(async {
            while self.metric(&line) != 1.0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// The value of the first metric line that starts like this.
    fn metric(&self, start: &str) -> f64 {
        let text = self.metrics.render();
        let line = text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

/// An endpoint that answers each connection with one byte, its name, and then echoes.
struct Echo {
    address: SocketAddr,
    tasks: Tasks,
}

impl Echo {
    async fn new(name: u8) -> Self {
        Self::at(anywhere(), name).await
    }

    async fn at(address: SocketAddr, name: u8) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = Tasks::new();
        let (stop, connections) = (tasks.stop_signal(), tasks.clone());
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap(),
                };
                let stop = stop.clone();
                connections.spawn(async move {
                    let echo = async {
                        stream.write_all(&[name]).await?;
                        let (mut read, mut write) = stream.split();
                        tokio::io::copy(&mut read, &mut write).await?;
                        write.shutdown().await
                    };
                    tokio::select! {
                        () = stop.cancelled() => {}
                        _ = echo => {}
                    }
                });
            }
        });
        Self { address, tasks }
    }

    /// Stops listening and closes every connection.
    async fn die(self) -> SocketAddr {
        assert!(self.tasks.finish(PATIENCE).await);
        self.address
    }
}

/// Which endpoint answers a new connection; none when the gateway closes it.
async fn who(setup: &Setup) -> Option<u8> {
    let mut client = setup.connect().await;
    let mut name = [0];
    match in_time(client.read(&mut name)).await.unwrap() {
        0 => None,
        _ => Some(name[0]),
    }
}

/// An address where nobody listens now.
fn nobody() -> SocketAddr {
    StdListener::bind(anywhere()).unwrap().local_addr().unwrap()
}

/// Both ends of one connection through a gateway.
async fn pair() -> (Setup, TcpStream, TcpStream) {
    let listener = TcpListener::bind(anywhere()).await.unwrap();
    let setup = Setup::new(&[listener.local_addr().unwrap()]).await;
    let (client, accepted) = tokio::join!(setup.connect(), in_time(listener.accept()));
    (setup, client, accepted.unwrap().0)
}

/// Writes `data` in pieces of the given sizes, over and over, then closes that direction; returns what came back.
async fn exchange(stream: impl AsyncRead + AsyncWrite, data: &[u8], pieces: &[usize]) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(stream);
    let send = async {
        let mut rest = data;
        for &size in pieces.iter().cycle() {
            let (piece, tail) = rest.split_at(size.min(rest.len()));
            write.write_all(piece).await.unwrap();
            rest = tail;
            if rest.is_empty() {
                break;
            }
        }
        write.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let (_, outcome) = tokio::join!(send, read.read_to_end(&mut received));
    outcome.unwrap();
    received
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..bytes).map(|_| random.u8(..)).collect()
}

#[test]
fn bytes_pass_unchanged_in_both_directions_at_once() {
    use proptest::prelude::*;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let pieces = || prop::collection::vec(prop_oneof![1..200_usize, 1..40_000_usize, 100_000..600_000_usize], 1..6);
    let bytes = || prop_oneof![0..3_usize, 1..20_000_usize, 500_000..3_000_000_usize];
    proptest!(ProptestConfig::with_cases(24), |(
        seed: u64, up_bytes in bytes(), down_bytes in bytes(), up_pieces in pieces(), down_pieces in pieces()
    )| {
        let (up, down) = (noise(seed, up_bytes), noise(!seed, down_bytes));
        let (at_client, at_endpoint) = runtime.block_on(async {
            let (_setup, client, endpoint) = pair().await;
            in_time(async {
                tokio::join!(exchange(client, &up, &up_pieces), exchange(endpoint, &down, &down_pieces))
            })
            .await
        });
        prop_assert!(at_client == down, "downstream bytes differ");
        prop_assert!(at_endpoint == up, "upstream bytes differ");
    });
}

#[tokio::test]
async fn bulk_is_spliced_and_small_frames_are_copied() {
    let (setup, mut client, mut endpoint) = pair().await;
    let mut frame = [7; 128];
    for _ in 0..50 {
        client.write_all(&frame).await.unwrap();
        in_time(endpoint.read_exact(&mut frame)).await.unwrap();
    }
    assert_eq!(setup.metric("watershed_gateway_spliced_bytes_total"), 0.0);
    let data = noise(1, 32 << 20);
    let (received, _) =
        in_time(async { tokio::join!(exchange(client, &[1], &[1]), exchange(endpoint, &data, &[1 << 20])) }).await;
    assert!(received == data);
    assert!(setup.metric("watershed_gateway_spliced_bytes_total") > data.len() as f64 / 2.0);
    let moved = setup.metric("watershed_gateway_bytes_total{direction=\"downstream\"");
    assert_eq!(moved, data.len() as f64);
}

#[tokio::test]
async fn a_half_close_leaves_the_answer_its_way() {
    // Etcd's gateway closes both directions with the first, and the answer is lost.
    let (_setup, mut client, mut endpoint) = pair().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = Vec::new();
    in_time(endpoint.read_to_end(&mut question)).await.unwrap();
    assert_eq!(question, b"question");
    endpoint.write_all(&[5; 333]).await.unwrap();
    drop(endpoint);
    let mut answer = Vec::new();
    in_time(client.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, [5; 333]);
}

#[tokio::test]
async fn a_half_close_loses_nothing_that_is_on_its_way() {
    // Etcd's gateway closes both directions with the first, and what is on its way is lost.
    for client_ends_first in [true, false] {
        let (_setup, client, endpoint) = pair().await;
        let (mut first, mut second) = if client_ends_first { (client, endpoint) } else { (endpoint, client) };
        let data = noise(7, 1 << 20);
        let says_all = async {
            first.write_all(&data).await.unwrap();
            first.shutdown().await.unwrap();
            let mut answer = Vec::new();
            first.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let answers_late = async {
            let mut question = Vec::new();
            second.read_to_end(&mut question).await.unwrap();
            second.write_all(&question).await.unwrap();
            second.shutdown().await.unwrap();
            question
        };
        let (answer, question) = in_time(async { tokio::join!(says_all, answers_late) }).await;
        assert!(question == data && answer == data, "client_ends_first: {client_ends_first}");
    }
}

#[tokio::test]
async fn ipv6_on_both_sides() {
    let anywhere = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    let echo = Echo::at(anywhere, b'6').await;
    let setup = Setup::with(&[echo.address], |config| config.listen_addr = anywhere.into()).await;
    assert!(setup.address().is_ipv6());
    assert_eq!(who(&setup).await, Some(b'6'));
    let config = GatewayConfig::new(anywhere.into(), vec![setup.address().into()]);
    let list = StaticList::new(config.endpoints.clone());
    let second = Gateway::start(&config, &list, &Metrics::new(), &Tasks::new()).await.unwrap();
    let mut client = TcpStream::connect(second.address().tcp().unwrap()).await.unwrap();
    let mut name = [0];
    in_time(client.read_exact(&mut name)).await.unwrap();
    assert_eq!(name, *b"6");
}

#[tokio::test]
async fn no_host_is_every_address_of_both_families() {
    // Cause: only those of IPv4. Etcd's gateway takes both.
    let echo = Echo::new(b'e').await;
    let setup = Setup::with(&[echo.address], |config| {
        config.listen_addr = GatewayAddress::Tcp(":0".parse().unwrap());
        config.metrics_addr = Some(":0".parse().unwrap());
    })
    .await;
    let hosts: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let bound = [setup.address(), setup.gateway.metrics_address().unwrap()];
    for (address, host) in bound.iter().flat_map(|address| hosts.map(|host| (address, host))) {
        // A host without IPv6 has no such address.
        if StdListener::bind((host, 0)).is_ok() {
            in_time(TcpStream::connect((host, address.port()))).await.unwrap();
        }
    }
    // It knows itself by each of them.
    for host in hosts {
        let itself = Endpoint::from(SocketAddr::new(host, setup.address().port()));
        let refused = setup.gateway.endpoint_lists().refuse_itself("endpoints", &[itself]).await;
        let is_local = StdListener::bind((host, 0)).is_ok();
        assert_eq!(matches!(refused, Err(GatewayError::SelfLoop { .. })), is_local, "{host}");
    }
}

#[tokio::test]
async fn a_reset_arrives_as_a_reset() {
    for client_resets in [true, false] {
        let (_setup, mut client, mut endpoint) = pair().await;
        client.write_all(b"x").await.unwrap();
        let mut byte = [0];
        in_time(endpoint.read_exact(&mut byte)).await.unwrap();
        let (resets, mut other) = if client_resets { (client, endpoint) } else { (endpoint, client) };
        SockRef::from(&resets).set_linger(Some(Duration::ZERO)).unwrap();
        drop(resets);
        let error = in_time(other.read(&mut byte)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "client_resets: {client_resets}");
    }
}

#[tokio::test]
async fn turns_go_round_and_skip_an_endpoint_that_is_dead_from_the_start() {
    let (a, b) = (Echo::new(b'a').await, Echo::new(b'b').await);
    let dead = nobody();
    let setup = Setup::new(&[dead, a.address, b.address]).await;
    let mut counts = [0; 2];
    for _ in 0..10 {
        counts[usize::from(who(&setup).await.unwrap() - b'a')] += 1;
    }
    assert!(counts.iter().all(|&count| count >= 4), "{counts:?}");
    assert_eq!(setup.metric(&format!("watershed_gateway_endpoint_up{{endpoint=\"{dead}\"}}")), 0.0);
    assert_eq!(setup.metric(&format!("watershed_gateway_endpoint_up{{endpoint=\"{}\"}}", a.address)), 1.0);
}

#[tokio::test]
async fn an_endpoint_that_dies_is_left_out_and_used_again_when_it_is_back() {
    let (a, b) = (Echo::new(b'a').await, Echo::new(b'b').await);
    let setup = Setup::new(&[a.address, b.address]).await;
    let mut open = setup.connect().await;
    let mut byte = [0];
    in_time(open.read_exact(&mut byte)).await.unwrap();
    assert_eq!(byte, [b'a']);

    let address = a.die().await;
    assert!(matches!(in_time(open.read(&mut byte)).await, Ok(0) | Err(_)), "its connections end");
    for _ in 0..4 {
        assert_eq!(who(&setup).await, Some(b'b'));
    }

    let _a = Echo::at(address, b'A').await;
    // A background look finds it, the other endpoint being fine all the time.
    in_time(async { while who(&setup).await != Some(b'A') {} }).await;
}

#[tokio::test]
async fn with_no_endpoint_left_clients_are_closed_and_the_first_that_works_is_used_at_once() {
    let a = Echo::new(b'a').await;
    let dead = nobody();
    // Background looks are far apart: the client's own attempt has to find it.
    let setup = Setup::with(&[a.address, dead], |config| config.retry_delay = Duration::from_secs(3600)).await;
    let address = a.die().await;
    for _ in 0..3 {
        assert_eq!(who(&setup).await, None);
    }
    assert_eq!(setup.metric("watershed_gateway_unserved_total"), 3.0);
    let _a = Echo::at(address, b'A').await;
    assert_eq!(who(&setup).await, Some(b'A'));
}

#[tokio::test]
async fn a_black_hole_costs_one_connect_timeout_once() {
    let hole = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    hole.bind(&anywhere().into()).unwrap();
    hole.listen(0).unwrap();
    let address = hole.local_addr().unwrap().as_socket().unwrap();
    // A full queue drops what comes next without a word.
    let mut queued = Vec::new();
    while let Ok(Ok(stream)) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        queued.push(stream);
    }
    let echo = Echo::new(b'e').await;
    let setup = Setup::with(&[address, echo.address], |config| {
        config.connect_timeout = Duration::from_millis(200);
        config.retry_delay = Duration::from_secs(3600);
    })
    .await;
    for _ in 0..6 {
        assert_eq!(who(&setup).await, Some(b'e'));
    }
    let failures = setup.metric(&format!("watershed_gateway_connect_failures_total{{endpoint=\"{address}\""));
    assert!((1.0..=3.0).contains(&failures), "one from a client, the rest from background looks: {failures}");
}

#[tokio::test]
async fn a_new_list_moves_new_connections_only() {
    let (a, b) = (Echo::new(b'a').await, Echo::new(b'b').await);
    let setup = Setup::new(&[a.address]).await;
    let mut old = setup.connect().await;
    let mut byte = [0];
    in_time(old.read_exact(&mut byte)).await.unwrap();
    setup.list.replace([ListedEndpoint::new(b.address)].into());
    in_time(async { while who(&setup).await != Some(b'b') {} }).await;
    assert_eq!(who(&setup).await, Some(b'b'));
    old.write_all(b"x").await.unwrap();
    in_time(old.read_exact(&mut byte)).await.unwrap();
    assert_eq!(byte, *b"x");
}

/// Reads until the connection is over and says whether that was a reset.
async fn ends_by_reset(client: &mut TcpStream) -> bool {
    loop {
        match in_time(client.read(&mut [0; 64])).await {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

#[tokio::test]
async fn connections_of_an_endpoint_that_left_the_list_end_after_its_drain_timeout() {
    // Etcd's gateway keeps them for ever.
    let (a, b) = (Echo::new(b'a').await, Echo::new(b'b').await);
    let setup = Setup::with(&[a.address, b.address], |config| config.endpoint_drain_timeout = Duration::ZERO).await;
    let mut open = [setup.connect().await, setup.connect().await];
    let mut names = [0; 2];
    for (client, name) in open.iter_mut().zip(&mut names) {
        in_time(client.read_exact(std::slice::from_mut(name))).await.unwrap();
    }
    setup.list.replace([ListedEndpoint::new(b.address)].into());
    for (mut client, name) in open.into_iter().zip(names) {
        if name == b'a' {
            assert!(ends_by_reset(&mut client).await, "the answer may be torn");
        } else {
            client.write_all(b"x").await.unwrap();
            in_time(client.read_exact(&mut [0])).await.unwrap();
        }
    }
    assert!(names.contains(&b'a') && names.contains(&b'b'));
    let gone = format!("endpoint=\"{}\"", a.address);
    assert!(!setup.metrics.render().contains(&gone), "its metrics are gone too");
}

#[tokio::test]
async fn an_endpoint_that_goes_down_may_lose_its_connections() {
    for on_eject in [OnEject::Keep, OnEject::Close] {
        let listener = TcpListener::bind(anywhere()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let echo = Echo::new(b'e').await;
        let setup = Setup::with(&[address, echo.address], |config| {
            config.on_eject = on_eject;
            config.retry_delay = Duration::from_secs(3600);
        })
        .await;
        let (mut client, accepted) = tokio::join!(setup.connect(), in_time(listener.accept()));
        let mut endpoint = accepted.unwrap().0;
        // Both ways, so that the gateway moves bytes by now.
        client.write_all(b"x").await.unwrap();
        in_time(endpoint.read_exact(&mut [0])).await.unwrap();
        drop(listener);
        // The next client but one finds it closed.
        assert_eq!([who(&setup).await, who(&setup).await], [Some(b'e'); 2]);
        let ejections = format!("watershed_gateway_ejections_total{{cause=\"refused\",endpoint=\"{address}\"");
        assert_eq!(setup.metric(&ejections), 1.0);
        if on_eject == OnEject::Close {
            assert!(ends_by_reset(&mut client).await && ends_by_reset(&mut endpoint).await);
        } else {
            endpoint.write_all(b"y").await.unwrap();
            in_time(client.read_exact(&mut [0])).await.unwrap();
        }
    }
}

#[tokio::test]
async fn the_endpoint_with_the_fewest_connections_gets_the_next() {
    let (a, b) = (Echo::new(b'a').await, Echo::new(b'b').await);
    let setup = Setup::with(&[a.address, b.address], |config| config.balance = Balance::LeastConn).await;
    let mut of_a = Vec::new();
    let mut of_b = Vec::new();
    for _ in 0..10 {
        let mut client = setup.connect().await;
        let mut name = [0];
        in_time(client.read_exact(&mut name)).await.unwrap();
        if name == *b"a" { of_a.push(client) } else { of_b.push(client) }
    }
    assert_eq!((of_a.len(), of_b.len()), (5, 5));
    let open =
        |echo: &Echo| setup.metric(&format!("watershed_gateway_endpoint_connections{{endpoint=\"{}\"", echo.address));
    assert_eq!((open(&a), open(&b)), (5.0, 5.0));
    of_a.clear();
    in_time(async {
        while open(&a) > 0.0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..5 {
        let mut client = setup.connect().await;
        let mut name = [0];
        in_time(client.read_exact(&mut name)).await.unwrap();
        assert_eq!(name, *b"a");
        of_a.push(client);
    }
}

#[tokio::test]
async fn one_source_does_not_take_the_connections_of_all() {
    let echo = Echo::new(b'e').await;
    let setup = Setup::with(&[echo.address], |config| config.connections_per_source_max = Some(2)).await;
    let from = async |source: &str| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
        let mut client = socket.connect(setup.address()).await.unwrap();
        let served = in_time(client.read_exact(&mut [0])).await.is_ok();
        served.then_some(client)
    };
    let (first, second) = (from("127.0.0.1").await, from("127.0.0.1").await);
    assert!(first.is_some() && second.is_some());
    assert!(from("127.0.0.1").await.is_none());
    setup.until_refused("source").await;
    assert!(from("127.0.0.2").await.is_some(), "another source");
    drop(first);
    in_time(async { while from("127.0.0.1").await.is_none() {} }).await;
}

#[tokio::test]
async fn connections_end_at_their_limits() {
    let long = Duration::from_secs(3600);
    let short = Duration::from_millis(40);
    for (limits, label) in [
        (ConnectionLimits { idle: Some(short), age: Some(long) }, "idle"),
        (ConnectionLimits { idle: Some(long), age: Some(short) }, "age"),
        (ConnectionLimits { idle: None, age: Some(short) }, "age"),
    ] {
        let echo = Echo::new(b'e').await;
        let setup = Setup::with(&[echo.address], |config| config.limits = limits).await;
        let mut client = setup.connect().await;
        assert!(ends_by_reset(&mut client).await, "{limits:?}");
        // The metric is counted just behind it.
        let counted = async {
            while setup.metric(&format!("watershed_gateway_limited_total{{limit=\"{label}\"}}")) == 0.0 {
                tokio::task::yield_now().await;
            }
        };
        in_time(counted).await;
    }
}

#[tokio::test]
async fn the_client_of_a_trusted_load_balancer_is_told_to_the_endpoint() {
    let endpoint = TcpListener::bind(anywhere()).await.unwrap();
    let address = endpoint.local_addr().unwrap();
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let setup = Setup::with(&[address], |config| {
            config.proxy_protocol_from = vec!["127.0.0.1".parse().unwrap()];
            config.send_proxy_protocol = Some(version);
        })
        .await;
        let told = Ends { source: "192.0.2.7:4711".parse().unwrap(), destination: "192.0.2.1:2379".parse().unwrap() };
        for incoming in [ProxyProtocol::V1, ProxyProtocol::V2] {
            let (mut client, accepted) = tokio::join!(
                async {
                    let mut client = setup.connect().await;
                    client.write_all(&header(incoming, Some(told))).await.unwrap();
                    client.write_all(b"bytes").await.unwrap();
                    client
                },
                in_time(endpoint.accept())
            );
            let mut endpoint = accepted.unwrap().0;
            assert_eq!(in_time(read_header(&mut endpoint)).await.unwrap(), Some(told));
            let mut bytes = [0; 5];
            in_time(endpoint.read_exact(&mut bytes)).await.unwrap();
            assert_eq!(bytes, *b"bytes");
            endpoint.write_all(b"!").await.unwrap();
            in_time(client.read_exact(&mut [0])).await.unwrap();
        }
        // It has to send one.
        let mut client = setup.connect().await;
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(matches!(in_time(client.read(&mut [0])).await, Ok(0) | Err(_)));
        setup.until_refused("proxy-header").await;
    }
}

#[tokio::test]
async fn what_looks_like_a_header_of_another_client_is_bytes() {
    let endpoint = TcpListener::bind(anywhere()).await.unwrap();
    let setup = Setup::with(&[endpoint.local_addr().unwrap()], |config| {
        config.proxy_protocol_from = vec!["192.0.2.0/24".parse().unwrap()];
        config.send_proxy_protocol = Some(ProxyProtocol::V2);
    })
    .await;
    let forged = b"PROXY TCP4 192.0.2.7 192.0.2.1 1 1\r\n";
    let (client, accepted) = tokio::join!(
        async {
            let mut client = setup.connect().await;
            client.write_all(forged).await.unwrap();
            client
        },
        in_time(endpoint.accept())
    );
    let mut endpoint = accepted.unwrap().0;
    let told = in_time(read_header(&mut endpoint)).await.unwrap().unwrap();
    assert_eq!((told.source, told.destination), (client.local_addr().unwrap(), setup.address()));
    let mut bytes = [0; 36];
    in_time(endpoint.read_exact(&mut bytes[..forged.len()])).await.unwrap();
    assert_eq!(bytes[..forged.len()], forged[..]);
}

/// Fails as told, then accepts.
struct Faulty {
    errors: VecDeque<rustix::io::Errno>,
    listener: Listener,
}

impl Accept for Faulty {
    async fn accept(&mut self) -> io::Result<Accepted> {
        match self.errors.pop_front() {
            Some(error) => Err(error.into()),
            None => self.listener.accept().await,
        }
    }
}

#[tokio::test]
async fn no_accept_error_ends_the_gateway() {
    // Etcd's gateway exits with code 0 when it runs out of descriptors.
    use rustix::io::Errno;
    let echo = Echo::new(b'e').await;
    let config = GatewayConfig::new(anywhere().into(), vec![echo.address.into()]);
    let list = StaticList::new(config.endpoints.clone());
    let listener = Listener::bind(&ListenAddress::Tcp(anywhere()), None).unwrap();
    let address = listener.address().unwrap();
    let errors = [Errno::MFILE, Errno::CONNABORTED, Errno::NFILE, Errno::NOBUFS, Errno::INVAL].into();
    let metrics = Metrics::new();
    let faulty = Faulty { errors, listener };
    let gateway =
        Gateway::start_on(faulty, address, Vec::new(), &config, &list, &metrics, &Tasks::new()).await.unwrap();
    let setup = Setup { gateway, list, metrics };
    assert_eq!(who(&setup).await, Some(b'e'));
    assert_eq!(setup.metric("watershed_gateway_accept_errors_total"), 5.0);
}

/// Out of descriptors for ever; counts the attempts.
struct Exhausted(Arc<AtomicUsize>);

impl Accept for Exhausted {
    async fn accept(&mut self) -> io::Result<Accepted> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Err(rustix::io::Errno::MFILE.into())
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_minute_without_descriptors_is_no_busy_loop() {
    let config = GatewayConfig::new(anywhere().into(), vec![nobody().into()]);
    let list = StaticList::new(config.endpoints.clone());
    let (attempts, metrics, tasks) = (Arc::new(AtomicUsize::new(0)), Metrics::new(), Tasks::new());
    let exhausted = Exhausted(attempts.clone());
    let _gateway =
        Gateway::start_on(exhausted, ListenAddress::Tcp(nobody()), Vec::new(), &config, &list, &metrics, &tasks)
            .await
            .unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    // One each 50 ms.
    let attempts = attempts.load(Ordering::Relaxed);
    assert!((500..=610).contains(&attempts), "{attempts}");
}

#[tokio::test]
async fn a_stop_waits_for_open_connections_and_takes_no_new_ones() {
    let (setup, mut client, mut endpoint) = pair().await;
    let address = setup.address();
    let stop = setup.gateway.stop_signal();
    let mut finished = Box::pin(setup.gateway.finish());
    stop.cancel();
    in_time(async { while TcpStream::connect(address).await.is_ok() {} }).await;
    let mut byte = [0];
    client.write_all(b"x").await.unwrap();
    in_time(endpoint.read_exact(&mut byte)).await.unwrap();
    endpoint.write_all(b"y").await.unwrap();
    in_time(client.read_exact(&mut byte)).await.unwrap();
    assert_eq!(byte, *b"y");
    assert!(futures::poll!(&mut finished).is_pending(), "the connection is still open");
    drop((client, endpoint));
    in_time(finished).await;
}

#[tokio::test]
async fn the_drain_timeout_cuts_what_is_still_open() {
    let echo = Echo::new(b'e').await;
    let setup = Setup::with(&[echo.address], |config| config.drain_timeout = Duration::from_millis(50)).await;
    let mut client = setup.connect().await;
    let mut byte = [0];
    in_time(client.read_exact(&mut byte)).await.unwrap();
    in_time(setup.gateway.finish()).await;
    assert!(matches!(in_time(client.read(&mut byte)).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn a_slow_reader_stops_the_sender_and_costs_a_fixed_amount() {
    let (_setup, mut client, mut endpoint) = pair().await;
    let piece = vec![3; 256 * 1024];
    let mut sent = 0_usize;
    // Sends until nothing moves any more: socket buffers, and one pipe or chunk in the gateway.
    while let Ok(written) = timeout(Duration::from_millis(500), endpoint.write(&piece)).await {
        sent += written.unwrap();
        assert!(sent < 64 << 20, "the gateway takes without limit");
    }
    drop(endpoint);
    let mut received = Vec::new();
    in_time(client.read_to_end(&mut received)).await.unwrap();
    assert_eq!(received.len(), sent);
}

#[tokio::test]
async fn the_gateway_refuses_itself_as_an_endpoint() {
    let address = nobody();
    for endpoint in [address.to_string(), format!("localhost:{}", address.port())] {
        let config = GatewayConfig::new(address.into(), vec![endpoint.parse().unwrap()]);
        let list = StaticList::new(config.endpoints.clone());
        let outcome = Gateway::start(&config, &list, &Metrics::new(), &Tasks::new()).await;
        assert!(matches!(outcome, Err(GatewayError::SelfLoop { .. })), "{endpoint}");
    }
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let taken = TcpListener::bind(anywhere()).await.unwrap().local_addr().unwrap();
    let _listener = TcpListener::bind(taken).await.unwrap();
    let config = GatewayConfig::new(taken.into(), vec![nobody().into()]);
    let list = StaticList::new(config.endpoints.clone());
    let error = Gateway::start(&config, &list, &Metrics::new(), &Tasks::new()).await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("--listen-addr: listen tcp {taken}: bind: ")), "{error}");
}

/// The answer of the metrics address.
async fn ask(setup: &Setup, path: &str) -> String {
    ask_at(setup.gateway.metrics_address().unwrap(), path).await
}

async fn ask_at(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    in_time(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn health_tells_the_truth_without_a_client() {
    // Cause: an endpoint counted as live until a client was refused, so a gateway without clients was healthy with all
    // its endpoints dead.
    let (a, b) = (Echo::new(b'a').await, Echo::new(b'b').await);
    let setup = Setup::with(&[a.address, b.address], |config| config.metrics_addr = Some(anywhere().into())).await;
    assert!(ask(&setup, "/health").await.starts_with("HTTP/1.0 200"), "both live");
    let a = a.die().await;
    assert!(ask(&setup, "/health").await.starts_with("HTTP/1.0 200"), "one lives");
    let b = b.die().await;
    let sick = async {
        loop {
            // A connection of a moment ago speaks for an endpoint for a second.
            let answer = ask(&setup, "/health").await;
            if answer.starts_with("HTTP/1.0 503") {
                return answer;
            }
        }
    };
    let answer = in_time(sick).await;
    let body: serde_json::Value = serde_json::from_str(answer.rsplit("\r\n\r\n").next().unwrap()).unwrap();
    let reason = body["reason"].as_str().unwrap();
    assert!(reason.starts_with("NO LIVE ENDPOINT ("), "{answer}");
    assert!([a, b].iter().all(|address| reason.contains(&format!("{address}: Connection refused"))), "{answer}");
    let _b = Echo::at(b, b'b').await;
    in_time(async { while !ask(&setup, "/health").await.starts_with("HTTP/1.0 200") {} }).await;
}

#[tokio::test]
async fn the_pages_tell_of_a_drain_until_it_ends() {
    // Cause: the metrics address was closed with the other one, so that nobody saw `/readyz` fail during a drain.
    let listener = TcpListener::bind(anywhere()).await.unwrap();
    let endpoint = listener.local_addr().unwrap();
    let setup = Setup::with(&[endpoint], |config| config.metrics_addr = Some(anywhere().into())).await;
    let (client, accepted) = tokio::join!(setup.connect(), in_time(listener.accept()));
    let pages = setup.gateway.metrics_address().unwrap();
    let mut finished = Box::pin(setup.gateway.finish());
    assert!(futures::poll!(&mut finished).is_pending(), "the connection is still open");
    let ready = ask_at(pages, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.0 503") && ready.contains("[-]accepting failed: stopping"), "{ready}");
    assert!(ask_at(pages, "/livez").await.starts_with("HTTP/1.0 200"));
    let status = ask_at(pages, "/gateway/status").await;
    assert!(status.contains("\"accepting\":false"), "{status}");
    drop((client, accepted));
    in_time(finished).await;
    in_time(async { while TcpStream::connect(pages).await.is_ok() {} }).await;
}

#[tokio::test]
async fn the_table_shows_every_endpoint_and_why_it_is_not_used() {
    let (a, b, dead) = (Echo::new(b'a').await, Echo::new(b'b').await, nobody());
    let setup =
        Setup::with(&[a.address, dead, b.address], |config| config.metrics_addr = Some(anywhere().into())).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut client = setup.connect().await;
        in_time(client.read_exact(&mut [0])).await.unwrap();
        open.push(client);
    }
    let table = async || -> serde_json::Value {
        let answer = ask(&setup, "/gateway/status").await;
        serde_json::from_str(answer.rsplit("\r\n\r\n").next().unwrap()).unwrap()
    };
    let shown = table().await;
    assert_eq!((&shown["connections"], &shown["accepting"]), (&4.into(), &true.into()), "{shown}");
    let states: Vec<_> = (0..3).map(|at| shown["endpoints"][at]["state"].as_str().unwrap().to_owned()).collect();
    assert_eq!(states, ["up", "down", "up"], "{shown}");
    assert_eq!(shown["endpoints"][1]["ejections"], serde_json::json!({"refused": 1}), "{shown}");
    assert!(shown["endpoints"][1]["reason"].as_str().unwrap().contains("refused"), "{shown}");
    let connections: Vec<_> = (0..3).map(|at| shown["endpoints"][at]["connections"].as_u64().unwrap()).collect();
    assert_eq!((connections.iter().sum::<u64>(), connections[1]), (4, 0), "{shown}");

    setup.list.replace([ListedEndpoint::new(b.address)].into());
    let left = async {
        loop {
            let shown = table().await;
            if shown["endpoints"][0]["endpoint"] == b.address.to_string() {
                return shown;
            }
        }
    };
    let shown = in_time(left).await;
    let leaving = shown["endpoints"].as_array().unwrap().iter().filter(|row| row["state"] == "leaving");
    assert!(leaving.count() == 2 && shown["endpoints"].as_array().unwrap().len() == 3, "{shown}");
}

#[tokio::test]
async fn health_and_metrics_are_served_over_http() {
    let dead = nobody();
    let setup = Setup::with(&[dead], |config| config.metrics_addr = Some(anywhere().into())).await;
    assert_eq!(setup.list.endpoints().borrow().len(), 1);
    let ask = async |path: &str| ask(&setup, path).await;
    assert!(ask("/health").await.starts_with("HTTP/1.0 503"));
    assert_eq!(who(&setup).await, None);
    assert!(ask("/health").await.starts_with("HTTP/1.0 503"));
    assert!(ask("/metrics").await.contains("watershed_gateway_unserved_total 1"));
    assert!(ask("/livez").await.starts_with("HTTP/1.0 200"));
    let ready = ask("/readyz").await;
    assert!(ready.starts_with("HTTP/1.0 503") && ready.contains("[-]endpoints failed: NO LIVE ENDPOINT ("), "{ready}");
    assert!(ask("/readyz?exclude=endpoints").await.starts_with("HTTP/1.0 200"));
    let echo = Echo::at(dead, b'e').await;
    assert_eq!(who(&setup).await, Some(b'e'));
    let ready = ask("/readyz?verbose").await;
    assert!(ready.contains("[+]accepting ok\n[+]endpoints ok\nok"), "{ready}");
    drop(echo);
    assert!(ask("/else").await.starts_with("HTTP/1.0 404"));
}
