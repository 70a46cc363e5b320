use sha1::{Digest, Sha1};

use crate::types::{ClusterId, MemberId};

/// A first member's id: the start of SHA-1 over its sorted peer URLs and the cluster token.
pub fn member_id(peer_urls: &[String], token: &str) -> MemberId {
    hashed(peer_urls, token)
}

/// The id of a member that joins a running cluster: as at the bootstrap, with the time of the request, in Unix seconds,
/// for a token. A member that is added a second time gets another id, since ids are never used again.
pub fn added_member_id(peer_urls: &[String], unix_seconds: u64) -> MemberId {
    hashed(peer_urls, &unix_seconds.to_string())
}

fn hashed(peer_urls: &[String], suffix: &str) -> MemberId {
    let mut sorted: Vec<&String> = peer_urls.iter().collect();
    sorted.sort();
    let mut hash = Sha1::new();
    for url in sorted {
        hash.update(url.as_bytes());
    }
    hash.update(suffix.as_bytes());
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

    fn urls(list: &[&str]) -> Vec<String> {
        list.iter().map(|url| (*url).to_owned()).collect()
    }

    // Observed on a stock member with this peer URL and token.
    #[test]
    fn ids_are_those_of_etcd() {
        let member = member_id(&urls(&["http://127.0.0.1:23800"]), "etcd-cluster");
        assert_eq!(member, MemberId(0x2e12_59d4_15f2_a040));
        assert_eq!(cluster_id(&[member]), ClusterId(0x0482_76a8_f75b_6a87));
    }

    // Values that etcd's own tests expect; the time is 1984-12-23T15:04:05Z.
    #[test]
    fn ids_depend_on_urls_token_and_time() {
        let then = 472_662_245;
        assert_eq!(member_id(&urls(&["http://10.0.0.8:2379"]), ""), MemberId(14_544_069_596_553_697_298));
        assert_eq!(added_member_id(&urls(&["http://10.0.0.8:2379"]), then), MemberId(2_448_790_162_483_548_276));
        let with_token = member_id(&urls(&["http://10.0.0.8:2379"]), &format!("etcd{then}"));
        assert_eq!(with_token, MemberId(6_973_882_743_191_604_649));
        assert_eq!(added_member_id(&urls(&["http://10.0.0.1:2379"]), then), MemberId(1_466_075_294_948_436_910));
        let pair = ["http://10.0.0.1:2379", "http://10.0.0.2:2379"];
        for order in [pair, [pair[1], pair[0]]] {
            assert_eq!(member_id(&urls(&order), ""), MemberId(16_552_244_735_972_308_939));
        }
    }

    // The cluster of etcd's Procfile; computed a second time with another program.
    #[test]
    fn a_cluster_id_does_not_depend_on_the_order() {
        let ids = ["http://127.0.0.1:12380", "http://127.0.0.1:22380", "http://127.0.0.1:32380"]
            .map(|url| member_id(&urls(&[url]), "etcd-cluster-1"));
        assert_eq!(
            ids,
            [MemberId(0x8211_f1d0_f64f_3269), MemberId(0x91bc_3c39_8fb3_c146), MemberId(0xfd42_2379_fda5_0e48)]
        );
        assert_eq!(cluster_id(&ids), ClusterId(0xef37_ad9d_c622_a7c4));
        assert_eq!(cluster_id(&[ids[2], ids[0], ids[1]]), cluster_id(&ids));
    }
}
