use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use super::*;

fn command(listen: &Path, endpoint: SocketAddr, more: &[String]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["gateway", "start", "--drain-timeout=30s"]);
    command.arg(format!("--listen-addr=unix://{}", listen.display())).arg(format!("--endpoints={endpoint}")).args(more);
    command
}

fn echo(path: &Path) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

fn refusal(listen: &Path) -> String {
    let output = command(listen, echo_endpoint(), &[]).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
    text
}

#[test]
fn a_socket_left_by_a_killed_gateway_is_replaced_and_nothing_else_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, endpoint) = (folder.path().join("gateway.sock"), echo_endpoint());
    let mode = ["--listen-socket-mode=0600".to_owned()];
    let mut first = Running::start(command(&path, endpoint, &mode));
    assert_eq!(first.listen_addr, format!("unix:{}", path.display()));
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    drop(echo(&path).expect("served"));
    let named = format!("watershed: --listen-addr: listen unix {}: bind: address already in use", path.display());
    let text = refusal(&path);
    assert!(text.starts_with(&named), "{text}");
    drop(echo(&path).expect("the first one serves on"));
    first.child.kill().expect("it runs");
    first.child.wait().expect("it ends");
    assert!(path.exists());
    let mut second = Running::start(command(&path, endpoint, &[]));
    drop(echo(&path).expect("served"));
    second.terminate();
    assert_eq!(second.child.wait().expect("it ends").code(), Some(0));
    assert!(!path.exists(), "a gateway that stops removes its socket");
    std::fs::write(&path, "mine").expect("written");
    let text = refusal(&path);
    assert!(text.contains("--listen-addr: listen unix ") && text.contains("no socket"), "{text}");
    assert_eq!(std::fs::read_to_string(&path).expect("there"), "mine");
}

#[test]
fn the_next_gateway_takes_over_a_unix_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, endpoint) = (folder.path().join("gateway.sock"), echo_endpoint());
    let more = [format!("--hot-restart-socket={}", folder.path().join("restart.sock").display())];
    let mut current = Running::start(command(&path, endpoint, &more));
    for _ in 0..3 {
        let mut open = echo(&path).expect("served");
        let next = Running::start(command(&path, endpoint, &more));
        line_with(&mut current.log, "stopping");
        drop(echo(&path).expect("served"));
        open.write_all(b"y").expect("an open connection is served to its end");
        open.read_exact(&mut [0]).expect("an open connection is served to its end");
        drop(open);
        assert_eq!(current.child.wait().expect("it ends").code(), Some(0));
        drop(echo(&path).expect("the file is still there"));
        current = next;
    }
    current.terminate();
    assert_eq!(current.child.wait().expect("it ends").code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn a_unix_socket_of_systemd_is_served_and_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("gateway.sock");
    let held = UnixListener::bind(&path).expect("bind");
    let mut command = Command::new("sh");
    let script = r#"exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" gateway start --endpoints="$1""#;
    command.args(["-c", script, PROGRAM]).arg(echo_endpoint().to_string());
    command.stdin(OwnedFd::from(held.try_clone().expect("clone")));
    let mut gateway = Running::start(command);
    drop(echo(&path).expect("served"));
    gateway.terminate();
    assert_eq!(gateway.child.wait().expect("it ends").code(), Some(0));
    assert!(path.exists(), "it is systemd's");
}
