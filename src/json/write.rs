//! A protobuf message -> JSON, as its bytes come.
//!
//! Nothing but what is needed to go on is held: an answer with a million keys passes through here in small pieces.
//! That asks for fields in the order of their numbers, which is how every server writes them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use prost::encoding::{WireType, decode_varint};
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use super::text::push_string;

/// Longest string of an answer. Keys and values are bytes, and have no limit here.
const STRING_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Messages within one another, as [`super::read`] has it.
const DEPTH_MAX: usize = 200;
/// Longest encoding of a number.
const VARINT_BYTES_MAX: usize = 10;

/// The message is not one of its type, or not in the order of its fields.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("the answer cannot be written as JSON: {0}")]
pub(super) struct Malformed(&'static str);

/// Writes one message.
#[derive(Debug)]
pub(super) struct Writer {
    /// The messages that have begun, outermost first.
    levels: Vec<Level>,
    /// What the next bytes belong to.
    part: Part,
    /// Bytes that cannot be used yet.
    held: BytesMut,
    /// Position in the message of what comes next.
    at: u64,
}

#[derive(Debug)]
struct Level {
    message: MessageDescriptor,
    /// Position of its end.
    end: u64,
    /// The last field that was written, and whether its list is open.
    last: Option<(u32, bool)>,
}

#[derive(Debug)]
enum Part {
    /// A key, or the end of a message.
    Field,
    /// A value of bytes, up to this position.
    Bytes(u64),
    /// What is not written, up to this position.
    Skipped(u64),
}

impl Writer {
    /// Begins a message of `length` bytes.
    pub(super) fn new(message: MessageDescriptor, length: usize, out: &mut Vec<u8>) -> Self {
        out.push(b'{');
        let level = Level { message, end: length as u64, last: None };
        Self { levels: vec![level], part: Part::Field, held: BytesMut::new(), at: 0 }
    }

    /// Whether all of the message is written.
    pub(super) fn is_done(&self) -> bool {
        self.levels.is_empty()
    }

    /// Takes more of the message.
    ///
    /// # Errors
    /// When it is not a message of its type.
    pub(super) fn push(&mut self, mut chunk: Bytes, out: &mut Vec<u8>) -> Result<(), Malformed> {
        if !self.held.is_empty() {
            self.held.extend_from_slice(&chunk);
            chunk = self.held.split().freeze();
        }
        while self.step(&mut chunk, out)? {}
        self.held.extend_from_slice(&chunk);
        Ok(())
    }

    /// Whether to go on.
    fn step(&mut self, chunk: &mut Bytes, out: &mut Vec<u8>) -> Result<bool, Malformed> {
        match self.part {
            Part::Bytes(end) => {
                let left = end - self.at;
                let come = left.min(chunk.len() as u64);
                // Three bytes are four characters.
                let taken = if come == left { come } else { come - come % 3 };
                if taken == 0 && left > 0 {
                    return Ok(false);
                }
                let bytes = self.take(chunk, taken as usize);
                push_base64(&bytes, out);
                if taken == left {
                    out.push(b'"');
                    self.part = Part::Field;
                }
                Ok(true)
            }
            Part::Skipped(end) => {
                let left = end - self.at;
                let taken = left.min(chunk.len() as u64);
                self.take(chunk, taken as usize);
                if taken == left {
                    self.part = Part::Field;
                }
                Ok(taken == left)
            }
            Part::Field => {
                let Some(level) = self.levels.last() else {
                    return if chunk.is_empty() { Ok(false) } else { Err(Malformed("more than one message")) };
                };
                if self.at == level.end {
                    if level.last.is_some_and(|(_, list)| list) {
                        out.push(b']');
                    }
                    out.push(b'}');
                    self.levels.pop();
                    return Ok(true);
                }
                self.field(chunk, out)
            }
        }
    }

    fn take(&mut self, chunk: &mut Bytes, bytes: usize) -> Bytes {
        self.at += bytes as u64;
        chunk.split_to(bytes)
    }

    /// Begins the next field; writes all of it, unless it is a message or bytes. False when more must come first.
    fn field(&mut self, chunk: &mut Bytes, out: &mut Vec<u8>) -> Result<bool, Malformed> {
        let Some(level) = self.levels.last_mut() else { return Ok(false) };
        let mut ahead = chunk.clone();
        let Some(key) = varint(&mut ahead)? else { return Ok(false) };
        let wire_type = WireType::try_from(key & 7).map_err(|_| Malformed("unknown wire type"))?;
        let field = u32::try_from(key >> 3).ok().and_then(|number| level.message.get_field(number));
        match wire_type {
            WireType::Varint => {
                let Some(value) = varint(&mut ahead)? else { return Ok(false) };
                if let Some(field) = field
                    && (value != 0 || field.is_list() || field.supports_presence())
                {
                    level.begin(&field, out)?;
                    push_number(&field, value, out)?;
                }
            }
            WireType::LengthDelimited => {
                let Some(length) = varint(&mut ahead)? else { return Ok(false) };
                let begin = self.at + (chunk.len() - ahead.len()) as u64;
                let end = begin.checked_add(length).filter(|&end| end <= level.end);
                let end = end.ok_or(Malformed("a field is longer than its message"))?;
                match field.as_ref().map(|field| (field, field.kind())) {
                    None => self.part = Part::Skipped(end),
                    Some((field, Kind::Message(message))) => {
                        level.begin(field, out)?;
                        out.push(b'{');
                        if self.levels.len() >= DEPTH_MAX {
                            return Err(Malformed("nested too deep"));
                        }
                        self.levels.push(Level { message, end, last: None });
                    }
                    Some((field, Kind::Bytes)) if length > 0 || field.is_list() || field.supports_presence() => {
                        level.begin(field, out)?;
                        out.push(b'"');
                        self.part = Part::Bytes(end);
                    }
                    Some((_, Kind::Bytes)) => {}
                    Some((_, _)) if length > STRING_BYTES_MAX => return Err(Malformed("a text is too long")),
                    Some(_) if (ahead.len() as u64) < length => return Ok(false),
                    Some((field, Kind::String)) => {
                        let text = ahead.split_to(length as usize);
                        let text = std::str::from_utf8(&text).map_err(|_| Malformed("invalid UTF-8"))?;
                        if !text.is_empty() || field.is_list() || field.supports_presence() {
                            level.begin(field, out)?;
                            push_string(text, out);
                        }
                    }
                    // Numbers of a list, together.
                    Some((field, _)) => {
                        let mut packed = ahead.split_to(length as usize);
                        while !packed.is_empty() {
                            let value = varint(&mut packed)?.ok_or(Malformed("a number is cut off"))?;
                            level.begin(field, out)?;
                            push_number(field, value, out)?;
                        }
                    }
                }
            }
            WireType::SixtyFourBit | WireType::ThirtyTwoBit if field.is_none() => {
                let length = if wire_type == WireType::ThirtyTwoBit { 4 } else { 8 };
                self.part = Part::Skipped(self.at + (chunk.len() - ahead.len() + length) as u64);
            }
            _ => return Err(Malformed("unknown wire type")),
        }
        let taken = chunk.len() - ahead.len();
        self.take(chunk, taken);
        match self.levels.last() {
            Some(level) if self.at > level.end => Err(Malformed("a field is longer than its message")),
            _ => Ok(true),
        }
    }
}

impl Level {
    /// Writes what stands before a value.
    fn begin(&mut self, field: &FieldDescriptor, out: &mut Vec<u8>) -> Result<(), Malformed> {
        match self.last {
            Some((number, true)) if number == field.number() => {
                out.push(b',');
                return Ok(());
            }
            Some((number, _)) if number >= field.number() => return Err(Malformed("fields out of order")),
            Some((_, true)) => out.extend(b"],"),
            Some((_, false)) => out.push(b','),
            None => {}
        }
        out.push(b'"');
        out.extend(field.name().bytes());
        out.extend(b"\":");
        if field.is_list() {
            out.push(b'[');
        }
        self.last = Some((field.number(), field.is_list()));
        Ok(())
    }
}

/// The number that `from` begins with; none while it is not complete.
fn varint(from: &mut Bytes) -> Result<Option<u64>, Malformed> {
    let complete = from.iter().take(VARINT_BYTES_MAX).any(|byte| byte & 0x80 == 0);
    if !complete && from.len() < VARINT_BYTES_MAX {
        return Ok(None);
    }
    decode_varint(from).map(Some).map_err(|_| Malformed("not a number"))
}

fn push_number(field: &FieldDescriptor, value: u64, out: &mut Vec<u8>) -> Result<(), Malformed> {
    let text = match field.kind() {
        Kind::Bool => if value != 0 { "true" } else { "false" }.to_owned(),
        Kind::Int32 => (value as i32).to_string(),
        Kind::Uint32 => (value as u32).to_string(),
        Kind::Int64 => format!("\"{}\"", value as i64),
        Kind::Uint64 => format!("\"{value}\""),
        Kind::Enum(values) => match values.get_value(value as i32) {
            Some(known) => format!("\"{}\"", known.name()),
            None => (value as i32).to_string(),
        },
        _ => return Err(Malformed("a number in place of another type")),
    };
    out.extend(text.bytes());
    Ok(())
}

fn push_base64(bytes: &[u8], out: &mut Vec<u8>) {
    let begin = out.len();
    let Some(length) = base64::encoded_len(bytes.len(), true) else { return };
    out.resize(begin + length, 0);
    // The room is what the encoding needs.
    let _ = STANDARD.encode_slice(bytes, &mut out[begin..]);
}

/// The JSON of one message that is there as a whole.
#[cfg(test)]
pub(super) fn write(wire: Bytes, message: MessageDescriptor) -> Result<String, Malformed> {
    let mut out = Vec::new();
    let mut writer = Writer::new(message, wire.len(), &mut out);
    writer.push(wire, &mut out)?;
    if !writer.is_done() {
        return Err(Malformed("cut off"));
    }
    Ok(String::from_utf8(out).expect("JSON is text"))
}
