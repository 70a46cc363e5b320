use sha1::{Digest, Sha1};

use crate::types::{ClusterId, MemberId};

/// A first member's id: the start of SHA-1 over its sorted peer URLs and the cluster token.
pub fn member_id(peer_urls: &[String], token: &str) -> MemberId {
    let mut sorted: Vec<&String> = peer_urls.iter().collect();
    sorted.sort();
    let mut hash = Sha1::new();
    for url in sorted {
        hash.update(url.as_bytes());
    }
    hash.update(token.as_bytes());
    MemberId(first_eight(&hash.finalize()))
}

/// The cluster's id: the start of SHA-1 over the ids of its first members, ascending.
pub fn cluster_id(members: &[MemberId]) -> ClusterId {
    let mut sorted = members.to_vec();
    sorted.sort();
    let mut hash = Sha1::new();
    for member in sorted {
        hash.update(member.0.to_be_bytes());
    }
    ClusterId(first_eight(&hash.finalize()))
}

fn first_eight(digest: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Observed on a stock member with this peer URL and token.
    #[test]
    fn ids_are_those_of_etcd() {
        let member = member_id(&["http://127.0.0.1:23800".into()], "etcd-cluster");
        assert_eq!(member, MemberId(0x2e12_59d4_15f2_a040));
        assert_eq!(cluster_id(&[member]), ClusterId(0x0482_76a8_f75b_6a87));
    }
}
