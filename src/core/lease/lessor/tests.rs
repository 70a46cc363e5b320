use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::wheel::TICK_MS;
use super::*;

const RETRY_MS: u64 = 3_000;

fn lease(id: i64, ttl: i64) -> Lease {
    Lease { id: LeaseId(id), granted_ttl: ttl, remaining_ttl: 0 }
}

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn lessor(leases: &[(i64, i64)]) -> Lessor {
    Lessor::new(LessorConfig::default(), leases.iter().map(|&(id, ttl)| lease(id, ttl)))
}

fn ids(ids: &[i64]) -> Vec<LeaseId> {
    ids.iter().copied().map(LeaseId).collect()
}

// Cause: those that run out in the same millisecond were listed by id.
#[test]
fn leases_of_one_moment_are_listed_as_they_were_granted_and_renewed() {
    let mut lessor = lessor(&[(7, 60), (5, 60), (9, 60)]);
    assert_eq!(lessor.leases().by_remaining(), ids(&[7, 5, 9]));
    lessor.promote(at(0), at(0));
    lessor.revoked(LeaseId(5));
    for id in [8, 3] {
        lessor.granted(lease(id, 60), at(0));
    }
    assert_eq!(lessor.leases().by_remaining(), ids(&[7, 9, 8, 3]));
    lessor.renew(LeaseId(9), at(0)).expect("alive");
    assert_eq!(lessor.leases().by_remaining(), ids(&[7, 8, 3, 9]));
}

// Cause: all leases were sorted under the lock of the deadlines, which renewals wait for.
#[test]
fn leases_are_sorted_while_the_lessor_goes_on() {
    let mut lessor = lessor(&[(7, 60), (5, 60)]);
    lessor.promote(at(0), at(0));
    let taken = lessor.leases();
    lessor.renew(LeaseId(7), at(1_000)).expect("alive");
    assert_eq!(taken.by_remaining(), ids(&[7, 5]), "as they were when they were taken");
    assert_eq!(lessor.leases().by_remaining(), ids(&[5, 7]));
}

#[test]
fn nobody_but_the_leader_knows_deadlines() {
    let mut lessor = lessor(&[(1, 2)]);
    assert_eq!(lessor.expired(at(100_000), 10), []);
    assert_eq!(lessor.remaining(LeaseId(1), at(0)), None);
    assert_eq!(lessor.renew(LeaseId(1), at(0)), Err(RenewError::NotPrimary));
    lessor.promote(at(100_000), at(1_000));
    assert_eq!(lessor.remaining(LeaseId(1), at(100_000)), Some(at(3_000)));
    assert_eq!(lessor.expired(at(102_999), 10), []);
    assert_eq!(lessor.expired(at(103_000), 10), ids(&[1]));
}

#[test]
fn what_has_run_out_is_not_renewed_and_comes_again_until_revoked() {
    let mut lessor = lessor(&[(1, 2), (2, 5)]);
    lessor.promote(at(0), at(0));
    assert_eq!(lessor.renew(LeaseId(1), at(1_999)).map(|renewed| renewed.ttl), Ok(2));
    assert_eq!(lessor.renew(LeaseId(1), at(3_999)), Err(RenewError::Expired(LeaseId(1))), "before anybody asked");
    assert_eq!(lessor.expired(at(4_000), 10), ids(&[1]));
    assert_eq!(lessor.expired(at(4_500), 10), []);
    assert_eq!(lessor.remaining(LeaseId(1), at(4_500)), Some(at(0)));
    assert_eq!(lessor.leases().by_remaining(), ids(&[1, 2]));
    assert_eq!(lessor.expired(at(7_000), 10), ids(&[2, 1]));
    lessor.revoked(LeaseId(1));
    assert_eq!(lessor.renew(LeaseId(1), at(7_000)), Err(RenewError::NotFound(LeaseId(1))));
    lessor.demote();
    lessor.promote(at(8_000), at(500));
    assert_eq!(lessor.remaining(LeaseId(2), at(8_000)), Some(at(5_500)), "its revocation never came");
}

