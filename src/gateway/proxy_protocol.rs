//! The PROXY protocol, versions 1 and 2: a header before the bytes of a connection that says who the client is.
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::config::ProxyProtocol;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const V1_START: &[u8] = b"PROXY ";
/// The longest header of version 1, its end included.
const V1_BYTES_MAX: usize = 107;
/// Version 2: a connection of the sender itself, and one for a client.
const V2_LOCAL: u8 = 0x20;
const V2_PROXY: u8 = 0x21;
const V2_TCP4: u8 = 0x11;
const V2_TCP6: u8 = 0x21;
const V2_UNSPECIFIED: u8 = 0x00;
const TCP4_BYTES: usize = 12;
const TCP6_BYTES: usize = 36;

/// The two ends of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    /// The client.
    pub(super) source: SocketAddr,
    /// Where it connected to.
    pub(super) destination: SocketAddr,
}

/// Reads a header and not a byte more. None where the sender speaks for itself, or does not tell: the ends are those of the
/// connection then. The caller bounds the time.
pub(super) async fn read_header(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Ends>> {
    // Every header is longer.
    let mut start = [0; SIGNATURE.len()];
    stream.read_exact(&mut start).await?;
    if start == SIGNATURE {
        return read_v2(stream).await;
    }
    if !start.starts_with(V1_START) {
        return Err(malformed("the connection does not begin with a PROXY header"));
    }
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() == V1_BYTES_MAX {
            return Err(malformed("a PROXY header of version 1 has no end"));
        }
        line.push(stream.read_u8().await?);
    }
    let text = std::str::from_utf8(&line[V1_START.len()..line.len() - 2]).ok();
    text.and_then(parse_v1).ok_or_else(|| malformed("a PROXY header of version 1 is malformed"))
}

async fn read_v2(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Ends>> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let [command, family, ..] = head;
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    // Addresses first, then what is of no use here.
    let mut body = [0; TCP6_BYTES];
    let kept = length.min(TCP6_BYTES);
    stream.read_exact(&mut body[..kept]).await?;
    let mut rest = stream.take((length - kept) as u64);
    if tokio::io::copy(&mut rest, &mut tokio::io::sink()).await? < (length - kept) as u64 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    match (command, family) {
        (V2_LOCAL, _) => Ok(None),
        (V2_PROXY, V2_TCP4) if length >= TCP4_BYTES => {
            let address = |at: usize| Ipv4Addr::new(body[at], body[at + 1], body[at + 2], body[at + 3]);
            Ok(Some(Ends { source: (address(0), port(8)).into(), destination: (address(4), port(10)).into() }))
        }
        (V2_PROXY, V2_TCP6) if length >= TCP6_BYTES => {
            let address = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&body[at..at + 16]);
                Ipv6Addr::from(octets)
            };
            Ok(Some(Ends { source: (address(0), port(32)).into(), destination: (address(16), port(34)).into() }))
        }
        (V2_PROXY, V2_TCP4 | V2_TCP6) => Err(malformed("a PROXY header is too short for its addresses")),
        // Other kinds of sockets have no address that means something here.
        (V2_PROXY, _) => Ok(None),
        _ => Err(malformed("a PROXY header of version 2 is malformed")),
    }
}

