//! Three members of the real program: features across members, restarts, and changes of membership.

#[allow(dead_code, unused_imports, reason = "other test programs use the rest")]
#[path = "../checkers/mod.rs"]
mod checkers;
#[path = "../harness/mod.rs"]
mod harness;
#[allow(dead_code, unused_imports, reason = "other test programs use the rest")]
#[path = "../workload/mod.rs"]
mod workload;

mod any_request;
mod damaged;
mod everywhere;
mod leaders;
mod logs;
mod members;
mod metrics;
mod network;
mod peer_tls;
mod proxied;
mod reconfiguration;
mod restarts;
mod same_answers;
mod story;
mod upstream;
