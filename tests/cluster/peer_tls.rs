//! Members that talk TLS to each other, by flags.

use super::members::add;
use super::story::{assert_equal, get, on_three, put};
use crate::harness::{Certificates, Cluster, http_get};

#[test]
fn members_with_certificates_form_a_cluster_and_take_another_one() {
    let certificates = Certificates::new(&[]);
    let flags = certificates.peer_flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    on_three(&flags, async |cluster: &mut Cluster| {
        put(&cluster.client(), "k", "v").await;
        cluster.kill(1);
        put(&cluster.client(), "k", "without one").await;
        cluster.restart(1).await;
        // The new one asks the others over TLS who belongs to the cluster.
        let new = cluster.prepare();
        add(cluster, new, false).await;
        cluster.introduce(new, &[0, 1, 2]);
        cluster.restart(new).await;
        assert_eq!(&get(&cluster.member(new), "k").await.kvs[0].value[..], b"without one");
        assert_equal(cluster).await;
        let url = cluster.peer_url(0);
        let address = url.strip_prefix("https://").expect("TLS");
        let told = http_get(address, "GET", "/members").await.expect("an answer");
        assert_eq!(told.status, 400, "whoever shows nothing is told nothing of the members");
        assert!(told.body.contains("to a port that speaks TLS"), "{}", told.body);
    });
}
