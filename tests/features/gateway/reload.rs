use std::path::{Path, PathBuf};

use rustix::process::Signal;
use tempfile::TempDir;

use super::*;
use crate::harness::{Deployment, DnsServer, Process, Target, free_port, http_get, metric, own_binary, run, until};

/// A gateway with a configuration file.
struct Configured {
    gateway: Running,
    file: PathBuf,
    metrics: String,
    _folder: TempDir,
}

fn write(file: &Path, text: &str) {
    let new = file.with_extension("new");
    std::fs::write(&new, text).expect("written");
    std::fs::rename(new, file).expect("replaced");
}

impl Configured {
    fn start(rest: &str) -> Self {
        let folder = TempDir::new().expect("a folder");
        let (file, metrics) = (folder.path().join("gateway.yaml"), format!("127.0.0.1:{}", free_port()));
        write(&file, &text(&metrics, rest));
        let mut command = Command::new(PROGRAM);
        command.args(["gateway", "start", "--config-file"]).arg(&file);
        Self { gateway: Running::start(command), file, metrics, _folder: folder }
    }

    fn replace(&self, rest: &str) {
        write(&self.file, &text(&self.metrics, rest));
    }

    fn hang_up(&self) {
        self.gateway.signal(Signal::HUP);
    }

    /// Waits until the file has been read so often, or more often: a change is also noticed without the signal.
    async fn until_read(&self, outcome: &str, times: f64) {
        let name = format!("watershed_gateway_reloads_total{{outcome=\"{outcome}\"}}");
        let read = async || metric(&self.metrics, &name).await.filter(|&read| read >= times);
        until("the file is read", read).await;
    }

    /// Which of these endpoints answers.
    fn reached(&self) -> u8 {
        named(self.gateway.address())
    }
}

fn text(metrics: &str, rest: &str) -> String {
    format!("listen-addr: 127.0.0.1:0\nmetrics-addr: {metrics}\n{rest}")
}

/// The byte that an endpoint of [`naming_endpoint`] says through a gateway.
fn named(gateway: SocketAddr) -> u8 {
    let mut stream = TcpStream::connect(gateway).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut name = [0];
    stream.read_exact(&mut name).expect("an answer");
    name[0]
}

/// An endpoint that says its name to each connection.
fn naming_endpoint(name: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(&[name]);
        }
    });
    address
}

#[tokio::test]
async fn endpoints_of_the_file_change_at_sighup_and_a_bad_file_changes_nothing() {
    let (a, b) = (naming_endpoint(b'a'), naming_endpoint(b'b'));
    let mut configured = Configured::start(&format!("endpoints: {a}\nretry-delay: 30s\n"));
    assert_eq!(configured.reached(), b'a');
    configured.replace(&format!("endpoints: [{b}]\nretry-delay: 10s\n"));
    configured.hang_up();
    configured.until_read("taken", 1.0).await;
    until("the new endpoint", async || (configured.reached() == b'b').then_some(())).await;
    let log = &mut configured.gateway.log;
    let diff = line_with(log, "endpoints have changed");
    assert_eq!(diff["change"], format!("+{b} -{a}"), "{diff}");
    let fixed = line_with(log, "these keys of the configuration file have changed, which counts at the next start");
    assert_eq!(fixed["keys"], "retry-delay", "{fixed}");
    let mut last = serde_json::Value::Null;
    for (rest, reason) in [
        ("endpoints: no/where\n", "line 3: endpoints: \"no/where\" must have the form host:port"),
        ("endpoint: 127.0.0.1:1\n", "line 3: endpoint is no key: keys are the flags of the gateway, without dashes"),
        ("", "endpoints is not there any more"),
    ] {
        configured.replace(rest);
        configured.hang_up();
        let message = "configuration file not used: endpoints and routes stay as they are";
        // The file may be read twice: the change of the one before may have been noticed before its signal.
        let mut lines = std::iter::repeat_with(|| line_with(&mut configured.gateway.log, message));
        let refused = lines.find(|line| line["error"] != last).expect("endless");
        last = refused["error"].clone();
        let expected = format!("{}: {reason}", configured.file.display());
        assert_eq!((&refused["error"], &refused["level"]), (&expected.into(), &"warn".into()), "{refused}");
        assert_eq!(configured.reached(), b'b');
    }
    configured.until_read("refused", 3.0).await;
}

#[tokio::test]
async fn a_change_of_endpoints_is_one_line_of_the_log() {
    // Cause: the gateway logged it a second time, without what had changed.
    let (a, b) = (naming_endpoint(b'a'), naming_endpoint(b'b'));
    let mut configured = Configured::start(&format!("endpoints: {a}\n"));
    configured.replace(&format!("endpoints: {b}\n"));
    configured.hang_up();
    until("the new endpoint", async || (configured.reached() == b'b').then_some(())).await;
    configured.gateway.terminate();
    let mut log = String::new();
    configured.gateway.log.read_to_string(&mut log).expect("readable");
    assert_eq!(log.matches("endpoints have changed").count(), 1, "{log}");
}

