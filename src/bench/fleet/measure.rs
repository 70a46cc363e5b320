//! The costs on this machine, one short load after the other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::costs::{self, Cost, Costs, NAMES};
use crate::bench::statistics::median;
use crate::bench::suite::gateways::Forwarder;
use crate::bench::suite::load::{
    BYTES_PER_CONNECTION, CPU, DELIVERY_P50, IDLE_BYTES, OPERATIONS, P50, P50_MICROS, RESIDENT, Sample, measure,
    measure_for, words,
};
use crate::bench::suite::loopback::metric;
use crate::bench::suite::members::{Member, Security};
use crate::bench::suite::programs::{Programs, Running};
use crate::bench::suite::proxies::{Proxy, UPSTREAM_READS, cpu_seconds};

const ROUNDS: usize = 3;
/// Shortest look at an idle process: it spends a few milliseconds in a second, and `/proc` counts in tens of them.
const IDLE_MIN: Duration = Duration::from_secs(20);
const MIB: f64 = 1024.0 * 1024.0;

const PUTS: &str = "put --key-size=16 --val-size=256 --key-space-size=10000 --conns=8 --clients=64";
const CACHED: &str = "range --conns=8 --clients=64 --consistency=l b/1";
const PASSED: &str = "range --conns=8 --clients=64 --consistency=l foo";
const ONE_READER: &str = "range --conns=1 --clients=1 --consistency=l foo";
const EVENTS: &str = "watch --streams=2000 --conns=8 --put-rate=50";
const SHARED_STREAMS: &str = "watch --streams=400 --watchers-per-stream=10 --conns=8 --put-rate=25";
const ONE_WATCHER: &str = "watch --streams=1 --put-rate=500";
const FEW_WATCHERS: &str = "watch --streams=10 --put-rate=50";
const IDLE_STREAMS: &str = "watch --streams=2000 --conns=8 --put-rate=1 --put-total=1";
const IDLE_WATCHERS: &str = "watch --streams=200 --watchers-per-stream=101 --conns=8 --put-rate=1 --put-total=1";
const KEEPALIVES: &str = "lease-keepalive --leases=10000 --streams=10 --in-flight=64";
const FEW_KEEPALIVES: &str = "lease-keepalive --leases=1000 --streams=10 --in-flight=64 --rate=500";
const FEW_EVENTS: &str = "watch --streams=20 --put-rate=20";
/// Events for each put of it.
const FEW_STREAMS: f64 = 20.0;
const ROUND: &str = "tcp-pingpong --conns=16 --size=128";
const ONE_ROUND: &str = "tcp-pingpong --conns=1 --size=128";
const IDLE_CONNECTIONS: &str = "tcp-idle --conns=2000";

/// What has been measured so far.
struct Taken<'a> {
    programs: &'a Programs,
    seconds: f64,
    costs: BTreeMap<String, Cost>,
}

/// Takes all of them; `setup` says on what.
pub(super) fn all(programs: &Programs, seconds: f64, setup: String) -> Result<Costs, String> {
    let mut taken = Taken { programs, seconds, costs: BTreeMap::new() };
    taken.three_members()?;
    taken.member_and_proxy()?;
    taken.memory()?;
    taken.gateway()?;
    Ok(Costs { setup, costs: taken.costs })
}

