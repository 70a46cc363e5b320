use bytes::Bytes;
use tracing::{info, warn};

use super::error::RecoverError;
use crate::core::cluster::{AddContext, ClusterStore, Member};
use crate::core::raft::{ChangeKind, ProposedChange, members_entry};
use crate::core::wal::{Recovered, Wal, WalDisk, WalEntry, WalEntryKind};
use crate::types::{LogIndex, LogPosition, MemberId, Term};

/// Rewrites the log of a member whose cluster is lost, so that it is the only member (`--force-new-cluster`).
///
/// Entries that are not committed are dropped. After the others come entries that give this member a vote, if it has none,
/// and remove all others, learners too; they count as committed. Done twice, it changes nothing more.
///
/// # Errors
/// When this member was removed from its cluster, or the disk refuses.
pub(super) fn go_alone<D: WalDisk>(
    wal: &mut Wal<D>,
    recovered: &mut Recovered,
    stored: &ClusterStore,
    position: LogPosition,
    own_urls: &[String],
) -> Result<(), RecoverError> {
    let own = recovered.metadata.member;
    let commit = recovered.hard_state.commit.max(position.index);
    let dropped = recovered.entries.iter().filter(|entry| entry.index > commit).count();
    recovered.entries.truncate(recovered.entries.len() - dropped);
    let members = members_at_commit(stored.clone(), &recovered.entries, position);
    if members.is_removed(own) {
        return Err(RecoverError::RemovedAlone { member: own });
    }
    let last_term = recovered.entries.last().map_or(position.term, |entry| entry.term);
    let term = recovered.hard_state.term.max(last_term).max(Term(1));
    let mut entries: Vec<WalEntry> = (commit.0 + 1..)
        .zip(changes(&members, own, own_urls))
        .map(|(index, (kind, member, context))| members_entry(LogIndex(index), term, kind, member, context))
        .collect();
    if entries.is_empty() && dropped > 0 {
        // Otherwise the dropped entries would be back at the next start.
        let index = LogIndex(commit.0 + 1);
        entries.push(WalEntry { kind: WalEntryKind::Normal, term, index, data: Bytes::new() });
    }
    let Some(last) = entries.last() else { return Ok(()) };
    recovered.hard_state.term = term;
    recovered.hard_state.commit = last.index;
    info!(member = %own, committed = %commit, dropped, changes = entries.len(), "going on alone (--force-new-cluster)");
    warn!("start the next time without --force-new-cluster, and never start the other members again");
    wal.append(&entries, Some(&recovered.hard_state))?;
    wal.sync()?;
    recovered.entries.extend(entries);
    Ok(())
}

/// The members once everything committed is applied: the state has those of its position, the log the changes since.
fn members_at_commit(mut members: ClusterStore, entries: &[WalEntry], position: LogPosition) -> ClusterStore {
    for entry in entries.iter().filter(|entry| entry.index > position.index) {
        if let Some(change) = ProposedChange::read(entry) {
            // A change that is refused here is refused by apply as well.
            let _ = members.decide(change.kind.into(), change.member, &change.context);
        }
    }
    members
}

