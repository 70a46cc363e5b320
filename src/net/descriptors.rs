use rustix::process::{Resource, getrlimit};

/// Files that this process may have open at once, sockets included.
pub fn descriptor_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Connections of `each` descriptors that fit into `limit` when `reserve` of them are kept for everything else.
pub fn connections_within(limit: u64, reserve: u64, each: u64) -> usize {
    usize::try_from(limit.saturating_sub(reserve) / each).unwrap_or(usize::MAX)
}
