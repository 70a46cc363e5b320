//! Who compacts the cluster, and at which revision.

use tonic::Code;
use watershed::client::Client;
use watershed::pb::etcdserverpb::*;

use super::{DENIED, Tier, address, all, answers, put, watch_all};
use crate::harness::{Deployment, Target, Watching, client, refused, run, until};

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";

async fn compact(tenant: &Client, revision: i64) -> Result<(), tonic::Status> {
    tenant.kv().compact(CompactionRequest { revision, physical: false }).await.map(drop)
}

/// Whether the cluster can still be read at a revision.
async fn is_there(deployment: &Deployment, revision: i64) -> bool {
    deployment.client.kv().range(RangeRequest { revision, ..all() }).await.is_ok()
}

async fn write(tenant: &Client) -> i64 {
    tenant.kv().put(put("k", "v")).await.expect("put").into_inner().header.expect("header").revision
}

#[test]
fn the_cluster_is_compacted_at_the_lowest_wish_of_active_tenants() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let [a, b, idle, deny, allow] = [address(), address(), address(), address(), address()];
        let tenant = |name: &str, listen: &str, right: &str| {
            format!("- {{name: {name}, namespace: {name}/, compact: {right}, match: [{{listen: '{listen}'}}]}}\n")
        };
        let file = [
            "tenants:\n".to_owned(),
            tenant("a", &a, "agreed"),
            tenant("b", &b, "agreed"),
            tenant("idle", &idle, "agreed"),
            tenant("denied", &deny, "deny"),
            tenant("allowed", &allow, "allow"),
        ];
        let _tier = Tier::start(deployment, &file.concat(), &[]);
        let [a, b, deny, allow] = [a, b, deny, allow].map(|listen| client(&listen));
        for tenant in [&a, &b, &deny, &allow] {
            answers(tenant).await;
        }
        // Both are noted as active, with no wish yet.
        let noted = RangeRequest {
            key: "\0watershed/compaction/".into(),
            range_end: "\0watershed/compaction0".into(),
            ..all()
        };
        until("both are active", async || (deployment.range(noted.clone()).await.count == 2).then_some(())).await;
        let (mut watching, _) = Watching::create(&b, watch_all()).await;
        let first = write(&a).await;
        write(&b).await;
        let third = write(&a).await;

        refused(compact(&deny, first).await.map(tonic::Response::new), Code::PermissionDenied, DENIED);
        refused(compact(&a, third + 1000).await.map(tonic::Response::new), Code::OutOfRange, FUTURE);
        refused(compact(&a, 0).await.map(tonic::Response::new), Code::OutOfRange, COMPACTED);
        compact(&a, third).await.expect("kept as a wish");
        assert!(is_there(deployment, first).await, "b has not agreed, and idle is not there");
        compact(&b, first + 1).await.expect("agreed");
        assert!(!is_there(deployment, first).await && is_there(deployment, first + 1).await);
        refused(compact(&a, first).await.map(tonic::Response::new), Code::OutOfRange, COMPACTED);
        compact(&b, third).await.expect("agreed");
        assert!(!is_there(deployment, third - 1).await && is_there(deployment, third).await);
        // A wish goes with the activity of its tenant: its lease, which wishes within a minute share, ends an hour after the last request.
        let wishes = deployment.range(noted).await.kvs;
        for kv in &wishes {
            let ttl = deployment.time_to_live(kv.lease).await.granted_ttl;
            assert_eq!(ttl, 3660, "{kv:?}");
        }
        // A lease that is gone before, as after a restore, is replaced; the wish was refused for that once.
        for kv in wishes {
            deployment.client.lease().lease_revoke(LeaseRevokeRequest { id: kv.lease }).await.expect("revoked");
        }
        let fifth = write(&b).await;
        compact(&b, fifth).await.expect("under a new lease, and nobody else is active");
        assert!(!is_there(deployment, fifth - 1).await);
        let last = write(&b).await;
        compact(&allow, last).await.expect("needs no agreement");
        assert!(!is_there(deployment, last - 1).await);
        // Who watches has missed nothing.
        assert_eq!(watching.events(3).await.len(), 3);
    });
}
