//! The gateway as a program: its words, its exit codes, and what it does when descriptors run out; `health.rs` has its
//! health checks of real members, `hot_restart.rs` gateways that take over from one another, `reload.rs` its
//! configuration file and SIGHUP, `unix_sockets.rs` gateways on unix sockets.

mod health;
mod hot_restart;
mod reload;
mod unix_sockets;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Output, Stdio};

use crate::harness::PATIENCE;

const PROGRAM: &str = env!("CARGO_BIN_EXE_watershed");

/// A running gateway; killed when dropped.
struct Running {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
    /// As the gateway names it.
    listen_addr: String,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the program starts");
        let mut log = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let ready = line_with(&mut log, "ready to proxy client requests");
        assert_eq!((&ready["level"], ready["ts"].is_string()), (&"info".into(), true));
        let listen_addr = ready["listen_addr"].as_str().expect("the line names the address").to_owned();
        Self { child, log, listen_addr }
    }

    fn address(&self) -> SocketAddr {
        self.listen_addr.parse().expect("a TCP address")
    }

    /// Connects and asks for an echo; an error when the gateway closes the connection instead.
    fn echo(&self) -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        Ok(stream)
    }

    fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("it runs");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads log lines until one has this message.
fn line_with(log: &mut impl BufRead, message: &str) -> serde_json::Value {
    loop {
        let mut line = String::new();
        assert_ne!(log.read_line(&mut line).expect("readable"), 0, "the log ended without {message:?}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        if value["msg"] == message {
            return value;
        }
    }
}

/// An endpoint that echoes, a thread for each connection.
fn echo_endpoint() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut reader = stream.try_clone().expect("clone");
                let _ = std::io::copy(&mut reader, &mut &stream);
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    address
}

fn gateway(endpoint: SocketAddr) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["gateway", "start", "-listen-addr", "127.0.0.1:0", "--endpoints"]).arg(endpoint.to_string());
    command
}

#[test]
fn running_out_of_descriptors_is_survived() {
    // Etcd's gateway ends with exit code 0 here.
    let endpoint = echo_endpoint();
    let mut command = Command::new("sh");
    let script =
        r#"ulimit -n 48; exec "$0" gateway start --listen-addr=127.0.0.1:0 --serving-threads=2 --endpoints="$1""#;
    command.args(["-c", script, PROGRAM]).arg(endpoint.to_string());
    let mut gateway = Running::start(command);
    let mut open = Vec::new();
    // Served clients use descriptors up, until one is not served.
    while let Ok(stream) = gateway.echo() {
        open.push(stream);
        assert!(open.len() < 48, "more connections than descriptors");
    }
    assert!(open.len() > 5, "only {} were served", open.len());
    // More clients than can be accepted: they wait in the queue of the kernel.
    let waiting: Vec<_> = (0..48).map(|_| TcpStream::connect(gateway.address()).expect("queued")).collect();
    line_with(&mut gateway.log, "connection not accepted");
    let mut held = open.pop().expect("some are open");
    held.write_all(b"y").expect("an open connection works on");
    held.read_exact(&mut [0]).expect("an open connection works on");
    assert_eq!(gateway.child.try_wait().expect("a child of ours"), None);

    drop((open, waiting, held));
    let mut attempts = 0;
    while gateway.echo().is_err() {
        attempts += 1;
        assert!(attempts < 1000, "nobody is served after the descriptors are back");
    }
}

#[test]
fn sigterm_drains_and_exits_with_0() {
    let mut gateway = Running::start(gateway(echo_endpoint()));
    let mut stream = gateway.echo().expect("served");
    gateway.terminate();
    line_with(&mut gateway.log, "stopping");
    stream.write_all(b"z").expect("still served");
    stream.read_exact(&mut [0]).expect("still served");
    drop(stream);
    assert_eq!(gateway.child.wait().expect("it ends").code(), Some(0));
}

#[tokio::test]
async fn ctl_shows_the_endpoints_of_a_gateway() {
    let (endpoint, metrics) = (echo_endpoint(), format!("127.0.0.1:{}", crate::harness::free_port()));
    let mut command = gateway(endpoint);
    command.args(["--metrics-addr", &metrics]);
    let gateway = Running::start(command);
    let open = gateway.echo().expect("served");
    let ctl = |args: &[&str]| {
        let ran = Command::new(PROGRAM).args(["ctl", "--endpoints", &metrics]).args(args).output().expect("it runs");
        let text = if ran.status.success() { ran.stdout } else { ran.stderr };
        (ran.status.success(), String::from_utf8(text).expect("text"))
    };
    let (well, text) = ctl(&["gateway", "status"]);
    assert!(well, "{text}");
    let row = text.lines().find(|line| line.contains(&endpoint.to_string())).unwrap_or_else(|| panic!("{text}"));
    let cells: Vec<&str> = row.split('│').map(str::trim).collect();
    assert_eq!(cells[1..9], [&*endpoint.to_string(), "up", "static list", "0", "0", "1", "1", "0"], "{text}");
    let (well, text) = ctl(&["-w", "json", "gateway", "status"]);
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert!(well && json[0]["Status"]["endpoints"][0]["connections"] == 1, "{text}");
    crate::features::proxy_status::page_loads_only_its_own_files(&metrics).await;
    let (well, text) = ctl(&["proxy", "status"]);
    assert!(!well && text.contains("has no /proxy/status: a gRPC proxy"), "{text}");
    drop(open);
}

