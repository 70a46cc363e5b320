//! Members that take connections and are of no use: health checks leave them out, and they alone do.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::mpsc;

use watershed::client::{Client, ClientConfig};
use watershed::pb::etcdserverpb::alarm_request::AlarmAction;
use watershed::pb::etcdserverpb::{AlarmRequest, AlarmType, MemberAddRequest, RangeRequest, StatusRequest};

use super::{Running, line_with};
use crate::harness::{Certificates, Cluster, Deployment, PATIENCE, Target, client, own_binary};

/// On a busy machine a member may take longer than by default, which must not be the reason that it is down.
const PATIENT: &str = "--health-check-timeout=30s";

fn gateway(endpoints: &[&str], flags: &[&str]) -> Running {
    let mut command = Command::new(own_binary());
    command.args(["gateway", "start", "--listen-addr=127.0.0.1:0", "--endpoints", &endpoints.join(",")]);
    command.args(["--health-check-interval=100ms", "--retry-delay=100ms"]).args(flags);
    Running::start(command)
}

/// Waits for the line that an endpoint is down, or back; returns its reason.
fn until(gateway: &mut Running, message: &str, endpoint: &str) -> String {
    loop {
        let line = line_with(&mut gateway.log, message);
        if line["endpoint"] == endpoint {
            return line["error"].as_str().unwrap_or_default().to_owned();
        }
    }
}

async fn read(client: &Client) {
    let request = RangeRequest { key: "k".into(), ..Default::default() };
    tokio::time::timeout(PATIENCE, client.kv().range(request)).await.expect("an answer").expect("no error");
}

/// An HTTP/2 connection whose far end has answered.
fn greeted(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("accepted");
    let empty_settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .and_then(|()| stream.write_all(&empty_settings))
        .expect("sent");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream.read_exact(&mut [0; 9]).expect("settings of the member");
    stream
}

#[tokio::test]
async fn a_hung_member_gets_no_clients_and_loses_those_it_has() {
    for check in ["--health-check=grpc", "--health-check=http"] {
        let cluster = Cluster::start(3, &[]).await;
        let endpoints = [0, 1, 2].map(|number| cluster.endpoint(number));
        let flags = [check, "--health-check-timeout=2s", "--on-eject=close", "--slow-start=0"];
        let mut gateway = gateway(&endpoints, &flags);
        // One to each: the next begins when the one before has been answered.
        let open: Vec<TcpStream> = (0..3).map(|_| greeted(gateway.address())).collect();
        let address = gateway.listen_addr.clone();
        cluster.pause(1);
        let reason = until(&mut gateway, "endpoint is down", endpoints[1]);
        assert_eq!(reason, "no answer within 2s");

        let (ended, first) = mpsc::channel();
        for mut stream in open {
            let ended = ended.clone();
            std::thread::spawn(move || {
                let outcome =
                    std::iter::repeat_with(|| stream.read(&mut [0; 512])).find(|read| !matches!(read, Ok(1..)));
                let _ = ended.send(outcome.and_then(Result::err).map(|error| error.kind()));
            });
        }
        // A member may end a connection on which nothing is asked, but not by a reset.
        drop(ended);
        let reset = Some(std::io::ErrorKind::ConnectionReset);
        while first.recv_timeout(PATIENCE).expect("the connection to the hung member is reset") != reset {}
        for _ in 0..6 {
            read(&client(&address)).await;
        }
        cluster.resume(1);
        until(&mut gateway, "endpoint is back", endpoints[1]);
    }
}

