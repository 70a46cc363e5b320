//! Tests by feature: one member, and the gateway and the proxy in front of it.

mod auth;
mod bad_input;
mod compaction;
mod configuration;
mod ctl;
mod floods;
mod gateway;
mod http;
mod json;
mod kv;
mod lease;
mod long_range;
mod maintenance;
mod metrics;
mod namespace;
mod pings;
mod public_client;
mod range;
mod recipes;
mod scale;
mod startup;
mod tls;
mod tracing;
mod txn;
mod watch;
