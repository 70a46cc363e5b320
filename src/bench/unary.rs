use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::pace::Pace;
use super::record::Record;
use super::report::Measured;
use super::requests::{Job, Source};
use super::setup::Setup;
use super::threads;
use super::wire::{CallError, Connection};
use crate::shutdown::Tasks;

/// Sends single requests from many callers and measures each.
pub(super) fn run(setup: &Setup, job: &Job) -> Result<Measured, CallError> {
    let pace = Arc::new(Pace::new(job.total, job.limit, job.rate));
    let done = Arc::new(AtomicU64::new(0));
    let stop = CancellationToken::new();
    let start_gate = StartGate::new(setup.common.threads as usize);
    let callers = job.clients as usize;
    let (pace_ref, stop_ref, gate_ref, done_ref) = (&pace, &stop, &start_gate, &done);
    let (records, timeline) = threads::run(
        setup.common.threads,
        |thread, tasks| async move {
            let part = async {
                let connections = setup.connect(thread, &tasks).await?;
                gate_ref.wait();
                let share = share(job.clients, setup.common.threads, thread);
                Ok(clients(setup, job.source.clone(), connections, share, pace_ref, done_ref, &tasks).await)
            };
            let outcome = part.await;
            if outcome.is_err() {
                gate_ref.open();
                stop_ref.cancel();
            }
            outcome
        },
        || {
            gate_ref.wait_aside();
            pace_ref.drive(callers, stop_ref);
        },
        &stop,
        pace.total(),
        || done.load(Ordering::Relaxed),
        setup.common.json,
    )?;
    let mut whole = Record::default();
    let mut last = pace.start();
    for (record, end) in &records {
        whole.merge(record);
        last = last.max(*end);
    }
    let elapsed = last.duration_since(pace.start());
    Ok(Measured { record: whole, elapsed, offered: job.rate, delivery: None, timeline })
}

/// Of `all` callers, those that run on thread number `thread`.
pub(super) fn share(all: u32, threads: u32, thread: u32) -> u32 {
    all / threads + u32::from(thread < all % threads)
}

/// Runs the callers of one thread until the pace has no more for them.
pub(super) async fn clients(
    setup: &Setup,
    source: Arc<dyn Source>,
    connections: Vec<Connection>,
    clients: u32,
    pace: &Arc<Pace>,
    done: &Arc<AtomicU64>,
    tasks: &Tasks,
) -> (Record, Instant) {
    let record = Arc::new(Mutex::new(Record::default()));
    let connections: Vec<Arc<Connection>> = connections.into_iter().map(Arc::new).collect();
    let callers: Vec<_> = (0..clients as usize)
        .map(|client| {
            let connection = connections[client % connections.len()].clone();
            let (source, pace, done) = (source.clone(), pace.clone(), done.clone());
            let (record, timeout) = (record.clone(), setup.common.request_timeout.0);
            tasks.spawn(async move {
                let mut random = fastrand::Rng::new();
                while let Some(ticket) = pace.take().await {
                    let (route, frame) = source.request(ticket.index, &mut random);
                    let answer = tokio::time::timeout(timeout, connection.unary(route, frame)).await;
                    let latency = ticket.from.elapsed();
                    source.ended(ticket.index, matches!(answer, Ok(Ok(_))));
                    let mut record = record.lock();
                    match answer {
                        Ok(Ok(_)) => record.answered(latency),
                        Ok(Err(error)) => record.failed(&error),
                        Err(_) => record.failed(&CallError(format!("no answer within {timeout:?}"))),
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                    // One error of a kind is enough.
                    if connection.is_given_up() {
                        break;
                    }
                }
            })
        })
        .collect();
    futures::future::join_all(callers).await;
    let record = std::mem::take(&mut *record.lock());
    (record, Instant::now())
}

/// Lets all threads begin together, once each has its connections.
pub(super) struct StartGate {
    missing: Mutex<usize>,
    open: parking_lot::Condvar,
}

impl StartGate {
    pub(super) fn new(threads: usize) -> Self {
        Self { missing: Mutex::new(threads), open: parking_lot::Condvar::new() }
    }

    /// Counts this thread as ready and waits for the others. Blocks the thread: nothing runs on it yet but idle
    /// connections.
    pub(super) fn wait(&self) {
        self.arrive();
        self.wait_aside();
    }

    /// Counts this thread as ready and goes on.
    pub(super) fn arrive(&self) {
        let mut missing = self.missing.lock();
        *missing = missing.saturating_sub(1);
        if *missing == 0 {
            self.open.notify_all();
        }
    }

    /// Waits without being counted.
    pub(super) fn wait_aside(&self) {
        let mut missing = self.missing.lock();
        while *missing > 0 {
            self.open.wait(&mut missing);
        }
    }

    /// Opens for all threads, even if some have not arrived.
    pub(super) fn open(&self) {
        *self.missing.lock() = 0;
        self.open.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_shared_out_without_loss() {
        for (all, threads) in [(64, 2), (5, 3), (1, 4)] {
            assert_eq!((0..threads).map(|thread| share(all, threads, thread)).sum::<u32>(), all);
        }
    }
}
