//! Small fleets that run here, beside what the model says of them.

use std::fmt::Write as _;

use super::costs::Costs;
use super::model::{Capacity, Demand, Fleet, Shape, fleet};
use crate::bench::server::Reading;
use crate::bench::suite::load::{Load, OPERATIONS, PER_SECOND, duration, words};
use crate::bench::suite::members::{Member, Security};
use crate::bench::suite::programs::{Programs, Running};
use crate::bench::suite::proxies::Proxy;

/// What all clients of the small fleets do, per second where it is a rate.
const DEMAND: Demand = Demand {
    watchers: 2000.0,
    watchers_per_stream: 10.0,
    events: 20.0,
    watched_share: 1.0,
    reads: 2000.0,
    cached_share: 1.0,
    keepalives: 2000.0,
    key_bytes: 24.0,
    value_bytes: 256.0,
};
/// Proxies in each level of the fleets that run.
const SHAPES: [&[u32]; 3] = [&[1], &[4], &[1, 4]];

/// One process, computed and measured.
struct Compared {
    fleet: String,
    process: String,
    cores: [f64; 2],
    cores_measured: f64,
    memory_bytes: [f64; 2],
}

/// Runs the fleets and gives a table.
pub(super) fn run(programs: &Programs, seconds: f64, costs: &Costs) -> Result<String, String> {
    let mut all = Vec::new();
    for levels in SHAPES {
        all.extend(one(programs, levels, seconds, costs)?);
    }
    Ok(table(&all))
}

fn table(all: &[Compared]) -> String {
    let mut text = "| proxies by level | process | cores computed | measured | | MiB computed | measured | measured / computed |\n\
         | --- | --- | ---: | ---: | --- | ---: | ---: | ---: |\n"
        .to_owned();
    for one in all {
        let ([least, most], measured, [memory, memory_measured]) = (one.cores, one.cores_measured, one.memory_bytes);
        let verdict = if measured < least {
            format!("{:.2} of the least", measured / least)
        } else if measured > most {
            format!("{:.2} of the most", measured / most)
        } else {
            "within".to_owned()
        };
        let _ = writeln!(
            text,
            "| {} | {} | {least:.3} to {most:.3} | {measured:.3} | {verdict} | {:.0} | {:.0} | {:.2} |",
            one.fleet,
            one.process,
            memory / MIB,
            memory_measured / MIB,
            memory_measured / memory
        );
    }
    text
}

const MIB: f64 = 1024.0 * 1024.0;

/// Processes of one level.
struct RunningLevel {
    proxies: Vec<Proxy>,
}

fn one(programs: &Programs, levels: &[u32], seconds: f64, costs: &Costs) -> Result<Vec<Compared>, String> {
    let member = Member::start(programs, &programs.ours, Security::Off)?;
    member.put(programs, "b/1")?;
    let mut running: Vec<RunningLevel> = Vec::new();
    for &count in levels {
        let upstream: Vec<String> = match running.last() {
            None => vec![member.endpoint.clone()],
            Some(level) => level.proxies.iter().map(|proxy| proxy.endpoint.clone()).collect(),
        };
        let upstream: Vec<&str> = upstream.iter().map(String::as_str).collect();
        let start = |_| Proxy::start(programs, &programs.ours, &upstream, "--cache-prefix=b/");
        running.push(RunningLevel { proxies: (0..count).map(start).collect::<Result<_, String>>()? });
    }
    let clients: Vec<String> = match running.last() {
        None => vec![member.endpoint.clone()],
        Some(level) => level.proxies.iter().map(|proxy| proxy.endpoint.clone()).collect(),
    };
    let everyone: Vec<Vec<&Running>> = std::iter::once(vec![&member.running])
        .chain(running.iter().map(|level| level.proxies.iter().map(|proxy| &proxy.running).collect()))
        .collect();
    let (demand, measured) = loaded(programs, &clients, seconds, &everyone)?;
    let shape = Shape { members: 1, levels: levels.to_vec(), hosts: 0, connections_per_host: 0.0 };
    // Limits are of no interest here.
    let capacity = Capacity { cores: 1.0, memory_bytes: 1e12, network: 1e12 };
    Ok(compared(levels, &fleet(&demand, &shape, &capacity, costs), &measured))
}

