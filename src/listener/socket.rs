use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel queues while none is accepted.
const BACKLOG: i32 = 1024;

/// Why a listener could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// The address is taken, foreign or forbidden.
    #[error("listen tcp {address}: bind: {reason}")]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said; part of the text, not a cause of its own.
        reason: std::io::Error,
    },
    /// A serving thread could not start.
    #[error("start serving thread")]
    Thread(#[source] std::io::Error),
}

/// Opens a listening socket, non-blocking and ready for [`serve`](super::serve).
///
/// # Errors
/// Names the address, and for a port in use says `address already in use` as etcd does.
pub fn bind(address: SocketAddr) -> Result<TcpListener, ListenerError> {
    let open = || -> std::io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    open().map_err(|source| ListenerError::Bind { address, reason: plain(source) })
}

/// Words the one common failure without the number of the operating system.
fn plain(error: std::io::Error) -> std::io::Error {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => std::io::Error::new(error.kind(), "address already in use"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named() {
        let first = bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let taken = first.local_addr().expect("bound");
        let error = bind(taken).expect_err("taken");
        assert_eq!(error.to_string(), format!("listen tcp {taken}: bind: address already in use"));
    }
}
