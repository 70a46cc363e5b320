//! What a user may do with keys, leases, watches and members.

use tonic::Code;
use watershed::pb::authpb::permission::Type;
use watershed::pb::etcdserverpb::*;

use super::{add_user, auth_of, enable, log_in, permit, with};
use crate::harness::{Deployment, Target, is_stock, refused, run};
use crate::on_every_target;

on_every_target! {
    flags = ["--bcrypt-cost=4"];
    ranges_add_up,
    writes_need_write_and_prev_kv_needs_read,
    permissions_end_at_once,
    many_keys_of_a_lease_are_checked_too,
}

const DENIED: &str = "etcdserver: permission denied";

fn range(key: &'static str, range_end: &'static str) -> RangeRequest {
    RangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() }
}

/// Root, and alice with these permissions; their tokens.
pub async fn alice(deployment: &Deployment, permissions: &[(Type, &'static str, &'static str)]) -> (String, String) {
    let root = enable(deployment).await;
    let endpoint = &deployment.endpoint;
    add_user(endpoint, &root, "alice").await;
    for &(kind, key, end) in permissions {
        permit(endpoint, &root, "alice", kind, key, end).await.expect("permitted");
    }
    (root, log_in(endpoint, "alice").await.expect("alice"))
}

/// So many that they are listed and checked on a thread of their own.
async fn many_keys_of_a_lease_are_checked_too(deployment: &mut Deployment) {
    let (root, alice) = alice(deployment, &[(Type::Read, "m", "n")]).await;
    let (mut kv, mut lease) = (deployment.client.kv(), deployment.client.lease());
    lease.lease_grant(with(&root, LeaseGrantRequest { ttl: 600, id: 7 })).await.expect("a lease");
    let put = |key: String| {
        let put = PutRequest { key: key.into(), lease: 7, ..Default::default() };
        RequestOp { request: Some(request_op::Request::RequestPut(put)) }
    };
    let keys: Vec<String> = (0..4200).map(|number| format!("m{number:04}")).collect();
    for keys in keys.chunks(100) {
        let success = keys.iter().cloned().map(put).collect();
        kv.txn(with(&root, TxnRequest { success, ..Default::default() })).await.expect("puts");
    }
    let ask = || LeaseTimeToLiveRequest { id: 7, keys: true };
    for token in [&root, &alice] {
        let mut told = lease.lease_time_to_live(with(token, ask())).await.expect("all of them").into_inner().keys;
        told.sort_unstable();
        assert!(told == keys, "{} keys", told.len());
    }
    let success = vec![put("secret".to_owned())];
    kv.txn(with(&root, TxnRequest { success, ..Default::default() })).await.expect("a key");
    refused(lease.lease_time_to_live(with(&alice, ask())).await, Code::PermissionDenied, DENIED);
    lease.lease_time_to_live(with(&root, ask())).await.expect("root");
}

async fn ranges_add_up(deployment: &mut Deployment) {
    let permissions = [(Type::Read, "a", "c"), (Type::Read, "c", "d"), (Type::Write, "w", ""), (Type::Read, "x", "\0")];
    let (root, alice) = alice(deployment, &permissions).await;
    let mut kv = deployment.client.kv();
    for (key, end) in [("a", ""), ("a", "d"), ("bb", "cc"), ("x", "\0"), ("y", "z"), ("y", "\0")] {
        kv.range(with(&alice, range(key, end))).await.expect(key);
        let serializable = RangeRequest { serializable: true, ..range(key, end) };
        kv.range(with(&alice, serializable)).await.expect(key);
    }
    for (key, end) in [("a", "e"), ("d", ""), ("A", "d"), ("w", ""), ("\0", "\0"), ("a", "\0"), ("w", "\0")] {
        refused(kv.range(with(&alice, range(key, end))).await, Code::PermissionDenied, DENIED);
        kv.range(with(&root, range(key, end))).await.expect("root");
    }
    let text = "etcdserver: user name is empty";
    refused(kv.range(range("a", "")).await, Code::InvalidArgument, text);
    let mut stream = kv.range_stream(with(&alice, range("a", "d"))).await.expect("streamed").into_inner();
    while stream.message().await.expect("no error").is_some() {}
    let denied = async {
        let mut stream = kv.range_stream(with(&alice, range("a", "e"))).await?.into_inner();
        stream.message().await
    };
    let status = denied.await.expect_err("denied");
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, DENIED));
}

