use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::net::{PortUse, Replaces, ServerTls, SocketFile, listen_tcp, listen_unix};

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
    /// The path is too long, foreign or forbidden, or a file that is no socket is there.
    #[error("listen unix {path}: bind: {reason}")]
    BindUnix {
        /// What was asked for.
        path: String,
        /// What the system said; part of the text, not a cause of its own.
        reason: io::Error,
    },
    /// A serving thread could not start.
    #[error("start serving thread")]
    Thread(#[source] std::io::Error),
}

/// A listening socket, and what is spoken on its connections: plain HTTP unless told otherwise.
#[derive(Debug)]
pub struct Socket {
    pub(super) kind: SocketKind,
    pub(super) protection: Protection,
}

#[derive(Debug)]
pub(super) enum SocketKind {
    Tcp(TcpListener),
    Unix(SocketFile, UnixListener),
}

/// What is spoken on connections.
#[derive(Clone, Debug, Default)]
pub enum Protection {
    /// HTTP without TLS.
    #[default]
    Plain,
    /// TLS.
    Tls(ServerTls),
    /// Either, as the client begins.
    Both(ServerTls),
}

impl Socket {
    /// The same socket with this spoken on it.
    #[must_use]
    pub fn speaking(self, protection: Protection) -> Self {
        Self { protection, ..self }
    }

    /// What is spoken on it.
    pub fn protection(&self) -> &Protection {
        &self.protection
    }

    /// Where clients connect; for a unix socket an address that stands for none.
    ///
    /// # Errors
    /// Those of the system.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.kind {
            SocketKind::Tcp(listener) => listener.local_addr(),
            SocketKind::Unix(..) => Ok(NO_ADDRESS),
        }
    }
}

/// As etcd names it in logs.
impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            SocketKind::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "{address}"),
                Err(_) => f.write_str("?"),
            },
            SocketKind::Unix(file, _) => write!(f, "{}", file.path().display()),
        }
    }
}

/// Stands for the address of a unix socket.
pub(super) const NO_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Opens a listening socket, non-blocking and ready for [`serve`](super::serve).
///
/// # Errors
/// Names the address, and for a port in use says `address already in use` as etcd does.
pub fn bind(address: SocketAddr) -> Result<Socket, ListenerError> {
    bind_port(address, PortUse::Alone)
}

/// Like [`bind`], for a port that may be shared.
///
/// # Errors
/// Those of [`bind`].
pub fn bind_port(address: SocketAddr, port_use: PortUse) -> Result<Socket, ListenerError> {
    let listener = listen_tcp(address, port_use).map_err(|reason| ListenerError::Bind { address, reason })?;
    Ok(Socket { kind: SocketKind::Tcp(listener), protection: Protection::Plain })
}

/// Opens a unix socket. A socket that is there is replaced, as etcd does, even that of a process that listens; the file goes when
/// the socket is closed.
///
/// # Errors
/// Names the path.
pub fn bind_unix(path: &Path) -> Result<Socket, ListenerError> {
    let open = || -> io::Result<SocketKind> {
        let listener = listen_unix(path, None, Replaces::Any)?;
        Ok(SocketKind::Unix(SocketFile::at(path)?, listener))
    };
    let kind = open().map_err(|reason| ListenerError::BindUnix { path: path.display().to_string(), reason })?;
    Ok(Socket { kind, protection: Protection::Plain })
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

    #[test]
    fn a_unix_socket_is_replaced_and_removed_but_no_other_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("localhost:1");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        let socket = bind_unix(&path).expect("replaced");
        assert_eq!(socket.to_string(), path.display().to_string());
        // Its end removed the file of whoever had replaced it.
        let later = bind_unix(&path).expect("replaced");
        drop(socket);
        assert!(path.exists());
        drop(later);
        assert!(!path.exists());
        std::fs::write(&path, "data").expect("written");
        let error = bind_unix(&path).expect_err("a file");
        assert!(error.to_string().ends_with("bind: a file that is no socket is there"), "{error}");
        assert_eq!(std::fs::read(&path).expect("still there"), b"data");
    }
}
