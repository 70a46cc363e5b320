use std::io;
use std::path::PathBuf;

use crate::net::{Endpoint, HostPort, TlsError};

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The name of a listen address has no address.
    #[error("--{flag}: look up {address}: {reason}")]
    LookUp {
        /// The flag.
        flag: &'static str,
        /// Its value.
        address: HostPort,
        /// What the resolver said.
        reason: io::Error,
    },
    /// The address is taken, foreign or forbidden.
    #[error("--{flag}: listen tcp {address}: bind: {reason}")]
    Bind {
        /// The flag.
        flag: &'static str,
        /// Its value.
        address: HostPort,
        /// What the system said.
        reason: io::Error,
    },
    /// The path is taken, forbidden or too long.
    #[error("--{flag}: listen unix {}: bind: {reason}", path.display())]
    BindUnix {
        /// The flag.
        flag: &'static str,
        /// Of the socket.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// The socket that the process was given cannot be used.
    #[error("the socket passed by LISTEN_FDS: {0}")]
    Passed(io::Error),
    /// An endpoint is the address that the gateway listens on.
    #[error("--{flag}: {endpoint} is the address the gateway itself listens on (--listen-addr)")]
    SelfLoop {
        /// The flag that names it.
        flag: &'static str,
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// Certificates for the health checks that cannot be used.
    #[error("--health-check: {0}")]
    HealthCheckTls(TlsError),
    /// No thread, no runtime.
    #[error("start a serving thread: {0}")]
    Thread(io::Error),
}
