use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);
    };
}

macro_rules! hex {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }
    )*};
}

macro_rules! decimal {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    )*};
}

number! {
    /// A server of the cluster; shown in lowercase hex without padding, as etcd does.
    MemberId(u64)
}
number! {
    /// The cluster, fixed when it is bootstrapped; shown like a member id.
    ClusterId(u64)
}
number! {
    /// A lease; 0 on the wire means "none" or "pick one".
    LeaseId(i64)
}
number! {
    /// A watch on its stream, chosen by the client or counted from 0.
    WatchId(i64)
}
number! {
    /// A raft term.
    Term(u64)
}
number! {
    /// A position in the raft log, from 1.
    LogIndex(u64)
}
hex!(MemberId, ClusterId, LeaseId);
decimal!(WatchId, Term, LogIndex);

/// A place in the raft log: an index and the term of the entry there. The default is "before the first entry".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// Index of the entry.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
}
