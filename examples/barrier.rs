//! A barrier: whoever comes waits until it is lifted, and all go on together.
//!
//! ```sh
//! cargo run --example barrier -- 127.0.0.1:23791
//! ```

#![allow(clippy::disallowed_methods, reason = "the rule is for the program's own tasks")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, ensure};
use etcd_client::{Client, EventType, WatchOptions};
use tokio::sync::Barrier;

const KEY: &str = "/example/barrier";
const WAITING: usize = 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:23791".into());
    let mut client = Client::connect([endpoint], None).await?;
    client.put(KEY, "", None).await?;
    let passed = Arc::new(AtomicUsize::new(0));
    let arrived = Arc::new(Barrier::new(WAITING + 1));
    let waiting: Vec<_> = (0..WAITING)
        .map(|_| {
            let (client, passed, arrived) = (client.clone(), passed.clone(), arrived.clone());
            tokio::spawn(async move {
                wait(client, || arrived.wait()).await?;
                passed.fetch_add(1, Ordering::SeqCst);
                anyhow::Ok(())
            })
        })
        .collect();
    arrived.wait().await;
    println!("{WAITING} wait");
    ensure!(passed.load(Ordering::SeqCst) == 0, "somebody passed");
    client.delete(KEY, None).await?;
    for task in waiting {
        task.await??;
    }
    println!("the barrier is lifted, {} have passed", passed.load(Ordering::SeqCst));
    Ok(())
}

/// Waits until the key is gone; `arrived` is called before.
async fn wait<T>(mut client: Client, arrived: impl FnOnce() -> T) -> anyhow::Result<()>
where
    T: Future,
{
    let present = client.get(KEY, None).await?;
    if present.kvs().is_empty() {
        return Ok(());
    }
    // From the revision after that read: a lift in between is seen, too.
    let next = present.header().context("a header")?.revision() + 1;
    let mut changes = client.watch(KEY, Some(WatchOptions::new().with_start_revision(next))).await?;
    arrived().await;
    loop {
        let answer = changes.message().await?.context("the watch ended")?;
        ensure!(!answer.canceled(), "the watch was canceled: {}", answer.cancel_reason());
        if answer.events().iter().any(|event| event.event_type() == EventType::Delete) {
            return Ok(());
        }
    }
}
