/// What a call may do to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It only reads.
    None,
    /// It changes something if what it holds does.
    ByContent,
    /// It changes something, or keeps something from ending.
    Change,
}

/// The effect of a method. One that is not named here counts as a change.
pub(super) fn effect(service: &str, method: &str) -> Effect {
    match (service, method) {
        ("etcdserverpb.KV", "Range" | "RangeStream")
        | ("etcdserverpb.Watch", "Watch")
        | ("etcdserverpb.Lease", "LeaseTimeToLive" | "LeaseLeases")
        | ("etcdserverpb.Cluster", "MemberList")
        | ("etcdserverpb.Maintenance", "Status" | "Alarm" | "Hash" | "HashKV" | "Snapshot")
        | ("etcdserverpb.Auth", "AuthStatus" | "Authenticate")
        | ("v3electionpb.Election", "Leader" | "Observe") => Effect::None,
        ("etcdserverpb.KV", "Txn") => Effect::ByContent,
        _ => Effect::Change,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::methods::METHODS;

    #[test]
    fn what_is_open_to_readers_is_a_list() {
        let open: Vec<_> = METHODS
            .iter()
            .filter(|method| effect(method.service, method.name) == Effect::None)
            .map(|one| one.name)
            .collect();
        let mut sorted = open.clone();
        sorted.sort_unstable();
        assert_eq!(
            sorted,
            [
                "Alarm",
                "AuthStatus",
                "Authenticate",
                "Hash",
                "HashKV",
                "Leader",
                "LeaseLeases",
                "LeaseTimeToLive",
                "MemberList",
                "Observe",
                "Range",
                "RangeStream",
                "Snapshot",
                "Status",
                "Watch"
            ]
        );
        assert_eq!(effect("etcdserverpb.KV", "Txn"), Effect::ByContent);
        assert_eq!(effect("etcdserverpb.KV", "Unknown"), Effect::Change);
    }
}