/// What stands between `PROXY ` and the end of the line; `Some(None)` for a connection that is not told of.
fn parse_v1(text: &str) -> Option<Option<Ends>> {
    if text == "UNKNOWN" || text.starts_with("UNKNOWN ") {
        return Some(None);
    }
    let parts: Vec<&str> = text.split(' ').collect();
    let [family, source, destination, source_port, destination_port] = parts[..] else { return None };
    let address = |text: &str| match family {
        "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::from),
        "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        _ => None,
    };
    let port = |text: &str| text.parse::<u16>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    Some(Some(Ends {
        source: SocketAddr::new(address(source)?, port(source_port)?),
        destination: SocketAddr::new(address(destination)?, port(destination_port)?),
    }))
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The header of a connection with these ends; none for a connection of the gateway's own, as health checks are.
pub(super) fn header(version: ProxyProtocol, ends: Option<Ends>) -> Vec<u8> {
    let ends = ends.map(|ends| match (ends.source.ip().to_canonical(), ends.destination.ip().to_canonical()) {
        (source @ IpAddr::V4(_), destination @ IpAddr::V4(_)) => Ends {
            source: SocketAddr::new(source, ends.source.port()),
            destination: SocketAddr::new(destination, ends.destination.port()),
        },
        (source, destination) => Ends {
            source: SocketAddr::new(as_v6(source).into(), ends.source.port()),
            destination: SocketAddr::new(as_v6(destination).into(), ends.destination.port()),
        },
    });
    match (version, ends) {
        (ProxyProtocol::V1, None) => b"PROXY UNKNOWN\r\n".to_vec(),
        (ProxyProtocol::V1, Some(Ends { source, destination })) => {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (source.ip(), destination.ip());
            format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
        }
        (ProxyProtocol::V2, ends) => {
            let mut addresses = Vec::with_capacity(TCP6_BYTES);
            if let Some(Ends { source, destination }) = ends {
                for address in [source.ip(), destination.ip()] {
                    match address {
                        IpAddr::V4(address) => addresses.extend(address.octets()),
                        IpAddr::V6(address) => addresses.extend(address.octets()),
                    }
                }
                addresses.extend(source.port().to_be_bytes());
                addresses.extend(destination.port().to_be_bytes());
            }
            let (command, family) = match ends {
                None => (V2_LOCAL, V2_UNSPECIFIED),
                Some(ends) => (V2_PROXY, if ends.source.is_ipv4() { V2_TCP4 } else { V2_TCP6 }),
            };
            let mut header = SIGNATURE.to_vec();
            header.extend([command, family, 0, addresses.len() as u8]);
            header.extend(addresses);
            header
        }
    }
}

fn as_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    /// What is read, and how many bytes of `bytes` that took.
    fn read(bytes: &[u8]) -> (io::Result<Option<Ends>>, usize) {
        let mut left = bytes;
        let outcome = read_header(&mut left).now_or_never().expect("it does not wait for anything");
        (outcome, bytes.len() - left.len())
    }

    fn ends(source: &str, destination: &str) -> Option<Ends> {
        Some(Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() })
    }

    #[test]
    fn headers_of_the_specification_are_read() {
        let v2 = |bytes: &[u8]| [&SIGNATURE[..], bytes].concat();
        for (header, expected) in [
            (b"PROXY TCP4 255.255.255.255 10.0.0.1 65535 1\r\n".to_vec(), ends("255.255.255.255:65535", "10.0.0.1:1")),
            (b"PROXY TCP6 2001:db8::1 ::1 56324 443\r\n".to_vec(), ends("[2001:db8::1]:56324", "[::1]:443")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n".to_vec(), None),
            (
                v2(b"\x21\x11\x00\x0c\x0a\x00\x00\x01\x0a\x00\x00\x02\x12\x34\x00\x50"),
                ends("10.0.0.1:4660", "10.0.0.2:80"),
            ),
            // With a field behind the addresses.
            (
                v2(b"\x21\x11\x00\x10\x0a\x00\x00\x01\x0a\x00\x00\x02\x12\x34\x00\x50\x04\x00\x01\x00"),
                ends("10.0.0.1:4660", "10.0.0.2:80"),
            ),
            (v2(b"\x20\x00\x00\x00"), None),
            (v2(&[&b"\x21\x31\x00\xd8"[..], &[7; 216]].concat()), None),
        ] {
            let followed = [&header[..], b"bytes of the client"].concat();
            let (outcome, taken) = read(&followed);
            assert_eq!((outcome.unwrap(), taken), (expected, header.len()), "{}", header.escape_ascii());
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let v2 = |bytes: &[u8]| [&SIGNATURE[..], bytes].concat();
        for wrong in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 1\r\n".to_vec(),
            b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 1\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::1 1 1\r\n".to_vec(),
            b"PROXY TCP4 1.2.3.4  1.2.3.4 1 1\r\n".to_vec(),
            b"PROXY UDP4 1.2.3.4 1.2.3.4 1 1\r\n".to_vec(),
            [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat(),
            v2(b"\x21\x11\x00\x0b\x0a\x00\x00\x01\x0a\x00\x00\x02\x12\x34\x00\x50"),
            v2(b"\x21\x21\x00\x0c\x0a\x00\x00\x01\x0a\x00\x00\x02\x12\x34\x00\x50"),
            v2(b"\x11\x11\x00\x0c\x0a\x00\x00\x01\x0a\x00\x00\x02\x12\x34\x00\x50"),
        ] {
            assert_eq!(read(&wrong).0.unwrap_err().kind(), io::ErrorKind::InvalidData, "{}", wrong.escape_ascii());
        }
    }

    #[test]
    fn what_is_written_is_read_and_no_part_of_it_is_enough() {
        let address = || prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
        proptest!(|(source in (address(), any::<u16>()), destination in (address(), any::<u16>()), is_v1: bool, own: bool)| {
            let version = if is_v1 { ProxyProtocol::V1 } else { ProxyProtocol::V2 };
            let told = Ends { source: source.into(), destination: destination.into() };
            let written = header(version, (!own).then_some(told));
            let (outcome, taken) = read(&written);
            prop_assert_eq!(taken, written.len());
            let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
            let expected = (!own).then_some(told).map(|told| (canonical(told.source), canonical(told.destination)));
            prop_assert_eq!(outcome.unwrap().map(|read| (canonical(read.source), canonical(read.destination))), expected);
            for cut in 0..written.len() {
                prop_assert_eq!(read(&written[..cut]).0.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            }
        });
    }

    #[test]
    fn noise_is_never_a_panic() {
        proptest!(|(version in 0..3_u8, noise in prop::collection::vec(any::<u8>(), 0..300))| {
            let start: &[u8] = match version { 1 => V1_START, 2 => &SIGNATURE, _ => b"" };
            let _ = read(&[start, &noise].concat());
        });
    }
}