/// Cores and memory of each process of a level on average, and what was really done.
fn loaded(
    programs: &Programs,
    clients: &[String],
    seconds: f64,
    everyone: &[Vec<&Running>],
) -> Result<(Demand, Vec<[f64; 2]>), String> {
    let readings = || -> Result<Vec<Vec<Reading>>, String> {
        let of = |level: &Vec<&Running>| level.iter().map(|one| Reading::of(&one.pid().to_string())).collect();
        everyone.iter().map(of).collect()
    };
    let endpoints = format!("--json --endpoints={}", clients.join(","));
    let start = |line: String| {
        let mut all = words(&format!("{line} {endpoints} --conns={}", clients.len().max(2) * 2));
        all.push(duration(seconds));
        Load::start(programs, &all)
    };
    let streams = DEMAND.watchers / DEMAND.watchers_per_stream;
    let before = readings()?;
    let begun = std::time::Instant::now();
    let watch = start(format!(
        "watch --streams={streams} --watchers-per-stream={} --put-rate={} --val-size={} --prefix=w/",
        DEMAND.watchers_per_stream, DEMAND.events, DEMAND.value_bytes
    ))?;
    let reads = start(format!("range --clients=32 --rate={} --consistency=l b/1", DEMAND.reads))?;
    let renewals =
        start(format!("lease-keepalive --leases=1000 --streams=8 --in-flight=16 --rate={}", DEMAND.keepalives))?;
    let (watch, reads, renewals) = (watch.finish()?, reads.finish()?, renewals.finish()?);
    let took = begun.elapsed().as_secs_f64();
    let after = readings()?;
    let mean = |level: usize| {
        let pairs = || before[level].iter().zip(&after[level]);
        let count = before[level].len() as f64;
        let cores = pairs().map(|(before, after)| after.cpu_seconds - before.cpu_seconds).sum::<f64>() / count / took;
        // At most: streams are gone at the end.
        let memory = pairs().map(|(_, after)| after.rss_peak_bytes as f64).sum::<f64>() / count;
        [cores, memory]
    };
    // Rates over the whole time, as the cores are.
    let rate = |operations: f64| operations / took;
    let demand = Demand {
        events: rate(watch.figure(OPERATIONS)?),
        reads: rate(reads.figure(OPERATIONS)?),
        keepalives: rate(renewals.figure(OPERATIONS)?),
        ..DEMAND
    };
    eprintln!("{} puts/s, {} reads/s", watch.figure(PER_SECOND)?, reads.figure(PER_SECOND)?);
    Ok((demand, (0..everyone.len()).map(mean).collect()))
}

fn compared(levels: &[u32], fleet: &Fleet, measured: &[[f64; 2]]) -> Vec<Compared> {
    let name = levels.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let of = |(level, measured): (&super::model::Level, &[f64; 2])| Compared {
        fleet: name.clone(),
        process: if level.name == "leader" { "member".into() } else { level.name.clone() },
        cores: level.cores(),
        cores_measured: measured[0],
        memory_bytes: [level.memory_bytes, measured[1]],
    };
    fleet.levels.iter().zip(measured).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::super::costs::tests::round;
    use super::*;

    #[test]
    fn each_process_is_beside_its_level() {
        let shape = Shape { members: 1, levels: vec![1, 4], hosts: 0, connections_per_host: 0.0 };
        let capacity = Capacity { cores: 1.0, memory_bytes: 1.0, network: 1.0 };
        let fleet = fleet(&DEMAND, &shape, &capacity, &round());
        let all = compared(&[1, 4], &fleet, &[[0.1, MIB], [0.2, MIB], [0.3, 2.0 * MIB]]);
        let processes: Vec<_> = all.iter().map(|one| one.process.as_str()).collect();
        assert_eq!(processes, ["member", "proxies, level 1", "proxies, level 2"]);
        let text = table(&all);
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.contains("| 1, 4 | proxies, level 2 |"), "{text}");
    }
}
