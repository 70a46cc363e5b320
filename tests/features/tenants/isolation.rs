//! A tenant sends arbitrary requests of every RPC, as gRPC and as JSON, while tenants around it have data: one whose namespace
//! contains its own, one whose namespace lies within it, one whose namespace begins where its own ends. Nothing of theirs may change or
//! show, and no request that would reach them may come to the member.
//!
//! The shapes of the messages come from the descriptors of `proto/`, so that a new RPC or field is covered by itself. A
//! failure names its seed; `ISOLATION_SEED=<seed>` runs that batch alone, `ISOLATION_BATCHES=<n>` that many of each test.

use std::collections::HashSet;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use http::uri::PathAndQuery;
use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, Value};
use tempfile::TempDir;
use tonic::{Request, Status};
use watershed::pb::etcdserverpb::*;
use watershed::pb::{descriptors, http_paths};

use super::lawful::{Call, Law};
use super::{Tier, address, all, answers, put};
use crate::harness::{Between, Deployment, Passed, Target, client, http_get, json, raw_answers, run};

/// In every value of the others, and in the names of some keys. The tenant never sends it.
const SECRET: &str = "SECRETSECRETSECRET";
const BATCHES: u64 = 1;
/// Requests of one method in a batch.
const PER_METHOD: usize = 8;
const IN_FLIGHT: usize = 16;
/// How long a call may stay open.
const CALL: Duration = Duration::from_millis(400);
const DEPTH: usize = 4;

/// One around the others, one within that, and one that begins where that ends.
const NAMESPACES: [&str; 3] = ["t/", "t/c/", "t/c0"];
/// Keys of all kinds of places, beside those with the secret in their names; a tenant is tested with those that are not its own.
const KEYS: [&str; 12] = ["t/", "t/c", "t/x", "t/c/", "t/c/k", "t/c0", "t/c0k", "t/d", "t", "t0", "s", "u"];
/// Those that others write all the time.
const NOISE: [&str; 4] = ["t/noise", "t/c/noise", "t/c0noise", "t0noise"];

struct Maker {
    random: fastrand::Rng,
    numbers: Vec<i64>,
}

impl Maker {
    fn new(seed: u64, ids: &[i64]) -> Self {
        let mut numbers = vec![0, 0, 0, 1, 2, 3, -1, i64::MAX, i64::MIN];
        numbers.extend(ids);
        Self { random: fastrand::Rng::with_seed(seed), numbers }
    }

    fn number(&mut self) -> i64 {
        self.numbers[self.random.usize(..self.numbers.len())]
    }

    fn bytes(&mut self) -> Bytes {
        const BYTES: [&[u8]; 18] = [
            b"",
            b"\0",
            b"\0",
            b"\xff",
            b"\xff\xff\xff",
            b"k",
            b"k",
            b"l",
            b"0",
            b"0k",
            b"../x",
            b"t/x",
            b"t/c0k",
            b"t/",
            b"t/c/",
            b"\0watershed/lease/",
            b"\0watershed/lease/742f633025/0000000000000007",
            b"/",
        ];
        Bytes::from_static(BYTES[self.random.usize(..BYTES.len())])
    }

    fn text(&mut self) -> String {
        const TEXTS: [&str; 6] = ["", "a", "root", "t/x", "http://127.0.0.1:1", "\0"];
        TEXTS[self.random.usize(..TEXTS.len())].to_owned()
    }

    fn message(&mut self, shape: &MessageDescriptor, depth: usize) -> DynamicMessage {
        let mut message = DynamicMessage::new(shape.clone());
        for field in shape.fields() {
            // Most requests do something only when most of their fields are there.
            if self.random.u32(0..4) == 0 || (depth == 0 && matches!(field.kind(), Kind::Message(_))) {
                continue;
            }
            let value = if field.is_map() {
                continue;
            } else if field.is_list() {
                let count = self.random.usize(0..3);
                Value::List((0..count).map(|_| self.value(&field, depth)).collect())
            } else {
                self.value(&field, depth)
            };
            message.set_field(&field, value);
        }
        message
    }

