//! Leader election: three candidates lead one after the other, never two at once, and an observer is told who leads.
//!
//! ```sh
//! cargo run --example leader_election -- 127.0.0.1:23791
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, ensure};
use etcd_client::{Client, ProclaimOptions, ResignOptions};
use futures::future::try_join_all;

const ELECTION: &str = "/example/election";
/// Seconds until another one may lead if the leader dies. A real leader keeps its lease alive, see `service_discovery.rs`.
const TTL: i64 = 60;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:23791".into());
    let mut client = Client::connect([endpoint], None).await?;
    let leading = Arc::new(AtomicUsize::new(0));
    let candidates = (1..=3).map(|number| lead(client.clone(), format!("candidate-{number}"), leading.clone()));
    tokio::select! {
        done = try_join_all(candidates) => drop(done?),
        end = async {
            // It tells the present leader first, then each change; a leader that went meanwhile is left out.
            let mut observed = client.observe(ELECTION).await?;
            while let Some(answer) = observed.message().await? {
                println!("observed: {}", answer.kv().context("a leader")?.value_str()?);
            }
            anyhow::bail!("the observation ended")
        } => return end,
    }
    println!("each has led once");
    Ok(())
}

/// Waits for its turn, works as the leader and resigns.
async fn lead(mut client: Client, name: String, leading: Arc<AtomicUsize>) -> anyhow::Result<()> {
    let lease = client.lease_grant(TTL, None).await?.id();
    let elected = client.campaign(ELECTION, name.as_str(), lease).await?;
    let key = elected.leader().context("the key of the leader")?.clone();
    ensure!(leading.fetch_add(1, Ordering::SeqCst) == 0, "two lead at once");
    println!("{name} leads");
    // Fails once the key is gone: then it leads no more.
    client.proclaim(format!("{name} at work"), Some(ProclaimOptions::new().with_leader(key.clone()))).await?;
    leading.fetch_sub(1, Ordering::SeqCst);
    client.resign(Some(ResignOptions::new().with_leader(key))).await?;
    client.lease_revoke(lease).await?;
    Ok(())
}
