//! Clients: they ask any member, wait with a bound, and hold every answer against the truth.

use std::collections::BTreeMap;

use bytes::Bytes;
use watershed::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use watershed::pb::etcdserverpb::request_op::Request;
use watershed::pb::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, InternalRaftRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest,
};
use watershed::types::MemberId;

use super::checkers::Operation;
use super::context::{Context, Event, MILLI, Micros, SECOND, must};
use super::history;
use super::model::Reply;

/// Number of an operation of a client; never used again.
pub type OpId = u64;

/// What a client asks a member for.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "few exist at once, and writes are most of them")]
pub enum Ask {
    Write(InternalRaftRequest),
    Read { request: RangeRequest, linearizable: bool },
    Renew(i64),
}

/// What a client hears.
#[derive(Clone, Debug)]
pub enum Answer {
    Written(Reply),
    Read(Result<RangeResponse, &'static str>),
    /// Seconds granted; 0 when the lease is gone.
    Renewed {
        ttl: i64,
        revision: i64,
    },
    /// Only the leader renews.
    NotLeader(Option<MemberId>),
    /// It was not executed and never will be.
    NotExecuted,
    /// The member went away, or does not know.
    Lost,
}

/// An operation under way.
#[derive(Debug)]
pub struct Op {
    pub client: usize,
    pub member: usize,
    pub ask: Ask,
    pub called: Micros,
    /// Revisions and log entries that had an effect anybody heard of before the call.
    floor: Floor,
    /// The request's id in the log, once a member has proposed it.
    pub request: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Floor {
    revision: i64,
    index: u64,
}

#[derive(Debug, Default)]
struct Client {
    written: u64,
    /// Last seen modification of the list keys.
    lists: BTreeMap<Bytes, (i64, Bytes)>,
    leases: Vec<i64>,
}

/// All clients of a simulation.
pub struct Clients {
    clients: Vec<Client>,
    pub ops: BTreeMap<OpId, Op>,
    last: OpId,
    floor: Floor,
    /// What was asked and heard, if the simulation keeps it.
    pub recorded: Vec<Operation>,
    /// Where members are that clients know of.
    pub members: Vec<usize>,
}

impl Clients {
    pub fn new(context: &mut Context, members: usize) -> Self {
        let count = context.settings.clients;
        for client in 0..count {
            let delay = context.random.u64(..SECOND);
            context.after(delay, Event::Next(client));
        }
        let clients = (0..count).map(|_| Client::default()).collect();
        Self {
            clients,
            ops: BTreeMap::new(),
            last: 0,
            floor: Floor::default(),
            recorded: Vec::new(),
            members: (0..members).collect(),
        }
    }

    /// Begins the next operation of a client.
    pub fn next(&mut self, context: &mut Context, client: usize) {
        let ask = self.choose(context, client);
        let member = self.members[context.random.usize(..self.members.len())];
        self.begin(context, client, member, ask);
    }

    /// Sends a request on its way.
    pub fn begin(&mut self, context: &mut Context, client: usize, member: usize, ask: Ask) -> OpId {
        self.last += 1;
        let id = self.last;
        let mut floor = self.floor;
        floor.revision = floor.revision.max(context.truth.shown);
        let op = Op { client, member, ask, called: context.now, floor, request: None };
        self.ops.insert(id, op);
        context.counts.operations += 1;
        let (delay, patience) = (context.random.u64(..5 * MILLI), context.random.u64(SECOND..8 * SECOND));
        context.after(delay, Event::Request(id));
        context.after(patience, Event::GiveUp(id));
        id
    }

    /// A member has put the request into its log, or will.
    pub fn proposed(&mut self, id: OpId, request: u64) {
        if let Some(op) = self.ops.get_mut(&id) {
            op.request = Some(request);
        }
    }

    /// A client has waited long enough: the outcome stays unknown to it.
    pub fn give_up(&mut self, context: &mut Context, id: OpId) {
        if let Some(op) = self.finish(context, id) {
            self.record(context, id, &op, None);
            context.counts.unknown += 1;
            context.counts.unanswered_probes += u64::from(op.client == NOBODY);
            context.note("unknown", [id, 0, 0]);
            self.rest(context, op.client);
        }
    }

