use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tonic::Status;

use super::error::RecipeError;
use super::queue::{Queue, is_delete};
use super::store::RecipeStore;
use crate::pb::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchResponse};
use crate::pb::mvccpb::KeyValue;
use crate::pb::v3electionpb::LeaderResponse;
use crate::shutdown::Tasks;
use crate::types::KeyRange;

/// Leaders that are read before the client takes them; beyond, the task waits.
const LEADERS_AHEAD: usize = 1;

/// The current leader, then every value it proclaims, then the next leader, for as long as the client listens.
///
/// A task of its own reads the store: a client that takes no answers stops the stream, and a request that is stopped halfway holds
/// what the store gave it, as a turn to send it.
pub(super) fn leaders<S: RecipeStore>(
    queue: Queue<S>,
    tasks: &Tasks,
) -> impl Stream<Item = Result<LeaderResponse, Status>> + Send + 'static + use<S> {
    let (leaders, receiver) = mpsc::channel(LEADERS_AHEAD);
    let stop = tasks.stop_signal();
    tasks.spawn(async move {
        let observer = Observer { queue, step: Step::Look };
        tokio::select! {
            () = observer.run(&leaders) => {}
            () = leaders.closed() => {}
            () = stop.cancelled() => {}
        }
    });
    stream::unfold(Some(receiver), |receiver| async {
        let mut receiver = receiver?;
        // Without an error the task ends only when everything does.
        match receiver.recv().await.unwrap_or(Err(RecipeError::Stopped)) {
            Ok(leader) => Some((Ok(leader), Some(receiver))),
            // The error is the last item.
            Err(error) => Some((Err(error.into()), None)),
        }
    })
}

struct Observer<S: RecipeStore> {
    queue: Queue<S>,
    step: Step<S::Watch>,
}

enum Step<W> {
    /// Read the current leader.
    Look,
    /// There is no leader: the first put under the prefix makes one.
    Await(W),
    /// Watch this leader's key from here on.
    Watch { key: Bytes, start_revision: i64 },
    /// Events of the leader's key; `pending` is what is left of one answer, in reverse.
    Follow { watch: W, pending: Vec<LeaderResponse>, deleted: bool },
}

impl<S: RecipeStore> Observer<S> {
    /// Sends what the client is told, until an error or until nobody listens.
    async fn run(mut self, leaders: &mpsc::Sender<Result<LeaderResponse, RecipeError>>) {
        loop {
            let next = self.next().await;
            let is_last = next.is_err();
            if leaders.send(next).await.is_err() || is_last {
                return;
            }
        }
    }

    async fn next(&mut self) -> Result<LeaderResponse, RecipeError> {
        loop {
            match &mut self.step {
                Step::Look => {
                    if let Some(leader) = self.look().await? {
                        return Ok(leader);
                    }
                }
                Step::Await(watch) => {
                    let answer = next_answer(watch).await?;
                    let Some((header, events)) = answer else {
                        self.step = Step::Look;
                        continue;
                    };
                    let put = events.into_iter().find(|event| !is_delete(event)).and_then(|event| event.kv);
                    if let Some(kv) = put {
                        let header = ResponseHeader { revision: kv.mod_revision, ..header };
                        return Ok(self.follow(header, kv));
                    }
                }
                Step::Watch { key, start_revision } => {
                    let request =
                        WatchCreateRequest { key: key.clone(), start_revision: *start_revision, ..Default::default() };
                    let watch = self.queue.store.watch(request).await?;
                    self.step = Step::Follow { watch, pending: Vec::new(), deleted: false };
                }
                Step::Follow { watch, pending, deleted } => {
                    if let Some(leader) = pending.pop() {
                        return Ok(leader);
                    }
                    let answer = if *deleted { None } else { next_answer(watch).await? };
                    let Some((header, events)) = answer else {
                        self.step = Step::Look;
                        continue;
                    };
                    let puts = events.iter().take_while(|event| !is_delete(event));
                    pending.extend(puts.map(|put| LeaderResponse { header: Some(header), kv: put.kv.clone() }));
                    pending.reverse();
                    *deleted = events.iter().any(is_delete);
                }
            }
        }
    }

    async fn look(&mut self) -> Result<Option<LeaderResponse>, RecipeError> {
        let answer = self.queue.store.range(self.queue.first_range()).await?;
        let header = answer.header.unwrap_or_default();
        if let Some(kv) = answer.kvs.into_iter().next() {
            return Ok(Some(self.follow(header, kv)));
        }
        let (key, range_end) = KeyRange::prefix(self.queue.prefix.clone()).to_wire();
        let request = WatchCreateRequest { key, range_end, start_revision: header.revision, ..Default::default() };
        self.step = Step::Await(self.queue.store.watch(request).await?);
        Ok(None)
    }

    fn follow(&mut self, header: ResponseHeader, kv: KeyValue) -> LeaderResponse {
        self.step = Step::Watch { key: kv.key.clone(), start_revision: header.revision + 1 };
        LeaderResponse { header: Some(header), kv: Some(kv) }
    }
}

/// The next answer of a watch; none when history is compacted past it, and one has to look again.
async fn next_answer(
    watch: &mut (impl Stream<Item = Result<WatchResponse, Status>> + Unpin),
) -> Result<Option<(ResponseHeader, Vec<crate::pb::mvccpb::Event>)>, RecipeError> {
    let answer = watch.next().await.ok_or(RecipeError::LostWatcher)??;
    if answer.compact_revision != 0 {
        return Ok(None);
    }
    if answer.canceled {
        return Err(RecipeError::WatchEnded(answer.cancel_reason));
    }
    Ok(Some((answer.header.unwrap_or_default(), answer.events)))
}
