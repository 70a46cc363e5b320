use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

use super::connection_info::ConnectionInfo;

/// Unsent bytes of answers on one connection; beyond, calls on it are refused, and answers wait to be read.
pub(super) const CONNECTION_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The same on all connections of a listener.
pub(super) const ALL_BYTES_MAX: usize = 512 * 1024 * 1024;
/// What a connection may have when the bound on all connections is reached.
const CONNECTION_BYTES_MIN: usize = 256 * 1024;
/// While more than half of the bound on all connections is used, a connection of which nothing is sent for so long is closed.
const STALL: Duration = Duration::from_secs(10);
/// What an open call counts besides the bytes of its answer.
const CALL_BYTES: usize = 1024;
/// What a connection has is counted among all in these units: most have less than one, and share nothing then.
const UNIT_BYTES: usize = 64 * 1024;
/// Pieces of answers below this length are not counted by themselves.
const SMALL_BYTES: usize = 2 * 1024;

/// Bytes of answers of one connection that are not written to its socket.
///
/// The HTTP/2 library reads a piece of each answer before it looks at the window of the stream, and keeps as much as the send
/// buffer of the stream takes: a client that opens many streams and takes nothing would make it keep any amount.
#[derive(Debug)]
pub(super) struct UnsentBytes {
    connection: AtomicUsize,
    /// On all connections.
    all: Arc<AtomicUsize>,
    /// Counts the pieces that were sent or dropped.
    moved: AtomicUsize,
    /// Answers that wait until there is less.
    waiting: Mutex<Vec<Waker>>,
}

impl UnsentBytes {
    pub(super) fn new(all: Arc<AtomicUsize>) -> Self {
        Self { connection: AtomicUsize::new(0), all, moved: AtomicUsize::new(0), waiting: Mutex::default() }
    }

    /// Whether another call may begin, and more of an answer be read.
    pub(super) fn has_room(&self) -> bool {
        let connection = self.connection.load(Ordering::Relaxed);
        connection < CONNECTION_BYTES_MIN
            || connection < CONNECTION_BYTES_MAX && self.all.load(Ordering::Relaxed) < ALL_BYTES_MAX
    }

    fn take(&self, bytes: usize) {
        let before = self.connection.fetch_add(bytes, Ordering::Relaxed);
        let units = (before + bytes) / UNIT_BYTES - before / UNIT_BYTES;
        if units > 0 {
            self.all.fetch_add(units * UNIT_BYTES, Ordering::Relaxed);
        }
    }

    fn give_back(&self, bytes: usize) {
        let before = self.connection.fetch_sub(bytes, Ordering::Relaxed);
        let left = before - bytes;
        let units = before / UNIT_BYTES - left / UNIT_BYTES;
        if units == 0 {
            // Whoever waits found more than a unit.
            return;
        }
        self.all.fetch_sub(units * UNIT_BYTES, Ordering::Relaxed);
        // Whoever waits found more than the least here, which comes back by this way. All are woken once half of it is
        // free, and not one after the other for each piece.
        let all_are_many = self.all.load(Ordering::Relaxed) >= ALL_BYTES_MAX;
        if left <= if all_are_many { CONNECTION_BYTES_MIN / 2 } else { CONNECTION_BYTES_MAX / 2 } {
            let waiting = std::mem::take(&mut *self.waiting.lock());
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// Ready when more of an answer may be read.
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_room() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.lock();
        // It may have come free since.
        if self.has_room() {
            return Poll::Ready(());
        }
        waiting.push(cx.waker().clone());
        Poll::Pending
    }
}

/// Notices that the answers of a connection are not taken while others have no room.
#[derive(Default)]
pub(super) struct StallWatch {
    timer: Option<Pin<Box<Sleep>>>,
    moved: usize,
}

impl StallWatch {
    /// Ready when the connection is to be closed. To be polled whenever the connection is.
    pub(super) fn poll(&mut self, unsent: &UnsentBytes, cx: &mut Context<'_>) -> Poll<()> {
        if unsent.connection.load(Ordering::Relaxed) == 0 {
            // A timer that is left runs out for nothing, which costs less than one for each answer.
            return Poll::Pending;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL)));
        while timer.as_mut().poll(cx).is_ready() {
            let moved = unsent.moved.load(Ordering::Relaxed);
            if moved == self.moved && unsent.all.load(Ordering::Relaxed) > ALL_BYTES_MAX / 2 {
                return Poll::Ready(());
            }
            self.moved = moved;
            timer.as_mut().reset(Instant::now() + STALL);
        }
        Poll::Pending
    }
}

/// A call from its beginning to the end of its answer.
pub(super) struct OpenCall(Arc<ConnectionInfo>);

impl OpenCall {
    pub(super) fn new(connection: Arc<ConnectionInfo>) -> Self {
        connection.unsent.take(CALL_BYTES);
        Self(connection)
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.unsent.give_back(CALL_BYTES);
    }
}

/// The body of an answer, counted until it is written.
pub(super) struct Outgoing<B> {
    body: B,
    call: OpenCall,
}

