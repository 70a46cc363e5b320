//! List and watch as a Kubernetes API server does: a local copy of a prefix that is always some revision's state.
//!
//! Lists in pages at one revision, watches from the next, asks for progress while nothing happens, and lists again when the
//! revision it would go on from is compacted. Writes and compacts beside it, and ends when the copy is what the cluster has.
//!
//! ```sh
//! cargo run --example list_watch -- 127.0.0.1:23791
//! ```

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use etcd_client::{Client, EventType, GetOptions, WatchOptions, WatchStream};

const PREFIX: &str = "/example/registry/pods/";
const OBJECTS: usize = 300;
const PAGE: i64 = 50;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:23791".into());
    let mut client = Client::connect([endpoint], None).await?;
    client.delete(PREFIX, Some(etcd_client::DeleteOptions::new().with_prefix())).await?;
    for number in 0..OBJECTS {
        client.put(format!("{PREFIX}{number:05}"), "Pending", None).await?;
    }

    let mut copy = Copy::list(&mut client).await?;
    ensure!(copy.objects.len() == OBJECTS, "{} objects were listed", copy.objects.len());
    println!("listed {} objects at revision {}", copy.objects.len(), copy.revision);
    let mut changes = copy.watch(&mut client).await?;
    let mut last = 0;
    for number in (0..OBJECTS).step_by(3) {
        let key = format!("{PREFIX}{number:05}");
        let answer = match number % 2 {
            0 => client.put(key, "Running", None).await?.take_header(),
            _ => client.delete(key, None).await?.take_header(),
        };
        last = answer.context("a header")?.revision();
    }
    copy.follow(&mut changes, last).await?;
    println!("followed to revision {}", copy.revision);
    copy.compare(&mut client).await?;

    // Away for a while, in which history is compacted.
    let away = copy.revision;
    drop(changes);
    for number in 0..20 {
        last = client
            .put(format!("{PREFIX}{number:05}"), "Succeeded", None)
            .await?
            .header()
            .context("a header")?
            .revision();
    }
    client.compact(last, None).await?;
    let mut changes = copy.watch(&mut client).await?;
    let canceled = loop {
        let answer = changes.message().await?.context("the watch ended")?;
        if !answer.created() || answer.canceled() {
            break answer;
        }
    };
    ensure!(canceled.canceled() && canceled.compact_revision() >= last, "revision {away} is still there: {canceled:?}");
    println!("revision {} is compacted: listing again", away + 1);
    copy = Copy::list(&mut client).await?;
    let mut changes = copy.watch(&mut client).await?;
    // Something else is written; progress tells how far the copy is, though nothing of it changed.
    let elsewhere = client.put("/example/registry/elsewhere", "", None).await?.header().context("a header")?.revision();
    changes.request_progress().await?;
    copy.follow(&mut changes, elsewhere).await?;
    copy.compare(&mut client).await?;
    println!("the copy of revision {} is what the cluster has: {} objects", copy.revision, copy.objects.len());
    Ok(())
}

/// What the prefix held at a revision: values and the revisions that wrote them.
struct Copy {
    objects: BTreeMap<Vec<u8>, (Vec<u8>, i64)>,
    revision: i64,
}

impl Copy {
    /// All pages at the revision of the first.
    async fn list(client: &mut Client) -> anyhow::Result<Self> {
        let mut copy = Self { objects: BTreeMap::new(), revision: 0 };
        let mut start = PREFIX.as_bytes().to_vec();
        let end = PREFIX.replace("pods/", "pods0").into_bytes();
        loop {
            let page = GetOptions::new().with_range(end.clone()).with_limit(PAGE).with_revision(copy.revision);
            let page = client.get(start, Some(page)).await?;
            if copy.revision == 0 {
                copy.revision = page.header().context("a header")?.revision();
            }
            for kv in page.kvs() {
                copy.objects.insert(kv.key().to_vec(), (kv.value().to_vec(), kv.mod_revision()));
            }
            match page.kvs().last().filter(|_| page.more()) {
                // The key after the last one.
                Some(last) => start = [last.key(), b"\0"].concat(),
                None => return Ok(copy),
            }
        }
    }

    async fn watch(&self, client: &mut Client) -> anyhow::Result<WatchStream> {
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(self.revision + 1)
            .with_progress_notify()
            .with_prev_key();
        Ok(client.watch(PREFIX, Some(options)).await?)
    }

    /// Applies changes until the copy is that of `revision` or of a later one.
    async fn follow(&mut self, changes: &mut WatchStream, revision: i64) -> anyhow::Result<()> {
        while self.revision < revision {
            let answer = changes.message().await?.context("the watch ended")?;
            ensure!(!answer.canceled(), "the watch was canceled: {}", answer.cancel_reason());
            for event in answer.events() {
                let kv = event.kv().context("an event without its key")?;
                ensure!(
                    kv.mod_revision() > self.revision || !self.objects.contains_key(kv.key()),
                    "an event came twice"
                );
                match event.event_type() {
                    EventType::Put => {
                        drop(self.objects.insert(kv.key().to_vec(), (kv.value().to_vec(), kv.mod_revision())))
                    }
                    EventType::Delete => drop(self.objects.remove(kv.key())),
                }
            }
            // The header of an answer with events may name a later revision, events of which are still to come.
            let reached = match answer.events().last().and_then(|event| event.kv()) {
                Some(kv) => kv.mod_revision(),
                None if answer.created() => continue,
                // Progress: there were no events up to this revision.
                None => answer.header().context("a header")?.revision(),
            };
            self.revision = self.revision.max(reached);
        }
        Ok(())
    }

    async fn compare(&self, client: &mut Client) -> anyhow::Result<()> {
        let cluster = Self::list(client).await?;
        ensure!(self.objects == cluster.objects, "the copy of {} differs from {}", self.revision, cluster.revision);
        Ok(())
    }
}
