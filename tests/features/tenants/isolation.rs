//! A tenant sends arbitrary requests of every RPC, as gRPC and as JSON, while tenants around it have data: one whose namespace
//! contains its own, one whose namespace lies within it, one whose namespace begins where its own ends. Nothing of theirs may change or
//! show, and no request that would reach them may come to the member. Two neighbours do so at once: each request that comes to the
//! member must be within the namespace of the tenant that sent it, whose name it bears in a header of the client's, and one that the
//! proxy sends for itself, as those of caches and shared watches, within that of one of them.
//!
//! The shapes of the messages come from the descriptors of `proto/`, so that a new RPC or field is covered by itself. A
//! failure names its seed; `ISOLATION_SEED=<seed>` runs that batch alone, `ISOLATION_BATCHES=<n>` that many of each test.

use std::collections::HashSet;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use http::uri::PathAndQuery;
use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, Value};
use tempfile::TempDir;
use tonic::{Request, Status};
use watershed::client::Client;
use watershed::pb::etcdserverpb::*;
use watershed::pb::{descriptors, http_paths};
use watershed::types::KeyRange;

use super::lawful::{Call, KEEP_ALIVE, Law, PUT, WISHES, marks_of, wish_of};
use super::{Tier, address, all, answers, put};
use crate::harness::{Between, Deployment, Passed, Target, client, http_get, json, raw_answers, run, until};

/// In every value of those that send nothing, and in the names of some keys.
const SECRET: &str = "SECRETSECRETSECRET";
const BATCHES: u64 = 1;
/// Requests of one method in a batch.
const PER_METHOD: usize = 8;
const IN_FLIGHT: usize = 16;
/// How long a call may stay open.
const CALL: Duration = Duration::from_millis(400);
const DEPTH: usize = 4;

/// One around the others, one within that, and one that begins where that ends.
const OUTER: Tenant = Tenant { name: "outer", namespace: "t/", word: "OUTEROUTEROUTER" };
const INNER: Tenant = Tenant { name: "inner", namespace: "t/c/", word: "INNERINNERINNER" };
const NEXT: Tenant = Tenant { name: "next", namespace: "t/c0", word: "NEXTNEXTNEXTNEXT" };
const TENANTS: [Tenant; 3] = [OUTER, INNER, NEXT];
/// The name of the tenant, in what its clients send.
const NAME: &str = "x-tenant";
/// Keys of all kinds of places, beside those with the secret in their names; a tenant is tested with those that are not its own.
const KEYS: [&str; 12] = ["t/", "t/c", "t/x", "t/c/", "t/c/k", "t/c0", "t/c0k", "t/d", "t", "t0", "s", "u"];
/// Those that others write all the time.
const NOISE: [&str; 4] = ["t/noise", "t/c/noise", "t/c0noise", "t0noise"];

#[derive(Clone, Copy)]
struct Tenant {
    name: &'static str,
    namespace: &'static str,
    /// In some of the keys and values that it sends.
    word: &'static str,
}

/// A tenant that sends arbitrary requests.
struct Sender {
    tenant: Tenant,
    endpoint: String,
    client: Client,
    /// Ids and revisions that its requests may name.
    numbers: Vec<i64>,
    /// A lease of its own that its requests do not name.
    kept: i64,
    /// What it may not be shown.
    foreign: Vec<&'static str>,
}

struct Maker {
    random: fastrand::Rng,
    numbers: Vec<i64>,
    word: &'static str,
}

