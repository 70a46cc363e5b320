use std::time::Duration;

use super::Endpoint;
use crate::net::ClientTls;
use crate::types::Credentials;

/// How a [`Client`](super::Client) behaves. The default asks a member on this host.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Members to use; at least one.
    pub endpoints: Vec<Endpoint>,
    /// How long one connection attempt may take, and how long a request waits while no endpoint can be reached.
    pub dial_timeout: Duration,
    /// Pings on connections; none by default, as in etcd.
    pub keepalive: Option<KeepAlive>,
    /// Name and password to log in with when the first request is sent, and again when the cluster no longer accepts
    /// the token it gave. Without effect beside `token`.
    pub user: Option<Credentials>,
    /// A token obtained elsewhere.
    pub token: Option<String>,
    /// Asks members to refuse requests while they know no leader (metadata `hasleader`).
    pub require_leader: bool,
    /// Largest message sent.
    pub send_bytes_max: usize,
    /// Largest message accepted.
    pub receive_bytes_max: usize,
    /// Connections per endpoint for unary requests.
    pub connections: usize,
    /// For endpoints with https, and for those without a scheme; what the system trusts for https unless given.
    pub tls: Option<ClientTls>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            endpoints: vec!["127.0.0.1:2379".parse().expect("a valid endpoint")],
            dial_timeout: Duration::from_secs(5),
            keepalive: None,
            user: None,
            token: None,
            require_leader: false,
            send_bytes_max: i32::MAX as usize,
            receive_bytes_max: i32::MAX as usize,
            connections: 1,
            tls: None,
        }
    }
}

impl ClientConfig {
    /// The default towards these endpoints.
    pub fn new(endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        Self { endpoints: endpoints.into_iter().collect(), ..Self::default() }
    }
}

/// HTTP/2 pings that find a peer which fell silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// Silence after which a ping is sent. Stock members refuse less than 5 s.
    pub interval: Duration,
    /// How long the answer may take before the connection is given up.
    pub timeout: Duration,
    /// Whether to ping without a request in flight. Stock members refuse that.
    pub while_idle: bool,
}
