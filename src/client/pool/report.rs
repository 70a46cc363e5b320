use serde::{Serialize, Serializer};

use super::dispatch::Pool;
use super::standing::Standing;
use super::upstream_endpoint::UpstreamEndpoint;

/// What a pool knows of one of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointReport {
    /// As it was given or found.
    pub endpoint: String,
    /// Whether it is used.
    pub state: EndpointState,
    /// Why it is not used, or used only where no other is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How far an endpoint is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// No request has needed it yet.
    Unused,
    /// It gets requests.
    Ready,
    /// It answers, and gets requests only where no other endpoint is ready.
    Limited,
    /// No connection is ready; a new one is tried with a back-off.
    Failed,
}

impl EndpointState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Unused, Self::Ready, Self::Limited, Self::Failed];

    /// As metrics and reports name it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unused => "unused",
            Self::Ready => "ready",
            Self::Limited => "limited",
            Self::Failed => "failed",
        }
    }
}

impl Serialize for EndpointState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.label())
    }
}

impl Pool {
    /// Its endpoints by name, and their states.
    pub fn report(&self) -> Vec<EndpointReport> {
        let mut endpoints: Vec<_> = self.inner.members.list().iter().map(|endpoint| report(endpoint)).collect();
        endpoints.sort_by(|one, other| one.endpoint.cmp(&other.endpoint));
        endpoints
    }

    /// The id of the cluster it serves; none before an endpoint has answered, or where the pool does not compare them.
    pub fn cluster_id(&self) -> Option<u64> {
        self.inner.keeping.config.cluster.as_ref()?.id()
    }
}

fn report(endpoint: &UpstreamEndpoint) -> EndpointReport {
    let (state, reason) = match (endpoint.is_ready(), endpoint.standing(), endpoint.reason()) {
        (true, Standing::Full, _) => (EndpointState::Ready, None),
        (true, standing, _) => (EndpointState::Limited, Some(standing.text().to_owned())),
        (false, _, Some(reason)) => (EndpointState::Failed, Some(reason)),
        (false, _, None) => (EndpointState::Unused, None),
    };
    EndpointReport { endpoint: endpoint.endpoint().to_string(), state, reason }
}
