//! Messages as they stand in a gRPC body: a prefix of five bytes, then the message.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

/// Length of a [`Prefix`].
pub const PREFIX_BYTES: usize = 5;

/// What stands before each message of a gRPC body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// 0 for a plain message, 1 for a compressed one.
    pub flag: u8,
    /// Bytes of the message, as it is sent.
    pub length: usize,
}

impl Prefix {
    /// The prefix at the beginning of `bytes`, and what follows; none while it is not complete.
    pub fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        bytes.split_first_chunk().map(|(prefix, rest)| (Self::from(*prefix), rest))
    }

    /// Whether the message is not compressed.
    pub fn is_plain(self) -> bool {
        self.flag == 0
    }

    /// The bytes before a plain message of this length, which gRPC bounds to 4 GiB.
    pub fn plain(length: usize) -> [u8; PREFIX_BYTES] {
        let [a, b, c, d] = (length as u32).to_be_bytes();
        [0, a, b, c, d]
    }
}

impl From<[u8; PREFIX_BYTES]> for Prefix {
    fn from([flag, length @ ..]: [u8; PREFIX_BYTES]) -> Self {
        Self { flag, length: u32::from_be_bytes(length) as usize }
    }
}

/// A plain message with its prefix.
pub fn framed(message: &impl Message) -> Bytes {
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + message.encoded_len());
    push_framed(message, &mut out);
    out.freeze()
}

/// Appends a plain message with its prefix.
pub fn push_framed(message: &impl Message, out: &mut BytesMut) {
    let length = message.encoded_len();
    out.reserve(PREFIX_BYTES + length);
    out.put_slice(&Prefix::plain(length));
    message.encode_raw(out);
}

/// Follows the messages of a body through its chunks, however they are cut.
#[derive(Debug, Default)]
pub struct Messages {
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of the prefix that have come.
    prefix_bytes: usize,
    /// Bytes of the message that have not come.
    left: usize,
}

/// What the next bytes of a body belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A prefix that is not complete with them.
    Prefix,
    /// A prefix that is complete with them: a message begins.
    Begin(Prefix),
    /// A message.
    Message,
}

impl Messages {
    /// How many of the next bytes of the body, of which there is at least one, belong together, and to what.
    pub fn next(&mut self, data: &[u8]) -> (usize, Part) {
        if self.left > 0 {
            let taken = self.left.min(data.len());
            self.left -= taken;
            return (taken, Part::Message);
        }
        let taken = (PREFIX_BYTES - self.prefix_bytes).min(data.len());
        self.prefix[self.prefix_bytes..self.prefix_bytes + taken].copy_from_slice(&data[..taken]);
        self.prefix_bytes += taken;
        if self.prefix_bytes < PREFIX_BYTES {
            return (taken, Part::Prefix);
        }
        self.prefix_bytes = 0;
        let prefix = Prefix::from(self.prefix);
        self.left = prefix.length;
        (taken, Part::Begin(prefix))
    }

    /// Whether the last message is complete, and the next one has not begun.
    pub fn at_end(&self) -> bool {
        self.left == 0 && self.prefix_bytes == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::PutRequest;

    #[test]
    fn messages_are_found_wherever_the_chunks_end() {
        let long = framed(&PutRequest { key: "long key".into(), ..Default::default() });
        let body = [&framed(&PutRequest::default())[..], &[1, 0, 0, 0, 2, 7, 7], &long].concat();
        for step in 1..=body.len() {
            let (mut messages, mut begun, mut bytes) = (Messages::default(), Vec::new(), 0);
            for mut chunk in body.chunks(step) {
                while !chunk.is_empty() {
                    let (taken, part) = messages.next(chunk);
                    match part {
                        Part::Begin(prefix) => begun.push((prefix.flag, prefix.length)),
                        Part::Message => bytes += taken,
                        Part::Prefix => assert!(!messages.at_end()),
                    }
                    chunk = &chunk[taken..];
                }
            }
            assert_eq!((begun, bytes), (vec![(0, 0), (1, 2), (0, 10)], 12), "step {step}");
            assert!(messages.at_end());
        }
        let (prefix, message) = Prefix::split(&long).unwrap();
        assert!(prefix.is_plain() && prefix.length == message.len());
        assert_eq!(Prefix::split(&long[..4]), None);
    }
}
