use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, Response};
use tonic::body::Body;
use tonic::{Code, Status};

use super::credentials::Identity;
use crate::api_error::ApiError;
use crate::client::{Channel, Head, Method, Pool, framed, unframed};
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse};
use crate::types::KeyRange;

/// What an entry for a question takes besides its text.
const ENTRY_BYTES: usize = 512;
const RANGE: &str = "/etcdserverpb.KV/Range";

/// Whether a caller may read a range of the cluster's keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub caller: Identity,
    pub range: KeyRange,
}

/// Whoever decides.
pub(in crate::proxy) trait Members: Send + Sync {
    /// Asks whether these credentials may read a range.
    ///
    /// # Errors
    /// The refusal, or why there is no decision.
    fn may_read(&self, credentials: HeaderMap, range: KeyRange) -> BoxFuture<'static, Result<(), Status>>;
}

impl Question {
    pub fn new(caller: &Identity, range: &KeyRange) -> Self {
        // Whether the caller wants a leader has nothing to do with its rights.
        Self { caller: caller.clone().with_require_leader(false), range: range.clone() }
    }

    /// Memory of an entry for it.
    pub fn bytes(&self) -> u32 {
        let range = match &self.range {
            KeyRange::One(key) | KeyRange::From(key) => key.len(),
            KeyRange::HalfOpen { start, end } => start.len() + end.len(),
        };
        u32::try_from(ENTRY_BYTES + self.caller.bytes() + range).unwrap_or(u32::MAX)
    }
}

impl Members for Pool {
    fn may_read(&self, credentials: HeaderMap, range: KeyRange) -> BoxFuture<'static, Result<(), Status>> {
        let pool = self.clone();
        async move {
            let head = Head::grpc(RANGE, credentials);
            decision(pool.exchange(Method::of(RANGE), &head, question(&range)).await).await
        }
        .boxed()
    }
}

impl Members for Channel {
    /// Asks as the user of the channel.
    fn may_read(&self, _: HeaderMap, range: KeyRange) -> BoxFuture<'static, Result<(), Status>> {
        let channel = self.clone();
        async move {
            let head = Head::grpc(RANGE, HeaderMap::new());
            decision(channel.exchange(Method::of(RANGE), &head, question(&range)).await).await
        }
        .boxed()
    }
}

/// A read of the range at a revision that no cluster reaches. A member looks at the permission before it looks at the
/// revision, so the answer is the refusal, or that the revision is in the future; and it costs the same whatever the
/// range holds. It is linearizable, so that a member that was cut off from the others cannot know an older permission.
fn question(range: &KeyRange) -> Bytes {
    let (key, range_end) = range.to_wire();
    let key = KeyRange::key_in_request(key);
    let read = RangeRequest { key, range_end, limit: 1, keys_only: true, revision: i64::MAX, ..Default::default() };
    framed(&read)
}

async fn decision(answer: Response<Body>) -> Result<(), Status> {
    match unframed::<RangeResponse>(answer).await {
        Ok(_) => Ok(()),
        Err(status) if ApiError::from_text(status.message()) == Some(ApiError::FutureRevision) => Ok(()),
        Err(status) => Err(status),
    }
}

/// Whether the cluster has decided against the caller.
pub(super) fn is_refusal(status: &Status) -> bool {
    matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument)
}
