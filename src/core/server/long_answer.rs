//! Long answers: sent piece by piece as the client takes them, and bounded over all connections.
//!
//! What is bounded, in bytes, over all clients of the member:
//!
//! | part of `--answer-memory-bytes` | bounds | unit | given back |
//! | --- | --- | --- | --- |
//! | a quarter | answers read while they are sent | [`FRAMES_BYTES`] for each | when the last frame was written to its connection, or dropped with it |
//! | a quarter | answers that have to be gathered first (sorted, transactions, deletes) | [`KEY_BYTES`] for each key | likewise |
//! | half | replaced versions that unfinished answers keep alive | what was replaced since the oldest of them | when it is exceeded: see [`release_late`] |
//!
//! A request without room waits, and is refused then. An answer with few keys needs no room and is never refused: it
//! is shared with the store but for two frames.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;

use super::error::Failure;
use super::member_info::MemberInfo;
use crate::api_error::ApiError;
use crate::core::apply::ApplyHandle;
use crate::core::mvcc::{self, Extent, LongRange, StoreReader};
use crate::pb::encoded::{RangeResponse, WireEncode};
use crate::pb::frame::{PREFIX_BYTES, Prefix};
use crate::pb::pieces::{IntoPieces, pieces};
use crate::shutdown::Tasks;

/// Answers up to this length are encoded in one go.
const WHOLE_BYTES_MAX: usize = 64 * 1024;
/// Bytes handed to HTTP/2 at a time.
const FRAME_BYTES: usize = 32 * 1024;
/// What an answer that is read while it is sent keeps of its own: a frame that waits for the client's window, one that
/// is being written, and its state.
const FRAMES_BYTES: u64 = 128 * 1024;
/// What a gathered answer keeps of its own for each key.
const KEY_BYTES: u64 = 192;
/// Unit of the bound for gathered answers; a number of bytes does not fit its semaphore.
const LIST_UNIT_BYTES: u64 = 1024;
/// How long a request waits for room.
const ROOM_WAIT: Duration = Duration::from_secs(5);
/// Requests that wait for room at once; more are refused.
const WAITING_MAX: usize = 4096;
/// Snapshots sent at once: each has a thread that waits for its client, and a serving thread has few hundred of them for
/// everything that must not hold it up.
const SNAPSHOTS_MAX: usize = 16;
/// Hashes of the history computed at once, for clients: each reads all rows, and holds compactions up.
const HASHES_MAX: usize = 1;
/// Defragmentations at once: a second one at the same time has nothing to gain.
const DEFRAGMENTATIONS_MAX: usize = 1;
/// Shortest pause between two looks at what unfinished answers keep alive.
const RELEASE_PAUSE: Duration = Duration::from_millis(100);
/// Largest answer, etcd's limit.
pub(super) const ANSWER_BYTES_MAX: usize = i32::MAX as usize;

/// The bounds on long answers, for all connections of a member.
pub struct AnswerMemory {
    ranges: Arc<Semaphore>,
    range_units: u32,
    lists: Arc<Semaphore>,
    list_units: u32,
    snapshots: Arc<Semaphore>,
    hashes: Arc<Semaphore>,
    defragmentations: Arc<Semaphore>,
    walks: Arc<Semaphore>,
    waiting: Semaphore,
    pinned_bytes_max: u64,
}

/// Room for one answer, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    _permit: OwnedSemaphorePermit,
}

