use super::source::Discovery;
use crate::telemetry::{Metrics, raise_to};

/// Has `/metrics` show how these sources of endpoints fare; each has a row of its own, by its name.
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
    for source in sources {
        let (name, set, status) = (source.name(), source.endpoints(), source.status());
        let (endpoints, failures) = (endpoints.with_label_values(&[name]), failures.with_label_values(&[name]));
        let (age, changes) = (age.clone(), changes.with_label_values(&[name]));
        metrics.before_render(move || {
            endpoints.set(set.borrow().len() as i64);
            // A source that is not asked has no age.
            if let Some(elapsed) = status.age() {
                age.with_label_values(&[name]).set(elapsed.as_secs_f64());
            }
            raise_to(&failures, status.failures());
            raise_to(&changes, status.changes());
        });
    }
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
        list.replace([ListedEndpoint::new(endpoint("c:1"))].into());
        assert_eq!(values()["watershed_discovery_endpoints{source=\"static list\"}"], 1.0);
        assert_eq!(values()["watershed_discovery_changes_total{source=\"static list\"}"], 1.0);
        assert!(!values().keys().any(|name| name.contains("age")), "{:?}", values());
    }
}