    /// An answer has arrived.
    pub fn answered(&mut self, context: &mut Context, id: OpId, answer: Answer) {
        let decided = context.truth.decided.get(&id).cloned();
        let Some(op) = self.finish(context, id) else { return };
        self.record(context, id, &op, Some(&answer));
        context.note("answer", [id, op.called, 0]);
        match answer {
            Answer::Written(reply) => {
                let Some(decided) = decided else {
                    context.fail(format_args!("{:?} was acknowledged and is not committed: {reply:?}", op.ask));
                };
                must!(
                    context,
                    reply == decided.reply,
                    "{:?} was answered {reply:?}, the log says {:?}",
                    op.ask,
                    decided.reply
                );
                let (index, floor) = (decided.index, op.floor);
                must!(context, index > floor.index, "{:?} is at {index}, {floor:?} came before it", op.ask);
                if let Some(revision) = reply.revision() {
                    let newer = revision > floor.revision || (revision == floor.revision && !decided.wrote);
                    must!(context, newer, "{:?} was answered at revision {revision}, after {floor:?}", op.ask);
                }
                self.saw(index, reply.revision());
                context.counts.acknowledged += 1;
                self.learn(context, &op, &reply);
            }
            Answer::Read(Ok(response)) => {
                let Ask::Read { request, linearizable } = &op.ask else { unreachable!("an answer to a read") };
                let revision = response.header.as_ref().map_or(0, |header| header.revision);
                let model = &context.truth.model;
                must!(context, revision <= model.revision(), "a read shows revision {revision}, which nobody wrote");
                let at = if request.revision > 0 { request.revision } else { revision };
                let expected = model.range(request, at, revision);
                must!(context, response == expected, "{request:?} was answered {response:?} instead of {expected:?}");
                if *linearizable {
                    let floor = op.floor;
                    must!(context, revision >= floor.revision, "a read shows {revision}, {floor:?} came before it");
                }
                context.truth.shown = context.truth.shown.max(revision);
                context.counts.reads += 1;
                context.counts.acknowledged += 1;
                for kv in response.kvs.iter().filter(|_| op.client != NOBODY) {
                    let seen = (kv.mod_revision, kv.value.clone());
                    self.clients[op.client].lists.insert(kv.key.clone(), seen);
                }
            }
            Answer::Renewed { ttl, .. } => {
                let Ask::Renew(id) = op.ask else { unreachable!("an answer to a renewal") };
                context.counts.acknowledged += 1;
                if ttl > 0 {
                    context.counts.renewals += 1;
                    context.promised(id, ttl, op.called);
                } else {
                    let lease = context.truth.leases.get(&id).copied().unwrap_or_default();
                    let gone = lease.expired_at.is_some() || lease.revoked;
                    must!(context, gone || lease.ttl == 0, "lease {id:x} is said to be gone, it lives: {lease:?}");
                    self.clients[op.client].leases.retain(|&other| other != id);
                }
            }
            Answer::Read(Err(_)) | Answer::NotLeader(_) | Answer::NotExecuted | Answer::Lost => {
                if let (Answer::NotExecuted, Some(request)) = (&answer, op.request) {
                    must!(context, decided.is_none(), "{:?} is in the log and was said not to be", op.ask);
                    context.truth.never.insert(request);
                }
                context.counts.unknown += 1;
                context.counts.unanswered_probes += u64::from(op.client == NOBODY);
            }
        }
        self.rest(context, op.client);
    }

    fn record(&mut self, context: &Context, id: OpId, op: &Op, answer: Option<&Answer>) {
        if context.settings.recorded {
            self.recorded.push(history::operation(id, op, context.now, answer));
        }
    }

    fn finish(&mut self, context: &mut Context, id: OpId) -> Option<Op> {
        let op = self.ops.remove(&id)?;
        context.truth.decided.remove(&id);
        if let Some(request) = op.request {
            context.truth.waiting.remove(&request);
        }
        Some(op)
    }

    fn saw(&mut self, index: u64, revision: Option<i64>) {
        self.floor.index = self.floor.index.max(index);
        self.floor.revision = self.floor.revision.max(revision.unwrap_or(0));
    }

    fn rest(&mut self, context: &mut Context, client: usize) {
        if client == NOBODY {
            return;
        }
        // Busy for a while, then quiet for a while.
        let pause = if context.one_in(6) { 4 * SECOND } else { 200 * MILLI };
        let delay = context.random.u64(..pause);
        context.after(delay, Event::Next(client));
    }

    /// What a client remembers of an acknowledged write.
    fn learn(&mut self, context: &mut Context, op: &Op, reply: &Reply) {
        if let Reply::Granted { id, ttl, .. } = *reply {
            context.promised(id, ttl, op.called);
            if op.client != NOBODY {
                self.clients[op.client].leases.push(id);
            }
        }
    }

