//! Every method of the API as every kind of caller. The methods come from the descriptors: one without a row fails.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};
use watershed::pb::authpb::permission::Type;
use watershed::pb::etcdserverpb::alarm_request::AlarmAction;
use watershed::pb::etcdserverpb::watch_request::RequestUnion;
use watershed::pb::etcdserverpb::*;
use watershed::pb::healthpb::HealthCheckRequest;
use watershed::pb::methods::{METHODS, MethodKind};
use watershed::pb::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest};
use watershed::pb::v3lockpb::{LockRequest, UnlockRequest};

use super::{add_user, auth_of, log_in, no_password, permissions, permit, with};
use crate::harness::{Deployment, Target, client, is_stock, raw_first};
use crate::on_every_target;

on_every_target! {
    flags = ["--bcrypt-cost=4"];
    every_method_as_every_caller,
}

/// What a method asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Need {
    /// Nothing, and it looks at no token.
    Nothing,
    /// Nothing, but no invalid token either.
    NoWrongToken,
    /// Credentials.
    User,
    /// Permission for the keys in the message, or being the user that it names.
    Permission,
    /// The role root.
    Root,
}

/// How a call ended, as far as permissions go.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Passed,
    Nobody,
    WrongToken,
    Denied,
}

const CALLERS: [&str; 6] = ["anonymous", "bad token", "expired token", "user without role", "user", "root"];

impl Need {
    /// The ends for [`CALLERS`].
    fn ends(self) -> [End; 6] {
        use End::*;
        match self {
            Self::Nothing => [Passed; 6],
            Self::NoWrongToken => [Passed, WrongToken, WrongToken, Passed, Passed, Passed],
            Self::User => [Nobody, WrongToken, WrongToken, Passed, Passed, Passed],
            Self::Permission => [Nobody, WrongToken, WrongToken, Denied, Passed, Passed],
            Self::Root => [Nobody, WrongToken, WrongToken, Denied, Denied, Passed],
        }
    }
}

const LEASE: i64 = 77;
const REVOKED_LEASE: i64 = 78;
const KEPT_LEASE: i64 = 79;

