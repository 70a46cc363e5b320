use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::frames::{ACK, DATA, END_STREAM, Frames, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM};
use super::open_streams::OpenStreams;

/// Early pings that a client may send; one more ends its connection.
const STRIKES_MAX: u8 = 2;
/// Least time between two pings of a client that has no stream open.
const IDLE_MIN_TIME: Duration = Duration::from_secs(2 * 60 * 60);
/// Wait for the client to close its side after GOAWAY: closing with input unread could take GOAWAY from it.
const LINGER: Duration = Duration::from_secs(1);

const ENHANCE_YOUR_CALM: u32 = 0xb;
const TOO_MANY_PINGS: &[u8] = b"too_many_pings";

/// The stream of one connection, which ends when an HTTP/2 client pings more often than `--grpc-keepalive-min-time`
/// allows.
///
/// The rule is that of grpc-go's `EnforcementPolicy` without `PermitWithoutStream`, as etcd sets it: a ping is early if
/// it comes before the least time since the last one (two hours while no stream is open); the third early ping is
/// answered with GOAWAY `ENHANCE_YOUR_CALM`, debug data `too_many_pings`. A response or data sent since the last ping
/// forgives all. The HTTP/2 library answers pings without telling, so the heads of the frames are read here.
#[derive(Debug)]
pub(super) struct PingPolicy<I> {
    io: I,
    /// None for another protocol, or without a limit.
    policed: Option<Policed>,
}

#[derive(Debug)]
struct Policed {
    min_time: Duration,
    /// How much of the preface has come.
    preface_bytes: usize,
    input: Frames,
    output: Frames,
    open: OpenStreams,
    /// The newest stream of the client.
    newest: u32,
    last_ping: Option<Instant>,
    strikes: u8,
    /// HEADERS or DATA were sent since the last ping.
    sent: bool,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Open,
    /// GOAWAY is due once the frame that is being written has ended; so many of its bytes are written.
    GoAway(usize),
    /// GOAWAY is written. Input and further output are dropped.
    Linger(Pin<Box<Sleep>>),
}

impl Policed {
    fn new(min_time: Duration) -> Self {
        Self {
            min_time,
            preface_bytes: 0,
            input: Frames::default(),
            output: Frames::default(),
            open: OpenStreams::default(),
            newest: 0,
            last_ping: None,
            strikes: 0,
            sent: false,
            phase: Phase::Open,
        }
    }

    /// Looks at input; false when this is not HTTP/2.
    fn received(&mut self, mut bytes: &[u8]) -> bool {
        if self.preface_bytes < PREFACE.len() {
            let expected = &PREFACE[self.preface_bytes..];
            let common = expected.len().min(bytes.len());
            if bytes[..common] != expected[..common] {
                return false;
            }
            self.preface_bytes += common;
            bytes = &bytes[common..];
        }
        let mut input = std::mem::take(&mut self.input);
        input.walk(bytes, |head| match head.kind {
            HEADERS if head.stream > self.newest => {
                self.newest = head.stream;
                self.open.open(head.stream);
            }
            RST_STREAM => self.open.close(head.stream),
            PING if head.flags & ACK == 0 => self.pinged(Instant::now()),
            _ => {}
        });
        self.input = input;
        true
    }

    fn pinged(&mut self, now: Instant) {
        let last = self.last_ping.replace(now);
        if std::mem::take(&mut self.sent) {
            self.strikes = 0;
            return;
        }
        let least = if self.open.is_empty() { IDLE_MIN_TIME } else { self.min_time };
        if last.is_some_and(|last| now - last < least) {
            self.strikes = self.strikes.saturating_add(1);
        }
        if self.strikes > STRIKES_MAX && matches!(self.phase, Phase::Open) {
            self.phase = Phase::GoAway(0);
        }
    }

    /// Looks at output that was written.
    fn wrote(&mut self, bytes: &[u8]) {
        self.output.walk(bytes, |head| {
            let ends = match head.kind {
                DATA | HEADERS => {
                    self.sent = true;
                    head.flags & END_STREAM != 0
                }
                kind => kind == RST_STREAM,
            };
            if ends {
                self.open.close(head.stream);
            }
        });
    }

    fn go_away(&self) -> Vec<u8> {
        let payload = 8 + TOO_MANY_PINGS.len();
        let head = [0, 0, payload as u8, GOAWAY, 0, 0, 0, 0, 0];
        [&head[..], &self.newest.to_be_bytes(), &ENHANCE_YOUR_CALM.to_be_bytes(), TOO_MANY_PINGS].concat()
    }
}

impl<I> PingPolicy<I> {
    /// Without a limit when there is no `min_time`.
    pub(super) fn new(io: I, min_time: Option<Duration>) -> Self {
        Self { io, policed: min_time.map(Policed::new) }
    }

