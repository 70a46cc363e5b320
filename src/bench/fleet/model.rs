//! The computation: pure functions of load, shape and costs.

use serde::Serialize;

use super::costs::{self, Costs};

/// Bytes around an event on a stream: HTTP/2 and gRPC frames, header of the response, numbers of the pair.
const EVENT_EXTRA_BYTES: f64 = 85.0;
/// The same around the answer to a read, and a read itself.
const ANSWER_EXTRA_BYTES: f64 = 95.0;
const READ_BYTES: f64 = 70.0;
/// A renewal or its answer, with frames.
const KEEPALIVE_BYTES: f64 = 50.0;
/// Part of a resource that is planned with: above it waiting times grow fast.
const USABLE: f64 = 0.7;

/// What clients do, all of them together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Demand {
    pub(super) watchers: f64,
    pub(super) watchers_per_stream: f64,
    /// Puts per second; each is an event.
    pub(super) events: f64,
    /// Share of events that a watcher sees.
    pub(super) watched_share: f64,
    /// Linearizable reads per second.
    pub(super) reads: f64,
    /// Share of reads of keys that proxies cache.
    pub(super) cached_share: f64,
    /// Renewals of leases per second.
    pub(super) keepalives: f64,
    pub(super) key_bytes: f64,
    pub(super) value_bytes: f64,
}

/// What stands in front of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Shape {
    pub(super) members: u32,
    /// Proxies in each level, from the cluster outwards.
    pub(super) levels: Vec<u32>,
    /// Machines with a gateway between their clients and the last level; 0 without gateways.
    pub(super) hosts: u32,
    /// Connections of each of them.
    pub(super) connections_per_host: f64,
}

/// What each process may use.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Capacity {
    pub(super) cores: f64,
    pub(super) memory_bytes: f64,
    /// Bytes per second in one direction.
    pub(super) network: f64,
}

/// One process of a level, all of whose processes are alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Level {
    pub(super) name: String,
    pub(super) processes: f64,
    /// Cores of one process, by what needs them: with operations among many others, and with each alone.
    pub(super) cpu: Vec<(&'static str, [f64; 2])>,
    pub(super) memory_bytes: f64,
    pub(super) bytes_in: f64,
    pub(super) bytes_out: f64,
    /// What this level adds to a read that nothing delays.
    pub(super) read_ms: f64,
    /// What it adds to an event on its way to the last of its watchers.
    pub(super) event_ms: f64,
}

/// A resource and how much of what is usable of it is used.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Limit {
    pub(super) level: String,
    pub(super) resource: &'static str,
    /// 1 is all that is usable.
    pub(super) used: f64,
}

/// The whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Fleet {
    pub(super) levels: Vec<Level>,
    /// The resource of which most is used.
    pub(super) first_limit: Limit,
}

impl Level {
    /// At least and at most.
    pub(super) fn cores(&self) -> [f64; 2] {
        self.cpu.iter().fold([0.0; 2], |sum, (_, cores)| plus(sum, *cores))
    }

    /// What is used of resources. Operations that wait for a processor are done together, so what each needs alone limits nothing.
    fn limits(&self, capacity: &Capacity) -> [Limit; 3] {
        let limit = |resource, part: f64| Limit { level: self.name.clone(), resource, used: part / USABLE };
        [
            limit("CPU", self.cores()[0] / capacity.cores),
            limit("memory", self.memory_bytes / capacity.memory_bytes),
            limit("network", self.bytes_in.max(self.bytes_out) / capacity.network),
        ]
    }
}

/// What a level is asked for by those outside of it, all of its processes together.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Asked {
    reads: f64,
    /// Streams with watchers.
    streams: f64,
    watchers: f64,
    /// Events sent to streams per second, one to all watchers of a stream that see it.
    messages: f64,
    /// Events sent to watchers per second.
    deliveries: f64,
}

/// Computes all levels, the cluster first.
pub(super) fn fleet(demand: &Demand, shape: &Shape, capacity: &Capacity, costs: &Costs) -> Fleet {
    let streams = (demand.watchers / demand.watchers_per_stream).ceil();
    // A stream gets an event that one of its watchers sees; they choose what they watch each by itself.
    let stream_share = 1.0 - (1.0 - demand.watched_share).powf(demand.watchers_per_stream);
    let mut asked = Asked {
        reads: demand.reads,
        streams,
        watchers: demand.watchers,
        messages: streams * demand.events * stream_share,
        deliveries: demand.watchers * demand.events * demand.watched_share,
    };
    let mut levels = Vec::new();
    if shape.hosts > 0 {
        levels.push(gateways(demand, shape, &asked, costs));
    }
    // From the clients to the cluster: each level asks the one before for what it does not have.
    for (number, &proxies) in shape.levels.iter().enumerate().rev() {
        let (level, upstream) = proxy_level(number + 1, f64::from(proxies), demand, capacity, &asked, costs);
        levels.push(level);
        asked = upstream;
    }
    levels.push(followers(demand, shape, costs));
    levels.push(leader(demand, shape, capacity, &asked, costs));
    if shape.members < 2 {
        levels.remove(levels.len() - 2);
    }
    levels.reverse();
    let limits = levels.iter().flat_map(|level| level.limits(capacity));
    let first_limit = limits.max_by(|one, other| one.used.total_cmp(&other.used)).expect("there is a leader");
    Fleet { levels, first_limit }
}

