//! What the API answers, in the words of a history.

use watershed::pb::etcdserverpb::{DeleteRangeResponse, PutResponse, RangeResponse, WatchResponse};
use watershed::pb::mvccpb::{self, KeyValue};

use super::history::{Body, Event, Kv, WatchMessage};

/// A key or a value.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("keys and values of these tests are text")
}

impl From<&KeyValue> for Kv {
    fn from(kv: &KeyValue) -> Self {
        Self {
            key: text(&kv.key),
            value: text(&kv.value),
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: kv.lease,
        }
    }
}

impl From<&mvccpb::Event> for Event {
    fn from(event: &mvccpb::Event) -> Self {
        Self {
            deleted: event.r#type() == mvccpb::event::EventType::Delete,
            kv: event.kv.as_ref().map(Kv::from).expect("an event has a key"),
            previous: event.prev_kv.as_ref().map(Kv::from),
        }
    }
}

impl From<&PutResponse> for Body {
    fn from(answer: &PutResponse) -> Self {
        Self::Put { previous: answer.prev_kv.as_ref().map(Kv::from) }
    }
}

impl From<&DeleteRangeResponse> for Body {
    fn from(answer: &DeleteRangeResponse) -> Self {
        Self::Delete { deleted: answer.deleted, previous: answer.prev_kvs.iter().map(Kv::from).collect() }
    }
}

impl From<&RangeResponse> for Body {
    fn from(answer: &RangeResponse) -> Self {
        Self::Range { kvs: answer.kvs.iter().map(Kv::from).collect(), count: answer.count, more: answer.more }
    }
}

impl From<&WatchResponse> for WatchMessage {
    fn from(answer: &WatchResponse) -> Self {
        if answer.canceled {
            let reason = answer.cancel_reason.clone();
            return Self::Cancelled { compact_revision: answer.compact_revision, reason };
        }
        if answer.created {
            return Self::Created;
        }
        if answer.events.is_empty() {
            return Self::Progress;
        }
        Self::Events { events: answer.events.iter().map(Event::from).collect(), fragment: answer.fragment }
    }
}
