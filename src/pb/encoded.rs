//! Answers over already encoded parts.
//!
//! On the wire an embedded message and a byte string look the same, so a key-value that is stored in its encoded
//! form can be sent without decoding and encoding it again. Field numbers are those of the messages of the same
//! name in [`etcdserverpb`](super::etcdserverpb).
#![allow(missing_docs, reason = "fields have the names and meanings of etcd's API")]

use bytes::{BufMut, Bytes};
use prost::Message;

pub use super::etcdserverpb::ResponseHeader;
pub use generated::{kv_server, watch_server};

#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/encoded/etcdserverpb.rs"));
}

/// Something that can be written as one gRPC message.
pub trait WireEncode {
    /// Bytes that [`write`](Self::write) appends.
    fn wire_len(&self) -> usize;
    /// Appends the protobuf encoding.
    fn write(&self, out: &mut impl BufMut);
}

impl<T: Message> WireEncode for T {
    fn wire_len(&self) -> usize {
        self.encoded_len()
    }

    fn write(&self, out: &mut impl BufMut) {
        self.encode_raw(out);
    }
}

/// Answer to a range; `kvs` are encoded `mvccpb.KeyValue`s.
#[derive(Clone, PartialEq, Message)]
pub struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// Encoded key-values in answer order.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub kvs: Vec<Bytes>,
    /// Whether `limit` cut something off.
    #[prost(bool, tag = "3")]
    pub more: bool,
    /// Keys in the range, whatever the limit.
    #[prost(int64, tag = "4")]
    pub count: i64,
}

/// One chunk of a range stream.
#[derive(Clone, PartialEq, Message)]
pub struct RangeStreamResponse {
    #[prost(message, optional, tag = "1")]
    pub range_response: Option<RangeResponse>,
}

/// Answer to a put; `prev_kv` is an encoded `mvccpb.KeyValue`.
#[derive(Clone, PartialEq, Message)]
pub struct PutResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// The pair before the write.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub prev_kv: Option<Bytes>,
}

/// Answer to a delete; `prev_kvs` are encoded `mvccpb.KeyValue`s.
#[derive(Clone, PartialEq, Message)]
pub struct DeleteRangeResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    #[prost(int64, tag = "2")]
    pub deleted: i64,
    /// The pairs before the delete, in key order.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub prev_kvs: Vec<Bytes>,
}

/// Answer to one operation of a transaction.
#[derive(Clone, PartialEq, Message)]
pub struct ResponseOp {
    #[prost(oneof = "response_op::Response", tags = "1, 2, 3, 4")]
    pub response: Option<response_op::Response>,
}

/// Arms of [`ResponseOp`].
pub mod response_op {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Response {
        #[prost(message, tag = "1")]
        ResponseRange(super::RangeResponse),
        #[prost(message, tag = "2")]
        ResponsePut(super::PutResponse),
        #[prost(message, tag = "3")]
        ResponseDeleteRange(super::DeleteRangeResponse),
        #[prost(message, tag = "4")]
        ResponseTxn(super::TxnResponse),
    }
}

/// Answer to a transaction.
#[derive(Clone, PartialEq, Message)]
pub struct TxnResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    /// Whether the compares held.
    #[prost(bool, tag = "2")]
    pub succeeded: bool,
    /// Answers in the order of the branch taken.
    #[prost(message, repeated, tag = "3")]
    pub responses: Vec<ResponseOp>,
}

/// A watch answer whose events are one shared, already framed block.
///
/// `events` is the concatenation of `tag 11, length, mvccpb.Event` for each event, built once for all watchers
/// that see the same events; only the fields before it differ from watcher to watcher.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WatchResponse {
    pub header: Option<ResponseHeader>,
    /// The watch on its stream.
    pub watch_id: i64,
    /// First answer to a create request.
    pub created: bool,
    /// Last answer of the watch.
    pub canceled: bool,
    /// Set when compaction ended the watch.
    pub compact_revision: i64,
    /// Why the watch was refused or ended.
    pub cancel_reason: String,
    /// More pieces of the same revision follow.
    pub fragment: bool,
    /// Framed events, see above.
    pub events: Bytes,
}

impl WatchResponse {
    fn head(&self) -> super::etcdserverpb::WatchResponse {
        super::etcdserverpb::WatchResponse {
            header: self.header,
            watch_id: self.watch_id,
            created: self.created,
            canceled: self.canceled,
            compact_revision: self.compact_revision,
            cancel_reason: self.cancel_reason.clone(),
            fragment: self.fragment,
            events: Vec::new(),
        }
    }
}

impl WireEncode for WatchResponse {
    fn wire_len(&self) -> usize {
        self.head().encoded_len() + self.events.len()
    }

    fn write(&self, out: &mut impl BufMut) {
        self.head().encode_raw(out);
        out.put_slice(&self.events);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::{etcdserverpb, mvccpb};

    #[test]
    fn encoded_parts_read_back_as_the_plain_message() {
        let kv = mvccpb::KeyValue { key: "k".into(), value: "v".into(), mod_revision: 7, ..Default::default() };
        let answer = RangeResponse {
            header: Some(ResponseHeader { revision: 9, ..Default::default() }),
            kvs: vec![kv.encode_to_vec().into()],
            more: true,
            count: 3,
        };
        let plain = etcdserverpb::RangeResponse::decode(answer.encode_to_vec().as_slice()).expect("decodes");
        assert_eq!(plain.kvs, vec![kv]);
        assert_eq!((plain.more, plain.count), (true, 3));
    }

    #[test]
    fn a_shared_event_block_reads_back_as_events() {
        let event = mvccpb::Event {
            kv: Some(mvccpb::KeyValue { key: "k".into(), ..Default::default() }),
            ..Default::default()
        };
        let block = etcdserverpb::WatchResponse { events: vec![event.clone(), event.clone()], ..Default::default() };
        let answer = WatchResponse { watch_id: 5, events: block.encode_to_vec().into(), ..Default::default() };
        let mut wire = Vec::new();
        answer.write(&mut wire);
        assert_eq!(wire.len(), answer.wire_len());
        let plain = etcdserverpb::WatchResponse::decode(wire.as_slice()).expect("decodes");
        assert_eq!((plain.watch_id, plain.events.len()), (5, 2));
        assert_eq!(plain.events[1], event);
    }
}
