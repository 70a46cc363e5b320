//! What a peer sends: the handshake's headers, frames and their contents, and raft messages.
#![no_main]

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use watershed::core::peer::{Peer, PeerSet, fuzzing};
use watershed::core::raft::PeerMessage;
use watershed::types::{ClusterId, MemberId};

const HEADERS: [&str; 7] = [
    "upgrade",
    "x-watershed-version",
    "x-watershed-lane",
    "x-etcd-cluster-id",
    "x-server-from",
    "x-raft-to",
    "x-peerurls",
];

/// Lines of the input are header values; a member that is refused or accepted changes nothing but the unlisted peers.
fn handshake(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for (name, value) in HEADERS.into_iter().zip(data.split(|byte| *byte == b'\n')) {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let mut peers = PeerSet::new(ClusterId(0xcc), MemberId(0xa));
    let listed = [0xa, 0xb].map(|id| Peer { id: MemberId(id), urls: vec![format!("http://member-{id}:2380")] });
    let removed = BTreeSet::from([MemberId(0xc)]);
    peers.set_peers(listed.into(), removed.clone(), |_| false);
    if let Ok(greeting) = peers.judge(&headers) {
        let changes = peers.admit(&greeting);
        assert!(changes.ended.is_empty() && changes.added.len() <= 1);
    }
    assert!(peers.contains(MemberId(0xb)) && !peers.contains(MemberId(0xc)) && !peers.contains(MemberId(0xa)));
    let changes = peers.set_peers(Vec::new(), removed, |_| false);
    assert!(changes.ended.contains(&MemberId(0xb)) && peers.peers().next().is_none());
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    match kind % 4 {
        0 => handshake(rest),
        1 => fuzzing::read_frames(rest),
        // The checksums are made right, so that the contents are reached.
        2 => fuzzing::read_frames(&fuzzing::with_checksums(rest)),
        _ => {
            let bytes = Bytes::copy_from_slice(rest);
            if let Ok(message) = PeerMessage::parse(MemberId(1), MemberId(2), &bytes) {
                let _ = message.snapshot_position();
            }
            let _ = PeerMessage::snapshot(MemberId(1), MemberId(2), &bytes);
        }
    }
});
