//! A range whose answer is too long to be built in one go.
//!
//! The answer is never held: it is measured first, in slices, and then written piece by piece, each slice walking on
//! from the key where the one before ended. All slices read one revision. They read it in the state pinned at the
//! start for as long as that pin lasts, then in a newer state, where it may have been compacted.

use std::ops::Deref;

use bytes::Bytes;

use super::MvccError;
use super::pins::Pin;
use super::range::header;
use super::reader::{Snapshot, StoreReader};
use super::view::{Found, View, after, starting_at};
use crate::pb::encoded::RangeResponse;
use crate::pb::etcdserverpb::RangeRequest;
use crate::pb::selection::{Selection, has_own_order};
use crate::types::{Key, KeyRange, RecordId, Revision};

/// Keys one slice looks at: some tens of microseconds.
const SLICE_KEYS: usize = 512;
/// Rows one slice, or one chunk of a stream, reads from the backend: serving threads must not wait long for the disk.
pub(super) const SLICE_LOADS: usize = 64;
/// Tag of `kvs` in a range answer, and the longest length behind it.
const KVS_TAG: u8 = 0x12;
const KV_HEAD_BYTES_MAX: usize = 11;

/// A range in key order, read in slices.
///
/// First [`measure`](Self::measure) until it returns true, then [`write`](Self::write) the same way.
pub struct LongRange {
    reader: StoreReader,
    pin: Pin<Snapshot>,
    selection: Selection,
    covered: KeyRange,
    /// Revision that all slices read.
    at: Revision,
    /// Newest revision at the start.
    revision: Revision,
    limit: usize,
    /// Where the next slice begins.
    rest: KeyRange,
    /// Pairs of the answer, and their bytes with tag and length.
    keys: usize,
    bytes: u64,
    more: bool,
    count: i64,
    /// Pairs not completely written yet, and bytes written of the first of them.
    unwritten: usize,
    written_of_first: usize,
}

/// An encoded pair of the answer.
enum Piece<'a> {
    Shared(&'a [u8]),
    Made(Bytes),
}

impl Deref for Piece<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Made(bytes) => bytes,
        }
    }
}

impl StoreReader {
    /// Begins a range in the newest state. For requests in key order only.
    ///
    /// # Errors
    /// A future or compacted revision.
    pub fn long_range(&self, request: &RangeRequest) -> Result<LongRange, MvccError> {
        debug_assert!(!has_own_order(request) && !request.count_only);
        let snapshot = self.snapshot();
        let at = snapshot.view().at(request.revision)?;
        let covered = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
        Ok(LongRange {
            reader: self.clone(),
            revision: snapshot.revision(),
            pin: self.pin(snapshot.state.replaced_bytes, snapshot),
            selection: Selection::of(request),
            rest: covered.clone(),
            covered,
            at,
            limit: usize::try_from(request.limit).ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX),
            keys: 0,
            bytes: 0,
            more: false,
            count: 0,
            unwritten: 0,
            written_of_first: 0,
        })
    }
}

impl LongRange {
    /// Looks at the next keys; true when the whole answer is measured.
    ///
    /// # Errors
    /// The revision was compacted meanwhile.
    pub fn measure(&mut self) -> Result<bool, MvccError> {
        let snapshot = self.snapshot()?;
        let view = snapshot.view();
        let (mut last, mut loads, mut looked) = (None, 0, 0);
        for found in view.walk(&self.rest, self.at) {
            if looked == SLICE_KEYS || loads == SLICE_LOADS {
                break;
            }
            looked += 1;
            loads += usize::from(matches!(found, Found::Past(_)));
            last = Some(found);
            let Some(piece) = self.piece(view, found)? else { continue };
            if self.keys == self.limit {
                self.more = true;
                break;
            }
            self.keys += 1;
            self.bytes += head(piece.len()).1 as u64 + piece.len() as u64;
        }
        let whole = !self.more && looked < SLICE_KEYS && loads < SLICE_LOADS;
        if !self.more && !whole {
            self.rest = last.map_or(self.rest.clone(), |found| after(&self.rest, found.key()));
            return Ok(false);
        }
        let counts = self.more || self.selection.filters();
        self.count = if counts { view.count(&self.covered, self.at) } else { self.keys } as i64;
        self.rest = self.covered.clone();
        self.unwritten = self.keys;
        Ok(true)
    }

