//! What the gateway reads of a connection before it moves its bytes: the ClientHello of a TLS client and the PROXY header of a load
//! balancer. Any bytes in any pieces end in a value or in a refusal; a header is read to its end and no further, and what it
//! says is written and read again.
#![no_main]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use watershed::config::ProxyProtocol;
use watershed::gateway::fuzzing::{proxy_header, read_proxy_header};
use watershed::net::{ClientHelloReader, HelloProgress};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn hello(bytes: &[u8], step: usize) -> HelloProgress {
    let mut reader = ClientHelloReader::default();
    for piece in bytes.chunks(step) {
        match reader.feed(piece) {
            HelloProgress::Incomplete => {}
            known => return known,
        }
    }
    HelloProgress::Incomplete
}

/// A message is the same in whatever pieces it comes.
fn hellos(bytes: &[u8], step: usize) {
    let (whole, pieces) = (hello(bytes, bytes.len().max(1)), hello(bytes, step));
    if let HelloProgress::Complete(known) = &whole {
        assert!(known.server_name.as_deref().is_none_or(|name| !name.is_empty()));
        assert!(known.protocols.iter().all(|protocol| !protocol.is_empty()));
        assert!(bytes.first().is_some_and(|first| ClientHelloReader::may_begin_with(*first)));
    }
    assert_eq!(whole, pieces);
}

fn canonical(ends: (SocketAddr, SocketAddr)) -> [(IpAddr, u16); 2] {
    [ends.0, ends.1].map(|end| (end.ip().to_canonical(), end.port()))
}

fn header(bytes: &[u8]) {
    let Ok((ends, taken)) = read_proxy_header(bytes) else { return };
    let own = &bytes[..taken];
    assert_eq!(read_proxy_header(own).expect("the same header"), (ends, taken), "what follows does not matter");
    let part = read_proxy_header(&own[..taken - 1]).expect_err("a part of it");
    assert_eq!(part.kind(), ErrorKind::UnexpectedEof);
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let written = proxy_header(version, ends);
        let (read, length) = read_proxy_header(&written).expect("a header");
        assert_eq!((read.map(canonical), length), (ends.map(canonical), written.len()));
    }
}

fuzz_target!(|data: &[u8]| {
    let [kind, step, rest @ ..] = data else { return };
    match kind % 5 {
        0 => hellos(rest, usize::from(*step) + 1),
        1 => hellos(&[&[22, 3, 1][..], rest].concat(), usize::from(*step) + 1),
        2 => header(rest),
        3 => header(&[b"PROXY ", rest].concat()),
        _ => header(&[SIGNATURE, rest].concat()),
    }
});
