use std::fs::{self, Permissions};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Connections the kernel queues while none is accepted.
const BACKLOG: i32 = 1024;

/// Whether other sockets may be bound to the same address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortUse {
    /// A port in use is refused.
    Alone,
    /// With others that allow it as well; the system spreads connections over them (`SO_REUSEPORT`).
    Shared,
}

/// Which unix socket at the path of a new one is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaces {
    /// Any, as etcd does.
    Any,
    /// One on which no process listens any more.
    Unused,
}

/// Where a listener without a host listens: all addresses of IPv6 and IPv4, see [`listen_tcp`].
pub fn all_addresses(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

/// Where a listener for `address` listens: `0.0.0.0` means all addresses of both families, as in etcd, which leaves it to Go.
pub fn listening_address(address: SocketAddr) -> SocketAddr {
    if address.ip() == Ipv4Addr::UNSPECIFIED { all_addresses(address.port()) } else { address }
}

/// Of the addresses of a name, the one to listen at: the first of IPv4, or else the first, as in Go.
pub fn preferred_address(addresses: impl Iterator<Item = SocketAddr>) -> Option<SocketAddr> {
    // Stable: the order of the resolver within a family.
    addresses.min_by_key(SocketAddr::is_ipv6)
}

/// A TCP socket that listens, non-blocking. One for all addresses of IPv6 takes those of IPv4, too, and is one for IPv4 alone where
/// this host has no IPv6, as in Go.
///
/// # Errors
/// Those of the system; for a port in use `address already in use`, as etcd says.
pub fn listen_tcp(address: SocketAddr, port_use: PortUse) -> io::Result<TcpListener> {
    in_a_family(address, |address| open_tcp(address, port_use))
}

/// Opens a socket at `address`; at all addresses of IPv4 if those of IPv6 are wanted and this host has none.
fn in_a_family<T>(address: SocketAddr, open: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    match open(address) {
        Err(error) if address == all_addresses(address.port()) && lacks_family(&error) => {
            open((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        outcome => outcome,
    }
}

fn lacks_family(error: &io::Error) -> bool {
    let codes = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL];
    codes.iter().any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

fn open_tcp(address: SocketAddr, port_use: PortUse) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(port_use == PortUse::Shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into()).and_then(|()| socket.listen(BACKLOG)).map_err(plain)?;
    Ok(socket.into())
}

/// Words the one common failure without the number of the operating system.
fn plain(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::AddrInUse => io::Error::new(error.kind(), "address already in use"),
        _ => error,
    }
}

/// A unix socket that listens, non-blocking; `mode` is that of its file, the usual one unless given.
///
/// # Errors
/// When there is a socket that is not to be replaced, or a file that is no socket; those of the system.
pub fn listen_unix(path: &Path, mode: Option<u32>, replaces: Replaces) -> io::Result<UnixListener> {
    if is_socket(path)? {
        if replaces == Replaces::Unused {
            refuse_used(path)?;
        }
        fs::remove_file(path)?;
    }
    let socket = unix_socket()?;
    socket.bind(&SockAddr::unix(path)?)?;
    // Nobody can connect before it listens.
    let set = mode.map_or(Ok(()), |mode| fs::set_permissions(path, Permissions::from_mode(mode)));
    if let Err(error) = set.and_then(|()| socket.listen(BACKLOG)) {
        // It is of no use there; the first error is the one to tell.
        let _ = fs::remove_file(path);
        return Err(error);
    }
    Ok(OwnedFd::from(socket).into())
}

fn unix_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Whether there is a socket at the path; false where there is nothing.
///
/// # Errors
/// When there is another file, which is not to be replaced.
pub fn is_socket(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => Ok(true),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// # Errors
/// When a process listens on the socket there, or it cannot be known.
fn refuse_used(path: &Path) -> io::Result<()> {
    match unix_socket()?.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        // Connected, or its queue is full.
        _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "address already in use: a process listens there")),
    }
}

