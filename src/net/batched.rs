use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Output that is collected before the stream is written; what goes beyond it is written with it.
const BATCH_BYTES: usize = 16 * 1024;
/// Parts of one write, what was collected included; the HTTP/2 library writes two.
const SLICES_MAX: usize = 4;

/// The stream of one HTTP/2 connection, whose output is collected while the connection is polled.
///
/// The HTTP/2 library writes and flushes the stream once for each DATA frame of 256 bytes or more, which was 40 % of the
/// CPU time of a cached range. Its flushes are not passed on: whoever polls the connection calls [`Batch::poll_flush`] after
/// each poll. Output of HTTP/1 is written as it comes.
#[derive(Debug)]
pub struct Batched<I>(Arc<Mutex<Output<I>>>);

/// Writes what a [`Batched`] stream has collected.
#[derive(Debug)]
pub struct Batch<I>(Arc<Mutex<Output<I>>>);

#[derive(Debug)]
struct Output<I> {
    /// None once it was taken out.
    io: Option<I>,
    /// Whether output is collected; not known before the first of it.
    collects: Option<bool>,
    collected: Vec<u8>,
    /// How much of it is written.
    written: usize,
    /// Whether the stream below has taken bytes that it may still hold: TLS keeps what a full socket does not take, and sends
    /// it when it is written to or flushed again.
    unflushed: bool,
}

/// A stream that collects, and what writes it.
pub fn batched<I>(io: I) -> (Batched<I>, Batch<I>) {
    let output = Output { io: Some(io), collects: None, collected: Vec::new(), written: 0, unflushed: false };
    let output = Arc::new(Mutex::new(output));
    (Batched(output.clone()), Batch(output))
}

impl<I> Batched<I> {
    /// The stream below; none when it was taken out before.
    pub fn into_inner(self) -> Option<I> {
        self.0.lock().io.take()
    }
}