    fn value(&mut self, field: &FieldDescriptor, depth: usize) -> Value {
        match field.kind() {
            Kind::Message(shape) => Value::Message(self.message(&shape, depth.saturating_sub(1))),
            Kind::Enum(values) => {
                let values: Vec<i32> = values.values().map(|value| value.number()).collect();
                Value::EnumNumber(values[self.random.usize(..values.len())])
            }
            Kind::Bytes => Value::Bytes(self.bytes()),
            Kind::String => Value::String(self.text()),
            Kind::Bool => Value::Bool(self.random.bool()),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(self.number() as i32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(self.number()),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(self.number() as u32),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(self.number() as u64),
            Kind::Double => Value::F64(0.5),
            Kind::Float => Value::F32(0.5),
        }
    }
}

/// Whether the secret is in there, also in base64 at any alignment.
fn shows(bytes: &[u8]) -> bool {
    let in_base64 = (0..3).map(|pad| {
        let encoded = BASE64_STANDARD.encode([&b"xxx"[..pad], SECRET.as_bytes()].concat());
        encoded[4..16].to_owned().into_bytes()
    });
    let mut hidden = in_base64.chain([SECRET.as_bytes()[..6].to_vec()]);
    hidden.any(|part| bytes.windows(part.len()).any(|found| found == part))
}

fn shows_in_status(status: &Status) -> bool {
    shows(status.message().as_bytes())
        || shows(status.details())
        || shows(format!("{:?}", status.metadata()).as_bytes())
}

/// All that is on the member beside the tenant's keys and the marks of its leases.
async fn of_others(deployment: &Deployment, namespace: &str) -> Vec<String> {
    let digits: String = namespace.bytes().map(|byte| format!("{byte:02x}")).collect();
    let marks = format!("\0watershed/lease/{digits}/");
    let kvs = deployment.range(all()).await.kvs;
    let is_own = |key: &[u8]| key.starts_with(namespace.as_bytes()) || key.starts_with(marks.as_bytes());
    let others = kvs.iter().filter(|kv| !is_own(&kv.key) && !kv.key.ends_with(b"noise"));
    others.map(|kv| format!("{kv:?}")).collect()
}

async fn batch(deployment: &Deployment, namespace: &str, tenant: &str, seed: u64, ids: &[i64]) {
    let mut maker = Maker::new(seed, ids);
    let client = client(tenant);
    let methods: Vec<MethodDescriptor> =
        descriptors().services().flat_map(|service| service.methods().collect::<Vec<_>>()).collect();
    let mut calls = Vec::new();
    for method in &methods {
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        for _ in 0..PER_METHOD {
            let count = if method.is_client_streaming() { maker.random.usize(1..4) } else { 1 };
            let messages: Vec<DynamicMessage> = (0..count).map(|_| maker.message(&method.input(), DEPTH)).collect();
            calls.push((path.clone(), http_paths(method).first().cloned(), messages, method.is_server_streaming()));
        }
    }
    maker.random.shuffle(&mut calls);
    let noise = async {
        loop {
            for key in NOISE.into_iter().filter(|key| !key.starts_with(namespace)) {
                deployment.put(key, SECRET).await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let sent = futures::stream::iter(calls).for_each_concurrent(IN_FLIGHT, |(path, http, messages, streams)| {
        let client = client.clone();
        async move {
            let shown = format!("seed {seed}: {path} {messages:?}");
            let bytes: Vec<Bytes> = messages.iter().map(|message| message.encode_to_vec().into()).collect();
            // A stream of requests that stays open, as clients have it.
            let requests =
                futures::stream::iter(bytes).chain(futures::stream::pending().take_until(tokio::time::sleep(CALL / 2)));
            let path: PathAndQuery = path.parse().expect("a path");
            let call = raw_answers(&client, path, Request::new(requests), 20);
            if let Ok((answers, end)) = tokio::time::timeout(CALL, call).await {
                assert!(!answers.iter().any(|answer| shows(answer)), "{shown}: {answers:?}");
                assert!(end.as_ref().err().is_none_or(|status| !shows_in_status(status)), "{shown}: {end:?}");
            }
            if let Some(http) = http.filter(|_| !streams) {
                let body = serde_json::to_string(&messages[0]).expect("JSON");
                if let Ok((_, answer)) = tokio::time::timeout(CALL, json(tenant, &http, &body)).await {
                    assert!(!shows(answer.to_string().as_bytes()), "{shown} in JSON: {answer}");
                }
            }
        }
    });
    tokio::select! {
        () = noise => {}
        () = sent => {}
    }
}

fn call(Passed { path, headers, body, ended }: Passed) -> Call {
    Call { path, headers, body, ended }
}

/// Whether the proxy asks whether the cluster answers. No tenant's request can be that: the health service is the proxy's own, and
/// a tenant's key would have its prefix.
fn is_probe(call: &Call) -> bool {
    let probe = RangeRequest { key: "health".into(), count_only: true, ..Default::default() };
    let message = call.frames().0.into_iter().next().map(|(_, message)| message).unwrap_or_default();
    call.path == "/grpc.health.v1.Health/Check"
        || call.path == "/etcdserverpb.KV/Range" && message == probe.encode_to_vec()
}

/// A file with these tenants, which come to these addresses.
fn three([outer, inner, next]: &[String; 3]) -> String {
    let limits = "limits: {leases: 1000, stored-keys: 1000, watches: 1000}";
    let [of_outer, of_inner, of_next] = NAMESPACES;
    format!(
        "tenants:\n\
         - {{name: outer, namespace: {of_outer}, contains: [inner, next], match: [{{listen: '{outer}'}}], {limits}}}\n\
         - {{name: inner, namespace: {of_inner}, match: [{{listen: '{inner}'}}], {limits}}}\n\
         - {{name: next, namespace: {of_next}, match: [{{listen: '{next}'}}], {limits}}}\n"
    )
}

/// The tenant with this namespace, one of three, sends what it likes.
fn meets_nothing_of_others(namespace: &'static str) {
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let between = Between::start(&deployment.endpoint).await;
        let folder = || TempDir::new().expect("temporary directory");
        // The others are clients of another proxy, so that all that passes between this one and the member is the tenant's.
        let ours = [address(), address(), address()];
        let tier = Tier::in_folder(folder(), &between.endpoint, &three(&ours), &[]);
        let theirs = [address(), address(), address()];
        let _other_tier = Tier::in_folder(folder(), &deployment.endpoint, &three(&theirs), &[]);
        for key in KEYS.into_iter().filter(|key| !key.starts_with(namespace)) {
            deployment.put(key, SECRET).await;
            deployment.put(format!("{key}{SECRET}"), SECRET).await;
        }
        let mut ids = Vec::new();
        for (other, endpoint) in NAMESPACES.iter().zip(&theirs).filter(|(other, _)| **other != namespace) {
            let other_client = client(endpoint);
            answers(&other_client).await;
            for id in [ids.len() as i64 + 7, 0] {
                let grant = LeaseGrantRequest { ttl: 36_000, id };
                let lease = other_client.lease().lease_grant(grant).await.expect("grant").into_inner().id;
                ids.push(lease);
                if !other.starts_with(namespace) {
                    other_client.kv().put(PutRequest { lease, ..put(SECRET, SECRET) }).await.expect("put");
                }
            }
        }
        let (_, tenant) = NAMESPACES.iter().zip(ours).find(|(one, _)| **one == namespace).expect("one of three");
        let client = client(&tenant);
        answers(&client).await;
        client.kv().put(put("k", "own")).await.expect("put");
        let grant = LeaseGrantRequest { ttl: 36_000, id: 0 };
        let own = client.lease().lease_grant(grant).await.expect("grant").into_inner().id;
        let before = of_others(deployment, namespace).await;
        let members = deployment.client.cluster().member_list(MemberListRequest { linearizable: true }).await;
        let members = members.expect("members").into_inner().members;
        let given = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
        let seeds = match given("ISOLATION_SEED") {
            Some(seed) => seed..seed + 1,
            None => 0..given("ISOLATION_BATCHES").unwrap_or(BATCHES),
        };
        let mut law = Law::new(namespace, []);
        for seed in seeds {
            let revision = deployment.get("t").await.header.expect("header").revision;
            batch(deployment, namespace, &tenant, seed, &[&ids[..], &[own, revision, revision - 3]].concat()).await;
            let after = of_others(deployment, namespace).await;
            let differ: Vec<_> = after.iter().filter(|kv| !before.contains(kv)).collect();
            let gone: Vec<_> = before.iter().filter(|kv| !after.contains(kv)).collect();
            assert!(
                differ.is_empty() && gone.is_empty(),
                "seed {seed}: not the tenant's: {differ:?}, before: {gone:?}"
            );
            let calls: Vec<Call> = between.calls().into_iter().map(call).filter(|call| !is_probe(call)).collect();
            let methods: HashSet<_> = calls.iter().map(|call| call.path.as_str()).collect();
            assert!(methods.len() >= 10, "the requests reach the member: {methods:?}");
            law.check(&calls).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        }
        for id in ids {
            assert!(deployment.time_to_live(id).await.ttl > 0, "a lease of others is gone");
        }
        let now =
            deployment.client.cluster().member_list(MemberListRequest { linearizable: true }).await.expect("members");
        assert_eq!(now.into_inner().members, members);
        let first = RangeRequest { revision: 2, ..all() };
        assert!(!deployment.range(first).await.kvs.is_empty(), "nothing was compacted");
        let alarms = AlarmRequest { action: 0, member_id: 0, alarm: 0 };
        assert!(deployment.client.maintenance().alarm(alarms).await.expect("alarms").into_inner().alarms.is_empty());
        let page = http_get(&tier.metrics, "GET", "/proxy/metrics").await.expect("a page").body;
        assert!(!shows(page.as_bytes()), "{page}");
        let log = tier.process.output();
        assert!(!shows(log.as_bytes()), "{log}");
    });
}

#[test]
fn a_tenant_within_another_meets_nothing_of_others() {
    meets_nothing_of_others("t/c/");
}

#[test]
fn a_tenant_next_to_another_meets_nothing_of_others() {
    meets_nothing_of_others("t/c0");
}

#[test]
fn a_tenant_around_others_meets_nothing_beside_them() {
    meets_nothing_of_others("t/");
}
