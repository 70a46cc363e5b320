use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What one operation costs, or one thing that is held.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Cost {
    pub(super) value: f64,
    /// The same at a low rate, where each operation wakes everything on its way; of CPU time only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) alone: Option<f64>,
    pub(super) unit: String,
    /// How it is measured.
    pub(super) command: String,
}

/// All costs of one build on one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Costs {
    /// The machine, the build and what else ran.
    pub(super) setup: String,
    pub(super) costs: BTreeMap<String, Cost>,
}

/// Every cost that the model uses, with its unit.
pub(super) const NAMES: &[(&str, &str)] = &[
    (MEMBER_IDLE, "cpu µs"),
    (PROXY_IDLE, "cpu µs"),
    (LEADER_PUT, "cpu µs"),
    (FOLLOWER_PUT, "cpu µs"),
    (LEADER_RANGE, "cpu µs"),
    (MEMBER_EVENT, "cpu µs"),
    (MEMBER_KEEPALIVE, "cpu µs"),
    (MEMBER_STREAM, "bytes"),
    (MEMBER_BASE, "bytes"),
    (MEMBER_READ, "ms"),
    (MEMBER_DELIVERY, "ms"),
    (PROXY_PUT, "cpu µs"),
    (PROXY_CACHED_RANGE, "cpu µs"),
    (PROXY_PASSED_RANGE, "cpu µs"),
    (PROXY_UPSTREAM_READS, "reads"),
    (PROXY_UPSTREAM_EVENT, "cpu µs"),
    (PROXY_EVENT, "cpu µs"),
    (PROXY_EVENT_MORE, "cpu µs"),
    (PROXY_KEEPALIVE, "cpu µs"),
    (PROXY_STREAM, "bytes"),
    (PROXY_WATCHER, "bytes"),
    (PROXY_BASE, "bytes"),
    (PROXY_READ, "ms"),
    (PROXY_DELIVERY, "ms"),
    (GATEWAY_ROUND, "cpu µs"),
    (GATEWAY_CONNECTION, "bytes"),
    (GATEWAY_BASE, "bytes"),
    (GATEWAY_DELAY, "ms"),
];

/// A second in which nothing happens.
pub(super) const MEMBER_IDLE: &str = "member_idle";
pub(super) const PROXY_IDLE: &str = "proxy_idle";
/// A put of 256 bytes on the leader of three members.
pub(super) const LEADER_PUT: &str = "leader_put";
/// The same on each follower.
pub(super) const FOLLOWER_PUT: &str = "follower_put";
/// A linearizable read on the leader of three members.
pub(super) const LEADER_RANGE: &str = "leader_range";
/// An event to one stream.
pub(super) const MEMBER_EVENT: &str = "member_event";
pub(super) const MEMBER_KEEPALIVE: &str = "member_keepalive";
/// An idle watch stream.
pub(super) const MEMBER_STREAM: &str = "member_stream";
/// A member with nothing in it.
pub(super) const MEMBER_BASE: &str = "member_base";
/// A read of one client, median.
pub(super) const MEMBER_READ: &str = "member_read";
/// From a put to its event at a few streams, median.
pub(super) const MEMBER_DELIVERY: &str = "member_delivery";
pub(super) const PROXY_PUT: &str = "proxy_put";
/// A linearizable read that the cache answers.
pub(super) const PROXY_CACHED_RANGE: &str = "proxy_cached_range";
pub(super) const PROXY_PASSED_RANGE: &str = "proxy_passed_range";
/// Reads of the cluster for each of them, as many clients at once share one.
pub(super) const PROXY_UPSTREAM_READS: &str = "proxy_upstream_reads";
/// An event from the cluster, whoever watches.
pub(super) const PROXY_UPSTREAM_EVENT: &str = "proxy_upstream_event";
/// An event to one stream of a client.
pub(super) const PROXY_EVENT: &str = "proxy_event";
/// The same event to one more watcher of the stream.
pub(super) const PROXY_EVENT_MORE: &str = "proxy_event_more";
pub(super) const PROXY_KEEPALIVE: &str = "proxy_keepalive";
/// An idle stream with one watcher.
pub(super) const PROXY_STREAM: &str = "proxy_stream";
/// One more watcher on a stream.
pub(super) const PROXY_WATCHER: &str = "proxy_watcher";
pub(super) const PROXY_BASE: &str = "proxy_base";
/// What a read of one client takes longer through a proxy.
pub(super) const PROXY_READ: &str = "proxy_read";
/// What an event takes longer through a proxy.
pub(super) const PROXY_DELIVERY: &str = "proxy_delivery";
/// A message of 128 bytes there and one back.
pub(super) const GATEWAY_ROUND: &str = "gateway_round";
pub(super) const GATEWAY_CONNECTION: &str = "gateway_connection";
pub(super) const GATEWAY_BASE: &str = "gateway_base";
/// What a round takes longer through a gateway.
pub(super) const GATEWAY_DELAY: &str = "gateway_delay";

