//! Connections below any protocol: addresses and TCP.
//!
//! A [`HostPort`] is where something listens, an [`Endpoint`] the same as a client writes it. [`TcpSilence`] is what every
//! TCP connection is given, dialled or accepted.

mod endpoint;
mod host_port;
mod tcp_silence;

pub use endpoint::{Endpoint, EndpointError};
pub use host_port::HostPort;
pub use tcp_silence::TcpSilence;
