//! Changes of users, roles and of the auth flag; logins.

use tonic::Code;
use watershed::pb::authpb::permission::Type;
use watershed::pb::etcdserverpb::*;

use super::{add_user, auth_of, enable, log_in, no_password, permit, with};
use crate::harness::{Deployment, refused};
use crate::on_every_target;

on_every_target! {
    flags = ["--bcrypt-cost=4"];
    users_and_roles_are_prepared_while_auth_is_off,
    the_auth_revision_counts_changes,
    root_is_needed_and_cannot_be_lost,
    logins_are_checked,
    only_root_changes_users,
    tokens_end_with_password_user_and_auth,
}

async fn revision(deployment: &Deployment) -> u64 {
    let status = auth_of(&deployment.endpoint).auth_status(AuthStatusRequest {}).await.expect("status");
    status.into_inner().auth_revision
}

async fn users_and_roles_are_prepared_while_auth_is_off(deployment: &mut Deployment) {
    let mut auth = auth_of(&deployment.endpoint);
    let user = |name: &str| AuthUserAddRequest { name: name.to_owned(), password: "p".into(), ..Default::default() };
    auth.user_add(user("bob")).await.expect("a user");
    auth.user_add(AuthUserAddRequest { name: "cert".into(), options: no_password(), ..Default::default() })
        .await
        .expect("a user without a password");
    refused(auth.user_add(user("bob")).await, Code::FailedPrecondition, "etcdserver: user name already exists");
    refused(auth.user_add(user("")).await, Code::InvalidArgument, "etcdserver: user name is empty");
    let long = AuthUserAddRequest { name: "long".into(), password: "x".repeat(73), ..Default::default() };
    refused(auth.user_add(long).await, Code::Unknown, "bcrypt: password length exceeds 72 bytes");
    auth.user_add(AuthUserAddRequest { name: "empty".into(), ..Default::default() }).await.expect("an empty password");
    let listed = auth.user_list(AuthUserListRequest {}).await.expect("users").into_inner();
    assert_eq!(listed.users, ["bob", "cert", "empty"]);
    assert_eq!(listed.header.expect("header").revision, 1, "users are no keys");

    let role = |name: &str| AuthRoleAddRequest { name: name.to_owned() };
    for name in ["b", "a"] {
        auth.role_add(role(name)).await.expect("a role");
    }
    refused(auth.role_add(role("a")).await, Code::FailedPrecondition, "etcdserver: role name already exists");
    refused(auth.role_add(role("")).await, Code::InvalidArgument, "etcdserver: role name is empty");
    assert_eq!(auth.role_list(AuthRoleListRequest {}).await.expect("roles").into_inner().roles, ["a", "b"]);

    let grant = |user: &str, role: &str| AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
    for name in ["b", "a", "a"] {
        auth.user_grant_role(grant("bob", name)).await.expect("granted, again is no error");
    }
    refused(auth.user_grant_role(grant("x", "a")).await, Code::FailedPrecondition, "etcdserver: user name not found");
    refused(auth.user_grant_role(grant("bob", "x")).await, Code::FailedPrecondition, "etcdserver: role name not found");
    let get = AuthUserGetRequest { name: "bob".into() };
    assert_eq!(auth.user_get(get).await.expect("bob").into_inner().roles, ["a", "b"]);
    let nobody = auth.user_get(AuthUserGetRequest { name: "x".into() }).await;
    refused(nobody, Code::FailedPrecondition, "etcdserver: user name not found");

    let endpoint = &deployment.endpoint;
    permit(endpoint, "", "a", Type::Read, "k", "").await.expect("a key");
    permit(endpoint, "", "a", Type::Write, "c", "d").await.expect("a range");
    permit(endpoint, "", "a", Type::Readwrite, "k", "").await.expect("the same key again");
    for (key, end) in [("", ""), ("", "\0"), ("b", "a"), ("b", "b")] {
        let wrong = permit(endpoint, "", "a", Type::Read, key, end).await;
        refused(wrong, Code::InvalidArgument, "etcdserver: invalid auth management");
    }
    let without = AuthRoleGrantPermissionRequest { name: "a".into(), perm: None };
    let without = auth.role_grant_permission(without).await;
    refused(without, Code::InvalidArgument, "etcdserver: permission not given");
    let unknown = permit(endpoint, "", "x", Type::Read, "k", "").await;
    refused(unknown, Code::FailedPrecondition, "etcdserver: role name not found");
    let role = auth.role_get(AuthRoleGetRequest { role: "a".into() }).await.expect("role").into_inner();
    let shown: Vec<_> = role.perm.iter().map(|one| (one.perm_type, &one.key[..], &one.range_end[..])).collect();
    assert_eq!(shown, [(1, &b"c"[..], &b"d"[..]), (2, b"k", b"")]);

    let revoke = |key: &'static str, end: &'static str| AuthRoleRevokePermissionRequest {
        role: "a".into(),
        key: key.into(),
        range_end: end.into(),
    };
    let other = auth.role_revoke_permission(revoke("c", "e")).await;
    refused(other, Code::FailedPrecondition, "etcdserver: permission is not granted to the role");
    auth.role_revoke_permission(revoke("c", "d")).await.expect("revoked");
    let take = |role: &str| AuthUserRevokeRoleRequest { name: "bob".into(), role: role.into() };
    auth.user_revoke_role(take("b")).await.expect("revoked");
    let again = auth.user_revoke_role(take("b")).await;
    refused(again, Code::FailedPrecondition, "etcdserver: role is not granted to the user");
    auth.role_delete(AuthRoleDeleteRequest { role: "a".into() }).await.expect("deleted");
    let again = auth.role_delete(AuthRoleDeleteRequest { role: "a".into() }).await;
    refused(again, Code::FailedPrecondition, "etcdserver: role name not found");
    let roles = auth.user_get(AuthUserGetRequest { name: "bob".into() }).await.expect("bob").into_inner().roles;
    assert!(roles.is_empty(), "{roles:?}");
    auth.user_delete(AuthUserDeleteRequest { name: "bob".into() }).await.expect("deleted");
    let again = auth.user_delete(AuthUserDeleteRequest { name: "bob".into() }).await;
    refused(again, Code::FailedPrecondition, "etcdserver: user name not found");
    let change = AuthUserChangePasswordRequest { name: "bob".into(), password: "p".into(), ..Default::default() };
    let nobody = auth.user_change_password(change).await;
    refused(nobody, Code::FailedPrecondition, "etcdserver: user name not found");
}