impl AnswerMemory {
    /// Divides `bytes` as the table above says.
    pub fn new(bytes: u64) -> Self {
        let quarter = bytes / 4;
        let units = |unit_bytes| u32::try_from(quarter / unit_bytes).unwrap_or(u32::MAX).max(1);
        let (range_units, list_units) = (units(FRAMES_BYTES), units(LIST_UNIT_BYTES));
        // Some processors are left for what others wait for.
        let walks_max = (std::thread::available_parallelism().map_or(1, usize::from) / 2).max(1);
        Self {
            ranges: Arc::new(Semaphore::new(range_units as usize)),
            range_units,
            lists: Arc::new(Semaphore::new(list_units as usize)),
            list_units,
            snapshots: Arc::new(Semaphore::new(SNAPSHOTS_MAX)),
            hashes: Arc::new(Semaphore::new(HASHES_MAX)),
            defragmentations: Arc::new(Semaphore::new(DEFRAGMENTATIONS_MAX)),
            walks: Arc::new(Semaphore::new(walks_max)),
            waiting: Semaphore::new(WAITING_MAX),
            pinned_bytes_max: bytes / 2,
        }
    }

    /// Room for an answer that is read while it is sent.
    ///
    /// # Errors
    /// "Too many requests" when there is none for a while.
    pub(super) async fn range(&self) -> Result<Room, Status> {
        self.room(&self.ranges, 1).await
    }

    /// Room for a stream of messages of about `message_bytes`: one that waits for the client's window, one that is
    /// being written.
    ///
    /// # Errors
    /// "Too many requests" when there is none for a while.
    pub(super) async fn stream(&self, message_bytes: usize) -> Result<Room, Status> {
        let units = (message_bytes as u64).saturating_mul(2).div_ceil(FRAMES_BYTES);
        let units = u32::try_from(units).unwrap_or(u32::MAX).clamp(1, self.range_units);
        self.room(&self.ranges, units).await
    }

    /// Room for an answer that is gathered. One that needs more than there is gets all of it: it is alone then. So is
    /// one whose values come from the backend, which are not shared with the store.
    ///
    /// # Errors
    /// "Too many requests" when there is none for a while.
    pub(super) async fn list(&self, extent: Extent) -> Result<Room, Status> {
        let units = (extent.keys as u64).saturating_mul(KEY_BYTES).div_ceil(LIST_UNIT_BYTES);
        let units = u32::try_from(units).unwrap_or(u32::MAX).min(self.list_units);
        self.room(&self.lists, if extent.loads { self.list_units } else { units }).await
    }

    /// A place for a snapshot.
    ///
    /// # Errors
    /// "Too many requests" when there is none for a while.
    pub(super) async fn snapshot(&self) -> Result<Room, Status> {
        self.room(&self.snapshots, 1).await
    }

    /// A place for a hash of the history; waits for as long as the caller does, as it would for its own hash.
    ///
    /// # Errors
    /// The member stops.
    pub(super) async fn hash(&self) -> Result<Room, Status> {
        let permit = self.hashes.clone().acquire_owned().await.map_err(|_| ApiError::Stopped)?;
        Ok(Room { _permit: permit })
    }

    /// A turn for a defragmentation; waits for as long as the caller does.
    ///
    /// # Errors
    /// The member stops.
    pub(super) async fn defragmentation(&self) -> Result<Room, Status> {
        let permit = self.defragmentations.clone().acquire_owned().await.map_err(|_| ApiError::Stopped)?;
        Ok(Room { _permit: permit })
    }

    /// A place for a thread that looks at much of which the answer holds nothing; none where it is little.
    ///
    /// # Errors
    /// "Too many requests" when there is none for a while.
    pub(super) async fn walk(&self, extent: Extent) -> Result<Option<Room>, Status> {
        if extent.has_few_looks() { Ok(None) } else { self.room(&self.walks, 1).await.map(Some) }
    }

    async fn room(&self, semaphore: &Arc<Semaphore>, units: u32) -> Result<Room, Status> {
        if let Ok(permit) = semaphore.clone().try_acquire_many_owned(units) {
            return Ok(Room { _permit: permit });
        }
        let _place = self.waiting.try_acquire().map_err(|_| no_room())?;
        match tokio::time::timeout(ROOM_WAIT, semaphore.clone().acquire_many_owned(units)).await {
            Ok(Ok(permit)) => Ok(Room { _permit: permit }),
            Ok(Err(_)) => Err(ApiError::Stopped.into()),
            Err(_) => Err(no_room()),
        }
    }
}

