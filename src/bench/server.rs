//! CPU time and memory of a server, from `/proc`.

use std::str::FromStr;
use std::sync::OnceLock;

use serde::Serialize;

/// Clock ticks per second in `/proc`, the same on every Linux that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process to watch, and what to call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerPid {
    pub(super) name: String,
    pub(super) pid: u32,
}

impl FromStr for ServerPid {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, pid) = text.split_once('=').unwrap_or(("server", text));
        let pid = pid.parse().map_err(|_| "must be PID or NAME=PID")?;
        Ok(Self { name: name.to_owned(), pid })
    }
}

/// CPU and memory of a process at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Reading {
    pub(super) cpu_seconds: f64,
    pub(super) rss_bytes: u64,
    pub(super) rss_peak_bytes: u64,
}

impl Reading {
    /// Reads the figures of a process.
    ///
    /// # Errors
    /// When there is no such process, or no `/proc`.
    pub(super) fn of(pid: &str) -> Result<Self, String> {
        let file = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            std::fs::read_to_string(&path).map_err(|error| format!("read {path}: {error}"))
        };
        Self::parse(&file("stat")?, &file("status")?).ok_or_else(|| format!("/proc/{pid} is not understood"))
    }

    fn parse(stat: &str, status: &str) -> Option<Self> {
        // The name of the program is in brackets and may hold anything; the numbers follow the last bracket.
        let numbers: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = numbers.get(11)?.parse::<u64>().ok()? + numbers.get(12)?.parse::<u64>().ok()?;
        let kilobytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        Some(Self {
            cpu_seconds: ticks as f64 / TICKS_PER_SECOND,
            rss_bytes: kilobytes("VmRSS:")? * 1024,
            rss_peak_bytes: kilobytes("VmHWM:")? * 1024,
        })
    }
}

/// What a server spent on a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Cost {
    pub(super) name: String,
    pub(super) pid: u32,
    /// Of its whole life, when the load began.
    pub(super) cpu_before_seconds: f64,
    /// From the first request of the load to the last one.
    pub(super) cpu_seconds: f64,
    /// CPU microseconds for each operation.
    pub(super) cpu_us_per_op: f64,
    pub(super) rss_before_bytes: u64,
    pub(super) rss_bytes: u64,
    /// Since the process started, not since the run did.
    pub(super) rss_peak_bytes: u64,
}

/// Servers under observation during a run.
#[derive(Debug)]
pub(super) struct Meter {
    /// With the reading before the run connects and sets anything up.
    servers: Vec<(ServerPid, Reading)>,
    begun: OnceLock<Spent>,
    ended: OnceLock<Spent>,
}

/// CPU seconds up to one moment.
#[derive(Clone, Debug)]
struct Spent {
    /// In the order of the servers; absent for one that is gone.
    servers: Vec<Option<f64>>,
    own: f64,
    /// Seconds since the machine started.
    at: f64,
}

/// What a load is charged for.
#[derive(Debug)]
pub(super) struct Charged {
    /// What each server spent. A server that is gone is left out.
    pub(super) costs: Vec<Cost>,
    pub(super) own_cpu_seconds: f64,
    /// Begin and end, in seconds since the machine started.
    pub(super) window: [f64; 2],
}

impl Meter {
    /// Takes the first reading of each.
    pub(super) fn start(servers: &[ServerPid]) -> Result<Self, String> {
        let servers = servers
            .iter()
            .map(|server| {
                let reading = Reading::of(&server.pid.to_string());
                let reading = reading.map_err(|error| format!("--server-pid {}: {error}", server.pid))?;
                Ok((server.clone(), reading))
            })
            .collect::<Result<_, String>>()?;
        Ok(Self { servers, begun: OnceLock::new(), ended: OnceLock::new() })
    }

    /// From here on the load is charged. The first caller takes the reading, others wait for it.
    pub(super) fn begin(&self) {
        self.begun.get_or_init(|| self.spent());
    }

    /// Up to here the load is charged. Only the first call counts.
    pub(super) fn end(&self) {
        self.ended.get_or_init(|| self.spent());
    }

    fn spent(&self) -> Spent {
        let cpu = |server: &ServerPid| Reading::of(&server.pid.to_string()).ok().map(|reading| reading.cpu_seconds);
        Spent {
            servers: self.servers.iter().map(|(server, _)| cpu(server)).collect(),
            own: own().cpu_seconds,
            at: uptime(),
        }
    }

    /// Bytes by which each server has grown since the start.
    pub(super) fn growth(&self) -> Vec<(String, f64)> {
        let grown = |(server, before): &(ServerPid, Reading)| {
            let now = Reading::of(&server.pid.to_string()).ok()?;
            Some((server.name.clone(), now.rss_bytes as f64 - before.rss_bytes as f64))
        };
        self.servers.iter().filter_map(grown).collect()
    }

