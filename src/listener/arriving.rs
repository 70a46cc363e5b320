use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::codegen::StdError;

use super::connection_info::ConnectionInfo;
use super::unfinished::refusal;
use crate::pb::frame::{Messages, Part};

/// An unfinished request of which nothing came for so long is given up while others may soon be refused.
const STALL: Duration = Duration::from_secs(10);

/// Chunks below are joined, up to so many bytes.
const SMALL_BYTES: usize = 4 * 1024;

/// A request body of gRPC messages whose bytes are counted until they are handed on whole.
///
/// A message is handed on once all of it has come: the reader reserves what its head announces.
#[derive(Debug)]
pub struct Arriving<B> {
    body: B,
    connection: Option<Arc<ConnectionInfo>>,
    ends: Ends,
    /// Chunks of the unfinished message.
    held: VecDeque<Bytes>,
    /// Its last small chunks, in one: kept apart, each would cost many times its bytes.
    small: BytesMut,
    /// Chunks that go on.
    whole: VecDeque<Bytes>,
    /// What `connection` counts of them.
    taken: usize,
    /// What it counts until the reader of a collected body is done with it.
    collected: Option<Arc<CollectedBytes>>,
    stall: Option<Pin<Box<Sleep>>>,
    patience: Duration,
}

/// The count of a collected body.
#[derive(Debug)]
pub struct CollectedBytes {
    connection: Option<Arc<ConnectionInfo>>,
    bytes: AtomicUsize,
}

impl CollectedBytes {
    /// Counts as many bytes as the reader makes of what came, if those are more.
    ///
    /// # Errors
    /// When there are too many on the connection, or on all.
    pub fn grow_to(&self, bytes: usize) -> Result<(), Status> {
        match bytes.saturating_sub(self.bytes.load(Ordering::Relaxed)) {
            0 => Ok(()),
            more => self.take(more),
        }
    }

    fn take(&self, bytes: usize) -> Result<(), Status> {
        if let Some(connection) = &self.connection {
            connection.unfinished.take(bytes)?;
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Drop for CollectedBytes {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.unfinished.give_back(self.bytes.load(Ordering::Relaxed));
        }
    }
}

impl<B> Arriving<B> {
    /// Hands on whole messages. One that announces more than `message_bytes_max` is handed on as it comes: the reader
    /// refuses it by its head.
    pub fn messages(body: B, connection: Option<Arc<ConnectionInfo>>, message_bytes_max: usize) -> Self {
        Self::new(body, connection, message_bytes_max, None)
    }

    /// Hands on what comes, for a reader that collects it: all of it counts until this and the [`CollectedBytes`] are
    /// dropped.
    pub fn collected(body: B, connection: Option<Arc<ConnectionInfo>>) -> (Self, Arc<CollectedBytes>) {
        let collected = Arc::new(CollectedBytes { connection: connection.clone(), bytes: AtomicUsize::new(0) });
        (Self::new(body, connection, 0, Some(collected.clone())), collected)
    }

    fn new(
        body: B,
        connection: Option<Arc<ConnectionInfo>>,
        message_bytes_max: usize,
        collected: Option<Arc<CollectedBytes>>,
    ) -> Self {
        let ends = Ends { messages: Messages::default(), bytes_max: message_bytes_max, refused: false };
        let (held, small, whole) = (VecDeque::new(), BytesMut::new(), VecDeque::new());
        Self { body, connection, ends, held, small, whole, taken: 0, collected, stall: None, patience: STALL }
    }

    fn take(&mut self, bytes: usize) -> Result<(), Status> {
        if let Some(connection) = &self.connection {
            connection.unfinished.take(bytes)?;
            self.taken += bytes;
        }
        Ok(())
    }

    fn give_back(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        if let Some(connection) = self.connection.as_ref().filter(|_| taken > 0) {
            connection.unfinished.give_back(taken);
        }
    }

    /// Whether nothing came for too long.
    fn stalls(&mut self, cx: &mut Context<'_>) -> bool {
        let collected = self.collected.as_ref().map_or(0, |collected| collected.bytes.load(Ordering::Relaxed));
        let taken = self.taken + collected;
        let Some(connection) = self.connection.as_ref().filter(|_| taken > 0) else { return false };
        let patience = self.patience;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        while stall.as_mut().poll(cx).is_ready() {
            if connection.unfinished.are_many() {
                return true;
            }
            stall.as_mut().reset(Instant::now() + patience);
        }
        false
    }

