use super::*;
use crate::config::{HealthCheckConfig, HealthCheckKind};

/// Checks that must fail in a row.
const FALL: u32 = 20;

/// An endpoint that answers this many checks with 200 and later ones with 503, and counts them.
async fn page(passes: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    page_or(passes, Some("503 Not Now")).await
}

/// The same, which answers later ones like this, or not at all.
async fn page_or(passes: usize, later: Option<&'static str>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(anywhere()).await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let (counter, mut silent) = (asked.clone(), Vec::new());
    Tasks::new().spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            let passed = counter.fetch_add(1, Ordering::Relaxed) < passes;
            let Some(status) = Some("200 OK").filter(|_| passed).or(later) else {
                silent.push(stream);
                continue;
            };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            // A check that is over is none of its business.
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, asked)
}

#[tokio::test]
async fn an_endpoint_that_fails_once_is_asked_again_soon() {
    // Cause: the next check came an interval later, and clients were sent to a process that hangs for so long.
    let ((good, good_asked), (bad, bad_asked)) = (page(usize::MAX).await, page(1).await);
    let setup = Setup::with(&[good, bad], |config| {
        config.health_check = Some(HealthCheckConfig {
            kind: HealthCheckKind::Http { path: Some("/ready".to_owned()) },
            interval: Duration::from_millis(500),
            timeout: PATIENCE,
            rise: 1,
            fall: FALL,
            tls: None,
        });
    })
    .await;
    let up = format!("watershed_gateway_endpoint_up{{endpoint=\"{bad}\"}}");
    in_time(async {
        while setup.metric(&up) == 1.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let (good, bad) = (good_asked.load(Ordering::Relaxed), bad_asked.load(Ordering::Relaxed));
    assert!(bad > FALL as usize && good < FALL as usize * 3 / 4, "asked {bad} times, and the other one {good} times");
}

#[tokio::test]
async fn an_endpoint_that_hangs_gets_no_clients_long_before_it_is_down() {
    // Cause: clients went to a process that hangs until as many checks had timed out as it takes to be sure.
    let ((good, _), (bad, _)) = (page(usize::MAX).await, page_or(1, None).await);
    let setup = Setup::with(&[good, bad], |config| {
        config.health_check = Some(HealthCheckConfig {
            kind: HealthCheckKind::Http { path: Some("/ready".to_owned()) },
            interval: Duration::from_millis(50),
            timeout: PATIENCE * 2,
            rise: 1,
            fall: 2,
            tls: None,
        });
    })
    .await;
    let of =
        |name: &str, address: SocketAddr| setup.metric(&format!("watershed_gateway_{name}{{endpoint=\"{address}\"}}"));
    // By turns each of them would get every other one.
    let avoided = async {
        loop {
            let before = of("connected_total", bad);
            let mut served = 0.0;
            while served < 10.0 && of("connected_total", bad) == before {
                let counted = of("connected_total", good);
                let _client = setup.connect().await;
                while of("connected_total", good) == counted && of("connected_total", bad) == before {
                    tokio::task::yield_now().await;
                }
                served += 1.0;
            }
            if of("connected_total", bad) == before {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time(avoided).await;
    assert_eq!(of("endpoint_up", bad), 1.0, "it may be slow");
}