impl Maker {
    fn new(seed: u64, sender: &Sender) -> Self {
        let mut numbers = vec![0, 0, 0, 1, 2, 3, -1, i64::MAX, i64::MIN];
        numbers.extend(&sender.numbers);
        Self { random: fastrand::Rng::with_seed(seed), numbers, word: sender.tenant.word }
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
        let chosen = self.random.usize(..=BYTES.len());
        Bytes::from_static(BYTES.get(chosen).copied().unwrap_or(self.word.as_bytes()))
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

/// Whether one of the words is in there, also in base64 at any alignment.
fn shows(words: &[&str], bytes: &[u8]) -> bool {
    words.iter().any(|word| {
        let in_base64 = (0..3).map(|pad| {
            let encoded = BASE64_STANDARD.encode([&b"xxx"[..pad], word.as_bytes()].concat());
            encoded[4..16].to_owned().into_bytes()
        });
        let mut hidden = in_base64.chain([word.as_bytes()[..6].to_vec()]);
        hidden.any(|part| bytes.windows(part.len()).any(|found| found == part))
    })
}

fn shows_in_status(words: &[&str], status: &Status) -> bool {
    shows(words, status.message().as_bytes())
        || shows(words, status.details())
        || shows(words, format!("{:?}", status.metadata()).as_bytes())
}

/// All that is on the member beside the keys of these tenants, the marks of their leases and their wishes.
async fn of_others(deployment: &Deployment, tenants: &[Tenant]) -> Vec<String> {
    let kvs = deployment.range(all()).await.kvs;
    let is_own = |key: &[u8]| {
        tenants.iter().any(|Tenant { namespace, .. }| {
            key.starts_with(namespace.as_bytes())
                || key.starts_with(marks_of(namespace).as_bytes())
                || key == wish_of(namespace).as_bytes()
        })
    };
    let others = kvs.iter().filter(|kv| !is_own(&kv.key) && !kv.key.ends_with(b"noise"));
    others.map(|kv| format!("{kv:?}")).collect()
}

/// Puts keys beside those of the tenants for ever.
async fn noise(deployment: &Deployment, tenants: &[Tenant]) {
    let is_foreign = |key: &&str| tenants.iter().all(|tenant| !key.starts_with(tenant.namespace));
    loop {
        for key in NOISE.into_iter().filter(is_foreign) {
            deployment.put(key, SECRET).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Sends requests of all methods, and looks at the answers.
async fn batch(sender: &Sender, seed: u64) {
    let mut maker = Maker::new(seed, sender);
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
    let Sender { tenant, endpoint, client, foreign, .. } = sender;
    let sent =
        futures::stream::iter(calls).for_each_concurrent(IN_FLIGHT, |(path, http, messages, streams)| async move {
            let shown = format!("{}, seed {seed}: {path} {messages:?}", tenant.name);
            let bytes: Vec<Bytes> = messages.iter().map(|message| message.encode_to_vec().into()).collect();
            // A stream of requests that stays open, as clients have it.
            let requests =
                futures::stream::iter(bytes).chain(futures::stream::pending().take_until(tokio::time::sleep(CALL / 2)));
            let mut request = Request::new(requests);
            request.metadata_mut().insert(NAME, tenant.name.parse().expect("ascii"));
            let path: PathAndQuery = path.parse().expect("a path");
            let call = raw_answers(client, path, request, 20);
            if let Ok((answers, end)) = tokio::time::timeout(CALL, call).await {
                assert!(!answers.iter().any(|answer| shows(foreign, answer)), "{shown}: {answers:?}");
                assert!(end.as_ref().err().is_none_or(|status| !shows_in_status(foreign, status)), "{shown}: {end:?}");
            }
            if let Some(http) = http.filter(|_| !streams) {
                let body = serde_json::to_string(&messages[0]).expect("JSON");
                if let Ok((_, answer)) = tokio::time::timeout(CALL, json(endpoint, &http, &body)).await {
                    assert!(!shows(foreign, answer.to_string().as_bytes()), "{shown} in JSON: {answer}");
                }
            }
        });
    sent.await;
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

/// The calls of one that may serve several tenants: each keep-alive by itself.
fn parts(call: &Call) -> Vec<Call> {
    if call.path != KEEP_ALIVE {
        return vec![call.clone()];
    }
    let framed = |(flag, message): (u8, Bytes)| {
        let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
        Call { body: [&[flag][..], &length, &message].concat(), ..call.clone() }
    };
    call.frames().0.into_iter().map(framed).collect()
}

/// Whether a member may get these calls: of the tenant that a call names, else of any one.
fn check(laws: &mut [(&str, Law)], calls: &[Call]) -> Result<(), String> {
    laws.iter_mut().for_each(|(_, law)| law.learn(calls));
    for call in calls.iter().flat_map(parts) {
        let named = call.headers.get(NAME);
        let mut refusals = laws
            .iter()
            .filter(|(name, _)| named.is_none_or(|named| named == name))
            .map(|(name, law)| law.allows(&call).map_err(|wrong| format!("{name}: {wrong}")));
        let mut wrong = Vec::new();
        if !refusals.any(|outcome| outcome.map_err(|refusal| wrong.push(refusal)).is_ok()) {
            return Err(wrong.join("; "));
        }
    }
    Ok(())
}

/// A file with these tenants, which come to these addresses, with this value of `compact`.
fn file(addresses: &[String], compact: &str) -> String {
    let limits = "limits: {leases: 1000, stored-keys: 1000, watches: 1000}";
    let tenant = |(tenant, address): (&Tenant, &String)| {
        let contains = if tenant.name == OUTER.name { ", contains: [inner, next]" } else { "" };
        let Tenant { name, namespace, .. } = tenant;
        let right = format!("compact: {compact}");
        format!(
            "- {{name: {name}, namespace: {namespace}{contains}, match: [{{listen: '{address}'}}], {right}, {limits}}}\n"
        )
    };
    let tenants: String = TENANTS.iter().zip(addresses).map(tenant).collect();
    format!("tenants:\n{tenants}")
}

/// Puts data of everybody else; returns ids of their leases.
async fn others_have_data(deployment: &Deployment, endpoints: &[String], senders: &[Tenant]) -> Vec<i64> {
    let is_foreign = |key: &str| senders.iter().all(|tenant| !key.starts_with(tenant.namespace));
    for key in KEYS.into_iter().filter(|key| is_foreign(key)) {
        deployment.put(key, SECRET).await;
        deployment.put(format!("{key}{SECRET}"), SECRET).await;
    }
    let mut ids = Vec::new();
    for (tenant, endpoint) in TENANTS.iter().zip(endpoints) {
        if senders.iter().any(|sender| sender.name == tenant.name) {
            continue;
        }
        let client = client(endpoint);
        answers(&client).await;
        for id in [ids.len() as i64 + 7, 0] {
            let grant = LeaseGrantRequest { ttl: 36_000, id };
            let lease = client.lease().lease_grant(grant).await.expect("grant").into_inner().id;
            ids.push(lease);
            if is_foreign(tenant.namespace) {
                client.kv().put(PutRequest { lease, ..put(SECRET, SECRET) }).await.expect("put");
            }
        }
    }
    ids
}

/// The senders as they begin: each has a key and two leases, and knows the ids of the others' leases.
async fn senders(tenants: &[Tenant], endpoints: &[String], ids: &[i64]) -> Vec<Sender> {
    let mut senders = Vec::new();
    for &tenant in tenants {
        let (_, endpoint) = TENANTS.iter().zip(endpoints).find(|(one, _)| one.name == tenant.name).expect("of three");
        let client = client(endpoint);
        answers(&client).await;
        client.kv().put(put("k", tenant.word)).await.expect("put");
        let grant = LeaseGrantRequest { ttl: 36_000, id: 0 };
        let own = client.lease().lease_grant(grant).await.expect("grant").into_inner().id;
        let kept = client.lease().lease_grant(grant).await.expect("grant").into_inner().id;
        let others = tenants.iter().filter(|other| other.name != tenant.name).map(|other| other.word);
        let foreign = others.chain([SECRET]).collect();
        let numbers = ids.iter().copied().chain([own]).collect();
        senders.push(Sender { tenant, endpoint: endpoint.clone(), client, numbers, kept, foreign });
    }
    let kept: Vec<i64> = senders.iter().map(|sender| sender.kept).collect();
    for sender in &mut senders {
        let of_others = kept.iter().filter(|id| **id != sender.kept);
        sender.numbers.extend(of_others);
    }
    senders
}

/// Nothing of the cluster as a whole has changed.
async fn assert_cluster_is_the_same(deployment: &Deployment, members: &[Member]) {
    assert_eq!(list_members(deployment).await, members);
    let first = RangeRequest { revision: 2, ..all() };
    assert!(!deployment.range(first).await.kvs.is_empty(), "nothing was compacted");
    let alarms = AlarmRequest { action: 0, member_id: 0, alarm: 0 };
    assert!(deployment.client.maintenance().alarm(alarms).await.expect("alarms").into_inner().alarms.is_empty());
}

async fn list_members(deployment: &Deployment) -> Vec<Member> {
    let members = deployment.client.cluster().member_list(MemberListRequest { linearizable: true }).await;
    members.expect("members").into_inner().members
}

/// How many tenants the cluster has noted as active, for agreements on compactions.
async fn noted(deployment: &Deployment) -> i64 {
    let (key, range_end) = KeyRange::prefix(WISHES.into()).to_wire();
    deployment.range(RangeRequest { key, range_end, count_only: true, ..Default::default() }).await.count
}

/// Whether the wish of a tenant is in one of these calls: the proxy has asked the member to keep it.
fn holds_wish(calls: &[Call]) -> bool {
    calls.iter().filter(|call| call.path == PUT).any(|call| {
        let put = call.frames().0.into_iter().next().and_then(|(_, message)| PutRequest::decode(message).ok());
        put.is_some_and(|put| put.key.starts_with(WISHES.as_bytes()))
    })
}

/// These tenants, of three, send what they like, all at once; all three have this value of `compact`.
fn meet_nothing_of_others(tenants: &'static [Tenant], compact: &'static str) {
    let agree = compact == "agreed";
    run(Target::Core, &[], async |deployment: &mut Deployment| {
        let between = Between::start(&deployment.endpoint).await;
        let folder = || TempDir::new().expect("temporary directory");
        // The others are clients of another proxy, so that all that passes between this one and the member is of the senders.
        let [ours, theirs] = [(); 2].map(|()| TENANTS.map(|_| address()));
        let tier = Tier::in_folder(folder(), &between.endpoint, &file(&ours, compact), &[]);
        let _other_tier = Tier::in_folder(folder(), &deployment.endpoint, &file(&theirs, compact), &[]);
        let ids = others_have_data(deployment, &theirs, tenants).await;
        let mut senders = senders(tenants, &ours, &ids).await;
        if agree {
            let all = TENANTS.len() as i64;
            until("all are active", async || (noted(deployment).await == all).then_some(())).await;
        }
        let before = of_others(deployment, tenants).await;
        let members = list_members(deployment).await;
        let given = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
        let seeds = match given("ISOLATION_SEED") {
            Some(seed) => seed..seed + 1,
            None => 0..given("ISOLATION_BATCHES").unwrap_or(BATCHES),
        };
        let law = |tenant: &Tenant| Law::new(tenant.namespace, []);
        let law = |tenant: &Tenant| if agree { law(tenant).agreeing() } else { law(tenant) };
        let mut laws: Vec<_> = tenants.iter().map(|tenant| (tenant.name, law(tenant))).collect();
        for seed in seeds {
            let revision = deployment.get("t").await.header.expect("header").revision;
            senders.iter_mut().for_each(|sender| sender.numbers.extend([revision, revision - 3]));
            tokio::select! {
                () = noise(deployment, tenants) => {}
                _ = join_all(senders.iter().map(|sender| batch(sender, seed))) => {}
            }
            let after = of_others(deployment, tenants).await;
            let differ: Vec<_> = after.iter().filter(|kv| !before.contains(kv)).collect();
            let gone: Vec<_> = before.iter().filter(|kv| !after.contains(kv)).collect();
            assert!(
                differ.is_empty() && gone.is_empty(),
                "seed {seed}: not the tenant's: {differ:?}, before: {gone:?}"
            );
            let calls: Vec<Call> = between.calls().into_iter().map(call).filter(|call| !is_probe(call)).collect();
            for tenant in tenants {
                let named = calls.iter().filter(|call| call.headers.get(NAME).is_some_and(|name| name == tenant.name));
                let methods: HashSet<_> = named.map(|call| call.path.as_str()).collect();
                assert!(methods.len() >= 8, "the requests of {} reach the member: {methods:?}", tenant.name);
            }
            assert_eq!(holds_wish(&calls), agree);
            check(&mut laws, &calls).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        }
        for id in ids.into_iter().chain(senders.iter().map(|sender| sender.kept)) {
            assert!(deployment.time_to_live(id).await.ttl > 0, "a lease of others is gone");
        }
        assert_cluster_is_the_same(deployment, &members).await;
        let words = TENANTS.map(|tenant| tenant.word);
        for shown in
            [http_get(&tier.metrics, "GET", "/proxy/metrics").await.expect("a page").body, tier.process.output()]
        {
            assert!(!shows(&[SECRET], shown.as_bytes()) && !shows(&words, shown.as_bytes()), "{shown}");
        }
    });
}

#[test]
fn a_tenant_within_another_meets_nothing_of_others() {
    meet_nothing_of_others(&[INNER], "deny");
}

#[test]
fn a_tenant_next_to_another_meets_nothing_of_others() {
    meet_nothing_of_others(&[NEXT], "deny");
}

#[test]
fn a_tenant_around_others_meets_nothing_beside_them() {
    meet_nothing_of_others(&[OUTER], "deny");
}

#[test]
fn two_neighbours_at_once_are_kept_apart() {
    meet_nothing_of_others(&[INNER, NEXT], "deny");
}

/// The third tenant is active and has no wish, so the wishes of these two are kept and the cluster is not compacted.
#[test]
fn tenants_that_agree_on_compactions_are_kept_apart() {
    meet_nothing_of_others(&[INNER, NEXT], "agreed");
}

/// A request of one tenant with a key of the other is found, and so is one that is of neither.
#[test]
fn a_request_outside_is_found() {
    let call = |name: Option<&'static str>, key: &'static str| {
        let message = RangeRequest { key: key.into(), ..Default::default() }.encode_to_vec();
        let length = u32::try_from(message.len()).expect("short").to_be_bytes();
        let name = name.map(|name| (NAME.parse().expect("a name"), name.parse().expect("a value")));
        let body = [&[0][..], &length, &message].concat();
        Call { path: "/etcdserverpb.KV/Range".to_owned(), headers: name.into_iter().collect(), body, ended: true }
    };
    let check = |calls: &[Call]| {
        let mut laws = [INNER, NEXT].map(|tenant| (tenant.name, Law::new(tenant.namespace, [])));
        check(&mut laws, calls)
    };
    let lawful = [call(Some("inner"), "t/c/k"), call(Some("next"), "t/c0k"), call(None, "t/c/k"), call(None, "t/c0k")];
    assert_eq!(check(&lawful), Ok(()));
    for wrong in
        [call(Some("inner"), "t/c0k"), call(Some("next"), "t/c/k"), call(None, "t/x"), call(Some("outer"), "t/x")]
    {
        assert!(check(&[lawful[0].clone(), wrong.clone()]).is_err(), "{wrong:?}");
    }
}
