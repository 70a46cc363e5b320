//! Proxies that register themselves (`--resolver-prefix`), and namespaces of any bytes.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use watershed::client::Client;
use watershed::pb::etcdserverpb::{
    AuthDisableRequest, AuthEnableRequest, LeaseLeasesRequest, MemberListRequest, PutRequest, RangeRequest,
};

use super::auth::{FLAGS, auth_of, enable, with};
use crate::harness::{Deployment, Process, Target, client, free_port, http_get, own_binary, prefix, run, until};

/// A proxy that registers under `proxies`, and its endpoint.
fn registered(deployment: &Deployment, flags: &[&str]) -> (Process, String) {
    let endpoint = format!("127.0.0.1:{}", free_port());
    let own = [
        format!("--endpoints={}", deployment.member),
        format!("--listen-addr={endpoint}"),
        "--resolver-prefix=proxies".to_owned(),
        "--resolver-ttl=2".to_owned(),
    ];
    let args: Vec<String> = ["grpc-proxy", "start"].into_iter().map(str::to_owned).chain(own).collect();
    let args: Vec<String> = args.into_iter().chain(flags.iter().map(|&flag| flag.to_owned())).collect();
    (Process::start(&own_binary(), &args, deployment.folder.path(), "proxy"), endpoint)
}

/// The URLs in a proxy's MemberList.
async fn listed(client: &Client) -> Option<Vec<String>> {
    let answer = client.cluster().member_list(MemberListRequest::default()).await.ok()?.into_inner();
    Some(answer.members.into_iter().flat_map(|member| member.client_ur_ls).collect())
}

/// Waits until a proxy lists exactly these.
async fn until_listed(client: &Client, endpoints: &[&String]) {
    let mut expected: Vec<String> = endpoints.iter().map(|endpoint| format!("http://{endpoint}")).collect();
    expected.sort();
    until("the list of proxies", async || (listed(client).await? == expected).then_some(())).await;
}

#[test]
fn a_gateway_divides_connections_between_registered_proxies() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let (first, _) = registered(deployment, &[]);
        let (listen, pages) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let flags = [format!("--endpoints={}", deployment.member), format!("--listen-addr={listen}")];
        let more = [format!("--metrics-addr={pages}"), "--resolver-prefix=proxies".to_owned()];
        let args: Vec<String> = ["gateway", "start"].into_iter().map(str::to_owned).chain(flags).chain(more).collect();
        let gateway = Process::start(&own_binary(), &args, deployment.folder.path(), "gateway");
        let endpoints = async |count: usize| {
            let line = format!("watershed_discovery_endpoints{{source=\"registered endpoints\"}} {count}\n");
            until("the endpoints", async || {
                http_get(&pages, "GET", "/metrics").await.ok().filter(|page| page.body.contains(&line))
            })
            .await;
        };
        endpoints(1).await;
        let (second, _) = registered(deployment, &[]);
        endpoints(2).await;
        deployment.put("k", "v").await;
        let by_gateway = client(&listen);
        until("a read", async || by_gateway.kv().range(prefix("k")).await.ok()).await;
        // The proxy that answers is the only member that clients see.
        assert!(listed(&by_gateway).await.expect("a list").iter().all(|url| !url.contains(&deployment.member)));
        first.terminate();
        endpoints(1).await;
        until("a read", async || by_gateway.kv().range(prefix("k")).await.ok()).await;
        // The last set stays when nothing is registered any more. The gateway reads the junk after the end of the second proxy.
        second.terminate();
        until("the end", async || deployment.range(prefix("proxies/")).await.kvs.is_empty().then_some(())).await;
        deployment.put("proxies/junk", r#"{"Op":0,"Addr":"no port"}"#).await;
        let message = "registered address cannot be dialled, it is left out";
        until("the junk", async || gateway.output().contains(message).then_some(())).await;
        endpoints(1).await;
    });
}

