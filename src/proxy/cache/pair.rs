use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use prost::Message;

use crate::pb::key_value::Fields;
use crate::pb::mvccpb::KeyValue;
use crate::tree::Keyed;

/// What a pair costs in memory besides its encoding: its entry, the allocation, its part of the nodes.
const OVERHEAD_BYTES: usize = 128;

/// The memory of pairs, for as long as anybody holds them: a replica, or an answer that its client has not taken.
#[derive(Debug, Default)]
pub(super) struct PairMemory {
    bytes: AtomicUsize,
    /// What the budget counts for the replicas that have such pairs.
    counted: AtomicUsize,
}

impl PairMemory {
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn counted(&self) -> usize {
        self.counted.load(Ordering::Relaxed)
    }

    /// The budget counts so many bytes for a replica, in place of those before.
    pub fn count(&self, before: usize, bytes: usize) {
        self.counted.fetch_add(bytes, Ordering::Relaxed);
        self.counted.fetch_sub(before, Ordering::Relaxed);
    }
}

/// An encoded pair that is counted until its last holder drops it.
struct CountedPair {
    encoded: Box<[u8]>,
    memory: Arc<PairMemory>,
}

impl AsRef<[u8]> for CountedPair {
    fn as_ref(&self) -> &[u8] {
        &self.encoded
    }
}

impl Drop for CountedPair {
    fn drop(&mut self) {
        self.memory.bytes.fetch_sub(OVERHEAD_BYTES + self.encoded.len(), Ordering::Relaxed);
    }
}

/// The newest version of a key, as it stands in an answer.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    encoded: Bytes,
    /// Place of the key in it.
    key: (u32, u32),
    modified: i64,
}

impl Pair {
    /// One that is not kept.
    pub fn new(kv: &KeyValue) -> Self {
        Self::of_encoded(kv.encode_to_vec().into(), kv)
    }

    /// One that counts for as long as anybody holds it.
    pub fn counted(kv: &KeyValue, memory: &Arc<PairMemory>) -> Self {
        // An allocation of its own: the message it came in is freed.
        let encoded = kv.encode_to_vec().into_boxed_slice();
        memory.bytes.fetch_add(OVERHEAD_BYTES + encoded.len(), Ordering::Relaxed);
        Self::of_encoded(Bytes::from_owner(CountedPair { encoded, memory: memory.clone() }), kv)
    }

    fn of_encoded(encoded: Bytes, kv: &KeyValue) -> Self {
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
