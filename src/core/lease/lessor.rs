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

/// The remaining time of a lease, to be recorded through the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueCheckpoint {
    /// The lease.
    pub lease: LeaseId,
    /// Seconds left, rounded up.
    pub remaining_ttl: i64,
}

/// What [`Lessor::leases`] found, with what it is sorted by.
#[derive(Debug)]
pub struct UnsortedLeases(Vec<(u64, u64, LeaseId)>);

impl UnsortedLeases {
    /// The one with the least time left first; by their whole time if this member does not lead. With the same time
    /// left, the one granted or renewed earlier is first.
    pub fn by_remaining(mut self) -> Vec<LeaseId> {
        self.0.sort_unstable();
        self.0.into_iter().map(|(.., id)| id).collect()
    }
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
    /// Returned by `expired`; its item in the wheel is now due when it is to be returned again.
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

    /// How it behaves.
    pub fn config(&self) -> LessorConfig {
        self.config
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
    /// If the answer asks for it, the caller proposes to clear the checkpoint, after every checkpoint that
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

    /// Up to `max` leases whose remaining time is to be recorded for the next leader: those of which half has
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

    /// All leases, in no order: whoever takes them under a lock sorts them after it.
    pub fn leases(&self) -> UnsortedLeases {
        // An expired lease waits in the wheel for its next turn, but it has nothing left.
        let left = |slot: &Slot, due: u64| if slot.expired { 0 } else { due };
        UnsortedLeases(self.wheel.iter().map(|(_, slot, due)| (left(slot, due), slot.order, slot.id)).collect())
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
mod tests;
