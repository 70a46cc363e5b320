use std::io;

use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

/// An accepted connection on its way to its serving thread.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

/// How a client begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// With a TLS handshake.
    Tls,
    /// With the preface of HTTP/2.
    Http2,
    /// With anything else, which HTTP/1 judges.
    Other,
}

/// The record that a TLS connection begins with. No method of HTTP begins with this byte.
const HANDSHAKE_RECORD: u8 = 0x16;
/// Enough of the preface of HTTP/2 to know it: no method of HTTP/1 begins so.
const HTTP2: &[u8] = b"PRI ";

impl Beginning {
    fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [] => None,
            [HANDSHAKE_RECORD, ..] => Some(Self::Tls),
            bytes if bytes.starts_with(HTTP2) => Some(Self::Http2),
            _ => Some(Self::Other),
        }
    }
}

/// Waits for the first bytes, which stay to be read. None when the client leaves without a word.
pub(super) async fn beginning_tcp(stream: &TcpStream) -> io::Result<Option<Beginning>> {
    let mut bytes = [0; HTTP2.len()];
    let count = stream.peek(&mut bytes).await?;
    Ok(Beginning::of(&bytes[..count]))
}

/// The same for a unix socket.
pub(super) async fn beginning_unix(stream: &UnixStream) -> io::Result<Option<Beginning>> {
    let mut bytes = [0; HTTP2.len()];
    let peek = || Ok(recv(stream, &mut bytes[..], RecvFlags::PEEK)?.0);
    let count: usize = stream.async_io(Interest::READABLE, peek).await?;
    Ok(Beginning::of(&bytes[..count]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_are_told_apart() {
        assert_eq!(Beginning::of(b""), None);
        assert_eq!(Beginning::of(b"\x16\x03\x01\x02"), Some(Beginning::Tls));
        assert_eq!(Beginning::of(b"PRI "), Some(Beginning::Http2));
        for other in [&b"PUT "[..], b"G", b"PRI", b"\0\0\0\0", b"\x15\x03"] {
            assert_eq!(Beginning::of(other), Some(Beginning::Other), "{other:?}");
        }
    }
}
