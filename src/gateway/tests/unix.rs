use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;

use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::config::{GatewayAddress, HealthCheckConfig, HealthCheckKind};
use crate::net::Endpoint;

fn endpoint(path: &Path) -> Endpoint {
    format!("unix://{}", path.display()).parse().unwrap()
}

/// A gateway with these endpoints, on this socket or on some port.
async fn start(socket: Option<&Path>, endpoints: Vec<Endpoint>, adjust: impl FnOnce(&mut GatewayConfig)) -> Setup {
    let address = socket.map_or(anywhere().into(), |path| GatewayAddress::Unix(path.to_owned()));
    let mut config = GatewayConfig::new(address, endpoints);
    adjust(&mut config);
    let list = StaticList::new(config.endpoints.clone());
    let metrics = Metrics::new();
    let gateway = Gateway::start(&config, &list, &metrics, &Tasks::new()).await.unwrap();
    Setup { gateway, list, metrics }
}

#[tokio::test]
async fn bytes_pass_between_unix_sockets_and_tcp() {
    let folder = TempDir::new().unwrap();
    for (number, (from_unix, to_unix)) in [(true, false), (false, true), (true, true)].into_iter().enumerate() {
        let path = |name: &str| folder.path().join(format!("{name}{number}"));
        let (tcp, unix) = (TcpListener::bind(anywhere()).await.unwrap(), UnixListener::bind(path("member")).unwrap());
        let to = if to_unix { endpoint(&path("member")) } else { tcp.local_addr().unwrap().into() };
        let own = path("gateway");
        let setup = start(from_unix.then_some(&*own), vec![to], |_| {}).await;
        let (up, down) = (noise(3, 3 << 20), noise(4, 5 << 20));
        let client = async {
            match from_unix {
                true => exchange(UnixStream::connect(&own).await.unwrap(), &up, &[100, 70_000]).await,
                false => exchange(setup.connect().await, &up, &[100, 70_000]).await,
            }
        };
        let member = async {
            match to_unix {
                true => exchange(unix.accept().await.unwrap().0, &down, &[300_000]).await,
                false => exchange(tcp.accept().await.unwrap().0, &down, &[300_000]).await,
            }
        };
        let (at_client, at_member) = in_time(async { tokio::join!(client, member) }).await;
        assert!(at_client == down && at_member == up, "{from_unix} {to_unix}");
        assert!(setup.metric("watershed_gateway_spliced_bytes_total") > 0.0);
        in_time(setup.gateway.finish()).await;
        assert!(!own.exists(), "the file goes with the gateway");
    }
}

#[tokio::test]
async fn a_reset_of_a_tcp_client_ends_the_connection_to_a_socket() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("member");
    let member = UnixListener::bind(&path).unwrap();
    let setup = start(None, vec![endpoint(&path)], |_| {}).await;
    let (mut client, accepted) = tokio::join!(setup.connect(), in_time(member.accept()));
    let mut accepted = accepted.unwrap().0;
    client.write_all(b"x").await.unwrap();
    in_time(accepted.read_exact(&mut [0])).await.unwrap();
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert_eq!(in_time(accepted.read(&mut [0])).await.unwrap(), 0);
}

#[tokio::test]
async fn sockets_without_a_process_are_left_out_and_named() {
    let folder = TempDir::new().unwrap();
    let [live, dead, none] = ["live", "dead", "none"].map(|name| folder.path().join(name));
    let member = UnixListener::bind(&live).unwrap();
    drop(StdListener::bind(&dead).unwrap());
    let own = folder.path().join("gateway");
    let endpoints = [&dead, &none, &live].map(|path| endpoint(path)).to_vec();
    let setup = start(Some(&own), endpoints, |config| config.metrics_addr = Some(anywhere().into())).await;
    for _ in 0..6 {
        let (mut client, accepted) = tokio::join!(async { in_time(UnixStream::connect(&own)).await.unwrap() }, async {
            in_time(member.accept()).await.unwrap().0
        });
        let mut accepted = accepted;
        client.write_all(b"x").await.unwrap();
        in_time(accepted.read_exact(&mut [0])).await.unwrap();
    }
    let up =
        |path: &Path| setup.metric(&format!("watershed_gateway_endpoint_up{{endpoint=\"unix:{}\"}}", path.display()));
    assert_eq!([up(&dead), up(&none), up(&live)], [0.0, 0.0, 1.0]);
    let answer = ask(&setup, "/gateway/status").await;
    let shown: serde_json::Value = serde_json::from_str(answer.rsplit("\r\n\r\n").next().unwrap()).unwrap();
    assert_eq!(shown["listen_addr"], format!("unix:{}", own.display()), "{shown}");
    let named: Vec<_> = (0..3).map(|at| shown["endpoints"][at]["endpoint"].as_str().unwrap().to_owned()).collect();
    assert_eq!(named, [&dead, &none, &live].map(|path| format!("unix:{}", path.display())), "{shown}");
    assert_eq!(shown["endpoints"][0]["ejections"], serde_json::json!({"refused": 1}), "{shown}");
    assert!(ask(&setup, "/health").await.starts_with("HTTP/1.0 200"));
}