/// etcd's words, with the code that its documentation gives them; its members send `Unknown` for a full queue.
fn no_room() -> Status {
    Status::resource_exhausted(ApiError::TooManyRequests.text())
}

/// Keeps unfinished answers from holding more replaced versions than allowed, until `tasks` stop.
pub(super) async fn release_late(store: StoreReader, apply: ApplyHandle, answers: Arc<AnswerMemory>, tasks: Tasks) {
    let stop = tasks.stop_signal();
    let mut progress = apply.progress();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            applied = progress.changed() => if applied.is_err() { return },
        }
        let (store, bytes_max) = (store.clone(), answers.pinned_bytes_max);
        // An error means that the runtime ends.
        let _ = tokio::task::spawn_blocking(move || store.release_pins(bytes_max)).await;
        tokio::time::sleep(RELEASE_PAUSE).await;
    }
}

/// A unary answer of gRPC that is written as the client takes it.
pub(super) struct LongAnswer {
    source: Source,
    /// Everything in front of the source's bytes.
    head: Vec<u8>,
    /// Everything behind them.
    tail: Vec<u8>,
    /// Bytes of the message that are not handed out yet.
    unsent: u64,
    ended: bool,
    room: Option<Arc<Room>>,
}

enum Source {
    Range(Box<LongRange>),
    List(mvcc::Pin<VecDeque<Bytes>>),
    Done,
}

/// Bytes on their way through HTTP/2; the room is taken until they are written.
struct InFlight {
    bytes: Vec<u8>,
    _room: Option<Arc<Room>>,
}

impl AsRef<[u8]> for InFlight {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl LongAnswer {
    /// Sends a range that is measured.
    ///
    /// # Errors
    /// It is longer than any answer may be.
    pub(super) fn range(info: &MemberInfo, range: LongRange, room: Room) -> Result<Self, Status> {
        let mut answer = range.frame();
        info.complete(&mut answer.header);
        // The header comes before the pairs, the rest behind.
        let head = RangeResponse { header: answer.header.take(), ..Default::default() }.encode_to_vec();
        let tail = answer.encode_to_vec();
        let bytes = head.len() as u64 + range.bytes() + tail.len() as u64;
        Self::new(Source::Range(Box::new(range)), &head, tail, bytes, Some(room))
    }

    fn new(source: Source, head: &[u8], tail: Vec<u8>, bytes: u64, room: Option<Room>) -> Result<Self, Status> {
        let length = check_length(bytes)?;
        let framed = [&Prefix::plain(length), head].concat();
        let unsent = PREFIX_BYTES as u64 + bytes;
        Ok(Self { source, head: framed, tail, unsent, ended: false, room: room.map(Arc::new) })
    }

    /// Appends what the source has next; true when it is at its end.
    fn fill(&mut self, frame: &mut Vec<u8>) -> Result<bool, Status> {
        match &mut self.source {
            Source::Range(range) => range.write(frame, FRAME_BYTES).map_err(|error| Failure::from(error).into()),
            Source::List(list) => {
                let written = list.with(|pieces| {
                    while let Some(piece) = pieces.front_mut() {
                        let room = FRAME_BYTES.saturating_sub(frame.len());
                        if piece.len() > room {
                            frame.extend_from_slice(&piece.split_to(room));
                            return false;
                        }
                        frame.extend_from_slice(piece);
                        pieces.pop_front();
                    }
                    true
                });
                // Its values were replaced, and kept alive by this answer alone for too long.
                written.ok_or_else(no_room)
            }
            Source::Done => Ok(true),
        }
    }

    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.ended = true;
        self.source = Source::Done;
        self.room = None;
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("2"));
        }
        Frame::trailers(trailers)
    }
}

