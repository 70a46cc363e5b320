use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use crate::core::apply::ApplyHandle;
use crate::core::raft::RaftHandle;
use crate::types::MemberId;

/// The page at `/debug/vars`. etcd's has the memory statistics of Go as well.
pub(super) fn page(member: MemberId, raft: &RaftHandle, apply: &ApplyHandle) -> String {
    let status = *raft.status().borrow();
    let role = match (status.is_leader, status.leader) {
        (true, _) => "StateLeader",
        (false, Some(_)) => "StateFollower",
        (false, None) => "StateCandidate",
    };
    let page = json!({
        "cmdline": std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>(),
        "file_descriptor_limit": getrlimit(Resource::Nofile).current.map_or(Value::Null, Value::from),
        "raft.status": {
            "id": format!("{:x}", member.0),
            "term": status.term.0,
            "commit": raft.committed().0,
            "lead": format!("{:x}", status.leader.map_or(0, |leader| leader.0)),
            "raftState": role,
            "applied": apply.applied().0,
        },
    });
    page.to_string()
}
