//! The conditions of a transaction.

use std::cmp::Ordering;

use super::record::{Fields, Record};
use super::view::{Found, View};
use crate::pb::etcdserverpb::Compare;
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::types::{KeyRange, Revision};

/// Whether every key of the compare's range satisfies it.
pub(super) fn holds(view: View<'_>, compare: &Compare) -> bool {
    let covered = KeyRange::from_wire(compare.key.clone(), compare.range_end.clone());
    let mut empty = true;
    for found in view.walk(&covered, Revision(i64::MAX)) {
        empty = false;
        // The newest state is walked, so every version found is a live one.
        if let Found::Live(record) = found
            && !record_holds(record, compare)
        {
            return false;
        }
    }
    if !empty {
        return true;
    }
    // No key compares like one with all numbers zero, but it has no value, not even an empty one.
    compare.target != CompareTarget::Value as i32 && holds_for(compare, number_order(&Fields::default(), compare))
}

fn record_holds(record: &Record, compare: &Compare) -> bool {
    let order = if compare.target == CompareTarget::Value as i32 {
        let given: &[u8] = match &compare.target_union {
            Some(TargetUnion::Value(value)) => value,
            _ => &[],
        };
        record.value().cmp(given)
    } else {
        number_order(&record.fields(), compare)
    };
    holds_for(compare, order)
}

/// An operand of another target counts as zero; an unknown target finds everything equal.
fn number_order(fields: &Fields, compare: &Compare) -> Ordering {
    let given = compare.target_union.as_ref();
    let (have, given) = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => (fields.version, given.and_then(version)),
        Ok(CompareTarget::Create) => (fields.create, given.and_then(create_revision)),
        Ok(CompareTarget::Mod) => (fields.modified, given.and_then(mod_revision)),
        Ok(CompareTarget::Lease) => (fields.lease, given.and_then(lease)),
        Ok(CompareTarget::Value) | Err(_) => return Ordering::Equal,
    };
    have.cmp(&given.unwrap_or(0))
}

fn version(given: &TargetUnion) -> Option<i64> {
    if let TargetUnion::Version(number) = given { Some(*number) } else { None }
}

fn create_revision(given: &TargetUnion) -> Option<i64> {
    if let TargetUnion::CreateRevision(number) = given { Some(*number) } else { None }
}

fn mod_revision(given: &TargetUnion) -> Option<i64> {
    if let TargetUnion::ModRevision(number) = given { Some(*number) } else { None }
}

fn lease(given: &TargetUnion) -> Option<i64> {
    if let TargetUnion::Lease(number) = given { Some(*number) } else { None }
}

fn holds_for(compare: &Compare, order: Ordering) -> bool {
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => order.is_eq(),
        Ok(CompareResult::NotEqual) => order.is_ne(),
        Ok(CompareResult::Greater) => order.is_gt(),
        Ok(CompareResult::Less) => order.is_lt(),
        Err(_) => true,
    }
}