#[test]
fn a_checkpoint_shortens_the_life_under_the_next_leader_only() {
    let mut lessor = lessor(&[(1, 1_000)]);
    lessor.promote(at(0), at(0));
    assert_eq!(lessor.due_checkpoints(at(299_000), 10), []);
    let due = lessor.due_checkpoints(at(400_500), 10);
    assert_eq!(due, [DueCheckpoint { lease: LeaseId(1), remaining_ttl: 600 }]);
    lessor.checkpointed(LeaseId(1), 600);
    assert_eq!(lessor.due_checkpoints(at(401_000), 10), []);
    assert_eq!(lessor.remaining(LeaseId(1), at(500_000)), Some(at(500_000)));
    lessor.promote(at(500_000), at(0));
    assert_eq!(lessor.remaining(LeaseId(1), at(500_000)), Some(at(600_000)));
    assert_eq!(lessor.renew(LeaseId(1), at(600_000)), Ok(Renewed { ttl: 1_000, clear_checkpoint: true }));
    lessor.checkpointed(LeaseId(1), 0);
    assert_eq!(lessor.renew(LeaseId(1), at(600_000)), Ok(Renewed { ttl: 1_000, clear_checkpoint: false }));
    lessor.demote();
    lessor.checkpointed(LeaseId(1), 50);
    lessor.promote(at(700_000), at(0));
    assert_eq!(lessor.expired(at(750_000), 10), ids(&[1]));
}

#[test]
fn a_renewal_undoes_a_checkpoint_that_is_still_on_its_way() {
    let mut lessor = lessor(&[(1, 1_000)]);
    lessor.promote(at(0), at(0));
    assert_eq!(lessor.due_checkpoints(at(400_000), 10).len(), 1);
    assert_eq!(lessor.renew(LeaseId(1), at(401_000)), Ok(Renewed { ttl: 1_000, clear_checkpoint: true }));
    assert_eq!(lessor.due_checkpoints(at(800_000), 10), [], "the clearing may still be in front of it");
    lessor.checkpointed(LeaseId(1), 600);
    assert_eq!(lessor.due_checkpoints(at(801_000), 10), [], "the clearing comes next");
    lessor.checkpointed(LeaseId(1), 0);
    assert_eq!(lessor.renew(LeaseId(1), at(801_000)), Ok(Renewed { ttl: 1_000, clear_checkpoint: false }));
    let due = lessor.due_checkpoints(at(1_201_000), 10);
    assert_eq!(due, [DueCheckpoint { lease: LeaseId(1), remaining_ttl: 600 }]);
    lessor.demote();
    lessor.promote(at(1_201_000), at(0));
    assert_eq!(lessor.renew(LeaseId(1), at(1_201_000)), Ok(Renewed { ttl: 1_000, clear_checkpoint: false }));
}

#[test]
fn five_leaders_do_not_lengthen_a_life() {
    // What one leader notes, the next one counts from; the extension of each promotion does not add up.
    let mut members: Vec<Lessor> = (0..5).map(|_| lessor(&[(1, 2_000)])).collect();
    let (mut now, mut noted) = (0, 2_000);
    for leader in 0..5 {
        members[leader].promote(at(now), at(1_000));
        let early = members[leader].due_checkpoints(at(now + 500), 10);
        for due in &early {
            assert!(due.remaining_ttl <= noted, "{due:?} under leader {leader}");
        }
        let due = members[leader].due_checkpoints(at(now + 301_000), 10);
        assert_eq!(due.len(), 1, "leader {leader} with {noted} s");
        assert_eq!(due[0].remaining_ttl, noted - 300);
        noted = due[0].remaining_ttl;
        members.iter_mut().for_each(|member| member.checkpointed(LeaseId(1), noted));
        now += 310_000;
        members[leader].demote();
    }
    members[0].promote(at(now), at(1_000));
    assert_eq!(members[0].remaining(LeaseId(1), at(now)), Some(at(501_000)));
}

/// Runs a lease that nobody renews under one leader until `killed_ms`, and under the next from then on. Gives its end,
/// and how often it was recorded.
fn life(ttl: i64, killed_ms: u64, extend_ms: u64) -> (u64, usize) {
    let mut members = [lessor(&[(1, ttl)]), lessor(&[(1, ttl)])];
    members[0].promote(at(0), at(0));
    let mut recorded = 0;
    for now in (0..killed_ms).step_by(500) {
        for due in members[0].due_checkpoints(at(now), 10) {
            recorded += 1;
            members.iter_mut().for_each(|member| member.checkpointed(due.lease, due.remaining_ttl));
        }
    }
    members[1].promote(at(killed_ms), at(extend_ms));
    let left = members[1].remaining(LeaseId(1), at(killed_ms)).expect("it leads").as_millis() as u64;
    (killed_ms + left, recorded)
}

