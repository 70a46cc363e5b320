//! Leases.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use watershed::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest, LeaseRevokeRequest,
    PutRequest,
};

use crate::harness::{Answers, Deployment, Target, refused, soon, until};
use crate::on_every_target;

on_every_target! {
    grants_pick_or_take_an_id,
    refused_grants,
    a_revoke_deletes_the_keys_in_one_revision,
    time_to_live_shows_what_is_left,
    a_key_belongs_to_one_lease,
    all_leases_are_listed,
    leases_are_listed_in_the_order_of_their_ends,
    every_keep_alive_is_answered,
    a_kept_lease_lives_and_a_silent_one_ends_in_time,
    leases_survive_a_restart,
}

struct KeepAlive {
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Answers<LeaseKeepAliveResponse>,
}

impl KeepAlive {
    fn open(deployment: &Deployment) -> Self {
        let (requests, receiver) = mpsc::channel(64);
        let mut client = deployment.client.lease();
        Self {
            requests,
            answers: Answers::new(async move { client.lease_keep_alive(ReceiverStream::new(receiver)).await }),
        }
    }

    async fn ask(&self, id: i64) {
        self.requests.send(LeaseKeepAliveRequest { id }).await.expect("the stream is open");
    }

    async fn answer(&mut self) -> LeaseKeepAliveResponse {
        soon("a keep-alive answer", self.answers.message()).await.expect("no error").expect("goes on")
    }
}

async fn attach(deployment: &Deployment, key: &'static str, lease: i64) {
    deployment.put_with(PutRequest { key: key.into(), lease, ..Default::default() }).await;
}

async fn grants_pick_or_take_an_id(deployment: &mut Deployment) {
    let mut leases = deployment.client.lease();
    let picked = leases.lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.expect("grant").into_inner();
    assert!(picked.id > 0 && picked.ttl == 60 && picked.error.is_empty(), "{picked:?}");
    assert_eq!(picked.header.expect("header").revision, 1, "a grant is no write");
    for id in [77, -77, i64::MAX] {
        let taken = leases.lease_grant(LeaseGrantRequest { ttl: 60, id }).await.expect("grant").into_inner();
        assert_eq!(taken.id, id);
    }
    for ttl in [1, 0, -9] {
        let raised = leases.lease_grant(LeaseGrantRequest { ttl, id: 0 }).await.expect("grant").into_inner();
        assert_eq!(raised.ttl, 2, "the minimum of the default election timeout");
    }
}

async fn refused_grants(deployment: &mut Deployment) {
    let mut leases = deployment.client.lease();
    leases.lease_grant(LeaseGrantRequest { ttl: 60, id: 7 }).await.expect("grant");
    let again = leases.lease_grant(LeaseGrantRequest { ttl: 60, id: 7 }).await;
    refused(again, Code::FailedPrecondition, "etcdserver: lease already exists");
    let long = leases.lease_grant(LeaseGrantRequest { ttl: 9_000_000_001, id: 7 }).await;
    refused(long, Code::OutOfRange, "etcdserver: too large lease TTL");
    leases.lease_grant(LeaseGrantRequest { ttl: 9_000_000_000, id: 8 }).await.expect("just short enough");
    for id in [99, 0] {
        let revoke = leases.lease_revoke(LeaseRevokeRequest { id }).await;
        refused(revoke, Code::NotFound, "etcdserver: requested lease not found");
    }
}

async fn a_revoke_deletes_the_keys_in_one_revision(deployment: &mut Deployment) {
    let lease = deployment.grant(60).await;
    for key in ["b", "a"] {
        attach(deployment, key, lease).await;
    }
    deployment.put("c", "").await;
    let answer =
        deployment.client.lease().lease_revoke(LeaseRevokeRequest { id: lease }).await.expect("revoke").into_inner();
    assert_eq!(answer.header.expect("header").revision, 5);
    assert_eq!(
        (deployment.get("a").await.count, deployment.get("b").await.count, deployment.get("c").await.count),
        (0, 0, 1)
    );
    let empty = deployment.grant(60).await;
    let answer =
        deployment.client.lease().lease_revoke(LeaseRevokeRequest { id: empty }).await.expect("revoke").into_inner();
    assert_eq!(answer.header.expect("header").revision, 5, "no key, no write");
    assert_eq!(deployment.time_to_live(lease).await.ttl, -1);
}

async fn time_to_live_shows_what_is_left(deployment: &mut Deployment) {
    let lease = deployment.grant(60).await;
    attach(deployment, "a", lease).await;
    attach(deployment, "b", lease).await;
    let mut answer = deployment.time_to_live(lease).await;
    assert_eq!((answer.id, answer.granted_ttl), (lease, 60));
    assert!((30..=60).contains(&answer.ttl), "{answer:?}");
    answer.keys.sort();
    assert_eq!(answer.keys, ["a", "b"]);
    let unknown = deployment.time_to_live(4711).await;
    assert_eq!((unknown.id, unknown.ttl, unknown.granted_ttl), (4711, -1, 0));
}

