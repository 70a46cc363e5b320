//! Users, roles, permissions.
//!
//! `management.rs` changes users and roles, `permissions.rs` asks as one of them, `advisories.rs` has what was reported against
//! etcd from 2021 to 2026, `matrix.rs` every method as every kind of caller, `certificates.rs` users by certificate, and
//! `jwt.rs` signed tokens.

mod advisories;
mod certificates;
mod jwt;
mod management;
mod matrix;
mod permissions;

use tonic::{Request, Response, Status};
use watershed::client::{Client, ClientConfig};
use watershed::net::ClientTls;
use watershed::pb::authpb::permission::Type;
use watershed::pb::authpb::{Permission, UserAddOptions};
use watershed::pb::etcdserverpb::auth_client::AuthClient;
use watershed::pb::etcdserverpb::*;

use crate::harness::{Deployment, client};

/// Fast hashing: the cost is not what these tests are about.
pub const FLAGS: [&str; 1] = ["--bcrypt-cost=4"];

/// The Auth service behind `endpoint`.
pub fn auth_of(endpoint: &str) -> AuthClient<watershed::client::Channel> {
    AuthClient::new(client(endpoint).channel())
}

/// A client over TLS.
pub fn secure_client(endpoint: &str, tls: ClientTls) -> Client {
    let endpoint = format!("https://{endpoint}").parse().expect("an endpoint");
    Client::connect(ClientConfig { tls: Some(tls), ..ClientConfig::new([endpoint]) }).expect("a client")
}

/// A message with a token.
pub fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        request.metadata_mut().insert("token", token.parse().expect("ascii"));
    }
    request
}

/// Logs a user in, whose password is its name.
pub async fn log_in(endpoint: &str, name: &str) -> Result<String, Status> {
    let request = AuthenticateRequest { name: name.to_owned(), password: name.to_owned() };
    Ok(auth_of(endpoint).authenticate(request).await?.into_inner().token)
}

/// A new user with its name as the password, and a role of the same name.
pub async fn add_user(endpoint: &str, token: &str, name: &str) {
    let mut auth = auth_of(endpoint);
    let password = name.to_owned();
    let user = AuthUserAddRequest { name: name.to_owned(), password, ..Default::default() };
    auth.user_add(with(token, user)).await.expect("a user");
    auth.role_add(with(token, AuthRoleAddRequest { name: name.to_owned() })).await.expect("a role");
    let role = AuthUserGrantRoleRequest { user: name.to_owned(), role: name.to_owned() };
    auth.user_grant_role(with(token, role)).await.expect("granted");
}

pub async fn permit(
    endpoint: &str,
    token: &str,
    role: &str,
    kind: Type,
    key: &'static str,
    range_end: &'static str,
) -> Result<Response<AuthRoleGrantPermissionResponse>, Status> {
    let perm = Permission { perm_type: kind as i32, key: key.into(), range_end: range_end.into() };
    let request = AuthRoleGrantPermissionRequest { name: role.to_owned(), perm: Some(perm) };
    auth_of(endpoint).role_grant_permission(with(token, request)).await
}

/// Adds root and turns auth on; returns a token of root.
pub async fn enable(deployment: &Deployment) -> String {
    let endpoint = &deployment.endpoint;
    add_user(endpoint, "", "root").await;
    auth_of(endpoint).auth_enable(AuthEnableRequest {}).await.expect("on");
    log_in(endpoint, "root").await.expect("root")
}

/// Options of a user that has a certificate, and no password.
pub fn no_password() -> Option<UserAddOptions> {
    Some(UserAddOptions { no_password: true })
}