async fn writes_need_write_and_prev_kv_needs_read(deployment: &mut Deployment) {
    let permissions = [(Type::Write, "w", "x"), (Type::Readwrite, "both", ""), (Type::Read, "r", "")];
    let (_root, alice) = alice(deployment, &permissions).await;
    let mut kv = deployment.client.kv();
    let put = |key: &'static str, prev_kv| PutRequest { key: key.into(), prev_kv, ..Default::default() };
    kv.put(with(&alice, put("w1", false))).await.expect("write");
    kv.put(with(&alice, put("both", true))).await.expect("both");
    refused(kv.put(with(&alice, put("w1", true))).await, Code::PermissionDenied, DENIED);
    refused(kv.put(with(&alice, put("r", false))).await, Code::PermissionDenied, DENIED);
    refused(kv.put(put("w1", false)).await, Code::InvalidArgument, "etcdserver: user name is empty");
    let delete = |key: &'static str, range_end: &'static str, prev_kv| DeleteRangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        prev_kv,
    };
    kv.delete_range(with(&alice, delete("w", "x", false))).await.expect("write");
    refused(kv.delete_range(with(&alice, delete("w", "x", true))).await, Code::PermissionDenied, DENIED);
    refused(kv.delete_range(with(&alice, delete("w", "y", false))).await, Code::PermissionDenied, DENIED);
    refused(kv.delete_range(with(&alice, delete("w", "\0", false))).await, Code::PermissionDenied, DENIED);
    let mut compact = kv.clone();
    let compaction = CompactionRequest { revision: 1, physical: false };
    refused(compact.compact(with(&alice, compaction)).await, Code::PermissionDenied, DENIED);
}

async fn permissions_end_at_once(deployment: &mut Deployment) {
    let (root, alice) = alice(deployment, &[(Type::Readwrite, "k", "")]).await;
    let mut kv = deployment.client.kv();
    kv.put(with(&alice, PutRequest { key: "k".into(), ..Default::default() })).await.expect("may");
    let revoke = AuthUserRevokeRoleRequest { name: "alice".into(), role: "alice".into() };
    auth_of(&deployment.endpoint).user_revoke_role(with(&root, revoke)).await.expect("revoked");
    refused(kv.range(with(&alice, range("k", ""))).await, Code::PermissionDenied, DENIED);
    let put = kv.put(with(&alice, PutRequest { key: "k".into(), ..Default::default() })).await;
    refused(put, Code::PermissionDenied, DENIED);
}

/// Users and roles come back from disk; tokens do not, and log in again.
#[test]
fn users_survive_a_crash() {
    run(Target::Core, &super::FLAGS, async |deployment: &mut Deployment| {
        let (_, alice) = alice(deployment, &[(Type::Readwrite, "k", "")]).await;
        let status = async |deployment: &Deployment| {
            let status = auth_of(&deployment.endpoint).auth_status(AuthStatusRequest {}).await.expect("status");
            (status.get_ref().enabled, status.get_ref().auth_revision)
        };
        let before = status(deployment).await;
        deployment.server.kill();
        deployment.restart_without_waiting();
        let again = crate::harness::until("the member", || {
            let endpoint = deployment.endpoint.clone();
            async move { log_in(&endpoint, "alice").await.ok() }
        })
        .await;
        assert_eq!(status(deployment).await, before);
        let mut kv = deployment.client.kv();
        let old = kv.range(with(&alice, range("k", ""))).await;
        if !is_stock() {
            // etcd knows it again if its database was behind its log.
            refused(old, Code::Unauthenticated, "etcdserver: invalid auth token");
        }
        kv.range(with(&again, range("k", ""))).await.expect("with the new token");
        refused(kv.range(with(&again, range("l", ""))).await, Code::PermissionDenied, DENIED);
    });
}
