//! The fault proxy itself: what it is told to do to a link, it does to that link and to no other.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Network, soon};

/// This process as member 0 with a connection to member 1, which is a listener of ours; both ends.
async fn connected(network: &Network) -> (TcpStream, TcpStream) {
    let (one, _) = network.add();
    let (other, address) = network.add();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let nowhere = "127.0.0.1:1".parse().expect("an address");
    network.place(other, listener.local_addr().expect("address"), 1);
    network.place(one, nowhere, std::process::id());
    reconnected(&listener, address).await
}

async fn reconnected(listener: &TcpListener, address: std::net::SocketAddr) -> (TcpStream, TcpStream) {
    let near = TcpStream::connect(address).await.expect("connects");
    let (far, _) = soon("the connection", listener.accept()).await.expect("accepts");
    (near, far)
}

async fn passes(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"passes").await.expect("written");
    let mut bytes = [0; 6];
    soon("the bytes", to.read_exact(&mut bytes)).await.expect("read");
    assert_eq!(&bytes, b"passes");
}

/// Whether anything arrives within a moment. The last resort: silence has no event to wait for.
async fn silent(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    tokio::time::timeout(Duration::from_millis(150), stream.peek(&mut byte)).await.is_err()
}

#[tokio::test]
async fn one_direction_is_held_and_loses_nothing() {
    let network = Network::new();
    let (mut near, mut far) = connected(&network).await;
    passes(&mut near, &mut far).await;
    passes(&mut far, &mut near).await;
    network.link(0, 1, |link| link.held = true);
    near.write_all(b"late").await.expect("written");
    passes(&mut far, &mut near).await;
    assert!(silent(&mut far).await);
    network.heal();
    let mut bytes = [0; 4];
    soon("the held bytes", far.read_exact(&mut bytes)).await.expect("read");
    assert_eq!(&bytes, b"late");
}

#[tokio::test]
async fn a_group_is_set_apart() {
    let network = Network::new();
    let (mut near, mut far) = connected(&network).await;
    network.add();
    network.around(&[2], |link| link.held = true);
    passes(&mut near, &mut far).await;
    network.around(&[1], |link| link.held = true);
    near.write_all(b"x").await.expect("written");
    far.write_all(b"x").await.expect("written");
    assert!(silent(&mut far).await && silent(&mut near).await);
    network.heal();
    near.write_all(b"y").await.expect("written");
    let mut bytes = [0; 2];
    soon("all of it", far.read_exact(&mut bytes)).await.expect("read");
    assert_eq!(&bytes, b"xy");
}

#[tokio::test]
async fn a_cut_link_resets_its_connections() {
    let network = Network::new();
    let (mut near, mut far) = connected(&network).await;
    passes(&mut near, &mut far).await;
    network.link(1, 0, |link| link.cut = true);
    let mut byte = [0];
    let ended = soon("the end", near.read(&mut byte)).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    let ended = soon("the end", far.read(&mut byte)).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test]
async fn bits_are_flipped_and_rates_are_kept() {
    let network = Network::new();
    let (mut near, mut far) = connected(&network).await;
    network.link(0, 1, |link| {
        link.flip_every_bytes = Some(100);
        link.bytes_per_second = Some(10_000_000);
        link.delay = Duration::from_millis(5);
    });
    let sent = vec![0_u8; 100_000];
    let mut received = vec![1_u8; sent.len()];
    let (written, read) = tokio::join!(near.write_all(&sent), soon("all of it", far.read_exact(&mut received)));
    written.expect("written");
    read.expect("read");
    let flipped = received.iter().filter(|byte| **byte != 0).count();
    assert!((500..2000).contains(&flipped), "{flipped} of {} bytes", sent.len());
    assert_eq!(network.counts()[1], flipped as u64);
    passes(&mut far, &mut near).await;
}