/// Those measured when this was last done.
const STORED: &str = include_str!("costs.json");

impl Costs {
    /// Those of a file, or the stored ones.
    pub(super) fn load(file: Option<&Path>) -> Result<Self, String> {
        let Some(path) = file else { return Self::parse(STORED) };
        let text = std::fs::read_to_string(path).map_err(|error| format!("--costs {}: {error}", path.display()))?;
        Self::parse(&text).map_err(|error| format!("--costs {}: {error}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let costs: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        for (name, unit) in NAMES {
            let cost = costs.costs.get(*name).ok_or_else(|| format!("there is no {name}"))?;
            if !(cost.value >= 0.0 && cost.value.is_finite()) {
                return Err(format!("{name} is {}", cost.value));
            }
            if cost.alone.is_some_and(|alone| !(alone >= 0.0 && alone.is_finite())) {
                return Err(format!("{name} alone is {:?}", cost.alone));
            }
            if cost.unit != *unit {
                return Err(format!("{name} is in {}, not in {unit}", cost.unit));
            }
        }
        Ok(costs)
    }

    /// # Panics
    /// For a name that is not in [`NAMES`].
    pub(super) fn of(&self, name: &str) -> f64 {
        self.costs.get(name).map(|cost| cost.value).expect("every name was looked for when the costs were read")
    }

    /// CPU seconds: among many others, and alone.
    pub(super) fn cpu(&self, name: &str) -> [f64; 2] {
        let busy = self.of(name);
        let alone = self.costs.get(name).and_then(|cost| cost.alone).unwrap_or(busy);
        [busy / 1e6, alone.max(busy) / 1e6]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Round numbers: 10 µs, 1000 bytes, 1 ms, a tenth of a read.
    pub(in super::super) fn round() -> Costs {
        let cost = |unit: &str| match unit {
            "cpu µs" => 10.0,
            "bytes" => 1000.0,
            "reads" => 0.1,
            _ => 1.0,
        };
        let costs = NAMES.iter().map(|(name, unit)| {
            let cost = Cost { value: cost(unit), alone: None, unit: (*unit).into(), command: "none".into() };
            ((*name).to_owned(), cost)
        });
        Costs { setup: "a test".into(), costs: costs.collect() }
    }

    #[test]
    fn the_stored_costs_are_whole() {
        let costs = Costs::load(None).unwrap();
        assert_eq!(costs.costs.len(), NAMES.len());
        assert!(costs.costs.values().all(|cost| !cost.command.is_empty()));
    }

    #[test]
    fn costs_that_are_missing_or_make_no_sense_are_refused_by_name() {
        let changed = |change: fn(&mut Costs)| {
            let mut costs = round();
            change(&mut costs);
            Costs::parse(&serde_json::to_string(&costs).unwrap()).unwrap_err()
        };
        assert_eq!(changed(|costs| drop(costs.costs.remove(PROXY_PUT))), "there is no proxy_put");
        assert_eq!(changed(|costs| costs.costs.get_mut(PROXY_PUT).unwrap().value = -1.0), "proxy_put is -1");
        assert_eq!(
            changed(|costs| costs.costs.get_mut(PROXY_PUT).unwrap().unit = "ms".into()),
            "proxy_put is in ms, not in cpu µs"
        );
        assert!(Costs::load(Some(Path::new("/no/costs"))).unwrap_err().starts_with("--costs /no/costs: "));
    }
}