#[tokio::test]
async fn a_change_of_the_file_is_noticed_without_a_signal() {
    let (a, b) = (naming_endpoint(b'a'), naming_endpoint(b'b'));
    let configured = Configured::start(&format!("endpoints:\n- {a}\n"));
    assert_eq!(configured.reached(), b'a');
    configured.replace(&format!("endpoints:\n- {b}\n"));
    configured.until_read("taken", 1.0).await;
    until("the new endpoint", async || (configured.reached() == b'b').then_some(())).await;
}

#[test]
fn a_change_of_the_file_while_the_first_endpoint_is_waited_for_counts() {
    // Cause: the file was compared with what it was when the gateway began to serve, not with what it was when it was read.
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let (a, folder) = (naming_endpoint(b'a'), TempDir::new().expect("a folder"));
        let (file, metrics) = (folder.path().join("gateway.yaml"), format!("127.0.0.1:{}", free_port()));
        let source = format!("endpoints: {}\nresolver-prefix: proxies\n", deployment.member);
        write(&file, &text(&metrics, &source));
        let flag = format!("--config-file={}", file.display());
        let gateway = Process::start(&own_binary(), &["gateway", "start", &flag], folder.path(), "gateway");
        let message = "waiting for endpoints to be registered";
        until("the wait", async || gateway.output().contains(message).then_some(())).await;
        write(&file, &text(&metrics, &format!("{source}route: [x.example={a}]\n")));
        deployment.put("proxies/a", format!(r#"{{"Op":0,"Addr":"{a}"}}"#)).await;
        let line = "watershed_gateway_reloads_total{outcome=\"taken\"} 1\n";
        until("the file is read", async || {
            http_get(&metrics, "GET", "/metrics").await.ok().filter(|page| page.body.contains(line))
        })
        .await;
    });
}

#[tokio::test]
async fn the_gateway_itself_is_refused_in_a_changed_file() {
    let a = naming_endpoint(b'a');
    let mut configured = Configured::start(&format!("endpoints: {a}\n"));
    let own = configured.gateway.address();
    configured.replace(&format!("endpoints: {a}\nroute: [x.example={own}]\n"));
    configured.hang_up();
    let message = "configuration file not used: endpoints and routes stay as they are";
    let refused = line_with(&mut configured.gateway.log, message);
    let expected = format!("--route: {own} is the address the gateway itself listens on (--listen-addr)");
    assert_eq!(refused["error"], expected, "{refused}");
}

#[test]
fn flags_beside_the_file_and_a_wrong_file_are_refused() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("gateway.yaml");
    std::fs::write(&file, "endpoints: 127.0.0.1:1\nlisten-adr: 127.0.0.1:0\n").expect("written");
    let flag = format!("--config-file={}", file.display());
    for (args, reason) in [
        (&[&*flag][..], format!("{}: line 2: listen-adr is no key", file.display())),
        (&[&*flag, "--endpoints=127.0.0.1:1"], "--config-file: replaces all other flags, and --endpoints".to_owned()),
        (&["--config-file=/none/x"], "/none/x: No such file or directory".to_owned()),
    ] {
        let output = refused(args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
        assert!(text.starts_with(&format!("watershed: {reason}")), "{text}");
    }
}

#[tokio::test]
async fn sighup_asks_dns_at_once() {
    let (a, b, dns) = (naming_endpoint(b'a'), naming_endpoint(b'b'), DnsServer::start());
    let put = |port| dns.put("_etcd-client._tcp.example.test", "m.example.test", &[(0, 0, port)]);
    put(a.port());
    // Nobody waits for so long.
    dns.change(|zone| zone.ttl = 300);
    let mut command = Command::new(PROGRAM);
    command.args(["gateway", "start", "--listen-addr=127.0.0.1:0", "--discovery-srv=example.test"]);
    command.arg("--insecure-discovery").arg(format!("--discovery-dns={}", dns.address));
    let mut gateway = Running::start(command);
    assert_eq!(named(gateway.address()), b'a');
    put(b.port());
    gateway.signal(Signal::HUP);
    let asked = line_with(&mut gateway.log, "endpoints are asked for again");
    assert_eq!(asked["source"], "DNS SRV");
    let diff = line_with(&mut gateway.log, "endpoints have changed");
    assert_eq!(diff["change"], format!("+m.example.test:{} -m.example.test:{}", b.port(), a.port()));
    until("the new endpoint", async || (named(gateway.address()) == b'b').then_some(())).await;
}
