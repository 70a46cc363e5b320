use std::sync::OnceLock;

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};

use crate::types::{Key, Revision};

/// Field 11 of `WatchResponse`, length-delimited.
const EVENTS_TAG: u8 = 0x5a;
/// Field 1 of `Event`, varint.
const TYPE_TAG: u8 = 0x08;
/// Field 2 of `Event`, length-delimited.
const KV_TAG: u8 = 0x12;
/// Field 3 of `Event`, length-delimited.
const PREV_KV_TAG: u8 = 0x1a;
/// What an event costs in memory next to its bytes; counted into the bound of the log.
const EVENT_OVERHEAD_BYTES: usize = 256;

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The key was written.
    Put,
    /// The key was deleted.
    Delete,
}

/// One change of one key, with its pair in encoded form.
#[derive(Debug)]
pub struct LogEvent {
    kind: EventKind,
    key: Key,
    kv: Bytes,
    prev_kv: Option<Bytes>,
    plain: OnceLock<Bytes>,
    with_prev: OnceLock<Bytes>,
}

impl LogEvent {
    /// `kv` and `prev_kv` are encoded `mvccpb.KeyValue`s; a put that created its key has no `prev_kv`.
    pub fn new(kind: EventKind, key: Key, kv: Bytes, prev_kv: Option<Bytes>) -> Self {
        Self { kind, key, kv, prev_kv, plain: OnceLock::new(), with_prev: OnceLock::new() }
    }

    /// The key that changed.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// What happened.
    pub fn kind(&self) -> EventKind {
        self.kind
    }

    /// The event as it stands in a `WatchResponse`: tag, length, message. Encoded at most once per variant, however
    /// many watchers and groups see it.
    pub fn frame(&self, prev_kv: bool) -> &Bytes {
        match &self.prev_kv {
            Some(prev) if prev_kv => self.with_prev.get_or_init(|| encode_frame(self.kind, &self.kv, Some(prev))),
            _ => self.plain.get_or_init(|| encode_frame(self.kind, &self.kv, None)),
        }
    }

    /// Bytes of the pairs.
    fn pair_bytes(&self) -> usize {
        self.kv.len() + self.prev_kv.as_ref().map_or(0, Bytes::len)
    }

    fn cost(&self) -> usize {
        // Twice: the pair itself and the frame that repeats it.
        EVENT_OVERHEAD_BYTES + self.key.len() + 2 * self.pair_bytes()
    }
}

fn encode_frame(kind: EventKind, kv: &Bytes, prev_kv: Option<&Bytes>) -> Bytes {
    let type_len = match kind {
        EventKind::Put => 0, // the default is not written
        EventKind::Delete => 2,
    };
    let part = |bytes: &Bytes| 1 + encoded_len_varint(bytes.len() as u64) + bytes.len();
    let len = type_len + part(kv) + prev_kv.map_or(0, part);
    let mut out = BytesMut::with_capacity(1 + encoded_len_varint(len as u64) + len);
    out.put_u8(EVENTS_TAG);
    encode_varint(len as u64, &mut out);
    if kind == EventKind::Delete {
        out.put_slice(&[TYPE_TAG, 1]);
    }
    out.put_u8(KV_TAG);
    encode_varint(kv.len() as u64, &mut out);
    out.put_slice(kv);
    if let Some(prev) = prev_kv {
        out.put_u8(PREV_KV_TAG);
        encode_varint(prev.len() as u64, &mut out);
        out.put_slice(prev);
    }
    out.freeze()
}

/// All events of one revision, in the order of the transaction that made them.
#[derive(Debug)]
pub struct LogBatch {
    revision: Revision,
    events: Vec<LogEvent>,
    cost: usize,
}

impl LogBatch {
    /// The events of `revision`.
    pub fn new(revision: Revision, events: Vec<LogEvent>) -> Self {
        let cost = EVENT_OVERHEAD_BYTES + events.iter().map(LogEvent::cost).sum::<usize>();
        Self { revision, events, cost }
    }

    /// The revision that made the events.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether a store that is compacted at a revision can tell what was there before the events: it reads that at the revision
    /// before theirs, when it sends them. What a watch gets must not depend on whether the events come from a log or a store.
    pub(super) fn knows_before(&self, compacted: Revision) -> bool {
        self.revision > compacted
    }

