//! What is measured, with the floors that hold and the aims.

use super::gateways::{self, DIRECT, HAPROXY, RECOVERY};
use super::judge::{Against, Target, less, more};
use super::load::{
    BYTES_PER_CONNECTION, CPU, CPU_PER_GIGABYTE, DELIVERY_P99, EVENTS, FAILED_SHARE, GENERATOR_CPU, GIGABYTES,
    IDLE_BYTES, P50, P50_MICROS, P99, P99_9, P99_MICROS, PER_SECOND, RESIDENT,
};
use super::members::{self, Security};
use super::programs::Programs;
use super::proxies::{self, UPSTREAM_READS, UPSTREAM_WATCHES, WATCHER_BYTES};
use super::side::Sides;

/// One row of the table.
pub(super) struct Row {
    pub(super) name: &'static str,
    /// The load, or what is done.
    pub(super) what: &'static str,
    /// Whether one round is one of many: a row of memory or of times takes three at most.
    pub(super) is_slow: bool,
    pub(super) targets: &'static [Target],
    /// Starts what it needs.
    pub(super) open: fn(&Programs, &'static str) -> Result<Sides, String>,
}

const SHOWN: Option<f64> = None;

/// Shown without floor and aim.
const fn shown(figure: &'static str) -> Target {
    less(figure, None, None)
}

/// Both in front of the same member, or each in front of one: a load with 8 connections and 64 clients.
macro_rules! load {
    (put) => {
        "put --key-size=16 --val-size=256 --key-space-size=10000 --conns=8 --clients=64"
    };
    (range $consistency:literal $key:literal) => {
        concat!("range --conns=8 --clients=64 --consistency=", $consistency, " ", $key)
    };
}

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "put-64",
        what: load!(put),
        is_slow: false,
        targets: &[
            more(PER_SECOND, Some(1.6), Some(2.5)),
            shown(P50),
            shown(P99),
            less(P99_9, Some(1.0), Some(0.5)),
            less(CPU, Some(0.5), None),
            shown(GENERATOR_CPU),
        ],
        open: |programs, line| members::one_member(programs, line, Security::Off),
    },
    Row {
        name: "put-1",
        what: "put --key-size=16 --val-size=256 --key-space-size=10000 --conns=1 --clients=1",
        is_slow: false,
        targets: &[
            more(PER_SECOND, SHOWN, SHOWN),
            less(P50, Some(0.75), Some(0.55)),
            shown(P99),
            shown(P99_9),
            shown(CPU),
        ],
        open: |programs, line| members::one_member(programs, line, Security::Off),
    },
    Row {
        name: "range-linearizable",
        what: load!(range "l" "foo"),
        is_slow: false,
        targets: &[more(PER_SECOND, Some(2.2), Some(4.0)), shown(P50), shown(P99), shown(CPU), shown(GENERATOR_CPU)],
        open: |programs, line| members::one_member(programs, line, Security::Off),
    },
    Row {
        name: "range-serializable",
        what: load!(range "s" "foo"),
        is_slow: false,
        targets: &[more(PER_SECOND, Some(1.8), Some(4.0)), shown(P50), shown(P99), shown(CPU), shown(GENERATOR_CPU)],
        open: |programs, line| members::one_member(programs, line, Security::Off),
    },
    Row {
        name: "watch-puts",
        what: "watch --streams=2000 --conns=8 --put-rate=400",
        is_slow: false,
        // Of 400 that are asked for, the last second's may be under way at the end.
        targets: &[
            more(PER_SECOND, Some(396.0), None).against(Against::Nothing),
            more(EVENTS, SHOWN, SHOWN),
            shown(P50),
            shown(DELIVERY_P99),
            shown(CPU),
        ],
        open: |programs, line| members::one_member(programs, line, Security::Off),
    },
    Row {
        name: "watch-puts-800",
        what: "watch --streams=2000 --conns=8 --put-rate=800",
        is_slow: false,
        targets: &[
            more(PER_SECOND, None, Some(792.0)).against(Against::Nothing),
            more(EVENTS, SHOWN, SHOWN),
            shown(P50),
            shown(CPU),
            shown(GENERATOR_CPU),
        ],
        open: |programs, line| members::one_member(programs, line, Security::Off),
    },
    Row {
        name: "watch-events",
        what: "watch --streams=10000 --conns=16 --put-rate=50",
        is_slow: false,
        targets: &[more(EVENTS, Some(2.5), Some(4.0)), shown(DELIVERY_P99), shown(CPU), shown(RESIDENT)],
        open: |programs, line| members::one_member(programs, line, Security::Off),
    },
    Row {
        name: "watch-memory",
        what: "watch --streams=10000 --conns=16 --put-rate=1 --put-total=1",
        is_slow: true,
        targets: &[less(IDLE_BYTES, Some(0.25), Some(0.15))],
        open: members::new_member,
    },
    Row {
        name: "million-keys",
        what: "put --total=1000000 --key-space-size=1000000 --sequential-keys --key-size=16 --val-size=256 --conns=8 --clients=256",
        is_slow: true,
        targets: &[less(RESIDENT, Some(1.0), Some(0.7)), shown(CPU)],
        open: members::new_member,
    },
    Row {
        name: "put-memory",
        what: "put --total=100000 --key-space-size=10000 --key-size=16 --val-size=256 --conns=8 --clients=64",
        is_slow: true,
        targets: &[less(RESIDENT, Some(1.2), Some(0.7))],
        open: members::new_member,
    },
    Row {
        name: "three-members-range",
        what: load!(range "l" "foo"),
        is_slow: false,
        targets: &[more(PER_SECOND, Some(2.0), Some(3.0)), shown(P50), shown(P99), shown(CPU)],
        open: members::three_members,
    },
    Row {
        name: "three-members-put",
        what: load!(put),
        is_slow: false,
        targets: &[more(PER_SECOND, SHOWN, SHOWN), shown(P99), shown(P99_9), shown(CPU)],
        open: members::three_members,
    },
    Row {
        name: "secure-put",
        what: load!(put),
        is_slow: false,
        targets: &[more(PER_SECOND, Some(1.6), Some(2.5)), shown(P99), shown(CPU)],
        open: |programs, line| members::one_member(programs, line, Security::TlsAndUsers),
    },
    Row {
        name: "secure-range",
        what: load!(range "l" "foo"),
        is_slow: false,
        targets: &[more(PER_SECOND, Some(2.0), Some(3.0)), shown(P99), shown(CPU)],
        open: |programs, line| members::one_member(programs, line, Security::TlsAndUsers),
    },
    Row {
        name: "proxy-range",
        what: load!(range "l" "foo"),
        is_slow: false,
        targets: &[more(PER_SECOND, Some(1.4), None), shown(P99), less(CPU, Some(0.5), Some(0.4))],
        open: |programs, line| proxies::both_proxies(programs, line, ""),
    },
    Row {
        name: "proxy-put",
        what: load!(put),
        is_slow: false,
        targets: &[more(PER_SECOND, Some(1.3), Some(1.5)), shown(P99), less(CPU, Some(0.5), None)],
        open: |programs, line| proxies::both_proxies(programs, line, ""),
    },
    Row {
        name: "proxy-cached-linearizable",
        what: load!(range "l" "b/1"),
        is_slow: false,
        targets: &[
            more(PER_SECOND, Some(2.0), Some(3.0)),
            shown(P99),
            shown(CPU),
            less(UPSTREAM_READS, Some(1.0 / 16.0), Some(1.0 / 64.0)).against(Against::Nothing),
        ],
        open: proxies::cached_against_member,
    },
    Row {
        name: "proxy-cached-linearizable-own",
        what: load!(range "l" "b/1"),
        is_slow: false,
        targets: &[
            more(PER_SECOND, Some(2.0), Some(3.0)),
            shown(P99),
            shown(CPU),
            less(UPSTREAM_READS, Some(1.0 / 16.0), Some(1.0 / 64.0)).against(Against::Nothing),
        ],
        open: proxies::own_cached_against_member,
    },
    Row {
        name: "proxy-cached-serializable",
        what: load!(range "s" "b/1"),
        is_slow: false,
        targets: &[more(PER_SECOND, Some(1.3), Some(2.0)), shown(P99), shown(CPU)],
        open: proxies::cached_against_proxy,
    },
    Row {
        name: "proxy-users",
        what: "range --conns=1 --clients=1 --consistency=l a/k",
        is_slow: false,
        targets: &[more(PER_SECOND, Some(1.5), None), shown(CPU)],
        open: |programs, line| proxies::users(programs, 100, line),
    },
    Row {
        name: "proxy-watch-events",
        // More than etcd's proxy can keep: what both keep says nothing.
        what: "watch --streams=10000 --conns=16 --put-rate=400",
        is_slow: false,
        targets: &[more(EVENTS, Some(2.0), Some(3.0)), shown(DELIVERY_P99), shown(CPU), shown(RESIDENT)],
        open: |programs, line| proxies::both_proxies(programs, line, ""),
    },
    Row {
        name: "proxy-watch-memory",
        what: "watch --streams=10000 --conns=16 --put-rate=1 --put-total=1",
        is_slow: true,
        targets: &[less(IDLE_BYTES, Some(0.25), Some(0.15))],
        open: proxies::new_proxies,
    },
    Row {
        name: "proxy-watchers",
        what: "watch --streams=1000 --watchers-per-stream=100 --conns=20 --put-rate=1 --put-total=1",
        is_slow: true,
        targets: &[less(WATCHER_BYTES, Some(1500.0), Some(500.0)).against(Against::Nothing)],
        open: |programs, line| proxies::many_watchers(programs, line, 100.0),
    },
    Row {
        name: "proxy-upstream-watches",
        what: "watch --streams=1000 --watchers-per-stream=10 --keys=1000 --conns=8 --put-rate=10 --put-total=20",
        is_slow: true,
        targets: &[less(UPSTREAM_WATCHES, Some(10.0), Some(1.0)).against(Against::Nothing)],
        open: proxies::upstream_watches,
    },
    Row {
        name: "proxy-hung-member",
        // As many callers as calls are due within the timeout, so that none waits for a caller.
        what: "put --key-space-size=1000 --conns=4 --clients=1500 --rate=500 --request-timeout=3s",
        is_slow: true,
        targets: &[less(FAILED_SHARE, Some(0.01), Some(0.0)).against(Against::Nothing), more(PER_SECOND, SHOWN, SHOWN)],
        open: proxies::hung_member,
    },
    Row {
        name: "proxy-keepalive",
        what: "lease-keepalive --leases=10000 --streams=10 --in-flight=64",
        is_slow: false,
        targets: &[more(PER_SECOND, Some(50.0), None), shown(P50), shown(CPU)],
        open: |programs, line| proxies::both_proxies(programs, line, ""),
    },
    Row {
        name: "proxy-keepalive-own",
        what: "lease-keepalive --leases=10000 --streams=10 --in-flight=64",
        is_slow: false,
        targets: &[more(PER_SECOND, None, Some(0.8)), shown(P50), shown(CPU)],
        open: proxies::own_member,
    },
    Row {
        name: "gateway-bulk",
        what: "tcp-bulk --conns=1",
        is_slow: false,
        targets: &[
            more(GIGABYTES, Some(1.0), None),
            more(GIGABYTES, None, Some(0.75)).against(Against::Side(DIRECT)),
            shown(CPU_PER_GIGABYTE),
        ],
        open: |programs, line| gateways::forwarders(programs, line, false),
    },
    Row {
        name: "gateway-pingpong",
        what: "tcp-pingpong --conns=16 --size=128",
        is_slow: false,
        targets: &[
            more(PER_SECOND, Some(1.1), Some(1.4)),
            shown(P50_MICROS),
            less(P99_MICROS, Some(1.0), None).against(Against::Side(HAPROXY)),
            shown(CPU),
        ],
        open: |programs, line| gateways::forwarders(programs, line, false),
    },
    Row {
        name: "gateway-connections",
        what: "tcp-connect --conns=16 --size=128",
        is_slow: false,
        targets: &[more(PER_SECOND, SHOWN, SHOWN), shown(P50_MICROS), shown(P99_MICROS), shown(CPU)],
        open: |programs, line| gateways::forwarders(programs, line, false),
    },
    Row {
        name: "gateway-idle",
        what: "tcp-idle --conns=2000",
        is_slow: true,
        targets: &[less(BYTES_PER_CONNECTION, Some(0.25), Some(0.15))],
        open: |programs, line| gateways::forwarders(programs, line, true),
    },
    Row {
        name: "gateway-endpoint-dies",
        what: "connections after one of two endpoints is killed",
        is_slow: true,
        targets: &[less(RECOVERY, Some(2.0), Some(0.5)).against(Against::Nothing)],
        open: |programs, _| gateways::endpoint_dies(programs),
    },
];

