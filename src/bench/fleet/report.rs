use std::fmt::Write as _;

use super::costs::Costs;
use super::model::{Capacity, Demand, Fleet};

const MIB: f64 = 1024.0 * 1024.0;

/// The computed fleet in Markdown.
pub(super) fn text(demand: &Demand, capacity: &Capacity, fleet: &Fleet, costs: &Costs) -> String {
    let mut text = format!(
        "Computed for {:.0} watchers on {:.0} streams, {} puts/s of which a watcher sees {:.1} %, {} linearizable reads/s, \
         {} keep-alives/s, with the costs of: {}\n\n\
         | level | processes | cores each | cores all | MiB each | Mbit/s in, out each | adds to a read, ms | to the last event, ms |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        demand.watchers,
        (demand.watchers / demand.watchers_per_stream).ceil(),
        demand.events,
        demand.watched_share * 100.0,
        demand.reads,
        demand.keepalives,
        costs.setup,
    );
    for level in &fleet.levels {
        let [least, most] = level.cores();
        let most = most.min(capacity.cores).max(least);
        let _ = writeln!(
            text,
            "| {} | {} | {least:.3} to {most:.3} | {:.2} to {:.2} | {:.0} | {:.1}, {:.1} | {:.3} | {:.2} |",
            level.name,
            level.processes,
            least * level.processes,
            most * level.processes,
            level.memory_bytes / MIB,
            level.bytes_in * 8.0 / 1e6,
            level.bytes_out * 8.0 / 1e6,
            level.read_ms,
            level.event_ms
        );
    }
    let sum = |of: &dyn Fn(&super::model::Level) -> f64| fleet.levels.iter().map(of).sum::<f64>();
    let most = |level: &super::model::Level| level.cores()[1].min(capacity.cores).max(level.cores()[0]);
    let _ = writeln!(
        text,
        "\nA read that the cluster answers takes {:.2} ms, the last watcher has an event after {:.2} ms. All processes together: \
         {:.1} to {:.1} cores, {:.1} GiB.\n\nOf the cores the first number is that of operations among many others, as on a process that is busy, the second that of \
         each alone, or all that a process has: what waits for a processor is done together. What they do:\n",
        sum(&|level| level.read_ms),
        sum(&|level| level.event_ms),
        sum(&|level| level.cores()[0] * level.processes),
        sum(&|level| most(level) * level.processes),
        sum(&|level| level.memory_bytes * level.processes) / MIB / 1024.0,
    );
    for level in &fleet.levels {
        let parts: Vec<String> =
            level.cpu.iter().map(|(what, cores)| format!("{what} {:.3} to {:.3}", cores[0], cores[1])).collect();
        let _ = writeln!(text, "- {}: {}", level.name, parts.join(", "));
    }
    let limit = &fleet.first_limit;
    let _ = writeln!(
        text,
        "\nFirst limit: {} of {}, at {:.0} % of what may be used (70 % of {} cores, {:.0} MiB, {:.0} Mbit/s for each process). {}",
        limit.resource,
        limit.level,
        limit.used * 100.0,
        capacity.cores,
        capacity.memory_bytes / MIB,
        capacity.network * 8.0 / 1e6,
        if limit.used > 1.0 {
            format!("This fleet does not hold the load: {:.2} of it.", 1.0 / limit.used)
        } else {
            format!("It holds {:.1} times the load.", 1.0 / limit.used)
        }
    );
    text
}

/// The costs and how each is measured, in Markdown.
pub(super) fn costs_text(costs: &Costs) -> String {
    let mut text = format!("Measured: {}\n\n| cost | value | how |\n| --- | ---: | --- |\n", costs.setup);
    for (name, cost) in &costs.costs {
        let alone = cost.alone.map_or(String::new(), |alone| format!(", alone {alone:.3}"));
        let _ = writeln!(text, "| {name} | {:.3}{alone} {} | {} |", cost.value, cost.unit, cost.command);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::costs::tests::round;
    use super::super::model::{Shape, fleet};
    use super::*;

    #[test]
    fn the_text_says_what_holds_and_what_does_not() {
        let demand = Demand {
            watchers: 1000.0,
            watchers_per_stream: 10.0,
            events: 100.0,
            watched_share: 1.0,
            reads: 0.0,
            cached_share: 0.0,
            keepalives: 0.0,
            key_bytes: 10.0,
            value_bytes: 100.0,
        };
        let shape = Shape { members: 3, levels: vec![2], hosts: 0, connections_per_host: 0.0 };
        let said = |cores: f64| {
            let capacity = Capacity { cores, memory_bytes: 1e9, network: 1e9 };
            text(&demand, &capacity, &fleet(&demand, &shape, &capacity, &round()), &round())
        };
        // Some 50,000 deliveries of 10 µs on each of the two.
        assert!(said(1.0).contains("First limit: CPU of proxies, level 1, at 72 %"), "{}", said(1.0));
        assert!(said(1.0).contains("It holds 1.4 times the load."), "{}", said(1.0));
        assert!(said(0.5).contains("does not hold the load: 0.70 of it"), "{}", said(0.5));
        assert!(said(1.0).contains("- leader: idle 0.000 to 0.000, puts 0.001 to 0.001, reads 0.000"), "{}", said(1.0));
        assert!(costs_text(&round()).contains("| leader_put | 10.000 cpu µs | none |"));
    }
}
