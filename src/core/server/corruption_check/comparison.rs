//! The comparison of the members' states, without the member around it: what is asked of whom, and who is named.

use std::future::Future;

use bytes::Bytes;
use futures::future::join_all;
use prost::Message;
use tracing::{error, info, warn};

use super::super::error::Failure;
use super::verdict::{Sum, Verdict, ahead, compare};
use crate::api_error::ApiError;
use crate::core::mvcc::{HashKv, StoreReader};
use crate::core::peer::CallError;
use crate::pb::etcdserverpb::{HashKvRequest, HashKvResponse, ResponseHeader};
use crate::types::{ClusterId, MemberId, Revision};

/// Asks for the hash of the state at a revision: `HashKVRequest`, `HashKVResponse`.
pub const STATE_HASH: &str = "hashkv";
/// Asks for the hash that the compaction at a revision left behind, in the same messages.
pub const COMPACTION_HASH: &str = "hashkv.compaction";

/// What a comparison needs of its member.
pub trait ComparedMember: Send + Sync {
    /// This member.
    fn member(&self) -> MemberId;
    /// The cluster; hashes of others are not compared.
    fn cluster(&self) -> ClusterId;
    /// The other members.
    fn others(&self) -> Vec<MemberId>;
    /// Whether this member leads.
    fn is_leader(&self) -> bool;
    /// The state.
    fn store(&self) -> &StoreReader;
    /// The header of an answer at a revision.
    fn header(&self, revision: Revision) -> ResponseHeader;
    /// Whether a CORRUPT alarm names a member.
    fn is_named(&self, member: MemberId) -> bool;
    /// The hash of the rows at a revision, 0 for the newest, and the newest revision.
    fn own_hash(&self, revision: Revision) -> impl Future<Output = Result<(HashKv, Revision), Failure>> + Send;
    /// Waits, for a bounded time, until this member has a revision: a follower is often a moment behind the leader.
    fn wait_for_revision(&self, revision: Revision) -> impl Future<Output = ()> + Send;
    /// Completes once a quorum has confirmed the leader after the call, and what it had committed is applied here.
    fn confirm(&self) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Asks another member.
    fn call(
        &self,
        to: MemberId,
        method: &'static str,
        body: Bytes,
    ) -> impl Future<Output = Result<Bytes, CallError>> + Send;
    /// Raises a CORRUPT alarm that names a member.
    fn raise(&self, suspect: MemberId) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Answers another member.
///
/// # Errors
/// The request cannot be read, or this member has no such hash.
pub async fn answer<M: ComparedMember>(member: &M, method: &str, body: Bytes) -> Result<Bytes, Failure> {
    let request = HashKvRequest::decode(body).map_err(|_| Failure::Other("unreadable request".to_owned()))?;
    let asked = Revision(request.revision);
    let (hashed, newest) = if method == COMPACTION_HASH {
        let kept = member.store().compaction_hashes();
        let kept = kept.into_iter().find(|kept| kept.hash_revision == asked);
        (kept.ok_or(ApiError::Compacted)?, member.store().snapshot().revision())
    } else {
        member.wait_for_revision(asked).await;
        member.own_hash(asked).await?
    };
    let answer = HashKvResponse {
        header: Some(member.header(newest)),
        hash: hashed.hash,
        compact_revision: hashed.compact_revision.0,
        hash_revision: hashed.hash_revision.0,
    };
    Ok(answer.encode_to_vec().into())
}

/// Asks every other member for its hash at `revision`, all at once.
pub(super) async fn ask_all<M: ComparedMember>(
    member: &M,
    method: &'static str,
    revision: Revision,
) -> Vec<(MemberId, Option<Sum>)> {
    let body = Bytes::from(HashKvRequest { revision: revision.0 }.encode_to_vec());
    join_all(member.others().into_iter().map(|other| ask(member, other, method, body.clone()))).await
}

async fn ask<M: ComparedMember>(
    member: &M,
    other: MemberId,
    method: &'static str,
    body: Bytes,
) -> (MemberId, Option<Sum>) {
    match member.call(other, method, body).await {
        Ok(answer) => (other, read_sum(member.cluster(), &answer)),
        Err(error) => {
            // Not reachable, behind, or compacted further than we are: nothing to compare this time.
            info!(member = %other, %error, "no hash from this member");
            (other, None)
        }
    }
}

/// The hash in an answer; none in the answer of a member of another cluster, which may have taken over an address.
fn read_sum(cluster: ClusterId, answer: &[u8]) -> Option<Sum> {
    let answer = HashKvResponse::decode(answer).ok()?;
    let header = answer.header.as_ref()?;
    (header.cluster_id == cluster.0).then_some(Sum {
        hash: answer.hash,
        compact_revision: Revision(answer.compact_revision),
        newest: Revision(header.revision),
    })
}

/// Compares the whole states as the leader, and raises alarms.
///
/// # Errors
/// There is nothing to compare, or this member does not lead.
pub async fn check_state<M: ComparedMember>(member: &M) -> Result<(), Failure> {
    let suspects = suspects(member).await?;
    if suspects.is_empty() {
        return Ok(());
    }
    // An alarm stops all writes, so it takes two comparisons with the same result.
    if self::suspects(member).await? == suspects {
        raise(member, &suspects).await?;
    }
    Ok(())
}

/// Members to be named; 0 stands for the cluster, when it is not known who is damaged.
async fn suspects<M: ComparedMember>(member: &M) -> Result<Vec<MemberId>, Failure> {
    let (hashed, newest) = member.own_hash(Revision(0)).await?;
    let others = ask_all(member, STATE_HASH, hashed.hash_revision).await;
    // A leader whose leadership is confirmed now has applied everything that the others answered from.
    member.confirm().await?;
    if !member.is_leader() {
        return Err(ApiError::NotLeader.into());
    }
    let now = member.store().snapshot();
    let mut suspects = ahead((now.revision(), now.compacted()), &others);
    match compare((member.member(), Sum::new(&hashed, newest)), &others) {
        Verdict::Equal { complete } => {
            info!(revision = %hashed.hash_revision, complete, "states of the members are equal")
        }
        Verdict::Damaged(members) => suspects.extend(members),
        Verdict::Undecided => suspects.push(MemberId(0)),
    }
    suspects.sort_unstable();
    suspects.dedup();
    if !suspects.is_empty() {
        warn!(suspects = named(&suspects), revision = %hashed.hash_revision, ?others, own = hashed.hash, "states of the members differ");
    }
    Ok(suspects)
}

/// Compares the hashes of compactions, newest first, until one was compared with all members. Returns the revision up
/// to which that is done.
pub async fn check_compactions<M: ComparedMember>(member: &M, checked: Revision) -> Revision {
    let kept = member.store().compaction_hashes();
    let unchecked = kept.iter().rev().take_while(|hashed| hashed.hash_revision > checked);
    let mut asked = 0;
    for hashed in unchecked {
        asked += 1;
        let others = ask_all(member, COMPACTION_HASH, hashed.hash_revision).await;
        let suspects = match compare((member.member(), Sum::new(hashed, hashed.hash_revision)), &others) {
            Verdict::Equal { complete: true } => {
                info!("number-of-hashes-checked" = asked, complete = true, "finished compaction hash check");
                return hashed.hash_revision;
            }
            Verdict::Equal { complete: false } => continue,
            Verdict::Damaged(members) => members,
            Verdict::Undecided => vec![MemberId(0)],
        };
        error!(suspects = named(&suspects), revision = %hashed.hash_revision, ?others, own = hashed.hash, "hashes of a compaction differ");
        if let Err(error) = raise(member, &suspects).await {
            warn!(%error, "CORRUPT alarm not raised");
        }
        return checked;
    }
    if asked > 0 {
        // Some member has no hash of these compactions, as after a restart in the middle of one.
        info!("number-of-hashes-checked" = asked, complete = false, "finished compaction hash check");
    }
    checked
}

/// Names members by CORRUPT alarms, those that are not named already.
async fn raise<M: ComparedMember>(member: &M, suspects: &[MemberId]) -> Result<(), Failure> {
    for &suspect in suspects {
        if member.is_named(suspect) {
            continue;
        }
        error!(member = %suspect, "state differs from that of the others; raising a CORRUPT alarm");
        member.raise(suspect).await?;
    }
    Ok(())
}

fn named(members: &[MemberId]) -> String {
    members.iter().map(MemberId::to_string).collect::<Vec<_>>().join(" ")
}
