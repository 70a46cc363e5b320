//! A work queue: producers put items, each worker takes the oldest, and no item is taken twice.
//!
//! ```sh
//! cargo run --example work_queue -- 127.0.0.1:23791
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use etcd_client::{
    Client, Compare, CompareOp, EventType, GetOptions, SortOrder, SortTarget, Txn, TxnOp, WatchFilterType, WatchOptions,
};
use futures::future::try_join_all;

const PREFIX: &str = "/example/queue/";
const ITEMS: usize = 60;
const WORKERS: usize = 4;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:23791".into());
    let client = Client::connect([endpoint], None).await?;
    let workers = (0..WORKERS).map(|_| work(client.clone()));
    let (_, done) = tokio::try_join!(produce(client.clone()), try_join_all(workers))?;
    println!("items of each worker: {:?}", done.iter().map(Vec::len).collect::<Vec<_>>());
    let all: Vec<String> = done.into_iter().flatten().collect();
    ensure!(all.len() == ITEMS && all.iter().collect::<BTreeSet<_>>().len() == ITEMS, "taken twice or not: {all:?}");
    println!("each of {ITEMS} items was taken once");
    Ok(())
}

/// Puts the items, and then one to end each worker.
async fn produce(mut client: Client) -> anyhow::Result<()> {
    let items = (0..ITEMS).map(|number| format!("item {number}")).chain((0..WORKERS).map(|_| "end".to_owned()));
    for (number, item) in items.enumerate() {
        // A queue with several producers takes names from a counter, or lets the revisions order the items.
        client.put(format!("{PREFIX}{number:08}"), item, None).await?;
    }
    Ok(())
}

async fn work(mut client: Client) -> anyhow::Result<Vec<String>> {
    let mut done = Vec::new();
    loop {
        match take(&mut client).await?.as_str() {
            "end" => return Ok(done),
            item => {
                tokio::time::sleep(Duration::from_millis(5)).await; // The work.
                done.push(item.to_owned());
            }
        }
    }
}

/// Takes the oldest item, or waits for one.
async fn take(client: &mut Client) -> anyhow::Result<String> {
    loop {
        let oldest = GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Ascend).with_limit(1);
        let listed = client.get(PREFIX, Some(oldest)).await?;
        let Some(kv) = listed.kvs().first() else {
            wait(client, listed.header().context("a header")?.revision() + 1).await?;
            continue;
        };
        // Whoever deletes it first has it.
        let untaken = Compare::mod_revision(kv.key(), CompareOp::Equal, kv.mod_revision());
        let take = Txn::new().when([untaken]).and_then([TxnOp::delete(kv.key(), None)]);
        if client.txn(take).await?.succeeded() {
            return Ok(kv.value_str()?.to_owned());
        }
    }
}

/// Waits until an item is put at or after this revision.
async fn wait(client: &mut Client, revision: i64) -> anyhow::Result<()> {
    let options =
        WatchOptions::new().with_prefix().with_start_revision(revision).with_filters([WatchFilterType::NoDelete]);
    let mut changes = client.watch(PREFIX, Some(options)).await?;
    loop {
        let answer = changes.message().await?.context("the watch ended")?;
        ensure!(!answer.canceled(), "the watch was canceled: {}", answer.cancel_reason());
        if answer.events().iter().any(|event| event.event_type() == EventType::Put) {
            return Ok(());
        }
    }
}
