//! Arbitrary requests of every RPC: no member may stop, at once or at its next start, and members may not differ.
//!
//! The shapes of the messages come from `proto/` (see `build.rs`), so that a new RPC or field is covered by itself. A
//! failure names a seed. `ANY_REQUEST_SEED=<seed>` runs that batch alone, `ANY_REQUEST_SECONDS=<n>` runs new batches
//! for so long.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use tonic::Code;
use watershed::pb::etcdserverpb::alarm_request::AlarmAction;
use watershed::pb::etcdserverpb::{
    AlarmRequest, HashKvRequest, MemberAddRequest, MemberListRequest, MemberRemoveRequest, MemberUpdateRequest,
};
use watershed::pb::methods::{METHODS, Method, MethodKind};

use super::story::{assert_equal, grant, put};
use crate::harness::{Cluster, Process, raw_stream, refused, until};

include!(concat!(env!("OUT_DIR"), "/shapes.rs"));

/// A field of a message.
pub struct Field {
    number: u32,
    repeated: bool,
    content: Content,
}

/// What a field holds.
pub enum Content {
    /// A message of this name.
    Message(&'static str),
    /// One of these values, if the sender keeps to them.
    Enum(&'static [i32]),
    Text,
    Bytes,
    Bool,
    Number,
}

/// Batches of a run without an environment variable.
const BATCHES: u64 = 2;
/// Requests of one method in a batch.
const PER_METHOD: usize = 5;
/// Requests in flight.
const IN_FLIGHT: usize = 16;
/// How long a call may stay open.
const CALL: Duration = Duration::from_millis(1500);
/// Messages within one another, other than the deep transactions made on purpose.
const DEPTH: usize = 5;
/// Deepest transaction made on purpose.
const DEEP: usize = 300;

fn input(method: &Method) -> &'static str {
    INPUTS.iter().find(|(path, _)| *path == method.path).map(|(_, input)| *input).expect("a method of proto/")
}

fn fields(message: &str) -> &'static [Field] {
    MESSAGES.iter().find(|(name, _)| *name == message).map(|(_, fields)| *fields).expect("a message of proto/")
}

/// Makes requests.
struct Maker {
    random: fastrand::Rng,
    /// Ids and revisions that mean something to the cluster, and those that never do.
    numbers: Vec<u64>,
    texts: Vec<String>,
}

impl Maker {
    fn new(seed: u64, ids: &[u64], urls: &[String]) -> Self {
        let mut numbers = vec![0, 0, 1, 2, 3, 10, 77, 1 << 32, 1 << 62, u64::MAX, i64::MAX as u64, i64::MIN as u64];
        numbers.extend([i32::MAX as u64, i32::MIN as i64 as u64]);
        numbers.extend(ids);
        let mut texts: Vec<String> =
            ["", "a", "b/", "\0", "\n", "é", "http://127.0.0.1:1", "http://a\nb:1", "http://a,b:2"]
                .map(str::to_owned)
                .to_vec();
        texts.extend([format!("http://{}:1", "x".repeat(5000)), "http://é:1".to_owned(), "%zz".to_owned()]);
        texts.extend(urls.iter().cloned());
        Self { random: fastrand::Rng::with_seed(seed), numbers, texts }
    }

    fn one_in(&mut self, count: u32) -> bool {
        self.random.u32(0..count) == 0
    }

    fn number(&mut self) -> u64 {
        if self.one_in(8) { self.random.u64(..) } else { self.numbers[self.random.usize(..self.numbers.len())] }
    }

    fn bytes(&mut self) -> Vec<u8> {
        match self.random.u32(0..24) {
            0 => Vec::new(),
            1 => vec![0],
            2 => vec![0xff; 3],
            3 => (0..self.random.usize(1..40)).map(|_| self.random.u8(..)).collect(),
            4 if self.one_in(4) => vec![b'x'; 400_000],
            _ => vec![b'a' + self.random.u8(0..6)],
        }
    }

    fn value(&mut self, field: &Field, depth: usize, out: &mut Vec<u8>) {
        let whole = |bytes: Vec<u8>, out: &mut Vec<u8>| {
            encode_key(field.number, WireType::LengthDelimited, out);
            encode_varint(bytes.len() as u64, out);
            out.extend_from_slice(&bytes);
        };
        let number = match field.content {
            Content::Message(name) => return whole(self.message(name, depth.saturating_sub(1)), out),
            Content::Bytes => return whole(self.bytes(), out),
            Content::Text => {
                let text = self.texts[self.random.usize(..self.texts.len())].clone().into_bytes();
                // Text has to be UTF-8; this is not.
                return whole(if self.one_in(20) { vec![0xff, b'a'] } else { text }, out);
            }
            Content::Bool => u64::from(self.random.bool()),
            Content::Enum(values) if !self.one_in(6) => values[self.random.usize(..values.len())] as i64 as u64,
            Content::Enum(_) | Content::Number => self.number(),
        };
        encode_key(field.number, WireType::Varint, out);
        encode_varint(number, out);
    }