async fn the_auth_revision_counts_changes(deployment: &mut Deployment) {
    assert_eq!(revision(deployment).await, 1);
    let endpoint = deployment.endpoint.clone();
    add_user(&endpoint, "", "root").await;
    assert_eq!(revision(deployment).await, 4, "a user, a role, the role for the user");
    let mut auth = auth_of(&endpoint);
    let again = AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
    auth.user_grant_role(again).await.expect("no error");
    auth.auth_enable(AuthEnableRequest {}).await.expect("on");
    auth.auth_enable(AuthEnableRequest {}).await.expect_err("auth is on now, and this is nobody");
    assert_eq!(revision(deployment).await, 4, "neither a role it has nor turning auth on counts");
    let root = log_in(&endpoint, "root").await.expect("root");
    auth.auth_disable(with(&root, AuthDisableRequest {})).await.expect("off");
    auth.auth_disable(AuthDisableRequest {}).await.expect("again is no error");
    assert_eq!(revision(deployment).await, 5);
}

async fn root_is_needed_and_cannot_be_lost(deployment: &mut Deployment) {
    let endpoint = deployment.endpoint.clone();
    let mut auth = auth_of(&endpoint);
    let text = "etcdserver: root user does not exist";
    refused(auth.auth_enable(AuthEnableRequest {}).await, Code::FailedPrecondition, text);
    let root = AuthUserAddRequest { name: "root".into(), password: "root".into(), ..Default::default() };
    auth.user_add(root).await.expect("root");
    let text = "etcdserver: root user does not have root role";
    refused(auth.auth_enable(AuthEnableRequest {}).await, Code::FailedPrecondition, text);
    let grant = AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
    auth.user_grant_role(grant).await.expect("the role root need not exist");
    auth.auth_enable(AuthEnableRequest {}).await.expect("on");

    let root = log_in(&endpoint, "root").await.expect("root");
    let text = "etcdserver: invalid auth management";
    let delete = auth.user_delete(with(&root, AuthUserDeleteRequest { name: "root".into() })).await;
    refused(delete, Code::InvalidArgument, text);
    let revoke = AuthUserRevokeRoleRequest { name: "root".into(), role: "root".into() };
    refused(auth.user_revoke_role(with(&root, revoke)).await, Code::InvalidArgument, text);
    let delete = auth.role_delete(with(&root, AuthRoleDeleteRequest { role: "root".into() })).await;
    refused(delete, Code::InvalidArgument, text);
    let status = auth.auth_status(AuthStatusRequest {}).await.expect("for everybody").into_inner();
    assert!(status.enabled);
    let missing = auth.role_get(with(&root, AuthRoleGetRequest { role: "root".into() })).await;
    refused(missing, Code::FailedPrecondition, "etcdserver: role name not found");
    auth.role_add(with(&root, AuthRoleAddRequest { name: "root".into() })).await.expect("a role");
    let role = auth.role_get(with(&root, AuthRoleGetRequest { role: "root".into() })).await.expect("role");
    let perm = &role.get_ref().perm[0];
    assert_eq!((perm.perm_type, &perm.key[..], &perm.range_end[..]), (2, &b""[..], &b"\0"[..]));
}

