use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::error::Failure;
use super::lease_leader::{LeaderAccess, RENEW, RENEWALS_MAX, Renewal, ask, read_renewed, renewals_body};
use crate::api_error::ApiError;
use crate::types::LeaseId;

/// Groups of renewals that wait; when the queue is full, keep-alive streams wait before they take more requests.
const QUEUE_MAX: usize = 16 * 1024;
/// Groups taken at once.
const TAKEN_MAX: usize = 4096;
/// Batches in progress at once. While the leader is unknown they wait, and with them all renewals behind.
const BATCHES_MAX: usize = 8;

/// Batches the keep-alives of all streams of this member: a batch costs one confirmation of the leadership, and on a
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
    leases: Vec<LeaseId>,
    deadline: Instant,
    reply: oneshot::Sender<Result<Vec<Renewal>, Status>>,
}

impl Renewals {
    /// The queue, and what [`run`] takes from it.
    pub fn channel() -> (Self, RenewalsInlet) {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        (Self { queue }, RenewalsInlet(waiting))
    }

    /// Renews leases, no more than [`RENEWALS_MAX`], wherever the leader is; answers in their order. Dropping the
    /// future ends the waiting only.
    pub(super) async fn renew(&self, leases: &[LeaseId], deadline: Instant) -> Result<Vec<Renewal>, Status> {
        let (reply, renewals) = oneshot::channel();
        match timeout_at(deadline, self.queue.send(Waiting { leases: leases.to_vec(), deadline, reply })).await {
            Ok(Ok(())) => renewals.await.unwrap_or_else(|_| Err(ApiError::Stopped.into())),
            Ok(Err(_)) => Err(ApiError::Stopped.into()),
            Err(_) => Err(ApiError::Timeout.into()),
        }
    }
}

/// Serves renewals in batches until `stop`.
pub(super) async fn run<A: LeaderAccess>(access: Arc<A>, mut inlet: RenewalsInlet, stop: CancellationToken) {
    let mut waiting = Vec::new();
    let mut batches = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            taken = inlet.0.recv_many(&mut waiting, TAKEN_MAX), if batches.len() < BATCHES_MAX => {
                if taken == 0 {
                    return;
                }
                // The streams of these have ended.
                waiting.retain(|waiting| !waiting.reply.is_closed());
                for batch in split(&mut waiting) {
                    batches.push(serve(access.as_ref(), batch));
                }
            }
            Some(()) = batches.next() => {}
        }
    }
}

/// Takes groups in their order, as many together as one call may renew.
fn split(waiting: &mut Vec<Waiting>) -> Vec<Vec<Waiting>> {
    let mut batches: Vec<Vec<Waiting>> = Vec::new();
    let mut room = 0;
    for group in waiting.drain(..) {
        match batches.last_mut() {
            Some(batch) if group.leases.len() <= room => {
                room -= group.leases.len();
                batch.push(group);
            }
            _ => {
                room = RENEWALS_MAX.saturating_sub(group.leases.len());
                batches.push(vec![group]);
            }
        }
    }
    batches
}

async fn serve<A: LeaderAccess>(access: &A, batch: Vec<Waiting>) {
    let Some(deadline) = batch.first().map(|first| first.deadline) else { return };
    let leases = batch.iter().flat_map(|waiting| waiting.leases.iter().copied());
    let asked = batch.iter().map(|waiting| waiting.leases.len()).sum();
    let outcome = ask(access, RENEW, renewals_body(leases), deadline).await;
    match outcome.and_then(read_renewed).and_then(|renewals| complete(renewals, asked)) {
        Ok(renewals) => {
            let mut renewals = renewals.into_iter();
            for waiting in batch {
                let _ = waiting.reply.send(Ok(renewals.by_ref().take(waiting.leases.len()).collect()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_renews_more_than_it_may() {
        let group = |size: usize| {
            let (reply, _) = oneshot::channel();
            Waiting { leases: vec![LeaseId(1); size], deadline: Instant::now(), reply }
        };
        let sizes = |groups: &[usize]| -> Vec<Vec<usize>> {
            let mut waiting: Vec<_> = groups.iter().map(|&size| group(size)).collect();
            let batches = split(&mut waiting);
            batches.iter().map(|batch| batch.iter().map(|group| group.leases.len()).collect()).collect()
        };
        assert_eq!(sizes(&[]), Vec::<Vec<usize>>::new());
        assert_eq!(sizes(&[RENEWALS_MAX, 1]), [vec![RENEWALS_MAX], vec![1]]);
        assert_eq!(sizes(&[1, RENEWALS_MAX - 1]), [vec![1, RENEWALS_MAX - 1]]);
        assert_eq!(sizes(&[2, RENEWALS_MAX - 1, 1]), [vec![2], vec![RENEWALS_MAX - 1, 1]]);
        assert_eq!(sizes(&[0, 0]), [vec![0, 0]]);
    }
}