fn event_bytes(demand: &Demand) -> f64 {
    demand.key_bytes + demand.value_bytes + EVENT_EXTRA_BYTES
}

fn answer_bytes(demand: &Demand) -> f64 {
    demand.key_bytes + demand.value_bytes + ANSWER_EXTRA_BYTES
}

fn proxy_level(
    number: usize,
    proxies: f64,
    demand: &Demand,
    capacity: &Capacity,
    asked: &Asked,
    costs: &Costs,
) -> (Level, Asked) {
    let each = |all: f64| all / proxies;
    let cached = asked.reads * demand.cached_share;
    let passed = asked.reads - cached;
    // What many ask for at once is one read of the cluster; a proxy never reads more often than it is asked.
    let confirming = cached * costs.of(costs::PROXY_UPSTREAM_READS);
    let (more_watchers, puts) = (asked.watchers - asked.streams, demand.events);
    let cpu = vec![
        ("idle", costs.cpu(costs::PROXY_IDLE)),
        ("events from upstream", times(demand.events, costs.cpu(costs::PROXY_UPSTREAM_EVENT))),
        ("events to clients", times(1.0 / proxies, delivery_cpu(asked, costs))),
        ("cached reads", times(each(cached), costs.cpu(costs::PROXY_CACHED_RANGE))),
        ("passed reads", times(each(passed), costs.cpu(costs::PROXY_PASSED_RANGE))),
        ("keep-alives", times(each(demand.keepalives), costs.cpu(costs::PROXY_KEEPALIVE))),
        ("puts", times(each(puts), costs.cpu(costs::PROXY_PUT))),
    ];
    let upstream_reads = each(passed + confirming);
    let (event, answer) = (event_bytes(demand), answer_bytes(demand));
    let level = Level {
        name: format!("proxies, level {number}"),
        processes: proxies,
        cpu,
        memory_bytes: costs.of(costs::PROXY_BASE)
            + each(asked.streams) * costs.of(costs::PROXY_STREAM)
            + each(more_watchers.max(0.0)) * costs.of(costs::PROXY_WATCHER),
        bytes_in: demand.events * event
            + upstream_reads * answer
            + each(asked.reads) * READ_BYTES
            + each(puts) * event
            + each(demand.keepalives) * 2.0 * KEEPALIVE_BYTES,
        bytes_out: each(asked.deliveries) * event
            + each(asked.reads) * answer
            + upstream_reads * READ_BYTES
            + each(puts) * event
            + each(demand.keepalives) * 2.0 * KEEPALIVE_BYTES,
        read_ms: costs.of(costs::PROXY_READ),
        event_ms: costs.of(costs::PROXY_DELIVERY)
            + last_watcher_ms(each(delivery_cpu(asked, costs)[0]), demand, capacity),
    };
    // One upstream watch for each proxy, which gets every event.
    let upstream = Asked {
        reads: passed + confirming,
        streams: proxies,
        watchers: proxies,
        messages: proxies * demand.events,
        deliveries: proxies * demand.events,
    };
    (level, upstream)
}

/// Seconds of CPU per second for all events that proxies send.
fn delivery_cpu(asked: &Asked, costs: &Costs) -> [f64; 2] {
    let more = (asked.deliveries - asked.messages).max(0.0);
    plus(times(asked.messages, costs.cpu(costs::PROXY_EVENT)), times(more, costs.cpu(costs::PROXY_EVENT_MORE)))
}

fn times(rate: f64, cost: [f64; 2]) -> [f64; 2] {
    cost.map(|cost| rate * cost)
}

fn plus(one: [f64; 2], other: [f64; 2]) -> [f64; 2] {
    [one[0] + other[0], one[1] + other[1]]
}

/// Time from the first to the last watcher that one event is sent to, by what all events of a second take.
fn last_watcher_ms(cpu: f64, demand: &Demand, capacity: &Capacity) -> f64 {
    if demand.events == 0.0 { 0.0 } else { cpu / demand.events / capacity.cores * 1e3 }
}

