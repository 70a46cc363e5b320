//! Members that are away, learn, or are replaced.

use std::time::Duration;

use tonic::Code;
use watershed::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseRevokeRequest, MemberPromoteRequest, MemberRemoveRequest, RangeRequest, WatchCreateRequest,
};

use super::{endpoints, get, put, try_put, under};
use crate::cluster::members::add;
use crate::cluster::story::on_three;
use crate::harness::{Cluster, Proxy, Watching, http_get, soon, until};

#[test]
fn while_all_are_away_calls_fail_and_then_everything_goes_on() {
    on_three(&[], async |cluster: &mut Cluster| {
        let proxy = Proxy::start(&endpoints(cluster, &[0, 1, 2])).await;
        let (mut watching, _) = Watching::create(&proxy.client, under("k/")).await;
        let first = put(&proxy.client, "k/1").await;
        assert_eq!(watching.events(1).await, [format!("+k/1=v@{first}")]);
        cluster.kill_all(&[0, 1, 2]);
        for _ in 0..3 {
            let read = soon("an answer", proxy.client.kv().range(get("k"))).await.expect_err("nobody is there");
            assert_eq!(read.code(), Code::Unavailable, "{read}");
            let write = soon("an answer", try_put(&proxy.client, "other")).await.expect_err("nobody is there");
            assert_eq!(write.code(), Code::Unavailable, "{write}");
        }
        (0..3).for_each(|number| cluster.spawn(number));
        let second = until("a write", async || try_put(&proxy.client, "k/2").await.ok()).await;
        // Writes that were answered with an error may have happened, and events may come together.
        let mut words = watching.events(1).await;
        while !words.contains(&format!("+k/2=v@{second}")) {
            words.extend(watching.events(1).await);
        }
        assert!(words.iter().all(|word| word.starts_with("+k/2=")), "{words:?}");
    });
}

#[test]
fn a_learner_is_not_asked_for_what_it_refuses() {
    on_three(&[], async |cluster: &mut Cluster| {
        let new = cluster.prepare();
        let id = add(cluster, new, true).await;
        cluster.introduce(new, &[0, 1, 2]);
        cluster.spawn(new);
        put(&cluster.member(0), "k").await;
        until("the learner has the data", async || {
            let request = RangeRequest { serializable: true, ..get("k") };
            let answer = cluster.member(new).kv().range(request).await.ok()?.into_inner();
            (answer.kvs.len() == 1).then_some(())
        })
        .await;
        let proxy = Proxy::start(&endpoints(cluster, &[0, new])).await;
        for _ in 0..100 {
            put(&proxy.client, "k").await;
            proxy.client.kv().range(get("k")).await.expect("a read");
            proxy.client.kv().range(RangeRequest { serializable: true, ..get("k") }).await.expect("a read");
            proxy.client.lease().lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.expect("a lease");
        }
        let (mut watching, _) = Watching::create(&proxy.client, under("k")).await;
        let revision = put(&proxy.client, "k").await;
        assert_eq!(watching.events(1).await, [format!("+k=v@{revision}")]);
        // Once it is a member like the others it serves alone.
        until("the learner is promoted", async || {
            cluster.member(0).cluster().member_promote(MemberPromoteRequest { id }).await.ok()
        })
        .await;
        cluster.kill(0);
        until("a write", async || try_put(&proxy.client, "k").await.ok()).await;
    });
}