#[tokio::test]
async fn the_alerts_find_their_metrics_and_are_described() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, metrics) = (folder.path().join("gateway.yaml"), format!("127.0.0.1:{}", crate::harness::free_port()));
    let text = format!("listen-addr: 127.0.0.1:0\nmetrics-addr: {metrics}\nendpoints: [{}]\n", echo_endpoint());
    std::fs::write(&file, text).expect("written");
    let mut command = Command::new(PROGRAM);
    command.args(["gateway", "start"]).arg(format!("--config-file={}", file.display()));
    let _gateway = Running::start(command);
    let page = crate::harness::http_get(&metrics, "GET", "/metrics").await.expect("an answer").body;
    let rules = include_str!("../../../contrib/prometheus/gateway.rules.yml");
    let documents = [include_str!("../../../docs/gateway.md"), include_str!("../../../docs/metrics.md")].concat();
    let names = rules.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names: Vec<&str> = names.filter(|name| name.starts_with("watershed_")).collect();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        assert!(documents.contains(name), "{name}");
        // A static list is not asked, so it has no age.
        assert!(
            page.contains(name) || name == "watershed_discovery_last_answer_age_seconds",
            "{name} is not in {page}"
        );
    }
    let operations = include_str!("../../../docs/operations.md");
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(operations.contains(&format!("| `{alert}` |")), "{alert} is not in docs/operations.md");
    }
}

/// A gateway that is given this socket as systemd does.
fn with_socket(listener: &TcpListener, endpoint: SocketAddr) -> Command {
    let mut command = Command::new("sh");
    let script = r#"exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" gateway start --endpoints="$1""#;
    command.args(["-c", script, PROGRAM]).arg(endpoint.to_string());
    command.stdin(OwnedFd::from(listener.try_clone().expect("clone")));
    command
}

#[test]
fn a_restart_under_a_socket_unit_refuses_no_connection() {
    let endpoint = echo_endpoint();
    // What systemd holds for the service.
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let mut first = Running::start(with_socket(&listener, endpoint));
    assert_eq!(first.address(), address);
    drop(first.echo().expect("served"));
    first.terminate();
    assert_eq!(first.child.wait().expect("it ends").code(), Some(0));
    // Nobody accepts now: it waits.
    let mut early = TcpStream::connect(address).expect("not refused");
    early.write_all(b"x").expect("taken by the kernel");
    let second = Running::start(with_socket(&listener, endpoint));
    early.set_read_timeout(Some(PATIENCE)).expect("set");
    early.read_exact(&mut [0]).expect("served by the next gateway");
    drop(second.echo().expect("served"));
}

#[test]
fn a_socket_that_is_no_listener_is_refused() {
    let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let script = r#"exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" gateway start"#;
    let mut command = Command::new("sh");
    let output = command.args(["-c", script, PROGRAM]).stdin(OwnedFd::from(one)).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("LISTEN_FDS"), "{text}");
}

fn refused(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(["gateway", "start"]).args(args).output().expect("the program starts")
}

#[test]
fn wrong_flags_are_told_as_etcds_gateway_tells_them() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
    let _held = TcpListener::bind(taken).expect("bind");
    let taken = taken.to_string();
    // Free now, and a port of ours a moment ago: nobody else is given it that soon.
    let own = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
    let (own, own_by_name) = (own.to_string(), format!("localhost:{}", own.port()));
    // Refused by the parser: before and after the usage.
    for (args, text) in [
        (&["--endpoint=127.0.0.1:1"][..], "unknown flag: --endpoint"),
        (
            &["--retry-delay", "5"],
            "invalid argument \"5\" for \"--retry-delay\" flag: time: missing unit in duration \"5\"",
        ),
        (&["--log-level=loud"], "invalid argument \"loud\" for \"--log-level\" flag: "),
    ] {
        let output = refused(args);
        let lines = String::from_utf8_lossy(&output.stderr).into_owned();
        let lines: Vec<&str> = lines.lines().collect();
        assert!(lines[0].starts_with(&format!("Error: {text}")), "{lines:?}");
        assert_eq!(
            (output.status.code(), lines[1], lines[0]),
            (Some(1), "Usage:", &*format!("Error: {}", lines[lines.len() - 1]))
        );
    }
    // Refused later: on one line.
    let cases: [(&[&str], &str); 3] = [
        (&["--endpoints=non/sense"], "--endpoints: \"non/sense\""),
        (&["--listen-addr", &taken], "--listen-addr: listen tcp "),
        (&["--listen-addr", &own, "--endpoints", &own_by_name], "--endpoints: localhost:"),
    ];
    for (args, expected) in cases {
        let output = refused(args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{args:?}: {text}");
        assert!(text.contains(expected), "{args:?}: {text}");
        assert!(text.matches("os error").count() <= 1, "the reason is told once: {text}");
    }
    let help = refused(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&help.stdout).contains("--retry-delay"));
}
