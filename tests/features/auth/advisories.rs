//! What was reported against etcd from 2021 to 2026: each case fails on a version before its fix.

use tonic::Code;
use watershed::pb::authpb::permission::Type;
use watershed::pb::etcdserverpb::alarm_request::AlarmAction;
use watershed::pb::etcdserverpb::request_op::Request;
use watershed::pb::etcdserverpb::watch_request::RequestUnion;
use watershed::pb::etcdserverpb::*;

use super::permissions::alice;
use super::{log_in, with};
use crate::harness::{Deployment, Target, http_get, is_stock, refused, run, soon};
use crate::on_every_target;

on_every_target! {
    flags = ["--bcrypt-cost=4"];
    a_key_is_not_everything_behind_it,
    nested_operations_are_checked,
    puts_in_transactions_are_checked_like_puts,
    keys_of_a_lease_are_for_those_who_may_read_them,
    nobody_stops_all_writes,
}

const DENIED: &str = "etcdserver: permission denied";

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// GHSA-xg4h-6gfc-h4m8: the range end that stands for "everything from here" was rewritten before the check.
async fn a_key_is_not_everything_behind_it(deployment: &mut Deployment) {
    let (_, alice) = alice(deployment, &[(Type::Readwrite, "k", "")]).await;
    let mut kv = deployment.client.kv();
    let mut watch = deployment.client.watch();
    for (key, end) in [("k", "\0"), ("k", "k\0\0"), ("k", "l"), ("\0", "\0"), ("j", "l"), ("", "\0")] {
        if !key.is_empty() {
            let range = RangeRequest { key: key.into(), range_end: end.into(), ..Default::default() };
            refused(kv.range(with(&alice, range.clone())).await, Code::PermissionDenied, DENIED);
            let delete = DeleteRangeRequest { key: key.into(), range_end: end.into(), prev_kv: false };
            refused(kv.delete_range(with(&alice, delete)).await, Code::PermissionDenied, DENIED);
            let txn = TxnRequest { success: vec![op(Request::RequestRange(range))], ..Default::default() };
            refused(kv.txn(with(&alice, txn)).await, Code::PermissionDenied, DENIED);
            let compare = Compare { key: key.into(), range_end: end.into(), ..Default::default() };
            let txn = TxnRequest { compare: vec![compare], ..Default::default() };
            refused(kv.txn(with(&alice, txn)).await, Code::PermissionDenied, DENIED);
        }
        let create = WatchCreateRequest { key: key.into(), range_end: end.into(), ..Default::default() };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests = futures::StreamExt::chain(futures::stream::iter([create]), futures::stream::pending());
        let mut answers = watch.watch(with(&alice, requests)).await.expect("a stream").into_inner();
        let first = soon("an answer", answers.message()).await.expect("no error").expect("an answer");
        assert!(first.canceled && first.cancel_reason.contains(DENIED), "{key:?} {end:?}: {first:?}");
    }
    kv.range(with(&alice, RangeRequest { key: "k".into(), range_end: "k\0".into(), ..Default::default() }))
        .await
        .expect("the key itself, as a range");
}

/// CVE-2026-33343: operations of a transaction within a transaction were not checked.
async fn nested_operations_are_checked(deployment: &mut Deployment) {
    let (_, alice) = alice(deployment, &[(Type::Readwrite, "k", "")]).await;
    let mut kv = deployment.client.kv();
    let forbidden = || {
        [
            Request::RequestRange(RangeRequest { key: "x".into(), ..Default::default() }),
            Request::RequestPut(PutRequest { key: "x".into(), ..Default::default() }),
            Request::RequestDeleteRange(DeleteRangeRequest { key: "x".into(), ..Default::default() }),
        ]
    };
    for depth in 1..=5 {
        for request in forbidden() {
            for taken in [true, false] {
                let mut inner = op(request.clone());
                for _ in 0..depth {
                    // Without a compare the first branch is taken.
                    let mut txn = TxnRequest::default();
                    let branch = if taken { &mut txn.success } else { &mut txn.failure };
                    branch.push(inner);
                    inner = op(Request::RequestTxn(txn));
                }
                let txn = TxnRequest { success: vec![inner], ..Default::default() };
                refused(kv.txn(with(&alice, txn)).await, Code::PermissionDenied, DENIED);
            }
        }
    }
    let compare = Compare { key: "x".into(), ..Default::default() };
    let nested = TxnRequest { compare: vec![compare], ..Default::default() };
    let txn = TxnRequest { success: vec![op(Request::RequestTxn(nested))], ..Default::default() };
    refused(kv.txn(with(&alice, txn)).await, Code::PermissionDenied, DENIED);
}

/// CVE-2026-44283: `prev_kv` and the lease of a put within a transaction were not checked.
async fn puts_in_transactions_are_checked_like_puts(deployment: &mut Deployment) {
    let (root, alice) = alice(deployment, &[(Type::Write, "w", "x")]).await;
    let (mut kv, mut lease) = (deployment.client.kv(), deployment.client.lease());
    lease.lease_grant(with(&root, LeaseGrantRequest { ttl: 600, id: 7 })).await.expect("a lease");
    let put = |key: &'static str, lease, prev_kv| PutRequest { key: key.into(), lease, prev_kv, ..Default::default() };
    kv.put(with(&root, put("foreign", 7, false))).await.expect("a key that alice may not write");
    for refused_put in [put("w1", 7, false), put("w1", 0, true)] {
        refused(kv.put(with(&alice, refused_put.clone())).await, Code::PermissionDenied, DENIED);
        let txn = TxnRequest { success: vec![op(Request::RequestPut(refused_put))], ..Default::default() };
        refused(kv.txn(with(&alice, txn)).await, Code::PermissionDenied, DENIED);
    }
    let delete = DeleteRangeRequest { key: "w1".into(), prev_kv: true, ..Default::default() };
    let txn = TxnRequest { success: vec![op(Request::RequestDeleteRange(delete))], ..Default::default() };
    refused(kv.txn(with(&alice, txn)).await, Code::PermissionDenied, DENIED);
    refused(lease.lease_revoke(with(&alice, LeaseRevokeRequest { id: 7 })).await, Code::PermissionDenied, DENIED);
    let txn = TxnRequest { success: vec![op(Request::RequestPut(put("w1", 0, false)))], ..Default::default() };
    kv.txn(with(&alice, txn)).await.expect("alice may write");
}