/// One row for each method: a message that passes the checks before those of permissions and does no harm when it passes
/// those too.
fn rows(peer_url: String) -> BTreeMap<&'static str, (Need, Bytes)> {
    fn bytes(message: impl Message) -> Bytes {
        message.encode_to_vec().into()
    }
    let name = |name: &str| name.to_owned();
    let key = || Bytes::from("k");
    let watch = WatchCreateRequest { key: key(), ..Default::default() };
    let leader = || LeaderKey { name: key(), key: "k/4d".into(), rev: 1, lease: LEASE };
    let kv = [
        ("Range", Need::Permission, bytes(RangeRequest { key: key(), ..Default::default() })),
        ("RangeStream", Need::Permission, bytes(RangeRequest { key: key(), ..Default::default() })),
        ("Put", Need::Permission, bytes(PutRequest { key: key(), ..Default::default() })),
        ("DeleteRange", Need::Permission, bytes(DeleteRangeRequest { key: "kx".into(), ..Default::default() })),
        ("Txn", Need::Permission, bytes(TxnRequest { compare: vec![compare("k")], ..Default::default() })),
        ("Compact", Need::Root, bytes(CompactionRequest { revision: 1, physical: false })),
    ];
    let lease = [
        ("LeaseGrant", Need::User, bytes(LeaseGrantRequest { ttl: 60, id: 0 })),
        ("LeaseRevoke", Need::Permission, bytes(LeaseRevokeRequest { id: REVOKED_LEASE })),
        ("LeaseKeepAlive", Need::Permission, bytes(LeaseKeepAliveRequest { id: KEPT_LEASE })),
        ("LeaseTimeToLive", Need::Permission, bytes(LeaseTimeToLiveRequest { id: KEPT_LEASE, keys: true })),
        ("LeaseLeases", Need::Permission, bytes(LeaseLeasesRequest {})),
    ];
    let cluster = [
        ("MemberList", Need::User, bytes(MemberListRequest { linearizable: true })),
        ("MemberAdd", Need::Root, bytes(MemberAddRequest { peer_ur_ls: vec![peer_url.clone()], is_learner: true })),
        ("MemberRemove", Need::Root, bytes(MemberRemoveRequest { id: 99 })),
        ("MemberUpdate", Need::Root, bytes(MemberUpdateRequest { id: 99, peer_ur_ls: vec![peer_url] })),
        ("MemberPromote", Need::Root, bytes(MemberPromoteRequest { id: 99 })),
    ];
    let raise = AlarmRequest { action: AlarmAction::Activate as i32, member_id: 0, alarm: AlarmType::None as i32 };
    let maintenance = [
        ("Alarm", Need::Root, bytes(raise)),
        ("Status", Need::User, bytes(StatusRequest {})),
        ("Defragment", Need::Root, bytes(DefragmentRequest {})),
        ("Hash", Need::Root, bytes(HashRequest {})),
        ("HashKV", Need::Root, bytes(HashKvRequest { revision: 0 })),
        ("Snapshot", Need::Root, bytes(SnapshotRequest {})),
        ("MoveLeader", Need::Root, bytes(MoveLeaderRequest { target_id: 99 })),
        ("Downgrade", Need::Root, bytes(DowngradeRequest::default())),
    ];
    let alice = || name("alice");
    let none = || name("none");
    let auth = [
        ("AuthEnable", Need::Root, bytes(AuthEnableRequest {})),
        ("AuthDisable", Need::Root, bytes(AuthDisableRequest {})),
        ("AuthStatus", Need::NoWrongToken, bytes(AuthStatusRequest {})),
        ("Authenticate", Need::Nothing, bytes(AuthenticateRequest { name: none(), password: none() })),
        (
            "UserAdd",
            Need::Root,
            bytes(AuthUserAddRequest { name: alice(), options: no_password(), ..Default::default() }),
        ),
        ("UserGet", Need::Permission, bytes(AuthUserGetRequest { name: alice() })),
        ("UserList", Need::Root, bytes(AuthUserListRequest {})),
        ("UserDelete", Need::Root, bytes(AuthUserDeleteRequest { name: none() })),
        (
            "UserChangePassword",
            Need::Root,
            bytes(AuthUserChangePasswordRequest { name: none(), password: none(), ..Default::default() }),
        ),
        ("UserGrantRole", Need::Root, bytes(AuthUserGrantRoleRequest { user: none(), role: none() })),
        ("UserRevokeRole", Need::Root, bytes(AuthUserRevokeRoleRequest { name: none(), role: none() })),
        ("RoleAdd", Need::Root, bytes(AuthRoleAddRequest { name: alice() })),
        ("RoleGet", Need::Permission, bytes(AuthRoleGetRequest { role: alice() })),
        ("RoleList", Need::Root, bytes(AuthRoleListRequest {})),
        ("RoleDelete", Need::Root, bytes(AuthRoleDeleteRequest { role: none() })),
        ("RoleGrantPermission", Need::Root, bytes(AuthRoleGrantPermissionRequest { name: none(), perm: None })),
        (
            "RoleRevokePermission",
            Need::Root,
            bytes(AuthRoleRevokePermissionRequest { role: none(), ..Default::default() }),
        ),
    ];
    let election = [
        ("Campaign", Need::Permission, bytes(CampaignRequest { name: key(), lease: LEASE, value: key() })),
        ("Proclaim", Need::Permission, bytes(ProclaimRequest { leader: Some(leader()), value: key() })),
        ("Leader", Need::Permission, bytes(LeaderRequest { name: key() })),
        ("Observe", Need::Permission, bytes(LeaderRequest { name: key() })),
        ("Resign", Need::Permission, bytes(ResignRequest { leader: Some(leader()) })),
    ];
    let lock = [
        ("Lock", Need::Permission, bytes(LockRequest { name: "kl".into(), lease: LEASE })),
        ("Unlock", Need::Permission, bytes(UnlockRequest { key: "kl/x".into() })),
    ];
    let health = || bytes(HealthCheckRequest::default());
    let health = ["Check", "List", "Watch"].map(|method| (method, Need::Nothing, health()));
    let watch =
        [("Watch", Need::Permission, bytes(WatchRequest { request_union: Some(RequestUnion::CreateRequest(watch)) }))];
    let mut rows = BTreeMap::new();
    type Row<'a> = (&'a str, Need, Bytes);
    let services: [(&str, &[Row]); 9] = [
        ("etcdserverpb.KV", &kv),
        ("etcdserverpb.Lease", &lease),
        ("etcdserverpb.Cluster", &cluster),
        ("etcdserverpb.Maintenance", &maintenance),
        ("etcdserverpb.Auth", &auth),
        ("v3electionpb.Election", &election),
        ("v3lockpb.Lock", &lock),
        ("grpc.health.v1.Health", &health),
        ("etcdserverpb.Watch", &watch),
    ];
    for (service, methods) in services {
        for (method, need, message) in methods {
            let found = METHODS.iter().find(|one| one.service == service && one.name == *method);
            let path = found.unwrap_or_else(|| panic!("{service}/{method} is no method")).path;
            rows.insert(path, (*need, message.clone()));
        }
    }
    rows
}