/// This member first: the cluster must have a voter after each of them.
fn changes(members: &ClusterStore, own: MemberId, own_urls: &[String]) -> Vec<(ChangeKind, MemberId, Bytes)> {
    let mut changes = Vec::new();
    match members.member(own) {
        Some(member) if !member.is_learner => {}
        Some(_) => changes.push((ChangeKind::AddVoter, own, AddContext::promote(own).to_json().into())),
        None => {
            let member = Member { id: own.0, peer_urls: own_urls.to_vec(), ..Member::default() };
            changes.push((ChangeKind::AddVoter, own, AddContext::add(member, 0).to_json().into()));
        }
    }
    let others = members.members().map(Member::member_id).filter(|id| *id != own);
    changes.extend(others.map(|id| (ChangeKind::Remove, id, Bytes::new())));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::server::bootstrap::Bootstrap;
    use crate::core::server::recover::{Disks, Layout, Opened, Opening, open};
    use crate::core::wal::{FsDisk, HardState, WalMetadata};
    use crate::types::ClusterId;

    fn member(id: u64) -> Member {
        Member { id, name: format!("m{id}"), peer_urls: vec![format!("http://m{id}:2380")], ..Member::default() }
    }

    fn change(kind: ChangeKind, id: u64, context: Vec<u8>) -> (ChangeKind, MemberId, Bytes) {
        (kind, MemberId(id), context.into())
    }

    /// A data directory of member `own`: five first members, then these changes and a request in term 3, and after the
    /// commit index an entry that only this member has.
    struct Lost {
        folder: tempfile::TempDir,
        layout: Layout,
    }

    impl Lost {
        fn new(own: u64, changes: Vec<(ChangeKind, MemberId, Bytes)>) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let layout = Layout::new(folder.path(), &folder.path().join("member/wal"));
            std::fs::create_dir_all(folder.path().join("member")).expect("a folder");
            let bootstrap = Bootstrap {
                metadata: WalMetadata { member: MemberId(own), cluster: ClusterId(0xc) },
                first: (1..=5).map(member).collect(),
                running: Vec::new(),
            };
            bootstrap.create_log(&FsDisk::default(), &layout.wal).expect("a new log");
            let (mut wal, _) = Wal::open(FsDisk::default(), &layout.wal, LogPosition::default()).expect("a log");
            let mut entries: Vec<WalEntry> = (6..)
                .zip(changes)
                .map(|(index, (kind, id, context))| members_entry(LogIndex(index), Term(3), kind, id, context))
                .collect();
            let request = |index, text: &'static str| WalEntry {
                kind: WalEntryKind::Normal,
                term: Term(3),
                index: LogIndex(index),
                data: text.into(),
            };
            let commit = LogIndex(6 + entries.len() as u64);
            entries.push(request(commit.0, "kept"));
            entries.push(request(commit.0 + 1, "lost"));
            entries.push(members_entry(
                LogIndex(commit.0 + 2),
                Term(3),
                ChangeKind::Remove,
                MemberId(own),
                Bytes::new(),
            ));
            let hard_state = HardState { term: Term(4), vote: Some(MemberId(5)), commit };
            wal.append(&entries, Some(&hard_state)).expect("a disk");
            wal.sync().expect("a disk");
            Self { folder, layout }
        }

        fn open(&self, alone: bool) -> Result<Opened<FsDisk>, RecoverError> {
            let urls = ["http://alone:2380".to_owned()];
            open(&Disks::files(), &self.layout, &Opening { alone: alone.then_some(&urls), ..Opening::default() })
        }

        /// The members after everything in the log, which must be committed to its end.
        fn members(&self, alone: bool) -> String {
            let opened = self.open(alone).expect("a data directory");
            let last = opened.recovered.entries.last().expect("entries");
            assert_eq!(opened.recovered.hard_state.commit, last.index, "committed to the end");
            assert!(!opened.recovered.entries.iter().any(|entry| entry.data.as_ref() == b"lost"));
            assert!(opened.recovered.entries.iter().any(|entry| entry.data.as_ref() == b"kept"));
            let members = members_at_commit(opened.members, &opened.recovered.entries, opened.position);
            let one = |member: &Member| {
                let learner = if member.is_learner { "?" } else { "" };
                format!("{}{learner} {}", member.id, member.peer_urls.join(" "))
            };
            members.members().map(one).collect::<Vec<_>>().join(", ")
        }
    }

    fn learner(id: u64) -> (ChangeKind, MemberId, Bytes) {
        change(ChangeKind::AddLearner, id, AddContext::add(Member { is_learner: true, ..member(id) }, 1).to_json())
    }

    #[test]
    fn all_others_go_learners_too() {
        let lost = Lost::new(3, vec![learner(6), change(ChangeKind::Remove, 1, Vec::new())]);
        assert_eq!(lost.members(true), "3 http://m3:2380");
        // The flag is not needed again, and does no harm.
        for alone in [false, true, false] {
            assert_eq!(lost.members(alone), "3 http://m3:2380");
        }
        let opened = lost.open(false).expect("a data directory");
        assert_eq!(opened.recovered.entries.len(), 5 + 2 + 1 + 4, "nobody is removed twice");
        assert_eq!(opened.recovered.hard_state.term, Term(4));
    }

    #[test]
    fn a_learner_gets_its_vote() {
        let lost = Lost::new(6, vec![learner(6)]);
        assert_eq!(lost.members(true), "6 http://m6:2380");
    }

    #[test]
    fn a_member_that_nobody_added_adds_itself() {
        let lost = Lost::new(9, Vec::new());
        assert_eq!(lost.members(true), "9 http://alone:2380");
    }

    #[test]
    fn what_was_dropped_does_not_come_back() {
        let removals = [1, 2, 4, 5].map(|id| change(ChangeKind::Remove, id, Vec::new()));
        let lost = Lost::new(3, removals.to_vec());
        assert_eq!(lost.members(true), "3 http://m3:2380");
        assert_eq!(lost.members(false), "3 http://m3:2380");
    }

    #[test]
    fn a_removed_member_stays_removed() {
        let lost = Lost::new(3, vec![change(ChangeKind::Remove, 3, Vec::new())]);
        let error = lost.open(true).err().expect("it is no member");
        assert!(error.to_string().starts_with("member 3 has been permanently removed"), "{error}");
        drop(lost.folder);
    }
}
