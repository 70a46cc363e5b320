use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::error::Failure;
use super::lease_leader::{Around, RENEW, RENEWALS_MAX, Renewal, ask, read_renewed, renewals_body};
use crate::api_error::ApiError;
use crate::types::LeaseId;

/// Renewals that wait for their turn; when it is full, keep-alive streams wait before they take the next request.
const QUEUE_MAX: usize = 16 * 1024;
/// Batches under way at once. While the leader is unknown they wait, and with them all renewals behind.
const BATCHES_MAX: usize = 8;

/// Where keep-alives of all streams of this member meet: one batch costs one confirmation of the leadership, and on a
/// follower one call to the leader.
#[derive(Clone, Debug)]
pub struct Renewals {
    queue: mpsc::Sender<Waiting>,
}

/// What [`Renewals::channel`] sets up before [`run`].
#[derive(Debug)]
pub struct RenewalsInlet(mpsc::Receiver<Waiting>);

#[derive(Debug)]
struct Waiting {
    lease: LeaseId,
    deadline: Instant,
    reply: oneshot::Sender<Result<Renewal, Status>>,
}

impl Renewals {
    /// The way in, and the inlet to run.
    pub fn channel() -> (Self, RenewalsInlet) {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        (Self { queue }, RenewalsInlet(waiting))
    }

    /// Renews a lease, wherever the leader is. Dropping the future ends the waiting only.
    pub(super) async fn renew(&self, lease: LeaseId, deadline: Instant) -> Result<Renewal, Status> {
        let (reply, renewal) = oneshot::channel();
        match timeout_at(deadline, self.queue.send(Waiting { lease, deadline, reply })).await {
            Ok(Ok(())) => renewal.await.unwrap_or_else(|_| Err(ApiError::Stopped.into())),
            Ok(Err(_)) => Err(ApiError::Stopped.into()),
            Err(_) => Err(ApiError::Timeout.into()),
        }
    }
}

/// Serves renewals in batches until `stop`.
pub(super) async fn run<A: Around>(around: Arc<A>, mut inlet: RenewalsInlet, stop: CancellationToken) {
    let mut waiting = Vec::new();
    let mut batches = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            taken = inlet.0.recv_many(&mut waiting, RENEWALS_MAX), if batches.len() < BATCHES_MAX => {
                if taken == 0 {
                    return;
                }
                batches.push(serve(around.as_ref(), std::mem::take(&mut waiting)));
            }
            Some(()) = batches.next() => {}
        }
    }
}

async fn serve<A: Around>(around: &A, mut batch: Vec<Waiting>) {
    // Those whose stream has ended meanwhile want nothing any more.
    batch.retain(|waiting| !waiting.reply.is_closed());
    let Some(deadline) = batch.first().map(|first| first.deadline) else { return };
    let outcome = ask(around, RENEW, renewals_body(batch.iter().map(|waiting| waiting.lease)), deadline).await;
    match outcome.and_then(read_renewed).and_then(|renewals| complete(renewals, batch.len())) {
        Ok(renewals) => {
            for (waiting, renewal) in batch.into_iter().zip(renewals) {
                let _ = waiting.reply.send(Ok(renewal));
            }
        }
        Err(failure) => {
            let status = Status::from(failure);
            for waiting in batch {
                let _ = waiting.reply.send(Err(status.clone()));
            }
        }
    }
}

fn complete(renewals: Vec<Renewal>, asked: usize) -> Result<Vec<Renewal>, Failure> {
    if renewals.len() == asked { Ok(renewals) } else { Err(Failure::Other("the leader left renewals out".to_owned())) }
}
