//! Rows that load proxies, in front of members of the peer.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::judge::{OURS, PEER};
use super::load::{
    CPU, ERRORS, FAILED_SHARE, IDLE_BYTES, Load, OPERATIONS, PER_SECOND, Sample, duration, measure, measure_for, words,
};
use super::loopback::{connects, metric};
use super::members::{Member, Security, both};
use super::programs::{Programs, Running, port};
use super::side::{Side, Sides};

/// Reads of the cluster for each read of a client.
pub(in crate::bench) const UPSTREAM_READS: &str = "upstream reads per read";
/// Watchers that the member has at most.
pub(in crate::bench) const UPSTREAM_WATCHES: &str = "upstream watches";
/// Memory for each watcher.
pub(in crate::bench) const WATCHER_BYTES: &str = "bytes per watcher";

/// Keys that our proxy is to cache.
const CACHED: &str = "--cache-prefix=b/";
/// How long an endpoint has been bad when calls begin that are counted.
const BAD_BEFORE: Duration = Duration::from_secs(5);
/// Pause between two looks at the metrics of a member while a load runs.
const LOOK: Duration = Duration::from_millis(100);

/// A running proxy.
pub(in crate::bench) struct Proxy {
    pub(in crate::bench) running: Running,
    pub(in crate::bench) endpoint: String,
}

impl Proxy {
    /// Starts one in front of members or of other proxies.
    pub(in crate::bench) fn start(
        programs: &Programs,
        program: &Path,
        endpoints: &[&str],
        flags: &str,
    ) -> Result<Self, String> {
        let endpoint = format!("127.0.0.1:{}", port()?);
        let line = format!("grpc-proxy start --endpoints={} --listen-addr={endpoint} {flags}", endpoints.join(","));
        let folder = programs.folder("proxy")?;
        let mut running = Running::start(program, &words(&line), &folder)?;
        let ask = words(&format!("range ready --total=1 --json --request-timeout=2s --endpoints={endpoint}"));
        running.until(|| measure(programs, &ask).and_then(|sample| sample.figure(OPERATIONS)) == Ok(1.0))?;
        Ok(Self { running, endpoint })
    }

    /// The words of a load through it; what it costs counts, not the member.
    pub(in crate::bench) fn words(&self, line: &str) -> Vec<String> {
        let mut all = words(line);
        all.push("--json".into());
        all.push(format!("--endpoints={}", self.endpoint));
        all.push(format!("--server-pid={}", self.running.pid()));
        all
    }

    /// A side that runs a load for some seconds in each round.
    fn side(self, name: &'static str, programs: &Programs, line: &str) -> Side {
        Side::of_load(name, programs, line, move |line| self.words(line))
    }
}

/// A member of the peer with the keys that are read.
fn stock(programs: &Programs) -> Result<Member, String> {
    with_keys(programs, &programs.peer)
}

fn with_keys(programs: &Programs, program: &Path) -> Result<Member, String> {
    let member = Member::start(programs, program, Security::Off)?;
    member.put(programs, "foo")?;
    member.put(programs, "b/1")?;
    Ok(member)
}

/// A load through the proxy of each program, both in front of one member.
pub(in crate::bench) fn both_proxies(programs: &Programs, line: &str, our_flags: &str) -> Result<Sides, String> {
    let member = Rc::new(stock(programs)?);
    let side = |(name, program)| {
        let flags = if name == OURS { our_flags } else { "" };
        let proxy = Proxy::start(programs, program, &[&member.endpoint], flags)?;
        Ok(proxy.side(name, programs, line).behind(&member))
    };
    Ok(both(programs).into_iter().map(side).collect::<Result<Vec<_>, String>>()?.into())
}

/// The same with proxies that are new in each round: for memory.
pub(in crate::bench) fn new_proxies(programs: &Programs, line: &str) -> Result<Sides, String> {
    let member = Rc::new(stock(programs)?);
    let side = |(name, program): (&'static str, &Path)| {
        let (programs, program, member, line) = (programs.clone(), program.to_owned(), member.clone(), line.to_owned());
        Side::new(name, move |_| {
            let proxy = Proxy::start(&programs, &program, &[&member.endpoint], "")?;
            measure(&programs, &proxy.words(&line))
        })
    };
    Ok(both(programs).into_iter().map(side).collect::<Vec<_>>().into())
}

/// Reads of a cached key through our proxy, and of the same key on the member of the peer alone, which is behind our proxy, too.
pub(in crate::bench) fn cached_against_member(programs: &Programs, line: &str) -> Result<Sides, String> {
    let member = Rc::new(stock(programs)?);
    cached_before(programs, line, member.clone(), member)
}

/// The same with our proxy in front of our member.
pub(in crate::bench) fn own_cached_against_member(programs: &Programs, line: &str) -> Result<Sides, String> {
    let own = Rc::new(with_keys(programs, &programs.ours)?);
    cached_before(programs, line, own, Rc::new(stock(programs)?))
}

