//! `hasleader`: clients that want a leader are refused where there is none.

use tonic::{Code, Status};
use watershed::client::{Client, ClientConfig};
use watershed::pb::etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveRequest, WatchCreateRequest};

use super::{endpoints, get, put, try_put};
use crate::cluster::story::on_three;
use crate::harness::{Answers, Cluster, Proxy, Watching, client, soon, until};

const NO_LEADER: (Code, &str) = (Code::Unavailable, "etcdserver: no leader");

/// A client that wants members to have a leader.
fn strict(endpoint: &str) -> Client {
    let config = ClientConfig::new([endpoint.parse().expect("an endpoint")]);
    Client::connect(ClientConfig { require_leader: true, ..config }).expect("client")
}

fn key(key: &'static str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.into(), ..Default::default() }
}

fn parts(status: &Status) -> (Code, &str) {
    (status.code(), status.message())
}

/// How a watch stream ends.
async fn end_of(mut answers: Answers<watershed::pb::etcdserverpb::WatchResponse>) -> Status {
    loop {
        if let Err(status) =
            soon("the end of the stream", answers.message()).await.map(|answer| answer.expect("no end"))
        {
            return status;
        }
    }
}

#[test]
fn a_member_that_is_cut_off_refuses_through_the_proxy_too() {
    on_three(&[], async |cluster: &mut Cluster| {
        let follower = cluster.follower().await;
        let lease = {
            let grant = LeaseGrantRequest { ttl: 600, id: 0 };
            cluster.member(follower).lease().lease_grant(grant).await.expect("grant").into_inner().id
        };
        let proxy = Proxy::start(&endpoints(cluster, &[follower])).await;
        let (direct, through) = (strict(cluster.endpoint(follower)), strict(&proxy.endpoint));
        let (watching, _) = Watching::create(&through, key("k")).await;
        cluster.network.around(&[follower], |link| link.cut = true);
        until("the member has lost its leader", async || {
            let status = direct.kv().range(get("k")).await.err()?;
            (parts(&status) == NO_LEADER).then_some(())
        })
        .await;
        assert_eq!(parts(&end_of(watching.half_close()).await), NO_LEADER, "an open watch");
        let refusal = through.kv().range(get("k")).await.expect_err("a read");
        assert_eq!(parts(&refusal), NO_LEADER);
        let refusal = try_put(&through, "k").await.expect_err("a write");
        assert_eq!(parts(&refusal), NO_LEADER);
        let new = Watching::open(&through);
        new.ask(key("k")).await;
        assert_eq!(parts(&end_of(new.half_close()).await), NO_LEADER, "a new watch");
        let mut leases = through.lease();
        let asked = tokio_stream::once(LeaseKeepAliveRequest { id: lease });
        let mut kept = Answers::new(async move { leases.lease_keep_alive(asked).await });
        let refusal = soon("a refusal", kept.message()).await.expect_err("a keep-alive");
        assert_eq!(parts(&refusal), NO_LEADER);
        cluster.network.heal();
        until("a write", async || try_put(&through, "k").await.ok()).await;
    });
}

#[test]
fn without_a_quorum_watches_end_that_want_a_leader_and_no_others() {
    on_three(&[], async |cluster: &mut Cluster| {
        let proxy = Proxy::start(&endpoints(cluster, &[0, 1, 2])).await;
        let (wants, _) = Watching::create(&strict(&proxy.endpoint), key("k")).await;
        let plain = client(&proxy.endpoint);
        let (mut waits, _) = Watching::create(&plain, key("k")).await;
        let before = put(&plain, "k").await;
        assert_eq!(waits.events(1).await, [format!("+k=v@{before}")]);
        cluster.kill_all(&[1, 2]);
        assert_eq!(parts(&end_of(wants.half_close()).await), NO_LEADER);
        cluster.spawn(1);
        cluster.spawn(2);
        let after = until("a write", async || try_put(&plain, "k").await.ok()).await;
        // Writes whose outcome was unknown may have happened before.
        while !waits.events(1).await.contains(&format!("+k=v@{after}")) {}
    });
}
