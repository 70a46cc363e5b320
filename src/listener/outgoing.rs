use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::connection_info::ConnectionInfo;

/// What an open call counts besides the bytes of its answer.
const CALL_BYTES: usize = 1024;
/// Pieces of answers below this length are not counted by themselves.
const SMALL_BYTES: usize = 2 * 1024;

/// A call from its beginning to the end of its answer.
pub(super) struct OpenCall {
    connection: Arc<ConnectionInfo>,
    /// Whether the client has to take something before more of the answer is asked for.
    waits_for_client: bool,
}

impl OpenCall {
    pub(super) fn new(connection: Arc<ConnectionInfo>) -> Self {
        connection.unsent.take(CALL_BYTES);
        Self { connection, waits_for_client: false }
    }

    fn set_waits_for_client(&mut self, waits: bool) {
        if waits == std::mem::replace(&mut self.waits_for_client, waits) {
            return;
        }
        let count = &self.connection.unsent.not_taken;
        match waits {
            true => count.fetch_add(1, Ordering::Relaxed),
            false => count.fetch_sub(1, Ordering::Relaxed),
        };
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.set_waits_for_client(false);
        self.connection.unsent.moved.fetch_add(1, Ordering::Relaxed);
        self.connection.unsent.give_back(CALL_BYTES);
    }
}

/// The body of an answer, counted until it is written.
pub(super) struct Outgoing<B> {
    body: B,
    call: OpenCall,
}

impl<B> Outgoing<B> {
    pub(super) fn new(body: B, mut call: OpenCall) -> Self {
        call.set_waits_for_client(true);
        Self { body, call }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Outgoing<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        std::task::ready!(this.call.connection.unsent.poll_room(cx));
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        // Pending: the client waits for the handler. After a frame, HTTP/2 polls again only when flow control lets it send more.
        this.call.set_waits_for_client(polled.is_ready());
        let frame = std::task::ready!(polled);
        let connection = &this.call.connection;
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| match frame.data_ref() {
                Some(data) if data.len() >= SMALL_BYTES => {
                    let data = frame.into_data().unwrap_or_default();
                    Frame::data(Bytes::from_owner(Piece::new(data, connection.clone())))
                }
                // Not counted in bytes; that it was asked for shows that the client takes what is sent.
                Some(_) => {
                    connection.unsent.moved.fetch_add(1, Ordering::Relaxed);
                    frame
                }
                None => frame,
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
        connection.unsent.take_answer(data.len());
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
        self.connection.unsent.give_back_answer(self.data.len());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures::FutureExt;
    use futures::task::noop_waker_ref;
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::super::unsent::{ALL_BYTES_MAX, CONNECTION_BYTES_MIN, STALL, StallWatch, UNIT_BYTES};
    use super::*;

    fn connection(all: &Arc<AtomicUsize>) -> Arc<ConnectionInfo> {
        ConnectionInfo::of_test(Arc::default(), all.clone())
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

    fn small(connection: &Arc<ConnectionInfo>) -> Outgoing<Full<Bytes>> {
        Outgoing::new(Full::new(Bytes::from_static(b"x")), OpenCall::new(connection.clone()))
    }

    #[tokio::test]
    async fn open_calls_do_not_keep_answers_waiting() {
        // Cause: what open calls count was taken for bytes that will be sent. On a connection with hundreds of watches, whoever had
        // to wait for room was not woken again, and the watch sent nothing any more.
        let connection = connection(&Arc::new(AtomicUsize::new(ALL_BYTES_MAX)));
        let calls = 2 * CONNECTION_BYTES_MIN / CALL_BYTES;
        let _calls: Vec<_> = (0..calls).map(|_| OpenCall::new(connection.clone())).collect();
        let first = kept(&connection, CONNECTION_BYTES_MIN).now_or_never().expect("each connection may have that");
        let mut more = small(&connection);
        let mut frame = more.frame();
        let mut cx = Context::from_waker(noop_waker_ref());
        assert!(Pin::new(&mut frame).poll(&mut cx).is_pending());
        drop(first);
        assert!(connection.unsent.waiting.lock().is_empty());
        assert!(Pin::new(&mut frame).poll(&mut cx).is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_goes_on_when_other_connections_have_sent_theirs() {
        // Cause: only what the connection itself gave back woke its answers, and one stream that is not read gives nothing back.
        let all = Arc::new(AtomicUsize::new(ALL_BYTES_MAX));
        let connection = connection(&all);
        let _not_read = kept(&connection, CONNECTION_BYTES_MIN).await;
        let mut more = small(&connection);
        let mut frame = more.frame();
        assert!(Pin::new(&mut frame).poll(&mut Context::from_waker(noop_waker_ref())).is_pending());
        all.fetch_sub(ALL_BYTES_MAX, Ordering::Relaxed);
        let mut watch = StallWatch::default();
        let stalled = std::future::poll_fn(|cx| watch.poll(&connection.unsent, cx));
        assert!(tokio::time::timeout(STALL * 2, stalled).await.is_err(), "there is room");
        assert!(connection.unsent.waiting.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_nothing_to_take_is_not_cut_off() {
        // Cause: any open call counted as an answer that is not taken. While other clients had much unsent, connections whose watches
        // had no events, or whose calls had small answers, were closed after ten seconds.
        let connection = connection(&Arc::new(AtomicUsize::new(ALL_BYTES_MAX)));
        let no_events = futures::stream::pending::<Result<Frame<Bytes>, std::convert::Infallible>>();
        let mut idle = Outgoing::new(StreamBody::new(no_events), OpenCall::new(connection.clone()));
        assert!(futures::poll!(idle.frame()).is_pending());
        let mut watch = StallWatch::default();
        let stalled = std::future::poll_fn(|cx| watch.poll(&connection.unsent, cx));
        tokio::pin!(stalled);
        assert!(tokio::time::timeout(STALL * 5, &mut stalled).await.is_err(), "nothing waits for the client");
        for _ in 0..10 {
            // A call that is being answered each time one looks.
            let _answered = small(&connection);
            assert!(tokio::time::timeout(STALL / 2, &mut stalled).await.is_err(), "answers are taken");
        }
        let _not_taken = small(&connection);
        assert!(tokio::time::timeout(STALL * 5, &mut stalled).await.is_ok());
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
