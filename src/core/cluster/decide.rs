use std::collections::BTreeSet;

use super::change::{AddContext, DEFAULT_MAX_LEARNERS, MembersAction, MembershipError};
use super::member::Member;
use super::store::ClusterStore;
use crate::core::backend::Change;
use crate::types::MemberId;

impl ClusterStore {
    /// Decides on a committed membership change by etcd's rules, and applies it if they allow it.
    ///
    /// The outcome is a function of the members and the change, so that all members decide alike, however late.
    ///
    /// # Errors
    /// Why the change is refused; nothing has changed then.
    pub fn decide(
        &mut self,
        action: MembersAction,
        id: MemberId,
        context: &[u8],
    ) -> Result<Vec<Change>, MembershipError> {
        if id == MemberId(0) {
            // No member's id; an addition under it could not be told from "none" by consensus.
            return Err(MembershipError::IdNotFound);
        }
        if self.is_removed(id) {
            return Err(MembershipError::IdRemoved);
        }
        match action {
            MembersAction::AddVoter | MembersAction::AddLearner => {
                let context: AddContext = read(context)?;
                if context.member.member_id() != id {
                    return Err(MembershipError::Unreadable);
                }
                let is_learner = action == MembersAction::AddLearner;
                let member = match (context.is_promote, is_learner) {
                    (true, true) => return Err(MembershipError::Unreadable),
                    (true, false) => self.promoted(id)?,
                    (false, _) => self.added(Member { is_learner, ..context.member }, context.max_learners)?,
                };
                Ok(vec![self.set_member(member)])
            }
            MembersAction::Remove => {
                let member = self.member(id).ok_or(MembershipError::IdNotFound)?;
                if !member.is_learner && self.voters().count() == 1 {
                    return Err(MembershipError::LastVoter);
                }
                Ok(self.remove_member(id))
            }
            MembersAction::Update => {
                let known = self.member(id).ok_or(MembershipError::IdNotFound)?;
                let update: Member = read(context)?;
                if update.member_id() != id {
                    return Err(MembershipError::Unreadable);
                }
                self.check_urls(id, &update.peer_urls)?;
                // The request carries URLs only: a learner stays one (etcd issue 21736), names stay too.
                let member = Member { peer_urls: update.peer_urls, ..known.clone() };
                Ok(vec![self.set_member(member)])
            }
        }
    }

    fn promoted(&self, id: MemberId) -> Result<Member, MembershipError> {
        let known = self.member(id).ok_or(MembershipError::IdNotFound)?;
        if !known.is_learner {
            return Err(MembershipError::NotLearner);
        }
        Ok(Member { is_learner: false, ..known.clone() })
    }

    fn added(&self, member: Member, max_learners: Option<usize>) -> Result<Member, MembershipError> {
        let id = member.member_id();
        if self.member(id).is_some() {
            return Err(MembershipError::IdExists);
        }
        self.check_urls(id, &member.peer_urls)?;
        if member.is_learner && self.learners().count() >= max_learners.unwrap_or(DEFAULT_MAX_LEARNERS) {
            return Err(MembershipError::TooManyLearners);
        }
        Ok(member)
    }

    fn check_urls(&self, id: MemberId, urls: &[String]) -> Result<(), MembershipError> {
        let others = self.members().filter(|member| member.member_id() != id);
        let taken: BTreeSet<&String> = others.flat_map(|member| &member.peer_urls).collect();
        if urls.iter().any(|url| taken.contains(url)) { Err(MembershipError::PeerUrlExists) } else { Ok(()) }
    }
}

