use std::sync::atomic::{AtomicU8, Ordering};

/// What an endpoint with a ready connection is good for, as its health checks show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Standing {
    /// Takes any request.
    #[default]
    Full,
    /// Knows no leader, so that what needs a quorum waits there. Gets requests only while no other endpoint is ready.
    NoLeader,
    /// Says that it does not serve: a member that is being defragmented, a proxy without its cluster. The same.
    NotServing,
    /// Owes the answer to a health check, but not yet for so long that its connections are cut. The same.
    Late,
    /// Refuses everything but serializable reads and its own status. Gets those while no other endpoint is ready, and
    /// nothing else unless it is the only endpoint.
    Learner,
}

impl Standing {
    const ALL: [Self; 5] = [Self::Full, Self::NoLeader, Self::NotServing, Self::Late, Self::Learner];

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Full => "serves all requests",
            Self::NoLeader => "knows no leader",
            Self::NotServing => "says that it does not serve",
            Self::Late => "does not answer a health check in time",
            Self::Learner => "is a learner",
        }
    }
}

/// The standing of an endpoint, read for each request.
#[derive(Debug, Default)]
pub(super) struct StandingCell(AtomicU8);

impl StandingCell {
    pub(super) fn get(&self) -> Standing {
        Standing::ALL[usize::from(self.0.load(Ordering::Relaxed)) % Standing::ALL.len()]
    }

    /// The standing before.
    pub(super) fn replace(&self, standing: Standing) -> Standing {
        Standing::ALL[usize::from(self.0.swap(standing as u8, Ordering::Relaxed)) % Standing::ALL.len()]
    }
}
