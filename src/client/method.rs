/// The group of upstream connections a request travels on, so that a large answer cannot hold up a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Requests with one answer.
    Unary,
    /// Watch streams.
    Watch,
    /// Lease keep-alive streams.
    Lease,
    /// Answers of many messages: range streams, snapshots.
    Bulk,
}

impl Lane {
    /// All lanes, in the order of [`index`](Self::index).
    pub(super) const ALL: [Self; 4] = [Self::Unary, Self::Watch, Self::Lease, Self::Bulk];

    pub(super) fn index(self) -> usize {
        match self {
            Self::Unary => 0,
            Self::Watch => 1,
            Self::Lease => 2,
            Self::Bulk => 3,
        }
    }
}

/// What a sender must know about a method of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// Where it travels.
    pub lane: Lane,
    /// Whether the request is one message, so that it can be kept and sent again.
    pub one_request: bool,
    /// Whether sending it twice changes nothing, so that it may be sent again after an unknown outcome. This is the
    /// rule of etcd's own client, read more narrowly for leases: a grant may not happen twice.
    pub repeatable: bool,
    /// Whether a learner answers it, whatever it asks for.
    pub on_learner: bool,
}

impl Method {
    /// Looks a request path up. An unknown method is neither kept nor repeated.
    pub fn of(path: &str) -> Self {
        let unary = |repeatable| Self { lane: Lane::Unary, one_request: true, repeatable, on_learner: false };
        let bulk = Self { lane: Lane::Bulk, ..unary(true) };
        let stream = |lane| Self { lane, one_request: false, ..unary(false) };
        match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
            Some(("etcdserverpb.KV", "RangeStream")) => bulk,
            Some(("etcdserverpb.Maintenance", "Snapshot")) => Self { on_learner: true, ..bulk },
            Some(("etcdserverpb.KV", name)) => unary(name == "Range"),
            Some(("etcdserverpb.Watch", _)) => stream(Lane::Watch),
            Some(("etcdserverpb.Lease", "LeaseKeepAlive")) => stream(Lane::Lease),
            Some(("etcdserverpb.Lease", name)) => unary(matches!(name, "LeaseTimeToLive" | "LeaseLeases")),
            Some(("etcdserverpb.Cluster", name)) => unary(name == "MemberList"),
            Some(("etcdserverpb.Maintenance", "Status")) => Self { on_learner: true, ..unary(true) },
            Some(("etcdserverpb.Maintenance", name)) => unary(matches!(name, "Hash" | "HashKV")),
            Some(("etcdserverpb.Auth", name)) => {
                unary(matches!(name, "AuthStatus" | "UserGet" | "UserList" | "RoleGet" | "RoleList"))
            }
            Some(("v3lockpb.Lock", _)) => unary(false),
            Some(("v3electionpb.Election", "Observe")) => Self { lane: Lane::Watch, ..unary(true) },
            Some(("v3electionpb.Election", name)) => unary(name == "Leader"),
            Some(("grpc.health.v1.Health", "Watch")) => Self { lane: Lane::Watch, ..unary(true) },
            Some(("grpc.health.v1.Health", _)) => unary(true),
            _ => stream(Lane::Bulk),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reads_are_sent_twice() {
        for (path, repeatable) in [
            ("/etcdserverpb.KV/Range", true),
            ("/etcdserverpb.KV/Put", false),
            ("/etcdserverpb.KV/Txn", false),
            ("/etcdserverpb.Lease/LeaseGrant", false),
            ("/etcdserverpb.Lease/LeaseTimeToLive", true),
            ("/etcdserverpb.Maintenance/Defragment", false),
            ("/etcdserverpb.Cluster/MemberList", true),
            ("/some.New/Method", false),
            ("nonsense", false),
        ] {
            assert_eq!(Method::of(path).repeatable, repeatable, "{path}");
        }
    }

    #[test]
    fn streams_of_requests_are_not_kept() {
        assert!(!Method::of("/etcdserverpb.Watch/Watch").one_request);
        assert!(!Method::of("/etcdserverpb.Lease/LeaseKeepAlive").one_request);
        assert!(!Method::of("/some.New/Method").one_request);
        assert!(Method::of("/etcdserverpb.KV/RangeStream").one_request);
    }
}