/// The file of a unix socket, which is removed with this value if it is still that of the same socket.
///
/// It is dropped before the socket: as long as that is open, no other file can have the same inode.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    /// That of a socket that was bound there.
    ///
    /// # Errors
    /// When it is gone.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it to a process that has the same socket.
    pub fn leave(mut self) {
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
pub fn is_same_socket(one: &Path, other: &Path) -> bool {
    one == other || identity(one).is_ok_and(|found| identity(other).is_ok_and(|other| other == found))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::metadata(path)?;
    Ok((file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_socket_of_a_dead_process_is_replaced_unless_any_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let live = listen_unix(&path, Some(0o600), Replaces::Unused).unwrap();
        assert_eq!(live.local_addr().unwrap().as_pathname(), Some(path.as_path()));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(listen_unix(&path, None, Replaces::Unused).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let second = listen_unix(&path, None, Replaces::Any).unwrap();
        let _client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert!(second.accept().is_ok(), "the file leads to the second");
        let file = folder.path().join("notes");
        fs::write(&file, "mine").unwrap();
        for replaces in [Replaces::Any, Replaces::Unused] {
            assert!(listen_unix(&file, None, replaces).unwrap_err().to_string().contains("no socket"));
            assert_eq!(fs::read(&file).unwrap(), b"mine");
            assert!(listen_unix(&folder.path().join("x".repeat(200)), None, replaces).is_err());
            assert!(listen_unix(&folder.path().join("none/s"), None, replaces).is_err());
        }
    }

    #[test]
    fn a_socket_whose_queue_is_full_is_not_taken_for_a_dead_one() {
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
        assert_eq!(listen_unix(&path, None, Replaces::Unused).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
    }

    #[test]
    fn a_file_goes_with_its_socket_and_no_other_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listen = || listen_unix(&path, None, Replaces::Any).unwrap();
        let first = (listen(), SocketFile::at(&path).unwrap());
        let second = listen();
        drop(first.1);
        assert!(path.exists(), "it is that of the second");
        SocketFile::at(&path).unwrap().leave();
        assert!(path.exists());
        drop((SocketFile::at(&path).unwrap(), second));
        assert!(!path.exists());
    }

    #[test]
    fn without_ipv6_the_addresses_of_ipv4_are_bound() {
        for code in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
            let open = |address: SocketAddr| if address.is_ipv6() { Err(code.into()) } else { Ok(address) };
            assert_eq!(in_a_family(all_addresses(7), open).unwrap().to_string(), "0.0.0.0:7", "{code}");
            assert!(in_a_family("[::1]:7".parse().unwrap(), open).is_err(), "{code}: one of IPv6 is meant");
        }
        let in_use = |_: SocketAddr| Err::<(), _>(Errno::ADDRINUSE.into());
        assert_eq!(in_a_family(all_addresses(7), in_use).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let foreign = |_: SocketAddr| Err::<(), _>(Errno::ADDRNOTAVAIL.into());
        let error = in_a_family("192.0.2.1:7".parse().unwrap(), foreign).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }

    #[test]
    fn all_addresses_of_ipv4_are_those_of_ipv6_too() {
        for (asked, listens) in [("0.0.0.0:7", "[::]:7"), ("[::]:7", "[::]:7"), ("127.0.0.1:7", "127.0.0.1:7")] {
            assert_eq!(listening_address(asked.parse().unwrap()).to_string(), listens);
        }
    }

    #[test]
    fn a_port_is_shared_by_those_that_allow_it() {
        let any = "127.0.0.1:0".parse().unwrap();
        let first = listen_tcp(any, PortUse::Shared).unwrap();
        let address = first.local_addr().unwrap();
        assert!(listen_tcp(address, PortUse::Shared).is_ok());
        assert_eq!(listen_tcp(address, PortUse::Alone).unwrap_err().to_string(), "address already in use");
    }
}
