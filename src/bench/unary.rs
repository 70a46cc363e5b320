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
    let (start_gate, end_gate) = (Gate::new(setup.common.threads as usize), Gate::new(setup.common.threads as usize));
    let callers = job.clients as usize;
    let (pace_ref, stop_ref, gate_ref, end_ref, done_ref) = (&pace, &stop, &start_gate, &end_gate, &done);
    let (records, timeline) = threads::run(
        setup.common.threads,
        |thread, tasks| async move {
            let part = async {
                let connections = setup.connect(thread, &tasks).await?;
                gate_ref.wait();
                setup.meter.begin();
                let share = share(job.clients, setup.common.threads, thread);
                let part = clients(setup, job.source.clone(), connections, share, pace_ref, done_ref, &tasks).await;
                end_ref.wait();
                setup.meter.end();
                Ok(part)
            };
            let outcome = part.await;
            if outcome.is_err() {
                gate_ref.open();
                end_ref.open();
                stop_ref.cancel();
            }
            outcome
        },
        || {
            gate_ref.wait_aside();
            setup.meter.begin();
            pace_ref.drive(callers, stop_ref);
            if pace_ref.wait_for_limit(stop_ref) {
                setup.meter.end();
            }
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
    let elapsed = pace.elapsed(last);
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
                    // It may take that long from the time at which it was due. One that waited longer for a caller is not
                    // sent, or a run at a rate would go on for one timeout after the other.
                    let answer = match timeout.checked_sub(ticket.from.elapsed()) {
                        Some(left) => tokio::time::timeout(left, connection.unary(route, frame)).await.ok(),
                        None => None,
                    };
                    let (ended, is_well) = (Instant::now(), matches!(answer, Some(Ok(_))));
                    source.ended(ticket.index, is_well);
                    let mut record = record.lock();
                    match answer {
                        Some(Ok(_)) => record.answered(ended.duration_since(ticket.from)),
                        Some(Err(error)) => record.failed(&error),
                        None => record.failed(&CallError(format!("no answer within {timeout:?}"))),
                    }
                    if pace.is_over(ended) {
                        record.was_late(is_well);
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

/// Lets all threads go on together: begin once each has its connections, tear down once no caller is left.
pub(super) struct Gate {
    missing: Mutex<usize>,
    open: parking_lot::Condvar,
}

impl Gate {
    pub(super) fn new(threads: usize) -> Self {
        Self { missing: Mutex::new(threads), open: parking_lot::Condvar::new() }
    }

    /// Counts this thread as ready and waits for the others. Blocks the thread: nothing runs on it but idle
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
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use super::super::args::{self, Action, Load};
    use super::super::requests::Puts;
    use super::super::wire::frame;
    use super::*;
    use crate::client::testing::{FakeMember, Reply};
    use crate::pb::etcdserverpb::PutResponse;

    /// Puts with these flags on a member that never answers the first one.
    fn with_one_unanswered(member: &FakeMember, flags: &str) -> Measured {
        let line = format!("bench put --endpoints={} {flags}", member.endpoint);
        let bench = args::read(line.split_whitespace());
        let Ok(Action::Load(Load::Put(args))) = bench.map(|bench| bench.action) else { panic!("{line}") };
        let setup = Setup::prepare(&args.common).unwrap();
        run(&setup, &Job::new(&args.common, Puts::new(&args).unwrap())).unwrap()
    }

    async fn swallows_one() -> FakeMember {
        let was_asked = AtomicBool::new(false);
        FakeMember::start(move |_| match was_asked.swap(true, Ordering::Relaxed) {
            false => Reply::Never,
            true => Reply::Message(frame(&PutResponse::default()).to_vec()),
        })
        .await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn one_unanswered_call_does_not_divide_the_throughput() {
        // The run was as long as the call waited: answers of 3 s were divided by 33 s.
        let member = swallows_one().await;
        let flags = "--clients=2 --duration=500ms --request-timeout=1500ms";
        let measured = with_one_unanswered(&member, flags);
        assert_eq!(measured.elapsed, Duration::from_millis(500));
        assert!(measured.record.answers() > measured.record.late().answers, "{:?}", measured.record.late());
        assert_eq!(measured.record.errors().values().sum::<u64>(), 1);
        assert_eq!(measured.record.late().errors, 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn every_request_that_is_due_is_answered_or_failed() {
        // The one caller waits for the first call, until all others are due; they were dropped after the limit.
        let member = swallows_one().await;
        let flags = "--clients=1 --rate=200 --duration=250ms --request-timeout=1s";
        let measured = with_one_unanswered(&member, flags);
        let errors = measured.record.errors().values().sum::<u64>();
        assert_eq!(measured.record.answers() + errors, 50);
        assert!(errors >= 1, "{:?}", measured.record.errors());
        assert_eq!(measured.record.late().answers, measured.record.answers());
        assert_eq!(measured.elapsed, Duration::from_millis(250));
    }

    #[test]
    fn callers_are_shared_out_without_loss() {
        for (all, threads) in [(64, 2), (5, 3), (1, 4)] {
            assert_eq!((0..threads).map(|thread| share(all, threads, thread)).sum::<u32>(), all);
        }
    }
}