    pub(super) fn into_inner(self) -> I {
        self.io
    }
}

impl<I: AsyncWrite + Unpin> PingPolicy<I> {
    /// Writes GOAWAY if it is due and no frame is half written; ready once it is written and the output closed.
    fn poll_go_away(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(policed) = &mut self.policed else { return Poll::Pending };
        while let Phase::GoAway(written) = policed.phase {
            if policed.output.unfinished() > 0 {
                return Poll::Pending;
            }
            let frame = policed.go_away();
            let more = ready!(Pin::new(&mut self.io).poll_write(cx, &frame[written..]))?;
            if more == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            policed.phase = Phase::GoAway(written + more);
            if written + more == frame.len() {
                policed.phase = Phase::Linger(Box::pin(tokio::time::sleep(LINGER)));
                // Reading is what waits for the client from here on.
                cx.waker().wake_by_ref();
            }
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Writes through `write`, which gets what may be written of `bytes`.
    fn poll_output(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        write: impl FnOnce(Pin<&mut I>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Some(policed) = &mut self.policed else { return write(Pin::new(&mut self.io), cx) };
        match policed.phase {
            Phase::Open => {
                let written = ready!(write(Pin::new(&mut self.io), cx))?;
                let mut left = written;
                for slice in slices {
                    let part = left.min(slice.len());
                    policed.wrote(&slice[..part]);
                    left -= part;
                    if left == 0 {
                        break;
                    }
                }
                Poll::Ready(Ok(written))
            }
            Phase::GoAway(_) if policed.output.unfinished() > 0 => {
                let Some(bytes) = slices.iter().find(|slice| !slice.is_empty()) else { return Poll::Ready(Ok(0)) };
                let part = &bytes[..bytes.len().min(policed.output.unfinished())];
                let written = ready!(Pin::new(&mut self.io).poll_write(cx, part))?;
                policed.wrote(&part[..written]);
                Poll::Ready(Ok(written))
            }
            Phase::GoAway(_) | Phase::Linger(_) => {
                if let Poll::Ready(Err(error)) = self.poll_go_away(cx) {
                    return Poll::Ready(Err(error));
                }
                match self.policed {
                    Some(Policed { phase: Phase::GoAway(_), .. }) => Poll::Pending,
                    _ => Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum())),
                }
            }
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for PingPolicy<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let Some(policed) = &mut this.policed else { return Pin::new(&mut this.io).poll_read(cx, buffer) };
        if matches!(policed.phase, Phase::Open) {
            ready!(Pin::new(&mut this.io).poll_read(cx, buffer))?;
            if !policed.received(&buffer.filled()[before..]) {
                this.policed = None;
            }
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(Err(error)) = this.poll_go_away(cx) {
            return Poll::Ready(Err(error));
        }
        let Some(Policed { phase: Phase::Linger(linger), .. }) = &mut this.policed else { return Poll::Pending };
        let too_many = || io::Error::new(io::ErrorKind::ConnectionAborted, "too many pings from the client");
        while linger.as_mut().poll(cx).is_pending() {
            ready!(Pin::new(&mut this.io).poll_read(cx, buffer))?;
            let ended = buffer.filled().len() == before;
            buffer.set_filled(before);
            if ended {
                break;
            }
        }
        Poll::Ready(Err(too_many()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for PingPolicy<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_output(cx, &[IoSlice::new(bytes)], |io, cx| io.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_output(cx, slices, |io, cx| io.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::super::frames::{CONTINUATION, END_HEADERS};
    use super::*;

    const MIN_TIME: Duration = Duration::from_secs(5);

    fn frame(kind: u8, flags: u8, stream: u32, payload: usize) -> Vec<u8> {
        let head = [0, 0, payload as u8, kind, flags];
        [&head[..], &stream.to_be_bytes(), &vec![7; payload]].concat()
    }

    /// A connection with a limit, and the client's end of it.
    struct Connection {
        policy: PingPolicy<DuplexStream>,
        client: DuplexStream,
    }

    impl Connection {
        async fn new(first: &[u8]) -> Self {
            let (near, client) = duplex(1 << 16);
            let mut connection = Self { policy: PingPolicy::new(near, Some(MIN_TIME)), client };
            connection.receive(first).await.expect("no pings yet");
            connection
        }

        /// Sends this as the client and reads it as the server.
        async fn receive(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.client.write_all(bytes).await.expect("room");
            self.policy.read_exact(&mut vec![0; bytes.len()]).await.map(|_| ())
        }

        async fn pings(&mut self, count: usize) {
            for _ in 0..count {
                self.receive(&frame(PING, 0, 0, 8)).await.expect("taken");
            }
        }

        async fn send(&mut self, bytes: &[u8]) {
            self.policy.write_all(bytes).await.expect("taken");
        }

        fn is_open(&self) -> bool {
            self.policy.policed.as_ref().is_some_and(|policed| matches!(policed.phase, Phase::Open))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_third_early_ping_is_one_too_many() {
        let mut connection = Connection::new(PREFACE).await;
        connection.receive(&frame(HEADERS, END_HEADERS, 1, 20)).await.expect("taken");
        let output = [frame(HEADERS, 0, 1, 30), frame(CONTINUATION, END_HEADERS, 1, 30)].concat();
        let (half, rest) = output.split_at(20);
        connection.send(half).await;
        // The first comes after output, two are early, the last is in time and forgives nothing.
        connection.pings(3).await;
        tokio::time::advance(MIN_TIME).await;
        connection.pings(1).await;
        // Answers to pings of the server are no pings.
        connection.receive(&frame(PING, ACK, 0, 8)).await.expect("taken");
        assert!(connection.is_open());
        connection.pings(1).await;
        assert!(!connection.is_open());

        // GOAWAY waits for the end of the frame that is being written, and of the block of headers.
        connection.send(&[rest, &frame(DATA, 0, 1, 9)].concat()).await;
        let Connection { mut policy, mut client } = connection;
        let mut written = Vec::new();
        let mut rest_of_input = [0; 8];
        let (ended, ()) = tokio::join!(policy.read(&mut rest_of_input), async {
            client.read_to_end(&mut written).await.expect("closed");
            // More input is dropped until the client has closed its side.
            client.write_all(&[0; 4096]).await.expect("read");
            drop(client);
        });
        assert_eq!(ended.expect_err("ended").kind(), io::ErrorKind::ConnectionAborted);
        let (before, end) = written.split_at(output.len());
        assert_eq!(before, output, "what was begun is whole, and nothing follows it");
        let head = [0, 0, 22, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0xb];
        assert_eq!(end, [&head[..], b"too_many_pings"].concat());
    }

    // Cause: early pings were counted up to 255 only, and one read may bring more.
    #[tokio::test(start_paused = true)]
    async fn a_read_full_of_pings_is_one_too_many() {
        let mut connection = Connection::new(PREFACE).await;
        connection.receive(&frame(PING, 0, 0, 8).repeat(1_000)).await.expect("read before the end");
        assert!(!connection.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn pings_in_time_are_no_matter() {
        let mut connection = Connection::new(PREFACE).await;
        connection.receive(&frame(HEADERS, END_HEADERS, 1, 20)).await.expect("taken");
        for _ in 0..10 {
            connection.pings(1).await;
            tokio::time::advance(MIN_TIME).await;
        }
        assert!(connection.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_forgives_early_pings() {
        let mut connection = Connection::new(PREFACE).await;
        connection.receive(&frame(HEADERS, END_HEADERS, 1, 20)).await.expect("taken");
        for _ in 0..10 {
            connection.pings(3).await;
            connection.send(&frame(DATA, 0, 1, 100)).await;
        }
        assert!(connection.is_open());
        // An answer to a ping forgives nothing.
        for _ in 0..2 {
            connection.pings(2).await;
            connection.send(&frame(PING, ACK, 0, 8)).await;
        }
        assert!(!connection.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_stream_there_is_nothing_to_keep_alive() {
        let ended = [
            vec![],
            frame(HEADERS, END_HEADERS | END_STREAM, 1, 20),
            [frame(HEADERS, END_HEADERS, 1, 20), frame(DATA, END_STREAM, 1, 0)].concat(),
            frame(RST_STREAM, 0, 1, 4),
        ];
        for output in ended {
            let mut connection = Connection::new(PREFACE).await;
            connection.receive(&frame(HEADERS, END_HEADERS, 1, 20)).await.expect("taken");
            match output.is_empty() {
                true => connection.receive(&frame(RST_STREAM, 0, 1, 4)).await.expect("taken"),
                false => connection.send(&output).await,
            }
            for _ in 0..3 {
                connection.pings(1).await;
                tokio::time::advance(MIN_TIME).await;
            }
            assert!(connection.is_open(), "{output:?}");
            connection.pings(1).await;
            assert!(!connection.is_open(), "{output:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn frames_are_found_in_pieces_of_any_size() {
        let pings = frame(PING, 0, 0, 8).repeat(4);
        let input = [PREFACE, &frame(HEADERS, END_HEADERS, 1, 20), &frame(DATA, 0, 1, 40), &pings].concat();
        for piece in 1..input.len() {
            let mut policed = Policed::new(MIN_TIME);
            input.chunks(piece).for_each(|bytes| assert!(policed.received(bytes)));
            assert!(matches!(policed.phase, Phase::GoAway(0)), "pieces of {piece}");
            assert!(!policed.open.is_empty());
        }
        assert!(!Policed::new(MIN_TIME).received(b"GET / HTTP/1.1"), "not policed");
    }
}
