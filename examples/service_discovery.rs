//! Service discovery with leases: each instance of a service keeps a key alive, and a client follows who is there.
//!
//! Starts three instances, lets one stop renewing its lease as if its host had died, and ends when the client has seen it
//! go. However many clients follow, the cluster behind a proxy sees one watch.
//!
//! ```sh
//! cargo run --example service_discovery -- 127.0.0.1:23791
//! ```

#![allow(clippy::disallowed_methods, reason = "the rule is for the program's own tasks")]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use etcd_client::{Client, EventType, GetOptions, PutOptions, WatchOptions};
use tokio::task::JoinHandle;

const PREFIX: &str = "/example/services/web/";
/// Seconds until the key of an instance that died is deleted.
const TTL: i64 = 2;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:23791".into());
    let client = Client::connect([endpoint], None).await?;

    let mut instances = Vec::new();
    for number in 1..=3 {
        instances.push(register(client.clone(), &format!("web-{number}"), &format!("10.0.0.{number}:80")).await?);
    }
    let mut known = Instances::follow(client.clone()).await?;
    known.until(3).await?;
    println!("web-2 dies");
    instances.remove(1).abort();
    known.until(2).await?;
    ensure!(!known.addresses.contains_key("web-2"), "another instance went: {:?}", known.addresses);
    println!("left: {:?}", known.addresses);
    Ok(())
}

/// Announces an instance; it is known for as long as the task runs.
async fn register(mut client: Client, name: &str, address: &str) -> anyhow::Result<JoinHandle<()>> {
    let lease = client.lease_grant(TTL, None).await?.id();
    client.put(format!("{PREFIX}{name}"), address, Some(PutOptions::new().with_lease(lease))).await?;
    let (mut keeper, mut answers) = client.lease_keep_alive(lease).await?;
    Ok(tokio::spawn(async move {
        // A real instance registers anew when this ends.
        while keeper.keep_alive().await.is_ok()
            && matches!(answers.message().await, Ok(Some(answer)) if answer.ttl() > 0)
        {
            tokio::time::sleep(Duration::from_secs(TTL as u64) / 3).await;
        }
    }))
}

/// The instances that are there, as a client knows them.
struct Instances {
    addresses: BTreeMap<String, String>,
    changes: etcd_client::WatchStream,
}

impl Instances {
    /// Lists, then watches from the revision after the list: nothing is missed in between.
    async fn follow(mut client: Client) -> anyhow::Result<Self> {
        let listed = client.get(PREFIX, Some(GetOptions::new().with_prefix())).await?;
        let mut addresses = BTreeMap::new();
        for kv in listed.kvs() {
            addresses.insert(name_of(kv.key_str()?), kv.value_str()?.to_owned());
        }
        let next = listed.header().context("a header")?.revision() + 1;
        let options = WatchOptions::new().with_prefix().with_start_revision(next);
        let changes = client.watch(PREFIX, Some(options)).await?;
        Ok(Self { addresses, changes })
    }

    /// Waits until so many are there.
    async fn until(&mut self, count: usize) -> anyhow::Result<()> {
        while self.addresses.len() != count {
            let answer = self.changes.message().await?.context("the watch ended")?;
            ensure!(!answer.canceled(), "the watch was canceled: {}", answer.cancel_reason());
            for event in answer.events() {
                let kv = event.kv().context("an event without its key")?;
                let name = name_of(kv.key_str()?);
                match event.event_type() {
                    EventType::Put => drop(self.addresses.insert(name, kv.value_str()?.to_owned())),
                    EventType::Delete => drop(self.addresses.remove(&name)),
                }
            }
            println!("{:?}", self.addresses);
        }
        Ok(())
    }
}

fn name_of(key: &str) -> String {
    key.trim_start_matches(PREFIX).to_owned()
}
