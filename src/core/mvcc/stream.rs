//! A range answered in chunks.

use prost::Message;

use super::MvccError;
use super::range::{header, range};
use super::reader::StoreReader;
use super::record::Fields;
use super::view::after;
use crate::pb::encoded::RangeResponse;
use crate::pb::etcdserverpb::RangeRequest;
use crate::pb::etcdserverpb::range_request::SortTarget;
use crate::types::{KeyRange, Revision};

/// Keys of the first chunk.
const FIRST_KEYS: i64 = 10;

/// The chunks of one range, all at one revision.
///
/// Each chunk looks at a fresh state, so that a slow client holds no old state in memory; what it reads there is the
/// revision pinned at the start. Compaction past it ends the stream.
pub struct RangeStream {
    reader: StoreReader,
    /// What is still to be read; its limit is that of the next chunk.
    rest: RangeRequest,
    /// Keys still wanted.
    wanted: i64,
    sent: i64,
    /// Newest revision when the stream began.
    revision: Revision,
    chunk_bytes: usize,
    done: bool,
}

impl RangeStream {
    pub(super) fn open(reader: StoreReader, request: &RangeRequest, chunk_bytes: usize) -> Result<Self, MvccError> {
        let snapshot = reader.snapshot();
        let at = snapshot.view().at(request.revision)?;
        let wanted = if request.limit > 0 { request.limit } else { i64::MAX };
        // A sort target without an order is let through by the check and means ascending. Only keys can be sorted chunk by
        // chunk (etcd sorts each chunk by the target and goes on after its last key), so other targets get one chunk.
        let by_key = request.sort_target == SortTarget::Key as i32;
        let limit = if by_key { wanted.min(FIRST_KEYS) } else { request.limit };
        let rest = RangeRequest { revision: at.0, limit, ..request.clone() };
        Ok(Self { reader, rest, wanted, sent: 0, revision: snapshot.revision(), chunk_bytes, done: false })
    }

    /// The next chunk; none after the last, which alone has header, `more` and `count`.
    ///
    /// # Errors
    /// The revision was compacted meanwhile; the stream is over then.
    pub fn next_chunk(&mut self) -> Result<Option<RangeResponse>, MvccError> {
        if self.done {
            return Ok(None);
        }
        // An error ends the stream, too.
        self.done = true;
        let snapshot = self.reader.snapshot();
        let mut chunk = range(snapshot.view(), &self.rest)?;
        self.sent += chunk.kvs.len() as i64;
        let last = chunk.kvs.last().filter(|_| chunk.more);
        let key = last.map(|kv| kv.slice(Fields::parse(kv).unwrap_or_default().key));
        match key {
            Some(key) if self.sent < self.wanted => {
                let bytes = chunk.encoded_len();
                let covered = KeyRange::from_wire(self.rest.key.clone(), self.rest.range_end.clone());
                (self.rest.key, _) = after(&covered, &key).to_wire();
                self.rest.limit = self.next_limit(bytes).min(self.wanted - self.sent);
                chunk = RangeResponse { kvs: chunk.kvs, ..Default::default() };
                self.done = false;
            }
            _ => {
                // What the last look counted is what lay from its first key on.
                let before = if self.rest.count_only { 0 } else { self.sent - chunk.kvs.len() as i64 };
                chunk.count += before;
                chunk.header = header(self.revision);
            }
        }
        Ok(Some(chunk))
    }

    fn next_limit(&self, bytes: usize) -> i64 {
        if bytes < self.chunk_bytes / 2 {
            self.rest.limit.saturating_mul(2)
        } else if bytes > self.chunk_bytes.saturating_mul(2) {
            (self.rest.limit / 2).max(1)
        } else {
            self.rest.limit
        }
    }
}
