//! Connections below any protocol: addresses, TCP and TLS.
//!
//! A [`HostPort`] is where something listens, an [`Endpoint`] the same as a client writes it. [`TcpDialer`] (`dial.rs`) opens
//! every TCP connection of the process; [`TcpSilence`] is what each one is given, dialled or accepted, and [`Backoff`] the
//! pauses between attempts. [`ServerTls`] and [`ClientTls`] (`tls.rs`) do the handshake on an open
//! connection, with an [`Identity`] (`identity.rs`) that follows its files.

mod backoff;
mod dial;
mod endpoint;
mod host_port;
mod identity;
mod pem;
mod tcp_silence;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tls;

pub use backoff::Backoff;
pub use dial::{AddressTime, ByteStream, DialError, TcpDialer};
pub use endpoint::{Endpoint, EndpointError};
pub use host_port::HostPort;
pub use identity::{Identity, IdentityFiles};
pub use pem::TlsError;
pub use tcp_silence::TcpSilence;
pub use tls::{Authorities, ClientTls, ServerTls, TlsPeer};
