//! Errors of the cluster reach the client with the member's code and text.

use prost::Message;
use tonic::Status;
use watershed::client::Client;
use watershed::pb::authpb::permission::Type;
use watershed::pb::authpb::{Permission, UserAddOptions};
use watershed::pb::etcdserverpb::*;
use watershed::pb::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest};
use watershed::pb::v3lockpb::LockRequest;

use crate::features::auth::{FLAGS, add_user, enable, log_in, permit};
use crate::harness::{Deployment, Target, client, raw_first, run};

/// One request of a name.
struct Case(&'static str, &'static str, Vec<u8>);

fn case(name: &'static str, path: &'static str, message: impl Message) -> Case {
    Case(name, path, message.encode_to_vec())
}

fn put(request: PutRequest) -> Case {
    case("put", "/etcdserverpb.KV/Put", request)
}

fn range(request: RangeRequest) -> Case {
    case("range", "/etcdserverpb.KV/Range", request)
}

fn txn(success: Vec<request_op::Request>, compare: Vec<Compare>) -> Case {
    let success = success.into_iter().map(|request| RequestOp { request: Some(request) }).collect();
    case("txn", "/etcdserverpb.KV/Txn", TxnRequest { compare, success, ..Default::default() })
}

/// How the call ends, and whether it was refused.
async fn outcome(client: &Client, token: &str, case: &Case) -> Result<(), (tonic::Code, String)> {
    let answer = raw_first(client, case.1, token, case.2.clone().into(), true).await;
    answer.map(drop).map_err(|status: Status| (status.code(), status.message().to_owned()))
}

/// A member of etcd 3.5 answers a change of members before its raft counts it as applied, and drops another one until then: a
/// write in between comes after that, whatever becomes of it.
async fn settled(member: &Client, token: &str, case: &Case) {
    if case.1.starts_with("/etcdserverpb.Cluster/") {
        let _ = outcome(member, token, &put(PutRequest { key: "k".into(), ..Default::default() })).await;
    }
}

/// Asserts that each case ends alike at the member and through the proxy; returns how many are refused.
async fn compare(deployment: &Deployment, token: &str, cases: &[Case]) -> usize {
    let (direct, through) = (client(&deployment.member), client(&deployment.endpoint));
    let (mut different, mut refused) = (Vec::new(), 0);
    for case in cases {
        let expected = outcome(&direct, token, case).await;
        settled(&direct, token, case).await;
        let got = outcome(&through, token, case).await;
        settled(&direct, token, case).await;
        // Some version may take what others refuse.
        refused += usize::from(expected.is_err());
        if got != expected {
            different.push(format!("{} {}: {got:?} in place of {expected:?}", case.0, case.1));
        }
    }
    assert!(different.is_empty(), "of {} cases:\n{}", cases.len(), different.join("\n"));
    refused
}