    fn message(&mut self, name: &str, depth: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for field in fields(name) {
            let nested = matches!(field.content, Content::Message(_));
            if (nested && depth == 0) || self.random.u32(0..10) < 3 {
                continue;
            }
            let count = if field.repeated { self.random.usize(0..4) } else { 1 };
            for _ in 0..count {
                self.value(field, depth, &mut out);
            }
        }
        match self.random.u32(0..60) {
            // An unknown field, a group, a field twice, a length that points behind the end.
            0 => out.extend_from_slice(&[0xf8, 0x3f, 0x01]),
            1 => out.extend_from_slice(&[0xfb, 0x3f, 0xfc, 0x3f]),
            2 => out.extend(out.clone()),
            3 => out.extend_from_slice(&[0x0a, 0x7f]),
            _ => {}
        }
        out
    }

    /// A transaction in a transaction, and so on, with one operation at the bottom.
    fn deep_txn(&mut self) -> Vec<u8> {
        let mut inner = self.message("etcdserverpb.TxnRequest", 2);
        for _ in 0..self.random.usize(1..DEEP) {
            let branch = if self.random.bool() { 0x12 } else { 0x1a };
            for tag in [0x22, branch] {
                let mut outer = vec![tag];
                encode_varint(inner.len() as u64, &mut outer);
                outer.append(&mut inner);
                inner = outer;
            }
        }
        inner
    }

    fn request(&mut self, method: &Method) -> Vec<Bytes> {
        let count = match method.kind {
            MethodKind::ClientStream | MethodKind::BidiStream => self.random.usize(0..6),
            // What no generated client does.
            _ if self.one_in(30) => self.random.usize(0..3),
            _ => 1,
        };
        let name = input(method);
        let one = |_| match method.name {
            "Txn" if self.one_in(4) => self.deep_txn().into(),
            _ => self.message(name, DEPTH).into(),
        };
        (0..count).map(one).collect()
    }
}

/// The members as they were at first.
struct Origin {
    urls: BTreeMap<u64, Vec<String>>,
}

impl Origin {
    async fn of(cluster: &Cluster) -> Self {
        Self { urls: Self::now(cluster).await }
    }

    async fn now(cluster: &Cluster) -> BTreeMap<u64, Vec<String>> {
        until("the list of members", async || {
            let request = MemberListRequest { linearizable: true };
            let list = cluster.client().cluster().member_list(request).await.ok()?.into_inner();
            Some(list.members.into_iter().map(|member| (member.id, member.peer_ur_ls)).collect())
        })
        .await
    }

    /// A running member may be asked to leave or to move, and would: these requests are changed so that it does not.
    fn spare(&self, method: &Method, message: Bytes) -> Bytes {
        match method.name {
            "MemberRemove" => match MemberRemoveRequest::decode(message.clone()) {
                Ok(request) if self.urls.len() > 1 && self.urls.contains_key(&request.id) => Bytes::new(),
                _ => message,
            },
            // One voter more, which never starts, is the end of the only one.
            "MemberAdd" if self.urls.len() == 1 => match MemberAddRequest::decode(message.clone()) {
                Ok(request) => MemberAddRequest { is_learner: true, ..request }.encode_to_vec().into(),
                Err(_) => message,
            },
            "MemberUpdate" => match MemberUpdateRequest::decode(message.clone()) {
                Ok(mut request) if self.urls.contains_key(&request.id) => {
                    request.peer_ur_ls.splice(0..0, self.urls[&request.id].iter().cloned());
                    request.encode_to_vec().into()
                }
                _ => message,
            },
            _ => message,
        }
    }

    /// Ends the alarms that were raised, removes the members that were added, and puts the URLs back.
    async fn put_back(&self, cluster: &Cluster) {
        until("the end of all alarms", async || {
            let ask = |request| {
                let mut maintenance = cluster.client().maintenance();
                async move { Some(maintenance.alarm(request).await.ok()?.into_inner().alarms) }
            };
            let raised = ask(AlarmRequest::default()).await?;
            for alarm in &raised {
                let action = AlarmAction::Deactivate.into();
                ask(AlarmRequest { action, member_id: alarm.member_id, alarm: alarm.alarm }).await?;
            }
            raised.is_empty().then_some(())
        })
        .await;
        until("the members of before", async || {
            let now = Self::now(cluster).await;
            for &id in now.keys().filter(|id| !self.urls.contains_key(id)) {
                cluster.client().cluster().member_remove(MemberRemoveRequest { id }).await.ok()?;
            }
            for (&id, urls) in self.urls.iter().filter(|&(id, urls)| now.get(id).is_some_and(|now| now != urls)) {
                let request = MemberUpdateRequest { id, peer_ur_ls: urls.clone() };
                cluster.client().cluster().member_update(request).await.ok()?;
            }
            (Self::now(cluster).await == self.urls).then_some(())
        })
        .await;
    }
}

