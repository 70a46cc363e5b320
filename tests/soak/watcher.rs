use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use watershed::client::Client;
use watershed::pb::etcdserverpb::{RangeResponse, WatchCreateRequest, WatchRequest, watch_request};
use watershed::pb::mvccpb::Event;
use watershed::pb::mvccpb::event::EventType;

use super::load::everything;
use super::record::Record;
use crate::harness::Answers;

/// What a key was at its last event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    created: i64,
    modified: i64,
    version: i64,
}

/// A watch over everything from the first revision on, taken up again wherever it ended. It holds what the store
/// holds; a missed, repeated or swapped event breaks the chain of the versions of a key.
pub struct Watcher {
    name: String,
    client: Client,
    record: Arc<Record>,
    keys: Mutex<BTreeMap<Vec<u8>, Seen>>,
    /// Of the last event.
    revision: AtomicI64,
}

impl Watcher {
    pub fn new(name: String, client: Client, record: &Arc<Record>) -> Arc<Self> {
        let record = record.clone();
        Arc::new(Self { name, client, record, keys: Mutex::default(), revision: AtomicI64::new(0) })
    }

    /// Watches until it is dropped.
    pub async fn run(self: Arc<Self>) {
        loop {
            self.one_stream().await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn one_stream(&self) {
        let (requests, receiver) = mpsc::channel(4);
        let (key, range_end) = everything();
        let start_revision = self.revision.load(Ordering::Relaxed) + 1;
        let create = WatchCreateRequest { key, range_end, start_revision, prev_kv: true, ..Default::default() };
        let union = Some(watch_request::RequestUnion::CreateRequest(create));
        requests.send(WatchRequest { request_union: union }).await.expect("room");
        let mut watch = self.client.watch();
        let mut answers = Answers::new(async move { watch.watch(ReceiverStream::new(receiver)).await });
        self.record.streams.fetch_add(1, Ordering::Relaxed);
        while let Ok(Some(answer)) = answers.message().await {
            if answer.canceled {
                let again = self.client.logs_in_after(&answer.cancel_reason);
                self.record.must(again, || format!("watch {} canceled: {answer:?}", self.name));
                return;
            }
            for event in &answer.events {
                self.take(event);
            }
        }
    }

    fn take(&self, event: &Event) {
        let Some(kv) = &event.kv else { return self.record.must(false, || "an event without a key".into()) };
        let last = self.revision.fetch_max(kv.mod_revision, Ordering::Relaxed);
        let mut keys = self.keys.lock();
        let before = keys.get(kv.key.as_ref() as &[u8]).copied();
        let now = Seen { created: kv.create_revision, modified: kv.mod_revision, version: kv.version };
        // The chain of versions does not show a put that is missing right before a deletion; the previous pair does.
        let previous = event.prev_kv.as_ref().map(|kv| kv.mod_revision);
        let is_next = previous.is_none() || previous == before.map(|seen| seen.modified);
        let follows = match (event.r#type(), before) {
            (EventType::Delete, before) => before.is_some(),
            (EventType::Put, None) => now.version == 1 && now.created == now.modified,
            (EventType::Put, Some(before)) => now.version == before.version + 1 && now.created == before.created,
        };
        self.record.must(follows && is_next && kv.mod_revision >= last, || {
            format!("watch {} has a gap: {:?} after {before:?}, at {last}: {event:?}", self.name, now)
        });
        match event.r#type() {
            EventType::Delete => keys.remove(kv.key.as_ref() as &[u8]),
            EventType::Put => keys.insert(kv.key.to_vec(), now),
        };
        self.record.events.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether it holds what the store holds.
    pub fn holds(&self, state: &RangeResponse) -> bool {
        let stored = state.kvs.iter().map(|kv| {
            let seen = Seen { created: kv.create_revision, modified: kv.mod_revision, version: kv.version };
            (kv.key.to_vec(), seen)
        });
        *self.keys.lock() == stored.collect::<BTreeMap<Vec<u8>, Seen>>()
    }
}

#[tokio::test]
async fn a_missing_event_is_found() {
    use watershed::client::ClientConfig;
    use watershed::pb::mvccpb::KeyValue;
    let event = |kind: EventType, create_revision, mod_revision, version| Event {
        r#type: kind as i32,
        kv: Some(KeyValue { key: "k".into(), create_revision, mod_revision, version, ..Default::default() }),
        prev_kv: None,
    };
    let all = [
        event(EventType::Put, 2, 2, 1),
        event(EventType::Put, 2, 3, 2),
        Event {
            prev_kv: Some(KeyValue {
                key: "k".into(),
                create_revision: 2,
                mod_revision: 3,
                version: 2,
                ..Default::default()
            }),
            ..event(EventType::Delete, 0, 4, 0)
        },
        event(EventType::Put, 5, 5, 1),
        event(EventType::Put, 5, 6, 2),
    ];
    let violations = |missing: Option<usize>| {
        let record = Arc::new(Record::default());
        let watcher = Watcher::new("w".into(), Client::connect(ClientConfig::default()).expect("a client"), &record);
        let seen = all.iter().enumerate().filter(|(at, _)| Some(*at) != missing);
        seen.for_each(|(_, event)| watcher.take(event));
        record.violations()
    };
    assert_eq!(violations(None), 0);
    for missing in 0..all.len() - 1 {
        assert!(violations(Some(missing)) > 0, "without event {missing}");
    }
}
