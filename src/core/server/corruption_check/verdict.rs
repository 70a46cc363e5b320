//! What the hashes of several members say about each of them. Pure: asks no member and does not wait.

use std::collections::BTreeMap;

use crate::core::mvcc::HashKv;
use crate::core::raft::{PlantedFault, is_planted};
use crate::types::{MemberId, Revision};

/// One member's hash of the history up to a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) hash: u32,
    /// The compaction it stands on; values over different ones cannot be compared.
    pub(super) compact_revision: Revision,
    /// The newest revision of the member when it answered.
    pub(super) newest: Revision,
}

impl Sum {
    pub(super) fn new(hashed: &HashKv, newest: Revision) -> Self {
        Self { hash: hashed.hash, compact_revision: hashed.compact_revision, newest }
    }
}

/// The result of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All that could be compared are equal.
    Equal {
        /// No member was left out.
        complete: bool,
    },
    /// A majority of the cluster agrees, these do not.
    Damaged(Vec<MemberId>),
    /// They differ, and no majority agrees.
    Undecided,
}

/// Compares this member's sum with the answers of all others; a member that did not answer has none.
///
/// As in etcd, the majority counts the whole cluster, those who did not answer too: two against one in a cluster of
/// five decide nothing.
pub(super) fn compare(own: (MemberId, Sum), others: &[(MemberId, Option<Sum>)]) -> Verdict {
    let mut groups: BTreeMap<u32, Vec<MemberId>> = BTreeMap::from([(own.1.hash, vec![own.0])]);
    let mut complete = true;
    for (member, sum) in others {
        match sum {
            Some(sum)
                if sum.compact_revision == own.1.compact_revision
                    || is_planted(PlantedFault::ComparesAcrossCompactions) =>
            {
                groups.entry(sum.hash).or_default().push(*member);
            }
            _ => complete = false,
        }
    }
    if groups.len() == 1 {
        return Verdict::Equal { complete };
    }
    let members = others.len() + 1;
    let quorum = members / 2 + 1;
    let Some(right) = groups.iter().find(|(_, members)| members.len() >= quorum).map(|(hash, _)| *hash) else {
        return Verdict::Undecided;
    };
    groups.remove(&right);
    let mut damaged: Vec<MemberId> = groups.into_values().flatten().collect();
    damaged.sort_unstable();
    Verdict::Damaged(damaged)
}

/// Members that have more than the leader of a confirmed term does: a newer revision, or a later compaction. `leader` is
/// what the leader has seen after all answers, behind a confirmation of its leadership.
pub(super) fn ahead(leader: (Revision, Revision), others: &[(MemberId, Option<Sum>)]) -> Vec<MemberId> {
    let (newest, compacted) = leader;
    let beyond = |sum: &Sum| sum.newest > newest || sum.compact_revision > compacted;
    others.iter().filter(|(_, sum)| sum.as_ref().is_some_and(beyond)).map(|(member, _)| *member).collect()
}

/// Whether a member whose state compares like this may start: not on the side of a minority.
pub(super) fn may_start(own: MemberId, verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Equal { .. } => true,
        Verdict::Damaged(members) => !members.contains(&own),
        Verdict::Undecided => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `1:a/5 2:b/5 3:-`: members with hash and compaction; the first is this one, a dash is no answer.
    fn check(members: &str, verdict: &str, starts: bool) {
        let mut all = members.split(' ').map(|member| {
            let (id, sum) = member.split_once(':').expect("id:sum");
            let sum = sum.split_once('/').map(|(hash, compacted)| Sum {
                hash: u32::from(hash.as_bytes()[0]),
                compact_revision: Revision(compacted.parse().expect("a revision")),
                newest: Revision(100),
            });
            (MemberId(id.parse().expect("an id")), sum)
        });
        let (own, sum) = all.next().expect("this member");
        let found = compare((own, sum.expect("this member knows")), &all.collect::<Vec<_>>());
        let told = match &found {
            Verdict::Equal { complete: true } => "equal".to_owned(),
            Verdict::Equal { complete: false } => "equal so far".to_owned(),
            Verdict::Damaged(members) => {
                let ids: Vec<String> = members.iter().map(|member| member.0.to_string()).collect();
                format!("damaged {}", ids.join(" "))
            }
            Verdict::Undecided => "undecided".to_owned(),
        };
        assert_eq!((told.as_str(), may_start(own, &found)), (verdict, starts), "{members}");
    }

    #[test]
    fn who_is_blamed() {
        check("1:a/5", "equal", true);
        check("1:a/5 2:a/5 3:a/5", "equal", true);
        check("1:a/5 2:a/5 3:b/5", "damaged 3", true);
        check("1:b/5 2:a/5 3:a/5", "damaged 1", false);
        check("1:a/5 2:b/5 3:c/5", "undecided", false);
        check("1:a/5 2:b/5", "undecided", false);
        check("1:a/5 2:b/5 3:-", "undecided", false);
        check("1:a/5 2:a/5 3:-", "equal so far", true);
        check("1:a/5 2:-", "equal so far", true);
        check("1:a/5 2:a/5 3:a/5 4:b/5 5:c/5", "damaged 4 5", true);
        check("1:b/5 2:b/5 3:a/5 4:a/5 5:a/5", "damaged 1 2", false);
        check("1:a/5 2:a/5 3:b/5 4:-  5:-".replace("  ", " ").as_str(), "undecided", false);
        check("1:a/5 2:a/5 3:b/5 4:b/5", "undecided", false);
    }

    #[test]
    fn another_compaction_is_no_difference() {
        check("1:a/5 2:b/6 3:c/4", "equal so far", true);
        check("1:a/5 2:b/6 3:b/6", "equal so far", true);
        check("1:a/5 2:b/5 3:a/6", "undecided", false);
    }

    #[test]
    fn nobody_is_ahead_of_the_leader() {
        let sum =
            |newest, compacted| Some(Sum { hash: 1, compact_revision: Revision(compacted), newest: Revision(newest) });
        let others = [(2, sum(10, 5)), (3, sum(11, 5)), (4, sum(9, 6)), (5, None)].map(|(id, sum)| (MemberId(id), sum));
        assert_eq!(ahead((Revision(10), Revision(5)), &others), [3, 4].map(MemberId));
        assert_eq!(ahead((Revision(11), Revision(6)), &others), []);
    }
}
