//! The messages between sender and receiver of a db snapshot.

use bytes::{Buf, BufMut, Bytes};
use sha2::{Digest, Sha256};

use super::frame::{Batch, ConnectionError, Kind};
use crate::types::{LogIndex, LogPosition, Term};

/// Numbers of an offer, and the digest.
const OFFER_BYTES: usize = 4 * 8 + 32;
/// Bytes read at once to compute a digest.
const HASH_BYTES: usize = 1024 * 1024;
/// Longest text of a refusal.
const REASON_BYTES_MAX: usize = 1024;

pub(super) type SnapshotDigest = [u8; 32];

/// What makes two db snapshots the same one: a transfer goes on only within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SnapshotId {
    pub(super) position: LogPosition,
    pub(super) size_bytes: u64,
    pub(super) digest: SnapshotDigest,
}

/// The first frame of a transfer.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    /// The same for every connection of one transfer, different for the next.
    pub(super) transfer: u64,
    pub(super) db_snapshot: SnapshotId,
    pub(super) message: Bytes,
}

impl Offer {
    pub(super) fn push(&self, batch: &mut Batch) {
        let mut head = Vec::with_capacity(OFFER_BYTES);
        let SnapshotId { position, size_bytes, digest } = self.db_snapshot;
        for number in [self.transfer, position.index.0, position.term.0, size_bytes] {
            head.put_u64_le(number);
        }
        head.put_slice(&digest);
        batch.push(Kind::Offer, &head, &self.message);
    }

    pub(super) fn parse(mut payload: Bytes) -> Result<Self, ConnectionError> {
        if payload.len() < OFFER_BYTES {
            return Err(ConnectionError::Length(payload.len()));
        }
        let transfer = payload.get_u64_le();
        let index = LogIndex(payload.get_u64_le());
        let term = Term(payload.get_u64_le());
        let size_bytes = payload.get_u64_le();
        let mut digest = SnapshotDigest::default();
        payload.copy_to_slice(&mut digest);
        let db_snapshot = SnapshotId { position: LogPosition { index, term }, size_bytes, digest };
        Ok(Self { transfer, db_snapshot, message: payload })
    }
}

/// The receiver does not take the db snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// Later it may.
    pub(super) may_retry: bool,
    pub(super) reason: String,
}

impl Refused {
    pub(super) fn push(&self, batch: &mut Batch) {
        let reason = &self.reason.as_bytes()[..self.reason.len().min(REASON_BYTES_MAX)];
        batch.push(Kind::Refuse, &[u8::from(self.may_retry)], &Bytes::copy_from_slice(reason));
    }

    pub(super) fn parse(payload: &[u8]) -> Self {
        let (may_retry, reason) = payload.split_first().unwrap_or((&0, &[]));
        Self { may_retry: *may_retry != 0, reason: String::from_utf8_lossy(reason).into_owned() }
    }
}

/// Digest of the first `size_bytes` of a file. Blocks.
pub(super) fn digest(file: &std::fs::File, size_bytes: u64) -> std::io::Result<SnapshotDigest> {
    use std::os::unix::fs::FileExt;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; HASH_BYTES];
    let mut at = 0;
    while at < size_bytes {
        let length = (size_bytes - at).min(HASH_BYTES as u64) as usize;
        file.read_exact_at(&mut buffer[..length], at)?;
        hasher.update(&buffer[..length]);
        at += length as u64;
    }
    Ok(hasher.finalize().into())
}
