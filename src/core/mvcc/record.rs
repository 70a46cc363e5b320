//! One version of a key, kept as its encoded `mvccpb.KeyValue`.
//!
//! ```text
//! | sub, 4 bytes little endian | key 0a | create 10 | mod 18 | version 20 | value 2a | lease 30 |
//! ```
//! Field order and the leaving out of zeros are those of Go's encoder: the same bytes are stored, hashed and sent.
//! Because the value comes after the revisions and before the lease, an answer without value and lease is a prefix.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

pub(super) use crate::pb::key_value::Fields;
use crate::pb::key_value::{KEY_TAG, LEASE_TAG, VALUE_TAG, number, put_bytes, put_number};
use crate::pb::mvccpb::KeyValue;
use crate::types::{LeaseId, RecordId, Revision};

const SUB_BYTES: usize = 4;

/// A version of a key in one allocation; cheap to clone.
///
/// Always holds a canonical encoding: the constructors see to it, so the readers below cannot fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record(Arc<[u8]>);

impl AsRef<[u8]> for Record {
    fn as_ref(&self) -> &[u8] {
        &self.0[SUB_BYTES..]
    }
}

/// A version about to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draft<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub create: Revision,
    pub version: i64,
    pub lease: LeaseId,
}

impl Record {
    /// Encodes a version; `scratch` is working space that the caller keeps between calls.
    pub(super) fn new(draft: Draft<'_>, id: RecordId, scratch: &mut Vec<u8>) -> Self {
        scratch.clear();
        scratch.extend_from_slice(&sub_field(id.sub));
        put_bytes(scratch, KEY_TAG, draft.key);
        put_number(scratch, 0x10, draft.create.0);
        put_number(scratch, 0x18, id.main.0);
        put_number(scratch, 0x20, draft.version);
        put_bytes(scratch, VALUE_TAG, draft.value);
        put_number(scratch, LEASE_TAG, draft.lease.0);
        Self(Arc::from(scratch.as_slice()))
    }

    /// Takes a stored row; none if it is no `KeyValue`.
    pub(super) fn from_row(row: &[u8], id: RecordId, scratch: &mut Vec<u8>) -> Option<Self> {
        scratch.clear();
        scratch.extend_from_slice(&sub_field(id.sub));
        if Fields::parse(row).is_some() {
            scratch.extend_from_slice(row);
        } else {
            // A legal encoding, only not in Go's order.
            KeyValue::decode(row).ok()?.encode(scratch).ok()?;
            Fields::parse(&scratch[SUB_BYTES..])?;
        }
        Some(Self(Arc::from(scratch.as_slice())))
    }

    pub(super) fn key(&self) -> &[u8] {
        let bytes = self.as_ref();
        if bytes.first() != Some(&KEY_TAG) {
            return &[];
        }
        let mut at = 1;
        let len = number(bytes, &mut at).unwrap_or(0) as usize;
        bytes.get(at..at.saturating_add(len)).unwrap_or(&[])
    }

    pub(super) fn fields(&self) -> Fields {
        Fields::parse(self.as_ref()).unwrap_or_default()
    }

    pub(super) fn value(&self) -> &[u8] {
        &self.as_ref()[self.fields().value]
    }

    pub(super) fn modified(&self) -> Revision {
        Revision(self.fields().modified)
    }

    pub(super) fn id(&self) -> RecordId {
        let sub = <[u8; SUB_BYTES]>::try_from(&self.0[..SUB_BYTES]).map(u32::from_le_bytes).unwrap_or(0);
        RecordId::new(self.modified(), i64::from(sub))
    }

    /// The encoded form; keeps the record alive instead of copying it.
    pub(super) fn bytes(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }
}

/// A transaction is bounded by the size of a log entry and by the number of keys, both far below 2^32.
fn sub_field(sub: i64) -> [u8; SUB_BYTES] {
    u32::try_from(sub).unwrap_or(u32::MAX).to_le_bytes()
}

/// The `KeyValue` of a DELETE event: key and revision, nothing else.
pub(super) fn deletion(key: &[u8], at: Revision) -> Bytes {
    let mut out = Vec::with_capacity(key.len() + 16);
    put_bytes(&mut out, KEY_TAG, key);
    put_number(&mut out, 0x18, at.0);
    out.into()
}

/// The stored row of a deletion: the key alone.
pub(super) fn tombstone(key: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(key.len() + 6);
    put_bytes(&mut out, KEY_TAG, key);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::key_value::without_value;

    fn record(kv: &KeyValue, sub: i64) -> Record {
        let draft = Draft {
            key: &kv.key,
            value: &kv.value,
            create: Revision(kv.create_revision),
            version: kv.version,
            lease: LeaseId(kv.lease),
        };
        Record::new(draft, RecordId::new(Revision(kv.mod_revision), sub), &mut Vec::new())
    }

    #[test]
    fn encoding_is_that_of_protobuf() {
        let long = vec![7u8; 300];
        for (key, value, lease) in [("k", &b"v"[..], 0), ("key", b"", -1), ("key", &long, i64::MIN), ("key", &long, 5)]
        {
            let kv = KeyValue {
                key: key.into(),
                create_revision: 130,
                mod_revision: i64::MAX,
                version: 1,
                value: Bytes::copy_from_slice(value),
                lease,
            };
            let record = record(&kv, 70_000);
            assert_eq!(record.bytes(), kv.encode_to_vec());
            assert_eq!(record.key(), key.as_bytes());
            assert_eq!(record.value(), value);
            assert_eq!(record.id(), RecordId::new(Revision(i64::MAX), 70_000));
            assert_eq!(record.fields().lease, lease);
            let bare = |lease| KeyValue { value: Bytes::new(), lease, ..kv.clone() }.encode_to_vec();
            assert_eq!(without_value(&record.bytes(), &record.fields(), false), bare(0));
            assert_eq!(without_value(&record.bytes(), &record.fields(), true), bare(lease));
        }
    }

    #[test]
    fn a_row_in_another_field_order_is_put_right() {
        let row = [0x18, 9, 0x0a, 1, b'k'];
        let record = Record::from_row(&row, RecordId::new(Revision(9), 2), &mut Vec::new()).expect("legal protobuf");
        assert_eq!((record.key(), record.modified()), (&b"k"[..], Revision(9)));
    }

    #[test]
    fn broken_rows_are_refused() {
        let good =
            record(&KeyValue { key: "key".into(), value: "value".into(), mod_revision: 300, ..Default::default() }, 0);
        let bytes = good.bytes();
        for cut in 0..bytes.len() {
            // Cut between fields the rest is still legal; it must then read back as a prefix of the fields.
            if let Some(fields) = Fields::parse(&bytes[..cut]) {
                assert!(fields.value.is_empty());
            }
        }
        assert_eq!(Fields::parse(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(Fields::parse(&[0x0a, 0x05, b'k']), None);
    }
}
