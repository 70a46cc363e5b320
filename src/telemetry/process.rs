use std::fs;

use prometheus::process_collector::ProcessCollector;
use rustix::process::{Resource, getrlimit};

use super::metrics::{Metrics, raise_to};

/// Adds what the process and its descriptors cost, under the names of the Go client library and of etcd.
pub(super) fn register(metrics: &Metrics) {
    let registered = metrics.registry().register(Box::new(ProcessCollector::for_self()));
    registered.expect("each metric is registered once");
    let virtual_max = metrics.float_gauge("process_virtual_memory_max_bytes", "Limit of the address space.");
    let received = metrics.counter("process_network_receive_bytes_total", "Bytes that came in by IP.");
    let sent = metrics.counter("process_network_transmit_bytes_total", "Bytes that went out by IP.");
    let fd_used = metrics.gauge("os_fd_used", "File descriptors in use.");
    let fd_limit = metrics.gauge("os_fd_limit", "File descriptors allowed.");
    metrics.before_render(move || {
        virtual_max.set(getrlimit(Resource::As).current.map_or(u64::MAX as f64, |limit| limit as f64));
        fd_limit.set(getrlimit(Resource::Nofile).current.map_or(i64::MAX, |limit| limit as i64));
        // One entry is the listing itself.
        fd_used.set(fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as i64 - 1));
        if let Some((bytes_in, bytes_out)) = network_octets() {
            raise_to(&received, bytes_in);
            raise_to(&sent, bytes_out);
        }
    });
}

/// The `IpExt` octet counts of this network namespace: in, out.
fn network_octets() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/self/net/netstat").ok()?;
    let mut lines = text.lines().filter(|line| line.starts_with("IpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let value = |wanted: &str| {
        let column = names.split(' ').position(|name| name == wanted)?;
        values.split(' ').nth(column)?.parse::<u64>().ok()
    };
    Some((value("InOctets")?, value("OutOctets")?))
}
