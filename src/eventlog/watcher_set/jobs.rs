use std::collections::{HashMap, VecDeque};

use super::super::history::{HistoryBatch, HistoryError};
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

/// A read of history and the cursors that wait for it.
#[derive(Debug)]
pub(super) struct Job {
    pub spot: Spot,
    pub waiting: Vec<u32>,
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
    pub fn wait(&mut self, spot: Spot, cursor: u32) {
        let id = *self.at_spot.entry(spot).or_insert_with(|| {
            self.last += 1;
            let id = JobId(self.last);
            self.jobs.insert(id, Job { spot, waiting: Vec::new() });
            self.to_start.push_back(id);
            id
        });
        if let Some(job) = self.jobs.get_mut(&id) {
            job.waiting.push(cursor);
        }
    }

    /// Stops `cursor` from waiting. A read that nobody waits for is forgotten: its group may be gone by the time it
    /// ends.
    pub fn leave(&mut self, cursor: u32, from: Revision, source: u32, group: u32) {
        let spot = Spot { source, group, from };
        let Some(&id) = self.at_spot.get(&spot) else { return };
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.waiting.retain(|&other| other != cursor);
        if job.waiting.is_empty() {
            self.jobs.remove(&id);
            self.at_spot.remove(&spot);
        }
    }

    pub fn finish(&mut self, id: JobId) -> Option<Job> {
        let job = self.jobs.remove(&id)?;
        self.at_spot.remove(&job.spot);
        Some(job)
    }

    pub fn next_to_start(&mut self) -> Option<(JobId, Spot)> {
        while let Some(id) = self.to_start.pop_front() {
            if let Some(job) = self.jobs.get(&id) {
                return Some((id, job.spot));
            }
        }
        None
    }
}

/// What a read of history gave.
pub(in crate::eventlog) type JobResult = Result<HistoryBatch, HistoryError>;
