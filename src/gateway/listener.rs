use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use super::stream::Accepted;
use crate::config::ListenAddress;

/// Connections the kernel queues while none is accepted.
const BACKLOG: u32 = 1024;

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
            ListenAddress::Tcp(address) => bind_tcp(*address).map(Self::Tcp),
            ListenAddress::Unix(path) => bind_unix(path, mode).map(Self::Unix),
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

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn bind_unix(path: &Path, mode: Option<u32>) -> io::Result<UnixListener> {
    remove_unused(path)?;
    let socket = unix_socket()?;
    socket.bind(&SockAddr::unix(path)?)?;
    // Nobody can connect before it listens.
    let set = mode.map_or(Ok(()), |mode| fs::set_permissions(path, Permissions::from_mode(mode)));
    let listening = set.and_then(|()| socket.listen(BACKLOG.cast_signed()));
    if let Err(error) = listening {
        // It is of no use there; the first error is the one to tell.
        let _ = fs::remove_file(path);
        return Err(error);
    }
    UnixListener::from_std(OwnedFd::from(socket).into())
}

fn unix_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Removes the file of a socket on which no process listens any more.
///
/// # Errors
/// When one does, or it is no socket.
fn remove_unused(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    match unix_socket()?.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        // Connected, or its queue is full.
        _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "address already in use: a process listens there")),
    }
}

/// The file of a unix socket, which is removed with this value if it is still that of the same socket.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    /// That of a socket that was bound there.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }

    /// Leaves it to a process that has the same socket.
    pub(super) fn leave(mut self) {
        self.path = PathBuf::new();
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether both paths lead to one socket.
pub(super) fn is_same_socket(one: &Path, other: &Path) -> bool {
    one == other || identity(one).is_ok_and(|found| identity(other).is_ok_and(|other| other == found))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::metadata(path)?;
    Ok((file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(path: &Path, mode: Option<u32>) -> io::Result<Listener> {
        Listener::bind(&ListenAddress::Unix(path.to_owned()), mode)
    }

    #[tokio::test]
    async fn only_the_socket_of_a_dead_process_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let live = bind(&path, Some(0o600)).unwrap();
        assert_eq!(live.address().unwrap(), ListenAddress::Unix(path.clone()));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(bind(&path, None).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let file = folder.path().join("notes");
        fs::write(&file, "mine").unwrap();
        assert!(bind(&file, None).unwrap_err().to_string().contains("no socket"));
        assert_eq!(fs::read(&file).unwrap(), b"mine");
        assert!(bind(&folder.path().join("x".repeat(200)), None).is_err());
        assert!(bind(&folder.path().join("none/s"), None).is_err());
    }

    #[tokio::test]
    async fn a_socket_whose_queue_is_full_is_not_taken_for_a_dead_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let socket = unix_socket().unwrap();
        let address = SockAddr::unix(&path).unwrap();
        socket.bind(&address).unwrap();
        socket.listen(0).unwrap();
        let mut queued = Vec::new();
        loop {
            let client = unix_socket().unwrap();
            match client.connect(&address) {
                Ok(()) => queued.push(client),
                Err(error) => break assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert_eq!(bind(&path, None).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_file_goes_with_its_socket_and_no_other_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let first = bind(&path, None).unwrap();
        let file = SocketFile::at(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = bind(&path, None).unwrap();
        drop((first, file));
        assert!(path.exists(), "it is that of the second");
        SocketFile::at(&path).unwrap().leave();
        assert!(path.exists());
        drop((SocketFile::at(&path).unwrap(), second));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_does_not_listen_is_refused() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Listener::adopt(one.into()).is_err());
        let file = tempfile::tempfile().unwrap();
        assert!(Listener::adopt(file.into()).is_err());
    }
}
