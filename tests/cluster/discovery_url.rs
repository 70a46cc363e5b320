//! Clusters whose members find each other by a URL of `watershed discovery serve`.

use std::time::Duration;

use tempfile::TempDir;
use watershed::pb::etcdserverpb::RangeRequest;

use super::discovered::{Found, member_flags, ports};
use crate::harness::{
    Certificates, Deployment, HttpProxy, Process, Registry, Target, free_port, is_stock, run, server_binary, until,
};

/// The output of a member with the flags, which ends by itself.
fn refused(number: usize, flags: &[String]) -> String {
    let folder = TempDir::new().expect("temporary directory");
    let args = [member_flags(number, (free_port(), free_port())), flags.to_vec()].concat();
    let mut process = Process::start(&server_binary(), &args, folder.path(), "refused");
    assert_eq!(process.wait(Duration::from_secs(60)).code(), Some(1));
    assert!(!folder.path().join(format!("data-{number}/member/wal")).exists());
    process.output()
}

#[test]
fn members_find_each_other_by_a_url() {
    if is_stock() {
        return;
    }
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let registry = Registry::start(deployment, &[]).await;
        let token = registry.token(3).await;
        let (flags, ports) = (registry.flags(&token), ports());
        let mut found = Found::start(&ports, &flags);
        found.until_complete().await;
        let page = registry.ask("GET", "/metrics").await.body;
        assert!(page.contains("watershed_registry_members_registered_total 3\n"), "{page}");
        // One more ends, and a member that comes again without its data.
        let output = refused(9, &flags);
        assert!(output.contains("failed to join discovery cluster: discovery: cluster is full"), "{output}");
        let again = format!("--initial-advertise-peer-urls=http://localhost:{}", ports[0].1);
        let output = refused(0, &[flags.clone(), vec![again]].concat());
        assert!(output.contains("discovery: found duplicate id"), "{output}");
        // With data, the registry is not needed any more.
        drop(registry);
        found.processes[1].kill();
        let args = [member_flags(1, ports[1]), flags].concat();
        found.processes[1] = Process::start(&server_binary(), &args, found.folder.path(), "m1");
        found.until_complete().await;
    });
}

#[test]
fn what_is_wrong_with_a_url_is_said() {
    if is_stock() {
        return;
    }
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let registry = Registry::start(deployment, &[]).await;
        let output = refused(1, &registry.flags("/unknown"));
        assert!(output.contains("discovery: size key not found"), "{output}");
        deployment.put("/_etcd/registry/bad/_config/size", "x").await;
        let output = refused(1, &registry.flags("/bad"));
        assert!(output.contains("discovery: size key is bad"), "{output}");
        let token = registry.token(2).await;
        let other = registry.ask("PUT", &format!("{token}/77?prevExist=false&value=m1=http://h:1")).await;
        assert_eq!(other.status, 201);
        let output = refused(1, &registry.flags(&token));
        assert!(
            output.contains("discovery: found duplicate name: two members are registered under the name m1"),
            "{output}"
        );
        let token = registry.token(2).await;
        let other = registry.ask("PUT", &format!("{token}/77?prevExist=false&value=m2=ftp://h:1")).await;
        assert_eq!(other.status, 201);
        let output = refused(1, &registry.flags(&token));
        assert!(output.contains("discovery: invalid URL"), "{output}");
        // What answers there is no registry.
        let output = refused(1, &[format!("--discovery=http://{}/nothing/t", deployment.member)]);
        assert!(output.contains("discovery: bad discovery endpoint"), "{output}");
        let output = refused(1, &["--discovery=http://d/t".to_owned(), "--discovery-srv=a".to_owned()]);
        assert!(output.contains("multiple discovery or bootstrap flags are set"), "{output}");
    });
}

#[test]
fn a_registry_that_is_away_is_waited_for() {
    if is_stock() {
        return;
    }
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let address = format!("127.0.0.1:{}", free_port());
        deployment.put("/_etcd/registry/t/_config/size", "1").await;
        let folder = TempDir::new().expect("temporary directory");
        let ports = (free_port(), free_port());
        let args = [member_flags(0, ports), vec![format!("--discovery=http://{address}/t")]].concat();
        let process = Process::start(&server_binary(), &args, folder.path(), "m0");
        until("a question without an answer", async || {
            process.output().contains("the registry of members does not answer, it is asked again").then_some(())
        })
        .await;
        let _registry = Registry::start_at(address, deployment, &[]).await;
        let client = crate::harness::client(&format!("127.0.0.1:{}", ports.0));
        let read = RangeRequest { key: "k".into(), ..Default::default() };
        until("the start", async || client.kv().range(read.clone()).await.ok()).await;
    });
}

#[test]
fn a_registry_is_reached_through_an_http_proxy() {
    if is_stock() {
        return;
    }
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let (registry, proxy) = (Registry::start(deployment, &[]).await, HttpProxy::start());
        let token = registry.token(3).await;
        let through = vec![format!("--discovery-proxy=me:secret@{}", proxy.address)];
        let found = Found::start(&ports(), &[registry.flags(&token), through].concat());
        found.until_complete().await;
        let asked = proxy.asked();
        let beginnings =
            [format!("GET http://{}{token}", registry.address), format!("PUT http://{}{token}/", registry.address)];
        for beginning in beginnings {
            assert!(asked.iter().filter(|head| head.starts_with(&beginning)).count() >= 3, "{beginning}: {asked:?}");
        }
        // Base64 of "me:secret".
        let has_user =
            |head: &String| head.to_ascii_lowercase().contains("proxy-authorization: basic bwu6c2vjcmv0\r\n");
        assert!(asked.iter().all(has_user), "{asked:?}");
    });
}

#[test]
fn a_registry_with_tls_is_reached_directly_and_through_a_tunnel() {
    if is_stock() {
        return;
    }
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let certificates = Certificates::new(&[]);
        let (registry, proxy) = (Registry::start_secured(&certificates, deployment), HttpProxy::start());
        let authority = certificates.dial_flags()[0].replace("--cacert", "--discovery-cacert");
        for (token, more) in
            [("direct", None), ("tunnel", Some(format!("--discovery-proxy=http://me:secret@{}", proxy.address)))]
        {
            deployment.put(format!("/_etcd/registry/{token}/_config/size"), "3").await;
            let url = format!("--discovery=https://{}/{token}", registry.address);
            let flags: Vec<String> = [url, authority.clone()].into_iter().chain(more).collect();
            let found = Found::start(&ports(), &flags);
            found.until_complete().await;
        }
        let asked = proxy.asked();
        let connect = format!("CONNECT {} HTTP/1.1\r\n", registry.address);
        let fits =
            |head: &String| head.starts_with(&connect) && head.contains("Proxy-Authorization: Basic bWU6c2VjcmV0\r\n");
        assert!(asked.len() >= 3 && asked.iter().all(fits), "{asked:?}");
        // Nobody vouches for its certificate.
        let folder = TempDir::new().expect("temporary directory");
        let args = [
            member_flags(9, (free_port(), free_port())),
            vec![format!("--discovery=https://{}/direct", registry.address)],
        ]
        .concat();
        let process = Process::start(&server_binary(), &args, folder.path(), "stranger");
        until("a certificate that is not accepted", async || {
            let output = process.output();
            (output.contains("the registry of members does not answer") && output.contains("certificate")).then_some(())
        })
        .await;
    });
}
