//! Configuration for thousands of processes: every one watches the same prefix and gets every change, in order.
//!
//! Opens many watches (1,000 unless told), changes a setting twenty times and ends when every watch has all of it. Through a
//! proxy the cluster sees one watch and sends each event once.
//!
//! ```sh
//! cargo run --example config_distribution -- 127.0.0.1:23791 5000
//! ```

#![allow(clippy::disallowed_methods, reason = "the rule is for the program's own tasks")]

use std::time::Instant;

use anyhow::{Context, ensure};
use etcd_client::{Client, WatchOptions, WatchStream};

const PREFIX: &str = "/example/config/";
const CHANGES: usize = 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let endpoint = args.next().unwrap_or_else(|| "127.0.0.1:23791".into());
    let watchers: usize = args.next().map_or(Ok(1000), |count| count.parse())?;
    let mut client = Client::connect([endpoint], None).await?;

    let mut tasks = Vec::new();
    for _ in 0..watchers {
        let mut changes = client.watch(PREFIX, Some(WatchOptions::new().with_prefix())).await?;
        // What is written from here on reaches it.
        ensure!(changes.message().await?.is_some_and(|answer| answer.created()), "the watch was not created");
        tasks.push(tokio::spawn(receive(changes)));
    }
    println!("{watchers} watches are open");
    let began = Instant::now();
    for number in 0..CHANGES {
        client.put(format!("{PREFIX}log-level"), number.to_string(), None).await?;
    }
    for task in tasks {
        task.await??;
    }
    println!("all {watchers} got {CHANGES} changes in order, the last after {:?}", began.elapsed());
    Ok(())
}

/// Takes all changes and checks their order.
async fn receive(mut changes: WatchStream) -> anyhow::Result<()> {
    let mut next = 0;
    while next < CHANGES {
        let answer = changes.message().await?.context("the watch ended")?;
        ensure!(!answer.canceled(), "the watch was canceled: {}", answer.cancel_reason());
        for event in answer.events() {
            let value = event.kv().context("an event without its key")?.value_str()?;
            ensure!(value == next.to_string(), "got {value} in place of {next}");
            next += 1;
        }
    }
    Ok(())
}
