use std::collections::HashMap;
use std::time::Duration;

use super::wheel::{Handle, Wheel};
use super::{Lease, RenewError};
use crate::types::LeaseId;

/// A lease is recorded first when this part of its time has passed without a renewal: clients renew after a third, and a
/// renewal has to clear the record through the log.
const FIRST_CHECKPOINT_PART: u64 = 2;
/// Then whenever this further part has passed.
const NEXT_CHECKPOINT_PART: u64 = 6;
/// But not before so much has passed.
const CHECKPOINT_LEAST_MS: u64 = 2_000;

/// Periods of the lessor.
#[derive(Clone, Copy, Debug)]
pub struct LessorConfig {
    /// After this time an expired lease that is still there is handed out again, as its revocation was lost, and a
    /// checkpoint that was not applied is proposed again.
    pub retry_interval: Duration,
    /// The most time of a lease that passes without being recorded, however long the lease is.
    pub checkpoint_interval: Duration,
}

impl Default for LessorConfig {
    fn default() -> Self {
        Self { retry_interval: Duration::from_secs(3), checkpoint_interval: Duration::from_secs(300) }
    }
}

/// A lease that was renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// Seconds granted.
    pub ttl: i64,
    /// A checkpoint is in the log or proposed: it has to be set to 0 in the log before the client gets its answer, or the
    /// next leader would let the lease expire early.
    pub clear_checkpoint: bool,
}

/// What is left of a lease, to be recorded through the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueCheckpoint {
    /// The lease.
    pub lease: LeaseId,
    /// Seconds left, rounded up.
    pub remaining_ttl: i64,
}

/// Deadlines of leases, for the leader.
///
/// Members that do not lead keep it up to date without knowing deadlines: there the wheel counts from the moment of a
/// promotion, whenever that will be, so that promoting is setting one number. Times are spans since any fixed
/// moment of the process's monotonic clock; they must not decrease.
///
/// A lease costs about 90 bytes here; there is no task and no timer per lease.
pub struct Lessor {
    config: LessorConfig,
    wheel: Wheel<Slot>,
    handles: HashMap<LeaseId, Handle>,
    /// Zero of the wheel, in milliseconds; none when not promoted.
    base_ms: Option<u64>,
    /// Where the last look for checkpoints ended.
    checkpoint_cursor: Handle,
    next_order: u64,
}

struct Slot {
    id: LeaseId,
    granted_ttl: i64,
    /// As in [`Lease::remaining_ttl`].
    remaining_ttl: i64,
    /// Handed out by `expired`; the wheel then says when to hand it out again.
    expired: bool,
    /// When the last checkpoint was proposed, in seconds of the caller's clock.
    checkpointed_at: u32,
    proposed: Proposed,
    /// Grows with each grant and renewal: many fall into one millisecond.
    order: u64,
}

/// What this leader has proposed about the remaining time of a lease, and is not applied yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proposed {
    Nothing,
    /// A checkpoint, which may be applied at any moment.
    Checkpoint,
    /// To clear the checkpoint. No new one is taken until that is applied, so that it cannot undo a later one.
    Clear,
}

impl Slot {
    /// The time that a new leader starts from: that of the last checkpoint, else all of it.
    fn fresh_ms(&self) -> u64 {
        milliseconds(if self.remaining_ttl > 0 { self.remaining_ttl } else { self.granted_ttl })
    }
}

impl Lessor {
    /// A lessor that is not promoted, over the leases that exist.
    pub fn new(config: LessorConfig, leases: impl IntoIterator<Item = Lease>) -> Self {
        let mut lessor = Self {
            config,
            wheel: Wheel::default(),
            handles: HashMap::new(),
            base_ms: None,
            checkpoint_cursor: 0,
            next_order: 0,
        };
        for lease in leases {
            lessor.granted(lease, Duration::ZERO);
        }
        lessor
    }

    /// A grant was applied.
    pub fn granted(&mut self, lease: Lease, now: Duration) {
        self.revoked(lease.id);
        let slot = Slot {
            id: lease.id,
            granted_ttl: lease.granted_ttl,
            remaining_ttl: lease.remaining_ttl,
            expired: false,
            checkpointed_at: 0,
            proposed: Proposed::Nothing,
            order: self.take_order(),
        };
        let fresh = slot.fresh_ms();
        let due = if self.is_primary() { self.after(now, fresh) } else { fresh };
        let handle = self.wheel.insert(slot, due);
        self.handles.insert(lease.id, handle);
    }