#[tokio::test]
async fn a_full_queue_is_waited_for_no_longer_than_the_connect_timeout() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("member");
    let full = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    full.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    full.listen(0).unwrap();
    let _queued = UnixStream::connect(&path).await.unwrap();
    let echo = Echo::new(b'e').await;
    let setup = start(None, vec![endpoint(&path), echo.address.into()], |config| {
        config.connect_timeout = Duration::from_millis(100);
        config.retry_delay = Duration::from_secs(3600);
    })
    .await;
    for _ in 0..3 {
        assert_eq!(who(&setup).await, Some(b'e'));
    }
    let start = format!("watershed_gateway_ejections_total{{cause=\"timeout\",endpoint=\"unix:{}\"}}", path.display());
    assert_eq!(setup.metric(&start), 1.0);
}

#[tokio::test]
async fn a_client_of_a_unix_socket_has_no_address_in_a_proxy_header() {
    let folder = TempDir::new().unwrap();
    let member = TcpListener::bind(anywhere()).await.unwrap();
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let own = folder.path().join(format!("{version:?}"));
        let setup = start(Some(&own), vec![member.local_addr().unwrap().into()], |config| {
            config.send_proxy_protocol = Some(version);
            config.proxy_protocol_from = vec!["0.0.0.0/0".parse().unwrap()];
            config.connections_per_source_max = Some(1);
        })
        .await;
        let mut clients = Vec::new();
        for _ in 0..2 {
            let mut client = UnixStream::connect(&own).await.unwrap();
            client.write_all(b"bytes").await.unwrap();
            let mut accepted = in_time(member.accept()).await.unwrap().0;
            assert_eq!(in_time(read_header(&mut accepted)).await.unwrap(), None);
            let mut bytes = [0; 5];
            in_time(accepted.read_exact(&mut bytes)).await.unwrap();
            assert_eq!(bytes, *b"bytes");
            clients.push((client, accepted));
        }
        drop(setup);
    }
}

#[tokio::test]
async fn members_are_asked_for_their_health_on_unix_sockets() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("member");
    let listener = UnixListener::bind(&path).unwrap();
    let passes = Arc::new(AtomicUsize::new(2));
    let left = passes.clone();
    Tasks::new().spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let passed = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
            let status = if passed { "200 OK" } else { "503 Not Now" };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap_or(b'\n'));
                assert!(head.len() < 10_000);
            }
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            // A check that is over is none of its business.
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let setup = start(None, vec![endpoint(&path)], |config| {
        let kind = HealthCheckKind::Http { path: Some("/ready".to_owned()) };
        let interval = Duration::from_millis(20);
        config.health_check =
            Some(HealthCheckConfig { kind, interval, timeout: PATIENCE, rise: 1, fall: 2, tls: None });
    })
    .await;
    let up = format!("watershed_gateway_endpoint_up{{endpoint=\"unix:{}\"}}", path.display());
    in_time(async {
        while setup.metric(&up) == 1.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(passes.load(Ordering::Relaxed), 0, "it passed before it failed");
}

#[tokio::test]
async fn the_gateway_refuses_its_own_socket_as_an_endpoint() {
    let folder = TempDir::new().unwrap();
    let (own, link) = (folder.path().join("gateway"), folder.path().join("link"));
    std::os::unix::fs::symlink(&own, &link).unwrap();
    for path in [&own, &link] {
        let config = GatewayConfig::new(GatewayAddress::Unix(own.clone()), vec![endpoint(path)]);
        let list = StaticList::new(config.endpoints.clone());
        let error = Gateway::start(&config, &list, &Metrics::new(), &Tasks::new()).await.unwrap_err();
        let expected = format!("--endpoints: unix:{} is the address the gateway itself", path.display());
        assert!(error.to_string().starts_with(&expected), "{error}");
        assert!(!own.exists(), "no file is left behind");
    }
}
