use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use watershed::client::Client;
use watershed::pb::authpb::permission::Type;
use watershed::pb::authpb::{Permission, UserAddOptions};
use watershed::pb::etcdserverpb::*;
use watershed::types::KeyRange;

use super::clients::{come_and_go, compact, hold_a_lease, read};
use super::record::Record;
use super::watcher::Watcher;
use super::writer::Writer;
use super::{Plan, by_certificate, logged_in};
use crate::harness::{Certificates, Cluster, until};

pub const PREFIX: &str = "soak/";
pub const WRITERS: usize = 4;
const READERS: usize = 2;
const LEASES: usize = 6;
/// Of one writer.
pub const KEYS: usize = 200;
/// The range that is all of the load's keys.
pub fn everything() -> (Bytes, Bytes) {
    KeyRange::prefix(Bytes::from_static(PREFIX.as_bytes())).to_wire()
}

/// Root by certificate; a user of the load by certificate and by password; one that may only read.
pub async fn add_users(client: &Client) {
    let mut auth = client.auth();
    let (key, range_end) = everything();
    for (name, kind) in [("root", None), ("load", Some(Type::Readwrite)), ("reader", Some(Type::Read))] {
        let options = (name == "root").then_some(UserAddOptions { no_password: true });
        let password = if name == "root" { String::new() } else { name.to_owned() };
        let user = AuthUserAddRequest { name: name.into(), password, options, ..Default::default() };
        auth.user_add(user).await.expect("a user");
        auth.role_add(AuthRoleAddRequest { name: name.into() }).await.expect("a role");
        if let Some(kind) = kind {
            let perm = Some(Permission { perm_type: kind as i32, key: key.clone(), range_end: range_end.clone() });
            let grant = AuthRoleGrantPermissionRequest { name: name.into(), perm };
            auth.role_grant_permission(grant).await.expect("permitted");
        }
        let role = AuthUserGrantRoleRequest { user: name.into(), role: name.into() };
        auth.user_grant_role(role).await.expect("granted");
    }
    auth.auth_enable(AuthEnableRequest {}).await.expect("on");
}

/// The running clients.
pub struct Load {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    writers: Vec<Arc<Writer>>,
    watchers: Vec<Arc<Watcher>>,
}

impl Load {
    pub fn start(plan: &Plan, endpoints: &[String], certificates: &Arc<Certificates>, record: &Arc<Record>) -> Self {
        let stop = CancellationToken::new();
        let mut load = Self { stop, tasks: JoinSet::new(), writers: Vec::new(), watchers: Vec::new() };
        let tls = || certificates.tls("nameless");
        let client = |name: &str| logged_in(endpoints, tls(), name);
        // One on each member, one on all.
        for member in 0..=endpoints.len() {
            let on = endpoints.get(member..=member).unwrap_or(endpoints);
            let watcher = Watcher::new(member.to_string(), logged_in(on, tls(), "reader"), record);
            load.watchers.push(watcher.clone());
            load.tasks.spawn(watcher.run());
        }
        for number in 0..WRITERS {
            let writer = Arc::new(Writer::new(number, client("load"), record));
            load.writers.push(writer.clone());
            load.repeat(plan.request, move || {
                let writer = writer.clone();
                async move { writer.step().await }
            });
        }
        for number in 0..READERS {
            let (client, record) = (client("reader"), record.clone());
            load.repeat(plan.request, move || read(client.clone(), number, record.clone()));
        }
        for number in 0..LEASES {
            let (client, record) = (client("load"), record.clone());
            let ttl = plan.ttl.clone();
            load.repeat(plan.request, move || hold_a_lease(client.clone(), number, ttl.clone(), record.clone()));
        }
        let root = Client::connect(by_certificate(endpoints, certificates.tls("root"))).expect("a client");
        let (ring, of_root) = (Arc::new(Mutex::new(Vec::new())), record.clone());
        load.repeat(plan.slow, move || compact(root.clone(), ring.clone(), of_root.clone()));
        let (certificates, record, endpoints) = (certificates.clone(), record.clone(), endpoints.to_vec());
        load.repeat(plan.slow, move || come_and_go(endpoints.clone(), certificates.clone(), record.clone()));
        load
    }

    /// Does this over and over until the end; what is in progress then is finished.
    fn repeat<F: Future<Output = ()> + Send>(&mut self, pause: Duration, step: impl Fn() -> F + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            while !stop.is_cancelled() {
                step().await;
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            }
        });
    }

    /// Ends the load, and compares what it was told with what every member has.
    pub async fn finish(mut self, cluster: &Cluster) {
        self.stop.cancel();
        while self.tasks.len() > self.watchers.len() {
            self.tasks.join_next().await.expect("a task").expect("no panic");
        }
        for number in 0..3 {
            // A lease whose holder gave up may end meanwhile; what a watch has missed stays missing.
            until("a watch that holds what the store holds", async || {
                let (key, range_end) = everything();
                let range = RangeRequest { key, range_end, ..Default::default() };
                let state = cluster.member(number).kv().range(range).await.ok()?.into_inner();
                self.writers.iter().for_each(|writer| writer.compare(&state));
                self.watchers.iter().all(|watcher| watcher.holds(&state)).then_some(())
            })
            .await;
        }
        self.tasks.shutdown().await;
    }
}
