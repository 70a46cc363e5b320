//! For fuzz targets only: what arrives on a connection, without the connection.

use super::calls::IncomingCall;
use super::frame::{Batch, FrameReader, Kind};
use super::incoming::push_pong;
use super::snapshot::{Offer, Refused};

const FRAME_BYTES_MAX: usize = 1 << 16;

/// Takes every frame and parses its contents, whatever lane they belong to.
pub fn read_frames(bytes: &[u8]) {
    let mut frames = FrameReader::new(bytes, FRAME_BYTES_MAX);
    let mut batch = Batch::default();
    while let Ok(Some(frame)) = frames.take() {
        match frame.kind {
            Kind::Ping => drop(push_pong(&mut batch, &frame)),
            Kind::Call => drop(IncomingCall::parse(frame.payload)),
            Kind::Offer => drop(Offer::parse(frame.payload)),
            Kind::Refuse => drop(Refused::parse(&frame.payload)),
            _ => {}
        }
    }
}

/// Frames with right checksums: of each piece of the input the first byte is the length, the second the kind.
pub fn with_checksums(mut bytes: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    while let Some((&length, rest)) = bytes.split_first() {
        let (body, after) = rest.split_at(usize::from(length).min(rest.len()));
        let length = u32::try_from(body.len()).unwrap_or_default().to_le_bytes();
        let crc = crc32c::crc32c_append(crc32c::crc32c(&length), body).to_le_bytes();
        let head = [length, crc].concat();
        wire.extend_from_slice(&head);
        wire.extend_from_slice(&crc32c::crc32c(&head).to_le_bytes());
        wire.extend_from_slice(body);
        bytes = after;
    }
    wire
}
