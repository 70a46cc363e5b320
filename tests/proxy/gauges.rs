//! The proxy's own metrics.

use futures::stream::{self, StreamExt};
use watershed::pb::etcdserverpb::WatchCreateRequest;

use crate::harness::{Deployment, Target, Watching, client, http_get, run, until};

/// The value of a metric on the proxy's own page; 0 where it has none yet.
async fn own(endpoint: &str, name: &str) -> f64 {
    let page = http_get(endpoint, "GET", "/proxy/metrics").await.expect("a page").body;
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or(0.0)
}

#[test]
fn watchers_that_share_are_counted_whoever_comes_and_goes() {
    const SHARING: &str = "etcd_grpc_proxy_watchers_coalescing_total";
    run(Target::Proxy, &[], async |deployment: &mut Deployment| {
        let request = || WatchCreateRequest { key: "k".into(), ..Default::default() };
        let mut stay = Vec::new();
        for _ in 0..3 {
            stay.push(Watching::create(&deployment.client, request()).await.0);
        }
        let clients: Vec<_> = (0..4).map(|_| client(&deployment.endpoint)).collect();
        let rounds = (0..1000).map(|number| {
            let client = &clients[number % clients.len()];
            async move {
                let (mut watching, created) = Watching::create(client, request()).await;
                // Half of them say that they go.
                if number % 2 == 0 {
                    watching.cancel(created.watch_id).await;
                    assert!(watching.next().await.canceled);
                }
            }
        });
        stream::iter(rounds).buffer_unordered(50).collect::<()>().await;
        until("the count", async || (own(&deployment.endpoint, SHARING).await == 2.0).then_some(())).await;
        drop(stay);
        until("the count", async || (own(&deployment.endpoint, SHARING).await == 0.0).then_some(())).await;
    });
}
