use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use prometheus::IntCounter;
use rustix::pipe::{SpliceFlags, splice};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use super::first_bytes::FirstBytes;
use super::pool::{self, CHUNK_BYTES, Pipe, SPLICE_BYTES};
use super::stream::Stream;

/// Full reads in a row after which a direction stops copying.
const FULL_READS_TO_SPLICE: u8 = 4;
/// Short splices in a row after which it copies again.
const SHORT_READS_TO_COPY: u8 = 4;
/// Bytes of one poll; then the other connections of the thread get their turn.
const TURN_BYTES: usize = 256 * 1024;

/// One direction of a connection: reads from one socket, writes to the other, ends with the half-close.
///
/// Memory is lent for the length of a poll, unless the reader is slow: then what was read and not taken yet stays, one
/// chunk or one pipe, and nothing more is read. Not a future: the [`Pump`](super::pump::Pump) polls both directions.
#[derive(Debug)]
pub(super) struct Flow {
    held: Held,
    /// Consecutive reads that count towards the other way of moving: full ones while copying, short ones while splicing.
    streak: u8,
    splicing: bool,
    ended: bool,
}

/// What is read and not written yet.
#[derive(Debug)]
enum Held {
    Nothing,
    /// `chunk[start..end]`.
    Chunk {
        chunk: Box<[u8]>,
        start: usize,
        end: usize,
    },
    /// That many bytes in a pipe; never zero.
    Pipe {
        pipe: Pipe,
        bytes: usize,
    },
}

/// Where a flow counts its bytes.
pub(super) struct FlowCounters<'a> {
    pub(super) bytes: &'a IntCounter,
    /// Grows with each byte that is read or written on this connection, in either direction. Shows that it is in use: what a slow
    /// reader takes of bytes that were read long ago counts, too.
    pub(super) activity: &'a Cell<u64>,
    pub(super) spliced: &'a IntCounter,
}

impl FlowCounters<'_> {
    fn note_activity(&self, bytes: usize) {
        self.activity.set(self.activity.get() + bytes as u64);
    }
}

/// Which socket failed.
#[derive(Debug)]
pub(super) enum FlowError {
    /// The source, by a reset or a dead network: what it sent last is lost.
    Read,
    /// The destination, which takes no more.
    Write(io::Error),
}

impl Flow {
    pub(super) fn new() -> Self {
        Self { held: Held::Nothing, streak: 0, splicing: false, ended: false }
    }

    /// A direction of which something is read already.
    pub(super) fn after(first: FirstBytes) -> Self {
        Self { held: Held::Chunk { chunk: first.chunk, start: 0, end: first.end }, ..Self::new() }
    }

    /// Moves what can be moved now. Ready once the source has ended and everything is passed on, its end included.
    ///
    /// `from_was_reset` says that the source's socket failed while it was written to: then the end of its bytes is
    /// not an end that it meant.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        (from, from_was_reset): (&mut Stream, bool),
        to: &mut Stream,
        counters: &FlowCounters<'_>,
    ) -> Poll<Result<(), FlowError>> {
        let mut moved = 0;
        while moved < TURN_BYTES {
            ready!(self.poll_flush(cx, to, counters)).map_err(FlowError::Write)?;
            if self.ended && from_was_reset {
                return Poll::Ready(Err(FlowError::Read));
            }
            if self.ended {
                return Pin::new(to).poll_shutdown(cx).map_err(FlowError::Write);
            }
            let bytes = if self.splicing {
                ready!(self.poll_splice(cx, from, to, counters))?
            } else {
                ready!(self.poll_copy(cx, from, to))?
            };
            counters.bytes.inc_by(bytes as u64);
            counters.note_activity(bytes);
            self.ended = bytes == 0;
            moved += bytes;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what is held until nothing is.
    fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Stream,
        counters: &FlowCounters<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match &mut self.held {
                Held::Nothing => return Poll::Ready(Ok(())),
                Held::Chunk { chunk, start, end } => {
                    let written = ready!(Pin::new(&mut *to).poll_write(cx, &chunk[*start..*end]))?;
                    counters.note_activity(written);
                    *start += written;
                    if start < end {
                        continue;
                    }
                }
                Held::Pipe { pipe, bytes } => {
                    let written = ready!(poll_splice_out(cx, pipe, *bytes, to))?;
                    counters.note_activity(written);
                    *bytes -= written;
                    if *bytes > 0 {
                        continue;
                    }
                }
            }
            match std::mem::replace(&mut self.held, Held::Nothing) {
                Held::Chunk { chunk, .. } => pool::put_chunk(chunk),
                Held::Pipe { pipe, .. } => pool::put_pipe(pipe),
                Held::Nothing => {}
            }
        }
    }

    /// Reads once and writes the same bytes at once; what the destination does not take is held.
    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        to: &mut Stream,
    ) -> Poll<Result<usize, FlowError>> {
        let moved = pool::with_scratch(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(from).poll_read(cx, &mut buffer)).map_err(|_| FlowError::Read)?;
            let read = buffer.filled();
            let written = match read {
                [] => 0,
                _ => match Pin::new(to).poll_write(cx, read) {
                    Poll::Ready(written) => written.map_err(FlowError::Write)?,
                    Poll::Pending => 0,
                },
            };
            Poll::Ready(Ok((read.len(), written)))
        });
        let (bytes, written) = ready!(moved)?;
        if written < bytes {
            self.held = Held::Chunk { chunk: pool::take_scratch(), start: written, end: bytes };
        }
        self.note(bytes == CHUNK_BYTES, FULL_READS_TO_SPLICE);
        Poll::Ready(Ok(bytes))
    }

    /// Moves pages from the source into a pipe and on to the destination.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        to: &mut Stream,
        counters: &FlowCounters<'_>,
    ) -> Poll<Result<usize, FlowError>> {
        // Asked first: no pipe is taken for a source that is silent.
        ready!(from.poll_read_ready(cx)).map_err(|_| FlowError::Read)?;
        let Some(pipe) = pool::take_pipe() else {
            self.splicing = false;
            self.streak = 0;
            return self.poll_copy(cx, from, to);
        };
        let bytes = match poll_splice_in(cx, from, &pipe) {
            Poll::Ready(Ok(bytes)) if bytes > 0 => bytes,
            outcome => {
                pool::put_pipe(pipe);
                return outcome.map_err(|_| FlowError::Read);
            }
        };
        self.held = Held::Pipe { pipe, bytes };
        counters.spliced.inc_by(bytes as u64);
        self.note(bytes < CHUNK_BYTES, SHORT_READS_TO_COPY);
        Poll::Ready(Ok(bytes))
    }

    /// Counts consecutive reads that count towards a change, and changes after enough of them.
    fn note(&mut self, speaks_for_change: bool, enough: u8) {
        self.streak = if speaks_for_change { self.streak + 1 } else { 0 };
        if self.streak == enough {
            self.splicing = !self.splicing;
            self.streak = 0;
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if let Held::Pipe { pipe, .. } = std::mem::replace(&mut self.held, Held::Nothing) {
            pool::drop_pipe(pipe);
        }
    }
}

