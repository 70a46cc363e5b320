//! Put and delete.

use tonic::Code;
use watershed::pb::etcdserverpb::{DeleteRangeRequest, PutRequest};

use crate::harness::{Deployment, prefix, refused};
use crate::on_every_target;

on_every_target! {
    writes_count_revisions_and_versions,
    a_put_may_keep_the_value_or_the_lease,
    refused_puts_change_nothing,
    deletes_answer_what_they_deleted,
    keys_and_values_are_any_bytes,
    headers_name_member_and_cluster,
}

async fn writes_count_revisions_and_versions(deployment: &mut Deployment) {
    let first = deployment.put("k", "1").await;
    assert_eq!(first, 2, "an empty store is at revision 1");
    assert_eq!(deployment.put("k", "1").await, 3, "the same value again is a write");
    let kv = deployment.get("k").await.kvs.remove(0);
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));

    deployment.delete("k").await;
    deployment.put("k", "3").await;
    let kv = deployment.get("k").await.kvs.remove(0);
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1), "a new life");
}

async fn a_put_may_keep_the_value_or_the_lease(deployment: &mut Deployment) {
    let (lease, other) = (deployment.grant(60).await, deployment.grant(60).await);
    deployment.put_with(PutRequest { key: "k".into(), value: "v".into(), lease, ..Default::default() }).await;

    let keep_both = PutRequest { key: "k".into(), ignore_value: true, ignore_lease: true, ..Default::default() };
    deployment.put_with(keep_both).await;
    let kv = deployment.get("k").await.kvs.remove(0);
    assert_eq!((kv.value.as_ref(), kv.lease, kv.version), (b"v".as_ref(), lease, 2));

    let keep_value = PutRequest { key: "k".into(), ignore_value: true, lease: other, ..Default::default() };
    deployment.put_with(keep_value).await;
    let kv = deployment.get("k").await.kvs.remove(0);
    assert_eq!((kv.value.as_ref(), kv.lease), (b"v".as_ref(), other), "moved to the other lease");
    assert!(deployment.time_to_live(lease).await.keys.is_empty());

    let answer = deployment.put_with(PutRequest { key: "k".into(), prev_kv: true, ..Default::default() }).await;
    assert_eq!(answer.prev_kv.expect("the pair before").lease, other);
    let kv = deployment.get("k").await.kvs.remove(0);
    assert_eq!((kv.value.len(), kv.lease), (0, 0), "no lease detaches");

    let answer = deployment.put_with(PutRequest { key: "new".into(), prev_kv: true, ..Default::default() }).await;
    assert_eq!(answer.prev_kv, None);
}

async fn refused_puts_change_nothing(deployment: &mut Deployment) {
    let mut kv = deployment.client.kv();
    let put = PutRequest { key: "k".into(), ..Default::default() };
    let invalid = Code::InvalidArgument;
    refused(kv.put(PutRequest::default()).await, invalid, "etcdserver: key is not provided");
    let request = PutRequest { value: "v".into(), ignore_value: true, ..put.clone() };
    refused(kv.put(request).await, invalid, "etcdserver: value is provided");
    let request = PutRequest { lease: 5, ignore_lease: true, ..put.clone() };
    refused(kv.put(request).await, invalid, "etcdserver: lease is provided");
    for lease in [5, -5] {
        let request = PutRequest { lease, ignore_value: true, ..put.clone() };
        refused(kv.put(request).await, Code::NotFound, "etcdserver: requested lease not found");
    }
    let request = PutRequest { ignore_value: true, ..put.clone() };
    refused(kv.put(request).await, invalid, "etcdserver: key not found");
    let request = PutRequest { ignore_lease: true, ..put };
    refused(kv.put(request).await, invalid, "etcdserver: key not found");
    assert_eq!(deployment.get("k").await.header.expect("header").revision, 1);
}

async fn deletes_answer_what_they_deleted(deployment: &mut Deployment) {
    for key in ["a/1", "a/2", "a/3", "b"] {
        deployment.put(key, key).await;
    }
    let mut kv = deployment.client.kv();
    let range = |key: &'static str, range_end: &'static str| DeleteRangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        prev_kv: true,
    };
    let answer = kv.delete_range(range("a/", "a/3")).await.expect("delete").into_inner();
    let keys: Vec<_> = answer.prev_kvs.iter().map(|kv| kv.key.as_ref()).collect();
    assert_eq!((answer.deleted, keys), (2, vec![b"a/1".as_ref(), b"a/2".as_ref()]));
    assert_eq!(answer.header.expect("header").revision, 6, "one revision for both");

    let answer = kv.delete_range(range("a/", "a/3")).await.expect("delete").into_inner();
    assert_eq!((answer.deleted, answer.header.expect("header").revision), (0, 6), "nothing to do is no write");
    let answer = kv.delete_range(range("b", "a")).await.expect("delete").into_inner();
    assert_eq!(answer.deleted, 0, "an end before the start covers nothing");
    let answer = kv.delete_range(range("a/3", "\0")).await.expect("delete").into_inner();
    assert_eq!(answer.deleted, 2, "from key");
    let answer = kv.delete_range(DeleteRangeRequest::default()).await;
    refused(answer, Code::InvalidArgument, "etcdserver: key is not provided");
}

async fn keys_and_values_are_any_bytes(deployment: &mut Deployment) {
    let key: Vec<u8> = (0..=255).collect();
    deployment.put(key.clone(), vec![0xff; 3]).await;
    deployment.put(vec![0], "zero").await;
    deployment.put(vec![0xff], "last").await;
    let kv = deployment.get(key).await.kvs.remove(0);
    assert_eq!(kv.value.as_ref(), [0xff; 3]);
    let mut everything = prefix("");
    everything.key = vec![0].into();
    everything.range_end = vec![0].into();
    assert_eq!(deployment.range(everything).await.count, 3);
}

async fn headers_name_member_and_cluster(deployment: &mut Deployment) {
    let header = deployment.get("k").await.header.expect("header");
    let put = deployment.put_with(PutRequest { key: "k".into(), ..Default::default() }).await.header.expect("header");
    assert_ne!(header.cluster_id, 0);
    assert_ne!(header.member_id, 0);
    assert!(header.raft_term >= 2, "a member elects itself in a term after the first");
    assert_eq!((put.cluster_id, put.member_id, put.raft_term), (header.cluster_id, header.member_id, header.raft_term));
    assert_eq!(put.revision, header.revision + 1);
}