/// The rows of these names, all of them without any.
pub(super) fn chosen(names: &[String]) -> Result<Vec<&'static Row>, String> {
    if names.is_empty() {
        return Ok(ROWS.iter().collect());
    }
    let of = |name: &String| ROWS.iter().find(|row| row.name == name.as_str());
    let all = || ROWS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
    names.iter().map(|name| of(name).ok_or_else(|| format!("--rows {name}: there are {}", all()))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::load::words;
    use super::*;
    use crate::bench::args;

    #[test]
    fn every_row_has_a_name_of_its_own_and_a_load_that_is_understood() {
        let mut names = std::collections::BTreeSet::new();
        for row in ROWS {
            assert!(names.insert(row.name), "{} is there twice", row.name);
            assert!(!row.targets.is_empty(), "{}", row.name);
            let is_load = !row.what.starts_with("tcp-") && row.name != "gateway-endpoint-dies";
            let line = std::iter::once("bench".to_owned()).chain(words(row.what));
            assert!(!is_load || args::read(line).is_ok(), "{}: {}", row.name, row.what);
        }
    }

    #[test]
    fn a_row_that_is_not_there_is_refused_with_those_that_are() {
        assert_eq!(chosen(&[]).unwrap().len(), ROWS.len());
        assert_eq!(chosen(&["put-1".into()]).unwrap()[0].name, "put-1");
        let error = chosen(&["put-2".into()]).err().unwrap();
        assert!(error.starts_with("--rows put-2: there are put-64, put-1,"), "{error}");
    }
}