    /// The events.
    pub fn events(&self) -> &[LogEvent] {
        &self.events
    }

    /// Bytes of the pairs in the events.
    pub fn pair_bytes(&self) -> usize {
        self.events.iter().map(LogEvent::pair_bytes).sum()
    }

    /// Memory held, in bytes, encoded frames included.
    pub fn cost(&self) -> usize {
        self.cost
    }
}

/// Framed events put one behind the other; a single frame is shared, not copied.
#[derive(Debug, Default)]
pub(super) struct Block {
    first: Option<Bytes>,
    rest: BytesMut,
    pub events: u32,
}

impl Block {
    pub fn push(&mut self, frame: &Bytes) {
        self.events += 1;
        match self.first.take() {
            None if self.rest.is_empty() => self.first = Some(frame.clone()),
            None => self.rest.extend_from_slice(frame),
            Some(first) => {
                self.rest.extend_from_slice(&first);
                self.rest.extend_from_slice(frame);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.first.as_ref().map_or(self.rest.len(), Bytes::len)
    }

    pub fn finish(self) -> (Bytes, u32) {
        (self.first.unwrap_or_else(|| self.rest.freeze()), self.events)
    }
}

/// Cuts framed events into pieces shorter than `bytes_max`, at least one event in each.
pub(super) fn cut_frames(block: &Bytes, bytes_max: usize) -> Vec<(Bytes, u32)> {
    let mut pieces = Vec::new();
    let (mut from, mut at, mut events) = (0, 0, 0);
    while at < block.len() {
        let len = frame_len(&block[at..]);
        if events > 0 && at + len - from >= bytes_max {
            pieces.push((block.slice(from..at), events));
            (from, events) = (at, 0);
        }
        at += len;
        events += 1;
    }
    pieces.push((block.slice(from..), events));
    pieces
}

/// Length of the first frame of a block that was put together here.
fn frame_len(block: &[u8]) -> usize {
    let mut rest = &block[1..];
    let before = rest.len();
    match prost::encoding::decode_varint(&mut rest) {
        Ok(len) => (1 + before - rest.len() + len as usize).min(block.len()),
        Err(_) => block.len(), // cannot be: blocks hold whole frames
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::pb::{etcdserverpb, mvccpb};

    fn kv(key: &'static str, value: &'static str, revision: i64) -> mvccpb::KeyValue {
        mvccpb::KeyValue { key: key.into(), value: value.into(), mod_revision: revision, ..Default::default() }
    }

    #[test]
    fn frames_read_back_as_events_of_a_watch_response() {
        let (new, old) = (kv("k", "new", 7), kv("k", "old", 5));
        let put =
            LogEvent::new(EventKind::Put, "k".into(), new.encode_to_vec().into(), Some(old.encode_to_vec().into()));
        let gone = kv("d", "", 7);
        let delete = LogEvent::new(EventKind::Delete, "d".into(), gone.encode_to_vec().into(), None);
        let mut block = Block::default();
        block.push(put.frame(true));
        block.push(delete.frame(true));
        block.push(put.frame(false));
        let (bytes, events) = block.finish();
        assert_eq!(events, 3);
        let read = etcdserverpb::WatchResponse::decode(bytes.clone()).expect("decodes");
        let event = |r#type, kv: &mvccpb::KeyValue, prev: Option<&mvccpb::KeyValue>| mvccpb::Event {
            r#type,
            kv: Some(kv.clone()),
            prev_kv: prev.cloned(),
        };
        assert_eq!(read.events, vec![event(0, &new, Some(&old)), event(1, &gone, None), event(0, &new, None)]);

        let pieces = cut_frames(&bytes, put.frame(true).len() + 1);
        assert_eq!(pieces.iter().map(|(_, events)| *events).sum::<u32>(), 3);
        assert!(pieces.len() >= 2, "{} pieces", pieces.len());
        let joined: Vec<u8> = pieces.iter().flat_map(|(piece, _)| piece.to_vec()).collect();
        assert_eq!(joined, bytes);
        assert_eq!(cut_frames(&bytes, 1).len(), 3, "an event is never cut");
    }
}
