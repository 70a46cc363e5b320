use serde::{Deserialize, Serialize};

use super::member::Member;
use crate::types::MemberId;

/// What a membership change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MembersAction {
    /// Adds a member with a vote, or gives a learner one.
    AddVoter,
    /// Adds a member without a vote.
    AddLearner,
    /// Removes a member; its id is never used again.
    Remove,
    /// Replaces a member's peer URLs.
    Update,
}

/// Learners a cluster may have by default.
pub const DEFAULT_MAX_LEARNERS: usize = 1;

/// What an entry that adds or promotes carries beside the member's id, in etcd's JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddContext {
    /// The member; of one that is promoted only the id.
    #[serde(flatten)]
    pub member: Member,
    /// Whether this promotes a learner; a new member otherwise.
    #[serde(rename = "isPromote", default)]
    pub is_promote: bool,
    /// Learners there may be after a learner is added. Not in etcd: there each member uses its own flag while it
    /// applies, and members with different flags would decide differently.
    #[serde(rename = "maxLearners", default, skip_serializing_if = "Option::is_none")]
    pub max_learners: Option<usize>,
}

impl AddContext {
    /// Of a new member.
    pub fn add(member: Member, max_learners: usize) -> Self {
        let max_learners = member.is_learner.then_some(max_learners);
        Self { member, is_promote: false, max_learners }
    }

    /// Of a learner that gets its vote.
    pub fn promote(id: MemberId) -> Self {
        Self { member: Member { id: id.0, ..Member::default() }, is_promote: true, max_learners: None }
    }

    /// The form in which it is proposed.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers can be written as JSON")
    }
}

/// Why a membership change is refused. Every member refuses the same ones, while it applies them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The id belonged to a member that was removed.
    #[error("membership: ID removed")]
    IdRemoved,
    /// The id is in use.
    #[error("membership: ID exists")]
    IdExists,
    /// No member has this id.
    #[error("membership: ID not found")]
    IdNotFound,
    /// Another member has one of the peer URLs.
    #[error("membership: peerURL exists")]
    PeerUrlExists,
    /// The member to promote has a vote already.
    #[error("membership: can only promote a learner member")]
    NotLearner,
    /// There are as many learners as there may be.
    #[error("membership: too many learner members in cluster")]
    TooManyLearners,
    /// There would be no voter left.
    #[error("membership: the last voting member cannot be removed")]
    LastVoter,
    /// The proposal cannot be read, or names another member.
    #[error("membership: unreadable change")]
    Unreadable,
}