/// The list of endpoints is that of a cluster whose members come and go.
#[test]
fn a_member_that_is_replaced_is_followed() {
    on_three(&[], async |cluster: &mut Cluster| {
        let flags = ["--endpoints-auto-sync-interval=1s"];
        let proxy = Proxy::start_with(&endpoints(cluster, &[0]), &flags).await;
        let (mut watching, _) =
            Watching::create(&proxy.client, WatchCreateRequest { key: "k".into(), ..Default::default() }).await;
        let new = cluster.prepare();
        add(cluster, new, false).await;
        cluster.introduce(new, &[0, 1, 2]);
        cluster.spawn(new);
        cluster.until_ready(new).await;
        let old = cluster.id(0).await;
        until("the member is removed", async || {
            cluster.member(1).cluster().member_remove(MemberRemoveRequest { id: old }).await.ok()
        })
        .await;
        cluster.kill(0);
        let revision = until("a write", async || {
            tokio::time::timeout(Duration::from_secs(2), try_put(&proxy.client, "k")).await.ok()?.ok()
        })
        .await;
        while !watching.events(1).await.contains(&format!("+k=v@{revision}")) {}
        // Also those that were there at the first look may go.
        cluster.kill(1);
        until("a write", async || {
            tokio::time::timeout(Duration::from_secs(2), try_put(&proxy.client, "k")).await.ok()?.ok()
        })
        .await;
    });
}

#[test]
fn the_metrics_of_a_member_are_shown_while_any_is_there() {
    on_three(&[], async |cluster: &mut Cluster| {
        let proxy = Proxy::start(&endpoints(cluster, &[0, 1, 2])).await;
        for away in 0..3 {
            cluster.kill(away);
            for _ in 0..6 {
                let page = http_get(&proxy.endpoint, "GET", "/metrics").await.expect("a page");
                assert_eq!(page.status, 200, "without member {away}: {}", page.body);
                assert!(page.body.contains("etcd_server_has_leader"), "{}", page.body);
            }
            cluster.restart(away).await;
        }
    });
}

/// CPU time of a process, in seconds.
fn cpu_seconds(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("a process");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name").1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("a number") + fields[12].parse::<u64>().expect("a number");
    // The kernel counts hundredths.
    ticks as f64 / 100.0
}

/// A proxy whose streams all broke at once may go round for ever, or forget what it registered.
#[test]
fn after_all_members_restarted_it_is_registered_and_idle_again() {
    on_three(&[], async |cluster: &mut Cluster| {
        let advertised = "10.0.0.1:2379";
        let flag = format!("--advertise-client-url={advertised}");
        let flags = ["--resolver-prefix=proxies", "--resolver-ttl=2", &flag];
        let proxy = Proxy::start_with(&endpoints(cluster, &[0, 1, 2]), &flags).await;
        let mut watches = Vec::new();
        for number in 0..20 {
            watches.push(Watching::create(&proxy.client, under(&format!("{number}/"))).await.0);
        }
        let registered = async |cluster: &Cluster| {
            let key = format!("proxies/{advertised}");
            let request = RangeRequest { key: key.into(), ..Default::default() };
            let answer = cluster.member(1).kv().range(request).await.ok()?.into_inner();
            Some(answer.kvs.first()?.lease)
        };
        let lease = until("the registration", async || registered(cluster).await).await;
        cluster.kill_all(&[0, 1, 2]);
        (0..3).for_each(|number| cluster.spawn(number));
        // As if it had ended while they were away.
        until("the lease is gone", async || {
            let revoke = LeaseRevokeRequest { id: lease };
            match cluster.member(1).lease().lease_revoke(revoke).await {
                Ok(_) => Some(()),
                Err(status) => (status.code() == Code::NotFound).then_some(()),
            }
        })
        .await;
        until("another registration", async || registered(cluster).await.filter(|other| *other != lease)).await;
        for (number, watching) in watches.iter_mut().enumerate() {
            let key = format!("{number}/k");
            let revision = put(&cluster.member(1), key.clone()).await;
            assert_eq!(watching.events(1).await, [format!("+{key}=v@{revision}")]);
        }
        let idle = async {
            loop {
                let before = cpu_seconds(proxy.id());
                tokio::time::sleep(Duration::from_millis(500)).await;
                if cpu_seconds(proxy.id()) - before < 0.1 {
                    break;
                }
            }
        };
        soon("a process that has nothing to do", idle).await;
    });
}
