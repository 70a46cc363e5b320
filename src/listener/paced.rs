use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Input of one connection that is read before the tasks of its streams get to run.
///
/// HTTP/2 keeps what was read and not yet taken by a handler, and counts it against floods: small DATA frames, and
/// streams that are reset before a handler has seen them. A handler that is only waiting for its turn is no flood.
const TURN_BYTES: usize = 16 * 1024;

/// Input that is read while the client does not read what it was answered.
///
/// Answers without a body, resets and acknowledgements are not subject to flow control: only this bounds how many wait
/// for a client. What is read once the client has taken everything is not limited.
const UNREAD_INPUT_BYTES: usize = 256 * 1024;

const HTTP2_PREFACE: &[u8] = b"PRI";

/// The stream of one connection, read no faster than its requests are handled and its answers are read.
#[derive(Debug)]
pub(super) struct Paced<I> {
    io: I,
    /// What may be read before this connection lets others run.
    turn: usize,
    /// What may be read before output moves again; none while no output waits.
    unread: Option<usize>,
    /// The last write was not taken.
    output_waits: bool,
    /// How much of the preface has come; none for another protocol, which is not paced: of two members that write to
    /// each other, each must go on reading.
    preface: Option<usize>,
    reader: Option<Waker>,
}

impl<I> Paced<I> {
    pub(super) fn new(io: I) -> Self {
        Self { io, turn: TURN_BYTES, unread: None, output_waits: false, preface: Some(0), reader: None }
    }

    pub(super) fn into_inner(self) -> I {
        self.io
    }

    fn recognise(&mut self, input: &[u8]) {
        if let Some(seen) = self.preface.filter(|&seen| seen < HTTP2_PREFACE.len()) {
            let expected = &HTTP2_PREFACE[seen..];
            let common = expected.len().min(input.len());
            self.preface = (expected[..common] == input[..common]).then_some(seen + common);
        }
    }

    fn wrote<T>(&mut self, outcome: Poll<T>) -> Poll<T> {
        self.output_waits = outcome.is_pending();
        if outcome.is_ready()
            && let Some(reader) = self.reader.take()
        {
            reader.wake();
        }
        outcome
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Paced<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.preface.is_none() {
            return Pin::new(&mut this.io).poll_read(cx, buffer);
        }
        if this.turn == 0 {
            this.turn = TURN_BYTES;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match this.unread {
            _ if !this.output_waits => this.unread = None,
            Some(0) => {
                this.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Some(_) => {}
            None => this.unread = Some(UNREAD_INPUT_BYTES),
        }
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut this.io).poll_read(cx, buffer);
        if outcome.is_pending() {
            this.turn = TURN_BYTES;
            return outcome;
        }
        let input = &buffer.filled()[before..];
        this.recognise(input);
        // A read is not cut short, so one buffer more than allowed may be read.
        this.turn = this.turn.saturating_sub(input.len());
        this.unread = this.unread.map(|left| left.saturating_sub(input.len()));
        outcome
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Paced<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.wrote(outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_flush(cx);
        self.wrote(outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.wrote(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// Reads until there is no more for now; answers with how much that was.
    fn read(paced: &mut Paced<DuplexStream>) -> usize {
        let mut cx = Context::from_waker(Waker::noop());
        let mut read = 0;
        loop {
            let mut bytes = [0; 1024];
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut *paced).poll_read(&mut cx, &mut buffer) {
                Poll::Ready(outcome) => outcome.expect("no error"),
                Poll::Pending => return read,
            }
            read += buffer.filled().len();
        }
    }

    fn write(paced: &mut Paced<DuplexStream>) -> Poll<io::Result<usize>> {
        Pin::new(paced).poll_write(&mut Context::from_waker(Waker::noop()), &[0; 1024])
    }

    /// Waits outside of a runtime, whose budget for one task would end a read early, too.
    fn wait<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(tokio::task::unconstrained(future))
    }

    fn connection(preface: &[u8], input: usize) -> (Paced<DuplexStream>, DuplexStream) {
        let (near, mut far) = duplex(8 << 20);
        wait(far.write_all(&[preface, &vec![0; input]].concat())).expect("room");
        (Paced::new(near), far)
    }

    #[test]
    fn others_run_after_each_turn() {
        let (mut paced, _far) = connection(b"PRI * HTTP/2.0", 1 << 20);
        for _ in 0..3 {
            let turn = read(&mut paced);
            assert!((TURN_BYTES..TURN_BYTES + 1024).contains(&turn), "{turn}");
        }
    }

    #[test]
    fn who_does_not_read_is_not_read_without_end() {
        let (mut paced, mut far) = connection(b"PRI * HTTP/2.0", 2 << 20);
        while write(&mut paced).is_ready() {}
        let mut taken = 0;
        while let turn @ 1.. = read(&mut paced) {
            taken += turn;
        }
        assert!((UNREAD_INPUT_BYTES..UNREAD_INPUT_BYTES + 2048).contains(&taken), "{taken}");
        wait(far.read_exact(&mut vec![0; 1 << 20])).expect("output");
        assert!(write(&mut paced).is_ready());
        assert!(read(&mut paced) > 0, "goes on once output moves");
    }

    #[test]
    fn only_http2_is_paced() {
        let (mut paced, _far) = connection(b"GET / HTTP/1.1\r\n", 2 << 20);
        while write(&mut paced).is_ready() {}
        assert!(read(&mut paced) > 2 << 20);
    }
}
