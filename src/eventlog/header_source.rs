use std::sync::atomic::{AtomicU64, Ordering};

use crate::pb::encoded::ResponseHeader;
use crate::types::{ClusterId, MemberId, Revision, Term};

/// The fields of the header that all responses have in common: cluster, member and term.
#[derive(Debug, Default)]
pub struct HeaderSource {
    cluster: AtomicU64,
    member: AtomicU64,
    term: AtomicU64,
}

impl HeaderSource {
    /// Answers as `member` of `cluster`.
    pub fn new(cluster: ClusterId, member: MemberId, term: Term) -> Self {
        Self { cluster: AtomicU64::new(cluster.0), member: AtomicU64::new(member.0), term: AtomicU64::new(term.0) }
    }

    /// Follows the raft term.
    pub fn set_term(&self, term: Term) {
        self.term.store(term.0, Ordering::Relaxed);
    }

    /// Follows another member, as a proxy does whose upstream changed. Tells whether that is one of another cluster than the
    /// one before.
    pub fn follow(&self, cluster: ClusterId, member: MemberId, term: Term) -> bool {
        let before = self.cluster.swap(cluster.0, Ordering::Relaxed);
        let is_other = before != 0 && before != cluster.0;
        self.member.store(member.0, Ordering::Relaxed);
        if is_other {
            self.term.store(term.0, Ordering::Relaxed);
        } else {
            self.term.fetch_max(term.0, Ordering::Relaxed);
        }
        is_other
    }

    pub(super) fn header(&self, revision: Revision) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster.load(Ordering::Relaxed),
            member_id: self.member.load(Ordering::Relaxed),
            revision: revision.0,
            raft_term: self.term.load(Ordering::Relaxed),
        }
    }
}