fn cached_before(programs: &Programs, line: &str, shared: Rc<Member>, member: Rc<Member>) -> Result<Sides, String> {
    let proxy = Proxy::start(programs, &programs.ours, &[&shared.endpoint], CACHED)?;
    let mut through = proxy.side(OURS, programs, line);
    let ours = Side::new(OURS, move |seconds| {
        let before = metric(&shared.endpoint, "etcd_mvcc_range_total")?;
        let mut sample = (through.measure)(seconds)?;
        let reads = metric(&shared.endpoint, "etcd_mvcc_range_total")? - before;
        let operations = sample.figure(OPERATIONS)?;
        sample.figures.insert(UPSTREAM_READS, reads / operations.max(1.0));
        Ok(sample)
    });
    let alone = Side::of_load(PEER, programs, line, move |line| member.words(line));
    Ok(vec![ours, alone].into())
}

/// Reads of a cached key through our proxy, and through the peer's, which has a cache that nothing invalidates.
pub(in crate::bench) fn cached_against_proxy(programs: &Programs, line: &str) -> Result<Sides, String> {
    both_proxies(programs, line, CACHED)
}

/// A load through our proxy in front of our member, and on that member alone.
pub(in crate::bench) fn own_member(programs: &Programs, line: &str) -> Result<Sides, String> {
    let member = Rc::new(Member::start(programs, &programs.ours, Security::Off)?);
    let ours =
        Proxy::start(programs, &programs.ours, &[&member.endpoint], "")?.side(OURS, programs, line).behind(&member);
    let alone = Side::of_load(PEER, programs, line, move |line| member.words(line));
    Ok(vec![ours, alone].into())
}

/// Watchers on streams of one new proxy of ours in each round.
pub(in crate::bench) fn many_watchers(programs: &Programs, line: &str, per_stream: f64) -> Result<Sides, String> {
    let sides = new_proxies(programs, line)?;
    let ours = sides.sides.into_iter().filter(|side| side.name == OURS);
    let each = move |mut side: Side| {
        Side::new(OURS, move |seconds| {
            let mut sample = (side.measure)(seconds)?;
            let bytes = sample.figure(IDLE_BYTES)? / per_stream;
            sample.figures.insert(WATCHER_BYTES, bytes);
            Ok(sample)
        })
    };
    Ok(ours.map(each).collect::<Vec<_>>().into())
}

/// Watchers through the proxy of each program; counts those that the member has.
pub(in crate::bench) fn upstream_watches(programs: &Programs, line: &str) -> Result<Sides, String> {
    let side = |(name, program)| {
        let member = stock(programs)?;
        let proxy = Proxy::start(programs, program, &[&member.endpoint], "")?;
        let (programs, line) = (programs.clone(), line.to_owned());
        Ok(Side::new(name, move |_| {
            // All of it, not only its address: it has to live as long.
            let member = &member;
            let mut load = Load::start(&programs, &proxy.words(&line))?;
            let mut most = 0.0f64;
            while load.is_running() {
                most = most.max(metric(&member.endpoint, "etcd_debugging_mvcc_watcher_total")?);
                std::thread::sleep(LOOK);
            }
            let mut sample = load.finish()?;
            sample.figures.insert(UPSTREAM_WATCHES, most);
            Ok(sample)
        }))
    };
    Ok(both(programs).into_iter().map(side).collect::<Result<Vec<_>, String>>()?.into())
}

/// Calls at a rate through the proxy of each program while one of its three members hangs. In a closed loop callers that
/// wait for the member would make no calls, and the others many: the share of calls that fail would be next to nothing.
pub(in crate::bench) fn hung_member(programs: &Programs, line: &str) -> Result<Sides, String> {
    let side = |(name, program)| {
        let members = Member::cluster(programs, &programs.peer, 3)?;
        let endpoints: Vec<&str> = members.iter().map(|member| member.endpoint.as_str()).collect();
        let proxy = Proxy::start(programs, program, &endpoints, "")?;
        let (programs, line) = (programs.clone(), line.to_owned());
        Ok(Side::new(name, move |seconds| {
            members[0].running.hang(true)?;
            let outcome = while_bad(&programs, &proxy, &line, seconds);
            members[0].running.hang(false)?;
            let mut sample = outcome?;
            let (errors, good) = (sample.figure(ERRORS)?, sample.figure(OPERATIONS)?);
            sample.figures.insert(FAILED_SHARE, errors / (errors + good).max(1.0));
            Ok(sample)
        }))
    };
    Ok(both(programs).into_iter().map(side).collect::<Result<Vec<_>, String>>()?.into())
}

/// Calls all the time, and counts those that begin when the endpoint has been bad for a while.
fn while_bad(programs: &Programs, proxy: &Proxy, line: &str, seconds: f64) -> Result<Sample, String> {
    measure_for(programs, proxy.words(line), BAD_BEFORE.as_secs_f64())?;
    measure_for(programs, proxy.words(line), seconds)
}