/// CVE-2023-32082: the keys of a lease were told to everybody.
async fn keys_of_a_lease_are_for_those_who_may_read_them(deployment: &mut Deployment) {
    let (root, alice) = alice(deployment, &[(Type::Readwrite, "k", "")]).await;
    let (mut kv, mut lease) = (deployment.client.kv(), deployment.client.lease());
    lease.lease_grant(with(&root, LeaseGrantRequest { ttl: 600, id: 7 })).await.expect("a lease");
    let ask = |keys| LeaseTimeToLiveRequest { id: 7, keys };
    let put = |key: &'static str| PutRequest { key: key.into(), lease: 7, ..Default::default() };
    kv.put(with(&root, put("k"))).await.expect("a key");
    let told = lease.lease_time_to_live(with(&alice, ask(true))).await.expect("all of them").into_inner();
    assert_eq!(told.keys, ["k"]);
    kv.put(with(&root, put("secret"))).await.expect("a key");
    refused(lease.lease_time_to_live(with(&alice, ask(true))).await, Code::PermissionDenied, DENIED);
    refused(lease.lease_leases(with(&alice, LeaseLeasesRequest {})).await, Code::PermissionDenied, DENIED);
    lease.lease_time_to_live(with(&alice, ask(false))).await.expect("without keys");
    let nobody = lease.lease_time_to_live(ask(false)).await;
    refused(nobody, Code::InvalidArgument, "etcdserver: user name is empty");
}

/// CVE-2026-33413: an alarm that stops all writes could be raised without credentials.
async fn nobody_stops_all_writes(deployment: &mut Deployment) {
    let (_, alice) = alice(deployment, &[(Type::Readwrite, "k", "")]).await;
    let mut maintenance = deployment.client.maintenance();
    let alarm =
        |action: AlarmAction| AlarmRequest { action: action as i32, member_id: 1, alarm: AlarmType::Nospace as i32 };
    let text = "etcdserver: user name is empty";
    for action in [AlarmAction::Get, AlarmAction::Activate, AlarmAction::Deactivate] {
        refused(maintenance.alarm(alarm(action)).await, Code::InvalidArgument, text);
    }
    let denied = maintenance.alarm(with(&alice, alarm(AlarmAction::Activate))).await;
    refused(denied, Code::PermissionDenied, DENIED);
    maintenance.alarm(with(&alice, alarm(AlarmAction::Get))).await.expect("any user");
    let put = PutRequest { key: "k".into(), ..Default::default() };
    deployment.client.kv().put(with(&alice, put)).await.expect("no alarm is raised");
}

/// CVE-2021-28235, and tokens in logs: whatever a member writes or shows while users log in holds no secret.
#[test]
fn no_secret_is_written_or_shown() {
    let flags =
        ["--bcrypt-cost=4", "--log-level=debug", "--warning-apply-duration=0s", "--warning-unary-request-duration=0s"];
    run(Target::Core, &flags, async |deployment: &mut Deployment| {
        if is_stock() {
            return;
        }
        let (root, token) = alice(deployment, &[(Type::Readwrite, "k", "")]).await;
        let endpoint = deployment.endpoint.clone();
        let mut auth = super::auth_of(&endpoint);
        let secret = || "Pa55word-nobody-sees".to_owned();
        let user = AuthUserAddRequest { name: "carol".into(), password: secret(), ..Default::default() };
        auth.user_add(with(&root, user)).await.expect("a user");
        let change = AuthUserChangePasswordRequest { name: "carol".into(), password: secret(), ..Default::default() };
        auth.user_change_password(with(&root, change)).await.expect("a password");
        let log_in_as = |name: &str| AuthenticateRequest { name: name.to_owned(), password: secret() };
        let carol = auth.authenticate(log_in_as("carol")).await.expect("in").into_inner().token;
        auth.authenticate(log_in_as("root")).await.expect_err("not its password");
        log_in(&endpoint, "alice").await.expect("in");
        for token in [&token, &carol] {
            deployment.client.maintenance().status(with(token, StatusRequest {})).await.expect("known");
        }
        let mut shown = vec![("the log".to_owned(), deployment.server.output())];
        for path in ["/metrics", "/debug/vars", "/health?reason=true", "/version"] {
            let page = http_get(&deployment.member, "GET", path).await.expect("an answer");
            shown.push((path.to_owned(), page.body));
        }
        let letters = |token: &str| token.split('.').next().unwrap_or_default().to_owned();
        for (place, text) in &shown {
            for secret in [secret(), letters(&root), letters(&token), letters(&carol), "$2a$".to_owned()] {
                assert!(!text.contains(&secret), "{place} holds a secret");
            }
        }
        assert!(shown[0].1.contains("apply request took too long"), "the log of slow requests was looked at");
        // The log on disk has hashes and the letters of tokens, never a password.
        let mut folders = vec![deployment.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("readable") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let bytes = std::fs::read(&path).unwrap_or_default();
                let found = bytes.windows(secret().len()).any(|window| window == secret().as_bytes());
                assert!(!found, "{} holds a password", path.display());
            }
        }
    });
}
