use std::collections::BTreeMap;

use super::history::{Body, History, Nanos, Operation, Outcome, Request};
use super::linear::{Cause, Explanation};
use super::violation::{Rule, Violation};

const SECOND: Nanos = 1_000_000_000;

/// What the history says of one lease.
#[derive(Default)]
struct Lease<'a> {
    grants: Vec<&'a Operation>,
    /// Successful grants and keep-alives with the seconds they gave.
    renewals: Vec<(&'a Operation, i64)>,
    /// Revokes that may have taken effect.
    revokes: Vec<&'a Operation>,
    /// Answers that say the lease is gone.
    missing: Vec<&'a Operation>,
    /// Puts that attached a key, with their revision.
    attached: Vec<(&'a Operation, i64)>,
    /// Revisions in which its keys were deleted together.
    ends: Vec<i64>,
}

fn collect<'a>(history: &'a History, truth: &Explanation) -> BTreeMap<i64, Lease<'a>> {
    let mut leases: BTreeMap<i64, Lease<'a>> = BTreeMap::new();
    for operation in &history.operations {
        match (&operation.request, &operation.outcome) {
            (Request::Grant { .. }, Outcome::Done { body: Body::Granted { id, ttl }, .. }) => {
                let lease = leases.entry(*id).or_default();
                lease.grants.push(operation);
                lease.renewals.push((operation, *ttl));
            }
            (Request::KeepAlive { id }, Outcome::Done { body: Body::KeptAlive { ttl }, .. }) if *ttl > 0 => {
                leases.entry(*id).or_default().renewals.push((operation, *ttl));
            }
            (Request::KeepAlive { id }, Outcome::Done { .. }) => {
                leases.entry(*id).or_default().missing.push(operation);
            }
            (Request::TimeToLive { id }, Outcome::Done { body: Body::TimeToLive { ttl }, .. }) if *ttl < 0 => {
                leases.entry(*id).or_default().missing.push(operation);
            }
            (Request::Put { lease, .. }, Outcome::Done { revision, .. }) if *lease != 0 => {
                leases.entry(*lease).or_default().attached.push((operation, *revision));
            }
            (Request::Put { lease: id, .. } | Request::Revoke { id }, Outcome::Refused { reason })
                if *id != 0 && reason.contains("lease not found") =>
            {
                leases.entry(*id).or_default().missing.push(operation);
            }
            (Request::Revoke { .. }, Outcome::Refused { .. }) => {}
            (Request::Revoke { id }, _) => leases.entry(*id).or_default().revokes.push(operation),
            _ => {}
        }
    }
    for (revision, cause) in (2..).zip(&truth.causes) {
        // What nobody saw may have been the end of another lease.
        if let Cause::LeaseEnd(id) = cause
            && !truth.is_guessed(revision)
        {
            leases.entry(*id).or_default().ends.push(revision);
        }
    }
    leases
}

/// When each revision was first seen: a list of times and revisions, both ascending.
fn first_seen(history: &History) -> Vec<(Nanos, i64)> {
    let mut seen: Vec<(Nanos, i64)> = Vec::new();
    for operation in &history.operations {
        if let Outcome::Done { revision, .. } = operation.outcome {
            seen.push((operation.returned, revision));
        }
    }
    seen.extend(
        history.watches.iter().flat_map(|watch| &watch.answers).map(|answer| (answer.received, answer.revision)),
    );
    seen.sort_unstable();
    let mut newest = 0;
    seen.retain(|(_, revision)| {
        let newer = *revision > newest;
        newest = newest.max(*revision);
        newer
    });
    seen
}

/// Checks that no lease ended before its last renewal plus its time, unless somebody revoked it, and that none was
/// used after its end. Answers with the number of leases. A lease id that was granted twice is not checked.
///
/// # Errors
/// The first lease that ended early or lived on.
pub fn check_leases(history: &History, truth: &Explanation) -> Result<usize, Violation> {
    let seen = first_seen(history);
    let leases = collect(history, truth);
    for (id, lease) in &leases {
        if let [grant] = lease.grants.as_slice() {
            lease.check(*id, grant, &seen)?;
        }
    }
    Ok(leases.len())
}

impl Lease<'_> {
    fn check(&self, id: i64, grant: &Operation, seen: &[(Nanos, i64)]) -> Result<(), Violation> {
        let ends = self.ends.iter().filter_map(|end| {
            let at = seen.partition_point(|(_, revision)| revision < end);
            seen.get(at).map(|(time, _)| (*time, format!("its keys went at revision {end}")))
        });
        let missing = self.missing.iter().filter(|operation| operation.invoked >= grant.returned);
        let missing = missing.map(|operation| (operation.returned, format!("{operation:?}")));
        for (gone, how) in ends.chain(missing) {
            if self.revokes.iter().any(|revoke| revoke.invoked < gone) {
                continue;
            }
            for (renewal, ttl) in &self.renewals {
                if renewal.invoked > gone {
                    let text = format!("lease {id} was gone at {gone} ({how}) and then renewed: {renewal:?}");
                    return Err(Violation::new(Rule::AfterEnd, text));
                }
                if gone < renewal.invoked + *ttl as u64 * SECOND {
                    let text = format!("lease {id} was gone at {gone}: {how}; it had {ttl} s from {renewal:?}");
                    return Err(Violation::new(Rule::EarlyExpiry, text));
                }
            }
        }
        self.check_use_after_end(id)
    }

    fn check_use_after_end(&self, id: i64) -> Result<(), Violation> {
        let first_end = self.ends.first().copied().unwrap_or(i64::MAX);
        if let Some((put, _)) = self.attached.iter().find(|(_, revision)| *revision > first_end) {
            let text = format!("lease {id} ended at revision {first_end}, and yet {put:?}");
            return Err(Violation::new(Rule::AfterEnd, text));
        }
        let answered = self.revokes.iter().filter(|revoke| matches!(revoke.outcome, Outcome::Done { .. }));
        let Some(revoked) = answered.map(|revoke| revoke.returned).min() else { return Ok(()) };
        let renewals = self.renewals.iter().map(|(operation, _)| operation);
        let uses = renewals.chain(self.attached.iter().map(|(operation, _)| operation));
        match uses.into_iter().find(|operation| operation.invoked > revoked) {
            Some(operation) => {
                let text = format!("lease {id} was revoked at {revoked}, and yet {operation:?}");
                Err(Violation::new(Rule::AfterEnd, text))
            }
            None => Ok(()),
        }
    }
}