// Leases up to the checkpoint interval of five minutes were never recorded: one of 30 s whose leader was killed after
// 16 s lived for 48 s.
#[test]
fn a_change_of_leaders_lengthens_a_life_by_half_of_it_at_most() {
    const EXTEND: u64 = 1_000;
    for ttl in [1, 2, 3, 5, 10, 15, 30, 60, 300, 600, 3_600] {
        let whole = 1000 * ttl as u64;
        // Until the next look, and rounded up to seconds.
        let longest = (whole / 2).clamp(CHECKPOINT_LEAST_MS, 300_000) + 500 + EXTEND;
        let later = (whole / 6).clamp(CHECKPOINT_LEAST_MS, 300_000) + 500 + 1_000 + EXTEND;
        for killed in (0..whole).step_by(100 * ttl as usize) {
            let (end, _) = life(ttl, killed, EXTEND);
            let longer = end.checked_sub(whole).unwrap_or_else(|| panic!("{ttl} s, killed at {killed}: ends early"));
            assert!(longer <= longest, "{ttl} s, killed at {killed}: {longer} ms longer");
            if ttl >= 5 && killed > whole / 2 + 500 {
                assert!(longer <= later, "{ttl} s, killed at {killed}: {longer} ms longer");
            }
        }
        let recorded = life(ttl, whole, EXTEND).1;
        assert!(recorded <= 4.max(whole as usize / 300_000), "{ttl} s: recorded {recorded} times");
    }
    assert!(life(30, 16_000, EXTEND).0 <= 33_000);
}

#[test]
fn a_lease_that_is_renewed_in_time_is_never_recorded() {
    for ttl in [2u64, 5, 9, 15, 30, 60, 600] {
        let mut lessor = lessor(&[(1, ttl as i64)]);
        lessor.promote(at(0), at(1_000));
        // Clients renew after a third of the time, late by half a second.
        let mut renewal = 1000 * ttl / 3 + 500;
        for now in (0..20_000 * ttl).step_by(100) {
            if now % 500 == 0 {
                assert_eq!(lessor.due_checkpoints(at(now), 10), [], "{ttl} s");
            }
            if now >= renewal {
                let renewed = Renewed { ttl: ttl as i64, clear_checkpoint: false };
                assert_eq!(lessor.renew(LeaseId(1), at(now)), Ok(renewed));
                renewal = now + 1000 * ttl / 3 + 500;
            }
        }
    }
}

#[test]
fn a_checkpoint_that_went_nowhere_is_proposed_again() {
    let mut lessor = lessor(&[(1, 30)]);
    lessor.promote(at(0), at(0));
    let due = [DueCheckpoint { lease: LeaseId(1), remaining_ttl: 15 }];
    assert_eq!(lessor.due_checkpoints(at(15_000), 10), due);
    assert_eq!(lessor.due_checkpoints(at(17_000), 10), [], "it is on its way");
    let again = [DueCheckpoint { lease: LeaseId(1), remaining_ttl: 12 }];
    assert_eq!(lessor.due_checkpoints(at(18_000), 10), again);
}

#[test]
fn the_longest_lease_does_not_overflow() {
    let mut lessor = lessor(&[(1, super::super::TTL_MAX_SECONDS), (2, i64::MAX), (3, i64::MIN)]);
    lessor.promote(Duration::MAX, Duration::MAX);
    assert_eq!(lessor.expired(Duration::MAX, 10), ids(&[3]));
    assert!(lessor.renew(LeaseId(2), Duration::MAX).is_ok());
}

