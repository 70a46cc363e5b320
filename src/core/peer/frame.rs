//! Frames: what travels on a connection after the handshake. Drawn in `docs/design/peer-protocol.md`.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Length, checksum of the frame, and checksum of these two: a damaged length must be noticed when it arrives, not when
/// as many bytes have come as it says, which on a quiet lane is never.
const HEAD_BYTES: usize = 12;
/// Room that is made for reads.
const READ_BYTES: usize = 64 * 1024;
/// Room that is enough for one more read.
const READ_LEAST_BYTES: usize = 4 * 1024;
/// Room that is made ahead for a long frame; beyond it memory follows what really arrived.
const READ_AHEAD_BYTES: usize = 1024 * 1024;
/// Bodies from here on are written from where they are; shorter ones are copied into one buffer.
const DIRECT_BYTES: usize = 16 * 1024;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a frame is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Kind {
            $($(#[$doc])* $name = $number,)*
        }

        impl Kind {
            fn from_wire(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// A raft message.
    Message = 1,
    /// Eight bytes that come back in a [`Kind::Pong`].
    Ping = 2,
    Pong = 3,
    /// Nothing to say but that bytes arrive, or that work goes on.
    Alive = 4,
    /// Request: id, length and text of the method, body.
    Call = 5,
    /// Its answer: id, gRPC code, then the body or, if the code is not 0, the text.
    Answer = 6,
    /// A db snapshot: see `snapshot.rs`.
    Offer = 7,
    /// From which byte on the db snapshot is wanted.
    Resume = 8,
    /// The db snapshot is not wanted: whether asking again may help, then the reason.
    Refuse = 9,
    /// The next bytes of the db snapshot.
    Chunk = 10,
    /// All bytes were sent.
    End = 11,
    /// The db snapshot is taken.
    Done = 12,
}

/// One frame as it arrived, its checksum verified.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) payload: Bytes,
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("peer closed the connection")]
    Closed,
    #[error("connection failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("nothing was heard from the peer for too long")]
    Silent,
    #[error("frame of {0} bytes is too long or empty")]
    Length(usize),
    #[error("checksum of a frame is wrong")]
    Checksum,
    #[error("frame of unknown kind {0}")]
    UnknownKind(u8),
    #[error("frame {0:?} makes no sense here")]
    Unexpected(Kind),
    #[error("message is refused: {0}")]
    Message(String),
    #[error("db snapshot cannot be read: {0}")]
    Source(String),
}

impl ConnectionError {
    /// Whether the peer sent what no member sends.
    pub(super) fn is_foul(&self) -> bool {
        match self {
            Self::Closed | Self::Io(_) | Self::Silent | Self::Source(_) => false,
            Self::Length(_) | Self::Checksum | Self::UnknownKind(_) | Self::Unexpected(_) | Self::Message(_) => true,
        }
    }
}

/// Frames on their way out, written together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Never an empty one among them.
    closed: VecDeque<Bytes>,
    open: BytesMut,
    bytes: usize,
}

impl Batch {
    /// Adds a frame whose payload is `head` and then `body`.
    pub(super) fn push(&mut self, kind: Kind, head: &[u8], body: &Bytes) {
        let length = 1 + head.len() + body.len();
        let wire_length = u32::try_from(length).expect("callers keep frames below the limit").to_le_bytes();
        let mut crc = crc32c::crc32c(&wire_length);
        crc = crc32c::crc32c_append(crc, &[kind as u8]);
        crc = crc32c::crc32c_append(crc, head);
        crc = crc32c::crc32c_append(crc, body);
        let head_crc = crc32c::crc32c_append(crc32c::crc32c(&wire_length), &crc.to_le_bytes());
        self.open.put_slice(&wire_length);
        self.open.put_u32_le(crc);
        self.open.put_u32_le(head_crc);
        self.open.put_u8(kind as u8);
        self.open.put_slice(head);
        self.bytes += HEAD_BYTES + length;
        if body.len() < DIRECT_BYTES {
            self.open.put_slice(body);
        } else {
            self.closed.push_back(self.open.split().freeze());
            self.closed.push_back(body.clone());
        }
    }

    /// Bytes that wait to be written.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Buf for Batch {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.closed.front().map_or(&self.open, |first| first)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let open = (!self.open.is_empty()).then_some(&self.open[..]);
        let chunks = self.closed.iter().map(|chunk| &chunk[..]).chain(open);
        slices.iter_mut().zip(chunks).map(|(slice, chunk)| *slice = IoSlice::new(chunk)).count()
    }

    fn advance(&mut self, mut count: usize) {
        self.bytes -= count;
        while let Some(first) = self.closed.front_mut() {
            if count < first.len() {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.closed.pop_front();
        }
        self.open.advance(count);
    }
}

/// Cuts what arrives into frames.
#[derive(Debug)]
pub(super) struct FrameReader {
    buffer: BytesMut,
    frame_bytes_max: usize,
    received_bytes: u64,
}

impl FrameReader {
    /// `first` is what arrived together with the end of the handshake.
    pub(super) fn new(first: &[u8], frame_bytes_max: usize) -> Self {
        Self { buffer: BytesMut::from(first), frame_bytes_max, received_bytes: first.len() as u64 }
    }

