//! Three members of the real program: features across members, restarts, and changes of membership.

mod any_request;
mod auth;
mod damaged;
mod discovered;
mod discovery_url;
mod everywhere;
mod failover;
mod hostile_upstreams;
mod leaders;
mod logs;
pub mod members;
mod metrics;
mod network;
mod peer_connections;
mod peer_tls;
mod proxied;
mod reconfiguration;
mod restarts;
mod restored;
mod same_answers;
mod secured;
pub mod story;
mod surplus;
mod upstream;
