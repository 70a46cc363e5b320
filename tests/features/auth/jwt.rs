//! Signed tokens (`--auth-token=jwt`), with keys made here and tokens that no member signed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, Response, Status};
use watershed::pb::authpb::permission::Type;
use watershed::pb::etcdserverpb::*;
use watershed::telemetry::unix_seconds;

use super::{add_user, auth_of, log_in, permit, with};
use crate::harness::{Deployment, Process, Target, client, free_port, member_args, refused, run, server_binary, until};

const RSA_PRIVATE: &str = include_str!("../../../src/core/auth/jwt/tests/rsa-private.pem");
const RSA_PUBLIC: &str = include_str!("../../../src/core/auth/jwt/tests/rsa-public.pem");
const INVALID: &str = "etcdserver: invalid auth token";
const DENIED: &str = "etcdserver: permission denied";
const OLD: &str = "etcdserver: revision of auth store is old";

/// A method with its keys, in files.
struct Keys {
    method: &'static str,
    algorithm: Algorithm,
    private: String,
    public: String,
    folder: TempDir,
}

impl Keys {
    fn new(method: &'static str) -> Self {
        let (algorithm, private, public) = match method {
            "RS256" => (Algorithm::RS256, RSA_PRIVATE.to_owned(), RSA_PUBLIC.to_owned()),
            "ES256" => {
                let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
                (Algorithm::ES256, pair.serialize_pem(), pair.public_key_pem())
            }
            _ => (Algorithm::HS256, "a shared secret".to_owned(), String::new()),
        };
        let folder = TempDir::new().expect("temporary directory");
        std::fs::write(folder.path().join("private"), &private).expect("written");
        std::fs::write(folder.path().join("public"), &public).expect("written");
        Self { method, algorithm, private, public, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn flag(&self, private: bool, public: bool, ttl: &str) -> String {
        let mut flag = format!("--auth-token=jwt,sign-method={},ttl={ttl}", self.method);
        for (key, name) in [("priv-key", "private"), ("pub-key", "public")] {
            if if name == "private" { private } else { public } {
                flag += &format!(",{key}={}", self.file(name).display());
            }
        }
        flag
    }

    /// Signs what a member would sign, and what none would.
    fn sign(&self, claims: &Value) -> String {
        let private = self.private.as_bytes();
        let key = match self.algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(private).expect("a key"),
            Algorithm::ES256 => EncodingKey::from_ec_pem(private).expect("a key"),
            _ => EncodingKey::from_secret(private),
        };
        jsonwebtoken::encode(&Header::new(self.algorithm), claims, &key).expect("signed")
    }
}

fn now() -> u64 {
    unix_seconds().unsigned_abs()
}

async fn put(endpoint: &str, token: &str, key: &'static str) -> Result<Response<PutResponse>, Status> {
    client(endpoint).kv().put(with(token, PutRequest { key: key.into(), ..Default::default() })).await
}

async fn get(endpoint: &str, token: &str, key: &'static str) -> Result<Response<RangeResponse>, Status> {
    client(endpoint).kv().range(with(token, RangeRequest { key: key.into(), ..Default::default() })).await
}

/// Root, alice who may write and read what begins with k, and auth on. The auth revision.
async fn users(endpoint: &str) -> u64 {
    add_user(endpoint, "", "root").await;
    add_user(endpoint, "", "alice").await;
    permit(endpoint, "", "alice", Type::Readwrite, "k", "l").await.expect("permitted");
    auth_of(endpoint).auth_enable(AuthEnableRequest {}).await.expect("on");
    auth_of(endpoint).auth_status(AuthStatusRequest {}).await.expect("status").into_inner().auth_revision
}

#[test]
fn every_method_signs_tokens_that_are_good_everywhere_and_after_a_restart() {
    for (target, method) in [(Target::Core, "RS256"), (Target::Gateway, "ES256"), (Target::Proxy, "HS256")] {
        let keys = Keys::new(method);
        let flag = keys.flag(true, method != "HS256", "5m");
        run(target, &[&flag, "--bcrypt-cost=4"], async |deployment: &mut Deployment| {
            let endpoint = deployment.endpoint.clone();
            let revision = users(&endpoint).await;
            let token = log_in(&endpoint, "alice").await.expect("alice");
            assert_eq!(token.split('.').count(), 3, "a signed token");
            put(&endpoint, &token, "k").await.expect("alice");
            refused(put(&endpoint, &token, "x").await, Code::PermissionDenied, DENIED);
            // Signed elsewhere with the same key. One without an end never ends, as in etcd.
            for claims in [
                json!({ "username": "alice", "revision": revision, "exp": now() + 600 }),
                json!({ "username": "alice", "revision": revision }),
            ] {
                let other = keys.sign(&claims);
                put(&endpoint, &other, "k").await.expect("alice");
                refused(put(&endpoint, &other, "x").await, Code::PermissionDenied, DENIED);
            }
            deployment.server.kill();
            deployment.restart_without_waiting();
            until("the member", async || get(&endpoint, &token, "k").await.ok()).await;
            refused(get(&endpoint, &token, "x").await, Code::PermissionDenied, DENIED);
        });
    }
}

#[test]
fn what_no_member_signed_is_refused() {
    let keys = Keys::new("RS256");
    let flag = keys.flag(true, true, "5m");
    run(Target::Core, &[&flag, "--bcrypt-cost=4"], async |deployment: &mut Deployment| {
        let endpoint = deployment.endpoint.clone();
        let revision = users(&endpoint).await;
        let claims = json!({ "username": "root", "revision": revision, "exp": now() + 600 });
        let good = keys.sign(&claims);
        put(&endpoint, &good, "x").await.expect("root");
        let [header, body, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("three parts") };
        let alice = log_in(&endpoint, "alice").await.expect("alice");
        let of_alice = alice.rsplit('.').next().expect("a signature");
        // The public key as a secret: whoever believes the header accepts it.
        let secret = EncodingKey::from_secret(keys.public.as_bytes());
        let confused = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &secret).expect("signed");
        let other = Keys::new("ES256").sign(&claims);
        let expired = keys.sign(&json!({ "username": "root", "revision": revision, "exp": now() - 1 }));
        let later = keys.sign(&json!({ "username": "root", "revision": revision, "nbf": now() + 600 }));
        // {"alg":"none"}
        let none = "eyJhbGciOiJub25lIn0";
        for (what, token) in [
            ("another signature", format!("{header}.{body}.{of_alice}")),
            ("no signature", format!("{header}.{body}.")),
            ("two parts", format!("{header}.{body}")),
            ("no algorithm", format!("{none}.{body}.")),
            ("no algorithm, with a signature", format!("{none}.{body}.{signature}")),
            ("a public key as a secret", confused),
            ("another key and method", other),
            ("expired", expired),
            ("not yet", later),
            ("no name", keys.sign(&json!({ "revision": revision, "exp": now() + 600 }))),
            ("a simple token", "abcdefghijklmnop.7".to_owned()),
        ] {
            let answer = get(&endpoint, &token, "x").await;
            let status = answer.expect_err(what);
            assert_eq!((status.code(), status.message()), (Code::Unauthenticated, INVALID), "{what}");
        }
        let log = deployment.server.output();
        assert!(!log.contains(&good) && !log.contains(signature), "no token is logged");
    });
}

