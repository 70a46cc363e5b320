//! Takes a lock, works while holding it, gives it back: the server-side lock of the etcd v3 API.
//!
//! Run a store (`watershed dev`), then this in two terminals: the second waits for the first.
//!
//! ```sh
//! cargo run --example lock -- 127.0.0.1:23791 my-lock
//! ```

use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use watershed::client::{Client, ClientConfig, Endpoint};
use watershed::pb::etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest};
use watershed::pb::v3lockpb::LockRequest;

/// Seconds until others get the lock if this program dies with it.
const TTL: i64 = 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let endpoint: Endpoint = args.next().as_deref().unwrap_or("127.0.0.1:2379").parse()?;
    let name = args.next().unwrap_or_else(|| "example".into());
    let client = Client::connect(ClientConfig::new([endpoint]))?;

    let lease = client.lease().lease_grant(LeaseGrantRequest { ttl: TTL, id: 0 }).await?.into_inner().id;
    let work = async {
        println!("waiting for {name}");
        let request = LockRequest { name: name.clone().into(), lease };
        let lock = client.lock().lock(request).await.context("lock")?.into_inner();
        println!("holding {}", String::from_utf8_lossy(&lock.key));
        tokio::time::sleep(Duration::from_secs(3)).await; // The work.
        anyhow::Ok(())
    };
    // Whoever holds the lock keeps its lease alive; when that fails, the lock is no longer ours.
    tokio::select! {
        done = work => done?,
        lost = keep_alive(&client, lease) => lost.context("the lease is lost")?,
    }
    // With its lease the key goes too, so the next one in the queue has the lock at once.
    client.lease().lease_revoke(LeaseRevokeRequest { id: lease }).await?;
    println!("gave it back");
    Ok(())
}

/// Renews the lease until that is no longer possible.
async fn keep_alive(client: &Client, id: i64) -> anyhow::Result<()> {
    let (requests, receiver) = mpsc::channel(1);
    requests.send(LeaseKeepAliveRequest { id }).await?;
    let mut answers = client.lease().lease_keep_alive(ReceiverStream::new(receiver)).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        anyhow::ensure!(answer.ttl > 0, "it expired");
        tokio::time::sleep(Duration::from_secs(TTL as u64 / 3)).await;
        requests.send(LeaseKeepAliveRequest { id }).await?;
    }
    anyhow::bail!("the store ended the stream")
}
