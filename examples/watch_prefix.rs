//! Lists the keys under a prefix and then follows every change, without a gap between the two.
//!
//! Point it at the proxy: however many of these run, the cluster behind it sees one watch.
//!
//! ```sh
//! cargo run --example watch_prefix -- 127.0.0.1:23791 /config/
//! ```

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use watershed::client::{Client, ClientConfig, Endpoint};
use watershed::pb::etcdserverpb::{RangeRequest, WatchCreateRequest, WatchRequest, watch_request};
use watershed::pb::mvccpb::event::EventType;
use watershed::types::KeyRange;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let endpoint: Endpoint = args.next().as_deref().unwrap_or("127.0.0.1:2379").parse()?;
    let prefix = args.next().unwrap_or_else(|| "/".into());
    let client = Client::connect(ClientConfig::new([endpoint]))?;
    let (key, range_end) = KeyRange::prefix(prefix.into()).to_wire();

    let list = RangeRequest { key: key.clone(), range_end: range_end.clone(), ..Default::default() };
    let list = client.kv().range(list).await?.into_inner();
    for kv in &list.kvs {
        println!("= {} {}", String::from_utf8_lossy(&kv.key), String::from_utf8_lossy(&kv.value));
    }

    // From the revision after the list: what happened meanwhile comes first.
    let start_revision = list.header.unwrap_or_default().revision + 1;
    let create = WatchCreateRequest { key, range_end, start_revision, ..Default::default() };
    let (requests, receiver) = mpsc::channel(1);
    let union = watch_request::RequestUnion::CreateRequest(create);
    requests.send(WatchRequest { request_union: Some(union) }).await?;
    let mut answers = client.watch().watch(ReceiverStream::new(receiver)).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        // History may be compacted under a watch that fell far behind: list again then.
        anyhow::ensure!(!answer.canceled, "the watch ended: {answer:?}");
        for event in answer.events {
            let sign = if event.r#type() == EventType::Put { '+' } else { '-' };
            let kv = event.kv.unwrap_or_default();
            println!("{sign} {} {}", String::from_utf8_lossy(&kv.key), String::from_utf8_lossy(&kv.value));
        }
    }
    Ok(())
}