#[test]
fn proxies_that_share_a_prefix_list_each_other() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let (first, one) = registered(deployment, &[]);
        let (mut second, two) = registered(deployment, &[]);
        let (by_one, by_two) = (client(&one), client(&two));
        until_listed(&by_one, &[&one, &two]).await;
        until_listed(&by_two, &[&one, &two]).await;
        // As etcd's naming package has it, so that gRPC's resolvers find them.
        let entries = deployment.range(prefix("proxies/")).await.kvs;
        let mut expected = [&one, &two].map(|endpoint| format!("proxies/{endpoint}"));
        expected.sort();
        assert_eq!(
            entries.iter().map(|kv| kv.key.as_ref()).collect::<Vec<_>>(),
            expected.each_ref().map(String::as_bytes)
        );
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
        let value = format!(r#"{{"Op":0,"Addr":"{one}","Metadata":"{{\"name\":\"{}\"}}"}}"#, host.trim());
        let mine = entries.iter().find(|kv| kv.key.ends_with(one.as_bytes())).expect("registered");
        assert_eq!(std::str::from_utf8(&mine.value), Ok(value.as_str()));
        assert_ne!(mine.lease, 0);
        // What is no registration changes nothing.
        for (key, value) in [("proxies/x", "junk"), ("proxies/y", r#"{"Op":0,"Addr":"a:1"}"#), ("proxiesz", &value)] {
            deployment.put(key, value.to_owned()).await;
        }
        let extra = value.replace(one.as_str(), "10.0.0.1:1");
        deployment.put("proxies/0", extra).await;
        let other = "10.0.0.1:1".to_owned();
        until_listed(&by_two, &[&other, &one, &two]).await;
        deployment.delete("proxies/0").await;
        until_listed(&by_two, &[&one, &two]).await;
        // One that is told to stop takes its registration along.
        first.terminate();
        until_listed(&by_two, &[&two]).await;
        let leases = deployment.client.lease().lease_leases(LeaseLeasesRequest {}).await.expect("leases").into_inner();
        assert_eq!(leases.leases.len(), 1);
        // One that is killed while the member is away is gone once its lease has ended, and another one comes.
        deployment.server.kill();
        second.kill();
        let (_third, three) = registered(deployment, &[]);
        deployment.start_member_again().await;
        until_listed(&client(&three), &[&three]).await;
    });
}

#[test]
fn a_registration_needs_the_proxys_user_where_users_are_required() {
    run(Target::Core, &FLAGS, async |deployment: &mut Deployment| {
        let root = enable(deployment).await;
        let (_proxy, endpoint) = registered(deployment, &["--user=root:root", "--namespace=n/"]);
        until_listed(&client(&endpoint), &[&endpoint]).await;
        // Its clients see it, in the namespace, as behind etcd's proxy.
        let read = async |client: &Client, key: String| {
            let request = RangeRequest { key: key.into(), ..Default::default() };
            client.kv().range(with(&root, request)).await.ok().map(|answer| answer.into_inner().count)
        };
        let member = deployment.member_client();
        until("the registration", async || (read(&member, format!("n/proxies/{endpoint}")).await? == 1).then_some(()))
            .await;
        assert_eq!(read(&client(&endpoint), format!("proxies/{endpoint}")).await, Some(1));
    });
}

/// Cause: a token was refused in the trailers of the stream that keeps the lease alive, and nobody took notice: the proxy did not log in
/// again, and neither kept its registration nor made another one.
#[test]
fn a_registration_outlives_the_token_it_was_made_with() {
    run(Target::Core, &FLAGS, async |deployment: &mut Deployment| {
        let root = enable(deployment).await;
        // Without the cache nothing else logs the user in again.
        let (_proxy, endpoint) = registered(deployment, &["--user=root:root", "--cache=off"]);
        until_listed(&client(&endpoint), &[&endpoint]).await;
        // The member forgets all tokens.
        let mut auth = auth_of(&deployment.endpoint);
        auth.auth_disable(with(&root, AuthDisableRequest {})).await.expect("off");
        auth.auth_enable(AuthEnableRequest {}).await.expect("on");
        let renewals = async || {
            let page = http_get(&deployment.member, "GET", "/metrics").await.ok()?.body;
            page.lines().find_map(|line| line.strip_prefix("etcd_debugging_lease_renewed_total ")?.parse::<u64>().ok())
        };
        let before = renewals().await.expect("a count");
        until("a renewal", async || (renewals().await? > before).then_some(())).await;
    });
}

/// etcd's proxy takes any bytes. Ours refused those that are no text.
#[test]
fn a_namespace_is_any_bytes() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let forms = [b"--namespace=a\xff/".to_vec(), b"--namespace-hex=61ff2f".to_vec()];
        for (number, flag) in forms.into_iter().enumerate() {
            let endpoint = format!("127.0.0.1:{}", free_port());
            let mut args: Vec<OsString> = ["grpc-proxy", "start"].map(OsString::from).to_vec();
            args.push(format!("--endpoints={}", deployment.member).into());
            args.push(format!("--listen-addr={endpoint}").into());
            args.push(OsString::from_vec(flag));
            let proxy = Process::start(&own_binary(), &args, deployment.folder.path(), "proxy");
            let tenant = client(&endpoint);
            let put = PutRequest { key: format!("k{number}").into(), ..Default::default() };
            until("the proxy", async || tenant.kv().put(put.clone()).await.ok()).await;
            let key = [b"a\xff/k".as_slice(), number.to_string().as_bytes()].concat();
            assert_eq!(deployment.get(key).await.count, 1);
            assert!(proxy.output().contains(r"a\\xff/"), "{}", proxy.output());
        }
    });
}
