//! A range answered in chunks.

use prost::Message;

use super::MvccError;
use super::long_range::SLICE_LOADS;
use super::range::{PartEnd, header, in_order, range};
use super::reader::StoreReader;
use super::record::Fields;
use super::view::after;
use crate::pb::encoded::RangeResponse;
use crate::pb::etcdserverpb::RangeRequest;
use crate::pb::selection::has_own_order;
use crate::types::{KeyRange, Revision};

/// Keys of the first chunk.
const FIRST_KEYS: i64 = 10;
/// Keys of any chunk: small ones would make it as long to read as the bytes of large ones.
const KEYS_MAX: i64 = 4096;

/// The chunks of one range, all at one revision. None is longer than asked for and one pair.
///
/// Each chunk looks at a fresh state, so that a slow client holds no old state in memory; what it reads there is the
/// revision pinned at the start. Compaction past it ends the stream. An answer that is not in the order of keys is
/// gathered with the first chunk.
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
    /// An answer that was gathered, as far as it is not sent.
    gathered: Option<RangeResponse>,
    done: bool,
}

impl StoreReader {
    /// Answers a range in chunks at one revision; `chunk_bytes` is what a chunk should roughly measure.
    ///
    /// # Errors
    /// A future or compacted revision.
    pub fn range_stream(&self, request: &RangeRequest, chunk_bytes: usize) -> Result<RangeStream, MvccError> {
        RangeStream::open(self.clone(), request, chunk_bytes)
    }
}

impl RangeStream {
    fn open(reader: StoreReader, request: &RangeRequest, chunk_bytes: usize) -> Result<Self, MvccError> {
        let snapshot = reader.snapshot();
        let at = snapshot.view().at(request.revision)?;
        let wanted = if request.limit > 0 { request.limit } else { i64::MAX };
        // A sort target without an order is let through by the check and means ascending. Only keys can be sorted chunk by
        // chunk (etcd sorts each chunk by the target and goes on after its last key), so other targets are gathered.
        let limit = if has_own_order(request) { request.limit } else { wanted.min(FIRST_KEYS) };
        let rest = RangeRequest { revision: at.0, limit, ..request.clone() };
        Ok(Self {
            reader,
            rest,
            wanted,
            sent: 0,
            revision: snapshot.revision(),
            chunk_bytes,
            gathered: None,
            done: false,
        })
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
        if has_own_order(&self.rest) {
            return self.next_gathered().map(Some);
        }
        let snapshot = self.reader.snapshot();
        let view = snapshot.view();
        if self.rest.count_only {
            let counted = range(view, &self.rest)?;
            return Ok(Some(RangeResponse { header: header(self.revision), ..counted }));
        }
        let at = view.at(self.rest.revision)?;
        let covered = KeyRange::from_wire(self.rest.key.clone(), self.rest.range_end.clone());
        let end = PartEnd { bytes: self.chunk_bytes, loads: SLICE_LOADS };
        let mut kvs = Vec::new();
        let more = in_order(view, &self.rest, (&covered, at), end, &mut kvs)?;
        let mut chunk = RangeResponse { kvs, more, ..Default::default() };
        let before = self.sent;
        self.sent += chunk.kvs.len() as i64;
        let last = chunk.kvs.last().filter(|_| chunk.more);
        let key = last.map(|kv| kv.slice(Fields::parse(kv).unwrap_or_default().key));
        match key {
            Some(key) if self.sent < self.wanted => {
                let bytes = chunk.encoded_len();
                (self.rest.key, _) = after(&covered, &key).to_wire();
                self.rest.limit = self.next_limit(bytes).min(self.wanted - self.sent);
                chunk.more = false;
                self.done = false;
            }
            _ => {
                // Only now: a count of each chunk would walk over all that changed since, again and again.
                chunk.count = if chunk.more { before + view.count(&covered, at) as i64 } else { self.sent };
                chunk.header = header(self.revision);
            }
        }
        Ok(Some(chunk))
    }

    fn next_gathered(&mut self) -> Result<RangeResponse, MvccError> {
        let mut rest = match self.gathered.take() {
            Some(rest) => rest,
            None => {
                let mut whole = range(self.reader.snapshot().view(), &self.rest)?;
                whole.kvs.reverse();
                whole
            }
        };
        let (mut kvs, mut bytes) = (Vec::new(), 0);
        while bytes < self.chunk_bytes.max(1)
            && let Some(kv) = rest.kvs.pop()
        {
            bytes += kv.len();
            kvs.push(kv);
        }
        if rest.kvs.is_empty() {
            return Ok(RangeResponse { header: header(self.revision), kvs, ..rest });
        }
        self.done = false;
        self.gathered = Some(rest);
        Ok(RangeResponse { kvs, ..Default::default() })
    }

    fn next_limit(&self, bytes: usize) -> i64 {
        if bytes < self.chunk_bytes / 2 { self.rest.limit.saturating_mul(2).min(KEYS_MAX) } else { self.rest.limit }
    }
}
