use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::harness::free_port;

/// Rounds of a new gateway that takes over from the one before.
const ROUNDS: usize = 4;
/// Requests to the metrics address in each of them.
const REQUESTS: usize = 16;

fn command(listen: u16, metrics: u16, socket: &Path, endpoint: SocketAddr) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["gateway", "start", "--drain-timeout=30s"]);
    command.arg(format!("--listen-addr=127.0.0.1:{listen}")).arg(format!("--metrics-addr=127.0.0.1:{metrics}"));
    command.arg(format!("--hot-restart-socket={}", socket.display())).arg(format!("--endpoints={endpoint}"));
    command
}

/// Connects and is served, over and over, until it is told to stop; how often, or the first error.
fn client(address: SocketAddr, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<std::io::Result<usize>> {
    std::thread::spawn(move || {
        let mut served = 0;
        while !stop.load(Ordering::Relaxed) {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0])?;
            served += 1;
        }
        Ok(served)
    })
}

/// Whether the gateway that answers at the metrics address accepts connections; none where the request is cut off.
fn accepting(metrics: u16) -> Option<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", metrics)).expect("a gateway has the metrics address");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream.write_all(b"GET /gateway/status HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.contains("\"accepting\":").then(|| answer.contains("\"accepting\":true"))
}

#[test]
fn the_next_gateway_takes_over_and_no_connection_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (listen, metrics, endpoint) = (free_port(), free_port(), echo_endpoint());
    let start = || Running::start(command(listen, metrics, &folder.path().join("gateway.sock"), endpoint));
    let mut current = start();
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..3).map(|_| client(current.address(), stop.clone())).collect();
    for _ in 0..ROUNDS {
        let mut open = current.echo().expect("served");
        let next = start();
        line_with(&mut current.log, "stopping");
        open.write_all(b"y").expect("an open connection is served to its end");
        open.read_exact(&mut [0]).expect("an open connection is served to its end");
        // The one that drains has the same socket, and leaves it to the next.
        for _ in 0..REQUESTS {
            assert_ne!(accepting(metrics), Some(false), "the gateway that stops answers in place of the next one");
        }
        drop(open);
        assert_eq!(current.child.wait().expect("it ends").code(), Some(0));
        drop(next.echo().expect("served"));
        drop(TcpStream::connect(("127.0.0.1", metrics)).expect("the next one has the metrics address"));
        current = next;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        let served = client.join().expect("no panic").expect("no connection fails");
        assert!(served > ROUNDS, "{served} were served");
    }
}

#[test]
fn a_gateway_that_does_not_start_leaves_the_one_before_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("gateway.sock");
    let (listen, endpoint) = (free_port(), echo_endpoint());
    let mut first = Running::start(command(listen, free_port(), &socket, endpoint));
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
    let _held = TcpListener::bind(taken).expect("bind");
    let second = command(listen, taken.port(), &socket, endpoint).output().expect("it runs");
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(second.status.code() == Some(1) && text.contains("--metrics-addr: listen tcp"), "{text}");
    line_with(&mut first.log, "another gateway took the sockets and did not start");
    drop(first.echo().expect("served"));
    // And it is there for the next one.
    let third = Running::start(command(listen, free_port(), &socket, endpoint));
    assert_eq!(first.child.wait().expect("it ends").code(), Some(0));
    drop(third.echo().expect("served"));
}

#[test]
fn a_file_that_is_no_socket_is_not_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("notes");
    std::fs::write(&file, "mine").expect("written");
    let output = command(free_port(), free_port(), &file, echo_endpoint()).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains("--hot-restart-socket="), "{text}");
    assert_eq!(std::fs::read_to_string(&file).expect("readable"), "mine");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
}