async fn a_key_belongs_to_one_lease(deployment: &mut Deployment) {
    let (first, second) = (deployment.grant(60).await, deployment.grant(60).await);
    attach(deployment, "k", first).await;
    attach(deployment, "k", second).await;
    assert!(deployment.time_to_live(first).await.keys.is_empty());
    assert_eq!(deployment.time_to_live(second).await.keys, ["k"]);
    deployment.client.lease().lease_revoke(LeaseRevokeRequest { id: first }).await.expect("revoke");
    assert_eq!(deployment.get("k").await.count, 1);
    deployment.delete("k").await;
    assert!(deployment.time_to_live(second).await.keys.is_empty());
}

async fn all_leases_are_listed(deployment: &mut Deployment) {
    let (long, short) = (deployment.grant(600).await, deployment.grant(100).await);
    let answer = deployment.client.lease().lease_leases(LeaseLeasesRequest {}).await.expect("leases").into_inner();
    let ids: Vec<_> = answer.leases.iter().map(|lease| lease.id).collect();
    assert_eq!(ids, [short, long], "the first to end is first");
}

// Cause: a deadline has whole milliseconds here, and leases of the same one were listed by id.
async fn leases_are_listed_in_the_order_of_their_ends(deployment: &mut Deployment) {
    let ids: Vec<i64> = (1..=60).map(|number| (number * 7919) % 1009 + 1).collect();
    for &id in &ids {
        deployment.client.lease().lease_grant(LeaseGrantRequest { ttl: 500, id }).await.expect("grant");
    }
    let answer = deployment.client.lease().lease_leases(LeaseLeasesRequest {}).await.expect("leases").into_inner();
    assert_eq!(answer.leases.iter().map(|lease| lease.id).collect::<Vec<_>>(), ids);
}

async fn every_keep_alive_is_answered(deployment: &mut Deployment) {
    let (first, second) = (deployment.grant(60).await, deployment.grant(90).await);
    let mut stream = KeepAlive::open(deployment);
    for id in [first, second, 4711, first] {
        stream.ask(id).await;
    }
    let mut seen = Vec::new();
    for _ in 0..4 {
        let answer = stream.answer().await;
        assert_eq!(answer.header.expect("header").revision, 1);
        seen.push((answer.id, answer.ttl));
    }
    let mut expected = [(first, 60), (second, 90), (4711, 0), (first, 60)];
    if deployment.target == Target::Proxy {
        // One answer of the cluster serves every request for that lease that is waiting, also the later one.
        expected.sort_unstable();
        seen.sort_unstable();
    }
    assert_eq!(seen, expected);
}

async fn a_kept_lease_lives_and_a_silent_one_ends_in_time(deployment: &mut Deployment) {
    // On a busy machine an attempt may say nothing, but not all of them.
    let mut attempts = Vec::new();
    while let Err(why) = kept_and_silent(deployment).await {
        attempts.push(why);
        assert!(attempts.len() < 5, "{attempts:?}");
    }
}

/// One attempt; an error when something came so late that it says nothing of leases.
async fn kept_and_silent(deployment: &Deployment) -> Result<(), String> {
    const TTL: Duration = Duration::from_secs(2);
    let begun = Instant::now();
    let (kept, silent) = (deployment.grant(2).await, deployment.grant(2).await);
    let granted = Instant::now();
    for (key, lease) in [("kept", kept), ("silent", silent)] {
        let put = PutRequest { key: key.into(), lease, ..Default::default() };
        if let Err(error) = deployment.client.kv().put(put).await {
            assert!(begun.elapsed() >= TTL, "{error}");
            return Err(format!("{key}: {error}"));
        }
    }
    let mut stream = KeepAlive::open(deployment);
    // When the last renewal was asked for.
    let mut renewed = begun;
    let gone_after = soon("the expiry", async {
        loop {
            let asked = Instant::now();
            stream.ask(kept).await;
            let ttl = stream.answer().await.ttl;
            if ttl == 0 && renewed.elapsed() >= TTL {
                return Err(format!("renewed {:?} ago", renewed.elapsed()));
            }
            assert_eq!(ttl, 2, "a kept lease never ends");
            renewed = asked;
            if deployment.get("silent").await.count == 0 {
                return Ok(granted.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await?;
    assert!(begun.elapsed() >= Duration::from_millis(1900), "not before its time: {gone_after:?}");
    let kept = deployment.get("kept").await.count;
    assert!(kept == 1 || renewed.elapsed() >= TTL);
    stream.ask(silent).await;
    assert_eq!(stream.answer().await.ttl, 0, "an expired lease stays dead");
    assert_eq!(deployment.time_to_live(silent).await.ttl, -1);
    // The promise is TTL + 1 s.
    if gone_after <= Duration::from_secs(3) { Ok(()) } else { Err(format!("{gone_after:?}")) }
}

async fn leases_survive_a_restart(deployment: &mut Deployment) {
    let (long, short) = (deployment.grant(600).await, deployment.grant(4).await);
    attach(deployment, "long", long).await;
    attach(deployment, "short", short).await;
    deployment.crash_and_restart().await;
    let answer = deployment.time_to_live(long).await;
    assert_eq!((answer.granted_ttl, answer.keys), (600, vec!["long".into()]));
    until("the expiry after the restart", async || (deployment.get("short").await.count == 0).then_some(())).await;
    assert_eq!(deployment.get("long").await.count, 1);
}