/// Sends requests of every method to all members, in no order.
async fn send_batch(cluster: &Cluster, origin: &Origin, seed: u64) {
    let known: Vec<u64> = origin.urls.keys().copied().collect();
    let urls: Vec<String> = origin.urls.values().flatten().cloned().collect();
    let mut maker = Maker::new(seed, &known, &urls);
    let mut calls: Vec<(&'static Method, Vec<Bytes>, usize)> = Vec::new();
    for method in METHODS {
        for _ in 0..PER_METHOD {
            let messages = maker.request(method).into_iter().map(|message| origin.spare(method, message)).collect();
            calls.push((method, messages, maker.random.usize(..origin.urls.len())));
        }
    }
    maker.random.shuffle(&mut calls);
    // A raised alarm stops most of the others.
    calls.sort_by_key(|(method, ..)| method.name == "Alarm");
    let sent = futures::stream::iter(calls).map(|(method, messages, member)| {
        let client = cluster.member(member);
        async move {
            if let Err(status) = raw_stream(&client, method.path, messages, 4, CALL).await {
                assert!(!status.message().contains("panic"), "{} {status:?}", method.path);
            }
        }
    });
    sent.buffer_unordered(IN_FLIGHT).for_each(|()| async {}).await;
}

async fn hash_at(cluster: &Cluster, number: usize, revision: i64) -> (u32, i64) {
    until("a hash", async || {
        let request = HashKvRequest { revision };
        let answer = cluster.member(number).maintenance().hash_kv(request).await.ok()?.into_inner();
        Some((answer.hash, answer.compact_revision))
    })
    .await
}

/// One batch, and what is looked at after it.
async fn batch(cluster: &mut Cluster, origin: &Origin, seed: u64) {
    eprintln!("ANY_REQUEST_SEED={seed}");
    send_batch(cluster, origin, seed).await;
    for number in 0..origin.urls.len() {
        assert!(!cluster.ended(number), "seed {seed}: member {number} ended:\n{}", cluster.output(number));
        let output = Process::output(cluster.process(number));
        assert!(!output.contains("panicked"), "seed {seed}: member {number}:\n{output}");
    }
    origin.put_back(cluster).await;
    let revision = assert_equal(cluster).await;
    let number = seed as usize % origin.urls.len();
    let before = hash_at(cluster, number, revision).await;
    cluster.kill(number);
    cluster.restart(number).await;
    assert_eq!(hash_at(cluster, number, revision).await, before, "seed {seed}: after a restart");
    put(&cluster.member(number), "alive", "yes").await;
    assert_equal(cluster).await;
}

fn run(members: usize) {
    let number_of = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        let begun = Instant::now();
        let mut cluster = Cluster::start(members, &[]).await;
        let origin = Origin::of(&cluster).await;
        if let Some(seed) = number_of("ANY_REQUEST_SEED") {
            return batch(&mut cluster, &origin, seed).await;
        }
        let first = number_of("ANY_REQUEST_SECONDS").map_or(0, |_| fastrand::u64(..1 << 40));
        for seed in first.. {
            batch(&mut cluster, &origin, seed).await;
            let enough = match number_of("ANY_REQUEST_SECONDS") {
                Some(seconds) => begun.elapsed() >= Duration::from_secs(seconds),
                None => seed + 1 == BATCHES,
            };
            if enough {
                break;
            }
        }
    });
}

#[test]
fn no_request_stops_a_member() {
    run(1);
}

#[test]
fn no_request_makes_members_differ() {
    run(3);
}

#[test]
fn every_method_has_a_shape() {
    let mut maker = Maker::new(1, &[], &[]);
    for method in METHODS {
        maker.request(method);
    }
    assert_eq!(INPUTS.len(), METHODS.len());
}

// Cause: the id was put into the log as it came, and no member could read 0 back. The only member stopped, also at each
// start; of three the followers refused the append for ever.
#[test]
fn nobody_is_removed_or_updated() {
    for members in [1, 3] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let mut cluster = Cluster::start(members, &[]).await;
            let not_found = "etcdserver: member not found";
            for number in 0..members {
                let mut client = cluster.member(number).cluster();
                refused(client.member_remove(MemberRemoveRequest { id: 0 }).await, Code::NotFound, not_found);
                let update = MemberUpdateRequest { id: 0, peer_ur_ls: vec!["http://127.0.0.1:1".to_owned()] };
                refused(client.member_update(update).await, Code::NotFound, not_found);
            }
            grant(&cluster.client(), 100).await;
            put(&cluster.client(), "k", "v").await;
            cluster.kill(0);
            cluster.restart(0).await;
            put(&cluster.member(0), "k", "w").await;
            assert_equal(&cluster).await;
        });
    }
}