impl<I: AsyncWrite + Unpin> Batch<I> {
    /// Writes what was collected, and flushes what was written; ready when the stream below holds nothing of it.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut output = self.0.lock();
        if output.io.is_none() {
            return Poll::Ready(Ok(()));
        }
        ready!(output.poll_written(cx))?;
        if output.unflushed {
            ready!(Pin::new(output.io()?).poll_flush(cx))?;
            output.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl<I> Output<I> {
    fn io(&mut self) -> io::Result<&mut I> {
        self.io.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Notes that so much of what was collected is written.
    fn advance(&mut self, bytes: usize) {
        self.written += bytes;
        if self.written >= self.collected.len() {
            // Idle connections hold no memory for it.
            self.collected = Vec::new();
            self.written = 0;
        }
    }
}

impl<I: AsyncWrite + Unpin> Output<I> {
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.collected.is_empty() {
            let io = self.io.as_mut().ok_or(io::ErrorKind::NotConnected)?;
            let bytes = ready!(Pin::new(io).poll_write(cx, &self.collected[self.written..]))?;
            if bytes == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.advance(bytes);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_output(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        let Some(first) = slices.iter().find_map(|slice| slice.first()) else { return Poll::Ready(Ok(0)) };
        // HTTP/2 begins with its preface at a client, and with a frame of less than 64 KiB at a server.
        let collects = *self.collects.get_or_insert(matches!(first, 0 | b'P'));
        loop {
            let left = self.collected.len() - self.written;
            if collects && left + length <= BATCH_BYTES {
                if self.collected.len() + length > self.collected.capacity() {
                    self.collected.drain(..self.written);
                    self.written = 0;
                    self.collected.reserve_exact(BATCH_BYTES - self.collected.len());
                }
                slices.iter().for_each(|slice| self.collected.extend_from_slice(slice));
                return Poll::Ready(Ok(length));
            }
            let io = self.io.as_mut().ok_or(io::ErrorKind::NotConnected)?;
            let mut parts = [IoSlice::new(&[]); SLICES_MAX];
            parts[0] = IoSlice::new(&self.collected[self.written..]);
            let count = slices.len().min(SLICES_MAX - 1);
            parts[1..=count].copy_from_slice(&slices[..count]);
            let parts = &parts[usize::from(left == 0)..=count];
            let taken = Pin::new(io).poll_write_vectored(cx, parts);
            // A write that is not taken is repeated when the stream has room, and sends what the stream holds. A flush
            // meanwhile would look to `Paced` as if the client took its answers.
            self.unflushed = taken.is_ready();
            let bytes = ready!(taken)?;
            if bytes == 0 {
                return Poll::Ready(Ok(0));
            }
            if left > 0 {
                self.advance(bytes.min(left));
            }
            if bytes > left {
                return Poll::Ready(Ok(bytes - left));
            }
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Batched<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.0.lock().io()?).poll_read(cx, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Batched<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().poll_output(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_output(cx, slices)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut output = self.0.lock();
        if output.collects == Some(true) {
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(output.io()?).poll_flush(cx))?;
        output.unflushed = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut output = self.0.lock();
        ready!(output.poll_written(cx))?;
        ready!(Pin::new(output.io()?).poll_shutdown(cx))?;
        output.unflushed = false;
        Poll::Ready(Ok(()))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.lock().io.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Waker;

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::net::testing::Authority;
    use crate::net::{ClientTls, ServerTls};

    /// A stream that takes so many bytes, and notes its writes.
    #[derive(Debug, Default)]
    struct Taking {
        room: usize,
        writes: Vec<Vec<u8>>,
        flushes: usize,
        shut: bool,
    }

    impl AsyncWrite for Taking {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let mut bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            bytes.truncate(self.room);
            if bytes.is_empty() {
                return Poll::Pending;
            }
            self.room -= bytes.len();
            self.writes.push(bytes);
            let written = self.writes.last().map_or(0, Vec::len);
            Poll::Ready(Ok(written))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.shut = true;
            Poll::Ready(Ok(()))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }
    }

    fn taking(room: usize) -> (Batched<Taking>, Batch<Taking>) {
        batched(Taking { room, ..Taking::default() })
    }

    /// A stream that takes everything and holds what there is no room for, as TLS does.
    #[derive(Debug, Default)]
    struct Holding {
        room: usize,
        held: usize,
        sent: usize,
        flushes: usize,
    }

    impl AsyncWrite for Holding {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.held += bytes.len();
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            let sent = self.held.min(self.room);
            self.room -= sent;
            self.held -= sent;
            self.sent += sent;
            if self.held == 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.poll_flush(cx)
        }
    }

    /// What was taken of one write of these parts, and of one flush.
    fn write(stream: &mut Batched<impl AsyncWrite + Unpin>, parts: &[&[u8]]) -> Poll<usize> {
        let mut cx = Context::from_waker(Waker::noop());
        let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let taken = Pin::new(&mut *stream).poll_write_vectored(&mut cx, &slices).map(|taken| taken.expect("no error"));
        assert!(Pin::new(stream).poll_flush(&mut cx).is_ready());
        taken
    }

    fn flush(batch: &Batch<impl AsyncWrite + Unpin>) -> bool {
        batch.poll_flush(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn writes(batch: &Batch<Taking>) -> Vec<Vec<u8>> {
        batch.0.lock().io.as_ref().expect("not taken out").writes.clone()
    }

    #[test]
    fn frames_of_one_poll_are_one_write() {
        let (mut stream, batch) = taking(usize::MAX);
        for _ in 0..8 {
            assert_eq!(write(&mut stream, &[&[0; 9], &[7; 300]]), Poll::Ready(309));
        }
        assert!(writes(&batch).is_empty());
        assert!(flush(&batch));
        assert_eq!(writes(&batch), [[&[0; 9][..], &[7; 300]].concat().repeat(8)]);
        assert_eq!(batch.0.lock().collected.capacity(), 0, "nothing is held for an idle connection");
    }

    #[test]
    fn long_frames_are_not_copied() {
        let (mut stream, batch) = taking(usize::MAX);
        assert_eq!(write(&mut stream, &[&[0; 9], &[7; 300]]), Poll::Ready(309));
        assert_eq!(write(&mut stream, &[&[0; 9], &[8; BATCH_BYTES]]), Poll::Ready(9 + BATCH_BYTES));
        assert_eq!(writes(&batch), [[&[0; 9][..], &[7; 300], &[0; 9], &[8; BATCH_BYTES]].concat()]);
    }

    #[test]
    fn http1_is_written_at_once() {
        let (mut stream, batch) = taking(usize::MAX);
        assert_eq!(write(&mut stream, &[b"HTTP/1.1 200 OK\r\n"]), Poll::Ready(17));
        assert_eq!(write(&mut stream, &[b"\0\0\0"]), Poll::Ready(3));
        assert_eq!(writes(&batch), [&b"HTTP/1.1 200 OK\r\n"[..], b"\0\0\0"]);
    }

    #[test]
    fn output_goes_before_the_end() {
        let (mut stream, batch) = taking(200);
        assert_eq!(write(&mut stream, &[&[0; 300]]), Poll::Ready(300));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut stream).poll_shutdown(&mut cx).is_pending());
        batch.0.lock().io.as_mut().expect("not taken out").room = 200;
        assert!(Pin::new(&mut stream).poll_shutdown(&mut cx).is_ready());
        let inner = stream.into_inner().expect("not taken out");
        assert!(inner.shut);
        assert_eq!(inner.writes.concat(), [0; 300]);
        assert!(flush(&batch), "the stream is gone");
    }

    // TLS takes a write that the socket does not, and only a flush or another write sends it: what it held when the socket
    // was full stayed there until the next answer.
    #[test]
    fn what_the_stream_below_holds_is_flushed_until_it_is_sent() {
        for length in [300, BATCH_BYTES + 1] {
            let (mut stream, batch) = batched(Holding { room: 200, ..Holding::default() });
            assert_eq!(write(&mut stream, &[&vec![0; length]]), Poll::Ready(length));
            assert!(!flush(&batch), "there is room for 200 bytes only");
            batch.0.lock().io.as_mut().expect("not taken out").room = usize::MAX;
            assert!(flush(&batch) && flush(&batch));
            let output = batch.0.lock();
            let io = output.io.as_ref().expect("not taken out");
            assert_eq!((io.sent, io.held, io.flushes), (length, 0, 2), "and no more often than needed");
        }
    }

    #[test]
    fn a_write_that_waits_is_not_flushed() {
        let (mut stream, batch) = taking(BATCH_BYTES);
        let frame = [0; 2 * BATCH_BYTES];
        assert_eq!(write(&mut stream, &[&frame]), Poll::Ready(BATCH_BYTES));
        // Long enough not to be collected.
        assert!(write(&mut stream, &[&frame]).is_pending());
        assert!(flush(&batch));
        assert_eq!(batch.0.lock().io.as_ref().expect("not taken out").flushes, 0);
    }

    #[tokio::test]
    async fn a_tls_client_that_sends_nothing_more_gets_the_whole_answer() {
        const FRAME_BYTES: usize = 1000;
        const FRAMES: usize = 60;
        let authority = Authority::new();
        let accepting = ServerTls::mutual(authority.identity("localhost"), &authority.authorities()).expect("usable");
        let dialling = ClientTls::verifying(Some(authority.identity("a client")), &authority.authorities());
        let dialling = dialling.expect("usable");
        let (near, far) = duplex(4096);
        let serving = async {
            let (stream, _) = accepting.accept(far, None).await.expect("a client");
            let (mut stream, batch) = batched(stream);
            for _ in 0..FRAMES {
                stream.write_all(&[0; FRAME_BYTES]).await.expect("collected or written");
            }
            poll_fn(|cx| batch.poll_flush(cx)).await.expect("sent");
        };
        let asking = async {
            let mut stream = dialling.connect("localhost", near).await.expect("a server");
            let mut answer = vec![1; FRAME_BYTES * FRAMES];
            // A connection that ends before is an error.
            stream.read_exact(&mut answer).await.expect("all of the answer");
            assert!(answer.iter().all(|&byte| byte == 0));
        };
        tokio::join!(serving, asking);
    }

    proptest! {
        /// Whatever the stream takes at a time: no byte is lost, doubled or out of order, and no more is held than allowed.
        #[test]
        fn every_byte_in_order(steps in prop::collection::vec((0usize..40_000, 0usize..40_000, 0usize..60_000, any::<bool>()), 1..40)) {
            let (mut stream, batch) = taking(0);
            let mut expected = vec![0];
            assert_eq!(write(&mut stream, &[&[0]]), Poll::Ready(1));
            let mut next = 0u8;
            for (first, second, room, flushes) in steps {
                batch.0.lock().io.as_mut().expect("not taken out").room += room;
                let mut part = |length| (0..length).map(|_| { next = next.wrapping_add(1); next }).collect::<Vec<u8>>();
                let (first, second) = (part(first), part(second));
                let both = [&first[..], &second].concat();
                if let Poll::Ready(taken) = write(&mut stream, &[&first, &second]) {
                    expected.extend_from_slice(&both[..taken]);
                    assert_eq!(taken == 0, both.is_empty());
                }
                if flushes {
                    flush(&batch);
                }
                let held = { let output = batch.0.lock(); output.collected.len() - output.written };
                assert!(held <= BATCH_BYTES);
                assert_eq!(writes(&batch).concat().len() + held, expected.len());
            }
            batch.0.lock().io.as_mut().expect("not taken out").room = usize::MAX;
            prop_assert!(flush(&batch));
            prop_assert!(writes(&batch).concat() == expected);
        }
    }
}