impl HttpBody for LongAnswer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        if matches!(this.source, Source::Done) {
            let status = match this.unsent {
                0 => Status::ok(""),
                _ => Status::internal("the answer is not as long as it was measured"),
            };
            return Poll::Ready(Some(Ok(this.end(&status))));
        }
        let mut bytes = Vec::with_capacity(FRAME_BYTES.min(usize::try_from(this.unsent).unwrap_or(FRAME_BYTES)));
        bytes.append(&mut this.head);
        match this.fill(&mut bytes) {
            // A part of the message is out: the client sees it end early, and this status with it.
            Err(status) => return Poll::Ready(Some(Ok(this.end(&status)))),
            Ok(false) if bytes.is_empty() => {
                // Nothing passed the filters of the range yet; it goes on after others had their turn.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Ok(false) => {}
            Ok(true) => {
                bytes.append(&mut this.tail);
                this.source = Source::Done;
            }
        }
        this.unsent = this.unsent.wrapping_sub(bytes.len() as u64);
        let frame = InFlight { bytes, _room: this.room.clone() };
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(frame)))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// The length as gRPC writes it.
fn check_length(bytes: u64) -> Result<usize, Status> {
    usize::try_from(bytes).ok().filter(|&length| length <= ANSWER_BYTES_MAX).ok_or_else(|| {
        let text = format!("grpc: trying to send message larger than max ({bytes} vs. {ANSWER_BYTES_MAX})");
        Status::resource_exhausted(text)
    })
}

/// Takes the place of the empty message that a service answered with. Travels in the answer's extensions, since the
/// library's codec knows messages of one piece only.
#[derive(Clone)]
struct Attached(Arc<Mutex<Option<LongAnswer>>>);

/// The answer of a service whose body is `long`.
pub(super) fn attached<T: Default>(long: LongAnswer) -> tonic::Response<T> {
    let mut response = tonic::Response::new(T::default());
    response.extensions_mut().insert(Attached(Arc::new(Mutex::new(Some(long)))));
    response
}

/// Puts the attached body, if there is one, in its place.
pub(super) fn detach(mut response: Response<Body>) -> Response<Body> {
    let attached = response.extensions_mut().remove::<Attached>();
    match attached.and_then(|attached| attached.0.lock().take()) {
        Some(long) => response.map(|_| Body::new(long)),
        None => response,
    }
}

/// Sends a gathered answer, whole if it is short. `since` is the count of replaced bytes from before it was read.
///
/// # Errors
/// It is longer than any answer may be.
pub(super) fn gathered<T>(
    store: &StoreReader,
    answer: T,
    since: u64,
    room: Option<Room>,
) -> Result<tonic::Response<T>, Status>
where
    T: IntoPieces + WireEncode + Default,
{
    let bytes = answer.wire_len();
    if bytes <= WHOLE_BYTES_MAX {
        return Ok(tonic::Response::new(answer));
    }
    check_length(bytes as u64)?;
    let list = Source::List(store.pin(since, pieces(answer)));
    Ok(attached(LongAnswer::new(list, &[], Vec::new(), bytes as u64, room)?))
}

/// Runs what may take long without holding up the connections of this serving thread.
pub(super) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    super::on_thread::on_thread(|_| ApiError::Stopped.into(), work).await
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn one_hash_is_computed_at_a_time() {
        let answers = AnswerMemory::new(1 << 20);
        let first = answers.hash().now_or_never().expect("a place").expect("open");
        assert!(answers.hash().now_or_never().is_none(), "the second waits");
        drop(first);
        assert!(answers.hash().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn long_walks_have_few_places() {
        let answers = AnswerMemory::new(1 << 20);
        let long = Extent { looks: 1_000_000, ..Extent::default() };
        let mut places = Vec::new();
        let refused = loop {
            match answers.walk(long).await {
                Ok(place) => places.push(place.expect("it is long")),
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        assert!(!places.is_empty() && places.len() <= processors);
        let short = Extent { keys: 1_000_000, looks: 2, loads: false };
        assert!(answers.walk(short).await.expect("no place is needed").is_none());
    }
}