#[test]
fn a_token_ends_with_its_time() {
    let keys = Keys::new("HS256");
    let flag = keys.flag(true, false, "1s");
    run(Target::Core, &[&flag, "--bcrypt-cost=4"], async |deployment: &mut Deployment| {
        let endpoint = deployment.endpoint.clone();
        users(&endpoint).await;
        // It counts in whole seconds: the first may be over at once.
        let token = until("a token", async || {
            let token = log_in(&endpoint, "alice").await.ok()?;
            put(&endpoint, &token, "k").await.is_ok().then_some(token)
        })
        .await;
        let status = until("its end", async || put(&endpoint, &token, "k").await.err()).await;
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, INVALID));
        let again = log_in(&endpoint, "alice").await.expect("alice");
        assert_ne!(again, token);
    });
}

#[test]
fn a_change_of_users_makes_tokens_old() {
    let keys = Keys::new("ES256");
    let flag = keys.flag(true, true, "5m");
    run(Target::Core, &[&flag, "--bcrypt-cost=4"], async |deployment: &mut Deployment| {
        let endpoint = deployment.endpoint.clone();
        users(&endpoint).await;
        let [alice, root] = ["alice", "root"].map(|name| log_in(&endpoint, name));
        let (alice, root) = (alice.await.expect("alice"), root.await.expect("root"));
        put(&endpoint, &alice, "k").await.expect("alice");
        let user = AuthUserAddRequest { name: "bob".into(), password: "bob".into(), ..Default::default() };
        auth_of(&endpoint).user_add(with(&root, user)).await.expect("root");
        refused(put(&endpoint, &alice, "k").await, Code::InvalidArgument, OLD);
        refused(get(&endpoint, &alice, "k").await, Code::InvalidArgument, OLD);
        refused(put(&endpoint, &root, "k").await, Code::InvalidArgument, OLD);
        // What only root may do looks at no revision.
        auth_of(&endpoint).user_list(with(&root, AuthUserListRequest {})).await.expect("root");
        let again = log_in(&endpoint, "alice").await.expect("alice");
        put(&endpoint, &again, "k").await.expect("alice");
        // Nor what root may do with the leases of others.
        let (mut kv, mut lease) = (deployment.client.kv(), deployment.client.lease());
        lease.lease_grant(with(&root, LeaseGrantRequest { ttl: 600, id: 7 })).await.expect("root");
        let attached = PutRequest { key: "k".into(), lease: 7, ..Default::default() };
        kv.put(with(&again, attached)).await.expect("alice");
        let ask = LeaseTimeToLiveRequest { id: 7, keys: true };
        let told = lease.lease_time_to_live(with(&root, ask)).await.expect("root").into_inner();
        assert_eq!(told.keys, ["k"]);
        let listed = lease.lease_leases(with(&root, LeaseLeasesRequest {})).await.expect("root").into_inner();
        assert_eq!(listed.leases.len(), 1);
    });
}