    /// The answer without its pairs; its header has the revision only.
    pub fn frame(&self) -> RangeResponse {
        RangeResponse { header: header(self.revision), kvs: Vec::new(), more: self.more, count: self.count }
    }

    /// Bytes of the pairs, encoded as fields of the answer.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends the next bytes of the pairs to `out`, until it is `bytes_max` long or this slice has looked at enough;
    /// true when nothing is left.
    ///
    /// # Errors
    /// The revision was compacted meanwhile.
    pub fn write(&mut self, out: &mut Vec<u8>, bytes_max: usize) -> Result<bool, MvccError> {
        if self.unwritten == 0 {
            return Ok(true);
        }
        let snapshot = self.snapshot()?;
        let view = snapshot.view();
        let (mut looked, mut loads) = (0, 0);
        // Where the next slice begins; none when the walk ends before the pairs do.
        let mut rest = None;
        let mut last: Option<Found<'_>> = None;
        for found in view.walk(&self.rest, self.at) {
            if looked == SLICE_KEYS || loads == SLICE_LOADS || out.len() >= bytes_max {
                rest = Some(last.map_or_else(|| self.rest.clone(), |last| after(&self.rest, last.key())));
                break;
            }
            looked += 1;
            loads += usize::from(matches!(found, Found::Past(_)));
            last = Some(found);
            let Some(piece) = self.piece(view, found)? else { continue };
            if !put(out, bytes_max, &piece, &mut self.written_of_first) {
                rest = Some(starting_at(&self.rest, Key::copy_from_slice(found.key())));
                break;
            }
            self.written_of_first = 0;
            self.unwritten -= 1;
            if self.unwritten == 0 {
                return Ok(true);
            }
        }
        let gone = MvccError::Corrupt { id: RecordId::default(), problem: "gone since the range was measured" };
        self.rest = rest.ok_or(gone)?;
        Ok(false)
    }

    /// The state to read in: the pinned one, or a newer one when that was released.
    fn snapshot(&mut self) -> Result<Snapshot, MvccError> {
        if let Some(pinned) = self.pin.with(|snapshot| snapshot.clone()) {
            return Ok(pinned);
        }
        let snapshot = self.reader.snapshot();
        snapshot.view().at(self.at.0)?;
        self.pin = self.reader.pin(snapshot.state.replaced_bytes, snapshot.clone());
        Ok(snapshot)
    }

    /// What the answer holds of a version; none when it does not pass the filters.
    fn piece<'a>(&self, view: View<'_>, found: Found<'a>) -> Result<Option<Piece<'a>>, MvccError> {
        if let Found::Live(record) = found
            && self.selection.takes_all()
        {
            return Ok(Some(Piece::Shared(record.as_ref())));
        }
        Ok(self.selection.answer(view.load(found)?).map(Piece::Made))
    }
}

/// Tag and length in front of a pair.
fn head(len: usize) -> ([u8; KV_HEAD_BYTES_MAX], usize) {
    let mut head = [0; KV_HEAD_BYTES_MAX];
    head[0] = KVS_TAG;
    let mut rest = &mut head[1..];
    prost::encoding::encode_varint(len as u64, &mut rest);
    let free = rest.len();
    (head, KV_HEAD_BYTES_MAX - free)
}

/// Appends what `out` has room for of a pair with its head, of which `written` bytes are out already; false when there
/// is more.
fn put(out: &mut Vec<u8>, bytes_max: usize, pair: &[u8], written: &mut usize) -> bool {
    let (head, head_bytes) = head(pair.len());
    for (part, before) in [(&head[..head_bytes], 0), (pair, head_bytes)] {
        let from = written.saturating_sub(before).min(part.len());
        let room = bytes_max.saturating_sub(out.len());
        let part = &part[from..];
        let fits = part.len().min(room);
        out.extend_from_slice(&part[..fits]);
        *written += fits;
        if fits < part.len() {
            return false;
        }
    }
    true
}
