//! Many tenants of one proxy, in front of any etcd.

use tonic::{Code, Status};
use watershed::client::Client;
use watershed::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
    request_op,
};

use super::{get, put, try_put, under};
use crate::harness::{Deployment, Proxy, Target, Watching, client, free_port, run, until};

/// A proxy with two tenants of these settings, and a client of each.
struct Tenants {
    _proxy: Proxy,
    a: Client,
    b: Client,
}

impl Tenants {
    async fn start(deployment: &Deployment, of_a: &str, of_b: &str) -> Self {
        let [a, b] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
        let file = deployment.folder.path().join("tenants.yaml");
        let text = format!(
            "tenants:\n\
             - {{name: a, namespace: a/, match: [{{listen: '{a}'}}]{of_a}}}\n\
             - {{name: b, namespace: b/, match: [{{listen: '{b}'}}]{of_b}}}\n"
        );
        std::fs::write(&file, text).expect("written");
        let proxy = Proxy::spawn(&[&deployment.endpoint], &[&format!("--tenants-file={}", file.display())]);
        let tenants = Self { _proxy: proxy, a: client(&a), b: client(&b) };
        for tenant in [&tenants.a, &tenants.b] {
            until("the tenant is served", async || tenant.kv().range(get("k")).await.ok()).await;
        }
        tenants
    }
}

fn at(revision: i64) -> RangeRequest {
    RangeRequest { revision, ..get("k") }
}

/// A kube-apiserver behind a namespace compacts every five minutes.
#[test]
fn a_compaction_of_one_takes_no_history_of_another() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let tenants = Tenants::start(deployment, ", compact: agreed", ", compact: agreed").await;
        // Both are known to be active.
        let first = put(&tenants.b, "k").await;
        let noted = || RangeRequest {
            key: "\0watershed/compaction/".into(),
            range_end: "\0watershed/compaction0".into(),
            count_only: true,
            ..Default::default()
        };
        until("both are active", async || (deployment.range(noted()).await.count == 2).then_some(())).await;
        for _ in 0..5 {
            put(&tenants.b, "k").await;
        }
        let last = put(&tenants.a, "k").await;
        let compaction = |revision| CompactionRequest { revision, physical: false };
        tenants.a.kv().compact(compaction(last)).await.expect("taken as a wish");
        tenants.b.kv().range(at(first)).await.expect("its history is there");
        let (mut watching, _) =
            Watching::create(&tenants.b, WatchCreateRequest { start_revision: first, ..under("k") }).await;
        assert_eq!(watching.events(6).await.len(), 6);
        tenants.b.kv().compact(compaction(last)).await.expect("both agree");
        let status = tenants.b.kv().range(at(first)).await.expect_err("it is compacted");
        assert_eq!(status.code(), Code::OutOfRange, "{status}");
        let revision = put(&tenants.b, "k").await;
        assert_eq!(watching.events(1).await, [format!("+k=v@{revision}")], "who watches goes on");
    });
}

fn assert_full(status: &Status) {
    let text = "the tenant's limit \"stored-keys\" of 3 is reached";
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, text));
}

#[test]
fn a_full_tenant_is_refused_and_no_other_one() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let Tenants { a, b, _proxy } = Tenants::start(deployment, ", limits: {stored-keys: 3}", "").await;
        let all_of = |keys: [&'static str; 3]| {
            let put = |key: &'static str| PutRequest { key: key.into(), ..Default::default() };
            let op = |put| RequestOp { request: Some(request_op::Request::RequestPut(put)) };
            TxnRequest { success: keys.map(|key| op(put(key))).into(), ..Default::default() }
        };
        put(&a, "1").await;
        // All of a transaction, or nothing of it.
        assert_full(&a.kv().txn(all_of(["2", "3", "4"])).await.expect_err("one too many"));
        a.kv().txn(all_of(["1", "2", "3"])).await.expect("one is there already");
        assert_full(&try_put(&a, "4").await.expect_err("it is full"));
        for key in ["1", "2", "3", "4"] {
            put(&b, key).await;
        }
        let delete = DeleteRangeRequest { key: "2".into(), ..Default::default() };
        a.kv().delete_range(delete).await.expect("makes room");
        until("room", async || try_put(&a, "4").await.ok()).await;
    });
}

/// The figure beside this is in docs/benchmarks.md.
#[test]
fn a_noisy_tenant_is_refused_and_the_quiet_one_is_not() {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let Tenants { a, b, _proxy } = Tenants::start(deployment, ", limits: {requests-per-second: 20}", "").await;
        let noise = async {
            let mut refused = 0;
            while refused < 200 {
                match a.kv().range(get("k")).await {
                    Ok(_) => {}
                    Err(status) => {
                        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                        assert!(status.metadata().contains_key("grpc-retry-pushback-ms"), "{status:?}");
                        refused += 1;
                    }
                }
            }
        };
        let quiet = async {
            for _ in 0..100 {
                put(&b, "k").await;
            }
        };
        tokio::join!(noise, quiet);
    });
}
