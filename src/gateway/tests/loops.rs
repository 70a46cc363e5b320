use super::*;

/// Two gateways, each of which is the endpoint of the other.
async fn facing(adjust: impl Fn(&mut GatewayConfig)) -> (Setup, Setup) {
    let second = Setup::with(&[nobody()], &adjust).await;
    let first = Setup::with(&[second.address()], &adjust).await;
    second.list.replace([ListedEndpoint::new(first.address())].into());
    // The new list takes effect a moment after it is set.
    let listed = format!("watershed_gateway_endpoint_up{{endpoint=\"{}\"}}", first.address());
    in_time(async {
        while !second.metrics.render().contains(&listed) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    (first, second)
}

async fn is_closed(client: &mut TcpStream) -> bool {
    matches!(in_time(client.read(&mut [0])).await, Ok(0) | Err(_))
}

/// Of all endpoints of both.
fn sum(setups: &[&Setup], name: &str) -> f64 {
    let value = |line: &str| line.starts_with(name).then(|| line.rsplit(' ').next()?.parse::<f64>().ok()).flatten();
    setups.iter().flat_map(|setup| setup.metrics.render().lines().filter_map(value).collect::<Vec<_>>()).sum()
}

async fn until_all_closed(both: &[&Setup]) {
    in_time(async {
        while sum(both, "watershed_gateway_open_connections") > 0.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

const LOOPS: &str = "watershed_gateway_ejections_total{cause=\"loop\"";

#[tokio::test]
async fn gateways_that_point_at_each_other_find_it_out() {
    // Cause: each hop of a loop takes a connection more, and one client filled the descriptor tables of both.
    for send in [None, Some(ProxyProtocol::V1), Some(ProxyProtocol::V2)] {
        let (first, second) = facing(|config| {
            config.send_proxy_protocol = send;
            config.proxy_protocol_from = send.map(|_| "127.0.0.1".parse().unwrap()).into_iter().collect();
        })
        .await;
        let both = [&first, &second];
        let mut client = first.connect().await;
        if let Some(version) = send {
            client.write_all(&header(version, None)).await.unwrap();
        }
        assert!(is_closed(&mut client).await, "it cannot be served");
        assert!(sum(&both, LOOPS) >= 1.0, "{send:?}");
        until_all_closed(&both).await;
        // It is left out now: clients that come are closed, and no chain grows.
        let accepted = sum(&both, "watershed_gateway_accepted_total");
        for _ in 0..50 {
            let mut client = first.connect().await;
            if let Some(version) = send {
                client.write_all(&header(version, None)).await.unwrap();
            }
            assert!(is_closed(&mut client).await);
        }
        let more = sum(&both, "watershed_gateway_accepted_total") - accepted;
        assert!(more < 500.0, "{send:?}: 50 clients made {more} connections");
    }
}

#[tokio::test]
async fn an_endpoint_that_does_not_lead_back_any_more_is_used_again() {
    let (first, second) = facing(|_| {}).await;
    let mut client = first.connect().await;
    assert!(is_closed(&mut client).await);
    let echo = Echo::new(b'e').await;
    second.list.replace([ListedEndpoint::new(echo.address)].into());
    in_time(async {
        while who(&first).await != Some(b'e') {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_loop_that_is_not_looked_for_stays_bounded() {
    let (first, second) = facing(|config| {
        config.detect_loops = false;
        config.connections_max = Some(20);
    })
    .await;
    let both = [&first, &second];
    while sum(&both, "watershed_gateway_refused_total{reason=\"connections\"}") == 0.0 {
        let mut client = first.connect().await;
        // The end of the chain reaches the client, and with the client all of it is gone.
        assert!(is_closed(&mut client).await);
        assert!(sum(&both, "watershed_gateway_open_connections") <= 40.0);
    }
    until_all_closed(&both).await;
    assert_eq!(sum(&both, LOOPS), 0.0);
}

#[tokio::test]
async fn members_with_many_connections_are_asked_and_stay() {
    // It answers neither HTTP nor anything else but an echo of what it gets.
    let echo = Echo::new(b'e').await;
    let setup = Setup::new(&[echo.address]).await;
    let mut open = Vec::new();
    for _ in 0..70 {
        let mut client = setup.connect().await;
        in_time(client.read_exact(&mut [0])).await.unwrap();
        open.push(client);
    }
    assert_eq!(sum(&[&setup], "watershed_gateway_ejections_total"), 0.0);
    for client in &mut open {
        client.write_all(b"x").await.unwrap();
        in_time(client.read_exact(&mut [0])).await.unwrap();
    }
}