    /// What was spent on `operations` between [`begin`](Self::begin) and [`end`](Self::end); nothing on a load that
    /// never began.
    pub(super) fn charged(&self, operations: u64) -> Charged {
        let ended = self.ended.get().cloned().unwrap_or_else(|| self.spent());
        let begun = self.begun.get().unwrap_or(&ended);
        let costs = self
            .servers
            .iter()
            .zip(begun.servers.iter().zip(&ended.servers))
            .filter_map(|((server, before), (cpu_begun, cpu_ended))| {
                let after = Reading::of(&server.pid.to_string()).ok()?;
                let cpu_before_seconds = (*cpu_begun)?;
                let cpu_seconds = (*cpu_ended)? - cpu_before_seconds;
                Some(Cost {
                    name: server.name.clone(),
                    pid: server.pid,
                    cpu_before_seconds,
                    cpu_seconds,
                    cpu_us_per_op: per(cpu_seconds * 1e6, operations),
                    rss_before_bytes: before.rss_bytes,
                    rss_bytes: after.rss_bytes,
                    rss_peak_bytes: after.rss_peak_bytes,
                })
            })
            .collect();
        Charged { costs, own_cpu_seconds: ended.own - begun.own, window: [begun.at, ended.at] }
    }
}

/// Seconds since the machine started; zero where there is no `/proc`. All processes count from the same moment.
fn uptime() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split_whitespace().next().and_then(|seconds| seconds.parse().ok()).unwrap_or_default()
}

/// This process; zero where there is no `/proc`.
fn own() -> Reading {
    Reading::of("self").unwrap_or_default()
}

/// `sum` for each of `count`.
pub(super) fn per(sum: f64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { sum / count as f64 }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_a_server_spends_before_and_after_the_load_is_not_charged() {
        // Leases were granted before the load and revoked after it, at the expense of the load.
        let count_to = "while read n; do i=0; while [ $i -lt $n ]; do i=$((i+1)); done; echo done; done";
        let mut command = Command::new("/bin/sh");
        let mut server = command.args(["-c", count_to]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pid = server.id();
        let mut input = server.stdin.take().unwrap();
        let mut output = BufReader::new(server.stdout.take().unwrap());
        let cpu = || Reading::of(&pid.to_string()).unwrap().cpu_seconds;
        let mut spend = |seconds: f64| {
            let end = cpu() + seconds;
            while cpu() < end {
                input.write_all(b"2000\n").unwrap();
                output.read_line(&mut String::new()).unwrap();
            }
        };
        let meter = Meter::start(&[ServerPid { name: "server".into(), pid }]).unwrap();
        spend(0.2);
        meter.begin();
        spend(0.1);
        meter.end();
        spend(0.2);
        meter.end();
        let charged = meter.charged(10);
        drop(input);
        server.wait().unwrap();
        let [cost] = &charged.costs[..] else { panic!("{charged:?}") };
        assert!((0.05..0.2).contains(&cost.cpu_seconds) && cost.cpu_before_seconds > 0.15, "{cost:?}");
        assert!((cost.cpu_us_per_op - cost.cpu_seconds * 1e5).abs() < 1e-3, "{cost:?}");
        let [begin, end] = charged.window;
        assert!(begin > 0.0 && end >= begin, "{charged:?}");
    }

    #[test]
    fn a_process_is_named_or_not() {
        assert_eq!("12".parse(), Ok(ServerPid { name: "server".into(), pid: 12 }));
        assert_eq!("core=12".parse(), Ok(ServerPid { name: "core".into(), pid: 12 }));
        assert!("core=x".parse::<ServerPid>().is_err());
    }

    #[test]
    fn proc_is_read_whatever_the_program_is_called() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 5 0 100 1000 200";
        let status = "Name:\ta\nVmHWM:\t  2048 kB\nVmRSS:\t   1024 kB\n";
        let reading = Reading::parse(stat, status).unwrap();
        assert_eq!(reading, Reading { cpu_seconds: 3.0, rss_bytes: 1 << 20, rss_peak_bytes: 2 << 20 });
        assert_eq!(Reading::parse("nonsense", status), None);
    }

    #[test]
    fn a_process_that_does_not_exist_is_named() {
        let error = Meter::start(&[ServerPid { name: "x".into(), pid: u32::MAX }]).unwrap_err();
        assert!(error.starts_with("--server-pid 4294967295: read /proc/4294967295/stat:"), "{error}");
    }
}
