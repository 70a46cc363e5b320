use std::sync::Arc;

use tonic::Status;

use super::follow::{Follower, after};
use super::pair::Pair;
use super::shared::{Checked, Snapshot};
use crate::pb::etcdserverpb::{RangeRequest, RangeResponse};
use crate::pb::mvccpb::KeyValue;
use crate::tree::Iter;
use crate::types::KeyRange;

/// Keys of one page, without their values.
const PAGE_KEYS: i64 = 10_000;

impl Follower {
    /// Compares a state with what the cluster has at its position: keys, revisions and versions, not values.
    pub(super) async fn check(&self, state: Arc<Snapshot>) -> Checked {
        let _turn = self.budget.turn_to_compare().await;
        let mut comparison = Comparison { held: state.pairs.from(b"") };
        let mut rest = self.replica.upstream.clone();
        loop {
            let Ok(page) = self.keys(&rest, &state).await else { return Checked::Unknown };
            if page.header.is_none_or(|header| header.cluster_id != state.cluster.0) {
                return Checked::Unknown;
            }
            for kv in &page.kvs {
                let inside = self.namespace.strip_prefix(&kv.key).map(|key| KeyValue { key, ..kv.clone() });
                if let Err(different) = comparison.next(inside.as_ref().unwrap_or(kv)) {
                    return Checked::Different(different);
                }
            }
            let Some(last) = page.kvs.last().filter(|_| page.more) else { break };
            rest = after(&rest, &last.key);
        }
        comparison.end().map_or_else(Checked::Different, |()| Checked::Same)
    }

    async fn keys(&self, rest: &KeyRange, state: &Snapshot) -> Result<RangeResponse, Status> {
        let (key, range_end) = rest.to_wire();
        let revision = state.position.0;
        let request =
            RangeRequest { key, range_end, revision, limit: PAGE_KEYS, keys_only: true, ..Default::default() };
        self.answered(self.cluster.range(&self.identity, request)).await
    }
}

/// Pairs that are held, beside those of the cluster in the same order.
struct Comparison<'t> {
    held: Iter<'t, Pair>,
}

impl Comparison<'_> {
    /// # Errors
    /// How they differ. Keys are not for logs.
    fn next(&mut self, kv: &KeyValue) -> Result<(), String> {
        let Some(held) = self.held.next() else {
            return Err(format!("a pair of revision {} is not held", kv.mod_revision));
        };
        let fields = held.fields();
        let (ours, theirs) =
            ((fields.create, held.modified(), fields.version), (kv.create_revision, kv.mod_revision, kv.version));
        if held.key() == kv.key && ours == theirs {
            return Ok(());
        }
        Err(format!("a pair of revision {} is held where the cluster has one of {}", ours.1, theirs.1))
    }

    fn end(mut self) -> Result<(), String> {
        match self.held.next() {
            None => Ok(()),
            Some(held) => Err(format!("a pair of revision {} is held that the cluster does not have", held.modified())),
        }
    }
}
