//! A thousand tenants in one process.

use std::collections::BTreeSet;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use watershed::pb::etcdserverpb::*;

use super::{Tier, answers, put, watch_all};
use crate::harness::{Deployment, Target, Watching, client, free_port, in_words, run};

const TENANTS: usize = 1000;
/// Tenants that have clients.
const ACTIVE: usize = 100;

/// Connections to the member, as the kernel has them.
fn connections(member: &str) -> usize {
    let port: u16 = member.rsplit_once(':').expect("a port").1.parse().expect("a number");
    let remote = format!(":{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the table");
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // The fields are: number, local address, remote address, state; 01 is established.
    rows.filter(|row| row.get(2).is_some_and(|address| address.ends_with(&remote)) && row.get(3) == Some(&"01")).count()
}

fn resident_bytes(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the line");
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().expect("a number") * 1024
}

#[test]
fn tenants_share_what_they_need_of_the_cluster() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let port = free_port();
        // Each has an address of its own; they are all this host.
        let listen = |number: usize| {
            format!("127.{}.{}.{}:{port}", 1 + number / 250 / 250, number / 250 % 250, 1 + number % 250)
        };
        let tenant = |number: usize| {
            let listen = listen(number);
            format!(
                "- {{name: t{number}, namespace: /t{number}/, match: [{{listen: '{listen}'}}], limits: {{watches: 9}}}}\n"
            )
        };
        let file = format!("tenants:\n{}", (0..TENANTS).map(tenant).collect::<String>());
        let before = connections(&deployment.member);
        let tier = Tier::start(deployment, &file, &["--serving-threads=2".to_owned()]);
        let first = client(&listen(0));
        answers(&first).await;
        let idle = resident_bytes(tier.process.id());
        let mut open = Vec::new();
        for number in 0..ACTIVE {
            let tenant = client(&listen(number * 7));
            let (watching, created) = Watching::create(&tenant, watch_all()).await;
            assert!(!created.canceled, "{created:?}");
            let grant = tenant.lease().lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await.expect("grant");
            let lease = grant.into_inner().id;
            let (sender, requests) = mpsc::channel(1);
            let mut alive =
                tenant.lease().lease_keep_alive(ReceiverStream::new(requests)).await.expect("a stream").into_inner();
            sender.send(LeaseKeepAliveRequest { id: lease }).await.expect("sent");
            assert!(alive.message().await.expect("open").expect("an answer").ttl > 0);
            open.push((tenant, watching, sender, alive));
        }
        let busy = resident_bytes(tier.process.id());
        let connections = connections(&deployment.member) - before;
        let watches = tier.metric("watershed_proxy_upstream_watches ").await.expect("the metric");
        println!(
            "{TENANTS} tenants: {} kB; {ACTIVE} of them with a watch and a lease: {} kB each, {connections} connections and {watches} watches upstream",
            idle / 1024,
            (busy - idle) / ACTIVE / 1024
        );
        // The first has read: its watch may be that of what is cached of it.
        let (each, all_but_one) = (ACTIVE as u64, ACTIVE as u64 - 1);
        assert!([each, all_but_one].contains(&watches), "{watches} upstream watches");
        // Two threads with a connection for each kind of request, those of the watches, of permissions and of health checks.
        assert!(connections <= 24, "{connections} connections upstream");
        assert!((busy - idle) / ACTIVE < 512 * 1024, "{} bytes for a tenant", (busy - idle) / ACTIVE);
        // Each sees its own event and no other.
        let mut seen = BTreeSet::new();
        for (tenant, watching, ..) in &mut open {
            let header = tenant.kv().put(put("k", "v")).await.expect("put").into_inner().header.expect("header");
            assert_eq!(in_words(&watching.next().await), [format!("+k=v@{}", header.revision)]);
            assert!(seen.insert(header.revision));
        }
    });
}