    /// Takes a chunk in; what can go on is in `whole` then.
    fn arrived(&mut self, mut chunk: Bytes, last: bool) -> Result<(), Status> {
        if let Some(stall) = &mut self.stall {
            stall.as_mut().reset(Instant::now() + self.patience);
        }
        if let Some(collected) = &self.collected {
            if !last || chunk.len() >= SMALL_BYTES {
                collected.take(chunk.len())?;
            }
            self.whole.push_back(chunk);
            return Ok(());
        }
        let whole = self.ends.scan(&chunk);
        if whole > 0 {
            self.give_back();
            self.release();
            self.whole.push_back(chunk.split_to(whole));
        }
        if !chunk.is_empty() {
            self.take(chunk.len())?;
            if chunk.len() < SMALL_BYTES {
                self.small.extend_from_slice(&chunk);
            }
            if chunk.len().max(self.small.len()) >= SMALL_BYTES {
                self.held.extend(Some(self.small.split().freeze()).filter(|small| !small.is_empty()));
            }
            if chunk.len() >= SMALL_BYTES {
                self.held.push_back(chunk);
            }
        }
        Ok(())
    }

    /// Whether a message has begun.
    fn holds(&self) -> bool {
        !self.held.is_empty() || !self.small.is_empty()
    }

    /// Lets go on what is held.
    fn release(&mut self) {
        self.whole.append(&mut self.held);
        self.whole.extend(Some(self.small.split().freeze()).filter(|small| !small.is_empty()));
    }
}

impl<B> Drop for Arriving<B> {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl<B> HttpBody for Arriving<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = &mut *self;
        loop {
            if let Some(chunk) = this.whole.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            let frame = match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Pending if this.stalls(cx) => return Poll::Ready(Some(Err(refusal().into()))),
                polled => ready!(polled),
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => {
                        let last = this.body.is_end_stream();
                        this.arrived(chunk, last)?;
                    }
                    // Trailers: no more data comes.
                    Err(frame) if !this.holds() => return Poll::Ready(Some(Ok(frame))),
                    Err(_) => this.release(),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None if !this.holds() => return Poll::Ready(None),
                // The reader refuses half a message.
                None => this.release(),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.whole.is_empty() && !self.holds() && self.body.is_end_stream()
    }
}

/// Where messages end.
#[derive(Debug)]
struct Ends {
    messages: Messages,
    bytes_max: usize,
    /// A message has come that the reader refuses: nothing is held back from then on.
    refused: bool,
}

impl Ends {
    /// How much of the chunk need not wait for more.
    fn scan(&mut self, chunk: &[u8]) -> usize {
        let (mut at, mut whole) = (0, 0);
        while at < chunk.len() && !self.refused {
            let (taken, part) = self.messages.next(&chunk[at..]);
            at += taken;
            if let Part::Begin(prefix) = part {
                self.refused = prefix.flag > 1 || prefix.length > self.bytes_max;
            }
            if self.messages.at_end() {
                whole = at;
            }
        }
        if self.refused { chunk.len() } else { whole }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::super::unfinished::{ALL_BYTES_MAX, CONNECTION_BYTES_MAX};
    use super::*;

    type Chunk = Result<Frame<Bytes>, StdError>;
    type Chunks = mpsc::Sender<Chunk>;

    fn body() -> (Chunks, StreamBody<ReceiverStream<Chunk>>) {
        let (chunks, receiver) = mpsc::channel(64);
        (chunks, StreamBody::new(ReceiverStream::new(receiver)))
    }

    async fn send(chunks: &Chunks, bytes: &[u8]) {
        chunks.send(Ok(Frame::data(Bytes::copy_from_slice(bytes)))).await.expect("open");
    }

    fn message(text: &str) -> Vec<u8> {
        [&[0][..], &(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
    }

    fn connection() -> (Arc<ConnectionInfo>, Arc<AtomicUsize>) {
        let all = Arc::new(AtomicUsize::new(0));
        (ConnectionInfo::of_test(all.clone(), Arc::default()), all)
    }

    /// What can be read now, and whether the body has ended.
    async fn read<B>(body: &mut Arriving<B>) -> (Vec<u8>, bool)
    where
        B: HttpBody<Data = Bytes, Error = StdError> + Unpin,
    {
        let mut read = Vec::new();
        loop {
            // A task's budget would make it pend early.
            match futures::poll!(tokio::task::unconstrained(body.frame())) {
                Poll::Pending => return (read, false),
                Poll::Ready(None) => return (read, true),
                Poll::Ready(Some(frame)) => read.extend(frame.expect("no error").into_data().expect("data")),
            }
        }
    }

    #[tokio::test]
    async fn messages_go_on_whole_however_they_are_cut() {
        let wire =
            [message("one"), message(""), message("three"), message(&"x".repeat(300)), message(&"y".repeat(20_000))]
                .concat();
        let ends = [8, 13, 23, 328, wire.len()];
        for step in (1..40).chain([100, 4_095, 4_096, 5_000, 20_300, wire.len()]) {
            let (chunks, inner) = body();
            let (connection, all) = connection();
            let mut body = Arriving::messages(inner, Some(connection), 20_000);
            let (mut sent, mut seen) = (0, Vec::new());
            for chunk in wire.chunks(step) {
                send(&chunks, chunk).await;
                sent += chunk.len();
                seen.extend(read(&mut body).await.0);
                let whole = ends.into_iter().take_while(|&end| end <= sent).last().unwrap_or(0);
                assert_eq!((seen.len(), all.load(Ordering::Relaxed)), (whole, sent - whole), "step {step} at {sent}");
            }
            drop(chunks);
            assert_eq!(read(&mut body).await, (Vec::new(), true));
            assert_eq!(seen, wire);
        }
    }

    #[tokio::test]
    async fn a_message_in_single_bytes_costs_its_bytes() {
        let (chunks, inner) = body();
        let mut body = Arriving::messages(inner, None, 100_000);
        for byte in &message(&"x".repeat(50_000))[..50_000] {
            send(&chunks, &[*byte]).await;
            assert!(read(&mut body).await.0.is_empty());
        }
        assert!(body.held.len() <= 50_000 / SMALL_BYTES && body.small.capacity() <= 2 * SMALL_BYTES);
    }

    #[tokio::test]
    async fn what_the_reader_refuses_does_not_wait() {
        let cut_off = &message("cut off")[..9];
        for wire in [&[0, 0, 0, 4, 0][..], &[2, 0, 0, 0, 1], cut_off] {
            let (chunks, inner) = body();
            let (connection, all) = connection();
            let mut body = Arriving::messages(inner, Some(connection), 1000);
            send(&chunks, wire).await;
            if wire == cut_off {
                assert_eq!(read(&mut body).await, (Vec::new(), false));
                drop(chunks);
            }
            assert_eq!(read(&mut body).await.0, wire);
            drop(body);
            assert_eq!(all.load(Ordering::Relaxed), 0);
        }
    }

    #[tokio::test]
    async fn a_full_connection_refuses_and_comes_free_again() {
        let (connection, all) = connection();
        connection.unfinished.take(CONNECTION_BYTES_MAX - 4).expect("room");
        for collected in [false, true] {
            let (chunks, inner) = body();
            let mut body = match collected {
                false => Arriving::messages(inner, Some(connection.clone()), 1000),
                true => Arriving::collected(inner, Some(connection.clone())).0,
            };
            send(&chunks, &message("too long")[..6]).await;
            let error = body.frame().await.expect("a frame").expect_err("no room");
            let status = error.downcast::<Status>().expect("a status");
            assert_eq!(
                (status.code(), status.message()),
                (tonic::Code::ResourceExhausted, "etcdserver: too many requests")
            );
        }
        connection.unfinished.give_back(CONNECTION_BYTES_MAX - 4);
        assert_eq!(all.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_stalled_request_is_given_up_when_room_is_short() {
        let (connection, all) = connection();
        let (chunks, inner) = body();
        let mut body = Arriving::messages(inner, Some(connection), 1000);
        body.patience = Duration::from_millis(1);
        send(&chunks, &message("stalled")[..6]).await;
        let waited = tokio::time::timeout(body.patience * 50, body.frame()).await;
        assert!(waited.is_err(), "there is room");
        all.fetch_add(ALL_BYTES_MAX / 2, Ordering::Relaxed);
        assert!(body.frame().await.expect("a frame").is_err());
        drop(chunks);
    }
}
