use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::eventlog::{EventKind, LogBatch, LogEvent};
use crate::pb::mvccpb::{Event, KeyValue, event::EventType};
use crate::proxy::namespace::Namespace;
use crate::types::{Key, Revision};

/// An upstream answer's events as the clients of a namespace see them, one batch for each revision.
pub(super) fn batches(namespace: &Namespace, events: Vec<Event>) -> Vec<Arc<LogBatch>> {
    let mut batches = Vec::new();
    let mut open: Option<(Revision, Vec<LogEvent>)> = None;
    for event in events {
        let Some((revision, event)) = inside(namespace, event) else { continue };
        match &mut open {
            Some((same, events)) if *same == revision => events.push(event),
            _ => {
                if let Some((revision, events)) = open.replace((revision, vec![event])) {
                    batches.push(Arc::new(LogBatch::new(revision, events)));
                }
            }
        }
    }
    if let Some((revision, events)) = open {
        batches.push(Arc::new(LogBatch::new(revision, events)));
    }
    batches
}

fn inside(namespace: &Namespace, event: Event) -> Option<(Revision, LogEvent)> {
    let kind = if event.r#type == EventType::Delete as i32 { EventKind::Delete } else { EventKind::Put };
    let kv = event.kv?;
    let revision = Revision(kv.mod_revision);
    let (key, kv) = strip(namespace, kv)?;
    let prev_kv = event.prev_kv.and_then(|prev| strip(namespace, prev)).map(|(_, prev)| prev);
    Some((revision, LogEvent::new(kind, key, kv, prev_kv)))
}

fn strip(namespace: &Namespace, mut kv: KeyValue) -> Option<(Key, Bytes)> {
    kv.key = namespace.strip_prefix(&kv.key)?;
    let encoded = kv.encode_to_vec().into();
    Some((kv.key, encoded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_stay_whole_and_foreign_keys_stay_out() {
        let event = |key: &'static str, mod_revision| Event {
            kv: Some(KeyValue { key: key.into(), mod_revision, ..Default::default() }),
            ..Default::default()
        };
        let events = vec![event("n/a", 5), event("x", 5), event("n/b", 5), event("n/a", 7)];
        let found: Vec<(i64, Vec<Key>)> = batches(&Namespace::new("n/"), events)
            .iter()
            .map(|batch| (batch.revision().0, batch.events().iter().map(|event| event.key().clone()).collect()))
            .collect();
        assert_eq!(found, vec![(5, vec!["a".into(), "b".into()]), (7, vec!["a".into()])]);
    }
}
