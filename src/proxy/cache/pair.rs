use bytes::Bytes;
use prost::Message;

use crate::pb::key_value::Fields;
use crate::pb::mvccpb::KeyValue;
use crate::tree::Keyed;

/// What a pair costs in memory besides its encoding: its entry, the allocation, its part of the nodes.
const OVERHEAD_BYTES: usize = 128;

/// The newest version of a key, as it stands in an answer.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    encoded: Bytes,
    /// Place of the key in it.
    key: (u32, u32),
    modified: i64,
}

impl Pair {
    pub fn new(kv: &KeyValue) -> Self {
        // An allocation of its own: the message it came in is freed.
        let encoded = Bytes::from(kv.encode_to_vec());
        let key = Fields::parse(&encoded).unwrap_or_default().key;
        // gRPC bounds messages to 4 GiB.
        Self { encoded, key: (key.start as u32, key.end as u32), modified: kv.mod_revision }
    }

    pub fn key(&self) -> &[u8] {
        &self.encoded[self.key.0 as usize..self.key.1 as usize]
    }

    /// The encoded `KeyValue`.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    pub fn modified(&self) -> i64 {
        self.modified
    }

    pub fn fields(&self) -> Fields {
        Fields::parse(&self.encoded).unwrap_or_default()
    }

    /// Memory it takes.
    pub fn bytes(&self) -> usize {
        OVERHEAD_BYTES + self.encoded.len()
    }
}

impl Keyed for Pair {
    fn key(&self) -> &[u8] {
        Pair::key(self)
    }

    fn stamp(&self) -> i64 {
        self.modified
    }
}