impl Taken<'_> {
    fn note(&mut self, name: &'static str, value: f64, command: &str) {
        let unit = NAMES.iter().find(|(known, _)| *known == name).map_or("", |(_, unit)| unit);
        eprintln!("{name}: {value:.3} {unit}");
        // Differences of two figures may be a little below nothing.
        let cost = Cost { value: value.max(0.0), alone: None, unit: unit.into(), command: command.into() };
        self.costs.insert(name.to_owned(), cost);
    }

    /// Adds what the operation costs at a low rate.
    fn note_alone(&mut self, name: &'static str, value: f64, line: &str) {
        eprintln!("{name} alone: {value:.3}");
        if let Some(cost) = self.costs.get_mut(name) {
            cost.alone = Some(value.max(0.0));
            cost.command += &format!("; alone: {line}");
        }
    }

    /// CPU microseconds of the servers for each operation of a load at a low rate, less what they need when nothing
    /// happens.
    fn alone(&self, idle: f64, all: Vec<String>) -> Result<Vec<f64>, String> {
        Ok(measure_for(self.programs, all, self.seconds * 2.0)?.cpu_window()?.each(idle))
    }

    /// CPU microseconds of a process in a second in which nothing happens.
    fn idle(&self, running: &Running) -> Result<f64, String> {
        let (before, begun) = (cpu_seconds(running)?, Instant::now());
        std::thread::sleep(idle_time(self.seconds));
        Ok((cpu_seconds(running)? - before) * 1e6 / begun.elapsed().as_secs_f64())
    }

    /// The median of a figure over some runs.
    fn figure(&self, figure: &str, mut run: impl FnMut() -> Result<Sample, String>) -> Result<f64, String> {
        let rounds = (0..ROUNDS).map(|_| run()?.figure(figure)).collect::<Result<Vec<_>, String>>()?;
        median(&rounds).ok_or_else(|| format!("{figure}: no round"))
    }

    fn run(&self, all: Vec<String>) -> Result<Sample, String> {
        measure_for(self.programs, all, self.seconds)
    }

    fn three_members(&mut self) -> Result<(), String> {
        let members = Member::cluster(self.programs, &self.programs.ours, 3)?;
        members[0].put(self.programs, "foo")?;
        let endpoints: Vec<&str> = members.iter().map(|member| member.endpoint.as_str()).collect();
        let pids = members.iter().map(|member| format!("--server-pid={}", member.running.pid()));
        let pids = pids.collect::<Vec<_>>().join(" ");
        let on_leader = format!("--json --target-leader --endpoints={} {pids}", endpoints.join(","));
        let (mut leader, mut follower, mut read) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let spent = |line: &str| -> Result<[f64; 3], String> {
                by_cost(self.run(words(&format!("{line} {on_leader}")))?.cpu_window()?.each(0.0))
            };
            let puts = spent(PUTS)?;
            leader.push(puts[2]);
            follower.push(f64::midpoint(puts[0], puts[1]));
            read.push(spent(PASSED)?[2]);
        }
        let command = |line: &str| format!("three members; bench {line} --target-leader");
        for (name, rounds, line) in [
            (costs::LEADER_PUT, leader, PUTS),
            (costs::FOLLOWER_PUT, follower, PUTS),
            (costs::LEADER_RANGE, read, PASSED),
        ] {
            self.note(name, median(&rounds).unwrap_or_default(), &command(line));
        }
        let idle = self.idle(&members[0].running)?;
        self.note(costs::MEMBER_IDLE, idle, "one of three members without clients");
        let puts = format!("{PUTS} --rate=200");
        let each = by_cost(self.alone(idle, words(&format!("{puts} {on_leader}")))?)?;
        self.note_alone(costs::LEADER_PUT, each[2], &puts);
        self.note_alone(costs::FOLLOWER_PUT, f64::midpoint(each[0], each[1]), &puts);
        let reads = format!("{PASSED} --rate=500");
        let each = by_cost(self.alone(idle, words(&format!("{reads} {on_leader}")))?)?;
        self.note_alone(costs::LEADER_RANGE, each[2], &reads);
        Ok(())
    }

    fn member_and_proxy(&mut self) -> Result<(), String> {
        let programs = self.programs;
        let member = Member::start(programs, &programs.ours, Security::Off)?;
        member.put(programs, "foo")?;
        member.put(programs, "b/1")?;
        let proxy = Proxy::start(programs, &programs.ours, &[&member.endpoint], "--cache-prefix=b/")?;
        let on_member = |taken: &Self, figure, line| taken.figure(figure, || taken.run(member.words(line)));
        let on_proxy = |taken: &Self, figure, line| taken.figure(figure, || taken.run(proxy.words(line)));
        for (name, line) in [(costs::MEMBER_EVENT, EVENTS), (costs::MEMBER_KEEPALIVE, KEEPALIVES)] {
            let value = on_member(self, CPU, line)?;
            self.note(name, value, &format!("one member; bench {line}"));
        }
        for (name, line) in [
            (costs::PROXY_PUT, PUTS),
            (costs::PROXY_CACHED_RANGE, CACHED),
            (costs::PROXY_PASSED_RANGE, PASSED),
            (costs::PROXY_EVENT, EVENTS),
            (costs::PROXY_KEEPALIVE, KEEPALIVES),
        ] {
            let value = on_proxy(self, CPU, line)?;
            self.note(name, value, &format!("one member, one proxy; bench {line}"));
        }
        let shared = on_proxy(self, CPU, SHARED_STREAMS)? - self.costs[costs::PROXY_EVENT].value / 10.0;
        let command =
            format!("one member, one proxy; bench {SHARED_STREAMS}, less a tenth of proxy_event, by nine tenths");
        self.note(costs::PROXY_EVENT_MORE, shared / 0.9, &command);
        // The puts of this load pass the proxy, too.
        let with_one = on_proxy(self, CPU, ONE_WATCHER)? - self.costs[costs::PROXY_PUT].value;
        let command = format!("one member, one proxy; bench {ONE_WATCHER}, less proxy_put and proxy_event");
        let own = with_one - self.costs[costs::PROXY_EVENT].value;
        self.note(costs::PROXY_UPSTREAM_EVENT, own, &command);
        let reads = self.figure(UPSTREAM_READS, || {
            let before = metric(&member.endpoint, "etcd_mvcc_range_total")?;
            let mut sample = self.run(proxy.words(CACHED))?;
            let reads = metric(&member.endpoint, "etcd_mvcc_range_total")? - before;
            sample.figures.insert(UPSTREAM_READS, reads / sample.figure(OPERATIONS)?.max(1.0));
            Ok(sample)
        })?;
        let command =
            format!("one member, one proxy; bench {CACHED}; etcd_mvcc_range_total of the member for each answer");
        self.note(costs::PROXY_UPSTREAM_READS, reads, &command);
        self.proxy_alone(&member, &proxy)?;
        for (name, longer, figure, line) in [
            (costs::MEMBER_READ, costs::PROXY_READ, P50, ONE_READER),
            (costs::MEMBER_DELIVERY, costs::PROXY_DELIVERY, DELIVERY_P50, FEW_WATCHERS),
        ] {
            let (direct, through) = (on_member(self, figure, line)?, on_proxy(self, figure, line)?);
            self.note(name, direct, &format!("one member; bench {line}; {figure}"));
            self.note(longer, through - direct, &format!("one member, one proxy; bench {line}; {figure} less {name}"));
        }
        Ok(())
    }

    fn proxy_alone(&mut self, member: &Member, proxy: &Proxy) -> Result<(), String> {
        let member_idle = self.costs[costs::MEMBER_IDLE].value;
        let idle = self.idle(&proxy.running)?;
        self.note(costs::PROXY_IDLE, idle, "one proxy without clients");
        for (name, line) in [
            (costs::PROXY_PUT, format!("{PUTS} --rate=200")),
            (costs::PROXY_CACHED_RANGE, format!("{CACHED} --rate=500")),
            (costs::PROXY_PASSED_RANGE, format!("{PASSED} --rate=500")),
            (costs::PROXY_KEEPALIVE, FEW_KEEPALIVES.to_owned()),
        ] {
            let value = self.one_alone(idle, proxy.words(&line))?;
            self.note_alone(name, value, &line);
        }
        let value = self.one_alone(member_idle, member.words(FEW_KEEPALIVES))?;
        self.note_alone(costs::MEMBER_KEEPALIVE, value, FEW_KEEPALIVES);
        // The put of each event costs both of them, too, and is counted with the puts.
        let puts = format!("{PUTS} --rate=200");
        let less = format!("{FEW_EVENTS}, less the same of a put ({puts}) by {FEW_STREAMS} streams");
        let put = self.costs[costs::PROXY_PUT].alone.unwrap_or_default();
        let value = self.one_alone(idle, proxy.words(FEW_EVENTS))? - put / FEW_STREAMS;
        self.note_alone(costs::PROXY_EVENT, value, &less);
        let put = self.one_alone(member_idle, member.words(&puts))?;
        let value = self.one_alone(member_idle, member.words(FEW_EVENTS))? - put / FEW_STREAMS;
        self.note_alone(costs::MEMBER_EVENT, value, &less);
        Ok(())
    }

    /// The same of a load on one process.
    fn one_alone(&self, idle: f64, all: Vec<String>) -> Result<f64, String> {
        self.alone(idle, all)?.first().copied().ok_or_else(|| "the process is gone".to_owned())
    }

    /// Each round has processes of its own, since memory that was used once stays resident.
    fn memory(&mut self) -> Result<(), String> {
        let programs = self.programs;
        let start = || Member::start(programs, &programs.ours, Security::Off);
        let base = self.figure(RESIDENT, || {
            let member = start()?;
            measure(programs, &member.words("range --total=1 foo"))
        })?;
        self.note(costs::MEMBER_BASE, base * MIB, "one new member; bench range --total=1 foo; resident");
        let stream = self.figure(IDLE_BYTES, || measure(programs, &start()?.words(IDLE_STREAMS)))?;
        self.note(costs::MEMBER_STREAM, stream, &format!("one new member; bench {IDLE_STREAMS}"));
        let member = start()?;
        let proxy = || Proxy::start(programs, &programs.ours, &[&member.endpoint], "");
        let base = self.figure(RESIDENT, || measure(programs, &proxy()?.words("range --total=1 foo")))?;
        self.note(costs::PROXY_BASE, base * MIB, "one new proxy; bench range --total=1 foo; resident");
        let stream = self.figure(IDLE_BYTES, || measure(programs, &proxy()?.words(IDLE_STREAMS)))?;
        self.note(costs::PROXY_STREAM, stream, &format!("one new proxy; bench {IDLE_STREAMS}"));
        let with_watchers = self.figure(IDLE_BYTES, || measure(programs, &proxy()?.words(IDLE_WATCHERS)))?;
        let command = format!("one new proxy; bench {IDLE_WATCHERS}, less proxy_stream, for each of 100");
        self.note(costs::PROXY_WATCHER, (with_watchers - stream) / 100.0, &command);
        Ok(())
    }

    fn gateway(&mut self) -> Result<(), String> {
        let programs = self.programs;
        let (gateway, direct) = (Forwarder::gateway(programs)?, Forwarder::direct()?);
        let cpu = self.figure(CPU, || self.run(gateway.words(ROUND)))?;
        self.note(costs::GATEWAY_ROUND, cpu, &format!("one gateway; bench {ROUND}"));
        let through = self.figure(P50_MICROS, || self.run(gateway.words(ONE_ROUND)))?;
        let alone = self.figure(P50_MICROS, || self.run(direct.words(ONE_ROUND)))?;
        let command = format!("one gateway; bench {ONE_ROUND}; p50 less that without a gateway");
        self.note(costs::GATEWAY_DELAY, (through - alone) / 1e3, &command);
        let base = self.figure(RESIDENT, || {
            let gateway = Forwarder::gateway(programs)?;
            let mut sample = Sample::default();
            sample.figures.insert(RESIDENT, gateway.resident_bytes()? / MIB);
            Ok(sample)
        })?;
        self.note(costs::GATEWAY_BASE, base * MIB, "one new gateway; resident");
        let connection = self.figure(BYTES_PER_CONNECTION, || {
            measure(programs, &Forwarder::gateway(programs)?.words(IDLE_CONNECTIONS))
        })?;
        self.note(costs::GATEWAY_CONNECTION, connection, &format!("one new gateway; bench {IDLE_CONNECTIONS}"));
        Ok(())
    }
}

/// The costs of three members in rising order: the leader takes the load, so it has the most.
fn by_cost(mut each: Vec<f64>) -> Result<[f64; 3], String> {
    each.sort_by(f64::total_cmp);
    each.try_into().map_err(|_| "a member is gone".to_owned())
}

/// How long an idle process is looked at, with runs of so many seconds.
fn idle_time(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds * 2.0).max(IDLE_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_processes_are_looked_at_long_enough() {
        // Some ticks of 10 ms were all that runs of 3 s saw of them.
        assert_eq!(idle_time(3.0), Duration::from_secs(20));
        assert_eq!(idle_time(30.0), Duration::from_secs(60));
    }
}
