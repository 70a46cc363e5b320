use prost::Message;
use tonic::Status;

use super::follow::{End, Follower, after};
use super::replica::Replica;
use crate::api_error::ApiError;
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse};
use crate::types::{KeyRange, Revision};

/// Keys of the first page; the next ones follow from how long the pairs are.
const FIRST_KEYS: i64 = 16;
const KEYS_MAX: i64 = 10_000;
/// What a page should measure.
const PAGE_BYTES: usize = 2 * 1024 * 1024;
/// Loads begun anew because their revision was compacted.
const ATTEMPTS_MAX: usize = 5;

impl Follower {
    /// Reads all pairs of the range at one revision, which is at least `floor`; they are in `replica` then.
    pub(super) async fn load(&self, replica: &mut Replica, floor: Revision) -> Result<(), End> {
        for _ in 0..ATTEMPTS_MAX {
            *replica = Replica::new(self.budget.pairs());
            match self.load_once(replica).await? {
                Some(revision) if revision >= floor => {
                    replica.begin(revision);
                    return Ok(());
                }
                Some(_) => return Err(End::WentBack),
                None => {}
            }
        }
        Err(End::Compacted)
    }

    /// The revision that was read; none when it was compacted meanwhile.
    async fn load_once(&self, replica: &mut Replica) -> Result<Option<Revision>, End> {
        let mut at = Revision(0);
        let mut rest = self.replica.upstream.clone();
        let mut limit = FIRST_KEYS;
        loop {
            let page = match self.page(&rest, at, limit).await {
                Ok(page) => page,
                Err(status) if ApiError::from_text(status.message()) == Some(ApiError::Compacted) => return Ok(None),
                Err(status) => return Err(End::of_status(status)),
            };
            if at.0 == 0 {
                at = Revision(page.header.unwrap_or_default().revision);
            }
            let Some(last) = page.kvs.last().map(|kv| kv.key.clone()) else { return Ok(Some(at)) };
            let bytes: usize = page.kvs.iter().map(Message::encoded_len).sum();
            let keys = page.kvs.len();
            // What a prefix holds is not known when it is promoted.
            let all = usize::try_from(page.count).unwrap_or(usize::MAX);
            if replica.bytes() == 0 && self.is_too_large(all.saturating_mul(bytes / keys)) {
                return Err(End::OverBudget);
            }
            for mut kv in page.kvs {
                let Some(key) = self.namespace.strip_prefix(&kv.key) else {
                    return Err(End::Gap("a key outside of the range was read"));
                };
                kv.key = key;
                replica.load(&kv);
            }
            let rest_keys = all.saturating_sub(keys);
            let each = replica.bytes() / replica.pairs().len().max(1);
            let expected = replica.bytes().saturating_add(each.saturating_mul(rest_keys));
            if !self.budget.has_room_to_load(&self.replica, replica.bytes(), expected) {
                return Err(End::OverBudget);
            }
            self.charge(replica)?;
            if !page.more {
                return Ok(Some(at));
            }
            rest = after(&rest, &last);
            let fits = PAGE_BYTES / (bytes / keys).max(1);
            limit = i64::try_from(fits).unwrap_or(KEYS_MAX).clamp(FIRST_KEYS, KEYS_MAX);
        }
    }

    async fn page(&self, rest: &KeyRange, at: Revision, limit: i64) -> Result<RangeResponse, Status> {
        let (key, range_end) = rest.to_wire();
        let request = RangeRequest { key, range_end, limit, revision: at.0, ..Default::default() };
        self.answered(self.cluster.range(&self.identity, request)).await
    }
}