fn leader(demand: &Demand, shape: &Shape, capacity: &Capacity, asked: &Asked, costs: &Costs) -> Level {
    let (event, answer) = (event_bytes(demand), answer_bytes(demand));
    Level {
        name: "leader".into(),
        processes: 1.0,
        // All that can go to any member is counted here: the worst place for it.
        cpu: vec![
            ("idle", costs.cpu(costs::MEMBER_IDLE)),
            ("puts", times(demand.events, costs.cpu(costs::LEADER_PUT))),
            ("reads", times(asked.reads, costs.cpu(costs::LEADER_RANGE))),
            ("events", times(asked.deliveries, costs.cpu(costs::MEMBER_EVENT))),
            ("keep-alives", times(demand.keepalives, costs.cpu(costs::MEMBER_KEEPALIVE))),
        ],
        memory_bytes: costs.of(costs::MEMBER_BASE) + asked.streams * costs.of(costs::MEMBER_STREAM),
        bytes_in: demand.events * event + asked.reads * READ_BYTES + demand.keepalives * KEEPALIVE_BYTES,
        bytes_out: asked.deliveries * event
            + asked.reads * answer
            + demand.keepalives * KEEPALIVE_BYTES
            // Each put goes to every follower.
            + (f64::from(shape.members) - 1.0) * demand.events * event,
        read_ms: costs.of(costs::MEMBER_READ),
        event_ms: costs.of(costs::MEMBER_DELIVERY)
            + last_watcher_ms(asked.deliveries * costs.cpu(costs::MEMBER_EVENT)[0], demand, capacity),
    }
}

fn followers(demand: &Demand, shape: &Shape, costs: &Costs) -> Level {
    let bytes = demand.events * event_bytes(demand);
    Level {
        name: "followers".into(),
        processes: f64::from(shape.members) - 1.0,
        cpu: vec![
            ("idle", costs.cpu(costs::MEMBER_IDLE)),
            ("puts", times(demand.events, costs.cpu(costs::FOLLOWER_PUT))),
        ],
        memory_bytes: costs.of(costs::MEMBER_BASE),
        bytes_in: bytes,
        bytes_out: demand.events * KEEPALIVE_BYTES,
        read_ms: 0.0,
        event_ms: 0.0,
    }
}

