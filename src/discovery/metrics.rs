use parking_lot::Mutex;

use super::endpoint_set::{EndpointSet, ListedEndpoint};
use super::source::Discovery;
use crate::telemetry::{Metrics, raise_to};

/// Endpoints of a source that have a row of their own.
const ROWS_MAX: usize = 100;

/// Has `/metrics` show how these sources of endpoints fare, and what they say; each has rows of its own, by its name.
pub fn count_sources(metrics: &Metrics, sources: &[&dyn Discovery]) {
    let endpoints = metrics.gauge_vec("watershed_discovery_endpoints", "Endpoints of the source.", &["source"]);
    let age = metrics.float_gauge_vec(
        "watershed_discovery_last_answer_age_seconds",
        "Time since the source last answered.",
        &["source"],
    );
    let failures = metrics.counter_vec(
        "watershed_discovery_failures_total",
        "Questions to the source without an answer that could be used.",
        &["source"],
    );
    let changes = metrics.counter_vec(
        "watershed_discovery_changes_total",
        "Answers of the source that changed its endpoints.",
        &["source"],
    );
    let rows = metrics.gauge_vec(
        "watershed_discovery_endpoint_info",
        "1 for each of the first 100 endpoints of the source.",
        &["source", "endpoint", "tls", "priority", "weight"],
    );
    for source in sources {
        let (name, set, status) = (source.name(), source.endpoints(), source.status());
        let (endpoints, failures) = (endpoints.with_label_values(&[name]), failures.with_label_values(&[name]));
        let (age, changes) = (age.clone(), changes.with_label_values(&[name]));
        let (rows, shown) = (rows.clone(), Mutex::new(EndpointSet::default()));
        metrics.before_render(move || {
            let current = set.borrow().clone();
            endpoints.set(current.len() as i64);
            let mut shown = shown.lock();
            if current != *shown {
                for listed in shown.iter().take(ROWS_MAX) {
                    // Two of them may have one row.
                    let _ = rows.remove_label_values(&labels(name, listed).each_ref().map(String::as_str));
                }
                for listed in current.iter().take(ROWS_MAX) {
                    rows.with_label_values(&labels(name, listed)).set(1);
                }
                *shown = current;
            }
            // A source that is not asked has no age.
            if let Some(elapsed) = status.age() {
                age.with_label_values(&[name]).set(elapsed.as_secs_f64());
            }
            raise_to(&failures, status.failures());
            raise_to(&changes, status.changes());
        });
    }
}

fn labels(source: &str, listed: &ListedEndpoint) -> [String; 5] {
    let ListedEndpoint { endpoint, priority, weight, .. } = listed;
    let tls = endpoint.uses_tls(false);
    [source.to_owned(), endpoint.to_string(), tls.to_string(), priority.to_string(), weight.to_string()]
}

#[cfg(test)]
mod tests {
    use super::super::{ListedEndpoint, StaticList};
    use super::*;
    use crate::net::Endpoint;

    #[test]
    fn a_static_list_has_a_size_and_no_age() {
        let endpoint = |text: &str| text.parse::<Endpoint>().unwrap();
        let (metrics, list) = (Metrics::default(), StaticList::new([endpoint("a:1"), endpoint("b:1")]));
        count_sources(&metrics, &[&list]);
        let values = || metrics.values(|name| name.starts_with("watershed_discovery_"));
        assert_eq!(values()["watershed_discovery_endpoints{source=\"static list\"}"], 2.0);
        let row = |endpoint: &str, tls: bool| {
            let labels =
                format!("endpoint=\"{endpoint}\",priority=\"0\",source=\"static list\",tls=\"{tls}\",weight=\"0\"");
            values().contains_key(&format!("watershed_discovery_endpoint_info{{{labels}}}"))
        };
        assert!(row("a:1", false) && row("b:1", false));
        list.replace([ListedEndpoint::new(endpoint("https://c:1"))].into());
        assert!(!row("a:1", false) && !row("b:1", false) && row("c:1", true), "{:?}", values());
        assert_eq!(values()["watershed_discovery_endpoints{source=\"static list\"}"], 1.0);
        assert_eq!(values()["watershed_discovery_changes_total{source=\"static list\"}"], 1.0);
        assert!(!values().keys().any(|name| name.contains("age")), "{:?}", values());
    }
}
