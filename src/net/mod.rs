//! Connections below any protocol: addresses, TCP and TLS.
//!
//! A [`HostPort`] is where something listens, an [`Endpoint`] where a client connects. [`TcpDialer`] (`dial.rs`) opens
//! every TCP connection of the process; [`TcpSilence`] is what each one is given, dialled or accepted, and [`Backoff`] the
//! pauses between attempts. `listening.rs` opens the sockets that listen, and `descriptors.rs` tells how many connections fit
//! into the descriptor limit. [`Batched`] collects what HTTP/2 writes.
//!
//! TLS of every listener and every dial is here. What the operator wants is a [`ServerTlsConfig`] or a
//! [`ClientTlsConfig`]; [`ServerTls`] (`server_tls.rs`) and [`ClientTls`] (`client_tls.rs`) are made of it and do the
//! handshake on an open connection. They show an [`Identity`] (`identity.rs`, `self_signed.rs`) and verify the other
//! side by [`Authorities`], names and revocations (`verify.rs`, `self_trusted.rs`), in the versions and cipher suites of a [`TlsPolicy`]
//! (`p521.rs` has a signature that ring lacks).
//! `client_hello.rs` reads what a TLS client asks for, without a handshake.
//! All files are read again when they change (`followed.rs`). `texts.rs` has the words for what goes wrong.

mod authorities;
mod backoff;
mod batched;
mod client_hello;
mod client_tls;
mod descriptors;
mod dial;
mod endpoint;
mod followed;
#[cfg(fuzzing)]
pub mod fuzzing;
mod host_port;
mod identity;
mod ip_prefix;
mod linger;
mod listening;
mod names;
mod p521;
mod pem;
mod policy;
mod revocations;
mod self_signed;
mod self_trusted;
mod server_tls;
mod tcp_silence;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod texts;
mod verify;

pub use authorities::Authorities;
pub use backoff::Backoff;
pub use batched::{Batch, Batched, batched};
pub use client_hello::{ClientHello, ClientHelloReader, HelloProgress};
pub use client_tls::{Alpn, ClientTls, ClientTlsConfig, Dialed, ServerAuth};
pub use descriptors::{connections_within, descriptor_limit};
pub use dial::{AddressTime, ByteStream, DialError, TcpDialer, secure};
pub use endpoint::{Endpoint, EndpointError, with_client_port};
pub use host_port::HostPort;
pub use identity::{Identity, IdentityFiles};
pub use ip_prefix::IpPrefix;
pub use linger::linger;
pub use listening::{
    PortUse, Replaces, SocketFile, all_addresses, is_same_socket, is_socket, listen_tcp, listen_unix,
    listening_address, preferred_address,
};
pub use names::{AllowedNames, CertificateNames};
pub use pem::TlsError;
pub use policy::TlsPolicy;
pub use self_signed::SelfSigned;
pub use server_tls::{ClientAuth, Rejected, ServerIdentity, ServerTls, ServerTlsConfig, TlsPeer};
pub use tcp_silence::TcpSilence;
pub use texts::with_causes;
