//! The file of tenants changes while the proxy runs.

use tonic::Code;
use watershed::pb::etcdserverpb::*;

use super::{Tier, address, all, answers, keys, put, two, watch_all};
use crate::harness::{Deployment, PATIENCE, Target, Watching, client, in_words, refused, run, soon, until};

const CHANGED: &str = "the tenants of the gRPC proxy have changed";

#[test]
fn a_change_touches_only_the_tenants_that_it_is_about() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let [a, b, c] = [address(), address(), address()];
        let tier = Tier::start(deployment, &two(&a, &b), &[]);
        let (of_a, of_b) = (client(&a), client(&b));
        answers(&of_a).await;
        answers(&of_b).await;
        let (mut kept, _) = Watching::create(&of_a, watch_all()).await;
        let (ended, _) = Watching::create(&of_b, watch_all()).await;
        let id = of_a.lease().lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.expect("grant").into_inner().id;
        let (sender, requests) = tokio::sync::mpsc::channel(1);
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut alive = of_a.lease().lease_keep_alive(requests).await.expect("a stream").into_inner();

        // `b` goes, `c` comes with a listener of its own, and `a` gets one more way to be itself.
        let file = format!(
            "tenants:\n\
             - {{name: c, namespace: t/c/, match: [{{listen: '{c}'}}]}}\n\
             - {{name: a, namespace: t/a/, match: [{{listen: '{main}'}}, {{listen: '{a}'}}]}}\n",
            main = tier.main
        );
        tier.replace(&file, "taken").await;
        let mut ended = ended.half_close();
        let end = soon("the end of the stream", async {
            loop {
                match ended.message().await {
                    Ok(answer) => assert!(answer.is_some(), "ended without a reason"),
                    Err(status) => break status,
                }
            }
        });
        refused::<()>(Err(end.await), Code::Unavailable, CHANGED);
        until("the listener is closed", async || tokio::net::TcpStream::connect(&b).await.err()).await;
        let revision =
            client(&tier.main).kv().put(put("k", "v")).await.expect("put").into_inner().header.expect("header");
        assert_eq!(in_words(&kept.next().await), [format!("+k=v@{}", revision.revision)]);
        sender.send(LeaseKeepAliveRequest { id }).await.expect("sent");
        assert!(alive.message().await.expect("the stream is open").expect("an answer").ttl > 0);
        let of_c = client(&c);
        answers(&of_c).await;
        assert!(keys(&of_c).await.is_empty());
        assert_eq!(tier.metric("watershed_proxy_tenants ").await, Some(2));
    });
}

#[test]
fn a_file_that_is_wrong_changes_nothing() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let [a, b] = [address(), address()];
        let tier = Tier::start(deployment, &two(&a, &b), &[]);
        let of_a = client(&a);
        answers(&of_a).await;
        let (mut watching, _) = Watching::create(&of_a, watch_all()).await;
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let taken = two(&a, &taken.local_addr().expect("bound").to_string());
        for (file, reason) in [
            ("tenants:\n- name: a\n  nmespace: t/\n", "tenants.yaml: line 2: tenants[0]: needs a namespace"),
            ("tenants: [\n", "tenants.yaml: yaml: line"),
            (taken.as_str(), "listen: 127.0.0.1:"),
        ] {
            tier.replace(file, "refused").await;
            let output = tier.process.output();
            assert!(output.contains(reason) && output.contains("changed file of tenants not used"), "{output}");
            let header = of_a.kv().put(put("k", "v")).await.expect("put").into_inner().header.expect("header");
            assert_eq!(in_words(&watching.next().await), [format!("+k=v@{}", header.revision)]);
            client(&b).kv().range(all()).await.expect("served as before");
        }
        assert_eq!(tier.reloads("taken").await, 0);
    });
}

#[test]
fn a_changed_file_is_noticed_without_a_signal() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let [a, b] = [address(), address()];
        let tier = Tier::start(deployment, &two(&a, &b), &[]);
        answers(&client(&a)).await;
        // Another namespace makes it another tenant.
        std::fs::write(tier.file(), two(&a, &b).replace("t/a/", "t/other/")).expect("written");
        let changed = until("the file is read", async || (tier.reloads("taken").await > 0).then_some(()));
        tokio::time::timeout(PATIENCE, changed).await.expect("within a few seconds");
        client(&a).kv().put(put("k", "v")).await.expect("put");
        assert_eq!(deployment.get("t/other/k").await.count, 1);
    });
}

#[test]
fn a_change_while_the_first_member_is_waited_for_counts() {
    // Cause: the file was compared with what it was when the proxy began to serve, not with what it was when it was read.
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let [a, b] = [address(), address()];
        deployment.put("/_etcd/registry/t/_config/size", "1").await;
        let flags = ["--discovery-token=t".to_owned(), format!("--discovery-endpoints=http://{}", deployment.member)];
        let tier = Tier::start(deployment, &two(&a, &b), &flags);
        let message = "waiting for members to register";
        until("the wait", async || tier.process.output().contains(message).then_some(())).await;
        std::fs::write(tier.file(), two(&a, &b).replace("t/a/", "t/other/")).expect("written");
        deployment.put("/_etcd/registry/t/members/1", format!("m1={}", deployment.peer_url())).await;
        until("the file is read", async || (tier.reloads("taken").await > 0).then_some(())).await;
        client(&a).kv().put(put("k", "v")).await.expect("put");
        assert_eq!(deployment.get("t/other/k").await.count, 1);
    });
}

#[test]
fn a_wait_for_a_lock_ends_with_the_tenant() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let [a, b] = [address(), address()];
        let tier = Tier::start(deployment, &two(&a, &b), &[]);
        let of_b = client(&b);
        answers(&of_b).await;
        let grant = async || {
            of_b.lease().lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.expect("grant").into_inner().id
        };
        let (first, second) = (grant().await, grant().await);
        use watershed::pb::v3lockpb::LockRequest;
        of_b.lock().lock(LockRequest { name: "L".into(), lease: first }).await.expect("locked");
        let mut locks = of_b.lock();
        let waiting = locks.lock(LockRequest { name: "L".into(), lease: second });
        let replaced = async {
            until("the wait begins", async || {
                let all = deployment.range(crate::harness::prefix("t/b/L/")).await;
                (all.count == 2).then_some(())
            })
            .await;
            tier.replace(&two(&a, &b).replace("t/b/", "t/c/"), "taken").await;
        };
        let (answer, ()) = tokio::join!(waiting, replaced);
        assert_eq!(answer.expect_err("ended").code(), Code::Unavailable);
    });
}
