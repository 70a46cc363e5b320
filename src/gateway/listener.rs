use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{SocketFlags, accept_with};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::stream::Accepted;
use crate::config::ListenAddress;
use crate::net::{PortUse, Replaces, TcpSilence, listen_tcp, listen_unix};

/// Where client connections come from; tests put failures in.
pub(super) trait Accept: Send + 'static {
    /// The next connection, non-blocking.
    fn accept(&mut self) -> impl Future<Output = io::Result<Accepted>> + Send;
}

/// A listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    socket: AsyncFd<OwnedFd>,
    is_unix: bool,
}

impl Listener {
    /// Binds `address`; `mode` is that of the file of a unix socket, the usual one unless given. Must be called on a runtime.
    pub(super) fn bind(address: &ListenAddress, mode: Option<u32>) -> io::Result<Self> {
        Self::adopt(match address {
            ListenAddress::Tcp(address) => listen_tcp(*address, PortUse::Alone)?.into(),
            // The socket of a process that listens is refused as a port in use is.
            ListenAddress::Unix(path) => listen_unix(path, mode, Replaces::Unused)?.into(),
        })
    }

    /// A socket that listens already.
    pub(super) fn adopt(socket: OwnedFd) -> io::Result<Self> {
        let found = SockRef::from(&socket);
        if !found.is_listener()? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen"));
        }
        found.set_nonblocking(true)?;
        let is_unix = matches!(address_of(&socket)?, ListenAddress::Unix(_));
        if !is_unix {
            // Connections that are accepted have the options of the listening socket: six system calls fewer for each.
            TcpSilence::CLIENT.prepare(&socket)?;
        }
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for types that may change their descriptor; this one keeps it"
        )]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
        Ok(Self { socket, is_unix })
    }

    /// The same socket for another process.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.socket.get_ref().try_clone()
    }

    pub(super) fn address(&self) -> io::Result<ListenAddress> {
        address_of(self.socket.get_ref())
    }
}

impl Accept for Listener {
    async fn accept(&mut self) -> io::Result<Accepted> {
        // The runtime of this loop never learns of the connection, which is served on another one.
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let accept = |socket: &OwnedFd| accept_with(socket, flags).map_err(io::Error::from);
        let accepted = self.socket.async_io(Interest::READABLE, accept).await?;
        Ok(if self.is_unix { Accepted::Unix(accepted.into()) } else { Accepted::Tcp(accepted.into()) })
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

    #[tokio::test]
    async fn what_is_accepted_is_ready_to_be_served() {
        let any = "127.0.0.1:0".parse().unwrap();
        let passed = std::net::TcpListener::bind(any).unwrap();
        for listener in [Listener::bind(&ListenAddress::Tcp(any), None), Listener::adopt(passed.into())] {
            let mut listener = listener.unwrap();
            let ListenAddress::Tcp(address) = listener.address().unwrap() else { unreachable!("it has a port") };
            let client = std::net::TcpStream::connect(address).unwrap();
            let Accepted::Tcp(accepted) = listener.accept().await.unwrap() else { unreachable!("it is TCP") };
            assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
            assert_eq!(accepted.peek(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            let socket = SockRef::from(&accepted);
            assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), TcpSilence::CLIENT.probe_after);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(TcpSilence::CLIENT.max));
        }
    }
}
