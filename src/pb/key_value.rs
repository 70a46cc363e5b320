//! An encoded `mvccpb.KeyValue`, read without decoding it.
//!
//! Field order and the leaving out of zeros are those of Go's encoder: the same bytes are stored, hashed and sent.
//! Because the value comes after the revisions and before the lease, an answer without value and lease is a prefix.

use std::ops::Range;

use bytes::Bytes;

/// Tag of the key.
pub const KEY_TAG: u8 = 0x0a;
/// Tag of the value.
pub const VALUE_TAG: u8 = 0x2a;
/// Tag of the lease.
pub const LEASE_TAG: u8 = 0x30;

/// The number fields, and the places of key and value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// Revision that created the key.
    pub create: i64,
    /// Revision that wrote it last.
    pub modified: i64,
    /// Writes since it was created.
    pub version: i64,
    /// Lease attached, 0 for none.
    pub lease: i64,
    /// Place of the key bytes.
    pub key: Range<usize>,
    /// Place of the value bytes; empty when there is none.
    pub value: Range<usize>,
    /// Length of everything before the value field.
    pub head: usize,
}

impl Fields {
    /// Reads an encoded `KeyValue`; none unless it is in canonical order.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Self::default();
        let mut at = 0;
        if bytes.first() == Some(&KEY_TAG) {
            at = 1;
            fields.key = span(bytes, &mut at)?;
        }
        for (tag, slot) in [(0x10, &mut fields.create), (0x18, &mut fields.modified), (0x20, &mut fields.version)] {
            if bytes.get(at) == Some(&tag) {
                at += 1;
                *slot = number(bytes, &mut at)? as i64;
            }
        }
        fields.head = at;
        fields.value = at..at;
        if bytes.get(at) == Some(&VALUE_TAG) {
            at += 1;
            fields.value = span(bytes, &mut at)?;
        }
        if bytes.get(at) == Some(&LEASE_TAG) {
            at += 1;
            fields.lease = number(bytes, &mut at)? as i64;
        }
        (at == bytes.len()).then_some(fields)
    }
}

/// An encoded pair without its value, and without its lease unless that is asked for.
pub fn without_value(encoded: &Bytes, fields: &Fields, keep_lease: bool) -> Bytes {
    if !keep_lease || fields.lease == 0 {
        return encoded.slice(..fields.head);
    }
    let mut out = encoded[..fields.head].to_vec();
    put_number(&mut out, LEASE_TAG, fields.lease);
    out.into()
}

/// Appends a field of bytes, nothing when it is empty.
pub fn put_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.push(tag);
        put_varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
}

/// Appends a number, nothing when it is 0.
pub fn put_number(out: &mut Vec<u8>, tag: u8, number: i64) {
    if number != 0 {
        out.push(tag);
        put_varint(out, number as u64);
    }
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The varint at `at`, which moves behind it.
pub fn number(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut result = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        result |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(result);
        }
    }
    None
}

fn span(bytes: &[u8], at: &mut usize) -> Option<Range<usize>> {
    let len = usize::try_from(number(bytes, at)?).ok()?;
    let end = at.checked_add(len)?;
    if end > bytes.len() {
        return None;
    }
    let range = *at..end;
    *at = end;
    Some(range)
}