fn flags() -> SpliceFlags {
    SpliceFlags::MOVE | SpliceFlags::NONBLOCK
}

fn poll_splice_in(cx: &mut Context<'_>, from: &Stream, pipe: &Pipe) -> Poll<io::Result<usize>> {
    loop {
        ready!(from.poll_read_ready(cx))?;
        let spliced = from.try_io(Interest::READABLE, || {
            splice(from, None, &pipe.writer, None, SPLICE_BYTES, flags()).map_err(io::Error::from)
        });
        match spliced {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return Poll::Ready(outcome),
        }
    }
}

fn poll_splice_out(cx: &mut Context<'_>, pipe: &Pipe, bytes: usize, to: &Stream) -> Poll<io::Result<usize>> {
    loop {
        ready!(to.poll_write_ready(cx))?;
        let spliced = to.try_io(Interest::WRITABLE, || {
            splice(&pipe.reader, None, to, None, bytes, flags()).map_err(io::Error::from)
        });
        match spliced {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return Poll::Ready(outcome),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn what_a_slow_reader_takes_is_activity_even_if_nothing_is_read() {
        // Cause: only reads counted, and --idle-timeout reset a connection whose reader was still taking what had been read before.
        let (silent, _client) = UnixStream::pair().unwrap();
        let (endpoint, mut reader) = UnixStream::pair().unwrap();
        let (mut from, mut to) = (Stream::Unix(silent), Stream::Unix(endpoint));
        let (counter, activity) = (IntCounter::new("c", "c").unwrap(), Cell::new(0));
        let counters = FlowCounters { bytes: &counter, activity: &activity, spliced: &counter };
        // The buffer of the socket is full, as that of a slow reader is.
        std::future::poll_fn(|cx| to.poll_write_ready(cx)).await.unwrap();
        let mut filled = 0;
        while let Ok(written) = to.try_io(Interest::WRITABLE, || Ok(rustix::io::write(&to, &[0; 4096])?)) {
            filled += written;
        }
        let held = FirstBytes { chunk: pool::take_chunk(), end: CHUNK_BYTES };
        let mut flow = Flow::after(held);
        let mut polled = async || {
            let poll = |cx: &mut Context<'_>| {
                assert!(flow.poll(cx, (&mut from, false), &mut to, &counters).is_pending());
                Poll::Ready(activity.get())
            };
            std::future::poll_fn(poll).await
        };
        assert_eq!(polled().await, 0, "no room in the buffer");
        let mut taken = vec![0; filled];
        reader.read_exact(&mut taken).await.unwrap();
        let all_taken = async {
            while polled().await < CHUNK_BYTES as u64 {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), all_taken).await.expect("what is written counts");
        assert_eq!(counter.get(), 0, "nothing was read");
    }
}
