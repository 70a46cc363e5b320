use std::fmt;

/// The promise that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The history itself is impossible: a client with two operations at once, an answer before its request.
    Recording,
    /// An operation shows less than what was visible before it began.
    RealTime,
    /// Two writes carry one revision, or a write carries the revision of a read.
    RevisionReused,
    /// An answer differs from what the store holds at the revision it names.
    WrongAnswer,
    /// A revision exists that no operation can have made.
    Unexplained,
    /// The search was given up: too many orders are possible.
    Undecided,
    /// A read below the compacted revision was answered, or refused without a compaction.
    Compaction,
    /// Watch: revisions do not ascend.
    Ordered,
    /// Watch: an event came twice.
    Unique,
    /// Watch: an event is missing.
    Reliable,
    /// Watch: the events of one revision came in several answers without fragments being asked for.
    Atomic,
    /// Watch: an event right after the resumed revision is missing.
    Resumable,
    /// Watch: progress was ahead of the events, or went back.
    Bookmarkable,
    /// Watch: an event that was not asked for.
    Filter,
    /// Watch: an event differs from what happened.
    Content,
    /// Watch: the previous key-value is wrong or missing.
    PreviousKv,
    /// Watch: a creation that is none, or the other way round.
    IsCreate,
    /// Watch: it was cancelled without reason, or went on after its end.
    Cancelled,
    /// Lease: it ended before its time.
    EarlyExpiry,
    /// Lease: it was kept alive or used after its end.
    AfterEnd,
    /// Members differ at one revision.
    EndState,
}

/// A broken promise, with the evidence in words.
#[derive(Clone, Debug)]
pub struct Violation {
    /// What was broken.
    pub rule: Rule,
    /// The evidence.
    pub text: String,
}

impl Violation {
    pub(super) fn new(rule: Rule, text: impl Into<String>) -> Self {
        Self { rule, text: text.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.text)
    }
}

impl std::error::Error for Violation {}
