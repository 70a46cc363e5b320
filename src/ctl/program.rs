use crate::types::API_VERSION;

/// The name under which this client runs. It decides how help and errors call the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `watershed ctl`, with a version of its own.
    Ctl,
    /// The client of a cluster.
    Etcdctl,
}

impl Program {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ctl => "watershed ctl",
            Self::Etcdctl => "etcdctl",
        }
    }

    /// The version scripts compare: etcd's for the names that are etcd's.
    pub(super) fn version(self) -> &'static str {
        match self {
            Self::Ctl => env!("CARGO_PKG_VERSION"),
            Self::Etcdctl => API_VERSION,
        }
    }
}
