use http::HeaderValue;
use tonic::Status;

use super::channel::{Carried, Channel, Identity};
use super::config::ClientConfig;
use super::error::ClientError;
use super::login::Login;
use super::pool::{Pool, PoolConfig};
use crate::net::{ClientTls, Endpoint};
use crate::pb::etcdserverpb::auth_client::AuthClient;
use crate::pb::etcdserverpb::cluster_client::ClusterClient;
use crate::pb::etcdserverpb::kv_client::KvClient;
use crate::pb::etcdserverpb::lease_client::LeaseClient;
use crate::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::pb::etcdserverpb::watch_client::WatchClient;
use crate::pb::healthpb::health_client::HealthClient;
use crate::pb::v3electionpb::election_client::ElectionClient;
use crate::pb::v3lockpb::lock_client::LockClient;
use crate::shutdown::Tasks;

/// A cluster, as the tools and tests see it. Cheap to clone; clones share connections and the token.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    send_bytes_max: usize,
    receive_bytes_max: usize,
}

macro_rules! services {
    ($($(#[$doc:meta])* $name:ident -> $client:ident;)*) => {
        $(
            $(#[$doc])*
            pub fn $name(&self) -> $client<Channel> {
                $client::new(self.channel.clone())
                    .max_encoding_message_size(self.send_bytes_max)
                    .max_decoding_message_size(self.receive_bytes_max)
            }
        )*
    };
}

impl Client {
    /// Makes a client. Returns at once: connections are made when the first request needs them, on the runtime
    /// that sends it.
    ///
    /// # Errors
    /// When the configuration cannot work, whatever the cluster does.
    pub fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        if config.endpoints.is_empty() {
            return Err(ClientError::NoEndpoint);
        }
        let token = match config.token.as_deref() {
            None => None,
            Some(token) => {
                let mut token = HeaderValue::from_str(token).map_err(|_| ClientError::BadToken)?;
                token.set_sensitive(true);
                Some(token)
            }
        };
        // A single member is not cut for its silence, as in etcd's own tools: see `keepalive`.
        let has_certificate = config.tls.as_ref().is_some_and(ClientTls::has_certificate);
        let several = config.endpoints.len() > 1;
        let usual = PoolConfig::new(config.endpoints);
        let pool = PoolConfig {
            silence_max: usual.silence_max.filter(|_| several),
            dial_timeout: config.dial_timeout,
            keepalive: config.keepalive,
            connections: config.connections,
            tls: config.tls,
            ..usual
        };
        // These tasks are not awaited: they end when the last clone of the client is dropped.
        let pool = Pool::new(pool, &Tasks::new());
        let login = if token.is_some() { None } else { config.user.map(Login::new) };
        let identity = Identity {
            by_certificate: has_certificate && token.is_none() && login.is_none(),
            token,
            login,
            require_leader: config.require_leader,
        };
        Ok(Self {
            channel: Channel::with_identity(pool, identity),
            send_bytes_max: config.send_bytes_max,
            receive_bytes_max: config.receive_bytes_max,
        })
    }

    /// Uses these members from now on. Requests in flight finish where they are.
    pub fn set_endpoints(&self, endpoints: &[Endpoint]) {
        self.channel.pool().set_endpoints(endpoints);
    }

    /// The transport, for a generated client with settings of its own.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Logs in with the configured user, which otherwise happens with the first request. Does nothing without a
    /// configured user, or when the client is logged in. A cluster without authentication is no error.
    ///
    /// # Errors
    /// What the cluster answered.
    pub async fn login(&self) -> Result<(), Status> {
        self.channel.login().await
    }

    /// Takes the reason for which a member ended a watch or a stream of requests. Returns true when it is the token,
    /// and the next request, stream or not, will carry another: then it is worth opening the stream again.
    pub fn logs_in_after(&self, reason: &str) -> bool {
        self.channel.refused(&Carried::default(), reason)
    }

    services! {
        /// Keys and values.
        kv -> KvClient;
        /// Watches.
        watch -> WatchClient;
        /// Leases.
        lease -> LeaseClient;
        /// Members.
        cluster -> ClusterClient;
        /// Status, alarms, snapshots, hashes.
        maintenance -> MaintenanceClient;
        /// Users, roles, tokens.
        auth -> AuthClient;
        /// Locks.
        lock -> LockClient;
        /// Elections.
        election -> ElectionClient;
        /// The standard health service.
        health -> HealthClient;
    }
}
