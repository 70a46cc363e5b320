use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;

use crate::core::backend::{Change, Table};
use crate::pb::etcdserverpb::{AlarmMember, AlarmType};
use crate::types::MemberId;

/// Raised alarms.
#[derive(Clone, Debug, Default)]
pub struct AlarmStore {
    raised: BTreeSet<(i32, MemberId)>,
}

impl AlarmStore {
    /// Reads back stored rows; rows with alarm types of later versions are ignored.
    pub fn open(rows: &[(Bytes, Bytes)]) -> Self {
        let raised = rows
            .iter()
            .filter_map(|(row, _)| AlarmMember::decode(row.as_ref()).ok())
            .filter(|alarm| AlarmType::try_from(alarm.alarm).is_ok())
            .map(|alarm| (alarm.alarm, MemberId(alarm.member_id)))
            .collect();
        Self { raised }
    }

    /// Raises an alarm; the row to store when it was not raised before.
    pub fn activate(&mut self, kind: AlarmType, member: MemberId) -> Option<Change> {
        let new = self.raised.insert((kind as i32, member));
        new.then(|| Self::row(kind, member, Some(Bytes::new())))
    }

    /// Disarms exactly this alarm; the row to remove when it was raised.
    pub fn deactivate(&mut self, kind: AlarmType, member: MemberId) -> Option<Change> {
        let found = self.raised.remove(&(kind as i32, member));
        found.then(|| Self::row(kind, member, None))
    }

    /// Raised alarms of one kind, or with `None` of all kinds.
    pub fn list(&self, kind: AlarmType) -> Vec<AlarmMember> {
        self.raised
            .iter()
            .filter(|(raised, _)| kind == AlarmType::None || *raised == kind as i32)
            .map(|&(alarm, member)| AlarmMember { member_id: member.0, alarm })
            .collect()
    }

    /// Whether any member has this alarm.
    pub fn is_raised(&self, kind: AlarmType) -> bool {
        self.raised.iter().any(|(raised, _)| *raised == kind as i32)
    }

    /// Whether this alarm is raised for this member.
    pub fn names(&self, kind: AlarmType, member: MemberId) -> bool {
        self.raised.contains(&(kind as i32, member))
    }

    fn row(kind: AlarmType, member: MemberId, value: Option<Bytes>) -> Change {
        let key = AlarmMember { member_id: member.0, alarm: kind as i32 }.encode_to_vec().into();
        Change { table: Table::Alarm, key, value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_per_member_and_read_back() {
        let mut store = AlarmStore::default();
        let row = store.activate(AlarmType::Nospace, MemberId(1)).expect("new");
        assert!(store.activate(AlarmType::Nospace, MemberId(1)).is_none(), "raising twice changes nothing");
        assert!(store.deactivate(AlarmType::Nospace, MemberId(2)).is_none(), "no wildcard");
        let mut read = AlarmStore::open(&[(row.key, Bytes::new())]);
        assert!(read.is_raised(AlarmType::Nospace));
        assert_eq!(read.list(AlarmType::None), store.list(AlarmType::Nospace));
        assert!(read.deactivate(AlarmType::Nospace, MemberId(1)).is_some());
        assert!(!read.is_raised(AlarmType::Nospace));
    }
}
