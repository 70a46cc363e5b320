use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::super::history::{History, HistoryBatch, HistoryError, HistoryRequest};
use crate::types::Revision;

/// Cursors of one group that stand at the same revision: they need the same events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Spot {
    pub source: u32,
    pub group: u32,
    pub from: Revision,
}

/// Number of a read of history; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::eventlog) struct JobId(u64);

/// A read of history and the cursors that wait for it; each knows its slot there.
#[derive(Debug)]
struct Job {
    spot: Spot,
    waiting: Vec<u32>,
    /// Dropped with the job, which ends the read.
    _needed: Option<oneshot::Sender<Infallible>>,
}

/// A read of history that is to be carried out.
pub(in crate::eventlog) struct StartedRead {
    pub id: JobId,
    pub history: Arc<dyn History>,
    pub request: HistoryRequest,
    /// Ends when nobody waits for the read any more.
    pub abandoned: oneshot::Receiver<Infallible>,
}

/// Reads of history, those not yet started included.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    jobs: HashMap<JobId, Job>,
    at_spot: HashMap<Spot, JobId>,
    to_start: VecDeque<JobId>,
    last: u64,
}

impl Jobs {
    /// Has `cursor` wait for the read at `spot`; tells in which slot.
    pub fn wait(&mut self, spot: Spot, cursor: u32) -> u32 {
        let id = *self.at_spot.entry(spot).or_insert_with(|| {
            self.last += 1;
            self.to_start.push_back(JobId(self.last));
            JobId(self.last)
        });
        let job = self.jobs.entry(id).or_insert_with(|| Job { spot, waiting: Vec::new(), _needed: None });
        job.waiting.push(cursor);
        job.waiting.len() as u32 - 1
    }

    /// Stops the cursor in a slot from waiting; tells which cursor is in the slot now, if any. A read that nobody waits
    /// for is forgotten: its group may be gone by the time it ends.
    pub fn leave(&mut self, spot: Spot, slot: u32) -> Option<u32> {
        let id = *self.at_spot.get(&spot)?;
        let job = self.jobs.get_mut(&id)?;
        job.waiting.swap_remove(slot as usize);
        let moved = job.waiting.get(slot as usize).copied();
        if job.waiting.is_empty() {
            self.jobs.remove(&id);
            self.at_spot.remove(&spot);
        }
        moved
    }

    /// Who has waited for a read, and at which spot; none when nobody does any more.
    pub fn finish(&mut self, id: JobId) -> Option<(Spot, Vec<u32>)> {
        let job = self.jobs.remove(&id)?;
        self.at_spot.remove(&job.spot);
        Some((job.spot, job.waiting))
    }

    /// The read that has waited longest to be started, and what ends when nobody waits for it any more.
    pub fn next_to_start(&mut self) -> Option<(JobId, Spot, oneshot::Receiver<Infallible>)> {
        while let Some(id) = self.to_start.pop_front() {
            if let Some(job) = self.jobs.get_mut(&id) {
                let (needed, abandoned) = oneshot::channel();
                job._needed = Some(needed);
                return Some((id, job.spot, abandoned));
            }
        }
        None
    }
}

/// What a read of history gave.
pub(in crate::eventlog) type JobResult = Result<HistoryBatch, HistoryError>;