async fn logins_are_checked(deployment: &mut Deployment) {
    let endpoint = deployment.endpoint.clone();
    let off = log_in(&endpoint, "root").await.expect_err("off");
    assert_eq!((off.code(), off.message()), (Code::FailedPrecondition, "etcdserver: authentication is not enabled"));
    let root = enable(deployment).await;
    let mut auth = auth_of(&endpoint);
    auth.user_add(with(
        &root,
        AuthUserAddRequest { name: "cert".into(), options: no_password(), ..Default::default() },
    ))
    .await
    .expect("without a password");
    let log_in = async |name: &str, password: &str| {
        let request = AuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
        auth_of(&endpoint).authenticate(request).await
    };
    let text = "etcdserver: authentication failed, invalid user ID or password";
    for (name, password) in [("root", "wrong"), ("root", ""), ("nobody", "root"), ("", "")] {
        refused(log_in(name, password).await, Code::InvalidArgument, text);
    }
    let text = "auth: authentication failed, password was given for no password user";
    refused(log_in("cert", "").await, Code::Unknown, text);
    let (one, two) = (log_in("root", "root").await.expect("in"), log_in("root", "root").await.expect("in"));
    assert_ne!(one.get_ref().token, two.get_ref().token);
    let (letters, index) = one.get_ref().token.split_once('.').expect("a simple token");
    assert!(letters.len() == 16 && index.parse::<u64>().is_ok());

    // One that nobody made; of entries to come, too.
    let mut status = deployment.client.maintenance();
    let next = format!("{letters}.1");
    for token in ["x", "", "a.b.c", &next] {
        let mut request = with("", StatusRequest {});
        request.metadata_mut().insert("token", token.parse().expect("ascii"));
        refused(status.status(request).await, Code::Unauthenticated, "etcdserver: invalid auth token");
    }
    let mut request = with("", StatusRequest {});
    request.metadata_mut().insert("authorization", format!("Bearer {}", one.get_ref().token).parse().expect("ascii"));
    status.status(request).await.expect("the header of HTTP clients");
}

async fn only_root_changes_users(deployment: &mut Deployment) {
    let root = enable(deployment).await;
    let endpoint = deployment.endpoint.clone();
    add_user(&endpoint, &root, "alice").await;
    let alice = log_in(&endpoint, "alice").await.expect("alice");
    let mut auth = auth_of(&endpoint);
    for (token, code, text) in [
        ("", Code::InvalidArgument, "etcdserver: user name is empty"),
        (&alice[..], Code::PermissionDenied, "etcdserver: permission denied"),
    ] {
        let user = AuthUserAddRequest { name: "x".into(), password: "x".into(), ..Default::default() };
        refused(auth.user_add(with(token, user)).await, code, text);
        let change = AuthUserChangePasswordRequest { name: "alice".into(), password: "x".into(), ..Default::default() };
        refused(auth.user_change_password(with(token, change)).await, code, text);
        refused(auth.user_list(with(token, AuthUserListRequest {})).await, code, text);
        refused(auth.role_list(with(token, AuthRoleListRequest {})).await, code, text);
        refused(auth.auth_disable(with(token, AuthDisableRequest {})).await, code, text);
        refused(auth.user_get(with(token, AuthUserGetRequest { name: "root".into() })).await, code, text);
        refused(auth.role_get(with(token, AuthRoleGetRequest { role: "root".into() })).await, code, text);
    }
    auth.user_get(with(&alice, AuthUserGetRequest { name: "alice".into() })).await.expect("itself");
    auth.role_get(with(&alice, AuthRoleGetRequest { role: "alice".into() })).await.expect("a role it has");
}

async fn tokens_end_with_password_user_and_auth(deployment: &mut Deployment) {
    let root = enable(deployment).await;
    let endpoint = deployment.endpoint.clone();
    let (mut auth, mut maintenance) = (auth_of(&endpoint), deployment.client.maintenance());
    let invalid = "etcdserver: invalid auth token";
    for name in ["alice", "bob"] {
        add_user(&endpoint, &root, name).await;
    }
    let alice = log_in(&endpoint, "alice").await.expect("alice");
    let bob = log_in(&endpoint, "bob").await.expect("bob");
    maintenance.status(with(&alice, StatusRequest {})).await.expect("changes of users do not end it");
    let change = AuthUserChangePasswordRequest { name: "alice".into(), password: "new".into(), ..Default::default() };
    auth.user_change_password(with(&root, change)).await.expect("changed");
    refused(maintenance.status(with(&alice, StatusRequest {})).await, Code::Unauthenticated, invalid);
    log_in(&endpoint, "alice").await.expect_err("the password is another one");
    maintenance.status(with(&bob, StatusRequest {})).await.expect("of another user");
    auth.user_delete(with(&root, AuthUserDeleteRequest { name: "bob".into() })).await.expect("deleted");
    refused(maintenance.status(with(&bob, StatusRequest {})).await, Code::Unauthenticated, invalid);
    auth.auth_disable(with(&root, AuthDisableRequest {})).await.expect("off");
    maintenance.status(with(&bob, StatusRequest {})).await.expect("no token counts while auth is off");
    auth.auth_enable(AuthEnableRequest {}).await.expect("on");
    refused(maintenance.status(with(&root, StatusRequest {})).await, Code::Unauthenticated, invalid);
}