fn compare(key: &'static str) -> Compare {
    Compare { key: key.into(), ..Default::default() }
}

/// What a call says of permissions. Locks and elections answer with the code Unknown and the text of what failed.
fn end_of(path: &str, answer: Result<Option<Bytes>, Status>) -> End {
    let recipe = path.starts_with("/v3");
    let known = [
        (End::Nobody, Code::InvalidArgument, "etcdserver: user name is empty"),
        (End::WrongToken, Code::Unauthenticated, "etcdserver: invalid auth token"),
        (End::Denied, Code::PermissionDenied, "etcdserver: permission denied"),
    ];
    match answer {
        Ok(Some(first)) if path.ends_with("Watch/Watch") => {
            let reason = WatchResponse::decode(first).expect("an answer").cancel_reason;
            known.iter().find(|(_, _, text)| reason.contains(text)).map_or(End::Passed, |(end, _, _)| *end)
        }
        Ok(_) => End::Passed,
        Err(status) => match known.iter().find(|(_, _, text)| status.message().contains(text)) {
            Some((end, code, text)) => {
                assert!(recipe || (status.code(), status.message()) == (*code, *text), "{path}: {status:?}");
                *end
            }
            None => {
                let codes = [Code::PermissionDenied, Code::Unauthenticated];
                assert!(!codes.contains(&status.code()), "{path}: {status:?}");
                End::Passed
            }
        },
    }
}

async fn every_method_as_every_caller(deployment: &mut Deployment) {
    let (root, alice) = permissions::alice(deployment, &[(Type::Readwrite, "k", "l")]).await;
    let endpoint = deployment.endpoint.clone();
    for name in ["bob", "carol"] {
        add_user(&endpoint, &root, name).await;
    }
    permit(&endpoint, &root, "carol", Type::Readwrite, "k", "l").await.expect("as alice");
    let (without, ended) =
        (log_in(&endpoint, "bob").await.expect("bob"), log_in(&endpoint, "carol").await.expect("carol"));
    let change = AuthUserChangePasswordRequest { name: "carol".into(), password: "new".into(), ..Default::default() };
    auth_of(&endpoint).user_change_password(with(&root, change)).await.expect("ends the token");
    let tokens = ["", "abc.1", &ended, &without, &alice, &root];

    for id in [LEASE, REVOKED_LEASE, KEPT_LEASE] {
        let grant = LeaseGrantRequest { ttl: 600, id };
        deployment.client.lease().lease_grant(with(&root, grant)).await.expect("a lease");
        let put = PutRequest { key: format!("k{id}").into(), lease: id, ..Default::default() };
        deployment.client.kv().put(with(&root, put)).await.expect("a key of it");
    }
    let list = with(&root, MemberListRequest::default());
    let member = client(&deployment.member);
    let members = member.cluster().member_list(list).await.expect("members").into_inner().members;
    let mut rows = rows(members[0].peer_ur_ls[0].clone());
    if deployment.target == Target::Proxy {
        // Answered by the proxy: the names and client URLs of proxies, as etcd's proxy does.
        let list = rows.get_mut("/etcdserverpb.Cluster/MemberList").expect("a row");
        list.0 = Need::Nothing;
    }
    if is_stock() {
        // Ends without an answer or a status there, whoever asks and for what.
        rows.get_mut("/v3electionpb.Election/Observe").expect("a row").0 = Need::Nothing;
    }
    let without_row: Vec<_> = METHODS.iter().map(|one| one.path).filter(|path| !rows.contains_key(path)).collect();
    assert!(without_row.is_empty(), "no row in the matrix: {without_row:?}");

    let mut wrong = Vec::new();
    // What turns auth off comes last.
    let (last, first): (Vec<_>, Vec<_>) = METHODS.iter().partition(|one| one.name == "AuthDisable");
    for method in first.into_iter().chain(last) {
        let (need, message) = &rows[method.path];
        for ((caller, token), expected) in CALLERS.into_iter().zip(tokens).zip(need.ends()) {
            let ends = method.kind != MethodKind::BidiStream;
            let answer = raw_first(&deployment.client, method.path, token, message.clone(), ends).await;
            let shown = format!("{answer:?}");
            let end = end_of(method.path, answer);
            if end != expected {
                wrong.push(format!("{} as {caller}: {end:?}, not {expected:?}: {shown:.120}", method.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
