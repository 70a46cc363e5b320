//! What the cluster has agreed on, seen from outside: the committed log, what it means, and who led when.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use watershed::core::cluster::{ClusterStore, MembersAction};
use watershed::core::raft::{ChangeKind, Committed, CommittedKind, ProposedChange};
use watershed::pb::etcdserverpb::InternalRaftRequest;
use watershed::types::{KeyRange, LogIndex, MemberId, Term};

use super::client::OpId;
use super::context::{Context, Micros, must};
use super::model::{Model, Reply};

/// A committed request.
#[derive(Clone, Debug)]
pub struct Decided {
    pub index: u64,
    pub reply: Reply,
    /// Whether it wrote a revision of its own.
    pub wrote: bool,
}

/// What is known to be true of a lease.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeaseTruth {
    pub ttl: i64,
    /// Clients were promised that it lives until then.
    pub promised_until: Micros,
    /// When its expiry was committed.
    pub expired_at: Option<Micros>,
    /// A client asked to end it.
    pub revoked: bool,
}

#[derive(Default)]
pub struct Truth {
    /// The committed log from index 1.
    log: Vec<Committed>,
    pub model: Model,
    /// The members as the log has them.
    pub cluster: ClusterStore,
    /// Changes of the members that took effect and that nobody has followed yet.
    pub changed: Vec<(ChangeKind, MemberId)>,
    leaders: BTreeMap<u64, MemberId>,
    /// Requests that a client waits for.
    pub waiting: BTreeMap<u64, OpId>,
    /// Outcomes of requests that a client waits for.
    pub decided: BTreeMap<OpId, Decided>,
    /// Revocations that a lessor proposed.
    pub expiries: BTreeMap<u64, i64>,
    pub leases: BTreeMap<i64, LeaseTruth>,
    /// Keys that went with a lease that ran out, and the revisions of their deletion.
    pub expired_keys: BTreeSet<(i64, Bytes)>,
    /// Members whose state a script has changed.
    pub damaged: BTreeSet<u64>,
    applied_requests: BTreeSet<u64>,
    /// Requests that were answered as being in no log.
    pub never: BTreeSet<u64>,
    /// The newest revision any client was shown.
    pub shown: i64,
}

impl Truth {
    pub fn committed(&self) -> u64 {
        self.log.len() as u64
    }

    pub fn entry(&self, index: LogIndex) -> Option<&Committed> {
        self.log.get((index.0 as usize).checked_sub(1)?)
    }
}

impl Context {
    /// A member says that it leads in a term.
    pub fn leads(&mut self, member: MemberId, term: Term) {
        let known = self.truth.leaders.get(&term.0).copied();
        if known.is_none() {
            self.truth.leaders.insert(term.0, member);
            self.counts.leader_changes += 1;
            self.note("leads", [member.0, term.0, 0]);
        }
        must!(self, known.is_none_or(|known| known == member), "{member} and {known:?} lead in term {term}");
    }

    /// A member's log says that an entry is committed.
    pub fn committed(&mut self, member: MemberId, entry: &Committed) {
        if let Some(known) = self.truth.entry(entry.index) {
            must!(self, known == entry, "member {member} has {entry:?} where {known:?} is committed");
            return;
        }
        let expected = self.truth.committed() + 1;
        must!(self, entry.index.0 == expected, "entry {} is committed before {expected}", entry.index);
        self.truth.log.push(entry.clone());
        let data = match &entry.kind {
            CommittedKind::Request(data) => data,
            CommittedKind::Members(change) => return self.decided_members(change),
            CommittedKind::Empty => return,
        };
        let request = InternalRaftRequest::decode(data.clone()).expect("requests of the simulation are readable");
        must!(self, self.truth.applied_requests.insert(request.id), "request {:x} is in the log twice", request.id);
        must!(self, !self.truth.never.contains(&request.id), "request {:x} was said to be in no log", request.id);
        if let Some(alarm) = &request.alarm {
            // 0 stands for the cluster: some state is wrong, and no majority says whose.
            let damaged = &self.truth.damaged;
            let right = damaged.contains(&alarm.member_id) || (alarm.member_id == 0 && !damaged.is_empty());
            must!(self, right, "member {} is accused, and its state is right", alarm.member_id);
            self.counts.accused += 1;
        }
        let before = self.truth.model.revision();
        let reply = self.truth.model.apply(&request);
        self.note("entry", [entry.index.0, request.id, self.truth.model.revision() as u64]);
        self.decided_lease(&request, &reply, before);
        if let Some(&op) = self.truth.waiting.get(&request.id) {
            let wrote = self.truth.model.revision() > before;
            self.truth.decided.insert(op, Decided { index: entry.index.0, reply, wrote });
        }
    }

    fn decided_members(&mut self, change: &ProposedChange) {
        let action = match change.kind {
            ChangeKind::AddVoter => MembersAction::AddVoter,
            ChangeKind::AddLearner => MembersAction::AddLearner,
            ChangeKind::Remove => MembersAction::Remove,
            ChangeKind::Update => MembersAction::Update,
        };
        if self.truth.cluster.decide(action, change.member, &change.context).is_ok() {
            self.truth.changed.push((change.kind, change.member));
            self.counts.members_changed += 1;
            self.note("members", [change.kind as u64, change.member.0, 0]);
        }
    }

    fn decided_lease(&mut self, request: &InternalRaftRequest, reply: &Reply, before: i64) {
        if let Reply::Granted { id, ttl, .. } = *reply {
            self.truth.leases.insert(id, LeaseTruth { ttl, ..LeaseTruth::default() });
        }
        let Some(revoke) = &request.lease_revoke else { return };
        let expiry = self.truth.expiries.remove(&request.id).is_some();
        if !matches!(reply, Reply::Revoked { .. }) {
            return;
        }
        let now = self.now;
        let lease = self.truth.leases.entry(revoke.id).or_default();
        if expiry {
            lease.expired_at = Some(now);
            let promised = lease.promised_until;
            self.counts.expired_leases += 1;
            must!(self, promised <= now, "lease {:x} ended although it was promised until {promised}", revoke.id);
            let (everything, revision) = (KeyRange::From("\0".into()), self.truth.model.revision());
            let gone = self.truth.model.events(&everything, before, revision).into_iter();
            let gone: Vec<_> = gone.map(|event| (event.revision, event.key.clone())).collect();
            self.truth.expired_keys.extend(gone);
        } else {
            lease.revoked = true;
        }
    }

    /// A client was told that a lease it asked about at `called` has `ttl` seconds from then.
    pub fn promised(&mut self, id: i64, ttl: i64, called: Micros) {
        // Clocks of members run up to 2 % fast.
        let until = called + ttl as u64 * 980_000;
        let lease = self.truth.leases.entry(id).or_default();
        let expired = lease.expired_at;
        if lease.revoked {
            return;
        }
        lease.promised_until = lease.promised_until.max(until);
        must!(
            self,
            expired.is_none_or(|at| at >= until),
            "lease {id:x} was promised until {until}, it ended at {expired:?}"
        );
    }
}
