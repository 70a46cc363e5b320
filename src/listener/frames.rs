//! The heads of HTTP/2 frames, found in the bytes of a connection.

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const CONTINUATION: u8 = 9;
/// Flag of DATA and HEADERS.
pub(super) const END_STREAM: u8 = 1;
/// Flag of HEADERS and CONTINUATION.
pub(super) const END_HEADERS: u8 = 4;
/// Flag of PING and SETTINGS.
pub(super) const ACK: u8 = 1;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEAD_BYTES: usize = 9;

/// Follows the frames of one direction through pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: [u8; HEAD_BYTES],
    /// Bytes of the head that are there.
    head_bytes: usize,
    /// Bytes of the payload that are not there yet.
    left: usize,
    /// The next frame must be CONTINUATION.
    continued: bool,
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Head {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Frames {
    /// Calls `begins` for each frame whose head is complete with these bytes.
    #[inline]
    pub(super) fn walk(&mut self, mut bytes: &[u8], mut begins: impl FnMut(Head)) {
        loop {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = &bytes[skipped..];
            let head = match bytes.split_first_chunk() {
                // Nearly always: a head in one piece.
                Some((head, rest)) if self.head_bytes == 0 => {
                    bytes = rest;
                    *head
                }
                _ if bytes.is_empty() => return,
                _ => {
                    let taken = (HEAD_BYTES - self.head_bytes).min(bytes.len());
                    self.head[self.head_bytes..self.head_bytes + taken].copy_from_slice(&bytes[..taken]);
                    self.head_bytes += taken;
                    bytes = &bytes[taken..];
                    if self.head_bytes < HEAD_BYTES {
                        return;
                    }
                    self.head_bytes = 0;
                    self.head
                }
            };
            let [a, b, c, kind, flags, s, t, u, v] = head;
            self.left = u32::from_be_bytes([0, a, b, c]) as usize;
            self.continued = matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS == 0;
            begins(Head { kind, flags, stream: u32::from_be_bytes([s, t, u, v]) & 0x7fff_ffff });
        }
    }

    /// Bytes that must come before another frame may, as far as is known; 0 where one may.
    pub(super) fn unfinished(&self) -> usize {
        match (self.head_bytes, self.left) {
            (0, 0) if !self.continued => 0,
            (head_bytes, 0) => HEAD_BYTES - head_bytes,
            (_, left) => left,
        }
    }
}
