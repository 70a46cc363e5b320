use super::*;
use crate::config::RouteConfig;
use crate::net::testing::client_hello;

fn route(matching: &str, echo: &Echo) -> RouteConfig {
    RouteConfig { matching: matching.parse().unwrap(), endpoints: vec![echo.address.into()] }
}

/// Which endpoint a client reaches that says this in pieces of `size` bytes, once all of it has come back.
async fn reached(setup: &Setup, says: &[u8], size: usize) -> u8 {
    let client = setup.connect().await;
    client.set_nodelay(true).unwrap();
    let back = in_time(exchange(client, says, &[size])).await;
    assert!(back[1..] == *says, "every byte arrives, those that were read first included");
    back[0]
}

#[tokio::test]
async fn clients_with_tls_are_sent_where_their_server_name_leads() {
    let (default, a, h2, below) =
        (Echo::new(b'd').await, Echo::new(b'a').await, Echo::new(b'2').await, Echo::new(b'b').await);
    let setup = Setup::with(&[default.address], |config| {
        config.routes = vec![route("a.example/h2", &h2), route("a.example", &a), route("*.b.example", &below)];
        config.metrics_addr = Some(anywhere().into());
    })
    .await;
    let hello = client_hello;
    for (says, expected) in [
        (hello("a.example", &["h2"]), b'2'),
        (hello("A.example", &["http/1.1"]), b'a'),
        (hello("x.b.example", &[]), b'b'),
        (hello("b.example", &[]), b'd'),
        // No server name, no TLS, an end before anything is known.
        (hello("127.0.0.1", &["h2"]), b'd'),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), b'd'),
        (hello("a.example", &["h2"])[..20].to_vec(), b'd'),
        (Vec::new(), b'd'),
        // A ClientHello that never ends is not waited for, and what follows one is not understood.
        ([&[22, 3, 1, 64, 0, 1, 0, 255, 255], &[0; 40_000][..]].concat(), b'd'),
        ([&hello("a.example", &["h2"])[..], &noise(5, 300_000)].concat(), b'2'),
    ] {
        for size in [says.len().max(1), 1 + says.len() / 3] {
            let shown = &says[..says.len().min(30)];
            assert_eq!(reached(&setup, &says, size).await as char, expected as char, "{shown:?} by {size}");
        }
    }
    let answer = ask(&setup, "/gateway/status").await;
    let shown: serde_json::Value = serde_json::from_str(answer.rsplit("\r\n\r\n").next().unwrap()).unwrap();
    let routes: Vec<_> = (0..4).map(|at| shown["endpoints"][at]["route"].as_str()).collect();
    assert_eq!(routes, [None, Some("a.example/h2"), Some("a.example"), Some("*.b.example")], "{shown}");
}

#[tokio::test]
async fn a_route_without_a_live_endpoint_does_not_fall_back_to_another_cluster() {
    let (default, a) = (Echo::new(b'd').await, Echo::new(b'a').await);
    let setup = Setup::with(&[default.address], |config| {
        config.routes = vec![route("a.example", &a)];
        config.metrics_addr = Some(anywhere().into());
    })
    .await;
    a.die().await;
    let mut client = setup.connect().await;
    client.write_all(&client_hello("a.example", &[])).await.unwrap();
    assert!(matches!(in_time(client.read(&mut [0])).await, Ok(0) | Err(_)));
    assert_eq!(setup.metric("watershed_gateway_unserved_total"), 1.0);
    assert!(ask(&setup, "/health").await.starts_with("HTTP/1.0 200"), "the default route serves");
}

#[tokio::test]
async fn an_address_of_two_routes_keeps_its_metrics_while_one_of_them_has_it() {
    let (both, other) = (Echo::new(b'x').await, Echo::new(b'o').await);
    let setup = Setup::with(&[both.address], |config| {
        config.routes = vec![route("a.example", &both)];
        config.endpoint_drain_timeout = Duration::ZERO;
    })
    .await;
    assert_eq!(reached(&setup, b"plain", 5).await, b'x');
    setup.list.replace([ListedEndpoint::new(other.address)].into());
    // What is sent to the old one in this moment may be cut.
    let default = async || {
        let (mut client, mut name) = (setup.connect().await, [0]);
        let sent = client.write_all(b"x").await.is_ok();
        (sent && matches!(in_time(client.read(&mut name)).await, Ok(1))).then_some(name[0])
    };
    in_time(async { while default().await != Some(b'o') {} }).await;
    assert_eq!(reached(&setup, &client_hello("a.example", &[]), 4096).await, b'x');
    let connected = format!("watershed_gateway_connected_total{{endpoint=\"{}\"}}", both.address);
    assert!(setup.metric(&connected) >= 2.0);
}

#[tokio::test]
async fn the_gateway_refuses_itself_as_the_endpoint_of_a_route() {
    let (address, echo) = (nobody(), Echo::new(b'e').await);
    let mut config = GatewayConfig::new(address.into(), vec![echo.address.into()]);
    config.routes = vec![RouteConfig { matching: "a".parse().unwrap(), endpoints: vec![address.into()] }];
    let list = StaticList::new(config.endpoints.clone());
    let error = Gateway::start(&config, &list, &Metrics::new(), &Tasks::new()).await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("--route: {address} is the address")), "{error}");
}

#[tokio::test]
async fn routes_change_and_connections_of_those_that_stay_do_not_notice() {
    let [default, a, b] = [Echo::new(b'd').await, Echo::new(b'a').await, Echo::new(b'b').await];
    let setup = Setup::with(&[default.address], |config| {
        config.routes = vec![route("a.example", &a), route("b.example", &b)];
        config.endpoint_drain_timeout = Duration::ZERO;
    })
    .await;
    let open = async |name: &str| {
        let mut client = setup.connect().await;
        client.write_all(&client_hello(name, &[])).await.unwrap();
        let mut answer = [0];
        in_time(client.read_exact(&mut answer)).await.unwrap();
        (client, answer[0])
    };
    let ((mut of_a, _), (mut of_b, _)) = (open("a.example").await, open("b.example").await);
    let lists = setup.gateway.endpoint_lists();
    assert!(!lists.replace_routes(&[route("a.example", &a), route("b.example", &b)]), "they are the same");
    assert!(lists.replace_routes(&[route("c.example", &b), route("a.example", &a)]));
    assert!(ends_by_reset(&mut of_b).await, "its route is gone");
    of_a.write_all(b"x").await.unwrap();
    in_time(of_a.read_exact(&mut [0])).await.unwrap();
    for (name, expected) in [("a.example", b'a'), ("b.example", b'd'), ("c.example", b'b')] {
        assert_eq!(open(name).await.1 as char, expected as char, "{name}");
    }
    assert!(lists.replace_routes(&[]));
    assert_eq!(open("c.example").await.1, b'd');
}
