use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::oneshot;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tracing::debug;

use super::error::RecipeError;
use super::store::RecipeStore;
use crate::net::Backoff;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader,
    ResponseOp, TxnRequest, WatchCreateRequest, request_op, response_op,
};
use crate::pb::mvccpb::event::EventType;
use crate::pb::mvccpb::{Event, KeyValue};
use crate::shutdown::Tasks;
use crate::types::KeyRange;

/// Pauses before the key of a place is deleted again after a failure.
const LEAVE_BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
/// How often that is tried. The lease ends the place after that.
const LEAVE_ATTEMPTS: u32 = 60;

/// TTL in seconds of a lease that a recipe grants for a caller without one. It is not kept alive.
const OWN_LEASE_TTL: i64 = 60;

/// The queue of one lock or election: the keys under `name/`, oldest first.
#[derive(Clone)]
pub(super) struct Queue<S> {
    pub(super) store: S,
    pub(super) prefix: Bytes,
    tasks: Tasks,
}

/// What the caller found when it joined.
pub(super) struct Joined<S: RecipeStore> {
    pub(super) place: Place<S>,
    pub(super) header: ResponseHeader,
    /// The caller's key as it was, if the same lease was in the queue already.
    pub(super) existing: Option<KeyValue>,
}

impl<S: RecipeStore> Queue<S> {
    pub(super) fn new(store: S, name: &[u8], tasks: Tasks) -> Self {
        let prefix = [name, b"/"].concat().into();
        Self { store, prefix, tasks }
    }

    /// Enters the queue with the caller's lease, or finds the place this lease holds already.
    ///
    /// Safe to drop: the transaction runs in a task of its own, and a place that is not waited for any more is left again.
    pub(super) async fn join(&self, lease: i64, value: Bytes) -> Result<Joined<S>, RecipeError> {
        let (reply, joined) = oneshot::channel();
        let queue = self.clone();
        self.tasks.spawn(async move {
            // Without a receiver the place is dropped here, which leaves the queue.
            let _ = reply.send(queue.enter(lease, value).await);
        });
        joined.await.map_err(|_| RecipeError::Stopped)?
    }

    async fn enter(self, lease: i64, value: Bytes) -> Result<Joined<S>, RecipeError> {
        let key = self.key_of(lease);
        let mine = RangeRequest { key: key.clone(), ..Default::default() };
        let answer = self
            .store
            .txn(TxnRequest {
                compare: vec![Compare::absent(key.clone())],
                // Every member runs this while it applies: nothing here may walk over the queue. The newest two are
                // the caller and the one before it.
                success: vec![put(key.clone(), value, lease), range(self.by_creation(SortOrder::Descend, 2))],
                failure: vec![range(mine)],
            })
            .await?;
        let header = answer.header.unwrap_or_default();
        let existing = if answer.succeeded {
            None
        } else {
            range_of(&answer.responses, 0).and_then(|mine| mine.kvs.first().cloned())
        };
        let create_revision = match (&existing, answer.succeeded) {
            (Some(kv), _) => kv.create_revision,
            (None, true) => header.revision,
            (None, false) => return Err(RecipeError::BadAnswer),
        };
        let newest = range_of(&answer.responses, 1);
        let ahead = match (answer.succeeded, newest) {
            (false, _) | (true, None) => Ahead::Unknown,
            (true, Some(newest)) => match newest.kvs.iter().find(|kv| kv.create_revision < create_revision) {
                Some(kv) => Ahead::Of { predecessor: kv.key.clone(), revision: header.revision },
                None => Ahead::Nobody,
            },
        };
        // A place that was there before belongs to another call of the same caller, unless this one has to wait.
        let place = Place { key, create_revision, ahead, leave_on_drop: answer.succeeded, queue: self };
        Ok(Joined { place, header, existing })
    }

    fn key_of(&self, lease: i64) -> Bytes {
        // A negative id is shown with its sign, as Go's %x does.
        let sign = if lease < 0 { "-" } else { "" };
        let mut key = self.prefix.to_vec();
        key.extend_from_slice(format!("{sign}{:x}", lease.unsigned_abs()).as_bytes());
        key.into()
    }

    /// Reads the first of the queue.
    pub(super) fn first_range(&self) -> RangeRequest {
        self.by_creation(SortOrder::Ascend, 1)
    }

    fn by_creation(&self, order: SortOrder, limit: i64) -> RangeRequest {
        let (key, range_end) = KeyRange::prefix(self.prefix.clone()).to_wire();
        RangeRequest {
            key,
            range_end,
            limit,
            sort_order: order.into(),
            sort_target: SortTarget::Create.into(),
            ..Default::default()
        }
    }
}

/// What is in the queue before a place.
enum Ahead {
    Nobody,
    /// The one right before, which was there at `revision`.
    Of {
        predecessor: Bytes,
        revision: i64,
    },
    Unknown,
}

/// One place in a queue. Dropped while it still waits, it leaves the queue.
pub(super) struct Place<S: RecipeStore> {
    queue: Queue<S>,
    pub(super) key: Bytes,
    pub(super) create_revision: i64,
    ahead: Ahead,
    leave_on_drop: bool,
}