fn read<T: serde::de::DeserializeOwned>(context: &[u8]) -> Result<T, MembershipError> {
    serde_json::from_slice(context).map_err(|_| MembershipError::Unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::backend::Table;

    /// Members 1 and 2 vote, 3 learns, 9 was removed.
    fn cluster() -> ClusterStore {
        let mut store = ClusterStore::default();
        for (id, is_learner) in [(1, false), (2, false), (3, true), (9, false)] {
            let member = Member { is_learner, name: format!("m{id}"), ..fresh(id) };
            store.set_member(member);
        }
        store.remove_member(MemberId(9));
        store
    }

    fn fresh(id: u64) -> Member {
        Member { id, peer_urls: vec![format!("http://m{id}:2380")], ..Member::default() }
    }

    fn add(id: u64, url: &str, is_learner: bool, max_learners: usize) -> Vec<u8> {
        let member = Member { id, peer_urls: vec![url.to_owned()], is_learner, ..Member::default() };
        AddContext::add(member, max_learners).to_json()
    }

    fn show(store: &ClusterStore) -> String {
        let one = |member: &Member| {
            let learner = if member.is_learner { "?" } else { "" };
            format!("{}{learner}={}", member.id, member.peer_urls.join("+"))
        };
        store.members().map(one).collect::<Vec<_>>().join(" ")
    }

    /// What is decided on `cluster()`, as the member list or the refusal; a refusal leaves the store as it was.
    fn check(action: MembersAction, id: u64, context: &[u8], expected: &str) {
        let mut store = cluster();
        let before = show(&store);
        let (seen, changed) = match store.decide(action, MemberId(id), context) {
            Ok(changes) => (show(&store), !changes.is_empty()),
            Err(error) => {
                assert_eq!(show(&store), before, "{error} changed something");
                (error.to_string(), true)
            }
        };
        assert!(changed, "a change without rows");
        assert_eq!(seen, expected);
    }

    const BEFORE: &str = "1=http://m1:2380 2=http://m2:2380 3?=http://m3:2380";

    #[test]
    fn additions() {
        use MembersAction::{AddLearner, AddVoter};
        check(AddVoter, 4, &add(4, "http://m4:2380", false, 1), &format!("{BEFORE} 4=http://m4:2380"));
        check(AddLearner, 4, &add(4, "http://m4:2380", true, 2), &format!("{BEFORE} 4?=http://m4:2380"));
        check(AddLearner, 4, &add(4, "http://m4:2380", true, 1), "membership: too many learner members in cluster");
        check(AddVoter, 2, &add(2, "http://m4:2380", false, 1), "membership: ID exists");
        check(AddVoter, 4, &add(4, "http://m3:2380", false, 1), "membership: peerURL exists");
        check(AddVoter, 9, &add(9, "http://m9:2380", false, 1), "membership: ID removed");
        check(AddVoter, 4, &add(5, "http://m4:2380", false, 1), "membership: unreadable change");
        check(AddVoter, 4, b"{", "membership: unreadable change");
        check(AddVoter, 0, &add(0, "http://m4:2380", false, 1), "membership: ID not found");
        check(AddLearner, 0, &add(0, "http://m4:2380", true, 2), "membership: ID not found");
        // etcd's own context has no limit in it: the usual one holds.
        let without = br#"{"id":4,"peerURLs":["http://m4:2380"],"isLearner":true,"isPromote":false}"#;
        check(AddLearner, 4, without, "membership: too many learner members in cluster");
    }

    #[test]
    fn promotions() {
        let promote = |id| AddContext::promote(MemberId(id)).to_json();
        check(MembersAction::AddVoter, 3, &promote(3), "1=http://m1:2380 2=http://m2:2380 3=http://m3:2380");
        check(MembersAction::AddVoter, 2, &promote(2), "membership: can only promote a learner member");
        check(MembersAction::AddVoter, 4, &promote(4), "membership: ID not found");
        check(MembersAction::AddVoter, 9, &promote(9), "membership: ID removed");
        check(MembersAction::AddLearner, 3, &promote(3), "membership: unreadable change");
    }

    #[test]
    fn removals() {
        check(MembersAction::Remove, 2, b"", "1=http://m1:2380 3?=http://m3:2380");
        check(MembersAction::Remove, 3, b"", "1=http://m1:2380 2=http://m2:2380");
        check(MembersAction::Remove, 4, b"", "membership: ID not found");
        check(MembersAction::Remove, 9, b"", "membership: ID removed");
        check(MembersAction::Remove, 0, b"", "membership: ID not found");
        let mut store = cluster();
        store.decide(MembersAction::Remove, MemberId(1), b"").expect("two are left");
        let last = store.decide(MembersAction::Remove, MemberId(2), b"");
        assert_eq!(last, Err(MembershipError::LastVoter), "a learner alone cannot decide");
    }

    // etcd issue 21736: an update made a voter of a learner.
    #[test]
    fn an_update_changes_urls_and_nothing_else() {
        let update = |id, url: &str| {
            let member = Member { peer_urls: vec![url.to_owned()], is_learner: id != 3, ..fresh(id) };
            Member { name: "other".to_owned(), ..member }.to_json()
        };
        check(MembersAction::Update, 3, &update(3, "http://x:1"), "1=http://m1:2380 2=http://m2:2380 3?=http://x:1");
        check(MembersAction::Update, 2, &update(2, "http://m2:2380"), BEFORE);
        check(MembersAction::Update, 2, &update(2, "http://m1:2380"), "membership: peerURL exists");
        check(MembersAction::Update, 4, &update(4, "http://m4:2380"), "membership: ID not found");
        check(MembersAction::Update, 9, &update(9, "http://m9:2380"), "membership: ID removed");
        check(MembersAction::Update, 0, &update(0, "http://m9:2380"), "membership: ID not found");
        check(MembersAction::Update, 2, &update(1, "http://x:1"), "membership: unreadable change");
        let mut store = cluster();
        store.decide(MembersAction::Update, MemberId(3), &update(3, "http://x:1")).expect("it is right");
        assert_eq!(store.member(MemberId(3)).map(|member| member.name.as_str()), Some("m3"));
    }

    #[test]
    fn a_removal_is_two_rows() {
        let mut store = cluster();
        let rows = store.decide(MembersAction::Remove, MemberId(2), b"").expect("it is there");
        let seen: Vec<_> = rows.iter().map(|row| (row.table, row.key.as_ref(), row.value.is_some())).collect();
        assert_eq!(seen, [(Table::Members, &b"2"[..], false), (Table::MembersRemoved, &b"2"[..], true)]);
    }

    #[test]
    fn contexts_are_etcds_json() {
        let added = String::from_utf8(add(255, "http://m:1", true, 2)).expect("text");
        assert_eq!(added, r#"{"id":255,"peerURLs":["http://m:1"],"isLearner":true,"isPromote":false,"maxLearners":2}"#);
        let promoted = String::from_utf8(AddContext::promote(MemberId(7)).to_json()).expect("text");
        assert_eq!(promoted, r#"{"id":7,"peerURLs":[],"isPromote":true}"#);
        let from_go: AddContext = serde_json::from_str(r#"{"id":7,"peerURLs":null,"isPromote":true}"#).expect("JSON");
        assert_eq!(from_go, AddContext::promote(MemberId(7)));
    }
}
