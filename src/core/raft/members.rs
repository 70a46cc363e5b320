use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType, Entry, EntryType};

use crate::core::wal::{WalEntry, WalEntryKind};
use crate::pb::walpb;
use crate::types::{LogIndex, MemberId, Term};

/// What a membership change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// Adds a voter, or makes a learner one.
    AddVoter,
    /// Adds a member that follows without a vote.
    AddLearner,
    /// Removes a member for ever.
    Remove,
    /// Changes where a member is reached; who votes stays the same.
    Update,
}

/// A membership change to put into the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProposedChange {
    /// Under which number its outcome is waited for.
    pub request: u64,
    /// What it does.
    pub kind: ChangeKind,
    /// To whom.
    pub member: MemberId,
    /// The member as JSON; apply reads it.
    pub context: Bytes,
}

/// Apply's word on a committed membership change: it takes effect, or it is passed over.
///
/// It is the same on every member, since apply decides from state and entry alone. Raft follows it, so that voters and
/// the stored members never disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MembersDecision {
    /// Where the change stands in the log.
    pub index: LogIndex,
    /// Whether it takes effect.
    pub accepted: bool,
}

impl ProposedChange {
    /// As an entry to propose.
    pub(super) fn to_entry(&self) -> Entry {
        let mut entry = Entry::default();
        entry.set_entry_type(EntryType::EntryConfChange);
        entry.data = encode(self.request, self.kind, self.member, self.context.clone());
        entry
    }

    /// Reads an entry of the log; none when it changes no members.
    pub fn read(entry: &WalEntry) -> Option<Self> {
        (entry.kind == WalEntryKind::ConfChange).then(|| Self::from_entry(&entry.data)).flatten()
    }

    /// Reads the data of such an entry.
    pub(super) fn from_entry(data: &[u8]) -> Option<Self> {
        let change = walpb::ConfChange::decode(data).ok()?;
        let kind = match walpb::ConfChangeType::try_from(change.r#type.unwrap_or(0)).ok()? {
            walpb::ConfChangeType::ConfChangeAddNode => ChangeKind::AddVoter,
            walpb::ConfChangeType::ConfChangeRemoveNode => ChangeKind::Remove,
            walpb::ConfChangeType::ConfChangeUpdateNode => ChangeKind::Update,
            walpb::ConfChangeType::ConfChangeAddLearnerNode => ChangeKind::AddLearner,
        };
        // No member has id 0. Earlier versions put it into the log when a client asked to remove or update it: apply refuses
        // such a change, on every member.
        let member = MemberId(change.node_id.unwrap_or(0));
        let context = change.context.unwrap_or_default();
        Some(Self { request: change.id.unwrap_or(0), kind, member, context })
    }

    /// For the library, which numbers the kinds in its own way; none when voters and learners stay as they are.
    pub(super) fn to_library(&self) -> Option<ConfChange> {
        let mut change = ConfChange::default();
        change.set_change_type(match self.kind {
            ChangeKind::AddVoter => ConfChangeType::AddNode,
            ChangeKind::AddLearner => ConfChangeType::AddLearnerNode,
            ChangeKind::Remove => ConfChangeType::RemoveNode,
            ChangeKind::Update => return None,
        });
        change.node_id = self.member.0;
        Some(change)
    }
}

/// The entries a new cluster's log begins with: one "add this voter" for each first member, in term 1.
pub fn bootstrap_entries(members: &[(MemberId, Vec<u8>)]) -> Vec<WalEntry> {
    let entry = |(index, (member, context)): (u64, &(MemberId, Vec<u8>))| WalEntry {
        kind: WalEntryKind::ConfChange,
        term: Term(1),
        index: LogIndex(index),
        data: encode(0, ChangeKind::AddVoter, *member, context.clone().into()),
    };
    (1..).zip(members).map(entry).collect()
}

/// An entry that changes the membership outside of any proposal: `--force-new-cluster` writes such.
pub fn members_entry(index: LogIndex, term: Term, kind: ChangeKind, member: MemberId, context: Bytes) -> WalEntry {
    WalEntry { kind: WalEntryKind::ConfChange, term, index, data: encode(0, kind, member, context) }
}

fn encode(request: u64, kind: ChangeKind, member: MemberId, context: Bytes) -> Bytes {
    let kind = match kind {
        ChangeKind::AddVoter => walpb::ConfChangeType::ConfChangeAddNode,
        ChangeKind::AddLearner => walpb::ConfChangeType::ConfChangeAddLearnerNode,
        ChangeKind::Remove => walpb::ConfChangeType::ConfChangeRemoveNode,
        ChangeKind::Update => walpb::ConfChangeType::ConfChangeUpdateNode,
    };
    let change = walpb::ConfChange {
        id: Some(request),
        r#type: Some(kind.into()),
        node_id: Some(member.0),
        context: Some(context),
    };
    change.encode_to_vec().into()
}
