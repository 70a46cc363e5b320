//! Lessors of several members under changing leaders: no lease ends before the time its holder was promised, and no
//! change of leaders lengthens a life. Each rule that makes it so is left out once, and the loss is noticed.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;

use crate::core::lease::*;
use crate::types::LeaseId;

const MEMBERS: usize = 3;
const EXTEND: Duration = Duration::from_millis(500);

/// The rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// What a deposed leader proposes reaches the log of the next one.
    Forwarded,
    /// A renewal is answered without asking whether this member still leads.
    Unconfirmed,
    /// A renewal is answered while a checkpoint of before stands.
    NotCleared,
    /// A leader begins before it has applied what others left behind.
    EarlyStart,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Begin,
    Revoke(LeaseId),
    Checkpoint(LeaseId, i64),
}

struct Member {
    lessor: Lessor,
    /// Its clock's zero.
    zero_ms: u64,
    /// Entries of the log it has applied.
    applied: usize,
    /// The term it believes to lead, and where that begins in the log.
    leads: Option<(u64, usize)>,
    promoted: bool,
    /// Proposals on their way, with their term.
    proposals: Vec<(u64, Op)>,
}

/// What the holder of a lease was told.
struct Held {
    ttl: i64,
    until_ms: u64,
    /// Newest checkpoint since the last renewal, or all of it.
    noted: i64,
    gone: bool,
}

struct Leadership {
    rng: Rng,
    fault: Fault,
    now_ms: u64,
    term: u64,
    /// What is committed.
    log: Vec<Op>,
    members: Vec<Member>,
    held: BTreeMap<LeaseId, Held>,
    wrong: Option<String>,
    renewed: usize,
    revoked: usize,
}

impl Leadership {
    fn new(seed: u64, fault: Fault) -> Self {
        let mut rng = Rng::with_seed(seed);
        let ttls: Vec<i64> = (0..4).map(|_| rng.i64(2..20)).collect();
        let leases =
            || (1..).zip(&ttls).map(|(id, &ttl)| Lease { id: LeaseId(id), granted_ttl: ttl, remaining_ttl: 0 });
        let config =
            LessorConfig { checkpoint_interval: Duration::from_secs(1), retry_interval: Duration::from_millis(700) };
        let members = (0..MEMBERS).map(|_| Member {
            lessor: Lessor::new(config, leases()),
            zero_ms: rng.u64(0..1_000_000),
            applied: 0,
            leads: None,
            promoted: false,
            proposals: Vec::new(),
        });
        let members = members.collect();
        let held = leases().map(|lease| {
            let ttl = lease.granted_ttl;
            (lease.id, Held { ttl, until_ms: 1000 * ttl as u64, noted: ttl, gone: false })
        });
        let held = held.collect();
        Self { rng, fault, now_ms: 0, term: 0, log: Vec::new(), members, held, wrong: None, renewed: 0, revoked: 0 }
    }

    fn clock(&self, number: usize) -> Duration {
        Duration::from_millis(self.members[number].zero_ms + self.now_ms)
    }

    fn step(&mut self) {
        // Mostly the leader acts; what a deposed one still does is what matters.
        let leader = (0..MEMBERS).find(|&number| self.still_leads(number)).filter(|_| self.rng.u32(0..10) < 6);
        let number = leader.unwrap_or_else(|| self.rng.usize(0..MEMBERS));
        match self.rng.u32(0..100) {
            0..25 => self.now_ms += self.rng.u64(0..1_500),
            25..40 => {
                let upto = self.members[number].applied + self.rng.usize(0..4);
                self.apply(number, upto);
            }
            40..43 => {
                let next = self.rng.usize(0..MEMBERS);
                self.elect(next);
            }
            43..52 => self.hear(number),
            52..65 => self.promote(number),
            65..80 => self.look(number),
            80..88 => self.flush(number),
            _ => self.renew(number),
        }
    }

    fn commit(&mut self, op: Op) {
        let late = |held: &Held| held.gone || self.now_ms >= held.until_ms;
        match op {
            Op::Begin => {}
            Op::Revoke(id) => {
                let held = self.held.get_mut(&id).expect("granted");
                if !late(held) {
                    self.wrong = Some(format!("lease {id} ends {} ms early", held.until_ms - self.now_ms));
                }
                self.revoked += usize::from(!held.gone);
                held.gone = true;
            }
            Op::Checkpoint(id, left) => {
                let held = self.held.get_mut(&id).expect("granted");
                if left > held.noted {
                    self.wrong = Some(format!("lease {id} has {left} s left after {} s", held.noted));
                }
                held.noted = if left == 0 { held.ttl } else { left };
            }
        }
        self.log.push(op);
    }

