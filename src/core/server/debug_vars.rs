use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::timeout;

use crate::core::apply::ApplyHandle;
use crate::core::raft::{RaftDetails, RaftHandle};
use crate::types::MemberId;

/// How long raft may take to be asked. The page is looked at when a member does not do what it should.
const PATIENCE: Duration = Duration::from_secs(1);

/// What `/debug/vars` has of a member besides the process. Without the details when raft does not answer.
pub(super) async fn raft_status(
    member: MemberId,
    raft: &RaftHandle,
    apply: &ApplyHandle,
) -> [(&'static str, Value); 1] {
    let details = timeout(PATIENCE, raft.details()).await.ok().flatten();
    let status = *raft.status().borrow();
    let role = match (status.is_leader, status.leader) {
        (true, _) => "StateLeader",
        (false, Some(_)) => "StateFollower",
        (false, None) => "StateCandidate",
    };
    let mut vars = json!({
        "id": hex(Some(member)),
        "term": status.term.0,
        "commit": raft.committed().0,
        "lead": hex(status.leader),
        "raftState": role,
        "applied": apply.applied().0,
    });
    if let Some(RaftDetails { vote, transferee, replication }) = details {
        let progress: Map<String, Value> = replication
            .into_iter()
            .map(|of| (hex(Some(of.member)), json!({"match": of.matched.0, "next": of.next.0, "state": of.state})))
            .collect();
        vars["vote"] = hex(vote).into();
        vars["progress"] = progress.into();
        vars["leadtransferee"] = hex(transferee).into();
    }
    [("raft.status", vars)]
}

fn hex(member: Option<MemberId>) -> String {
    format!("{:x}", member.map_or(0, |member| member.0))
}