    fn take_order(&mut self) -> u64 {
        self.next_order += 1;
        self.next_order
    }

    /// A revocation was applied.
    pub fn revoked(&mut self, id: LeaseId) {
        if let Some(handle) = self.handles.remove(&id) {
            self.wheel.remove(handle);
        }
    }

    /// A checkpoint was applied. The leader goes on with its own deadline.
    pub fn checkpointed(&mut self, id: LeaseId, remaining_ttl: i64) {
        let Some(&handle) = self.handles.get(&id) else { return };
        let slot = self.wheel.get_mut(handle);
        slot.remaining_ttl = remaining_ttl;
        slot.proposed = match slot.proposed {
            // The log keeps the order of what this leader proposed: the clearing is still to come.
            Proposed::Clear if remaining_ttl > 0 => Proposed::Clear,
            _ => Proposed::Nothing,
        };
        let due = slot.fresh_ms();
        if !self.is_primary() {
            self.wheel.reschedule(handle, due);
        }
    }

    /// This member leads now: every lease gets its remaining time, and `extend` in addition for the time without a leader.
    pub fn promote(&mut self, now: Duration, extend: Duration) {
        self.demote();
        self.base_ms = Some(count_ms(now.saturating_add(extend)));
    }

    /// This member does not lead any more; deadlines are dropped.
    pub fn demote(&mut self) {
        if self.base_ms.take().is_some() {
            self.wheel.restart(|slot| {
                slot.expired = false;
                slot.proposed = Proposed::Nothing;
                slot.fresh_ms()
            });
        }
    }

    /// Whether this member was promoted.
    pub fn is_primary(&self) -> bool {
        self.base_ms.is_some()
    }

    /// Gives a lease its full time from `now`.
    ///
    /// When the answer says so, the caller proposes to clear the checkpoint, after every checkpoint that
    /// [`due_checkpoints`](Self::due_checkpoints) has returned so far.
    ///
    /// # Errors
    /// Not the leader; no such lease; or it has run out, which no renewal undoes.
    pub fn renew(&mut self, id: LeaseId, now: Duration) -> Result<Renewed, RenewError> {
        if !self.is_primary() {
            return Err(RenewError::NotPrimary);
        }
        let Some(&handle) = self.handles.get(&id) else {
            return Err(RenewError::NotFound(id));
        };
        if self.left_ms(handle, now) == 0 {
            return Err(RenewError::Expired(id));
        }
        let order = self.take_order();
        let slot = self.wheel.get_mut(handle);
        slot.order = order;
        let clear_checkpoint = slot.remaining_ttl > 0 || slot.proposed != Proposed::Nothing;
        if clear_checkpoint {
            slot.proposed = Proposed::Clear;
        }
        let renewed = Renewed { ttl: slot.granted_ttl, clear_checkpoint };
        let due = self.after(now, milliseconds(renewed.ttl));
        self.wheel.reschedule(handle, due);
        Ok(renewed)
    }

    /// What is left of a lease, zero once it has run out; none if it does not exist or this member does not lead.
    pub fn remaining(&self, id: LeaseId, now: Duration) -> Option<Duration> {
        self.base_ms?;
        let &handle = self.handles.get(&id)?;
        Some(Duration::from_millis(self.left_ms(handle, now)))
    }

    /// Up to `max` leases that have run out and are to be revoked. Each comes once, and again after the retry interval
    /// if it is still there. None unless this member leads.
    pub fn expired(&mut self, now: Duration, max: usize) -> Vec<LeaseId> {
        let mut expired = Vec::new();
        if !self.is_primary() {
            return expired;
        }
        let wheel_now = self.wheel_now(now);
        // At least one tick, or this would hand out the same lease for ever.
        let retry = count_ms(self.config.retry_interval).max(super::wheel::TICK_MS);
        while expired.len() < max
            && self.has_begun(now)
            && let Some(handle) = self.wheel.due(wheel_now)
        {
            let slot = self.wheel.get_mut(handle);
            slot.expired = true;
            expired.push(slot.id);
            self.wheel.reschedule(handle, wheel_now + retry);
        }
        expired
    }

