use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use super::core::Core;

/// What `/debug/vars` shows. etcd's page has the memory statistics of Go, too, which this program has not.
pub(super) fn page(core: &Core) -> String {
    let status = *core.raft.status().borrow();
    let role = match (status.is_leader, status.leader) {
        (true, _) => "StateLeader",
        (false, Some(_)) => "StateFollower",
        (false, None) => "StateCandidate",
    };
    let page = json!({
        "cmdline": std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>(),
        "file_descriptor_limit": getrlimit(Resource::Nofile).current.map_or(Value::Null, Value::from),
        "raft.status": {
            "id": format!("{:x}", core.member.0),
            "term": status.term.0,
            "commit": core.raft.committed().0,
            "lead": format!("{:x}", status.leader.map_or(0, |leader| leader.0)),
            "raftState": role,
            "applied": core.raft.applied().0,
        },
    });
    page.to_string()
}