impl<B> Outgoing<B> {
    pub(super) fn new(body: B, call: OpenCall) -> Self {
        Self { body, call }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Outgoing<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        std::task::ready!(this.call.0.unsent.poll_room(cx));
        let frame = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| match frame.data_ref() {
                Some(data) if data.len() >= SMALL_BYTES => {
                    let data = frame.into_data().unwrap_or_default();
                    Frame::data(Bytes::from_owner(Piece::new(data, this.call.0.clone())))
                }
                _ => frame,
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A piece of an answer on its way through HTTP.
struct Piece {
    data: Bytes,
    connection: Arc<ConnectionInfo>,
}

impl Piece {
    fn new(data: Bytes, connection: Arc<ConnectionInfo>) -> Self {
        connection.unsent.take(data.len());
        Self { data, connection }
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.connection.unsent.moved.fetch_add(1, Ordering::Relaxed);
        self.connection.unsent.give_back(self.data.len());
    }
}

#[cfg(test)]
mod tests {
    use futures::task::noop_waker_ref;
    use http_body_util::{BodyExt, Full};

    use super::*;
    use crate::listener::connection_info::Accepted;

    fn connection(all: &Arc<AtomicUsize>) -> Arc<ConnectionInfo> {
        let address = "127.0.0.1:1".parse().expect("an address");
        let accepted = Accepted { listener: 0, local: address, peer: address };
        let counts = Arc::default();
        Arc::new(ConnectionInfo::new(accepted, None, counts, all.clone()))
    }

    /// One answer of so many bytes, read as HTTP does and kept.
    async fn kept(connection: &Arc<ConnectionInfo>, bytes: usize) -> Bytes {
        let mut body = Outgoing::new(Full::new(Bytes::from(vec![7; bytes])), OpenCall::new(connection.clone()));
        let data = body.frame().await.expect("a frame").expect("no error").into_data().expect("data");
        assert_eq!(data.len(), bytes);
        data
    }

    #[tokio::test]
    async fn answers_count_until_their_last_byte_is_dropped() {
        let all = Arc::new(AtomicUsize::new(0));
        let connection = connection(&all);
        let mut data = kept(&connection, 100_000).await;
        let counts = || (connection.unsent.connection.load(Ordering::Relaxed), all.load(Ordering::Relaxed));
        assert_eq!(counts(), (100_000, UNIT_BYTES));
        drop(data.split_to(50_000));
        assert_eq!(counts(), (100_000, UNIT_BYTES));
        let calls: Vec<_> = (0..100).map(|_| OpenCall::new(connection.clone())).collect();
        assert_eq!(counts(), (100_000 + 100 * CALL_BYTES, 3 * UNIT_BYTES));
        drop(data);
        assert_eq!(counts(), (100 * CALL_BYTES, UNIT_BYTES));
        kept(&connection, 100).await;
        drop(calls);
        assert_eq!(counts(), (0, 0));
    }

    #[tokio::test]
    async fn answers_beyond_the_bound_wait_and_go_on() {
        let all = Arc::default();
        let connection = connection(&all);
        let mut pieces = Vec::new();
        while connection.unsent.has_room() {
            pieces.push(kept(&connection, 1 << 20).await);
        }
        assert_eq!(pieces.len(), 64);
        let mut more = Outgoing::new(Full::new(Bytes::from_static(b"x")), OpenCall::new(connection.clone()));
        let mut frame = more.frame();
        let mut cx = Context::from_waker(noop_waker_ref());
        assert!(Pin::new(&mut frame).poll(&mut cx).is_pending());
        assert_eq!(connection.unsent.waiting.lock().len(), 1);
        pieces.truncate(33);
        assert_eq!(connection.unsent.waiting.lock().len(), 1, "until half of it is free");
        pieces.truncate(31);
        assert!(connection.unsent.waiting.lock().is_empty());
        assert!(Pin::new(&mut frame).poll(&mut cx).is_ready());
    }

    #[tokio::test]
    async fn a_connection_has_a_little_room_whatever_others_hold() {
        let all = Arc::new(AtomicUsize::new(ALL_BYTES_MAX));
        let connection = connection(&all);
        let mut pieces = Vec::new();
        while connection.unsent.has_room() {
            pieces.push(kept(&connection, 10_000).await);
        }
        assert_eq!(pieces.len(), CONNECTION_BYTES_MIN.div_ceil(10_000));
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_cut_off_only_while_room_is_short() {
        for (others, moves, cut) in [(0, false, false), (ALL_BYTES_MAX, true, false), (ALL_BYTES_MAX, false, true)] {
            let all = Arc::new(AtomicUsize::new(others));
            let connection = connection(&all);
            let mut piece = kept(&connection, 10_000).await;
            let mut watch = StallWatch::default();
            let stalled = std::future::poll_fn(|cx| watch.poll(&connection.unsent, cx));
            tokio::pin!(stalled);
            let mut ended = false;
            for _ in 0..6 {
                ended |= tokio::time::timeout(STALL / 2, &mut stalled).await.is_ok();
                if ended {
                    break;
                }
                if moves {
                    piece = kept(&connection, 10_000).await;
                }
            }
            drop(piece);
            assert_eq!(ended, cut, "{others} {moves}");
        }
    }
}
