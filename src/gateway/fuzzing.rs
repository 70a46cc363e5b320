//! For fuzz targets only: PROXY headers without a connection.

use std::io;
use std::net::SocketAddr;

use futures::FutureExt;

use super::proxy_protocol::{Ends, header, read_header};
use crate::config::ProxyProtocol;

/// Source and destination in the header that these bytes begin with, none where it names none, and how many bytes it has.
///
/// # Errors
/// Bytes that are no header, or a part of one.
pub fn read_proxy_header(bytes: &[u8]) -> io::Result<(Option<(SocketAddr, SocketAddr)>, usize)> {
    let mut left = bytes;
    let read = read_header(&mut left).now_or_never().ok_or(io::ErrorKind::WouldBlock)??;
    Ok((read.map(|ends| (ends.source, ends.destination)), bytes.len() - left.len()))
}

/// The header for a connection with these ends.
pub fn proxy_header(version: ProxyProtocol, ends: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    header(version, ends.map(|(source, destination)| Ends { source, destination }))
}