/// Requests that a member refuses whoever asks; `compacted` and `future` are revisions.
fn refused_cases(compacted: i64, future: i64) -> Vec<Case> {
    let op = |put: PutRequest| request_op::Request::RequestPut(put);
    let key = |key: &'static str| PutRequest { key: key.into(), ..Default::default() };
    let at = |revision| RangeRequest { key: "k".into(), revision, ..Default::default() };
    let lease = |id| PutRequest { lease: id, ..key("k") };
    let user = "nobody".to_owned();
    vec![
        range(RangeRequest::default()),
        range(at(compacted)),
        range(at(future)),
        put(PutRequest::default()),
        put(PutRequest { value: "v".into(), ignore_value: true, ..key("k") }),
        put(PutRequest { lease: 9, ignore_lease: true, ..key("k") }),
        put(PutRequest { ignore_value: true, ..key("absent") }),
        put(PutRequest { ignore_lease: true, ..key("absent") }),
        put(lease(987_654)),
        put(PutRequest { value: vec![b'v'; 1_600_000].into(), ..key("k") }),
        put(PutRequest { value: vec![b'v'; 3_000_000].into(), ..key("k") }),
        case("delete", "/etcdserverpb.KV/DeleteRange", DeleteRangeRequest::default()),
        txn(vec![op(key("a")), op(key("a"))], vec![]),
        txn(
            (0..200).map(|number| op(PutRequest { key: number.to_string().into(), ..Default::default() })).collect(),
            vec![],
        ),
        txn(vec![op(PutRequest::default())], vec![]),
        txn(vec![op(lease(987_654))], vec![]),
        txn(vec![op(PutRequest { ignore_value: true, ..key("absent") })], vec![]),
        txn(vec![request_op::Request::RequestRange(at(compacted))], vec![]),
        txn(vec![request_op::Request::RequestRange(at(future))], vec![]),
        txn(vec![], vec![Compare::default()]),
        case("compact", "/etcdserverpb.KV/Compact", CompactionRequest { revision: compacted, physical: false }),
        case("compact", "/etcdserverpb.KV/Compact", CompactionRequest { revision: future, physical: false }),
        case("grant taken", "/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest { ttl: 60, id: 7 }),
        case("grant long", "/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest { ttl: i64::MAX, id: 0 }),
        case("revoke", "/etcdserverpb.Lease/LeaseRevoke", LeaseRevokeRequest { id: 987_654 }),
        case("remove", "/etcdserverpb.Cluster/MemberRemove", MemberRemoveRequest { id: 5 }),
        case("promote", "/etcdserverpb.Cluster/MemberPromote", MemberPromoteRequest { id: 5 }),
        case(
            "update",
            "/etcdserverpb.Cluster/MemberUpdate",
            MemberUpdateRequest { id: 5, peer_ur_ls: vec!["http://127.0.0.1:1".into()] },
        ),
        case("move", "/etcdserverpb.Maintenance/MoveLeader", MoveLeaderRequest { target_id: 5 }),
        case("hash", "/etcdserverpb.Maintenance/HashKV", HashKvRequest { revision: future }),
        case("enable", "/etcdserverpb.Auth/AuthEnable", AuthEnableRequest {}),
        case(
            "login",
            "/etcdserverpb.Auth/Authenticate",
            AuthenticateRequest { name: user.clone(), password: user.clone() },
        ),
        case(
            "user",
            "/etcdserverpb.Auth/UserAdd",
            AuthUserAddRequest { options: Some(UserAddOptions { no_password: false }), ..Default::default() },
        ),
        case("user", "/etcdserverpb.Auth/UserGet", AuthUserGetRequest { name: user.clone() }),
        case("user", "/etcdserverpb.Auth/UserDelete", AuthUserDeleteRequest { name: user.clone() }),
        case(
            "user",
            "/etcdserverpb.Auth/UserChangePassword",
            AuthUserChangePasswordRequest { name: user.clone(), password: "p".into(), ..Default::default() },
        ),
        case(
            "user",
            "/etcdserverpb.Auth/UserGrantRole",
            AuthUserGrantRoleRequest { user: user.clone(), role: user.clone() },
        ),
        case("role", "/etcdserverpb.Auth/RoleAdd", AuthRoleAddRequest::default()),
        case("role", "/etcdserverpb.Auth/RoleGet", AuthRoleGetRequest { role: user.clone() }),
        case("role", "/etcdserverpb.Auth/RoleDelete", AuthRoleDeleteRequest { role: user.clone() }),
        case(
            "role",
            "/etcdserverpb.Auth/RoleGrantPermission",
            AuthRoleGrantPermissionRequest {
                name: user,
                perm: Some(Permission { key: "k".into(), ..Default::default() }),
            },
        ),
        case("leader", "/v3electionpb.Election/Leader", LeaderRequest { name: "absent".into() }),
        case(
            "proclaim",
            "/v3electionpb.Election/Proclaim",
            ProclaimRequest {
                leader: Some(LeaderKey { name: "absent".into(), key: "absent/1".into(), rev: 1, lease: 9 }),
                value: "v".into(),
            },
        ),
        case(
            "campaign",
            "/v3electionpb.Election/Campaign",
            CampaignRequest { name: "e".into(), lease: 987_654, value: "v".into() },
        ),
        case("lock", "/v3lockpb.Lock/Lock", LockRequest { name: "l".into(), lease: 987_654 }),
        case("unknown method", "/etcdserverpb.KV/Nothing", RangeRequest::default()),
        case("unknown service", "/nobody.Knows/It", RangeRequest::default()),
        Case("no message", "/etcdserverpb.KV/Range", b"\xff\xff\xff".to_vec()),
    ]
}

#[test]
fn every_refusal_is_the_members() {
    run(Target::Proxy, &[], async |deployment: &mut Deployment| {
        for _ in 0..3 {
            deployment.put("k", "v").await;
        }
        let compacted = deployment.put("k", "v").await - 2;
        deployment.compact(compacted + 1).await;
        deployment.member_client().lease().lease_grant(LeaseGrantRequest { ttl: 600, id: 7 }).await.expect("granted");
        let cases = refused_cases(compacted, compacted + 1_000_000);
        let refused = compare(deployment, "", &cases).await;
        assert!(refused + 3 >= cases.len(), "{refused} of {} are refused", cases.len());
    });
}

#[test]
fn refusals_of_users_are_the_members() {
    run(Target::Proxy, &FLAGS, async |deployment: &mut Deployment| {
        let root = enable(deployment).await;
        let member = deployment.member.clone();
        add_user(&member, &root, "alice").await;
        permit(&member, &root, "alice", Type::Readwrite, "a/", "a0").await.expect("permitted");
        let alice = log_in(&member, "alice").await.expect("alice");
        let key = |key: &'static str| PutRequest { key: key.into(), ..Default::default() };
        let read = |key: &'static str| RangeRequest { key: key.into(), ..Default::default() };
        let cases = || {
            vec![
                put(key("b/1")),
                range(read("b/1")),
                range(RangeRequest { serializable: true, ..read("b/1") }),
                range(RangeRequest { range_end: "b".into(), ..read("a/") }),
                txn(vec![request_op::Request::RequestPut(key("b/1"))], vec![]),
                case(
                    "delete",
                    "/etcdserverpb.KV/DeleteRange",
                    DeleteRangeRequest { key: "b/1".into(), ..Default::default() },
                ),
                case(
                    "add",
                    "/etcdserverpb.Cluster/MemberAdd",
                    MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:1".into()], is_learner: false },
                ),
                case("defragment", "/etcdserverpb.Maintenance/Defragment", DefragmentRequest {}),
                case("users", "/etcdserverpb.Auth/UserList", AuthUserListRequest {}),
                case("roles", "/etcdserverpb.Auth/RoleList", AuthRoleListRequest {}),
                case("disable", "/etcdserverpb.Auth/AuthDisable", AuthDisableRequest {}),
            ]
        };
        for token in [alice.as_str(), "", "nonsense", "nonsense.17"] {
            assert_eq!(compare(deployment, token, &cases()).await, cases().len());
        }
        let wrong = AuthenticateRequest { name: "alice".into(), password: "wrong".into() };
        compare(deployment, "", &[case("login", "/etcdserverpb.Auth/Authenticate", wrong)]).await;
    });
}