    /// Bytes that arrived so far.
    pub(super) fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// The next frame, if all of it is here.
    pub(super) fn take(&mut self) -> Result<Option<Frame>, ConnectionError> {
        let Some((length, crc)) = self.head()? else { return Ok(None) };
        if self.buffer.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(HEAD_BYTES + length).freeze();
        if crc32c::crc32c_append(crc32c::crc32c(&frame[..4]), &frame[HEAD_BYTES..]) != crc {
            return Err(ConnectionError::Checksum);
        }
        let kind = frame[HEAD_BYTES];
        frame.advance(HEAD_BYTES + 1);
        let kind = Kind::from_wire(kind).ok_or(ConnectionError::UnknownKind(kind))?;
        Ok(Some(Frame { kind, payload: frame }))
    }

    fn head(&self) -> Result<Option<(usize, u32)>, ConnectionError> {
        let Some(mut head) = self.buffer.get(..HEAD_BYTES) else { return Ok(None) };
        let head_crc = crc32c::crc32c(&head[..8]);
        let length = head.get_u32_le() as usize;
        let crc = head.get_u32_le();
        if head.get_u32_le() != head_crc {
            return Err(ConnectionError::Checksum);
        }
        if length == 0 || length > self.frame_bytes_max {
            return Err(ConnectionError::Length(length));
        }
        Ok(Some((length, crc)))
    }

    /// Waits for more bytes and returns how many came. Dropping the future loses nothing.
    pub(super) async fn fill(&mut self, io: &mut (impl AsyncRead + Unpin)) -> Result<usize, ConnectionError> {
        let missing = self.head()?.map_or(0, |(length, _)| (HEAD_BYTES + length).saturating_sub(self.buffer.len()));
        let needed = missing.clamp(READ_LEAST_BYTES, READ_AHEAD_BYTES);
        // Frames keep the buffer that they were read into: one of its own for each would be a small entry of the log in
        // a large piece of memory.
        if self.buffer.capacity() - self.buffer.len() < needed {
            self.buffer.reserve(needed.max(READ_BYTES));
        }
        let count = io.read_buf(&mut self.buffer).await?;
        if count == 0 {
            return Err(ConnectionError::Closed);
        }
        self.received_bytes += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(bodies: &[Bytes]) -> Vec<u8> {
        let mut batch = Batch::default();
        for body in bodies {
            batch.push(Kind::Message, b"head", body);
        }
        let mut wire = Vec::new();
        // In pieces, as a socket that takes little at a time does.
        while batch.has_remaining() {
            let mut slices = [IoSlice::new(&[]), IoSlice::new(&[]), IoSlice::new(&[])];
            let filled = batch.chunks_vectored(&mut slices);
            let seen: usize = slices[..filled].iter().map(|slice| slice.len()).sum();
            let count = seen.min(1000);
            wire.extend(slices[..filled].iter().flat_map(|slice| slice.iter()).take(count));
            batch.advance(count);
        }
        wire
    }

    async fn decoded(wire: &[u8], step: usize) -> Result<Vec<Bytes>, ConnectionError> {
        let mut reader = FrameReader::new(&[], 1 << 20);
        let mut frames = Vec::new();
        for mut piece in wire.chunks(step) {
            while !piece.is_empty() {
                reader.fill(&mut piece).await?;
                while let Some(frame) = reader.take()? {
                    frames.push(frame.payload);
                }
            }
        }
        Ok(frames)
    }

    #[tokio::test]
    async fn frames_round_trip_however_they_are_cut() {
        let bodies = [0, 1, DIRECT_BYTES - 1, DIRECT_BYTES, 3 * READ_BYTES, 5].map(|len| Bytes::from(vec![7; len]));
        let wire = encoded(&bodies);
        for step in [1, 7, 4096, wire.len()] {
            let frames = decoded(&wire, step).await.expect("valid");
            let expected: Vec<Bytes> = bodies.iter().map(|body| [b"head", &body[..]].concat().into()).collect();
            assert!(frames == expected, "cut every {step} bytes");
        }
    }

    #[tokio::test]
    async fn small_frames_share_the_buffer_they_were_read_into() {
        let wire = encoded(&[Bytes::from_static(b"an entry of the log")]);
        let mut reader = FrameReader::new(&[], 1 << 20);
        let mut frames: Vec<Bytes> = Vec::new();
        for _ in 0..1000 {
            reader.fill(&mut &wire[..]).await.expect("valid");
            frames.push(reader.take().expect("valid").expect("a frame").payload);
        }
        let distance = |pair: &[Bytes]| (pair[1].as_ptr() as usize).wrapping_sub(pair[0].as_ptr() as usize);
        let apart = frames.windows(2).filter(|pair| distance(pair) != wire.len()).count();
        assert!(apart < 1000 * wire.len() / (READ_BYTES - READ_LEAST_BYTES) + 1, "{apart} buffers");
    }

    #[tokio::test]
    async fn every_flipped_bit_is_noticed() {
        let wire = encoded(&[Bytes::from_static(b"some message")]);
        for bit in 0..wire.len() * 8 {
            let mut flipped = wire.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // At once: a longer length must not make the reader wait for bytes that never come.
            let error = decoded(&flipped, wire.len()).await.expect_err(&format!("bit {bit} went unnoticed"));
            assert!(error.is_foul(), "bit {bit}: {error}");
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_its_bytes_arrive() {
        let mut head = vec![0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0];
        head.extend(crc32c::crc32c(&head).to_le_bytes());
        let mut reader = FrameReader::new(&head, 1 << 20);
        assert!(matches!(reader.take(), Err(ConnectionError::Length(0x7fff_ffff))));
    }
}