#[test]
fn a_hundred_thousand_leases_expire_in_portions() {
    let mut lessor = Lessor::new(LessorConfig::default(), (1..=100_000).map(|id| lease(id, 10)));
    lessor.promote(at(0), at(0));
    let mut seen = 0;
    for round in 0..200 {
        let portion = lessor.expired(at(10_000 + round), 500);
        assert_eq!(portion.len(), 500);
        for id in portion {
            seen += 1;
            lessor.revoked(id);
        }
    }
    assert!(seen == 100_000 && lessor.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Grant(i64, i64),
    Revoke(i64),
    Renew(i64),
    Checkpoint(i64, i64),
    Expire(usize),
    Promote(u64),
    Demote,
}

fn step() -> impl Strategy<Value = Step> {
    let id = || 1i64..20;
    let ttl = || prop_oneof![1i64..10, 1i64..5_000, Just(9_000_000_000)];
    prop_oneof![
        4 => prop_oneof![0u64..300, 0u64..9_000, 0u64..9_000_000].prop_map(Step::Wait),
        4 => (id(), ttl()).prop_map(|(id, ttl)| Step::Grant(id, ttl)),
        1 => id().prop_map(Step::Revoke),
        4 => id().prop_map(Step::Renew),
        1 => (id(), 0i64..100).prop_map(|(id, left)| Step::Checkpoint(id, left)),
        4 => (0usize..5).prop_map(Step::Expire),
        1 => (0u64..3_000).prop_map(Step::Promote),
        1 => Just(Step::Demote),
    ]
}

/// The model: the same rules with plain absolute deadlines.
struct Told {
    ttl: i64,
    left: i64,
    /// Noted and not yet applied.
    under_way: bool,
    deadline: u64,
    /// When it may be handed out, in ticks since the promotion.
    turn: u64,
    expired: bool,
}

impl Told {
    fn fresh(&self) -> u64 {
        1000 * (if self.left > 0 { self.left } else { self.ttl }) as u64
    }

    fn set(&mut self, deadline: u64, base: u64) {
        (self.deadline, self.expired) = (deadline.max(base), false);
        self.turn = (self.deadline - base).div_ceil(TICK_MS);
    }
}

proptest! {
    #[test]
    fn behaves_like_a_list_of_deadlines(steps in prop::collection::vec(step(), 1..200)) {
        let mut lessor = lessor(&[]);
        let mut told: BTreeMap<i64, Told> = BTreeMap::new();
        let (mut now, mut base) = (5_000u64, None::<u64>);
        for step in steps {
            match step {
                Step::Wait(ms) => now += ms,
                Step::Grant(id, ttl) => {
                    lessor.granted(lease(id, ttl), at(now));
                    let mut one = Told { ttl, left: 0, under_way: false, deadline: 0, turn: 0, expired: false };
                    if let Some(base) = base {
                        one.set(now + one.fresh(), base);
                    }
                    told.insert(id, one);
                }
                Step::Revoke(id) => {
                    lessor.revoked(LeaseId(id));
                    told.remove(&id);
                }
                Step::Checkpoint(id, left) => {
                    lessor.checkpointed(LeaseId(id), left);
                    if let Some(one) = told.get_mut(&id) {
                        // One that was cleared stays marked until the clearing comes.
                        one.under_way &= left > 0;
                        one.left = left;
                    }
                }
                Step::Renew(id) => {
                    let answer = lessor.renew(LeaseId(id), at(now));
                    match (base, told.get_mut(&id)) {
                        (None, _) => prop_assert_eq!(answer, Err(RenewError::NotPrimary)),
                        (_, None) => prop_assert_eq!(answer, Err(RenewError::NotFound(LeaseId(id)))),
                        (_, Some(one)) if one.expired || one.deadline <= now => {
                            prop_assert_eq!(answer, Err(RenewError::Expired(LeaseId(id))));
                        }
                        (Some(base), Some(one)) => {
                            one.under_way |= one.left > 0;
                            prop_assert_eq!(answer, Ok(Renewed { ttl: one.ttl, clear_checkpoint: one.under_way }));
                            one.set(now + 1000 * one.ttl as u64, base);
                        }
                    }
                }
                Step::Expire(max) => {
                    let expired = lessor.expired(at(now), max);
                    let Some(base) = base.filter(|&base| base <= now) else {
                        prop_assert!(expired.is_empty());
                        continue;
                    };
                    let tick = (now - base) / TICK_MS;
                    let ready = told.values().filter(|one| one.turn <= tick).count();
                    prop_assert_eq!(expired.len(), ready.min(max));
                    for id in expired {
                        let one = told.get_mut(&id.0).expect("exists");
                        prop_assert!(one.turn <= tick);
                        one.expired = true;
                        one.turn = (now - base + RETRY_MS).div_ceil(TICK_MS);
                    }
                }
                Step::Promote(extend) => {
                    lessor.promote(at(now), at(extend));
                    base = Some(now + extend);
                    told.values_mut().for_each(|one| {
                        one.under_way = false;
                        one.set(now + extend + one.fresh(), now + extend);
                    });
                }
                Step::Demote => {
                    lessor.demote();
                    base = None;
                }
            }
            prop_assert_eq!(lessor.len(), told.len());
            for (&id, one) in told.iter().filter(|_| base.is_some()) {
                let left = if one.expired { 0 } else { one.deadline.saturating_sub(now) };
                prop_assert_eq!(lessor.remaining(LeaseId(id), at(now)), Some(at(left)));
            }
            if let Some(base) = base {
                // What runs out with the extension of a promotion is as near as what was handed out.
                let left = |one: &Told| if one.expired { 0 } else { one.deadline - base };
                let order: Vec<_> = lessor.leases().by_remaining().iter().map(|id| left(&told[&id.0])).collect();
                prop_assert!(order.is_sorted(), "{:?}", order);
            }
        }
    }
}
