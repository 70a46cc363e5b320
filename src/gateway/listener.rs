use std::io;
use std::os::fd::{AsFd, OwnedFd};

use socket2::SockRef;
use tokio::net::{TcpListener, UnixListener};

use super::stream::Accepted;
use crate::config::ListenAddress;
use crate::net::{PortUse, Replaces, listen_tcp, listen_unix};

/// Where client connections come from; tests put failures in.
pub(super) trait Accept: Send + 'static {
    /// The next connection, non-blocking.
    fn accept(&mut self) -> impl Future<Output = io::Result<Accepted>> + Send;
}

/// A listening socket.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Binds `address`; `mode` is that of the file of a unix socket, the usual one unless given. Must be called on a runtime.
    pub(super) fn bind(address: &ListenAddress, mode: Option<u32>) -> io::Result<Self> {
        match address {
            ListenAddress::Tcp(address) => TcpListener::from_std(listen_tcp(*address, PortUse::Alone)?).map(Self::Tcp),
            // The socket of a process that listens is refused as a port in use is.
            ListenAddress::Unix(path) => {
                UnixListener::from_std(listen_unix(path, mode, Replaces::Unused)?).map(Self::Unix)
            }
        }
    }

    /// A socket that listens already.
    pub(super) fn adopt(socket: OwnedFd) -> io::Result<Self> {
        let wrong = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let found = SockRef::from(&socket);
        if !found.is_listener()? {
            return Err(wrong("it does not listen"));
        }
        found.set_nonblocking(true)?;
        match address_of(&socket)? {
            ListenAddress::Tcp(_) => TcpListener::from_std(socket.into()).map(Self::Tcp),
            ListenAddress::Unix(_) => UnixListener::from_std(socket.into()).map(Self::Unix),
        }
    }

    /// The same socket for another process.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
            Self::Unix(listener) => listener.as_fd().try_clone_to_owned(),
        }
    }

    pub(super) fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Self::Tcp(listener) => address_of(listener),
            Self::Unix(listener) => address_of(listener),
        }
    }
}

impl Accept for Listener {
    async fn accept(&mut self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => listener.accept().await.and_then(|(client, _)| client.into_std()).map(Accepted::Tcp),
            Self::Unix(listener) => {
                listener.accept().await.and_then(|(client, _)| client.into_std()).map(Accepted::Unix)
            }
        }
    }
}

/// What a socket is bound to.
pub(super) fn address_of(socket: &impl AsFd) -> io::Result<ListenAddress> {
    let address = SockRef::from(socket).local_addr()?;
    let path = || address.as_pathname().map(|path| ListenAddress::Unix(path.to_owned()));
    let known = address.as_socket().map(ListenAddress::Tcp).or_else(path);
    known.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it has neither a TCP address nor a path"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_does_not_listen_is_refused() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Listener::adopt(one.into()).is_err());
        let file = tempfile::tempfile().unwrap();
        assert!(Listener::adopt(file.into()).is_err());
    }
}
