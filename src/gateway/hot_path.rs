//! Bytes through a connection of the gateway, for `benches/hot_paths.py`. What the kernel does is not counted there.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

use super::balance::Division;
use super::metrics::GatewayMetrics;
use super::pump::Pump;
use super::upstream::{Assigned, Upstream};
use crate::config::Balance;
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

const ROUNDS: usize = 1000;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (connected, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (one, (other, _)) = (connected.unwrap(), accepted.unwrap());
    one.set_nodelay(true).unwrap();
    other.set_nodelay(true).unwrap();
    (one, other)
}

/// Sends a message there and back.
async fn talk(client: &mut TcpStream, server: &mut TcpStream, rounds: usize) {
    let mut message = [7; 128];
    for _ in 0..rounds {
        client.write_all(&message).await.unwrap();
        server.read_exact(&mut message).await.unwrap();
        server.write_all(&message).await.unwrap();
        client.read_exact(&mut message).await.unwrap();
    }
}

#[inline(never)]
fn counted(runtime: &Runtime, client: &mut TcpStream, server: &mut TcpStream) {
    runtime.block_on(talk(client, server, ROUNDS));
}

#[test]
fn gateway_pump() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let division =
        Division { balance: Balance::RoundRobin, slow_start: Duration::ZERO, closes_when_down: false, checked: false };
    let metrics = GatewayMetrics::register(&Metrics::new());
    let upstream = std::sync::Arc::new(Upstream::new("127.0.0.1:1".parse().unwrap(), &division, &metrics));
    let (mut client, mut server, pump) = runtime.block_on(async {
        let ((client, accepted), (connected, server)) = (pair().await, pair().await);
        let pump =
            Tasks::new().spawn(Pump::new(accepted.into(), connected.into(), None, Assigned::new(upstream.clone())));
        (client, server, pump)
    });
    runtime.block_on(talk(&mut client, &mut server, 10));
    counted(&runtime, &mut client, &mut server);
    drop((client, server));
    runtime.block_on(pump).unwrap();
    assert_eq!(upstream.metrics.bytes_up.get(), 128 * (ROUNDS as u64 + 10));
}
