use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use futures::StreamExt;
use parking_lot::Mutex;
use prost::Message;
use tokio_util::sync::CancellationToken;

use super::args::KeepAliveArgs;
use super::pace::Pace;
use super::record::Record;
use super::report::Measured;
use super::setup::{Setup, within};
use super::unary::Gate;
use super::wire::{CallError, Connection, Route, StreamReceiver, StreamSender, frame};
use super::{scan, threads};
use crate::pb::etcdserverpb::{LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseRevokeRequest};
use crate::shutdown::Tasks;

/// Grants and revokes under way on each thread.
const GRANTS: usize = 64;

/// Grants leases, renews them over streams, revokes them.
pub(super) fn run(setup: &Setup, args: &KeepAliveArgs) -> Result<Measured, CallError> {
    if args.leases < args.streams {
        let text = format!("--leases {} must not be below --streams {}", args.leases, args.streams);
        return Err(CallError(text));
    }
    let common = &setup.common;
    let pace = Arc::new(Pace::new(common.total, common.limit(), common.rate()));
    let done = Arc::new(AtomicU64::new(0));
    let stop = CancellationToken::new();
    let (start_gate, end_gate) = (Gate::new(common.threads as usize), Gate::new(common.threads as usize));
    let run = Run { setup, args, pace: &pace, done: &done, start_gate: &start_gate, end_gate: &end_gate };
    let (parts, timeline) = threads::run(
        common.threads,
        |thread, tasks| {
            let (run, stop) = (&run, &stop);
            async move {
                let outcome = run.renew(thread, &tasks).await;
                if outcome.is_err() {
                    run.start_gate.open();
                    run.end_gate.open();
                    stop.cancel();
                }
                outcome
            }
        },
        || {
            start_gate.wait_aside();
            setup.meter.begin();
            pace.drive(args.streams as usize, &stop);
            if pace.wait_for_limit(&stop) {
                setup.meter.end();
            }
        },
        &stop,
        pace.total(),
        || done.load(Ordering::Relaxed),
        common.json,
    )?;
    let mut record = Record::default();
    let mut last = pace.start();
    for (part, end) in &parts {
        record.merge(part);
        last = last.max(*end);
    }
    let elapsed = pace.elapsed(last);
    Ok(Measured { record, elapsed, offered: common.rate(), delivery: None, timeline })
}

struct Run<'a> {
    setup: &'a Setup,
    args: &'a KeepAliveArgs,
    pace: &'a Arc<Pace>,
    done: &'a Arc<AtomicU64>,
    start_gate: &'a Gate,
    /// Opens when the last stream has ended: leases that are revoked before would be charged to the renewals.
    end_gate: &'a Gate,
}

impl Run<'_> {
    async fn renew(&self, thread: u32, tasks: &Tasks) -> Result<(Record, Instant), CallError> {
        let connections: Vec<Arc<Connection>> =
            self.setup.connect(thread, tasks).await?.into_iter().map(Arc::new).collect();
        let threads = self.setup.common.threads as usize;
        let mine: Vec<u32> = (thread..self.args.streams).step_by(threads).collect();
        let mut streams = Vec::new();
        for stream in &mine {
            let count = (*stream..self.args.leases).step_by(self.args.streams as usize).count();
            streams.push(self.grant(&connections[0], count).await?);
        }
        self.start_gate.wait();
        self.setup.meter.begin();
        let record = Arc::new(Mutex::new(Record::default()));
        let renewals: Vec<_> = streams
            .iter()
            .enumerate()
            .map(|(number, leases)| {
                let stream = Stream {
                    connection: connections[number % connections.len()].clone(),
                    leases: leases.clone(),
                    in_flight_max: (self.args.in_flight as usize).min(leases.len()),
                    pace: self.pace.clone(),
                    done: self.done.clone(),
                    record: record.clone(),
                    patience: self.setup.common.request_timeout.0,
                };
                tasks.spawn(stream.run())
            })
            .collect();
        futures::future::join_all(renewals).await;
        let end = Instant::now();
        self.end_gate.wait();
        self.setup.meter.end();
        self.revoke(&connections[0], streams.concat()).await;
        let record = std::mem::take(&mut *record.lock());
        Ok((record, end))
    }

    async fn grant(&self, connection: &Connection, count: usize) -> Result<Vec<i64>, CallError> {
        let request = frame(&LeaseGrantRequest { ttl: self.args.ttl, id: 0 });
        let grants = (0..count).map(|_| {
            let call = within(&self.setup.common, connection.unary(Route::LeaseGrant, request.clone()));
            async {
                let answer = LeaseGrantResponse::decode(call.await?);
                Ok(answer.map_err(|error| CallError(format!("grant lease: {error}")))?.id)
            }
        });
        let granted: Vec<Result<i64, CallError>> =
            futures::stream::iter(grants).buffer_unordered(GRANTS).collect().await;
        granted.into_iter().collect()
    }

    /// Leases that could not be revoked expire.
    async fn revoke(&self, connection: &Connection, leases: Vec<i64>) {
        let revokes = leases.into_iter().map(|id| {
            let request = frame(&LeaseRevokeRequest { id });
            within(&self.setup.common, connection.unary(Route::LeaseRevoke, request))
        });
        futures::stream::iter(revokes).buffer_unordered(GRANTS).for_each(|_| async {}).await;
    }
}