    fn choose(&mut self, context: &mut Context, client: usize) -> Ask {
        let random = &mut context.random;
        let state = &mut self.clients[client];
        state.written += 1;
        let value = Bytes::from(format!("{client}.{}", state.written));
        let key = |random: &mut fastrand::Rng| Bytes::from(format!("k{}", random.u8(..8)));
        let list = |random: &mut fastrand::Rng| Bytes::from(format!("l{}", random.u8(..3)));
        let write = |request| Ask::Write(request);
        let none = InternalRaftRequest::default;
        let put = |key, value, lease, prev_kv| PutRequest { key, value, lease, prev_kv, ..Default::default() };
        match random.u8(..100) {
            0..22 => {
                let put = put(key(random), value, 0, random.bool());
                write(InternalRaftRequest { put: Some(put), ..none() })
            }
            22..28 => {
                let (key, range_end) = match random.u8(..4) {
                    0 => ("k2".into(), "k5".into()),
                    _ => (key(random), Bytes::new()),
                };
                let delete = DeleteRangeRequest { key, range_end, prev_kv: random.bool() };
                write(InternalRaftRequest { delete_range: Some(delete), ..none() })
            }
            28..46 => {
                // Appends to a list, if nobody did so since it was read.
                let key = list(random);
                let (seen, items) = state.lists.get(&key).cloned().unwrap_or_default();
                let mut longer = items.to_vec();
                if longer.len() > 60 {
                    longer.clear();
                }
                longer.extend_from_slice(&value);
                longer.push(b' ');
                let txn = TxnRequest {
                    compare: vec![mod_is(&key, seen)],
                    success: vec![put_op(put(key.clone(), longer.into(), 0, false)), range_op(&key)],
                    failure: vec![range_op(&key)],
                };
                write(InternalRaftRequest { txn: Some(txn), ..none() })
            }
            46..52 => {
                // Two keys at once, and a look at what is there.
                let (first, second) = (key(random), list(random));
                let txn = TxnRequest {
                    compare: vec![mod_is(&first, 0)],
                    success: vec![put_op(put(first.clone(), value.clone(), 0, true)), delete_op(&second)],
                    failure: vec![delete_op(&first), range_op(&first), put_op(put(second, value, 0, false))],
                };
                write(InternalRaftRequest { txn: Some(txn), ..none() })
            }
            52..70 => Ask::Read { request: range_of(&list(random)), linearizable: true },
            70..76 => Ask::Read { request: everything(), linearizable: true },
            76..84 => Ask::Read { request: everything(), linearizable: false },
            84..88 => {
                let id = random.i64(1..i64::MAX);
                let grant = LeaseGrantRequest { id, ttl: random.i64(1..12) };
                write(InternalRaftRequest { lease_grant: Some(grant), ..none() })
            }
            88..97 if !state.leases.is_empty() => {
                let lease = state.leases[random.usize(..state.leases.len())];
                match random.u8(..10) {
                    0..5 => {
                        let put = put(key(random), value, lease, false);
                        write(InternalRaftRequest { put: Some(put), ..none() })
                    }
                    5 => {
                        let revoke = LeaseRevokeRequest { id: lease };
                        write(InternalRaftRequest { lease_revoke: Some(revoke), ..none() })
                    }
                    6 => {
                        // Forgotten: it runs out.
                        state.leases.retain(|&other| other != lease);
                        Ask::Renew(lease)
                    }
                    _ => Ask::Renew(lease),
                }
            }
            97 => {
                let back = random.i64(0..40);
                let revision = (context.truth.shown - back).max(1);
                let compaction = CompactionRequest { revision, ..Default::default() };
                write(InternalRaftRequest { compaction: Some(compaction), ..none() })
            }
            98 => {
                let revision = (context.truth.shown - random.i64(0..60)).max(1);
                Ask::Read { request: RangeRequest { revision, ..everything() }, linearizable: true }
            }
            _ => Ask::Read { request: range_of(&key(random)), linearizable: true },
        }
    }
}

/// A client of scripts: it does nothing on its own.
pub const NOBODY: usize = usize::MAX;

pub fn range_of(key: &Bytes) -> RangeRequest {
    RangeRequest { key: key.clone(), ..Default::default() }
}

pub fn everything() -> RangeRequest {
    RangeRequest { key: Bytes::from_static(b"\0"), range_end: Bytes::from_static(b"\0"), ..Default::default() }
}

fn mod_is(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Default::default()
    }
}

fn put_op(put: PutRequest) -> RequestOp {
    RequestOp { request: Some(Request::RequestPut(put)) }
}

fn range_op(key: &Bytes) -> RequestOp {
    RequestOp { request: Some(Request::RequestRange(range_of(key))) }
}

fn delete_op(key: &Bytes) -> RequestOp {
    let delete = DeleteRangeRequest { key: key.clone(), prev_kv: true, ..Default::default() };
    RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
}
