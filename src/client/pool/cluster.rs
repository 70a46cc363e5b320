use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge};
use tracing::{error, info, warn};

use crate::client::Endpoint;
use crate::telemetry::Metrics;

/// The one cluster that several pools serve. Cheap to clone.
///
/// The first cluster id that is answered counts. A connection that answers another one is refused. The id in use gives
/// way to a new one only when no connection to the old cluster is left and every endpoint's last answer named the new
/// one: a cluster that was rebuilt behind the same names is followed, a second cluster beside one that is down is not.
#[derive(Clone, Debug)]
pub struct UpstreamCluster {
    state: Arc<Mutex<State>>,
    mismatches: IntCounter,
    left_out: IntGauge,
}

#[derive(Debug, Default)]
struct State {
    serves: Option<Serves>,
    /// What each endpoint answered last; those without an answer are not in it.
    answers: HashMap<Endpoint, u64>,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug)]
struct Serves {
    id: u64,
    /// An endpoint that named it.
    named_by: Endpoint,
    connections: ClusterPass,
}

/// Held by each connection to the cluster in use.
pub(super) type ClusterPass = Arc<()>;

/// Two endpoints that belong to different clusters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "endpoint {endpoint} has cluster id {id:x}, but {other} has cluster id {other_id:x}: all endpoints must be of one cluster"
)]
pub struct ClusterMismatch {
    /// The one that is left out.
    pub endpoint: Endpoint,
    /// Its cluster.
    pub id: u64,
    /// One that is in use.
    pub other: Endpoint,
    /// The cluster in use.
    pub other_id: u64,
}

impl UpstreamCluster {
    /// No cluster yet, behind these endpoints.
    pub fn new(endpoints: &[Endpoint], metrics: &Metrics) -> Self {
        let mismatches = metrics.counter(
            "watershed_proxy_upstream_cluster_mismatch_total",
            "Connections refused because the endpoint belongs to another cluster.",
        );
        let left_out = metrics.gauge(
            "watershed_proxy_upstream_endpoints_left_out",
            "Endpoints left out because they are of another cluster.",
        );
        let state = State { endpoints: endpoints.to_vec(), ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), mismatches, left_out }
    }

    /// Counts these endpoints from now on.
    pub fn set_endpoints(&self, endpoints: &[Endpoint]) {
        let mut state = self.state.lock();
        state.endpoints = endpoints.to_vec();
        state.answers.retain(|endpoint, _| endpoints.contains(endpoint));
        self.left_out.set(state.left_out());
    }

    /// The cluster in use; none before an endpoint has answered.
    pub fn id(&self) -> Option<u64> {
        self.state.lock().serves.as_ref().map(|serves| serves.id)
    }

    /// Takes note of the cluster id an endpoint answered on a new connection.
    ///
    /// # Errors
    /// When the connection must not be used. Each change of an endpoint's answer is logged once.
    pub(super) fn admit(&self, endpoint: &Endpoint, id: u64) -> Result<ClusterPass, ClusterMismatch> {
        let mut state = self.state.lock();
        let before = state.answers.insert(endpoint.clone(), id);
        let verdict = state.verdict(endpoint, id);
        self.left_out.set(state.left_out());
        drop(state);
        if let Err(mismatch) = &verdict {
            self.mismatches.inc();
            if before != Some(id) {
                error!(
                    endpoint = %mismatch.endpoint,
                    cluster_id = format!("{:x}", mismatch.id),
                    serving = format!("{:x}", mismatch.other_id),
                    serving_endpoint = %mismatch.other,
                    "endpoint belongs to another cluster and is left out"
                );
            }
        }
        verdict
    }
}

impl State {
    fn verdict(&mut self, endpoint: &Endpoint, id: u64) -> Result<ClusterPass, ClusterMismatch> {
        let answers = &self.answers;
        let all_new = || self.endpoints.iter().all(|endpoint| answers.get(endpoint) == Some(&id));
        match &self.serves {
            Some(serves) if serves.id == id => return Ok(serves.connections.clone()),
            Some(serves) if Arc::strong_count(&serves.connections) > 1 || !all_new() => {
                return Err(ClusterMismatch {
                    endpoint: endpoint.clone(),
                    id,
                    other: serves.named_by.clone(),
                    other_id: serves.id,
                });
            }
            Some(serves) => warn!(
                before = format!("{:x}", serves.id),
                now = format!("{id:x}"),
                "every endpoint answers with another cluster id, the new cluster is served"
            ),
            None => info!(cluster_id = format!("{id:x}"), %endpoint, "serving cluster"),
        }
        let connections = ClusterPass::default();
        self.serves = Some(Serves { id, named_by: endpoint.clone(), connections: connections.clone() });
        Ok(connections)
    }

    fn left_out(&self) -> i64 {
        let Some(serves) = &self.serves else { return 0 };
        self.answers.values().filter(|&&id| id != serves.id).count() as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints() -> Vec<Endpoint> {
        Endpoint::parse_list("a:1,b:1,c:1").unwrap()
    }

    #[test]
    fn an_endpoint_of_another_cluster_is_left_out() {
        let endpoints = endpoints();
        let cluster = UpstreamCluster::new(&endpoints, &Metrics::new());
        let first = cluster.admit(&endpoints[0], 0xa).unwrap();
        let refused = cluster.admit(&endpoints[2], 0xb).unwrap_err();
        let text = refused.to_string();
        assert!(["c:1", "cluster id b", "a:1", "cluster id a"].iter().all(|part| text.contains(part)), "{text}");
        assert_eq!((cluster.mismatches.get(), cluster.left_out.get()), (1, 1));
        // Also while the cluster in use is down: its endpoints did not answer otherwise.
        drop(first);
        cluster.admit(&endpoints[2], 0xb).unwrap_err();
        cluster.set_endpoints(&endpoints[..2]);
        assert_eq!(cluster.left_out.get(), 0);
    }

    #[test]
    fn a_cluster_rebuilt_behind_the_same_names_is_followed() {
        let endpoints = endpoints();
        let cluster = UpstreamCluster::new(&endpoints, &Metrics::new());
        let passes: Vec<_> = endpoints.iter().map(|endpoint| cluster.admit(endpoint, 0xa).unwrap()).collect();
        cluster.admit(&endpoints[0], 0xb).unwrap_err();
        cluster.admit(&endpoints[1], 0xb).unwrap_err();
        cluster.admit(&endpoints[2], 0xb).unwrap_err();
        drop(passes);
        cluster.admit(&endpoints[0], 0xb).unwrap();
        assert_eq!(cluster.left_out.get(), 0);
        cluster.admit(&endpoints[1], 0xb).unwrap();
    }
}
