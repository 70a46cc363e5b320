use std::sync::Arc;
use std::time::Duration;

use super::cluster::UpstreamCluster;
use super::dial::{Dialer, TcpDials};
use crate::client::{Endpoint, KeepAlive};
use crate::net::ClientTls;

/// How a pool reaches its members.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// Endpoints at the start; at least one.
    pub endpoints: Vec<Endpoint>,
    /// Bound of one connection attempt up to the first answer, and of the wait of a request while no member is ready.
    pub dial_timeout: Duration,
    /// Pings on connections.
    pub keepalive: Option<KeepAlive>,
    /// Connections per member for unary requests.
    pub connections: usize,
    /// Time without any answer after which a connection is cut; none never cuts one for its silence.
    pub silence_max: Option<Duration>,
    /// The cluster all members must be of; none asks for no cluster id.
    pub cluster: Option<UpstreamCluster>,
    /// For endpoints with https, and for those without a scheme; what the system trusts for https unless given.
    pub tls: Option<ClientTls>,
    /// Opens connections.
    pub(crate) dialer: Arc<dyn Dialer>,
}

impl PoolConfig {
    /// Usual values towards these members.
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        Self {
            endpoints,
            dial_timeout: Duration::from_secs(5),
            keepalive: None,
            connections: 1,
            silence_max: Some(Duration::from_secs(3)),
            cluster: None,
            tls: None,
            dialer: Arc::new(TcpDials::default()),
        }
    }
}
