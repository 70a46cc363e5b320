use crate::core::mvcc::StoreReader;
use crate::core::raft::RaftHandle;
use crate::pb::encoded::ResponseHeader;
use crate::types::{ClusterId, MemberId, Revision};

/// The ids of this member and its cluster, and the response headers that carry them.
pub struct MemberInfo {
    member: MemberId,
    cluster: ClusterId,
    /// For the term.
    raft: RaftHandle,
    /// For the newest revision.
    store: StoreReader,
}

impl MemberInfo {
    pub(super) fn new(member: MemberId, cluster: ClusterId, raft: RaftHandle, store: StoreReader) -> Self {
        Self { member, cluster, raft, store }
    }

    /// This member.
    pub fn member(&self) -> MemberId {
        self.member
    }

    /// Its cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// A header at `revision`.
    pub(super) fn header(&self, revision: Revision) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster.0,
            member_id: self.member.0,
            revision: revision.0,
            raft_term: self.raft.term().0,
        }
    }

    /// A header at the newest revision.
    pub(super) fn header_now(&self) -> ResponseHeader {
        self.header(self.store.snapshot().revision())
    }

    /// Fills in a header that holds only the revision.
    pub(super) fn complete(&self, header: &mut Option<ResponseHeader>) {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = Some(self.header(Revision(revision)));
    }
}
