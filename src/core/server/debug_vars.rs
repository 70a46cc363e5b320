use serde_json::{Value, json};

use crate::core::apply::ApplyHandle;
use crate::core::raft::RaftHandle;
use crate::types::MemberId;

/// What `/debug/vars` has of a member besides the process.
pub(super) fn raft_status(member: MemberId, raft: &RaftHandle, apply: &ApplyHandle) -> [(&'static str, Value); 1] {
    let status = *raft.status().borrow();
    let role = match (status.is_leader, status.leader) {
        (true, _) => "StateLeader",
        (false, Some(_)) => "StateFollower",
        (false, None) => "StateCandidate",
    };
    let status = json!({
        "id": format!("{:x}", member.0),
        "term": status.term.0,
        "commit": raft.committed().0,
        "lead": format!("{:x}", status.leader.map_or(0, |leader| leader.0)),
        "raftState": role,
        "applied": apply.applied().0,
    });
    [("raft.status", status)]
}