    /// Up to `max` leases whose rest is to be recorded, since the next leader knows only that: those of which half has
    /// passed without a renewal, and again with each further sixth. So a change of leaders lengthens a life by half of the
    /// granted time at most, never by more than the checkpoint interval, and what is renewed in time costs nothing. Looks at
    /// a part of the leases per call; called about twice a second by the leader, which proposes what it gets before it
    /// proposes to clear any.
    pub fn due_checkpoints(&mut self, now: Duration, max: usize) -> Vec<DueCheckpoint> {
        const LOOKS: u32 = 50_000;
        let mut due = Vec::new();
        let end = self.wheel.handles_end();
        if !self.is_primary() || end == 0 {
            return due;
        }
        let interval = count_ms(self.config.checkpoint_interval);
        let retry = seconds(self.config.retry_interval);
        for _ in 0..LOOKS.min(end) {
            if due.len() == max {
                break;
            }
            let handle = self.checkpoint_cursor % end;
            self.checkpoint_cursor = (handle + 1) % end;
            let Some((slot, _)) = self.wheel.find(handle) else { continue };
            let part = if slot.remaining_ttl > 0 { NEXT_CHECKPOINT_PART } else { FIRST_CHECKPOINT_PART };
            let unrecorded_max = (milliseconds(slot.granted_ttl) / part).max(CHECKPOINT_LEAST_MS).min(interval);
            let known = slot.fresh_ms();
            let is_settled = match slot.proposed {
                Proposed::Nothing => true,
                Proposed::Checkpoint => seconds(now).saturating_sub(slot.checkpointed_at) >= retry,
                Proposed::Clear => false,
            };
            let left = self.left_ms(handle, now);
            // Counted from what is known, or each change of leaders would add its extension to the life of the lease.
            if left == 0 || !is_settled || known.saturating_sub(left) < unrecorded_max {
                continue;
            }
            let slot = self.wheel.get_mut(handle);
            slot.checkpointed_at = seconds(now);
            slot.proposed = Proposed::Checkpoint;
            due.push(DueCheckpoint { lease: slot.id, remaining_ttl: left.div_ceil(1000) as i64 });
        }
        due
    }

    /// All leases, the one with the least time left first; by their whole time if this member does not lead. With the same
    /// time left, the one granted or renewed earlier is first.
    pub fn by_remaining(&self) -> Vec<LeaseId> {
        // An expired lease waits in the wheel for its next turn, but it has nothing left.
        let left = |slot: &Slot, due: u64| if slot.expired { 0 } else { due };
        let mut all: Vec<_> = self.wheel.iter().map(|(_, slot, due)| (left(slot, due), slot.order, slot.id)).collect();
        all.sort_unstable();
        all.into_iter().map(|(.., id)| id).collect()
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.wheel.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Time on the wheel; 0 until the extension of a promotion is over.
    fn wheel_now(&self, now: Duration) -> u64 {
        self.base_ms.map_or(0, |base| count_ms(now).saturating_sub(base))
    }

    fn has_begun(&self, now: Duration) -> bool {
        self.base_ms.is_some_and(|base| count_ms(now) >= base)
    }

    /// Wheel time `ttl_ms` after `now`, which may lie before the wheel's zero.
    fn after(&self, now: Duration, ttl_ms: u64) -> u64 {
        (count_ms(now) + ttl_ms).saturating_sub(self.base_ms.unwrap_or(0))
    }

    fn left_ms(&self, handle: Handle, now: Duration) -> u64 {
        let (slot, due) = self.wheel.get(handle);
        if slot.expired { 0 } else { (due + self.base_ms.unwrap_or(0)).saturating_sub(count_ms(now)) }
    }
}

/// A part of the range, so that sums of a few stay within it.
const COUNT_MAX_MS: u64 = u64::MAX / 8;

fn milliseconds(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0).saturating_mul(1000).min(COUNT_MAX_MS)
}

fn count_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min(COUNT_MAX_MS)
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
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
        assert_eq!(lessor.by_remaining(), ids(&[7, 5, 9]));
        lessor.promote(at(0), at(0));
        lessor.revoked(LeaseId(5));
        for id in [8, 3] {
            lessor.granted(lease(id, 60), at(0));
        }
        assert_eq!(lessor.by_remaining(), ids(&[7, 9, 8, 3]));
        lessor.renew(LeaseId(9), at(0)).expect("alive");
        assert_eq!(lessor.by_remaining(), ids(&[7, 8, 3, 9]));
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
        assert_eq!(lessor.by_remaining(), ids(&[1, 2]));
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
                let longer =
                    end.checked_sub(whole).unwrap_or_else(|| panic!("{ttl} s, killed at {killed}: ends early"));
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
                    let order: Vec<_> = lessor.by_remaining().iter().map(|id| left(&told[&id.0])).collect();
                    prop_assert!(order.is_sorted(), "{:?}", order);
                }
            }
        }
    }
}
