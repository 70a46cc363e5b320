//! Faults that a test plants into the drivers, to show that the checks of the simulator can fail. Only debug builds know them.

/// A fault in a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlantedFault {
    /// The WAL writer reports a group before it is on disk.
    ReportBeforeSync,
    /// The only voter counts reads as local before its log is applied.
    ReadsLocalBeforeReplay,
    /// The only voter counts reads as local although there is a learner.
    ReadsLocalWithLearner,
    /// Apply goes on with the compactions of the old state after a snapshot replaced it.
    CompactionOverSnapshot,
    /// A member that was removed may connect.
    RemovedPeersAccepted,
    /// A member that is in no list yet may not connect.
    UnlistedPeersRefused,
    /// Hashes of states that were compacted at different revisions are compared.
    ComparesAcrossCompactions,
}

#[cfg(debug_assertions)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<PlantedFault>> = const { std::cell::Cell::new(None) };
}

/// Plants a fault into every driver that this thread calls from now on; `None` removes it.
#[cfg(debug_assertions)]
pub fn plant(fault: Option<PlantedFault>) {
    PLANTED.set(fault);
}

/// Whether this thread's drivers have the fault.
#[cfg(debug_assertions)]
pub(crate) fn is_planted(fault: PlantedFault) -> bool {
    PLANTED.get() == Some(fault)
}

/// Plants nothing: a release build has no faults to plant.
#[cfg(not(debug_assertions))]
pub const fn plant(_: Option<PlantedFault>) {}

#[cfg(not(debug_assertions))]
pub(crate) const fn is_planted(_: PlantedFault) -> bool {
    false
}