/// One keep-alive stream and the leases it renews in turns.
struct Stream {
    connection: Arc<Connection>,
    leases: Vec<i64>,
    in_flight_max: usize,
    pace: Arc<Pace>,
    done: Arc<AtomicU64>,
    record: Arc<Mutex<Record>>,
    /// How long all answers may stay away.
    patience: std::time::Duration,
}

impl Stream {
    async fn run(self) {
        let mut in_flight = HashMap::with_capacity(self.in_flight_max);
        let outcome = match self.connection.stream(Route::LeaseKeepAlive).await {
            Ok((sender, receiver)) => self.exchange(sender, receiver, &mut in_flight).await,
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            // What was in flight on the stream failed with it.
            let is_late = self.pace.is_over(Instant::now());
            let mut record = self.record.lock();
            (0..in_flight.len().max(1)).for_each(|_| {
                record.failed(&error);
                if is_late {
                    record.was_late(false);
                }
            });
        }
    }

    async fn exchange(
        &self,
        mut sender: StreamSender,
        mut receiver: StreamReceiver,
        in_flight: &mut HashMap<i64, Instant>,
    ) -> Result<(), CallError> {
        let mut turn = self.leases.iter().cycle();
        let mut more = true;
        while more || !in_flight.is_empty() {
            // Both branches only wait: a ticket is taken in the moment it is there, bytes of an answer stay in the
            // receiver.
            tokio::select! {
                ticket = self.pace.take(), if more && in_flight.len() < self.in_flight_max => match ticket {
                    None => more = false,
                    Some(ticket) => {
                        // There are at least as many leases as renewals under way, so one of them is free.
                        let Some(&id) = turn.find(|id| !in_flight.contains_key(id)) else { continue };
                        sender.send(frame(&LeaseKeepAliveRequest { id }))?;
                        in_flight.insert(id, ticket.from);
                    }
                },
                answer = tokio::time::timeout(self.patience, receiver.message()), if !in_flight.is_empty() => {
                    let answer = answer.map_err(|_| CallError(format!("no answer within {:?}", self.patience)))??;
                    let answer = scan::keep_alive_answer(&answer);
                    let (id, ttl) = answer.ok_or_else(|| CallError("keep-alive answer is not understood".into()))?;
                    self.take_note(in_flight.remove(&id), ttl);
                }
            }
        }
        Ok(())
    }

    fn take_note(&self, sent: Option<Instant>, ttl: i64) {
        let now = Instant::now();
        let mut record = self.record.lock();
        match sent {
            None => record.failed(&CallError("answer for a lease that was not asked about".into())),
            Some(_) if ttl <= 0 => record.failed(&CallError("lease is gone".into())),
            Some(sent) => record.answered(now.duration_since(sent)),
        }
        if self.pace.is_over(now) {
            record.was_late(sent.is_some() && ttl > 0);
        }
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}
