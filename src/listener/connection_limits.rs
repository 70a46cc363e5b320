use crate::net::connections_within;

/// The most connections of one service, however many descriptors there are.
pub(super) const CONNECTIONS_MAX: usize = 65_536;

/// Descriptors that clients leave to files, runtimes, checks and dialled connections, besides those of serving threads.
const RESERVE_MIN: u64 = 150;
const RESERVE_MAX: u64 = 1024;
/// Descriptors of one serving thread without its clients, and of its connections to one endpoint.
const RESERVE_OF_THREAD: u64 = 16;

/// Connections that the ports of a member may have at once. Together they leave it the descriptors that it needs itself: a
/// member that cannot make its next log segment stops.
///
/// Each kind of port has its own share, so that clients keep neither peers nor monitoring out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// On client URLs, those of HTTP included.
    pub clients: usize,
    /// On peer URLs.
    pub peers: usize,
    /// On metrics URLs.
    pub metrics: usize,
}

impl ConnectionLimits {
    /// For a member with so many descriptors and serving threads.
    pub fn of_member(descriptors: u64, serving_threads: usize) -> Self {
        let all = within(descriptors, serving_threads, descriptors / 2);
        // Each peer has several connections, and dials new ones before the old ones have ended.
        let peers = (all / 8).clamp(64, 1024).min(all / 2);
        let metrics = (all / 16).clamp(8, 1024).min(all / 4);
        let clients = (all - peers - metrics).min(CONNECTIONS_MAX);
        Self { clients: clients.max(1), peers: peers.max(1), metrics: metrics.max(1) }
    }

    /// Connections of clients for a proxy with so many descriptors, serving threads and endpoints.
    pub fn of_proxy(descriptors: u64, serving_threads: usize, endpoints: usize) -> usize {
        let shares = serving_threads.saturating_mul(endpoints.saturating_add(1));
        // It has no files, and what it lacks for a moment it tries again.
        within(descriptors, shares, descriptors / 4).clamp(1, CONNECTIONS_MAX)
    }
}

/// All connections that a process accepts at once when it keeps `reserve_max` descriptors at most for everything else.
fn within(descriptors: u64, shares: usize, reserve_max: u64) -> usize {
    let of_threads = RESERVE_OF_THREAD.saturating_mul(shares as u64);
    let reserve = (descriptors / 8).clamp(RESERVE_MIN, RESERVE_MAX).saturating_add(of_threads);
    connections_within(descriptors, reserve.min(reserve_max), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(descriptors: u64, serving_threads: usize) -> (usize, usize, usize) {
        let ConnectionLimits { clients, peers, metrics } = ConnectionLimits::of_member(descriptors, serving_threads);
        (clients, peers, metrics)
    }

    #[test]
    fn connections_leave_a_member_descriptors_for_itself() {
        for (descriptors, limits) in [
            (u64::MAX, (65_536, 1024, 1024)),
            (1 << 20, (65_536, 1024, 1024)),
            // Clients alone used up this limit, and the member stopped when it needed its next log segment.
            (65_536, (62_432, 1024, 1024)),
            (20_000, (16_896, 1024, 1024)),
            (1024, (685, 105, 52)),
            (256, (56, 64, 8)),
            (64, (8, 16, 8)),
            (0, (1, 1, 1)),
        ] {
            assert_eq!(member(descriptors, 2), limits, "{descriptors}");
        }
        for threads in [1, 8, 64, 1024] {
            for descriptors in [128, 256, 1024, 4096, 65_536, 1 << 20] {
                let (clients, peers, metrics) = member(descriptors, threads);
                let left = descriptors - (clients + peers + metrics) as u64;
                assert!(left >= descriptors / 2 || left >= 150 + 16 * threads as u64, "{descriptors}, {threads}");
            }
        }
    }

    #[test]
    fn a_proxy_keeps_descriptors_for_each_thread_and_endpoint() {
        for (descriptors, threads, endpoints, connections) in [
            (u64::MAX, 8, 3, 65_536),
            (20_000, 8, 3, 18_464),
            (4096, 2, 3, 3456),
            // Three quarters of them are for clients, whatever else there is.
            (1024, 64, 5, 768),
            (0, 1, 1, 1),
        ] {
            let limit = ConnectionLimits::of_proxy(descriptors, threads, endpoints);
            assert_eq!(limit, connections, "{descriptors}, {threads}, {endpoints}");
        }
    }
}
