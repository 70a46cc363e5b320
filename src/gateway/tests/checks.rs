use super::*;
use crate::config::{HealthCheckConfig, HealthCheckKind};

/// Checks that must fail in a row.
const FALL: u32 = 20;

/// An endpoint that answers this many checks with 200 and later ones with 503, and counts them.
async fn page(passes: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(anywhere()).await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counter = asked.clone();
    Tasks::new().spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            let status = if counter.fetch_add(1, Ordering::Relaxed) < passes { "200 OK" } else { "503 Not Now" };
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