#[test]
fn a_public_key_alone_verifies() {
    for method in ["RS256", "ES256"] {
        let keys = Keys::new(method);
        let flag = keys.flag(false, true, "5m");
        run(Target::Core, &[&flag, "--bcrypt-cost=4"], async |deployment: &mut Deployment| {
            let endpoint = deployment.endpoint.clone();
            let revision = users(&endpoint).await;
            let status = log_in(&endpoint, "alice").await.expect_err("no key to sign with");
            let text = "auth: token signing attempted with verify-only key";
            assert_eq!((status.code(), status.message()), (Code::Unknown, text));
            let token = keys.sign(&json!({ "username": "alice", "revision": revision, "exp": now() + 600 }));
            put(&endpoint, &token, "k").await.expect("alice");
            refused(put(&endpoint, &token, "x").await, Code::PermissionDenied, DENIED);
        });
    }
}

#[test]
fn keys_that_are_not_a_pair_or_not_there_stop_the_start() {
    let (keys, other) = (Keys::new("ES256"), Keys::new("ES256"));
    std::fs::copy(other.file("public"), keys.file("public")).expect("another public key");
    let start = |flag: String, name: &str| {
        let folder = keys.folder.path();
        let mut args = member_args(&format!("127.0.0.1:{}", free_port()), free_port(), &folder.join(name));
        args.push(flag);
        Process::start(&server_binary(), &args, Path::new(folder), name)
    };
    for (name, flag, text) in [
        ("pair", keys.flag(true, true, "5m"), "public and private keys don't match"),
        ("none", keys.flag(false, false, "5m"), "missing key data"),
        ("method", "--auth-token=jwt,sign-method=RS1".to_owned(), "invalid auth options"),
    ] {
        let mut process = start(flag, name);
        assert!(!process.wait(Duration::from_secs(60)).success());
        assert!(process.output().contains(text), "{name}: {}", process.output());
    }
}
