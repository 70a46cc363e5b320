//! Every method of the API as every kind of caller, by gRPC, as JSON and by certificate. The methods come from the descriptors: one without a row fails.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use prost_reflect::DynamicMessage;
use tonic::{Code, Status};
use watershed::client::Client;
use watershed::pb::authpb::permission::Type;
use watershed::pb::etcdserverpb::alarm_request::AlarmAction;
use watershed::pb::etcdserverpb::watch_request::RequestUnion;
use watershed::pb::etcdserverpb::*;
use watershed::pb::healthpb::HealthCheckRequest;
use watershed::pb::methods::{METHODS, Method, MethodKind};
use watershed::pb::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest};
use watershed::pb::v3lockpb::{LockRequest, UnlockRequest};
use watershed::pb::{descriptors, http_paths};

use super::{add_user, auth_of, log_in, no_password, permissions, permit, secure_client, with};
use crate::harness::{Certificates, Deployment, JsonCall, Target, client, is_stock, raw_first, run, until};
use crate::on_every_target;

on_every_target! {
    flags = ["--bcrypt-cost=4"];
    every_method_as_every_caller,
    every_method_as_every_caller_in_json,
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

    /// The ends where the first caller shows a certificate without a name: credentials, of a user that has no permission
    /// and is none where a user is looked up.
    fn ends_by_certificate(self, method: &Method) -> [End; 6] {
        let mut ends = self.ends();
        match self {
            Self::User => ends[0] = End::Passed,
            Self::Permission if method.service != "etcdserverpb.Auth" => ends[0] = End::Denied,
            _ => {}
        }
        ends
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

const REFUSALS: [(End, Code, &str); 3] = [
    (End::Nobody, Code::InvalidArgument, "etcdserver: user name is empty"),
    (End::WrongToken, Code::Unauthenticated, "etcdserver: invalid auth token"),
    (End::Denied, Code::PermissionDenied, "etcdserver: permission denied"),
];

/// What the reason for which a watch was canceled says of permissions.
fn end_of_reason(reason: &str) -> End {
    REFUSALS.iter().find(|(_, _, text)| reason.contains(text)).map_or(End::Passed, |(end, _, _)| *end)
}

/// What a call says of permissions. Locks and elections answer with the code Unknown and the text of what failed.
fn end_of(path: &str, answer: Result<Option<Bytes>, Status>) -> End {
    let recipe = path.starts_with("/v3");
    match answer {
        Ok(Some(first)) if path.ends_with("Watch/Watch") => {
            end_of_reason(&WatchResponse::decode(first).expect("an answer").cancel_reason)
        }
        Ok(_) => End::Passed,
        Err(status) => match REFUSALS.iter().find(|(_, _, text)| status.message().contains(text)) {
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

/// What a call as JSON says of permissions. The form of a refusal is that of grpc-gateway; the text is the one of gRPC.
async fn end_of_json(endpoint: &str, method: &Method, token: &str, message: &Bytes) -> Option<(End, String)> {
    let described = descriptors().get_service_by_name(method.service).expect("a service");
    let described = described.methods().find(|one| one.name() == method.name).expect("a method");
    let path = http_paths(&described).into_iter().next()?;
    let message = DynamicMessage::decode(described.input(), message.clone()).expect("a message");
    let body = serde_json::to_string(&message).expect("JSON");
    let header = if token.is_empty() { String::new() } else { format!("Authorization: {token}\r\n") };
    let mut call = JsonCall::post_with(endpoint, &path, &header, &body).await;
    // The first answer of a stream, or all of an answer.
    let streams = matches!(method.kind, MethodKind::ServerStream | MethodKind::BidiStream);
    let answer = if streams { call.line().await.unwrap_or_default() } else { call.whole().await };
    let error = if answer["error"].is_object() { &answer["error"] } else { &answer };
    let shown = format!("{answer:.120}");
    let end = match (error["code"].as_i64(), error["message"].as_str()) {
        (Some(code), Some(text)) => {
            let status = Status::new(Code::from_i32(i32::try_from(code).expect("a code")), text);
            end_of(method.path, Err(status))
        }
        // A watch that is refused is an answer too.
        _ => match answer["result"]["cancel_reason"].as_str() {
            Some(reason) => end_of_reason(reason),
            None => End::Passed,
        },
    };
    Some((end, shown))
}

/// The users of the matrix and what the rows need. Tokens of each of [`CALLERS`].
async fn prepare(deployment: &Deployment) -> [String; 6] {
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

    for id in [LEASE, REVOKED_LEASE, KEPT_LEASE] {
        let grant = LeaseGrantRequest { ttl: 600, id };
        deployment.client.lease().lease_grant(with(&root, grant)).await.expect("a lease");
        let put = PutRequest { key: format!("k{id}").into(), lease: id, ..Default::default() };
        deployment.client.kv().put(with(&root, put)).await.expect("a key of it");
    }
    [String::new(), "abc.1".to_owned(), ended, without, alice, root]
}

/// The rows for a deployment.
async fn rows_for(deployment: &Deployment, root: &str) -> BTreeMap<&'static str, (Need, Bytes)> {
    let list = with(root, MemberListRequest::default());
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
    rows
}

/// Makes every call as every caller. `ask` makes one and tells how it ended, and what was answered; none if there is no
/// such call.
async fn compare_all(
    rows: &BTreeMap<&'static str, (Need, Bytes)>,
    ends: impl Fn(Need, &Method) -> [End; 6],
    ask: impl AsyncFn(&'static Method, usize, &Bytes) -> Option<(End, String)>,
) {
    let (mut wrong, mut asked) = (Vec::new(), 0);
    // What turns auth off comes last.
    let (last, first): (Vec<_>, Vec<_>) = METHODS.iter().partition(|one| one.name == "AuthDisable");
    for method in first.into_iter().chain(last) {
        let (need, message) = &rows[method.path];
        for ((number, caller), expected) in CALLERS.into_iter().enumerate().zip(ends(*need, method)) {
            let Some((end, shown)) = ask(method, number, message).await else { continue };
            asked += 1;
            if end != expected {
                wrong.push(format!("{} as {caller}: {end:?}, not {expected:?}: {shown:.120}", method.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // All but those without a path of JSON: health, and the streamed range.
    assert!(asked >= (METHODS.len() - 4) * CALLERS.len(), "{asked} calls");
}

async fn ask_by_grpc(client: &Client, method: &Method, token: &str, message: &Bytes) -> (End, String) {
    let ends = method.kind != MethodKind::BidiStream;
    let answer = raw_first(client, method.path, token, message.clone(), ends).await;
    let shown = format!("{answer:?}");
    (end_of(method.path, answer), shown)
}

async fn every_method_as_every_caller(deployment: &mut Deployment) {
    let tokens = prepare(deployment).await;
    let rows = rows_for(deployment, &tokens[5]).await;
    let client = &deployment.client;
    compare_all(
        &rows,
        |need, _| need.ends(),
        async |method, caller, message| Some(ask_by_grpc(client, method, &tokens[caller], message).await),
    )
    .await;
}

async fn every_method_as_every_caller_in_json(deployment: &mut Deployment) {
    let tokens = prepare(deployment).await;
    let rows = rows_for(deployment, &tokens[5]).await;
    compare_all(
        &rows,
        |need, _| need.ends(),
        async |method, caller, message| end_of_json(&deployment.endpoint, method, &tokens[caller], message).await,
    )
    .await;
}

/// The same callers by their certificates. One that sends a token as well is whoever the token says.
#[test]
fn every_method_by_certificate() {
    let certificates = Certificates::new(&["root", "alice", "bob"]);
    let mut flags = certificates.client_flags();
    flags.extend(["--client-cert-auth", "--bcrypt-cost=4"].map(str::to_owned));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    for through_gateway in [false, true] {
        run(Target::Core, &flags, async |deployment: &mut Deployment| {
            let [_, bad, ended, ..] = prepare(deployment).await;
            let (_gateway, endpoint) = match through_gateway {
                true => {
                    let (process, endpoint) = deployment.secure_gateway();
                    (Some(process), endpoint)
                }
                false => (None, deployment.secure.clone()),
            };
            let callers =
                [("nameless", ""), ("root", &*bad), ("bob", &*ended), ("bob", ""), ("alice", ""), ("root", "")];
            let clients = callers.map(|(name, _)| secure_client(&endpoint, certificates.tls(name)));
            until("the gateway", async || clients[5].auth().user_list(AuthUserListRequest {}).await.ok()).await;
            let root = log_in(&deployment.endpoint, "root").await.expect("root");
            let rows = rows_for(deployment, &root).await;
            compare_all(&rows, Need::ends_by_certificate, async |method, caller, message| {
                Some(ask_by_grpc(&clients[caller], method, callers[caller].1, message).await)
            })
            .await;
        });
    }
}