#[tokio::test]
async fn a_member_without_a_leader_is_left_out() {
    let mut cluster = Cluster::start(3, &[]).await;
    let endpoint = cluster.endpoint(0).to_owned();
    let mut by_grpc = gateway(&[&endpoint], &["--health-check=grpc", PATIENT]);
    let mut by_http = gateway(&[&endpoint], &["--health-check=http", PATIENT]);
    let mut by_tcp = gateway(&[&endpoint], &["--health-check=tcp"]);
    cluster.kill_all(&[1, 2]);
    assert_eq!(until(&mut by_grpc, "endpoint is down", &endpoint), "knows no leader");
    until(&mut by_http, "endpoint is down", &endpoint);
    // It takes connections all the time, which is all that this check sees; the last resort of the others is the same.
    for gateway in [&by_tcp, &by_grpc] {
        let status = client(&gateway.listen_addr).maintenance().status(StatusRequest::default()).await;
        assert_eq!(status.expect("needs no leader").into_inner().leader, 0);
    }
    cluster.spawn(1);
    until(&mut by_grpc, "endpoint is back", &endpoint);
    until(&mut by_http, "endpoint is back", &endpoint);
    cluster.kill(0);
    assert!(until(&mut by_tcp, "endpoint is down", &endpoint).contains("refused"));
}

#[tokio::test]
async fn a_learner_is_left_out() {
    let mut cluster = Cluster::start(1, &[]).await;
    let learner = cluster.prepare();
    let request = MemberAddRequest { peer_ur_ls: vec![cluster.peer_url(learner)], is_learner: true };
    cluster.member(0).cluster().member_add(request).await.expect("added");
    cluster.introduce(learner, &[0]);
    cluster.spawn(learner);
    let knows = async || cluster.status(learner).await.filter(|status| status.leader != 0);
    crate::harness::until("the learner knows its leader", knows).await;
    let endpoints = [0, learner].map(|number| cluster.endpoint(number).to_owned());
    let endpoints = [&*endpoints[0], &*endpoints[1]];
    for (check, expected) in [("--health-check=grpc", "is a learner"), ("--health-check=http", "non_learner")] {
        let mut gateway = gateway(&endpoints, &[check, PATIENT]);
        let reason = until(&mut gateway, "endpoint is down", endpoints[1]);
        assert!(reason.contains(expected), "{reason}");
        for _ in 0..4 {
            read(&client(&gateway.listen_addr)).await;
        }
    }
}

#[tokio::test]
async fn a_member_with_a_corrupt_alarm_is_left_out_by_http() {
    let deployment = Deployment::start(Target::Core, &[]).await;
    let mut gateway = gateway(&[&deployment.endpoint], &["--health-check=http", "--health-check-fall=1", PATIENT]);
    let alarm =
        |action: AlarmAction| AlarmRequest { action: action.into(), member_id: 5, alarm: AlarmType::Corrupt.into() };
    deployment.client.maintenance().alarm(alarm(AlarmAction::Activate)).await.expect("raised");
    let reason = until(&mut gateway, "endpoint is down", &deployment.endpoint);
    assert!(reason.starts_with("HTTP status 503: [-]data_corruption failed"), "{reason}");
    deployment.client.maintenance().alarm(alarm(AlarmAction::Deactivate)).await.expect("lifted");
    until(&mut gateway, "endpoint is back", &deployment.endpoint);
}

#[tokio::test]
async fn checks_speak_tls_and_verify_it() {
    let certificates = Certificates::new(&[]);
    let flags = certificates.client_flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let deployment = Deployment::start(Target::Core, &flags).await;
    let endpoint = format!("https://{}", deployment.secure);
    let shown: Vec<String> =
        certificates.dial_flags().iter().map(|flag| flag.replacen("--", "--health-check-", 1)).collect();
    let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
    for check in ["--health-check=grpc", "--health-check=http"] {
        let mut trusting = gateway(&[&endpoint], &[&[check, "--health-check-fall=1", PATIENT], &*shown].concat());
        let through = format!("https://{}", trusting.listen_addr).parse().expect("an endpoint");
        let config = ClientConfig { tls: Some(certificates.tls("nameless")), ..ClientConfig::new([through]) };
        read(&Client::connect(config).expect("client")).await;
        trusting.terminate();
        let mut log = String::new();
        trusting.log.read_to_string(&mut log).expect("readable");
        assert!(!log.contains("endpoint is down"), "{log}");
        // It knows no authority, and has no certificate that the member accepts.
        let mut strict = gateway(&[&endpoint], &[check, PATIENT]);
        let reason = until(&mut strict, "endpoint is down", &deployment.secure);
        assert!(reason.contains("certificate"), "{reason}");
    }
}
