//! The same features through the public crate `etcd-client`.

use etcd_client::{
    Compare, CompareOp, DeleteOptions, EventType, GetOptions, LockOptions, PutOptions, ResignOptions, SortOrder,
    SortTarget, Txn, TxnOp, WatchOptions,
};

use crate::harness::{Deployment, Target, soon};
use crate::on_every_target;

on_every_target! {
    keys_and_values,
    transactions,
    watches,
    leases,
    locks_and_elections,
    maintenance,
}

async fn keys_and_values(deployment: &mut Deployment) {
    let mut client = deployment.public_client().await;
    for (key, value) in [("a/1", "x"), ("a/2", "y"), ("b", "z")] {
        client.put(key, value, None).await.expect("put");
    }
    let answer = client.put("b", "zz", Some(PutOptions::new().with_prev_key())).await.expect("put");
    assert_eq!(answer.prev_key().expect("before").value(), b"z");
    let options = GetOptions::new().with_prefix().with_sort(SortTarget::Value, SortOrder::Descend).with_limit(1);
    let answer = client.get("a/", Some(options)).await.expect("get");
    assert_eq!((answer.kvs()[0].value(), answer.count(), answer.more()), (b"y".as_ref(), 2, true));
    let mut chunks = client.kv_client().get_stream("", Some(GetOptions::new().with_all_keys())).await.expect("stream");
    let mut count = 0;
    while let Some(chunk) = chunks.message().await.expect("chunk") {
        count += chunk.kvs().len();
    }
    assert_eq!(count, 3);
    let answer = client.delete("a/", Some(DeleteOptions::new().with_prefix())).await.expect("delete");
    assert_eq!(answer.deleted(), 2);
    client.compact(5, None).await.expect("compact");
    let old = client.get("b", Some(GetOptions::new().with_revision(3))).await.expect_err("compacted");
    let etcd_client::Error::GRpcStatus(status) = old else { panic!("{old:?}") };
    assert_eq!(status.message(), "etcdserver: mvcc: required revision has been compacted");
}

async fn transactions(deployment: &mut Deployment) {
    let mut client = deployment.public_client().await;
    let txn = Txn::new()
        .when([Compare::version("k", CompareOp::Equal, 0)])
        .and_then([TxnOp::put("k", "1", None), TxnOp::get("k", None)])
        .or_else([TxnOp::get("k", None)]);
    assert!(client.txn(txn.clone()).await.expect("txn").succeeded());
    let answer = client.txn(txn).await.expect("txn");
    assert!(!answer.succeeded());
    assert_eq!(answer.op_responses().len(), 1);
}

async fn watches(deployment: &mut Deployment) {
    let mut client = deployment.public_client().await;
    client.put("w/1", "past", None).await.expect("put");
    let options = WatchOptions::new().with_prefix().with_start_revision(2).with_prev_key();
    let mut stream = client.watch("w/", Some(options)).await.expect("watch");
    client.put("w/1", "live", None).await.expect("put");
    client.delete("w/1", None).await.expect("delete");
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let answer = soon("an event", stream.message()).await.expect("no error").expect("goes on");
        for event in answer.events() {
            let kv = event.kv().expect("kv");
            let before = event.prev_kv().map(|kv| kv.value_str().expect("text").to_owned());
            seen.push((event.event_type(), kv.mod_revision(), before));
        }
    }
    let expected = [
        (EventType::Put, 2, None),
        (EventType::Put, 3, Some("past".to_owned())),
        (EventType::Delete, 4, Some("live".to_owned())),
    ];
    assert_eq!(seen, expected);
    stream.cancel(0).await.expect("cancel");
    let answer = soon("the end", stream.message()).await.expect("no error").expect("an answer");
    assert!(answer.canceled());
}

async fn leases(deployment: &mut Deployment) {
    let mut client = deployment.public_client().await;
    let lease = client.lease_grant(60, None).await.expect("grant").id();
    client.put("k", "v", Some(PutOptions::new().with_lease(lease))).await.expect("put");
    let (mut keeper, mut answers) = client.lease_keep_alive(lease).await.expect("keep-alive");
    for _ in 0..3 {
        keeper.keep_alive().await.expect("asked");
        let answer = soon("an answer", answers.message()).await.expect("no error").expect("goes on");
        assert_eq!((answer.id(), answer.ttl()), (lease, 60));
    }
    client.lease_revoke(lease).await.expect("revoke");
    assert_eq!(client.get("k", None).await.expect("get").count(), 0);
}

async fn locks_and_elections(deployment: &mut Deployment) {
    let mut client = deployment.public_client().await;
    let lease = client.lease_grant(60, None).await.expect("grant").id();
    let lock = client.lock("l", Some(LockOptions::new().with_lease(lease))).await.expect("lock");
    client.unlock(lock.key()).await.expect("unlock");
    let won = client.campaign("e", "me", lease).await.expect("campaign");
    let leader = won.leader().expect("leader").clone();
    assert_eq!(client.leader("e").await.expect("leader").kv().expect("kv").value(), b"me");
    client.resign(Some(ResignOptions::new().with_leader(leader))).await.expect("resign");
}

async fn maintenance(deployment: &mut Deployment) {
    let mut client = deployment.public_client().await;
    client.put("foo", "bar", None).await.expect("put");
    assert_eq!(client.hash_kv(0).await.expect("hash").hash(), 3_305_255_506);
    assert!(client.status().await.expect("status").version().starts_with("3.7."));
    let members = client.member_list().await.expect("members");
    // A proxy lists itself.
    assert!(deployment.target == Target::Proxy || members.members()[0].name() == "m1");
    let mut snapshot = client.snapshot().await.expect("snapshot");
    let mut bytes = 0;
    while let Some(chunk) = snapshot.message().await.expect("chunk") {
        bytes += chunk.blob().len();
    }
    assert_eq!(bytes % 512, 32);
}