    fn apply(&mut self, number: usize, upto: usize) {
        let member = &mut self.members[number];
        for op in &self.log[member.applied.min(upto)..upto.min(self.log.len())] {
            match *op {
                Op::Begin => {}
                Op::Revoke(id) => member.lessor.revoked(id),
                Op::Checkpoint(id, left) => member.lessor.checkpointed(id, left),
            }
            member.applied += 1;
        }
    }

    /// The others hear of it later, or never.
    fn elect(&mut self, number: usize) {
        self.hear(number);
        self.term += 1;
        self.members[number].lessor.demote();
        self.members[number].promoted = false;
        self.commit(Op::Begin);
        self.members[number].leads = Some((self.term, self.log.len()));
    }

    fn still_leads(&self, number: usize) -> bool {
        self.members[number].leads.is_some_and(|(term, _)| term == self.term)
    }

    fn hear(&mut self, number: usize) {
        if !self.still_leads(number) {
            let member = &mut self.members[number];
            (member.leads, member.promoted) = (None, false);
            member.lessor.demote();
        }
    }

    fn promote(&mut self, number: usize) {
        let now = self.clock(number);
        let confirmed = self.still_leads(number);
        let member = &mut self.members[number];
        let Some((_, begin)) = member.leads else { return };
        let caught_up = member.applied >= begin || self.fault == Fault::EarlyStart;
        if !member.promoted && confirmed && caught_up {
            member.promoted = true;
            member.lessor.promote(now, EXTEND);
        }
    }

    fn look(&mut self, number: usize) {
        let now = self.clock(number);
        let member = &mut self.members[number];
        let Some((term, _)) = member.leads.filter(|_| member.promoted) else { return };
        let expired = member.lessor.expired(now, 10).into_iter().map(Op::Revoke);
        let proposed: Vec<Op> = expired
            .chain(
                member
                    .lessor
                    .due_checkpoints(now, 10)
                    .into_iter()
                    .map(|due| Op::Checkpoint(due.lease, due.remaining_ttl)),
            )
            .collect();
        member.proposals.extend(proposed.into_iter().map(|op| (term, op)));
    }

    /// What was proposed enters the log, if it may.
    fn flush(&mut self, number: usize) {
        for (term, op) in std::mem::take(&mut self.members[number].proposals) {
            if term == self.term || self.fault == Fault::Forwarded {
                self.commit(op);
            }
        }
    }

    fn renew(&mut self, number: usize) {
        let id = LeaseId(self.rng.i64(1..=self.held.len() as i64));
        if !self.members[number].promoted || (!self.still_leads(number) && self.fault != Fault::Unconfirmed) {
            return;
        }
        if self.still_leads(number) && self.fault != Fault::EarlyStart {
            self.apply(number, self.log.len());
        }
        let now = self.clock(number);
        let Ok(renewed) = self.members[number].lessor.renew(id, now) else { return };
        if renewed.clear_checkpoint && self.fault != Fault::NotCleared {
            self.flush(number);
            if !self.still_leads(number) {
                return;
            }
            // As `Checkpoint(id, 0)` would be: nothing is noted any more.
            self.commit(Op::Checkpoint(id, 0));
            self.apply(number, self.log.len());
        }
        let held = self.held.get_mut(&id).expect("granted");
        if held.gone {
            self.wrong = Some(format!("lease {id} is renewed after its end"));
        }
        held.until_ms = self.now_ms + 1000 * renewed.ttl as u64;
        self.renewed += 1;
    }

    /// Runs a while; what went wrong, and how many renewals and ends there were.
    fn run(mut self) -> (Option<String>, usize, usize) {
        for _ in 0..600 {
            self.step();
            if self.wrong.is_some() {
                break;
            }
        }
        (self.wrong, self.renewed, self.revoked)
    }
}

#[test]
fn no_leader_ends_a_lease_early() {
    let (mut renewed, mut revoked) = (0, 0);
    for seed in 0..3_000 {
        let (wrong, renewals, ends) = Leadership::new(seed, Fault::None).run();
        assert_eq!(wrong, None, "seed {seed}");
        renewed += renewals;
        revoked += ends;
    }
    println!("3000 runs: {renewed} renewals, {revoked} leases ended");
    assert!(renewed > 3_000 && revoked > 3_000, "{renewed} renewals, {revoked} ends show little");
}

#[test]
fn each_rule_is_needed() {
    for fault in [Fault::Forwarded, Fault::Unconfirmed, Fault::NotCleared, Fault::EarlyStart] {
        let found = (0..3_000).find(|&seed| Leadership::new(seed, fault).run().0.is_some());
        assert!(found.is_some(), "{fault:?} goes unnoticed");
    }
}
