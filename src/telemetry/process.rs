use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use super::metrics::{Metrics, raise_to};

impl Metrics {
    /// A registry that holds the `process_*` and `os_fd_*` metrics.
    pub fn new() -> Self {
        let metrics = Self::default();
        register(&metrics);
        metrics
    }
}

/// Adds what the process and its descriptors cost, under the names of the Go client library and of etcd. A number that
/// the system does not provide stays 0.
fn register(metrics: &Metrics) {
    let cpu = metrics.float_counter("process_cpu_seconds_total", "CPU time, in user and system mode.");
    let resident = metrics.float_gauge("process_resident_memory_bytes", "Bytes of resident memory.");
    let virtual_size = metrics.float_gauge("process_virtual_memory_bytes", "Bytes of the address space.");
    let virtual_max = metrics.float_gauge("process_virtual_memory_max_bytes", "Limit of the address space.");
    let started = metrics.float_gauge("process_start_time_seconds", "Unix time at which the process started.");
    let threads = metrics.gauge("process_threads", "Threads of the process.");
    let open_fds = metrics.gauge("process_open_fds", "File descriptors in use.");
    let max_fds = metrics.gauge("process_max_fds", "File descriptors allowed.");
    let fd_used = metrics.gauge("os_fd_used", "File descriptors in use.");
    let fd_limit = metrics.gauge("os_fd_limit", "File descriptors allowed.");
    let received = metrics.counter("process_network_receive_bytes_total", "Bytes received by IP.");
    let sent = metrics.counter("process_network_transmit_bytes_total", "Bytes sent by IP.");
    let boot_seconds = boot_seconds();
    metrics.before_render(move || {
        virtual_max.set(getrlimit(Resource::As).current.map_or(u64::MAX as f64, |limit| limit as f64));
        let limit = getrlimit(Resource::Nofile).current.map_or(i64::MAX, |limit| limit as i64);
        // One entry is the listing itself.
        let used = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as i64 - 1);
        for (gauge, value) in [(&fd_limit, limit), (&max_fds, limit), (&fd_used, used), (&open_fds, used)] {
            gauge.set(value);
        }
        if let Some(process) = Stat::read() {
            cpu.inc_by((process.cpu_seconds - cpu.get()).max(0.0));
            resident.set(process.resident_bytes);
            virtual_size.set(process.virtual_bytes);
            threads.set(process.threads);
            if let Some(boot_seconds) = boot_seconds {
                started.set(boot_seconds + process.started_seconds);
            }
        }
        if let Some((bytes_in, bytes_out)) = network_octets() {
            raise_to(&received, bytes_in);
            raise_to(&sent, bytes_out);
        }
    });
}

/// What `/proc/self/stat` tells.
struct Stat {
    cpu_seconds: f64,
    resident_bytes: f64,
    virtual_bytes: f64,
    /// Since the boot.
    started_seconds: f64,
    threads: i64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    /// Fields are counted behind the name of the program, which may hold anything.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let ticks = clock_ticks_per_second() as f64;
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) / ticks,
            threads: field(20)? as i64,
            started_seconds: field(22)? / ticks,
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * page_size() as f64,
        })
    }
}

/// Unix time of the boot.
fn boot_seconds() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_program_may_hold_anything() {
        let text = "7 (a ) b) S 1 7 7 0 -1 4194304 1 0 0 0 250 150 0 0 20 0 9 0 3000 4096000 10 18446744073709551615";
        let stat = Stat::parse(text).expect("a stat line");
        let ticks = clock_ticks_per_second() as f64;
        assert_eq!((stat.cpu_seconds, stat.started_seconds), (400.0 / ticks, 3000.0 / ticks));
        assert_eq!((stat.virtual_bytes, stat.resident_bytes), (4_096_000.0, 10.0 * page_size() as f64));
        assert_eq!(stat.threads, 9);
        assert!(Stat::parse("7 (short) S 1").is_none());
    }
}
