//! Users, roles and tokens on several members.

use tonic::{Code, Request, Status};
use watershed::client::Client;
use watershed::pb::authpb::Permission;
use watershed::pb::authpb::permission::Type;
use watershed::pb::etcdserverpb::auth_client::AuthClient;
use watershed::pb::etcdserverpb::*;

use super::story::on_three;
use crate::harness::{Cluster, refused, until};

fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("token", token.parse().expect("ascii"));
    request
}

async fn log_in(client: &Client, name: &str) -> Result<String, Status> {
    let request = AuthenticateRequest { name: name.to_owned(), password: name.to_owned() };
    Ok(AuthClient::new(client.channel()).authenticate(request).await?.into_inner().token)
}

async fn put(client: &Client, token: &str, key: &'static str) -> Result<(), Status> {
    client.kv().put(with(token, PutRequest { key: key.into(), ..Default::default() })).await.map(drop)
}

#[test]
fn every_member_knows_users_and_tokens_also_one_that_was_away() {
    let flags = ["--bcrypt-cost=4", "--snapshot-count=10", "--snapshot-catchup-entries=5"];
    on_three(&flags, async |cluster: &mut Cluster| {
        let (first, away) = (cluster.leader().await, cluster.follower().await);
        let client = cluster.member(first);
        let mut auth = AuthClient::new(client.channel());
        for name in ["root", "alice"] {
            let user = AuthUserAddRequest { name: name.into(), password: name.into(), ..Default::default() };
            auth.user_add(user).await.expect("a user");
            auth.role_add(AuthRoleAddRequest { name: name.into() }).await.expect("a role");
            let role = AuthUserGrantRoleRequest { user: name.into(), role: name.into() };
            auth.user_grant_role(role).await.expect("granted");
        }
        let perm = Permission { perm_type: Type::Readwrite as i32, key: "k".into(), range_end: "".into() };
        let permission = AuthRoleGrantPermissionRequest { name: "alice".into(), perm: Some(perm) };
        auth.role_grant_permission(permission).await.expect("permitted");
        auth.auth_enable(AuthEnableRequest {}).await.expect("on");

        // A token works on every member the moment it is answered.
        let alice = log_in(&client, "alice").await.expect("in");
        for number in [0, 1, 2] {
            let member = cluster.member(number);
            put(&member, &alice, "k").await.expect("known everywhere");
            let denied = put(&member, &alice, "x").await.expect_err("no permission");
            assert_eq!(denied.code(), Code::PermissionDenied);
        }
        // One that was away and gets a snapshot has the same users and roles, and knows of what it missed.
        cluster.kill(away);
        let root = log_in(&client, "root").await.expect("in");
        let revoke = AuthUserRevokeRoleRequest { name: "alice".into(), role: "alice".into() };
        auth.user_revoke_role(with(&root, revoke)).await.expect("revoked");
        for _ in 0..40 {
            put(&client, &root, "filler").await.expect("root");
        }
        cluster.spawn(away);
        let late = cluster.member(away);
        let again = until("the member", || {
            let late = late.clone();
            async move { log_in(&late, "alice").await.ok() }
        })
        .await;
        let denied = put(&late, &again, "k").await.expect_err("revoked while it was away");
        assert_eq!(denied.code(), Code::PermissionDenied);
        let read = RangeRequest { key: "k".into(), serializable: true, ..Default::default() };
        let denied = late.kv().range(with(&again, read)).await;
        refused(denied, Code::PermissionDenied, "etcdserver: permission denied");
        let mut revisions = Vec::new();
        for number in [0, 1, 2] {
            let member = cluster.member(number);
            let status = AuthClient::new(member.channel()).auth_status(AuthStatusRequest {}).await.expect("status");
            revisions.push((status.get_ref().enabled, status.get_ref().auth_revision));
        }
        assert!(revisions.iter().all(|one| *one == revisions[0] && one.0), "{revisions:?}");
    });
}