/// Users with a token each, one generator for each, through the proxy of each program.
pub(in crate::bench) fn users(programs: &Programs, count: usize, line: &str) -> Result<Sides, String> {
    let member = Member::start(programs, &programs.peer, Security::Off)?;
    member.put(programs, "a/k")?;
    member.add_users(programs, count)?;
    let member = Rc::new(member);
    let side = |(name, program)| {
        let flags = if name == OURS { "--user=root:secret --cache-prefix=a/" } else { "" };
        let endpoint = format!("127.0.0.1:{}", port()?);
        let line_of_proxy =
            format!("grpc-proxy start --endpoints={} --listen-addr={endpoint} {flags}", member.endpoint);
        let mut running = Running::start(program, &words(&line_of_proxy), &programs.folder("proxy")?)?;
        running.until(|| connects(&endpoint))?;
        let proxy = Proxy { running, endpoint };
        let (programs, line) = (programs.clone(), line.to_owned());
        let side = Side::new(name, move |seconds| of_all_users(&programs, &proxy, count, &line, seconds));
        Ok(side.behind(&member))
    };
    Ok(both(programs).into_iter().map(side).collect::<Result<Vec<_>, String>>()?.into())
}

fn of_all_users(programs: &Programs, proxy: &Proxy, count: usize, line: &str, seconds: f64) -> Result<Sample, String> {
    let start = |user: usize| {
        let mut all = proxy.words(line);
        all.extend([format!("--user=u{user}:p"), duration(seconds)]);
        Load::start(programs, &all)
    };
    let loads: Vec<Load> = (0..count).map(start).collect::<Result<_, String>>()?;
    let samples: Vec<Sample> = loads.into_iter().map(Load::finish).collect::<Result<_, String>>()?;
    together(&samples)
}

/// Loads on one process that ran beside each other. They neither began nor ended together, so their rates do not add up:
/// what all of them did counts, over the time from the first begin to the last end.
fn together(samples: &[Sample]) -> Result<Sample, String> {
    let windows = samples.iter().map(Sample::cpu_window).collect::<Result<Vec<_>, String>>()?;
    let cpu = windows.iter().map(|window| window.cpu_seconds.first().copied().ok_or("the process is gone"));
    let cpu = cpu.collect::<Result<Vec<_>, _>>()?;
    let span = |all: &[[f64; 2]]| {
        let begin = all.iter().map(|window| window[0]).fold(f64::INFINITY, f64::min);
        all.iter().map(|window| window[1]).fold(begin, f64::max) - begin
    };
    let seconds = span(&windows.iter().map(|window| window.seconds).collect::<Vec<_>>());
    let sum = |figure: &'static str| samples.iter().filter_map(|sample| sample.figures.get(figure)).sum::<f64>();
    let mut whole = Sample::default();
    for figure in [OPERATIONS, ERRORS] {
        whole.figures.insert(figure, sum(figure));
    }
    let operations = sum(OPERATIONS);
    if operations > 0.0 && seconds > 0.0 {
        whole.figures.insert(PER_SECOND, operations / seconds);
        whole.figures.insert(CPU, span(&cpu) * 1e6 / operations);
    }
    Ok(whole)
}

/// CPU time of a process so far.
pub(in crate::bench) fn cpu_seconds(running: &Running) -> Result<f64, String> {
    Ok(crate::bench::server::Reading::of(&running.pid().to_string())?.cpu_seconds)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::load::CpuWindow;
    use super::*;

    #[test]
    fn loads_that_overlap_in_part_are_counted_over_all_of_their_time() {
        // Each had 100 operations per second, but not at the same time: their sum, 200, was never reached.
        let sample = |seconds: [f64; 2], cpu: [f64; 2]| Sample {
            figures: [(OPERATIONS, 300.0), (PER_SECOND, 100.0), (ERRORS, 1.0)].into(),
            cpu_window: Some(CpuWindow { seconds, cpu_seconds: vec![cpu], operations: 300.0 }),
            ..Sample::default()
        };
        let whole = together(&[sample([10.0, 13.0], [1.0, 1.5]), sample([12.0, 15.0], [1.25, 1.75])]).unwrap();
        let expected = [(OPERATIONS, 600.0), (ERRORS, 2.0), (PER_SECOND, 120.0), (CPU, 1250.0)];
        assert_eq!(whole.figures, BTreeMap::from(expected));
        let none = Sample { figures: [(OPERATIONS, 0.0)].into(), ..sample([0.0, 3.0], [0.0, 0.0]) };
        assert!(!together(&[none]).unwrap().figures.contains_key(CPU));
        assert_eq!(together(&[Sample::default()]).unwrap_err(), "the load has no CPU times");
    }
}
