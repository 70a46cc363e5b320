use std::time::Instant;

use super::planted::{PlantedFault, is_planted};
use super::step::PersistGroup;
use crate::core::wal::{HardState, Wal, WalDisk, WalError, WalSnapshot};
use crate::telemetry::DiskMetrics;

/// The log could not be written; the member must stop, nothing is retried.
#[derive(Debug, thiserror::Error)]
#[error("write-ahead log")]
pub struct PersistError(#[from] WalError);

/// What is to be written to the log.
#[derive(Debug)]
pub enum WalJob {
    /// Entries and state; their number is reported once they are durable.
    Group(PersistGroup),
    /// A hard state whose durability is not reported.
    HardState(HardState),
    /// The state on disk covers the log up to here: segments before it can go.
    Covered(WalSnapshot),
}

/// Writes to the log, without the thread that does so: which step follows which.
///
/// Invariants: a group is reported after the sync that makes it durable, and before segments are deleted, so that the
/// report does not wait for that. Jobs become durable in the order in which they are given. After an error nothing is written.
pub struct WalDriver<D: WalDisk> {
    wal: Wal<D>,
    /// Whole segments that are kept whatever the state on disk covers.
    segments_min: usize,
    metrics: DiskMetrics,
}

impl<D: WalDisk> WalDriver<D> {
    /// Takes over an open log.
    pub fn new(wal: Wal<D>, segments_min: usize, metrics: DiskMetrics) -> Self {
        Self { wal, segments_min, metrics }
    }

    /// Makes jobs durable with one sync, calls `report` with the number of the newest group, and deletes segments.
    ///
    /// # Errors
    /// The disk refuses. What was reported before is durable all the same.
    pub fn write(
        &mut self,
        jobs: impl IntoIterator<Item = WalJob>,
        mut report: impl FnMut(u64),
    ) -> Result<(), PersistError> {
        let written_before = self.wal.written_bytes();
        let (mut newest, mut covered) = (None, None);
        for job in jobs {
            match job {
                WalJob::Group(group) => {
                    if let Some(snapshot) = &group.snapshot {
                        self.mark_snapshot(snapshot)?;
                    }
                    self.wal.append(&group.entries, group.hard_state.as_ref())?;
                    newest = Some(group.number);
                }
                WalJob::HardState(state) => self.wal.append(&[], Some(&state))?,
                WalJob::Covered(snapshot) => {
                    self.mark_snapshot(&snapshot)?;
                    covered = Some(snapshot.index);
                }
            }
        }
        if is_planted(PlantedFault::ReportBeforeSync) {
            newest.into_iter().for_each(&mut report);
        }
        self.sync(written_before)?;
        fail::fail_point!("raftAfterSave");
        newest.into_iter().for_each(&mut report);
        Ok(covered.map_or(Ok(()), |upto| self.wal.release(upto, self.segments_min))?)
    }

    fn sync(&mut self, written_before: u64) -> Result<(), PersistError> {
        let began = Instant::now();
        self.wal.write()?;
        let written = Instant::now();
        self.wal.sync()?;
        self.metrics.wal_write.observe((written - began).as_secs_f64());
        self.metrics.wal_fsync.observe(written.elapsed().as_secs_f64());
        self.metrics.wal_write_bytes.add((self.wal.written_bytes() - written_before) as i64);
        Ok(())
    }

    fn mark_snapshot(&mut self, snapshot: &WalSnapshot) -> Result<(), PersistError> {
        let began = Instant::now();
        self.wal.mark_snapshot(snapshot)?;
        self.metrics.snap_fsync.observe(began.elapsed().as_secs_f64());
        Ok(())
    }
}