impl<S: RecipeStore> Place<S> {
    /// Waits until all earlier places are gone, then checks that this place still exists; answers with the header of that
    /// read, or with none when there was no earlier place. From then on the place stays when
    /// this value is dropped.
    ///
    /// On an error, and when dropped, the place is left.
    pub(super) async fn wait_for_turn(&mut self, gone: RecipeError) -> Result<Option<ResponseHeader>, RecipeError> {
        let mut waited = false;
        loop {
            match std::mem::replace(&mut self.ahead, Ahead::Unknown) {
                Ahead::Nobody => break,
                Ahead::Of { predecessor, revision } => {
                    (waited, self.leave_on_drop) = (true, true);
                    // Only the one right before: when it goes, the next look finds who is left. From the revision of
                    // the look itself, since nothing of that revision deleted it.
                    self.wait_until_deleted(predecessor, revision).await?;
                }
                Ahead::Unknown => self.ahead = self.look().await?,
            }
        }
        if !waited {
            self.leave_on_drop = false;
            return Ok(None);
        }
        let own = RangeRequest { key: self.key.clone(), ..Default::default() };
        let answer = self.queue.store.range(own).await?;
        self.leave_on_drop = false;
        if answer.kvs.first().is_none_or(|kv| kv.create_revision != self.create_revision) {
            return Err(gone);
        }
        Ok(Some(answer.header.unwrap_or_default()))
    }

    /// The place is not to be kept.
    pub(super) fn leave_when_dropped(&mut self) {
        self.leave_on_drop = true;
    }

    async fn look(&self) -> Result<Ahead, RecipeError> {
        let max_create_revision = self.create_revision - 1;
        let earlier = RangeRequest { max_create_revision, ..self.queue.by_creation(SortOrder::Descend, 1) };
        let answer = self.queue.store.range(earlier).await?;
        let revision = answer.header.unwrap_or_default().revision;
        let first = answer.kvs.into_iter().next();
        Ok(first.map_or(Ahead::Nobody, |kv| Ahead::Of { predecessor: kv.key, revision }))
    }

    async fn wait_until_deleted(&self, key: Bytes, start_revision: i64) -> Result<(), RecipeError> {
        let request = WatchCreateRequest { key, start_revision, ..Default::default() };
        let mut answers = self.queue.store.watch(request).await?;
        while let Some(answer) = answers.next().await {
            let answer = answer?;
            if answer.events.iter().any(is_delete) {
                return Ok(());
            }
            if answer.compact_revision != 0 {
                // Compacted between look and watch: look again.
                return Ok(());
            }
            if answer.canceled {
                return Err(RecipeError::WatchEnded(answer.cancel_reason));
            }
        }
        Err(RecipeError::LostWatcher)
    }
}

impl<S: RecipeStore> Drop for Place<S> {
    fn drop(&mut self) {
        if !self.leave_on_drop || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let store = self.queue.store.clone();
        let request = TxnRequest {
            compare: vec![Compare::created_at(self.key.clone(), self.create_revision)],
            success: vec![delete(self.key.clone())],
            failure: Vec::new(),
        };
        let stop = self.queue.tasks.stop_signal();
        self.queue.tasks.spawn(async move {
            let mut backoff = LEAVE_BACKOFF;
            for _ in 0..LEAVE_ATTEMPTS {
                match store.txn(request.clone()).await {
                    Err(status) if is_passing(&status) => debug!(%status, "waiter could not leave its queue yet"),
                    Err(status) => return debug!(%status, "waiter could not leave its queue"),
                    Ok(_) => return,
                }
                tokio::select! {
                    () = tokio::time::sleep(backoff.pause()) => {}
                    () = stop.cancelled() => return,
                }
            }
        });
    }
}

/// Whether a store that answers this may answer otherwise a moment later.
fn is_passing(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded | Code::Unknown)
}

/// The caller's lease, or a new one that is not kept alive.
pub(super) async fn lease_or_own<S: RecipeStore>(store: &S, lease: i64) -> Result<i64, RecipeError> {
    if lease != 0 {
        return Ok(lease);
    }
    Ok(store.lease_grant(LeaseGrantRequest { ttl: OWN_LEASE_TTL, id: 0 }).await?.id)
}

pub(super) fn put(key: Bytes, value: Bytes, lease: i64) -> RequestOp {
    let request = PutRequest { key, value, lease, ..Default::default() };
    RequestOp { request: Some(request_op::Request::RequestPut(request)) }
}

pub(super) fn delete(key: Bytes) -> RequestOp {
    let request = DeleteRangeRequest { key, ..Default::default() };
    RequestOp { request: Some(request_op::Request::RequestDeleteRange(request)) }
}

fn range(request: RangeRequest) -> RequestOp {
    RequestOp { request: Some(request_op::Request::RequestRange(request)) }
}

pub(super) fn is_delete(event: &Event) -> bool {
    event.r#type() == EventType::Delete
}

fn range_of(responses: &[ResponseOp], index: usize) -> Option<&RangeResponse> {
    match responses.get(index)?.response.as_ref()? {
        response_op::Response::ResponseRange(answer) => Some(answer),
        _ => None,
    }
}

/// Runs `work` no longer than the caller is willing to wait (`grpc-timeout`).
pub(super) async fn within_deadline<T>(
    metadata: &MetadataMap,
    work: impl Future<Output = Result<T, RecipeError>>,
) -> Result<T, RecipeError> {
    match deadline(metadata) {
        Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or(Err(RecipeError::Deadline)),
        None => work.await,
    }
}

fn deadline(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_follow_the_grpc_grammar() {
        let of = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().expect("ascii"));
            deadline(&metadata)
        };
        assert_eq!(of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(of("2S"), Some(Duration::from_secs(2)));
        for bad in ["", "S", "123456789S", "-1S", "1x", "1"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