fn gateways(demand: &Demand, shape: &Shape, asked: &Asked, costs: &Costs) -> Level {
    let hosts = f64::from(shape.hosts);
    let messages = asked.messages + 2.0 * (asked.reads + demand.keepalives + demand.events);
    let (event, answer) = (event_bytes(demand), answer_bytes(demand));
    let down = asked.deliveries * event + asked.reads * answer + demand.keepalives * KEEPALIVE_BYTES;
    let up = asked.reads * READ_BYTES + demand.keepalives * KEEPALIVE_BYTES + demand.events * event;
    Level {
        name: "gateways, one on each host".into(),
        processes: hosts,
        // A round is a message in each direction.
        cpu: vec![("messages", times(messages / hosts / 2.0, costs.cpu(costs::GATEWAY_ROUND)))],
        memory_bytes: costs.of(costs::GATEWAY_BASE) + shape.connections_per_host * costs.of(costs::GATEWAY_CONNECTION),
        bytes_in: (down + up) / hosts,
        bytes_out: (down + up) / hosts,
        read_ms: costs.of(costs::GATEWAY_DELAY),
        event_ms: costs.of(costs::GATEWAY_DELAY) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::costs::tests::round;
    use super::*;

    const DEMAND: Demand = Demand {
        watchers: 1000.0,
        watchers_per_stream: 10.0,
        events: 100.0,
        watched_share: 0.5,
        reads: 2000.0,
        cached_share: 0.5,
        keepalives: 300.0,
        key_bytes: 5.0,
        value_bytes: 10.0,
    };
    const CAPACITY: Capacity = Capacity { cores: 2.0, memory_bytes: 1e9, network: 1e9 };

    fn computed(demand: &Demand, levels: &[u32], hosts: u32) -> Fleet {
        let shape = Shape { members: 3, levels: levels.to_vec(), hosts, connections_per_host: 4.0 };
        fleet(demand, &shape, &CAPACITY, &round())
    }

    fn cores(level: &Level) -> Vec<f64> {
        let busy = level.cpu.iter().filter(|(what, _)| *what != "idle");
        busy.map(|(_, cores)| (cores[0] * 1e6).round() / 1e6).collect()
    }

    #[test]
    fn one_level_takes_what_clients_ask_and_asks_for_the_rest() {
        let fleet = computed(&DEMAND, &[4], 0);
        let [leader, followers, proxies] = &fleet.levels[..] else { panic!("{fleet:?}") };
        // 100 upstream events; 50,000 deliveries in 10,000 messages at the same cost, 1,000 cached and 1,000 passed reads, 300 keep-alives, 100 puts for four.
        assert_eq!(cores(proxies), [0.001, 0.125, 0.0025, 0.0025, 0.00075, 0.00025]);
        // A base, 25 streams and the 225 other watchers.
        assert_eq!(proxies.memory_bytes, 1000.0 + 25_000.0 + 225_000.0);
        // 1 ms, and 125 watchers of an event at 10 µs on two cores.
        assert_eq!(proxies.event_ms, 1.0 + 0.625);
        // 1,000 passed reads and 100 that confirm; every event for four proxies.
        assert_eq!(cores(leader), [0.001, 0.011, 0.004, 0.003]);
        assert_eq!((followers.processes, cores(followers)), (2.0, vec![0.001]));
    }

    #[test]
    fn a_level_in_between_takes_the_watches_of_the_next_one() {
        let fleet = computed(&DEMAND, &[2, 10], 0);
        let [leader, _, inner, outer] = &fleet.levels[..] else { panic!("{fleet:?}") };
        assert_eq!((inner.name.as_str(), outer.name.as_str()), ("proxies, level 1", "proxies, level 2"));
        // Five proxies for each of the two, with every event each.
        assert_eq!(cores(inner)[1], 0.005);
        assert_eq!(inner.memory_bytes, 1000.0 + 5_000.0);
        // 2,000 reads: half and a tenth of the other half pass level 2, and again.
        assert_eq!(cores(leader)[1], 0.00605);
        assert_eq!(cores(leader)[2], 0.002, "two watches instead of ten");
    }

    #[test]
    fn the_leader_sends_each_put_to_every_follower() {
        let bytes_out = |members| {
            let shape = Shape { members, levels: vec![4], hosts: 0, connections_per_host: 0.0 };
            fleet(&DEMAND, &shape, &CAPACITY, &round()).levels[0].bytes_out
        };
        // 100 puts a second of 15 bytes and what is around them.
        let follower = 100.0 * (15.0 + EVENT_EXTRA_BYTES);
        for (members, followers) in [(1, 0.0), (3, 2.0), (5, 4.0)] {
            let sent = bytes_out(members) - bytes_out(1);
            assert!((sent - followers * follower).abs() < 1e-6, "{members} members: {sent}");
        }
    }

    #[test]
    fn gateways_move_messages_both_ways() {
        let fleet = computed(&DEMAND, &[4], 10);
        let gateways = fleet.levels.last().unwrap();
        assert_eq!(gateways.processes, 10.0);
        assert_eq!(cores(gateways), [0.007395], "9,990 events and 4,800 messages, half a round each");
        assert_eq!(gateways.memory_bytes, 5000.0);
    }

    #[test]
    fn the_first_limit_is_the_resource_that_is_used_most() {
        let fleet = computed(&DEMAND, &[4], 0);
        let limit = fleet.first_limit;
        assert_eq!((limit.level.as_str(), limit.resource), ("proxies, level 1", "CPU"));
        assert!((limit.used - 0.13201 / 2.0 / USABLE).abs() < 1e-9, "{limit:?}");
        let idle = Demand { events: 0.0, reads: 0.0, keepalives: 0.0, ..DEMAND };
        let limit = computed(&Demand { watchers: 1e6, ..idle }, &[1], 0).first_limit;
        assert_eq!((limit.level.as_str(), limit.resource), ("proxies, level 1", "memory"));
        let large = Demand { value_bytes: 1e6, events: 1000.0, watchers: 1.0, reads: 0.0, keepalives: 0.0, ..DEMAND };
        assert_eq!(computed(&large, &[1], 0).first_limit.resource, "network");
    }

    #[test]
    fn what_is_alone_costs_more_and_limits_nothing() {
        let mut costs = round();
        costs.costs.get_mut(costs::PROXY_EVENT).unwrap().alone = Some(30.0);
        let shape = Shape { members: 3, levels: vec![4], hosts: 0, connections_per_host: 0.0 };
        let fleet = fleet(&DEMAND, &shape, &CAPACITY, &costs);
        let [least, most] = fleet.levels[2].cores();
        // 9,990 messages for four proxies, 20 µs more each.
        assert!((least - 0.13201).abs() < 1e-5 && (most - least - 0.04995).abs() < 1e-5, "{least} {most}");
        assert!((fleet.first_limit.used - least / 2.0 / USABLE).abs() < 1e-9);
    }

    #[test]
    fn without_proxies_the_cluster_has_it_all_and_one_member_has_no_followers() {
        let shape = Shape { members: 1, levels: vec![], hosts: 0, connections_per_host: 0.0 };
        let fleet = fleet(&DEMAND, &shape, &CAPACITY, &round());
        let [leader] = &fleet.levels[..] else { panic!("{fleet:?}") };
        assert_eq!(cores(leader), [0.001, 0.02, 0.5, 0.003]);
        assert_eq!(leader.memory_bytes, 1000.0 + 100.0 * 1000.0);
    }
}
