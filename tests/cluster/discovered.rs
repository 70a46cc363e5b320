//! Clusters whose members find each other by SRV records or by a token.

use std::time::Duration;

use tempfile::TempDir;
use watershed::client::Client;
use watershed::pb::etcdserverpb::{MemberListRequest, PutRequest, RangeRequest};

use crate::harness::{Deployment, DnsServer, Process, Target, client, free_port, is_stock, run, server_binary, until};

/// Three members that are told the same, and where clients reach them.
pub(super) struct Found {
    pub(super) processes: Vec<Process>,
    pub(super) clients: Vec<Client>,
    pub(super) folder: TempDir,
}

/// Flags of a member on these ports, without what finds the others.
pub(super) fn member_flags(number: usize, ports: (u16, u16)) -> Vec<String> {
    let (client, peer) = ports;
    vec![
        format!("--name=m{number}"),
        format!("--data-dir=data-{number}"),
        format!("--listen-client-urls=http://127.0.0.1:{client}"),
        format!("--advertise-client-urls=http://127.0.0.1:{client}"),
        format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
        format!("--initial-advertise-peer-urls=http://localhost:{peer}"),
    ]
}

impl Found {
    pub(super) fn start(ports: &[(u16, u16)], flags: &[String]) -> Self {
        let folder = TempDir::new().expect("temporary directory");
        let start = |(number, &ports): (usize, &(u16, u16))| {
            let args = [member_flags(number, ports), flags.to_vec()].concat();
            Process::start(&server_binary(), &args, folder.path(), &format!("m{number}"))
        };
        let processes = ports.iter().enumerate().map(start).collect();
        let clients = ports.iter().map(|(port, _)| client(&format!("127.0.0.1:{port}"))).collect();
        Self { processes, clients, folder }
    }

    /// Waits until each member serves, and shows all of them under their names.
    pub(super) async fn until_complete(&self) {
        for client in &self.clients {
            until("a complete cluster", async || {
                let list = client.cluster().member_list(MemberListRequest { linearizable: true }).await.ok()?;
                let mut names: Vec<_> = list.into_inner().members.into_iter().map(|member| member.name).collect();
                names.sort();
                (names == ["m0", "m1", "m2"]).then_some(())
            })
            .await;
        }
        let put = PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
        self.clients[0].kv().put(put).await.expect("a write");
        for client in &self.clients {
            let read = client.kv().range(RangeRequest { key: "k".into(), ..Default::default() }).await;
            assert_eq!(read.expect("a read").into_inner().count, 1);
        }
    }
}

pub(super) fn ports() -> [(u16, u16); 3] {
    std::array::from_fn(|_| (free_port(), free_port()))
}

#[test]
fn members_find_each_other_in_srv_records() {
    if is_stock() {
        return;
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(async {
        let (dns, ports) = (DnsServer::start(), ports());
        // The system has to know the name too, as members dial it: every system knows this one.
        let targets: Vec<_> = ports.iter().map(|(_, peer)| (0, 0, *peer)).collect();
        dns.put("_etcd-server-west._tcp.example.test", "localhost", &targets);
        let srv = ["--discovery-srv=example.test".to_owned(), "--discovery-srv-name=west".to_owned()];
        let flags = [srv.to_vec(), vec![format!("--discovery-dns={}", dns.address)]].concat();
        let mut found = Found::start(&ports, &flags);
        found.until_complete().await;
        // With data, DNS is not asked any more.
        dns.change(|zone| zone.services.clear());
        found.processes[2].kill();
        let args = [member_flags(2, ports[2]), flags.clone()].concat();
        found.processes[2] = Process::start(&server_binary(), &args, found.folder.path(), "m2");
        found.until_complete().await;
        // A member that is not among them does not start, nor one for which there is nothing.
        let stranger = (free_port(), free_port());
        let refused = |flags: &[String]| {
            let folder = TempDir::new().expect("temporary directory");
            let args = [member_flags(9, stranger), flags.to_vec()].concat();
            let mut process = Process::start(&server_binary(), &args, folder.path(), "stranger");
            assert_eq!(process.wait(Duration::from_secs(60)).code(), Some(1));
            assert!(!folder.path().join("data-9/member/wal").exists());
            process.output()
        };
        let output = refused(&flags);
        assert!(
            output.contains("no SRV records") && output.contains("_etcd-server-ssl-west._tcp.example.test"),
            "{output}"
        );
        dns.put("_etcd-server-west._tcp.example.test", "localhost", &targets);
        let output = refused(&flags);
        assert!(output.contains("cannot find local etcd member \"m9\" in SRV records"), "{output}");
        dns.put("_etcd-server-ssl-other._tcp.example.test", "localhost", &targets);
        let other = [flags[0].clone(), "--discovery-srv-name=other".to_owned(), flags[2].clone()];
        let output = refused(&other);
        assert!(output.contains("with TLS") && output.contains("--initial-advertise-peer-urls"), "{output}");
    });
}

#[test]
fn members_find_each_other_by_a_token() {
    run(Target::Core, &[], async |registry: &mut Deployment| {
        let token = |token: &str| {
            vec![format!("--discovery-token={token}"), format!("--discovery-endpoints=http://{}", registry.member)]
        };
        let refused = |flags: Vec<String>| {
            let folder = TempDir::new().expect("temporary directory");
            let args = [member_flags(9, (free_port(), free_port())), flags].concat();
            let mut process = Process::start(&server_binary(), &args, folder.path(), "surplus");
            assert_eq!(process.wait(Duration::from_secs(60)).code(), Some(1));
            process.output()
        };
        let output = refused(token("unknown"));
        assert!(output.contains("discovery: size key not found"), "{output}");
        registry.put("/_etcd/registry/bad/_config/size", "-1").await;
        let output = refused(token("bad"));
        assert!(output.contains("discovery: size key is bad"), "{output}");
        registry.put("/_etcd/registry/t/_config/size", "3").await;
        let ports = ports();
        let mut found = Found::start(&ports, &token("t"));
        found.until_complete().await;
        let keys = registry.range(crate::harness::prefix("/_etcd/registry/t/members/")).await;
        let mut entries: Vec<_> =
            keys.kvs.iter().map(|pair| String::from_utf8_lossy(&pair.value).into_owned()).collect();
        entries.sort();
        let expected = (0..3).map(|number| format!("m{number}=http://localhost:{}", ports[number].1));
        assert_eq!(entries, expected.collect::<Vec<_>>());
        // The cluster has all its members: one more ends.
        let output = refused(token("t"));
        assert!(output.contains("discovery: cluster is full"), "{output}");
        // With data, the registry is not needed any more.
        registry.server.kill();
        found.processes[1].kill();
        let args = [member_flags(1, ports[1]), token("t")].concat();
        found.processes[1] = Process::start(&server_binary(), &args, found.folder.path(), "m1");
        found.until_complete().await;
    });
}
