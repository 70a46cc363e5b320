//! One JSON value -> one protobuf message, by protobuf's mapping.
//!
//! Names of fields in either spelling, numbers as numbers or as text, bytes in either alphabet of base64. What the
//! message does not know is left out. Errors have the texts of Go's `protojson`.

use base64::Engine;
use base64::alphabet::{Alphabet, STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use super::number::{parse_number, whole_number};
use super::text::{UNEXPECTED_EOF, parse_string};

/// Messages within one another. The only ones that nest without end are transactions, which the server bounds lower.
const DEPTH_MAX: usize = 200;

/// The message that `json` says, in wire format. `json` is one value, as [`Values`](super::values::Values) gives it.
///
/// # Errors
/// What is wrong, with line and column.
pub(super) fn read(json: &[u8], message: &MessageDescriptor) -> Result<Vec<u8>, String> {
    let mut reader = Reader { json, at: 0 };
    let mut wire = Vec::new();
    reader.message(message, &mut wire, DEPTH_MAX)?;
    Ok(wire)
}

/// A token, without what follows it.
#[derive(Clone, Copy, PartialEq)]
struct Token<'a> {
    /// Where it begins.
    at: usize,
    raw: &'a [u8],
}

impl Token<'_> {
    fn first(&self) -> u8 {
        self.raw.first().copied().unwrap_or_default()
    }

    fn is_number(&self) -> bool {
        matches!(self.first(), b'-' | b'0'..=b'9')
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(self.raw).into_owned()
    }
}

/// Reads a value whose syntax was checked.
struct Reader<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// The next token that says something. Since the syntax is right, commas and colons do not.
    fn token(&mut self) -> Result<Token<'a>, String> {
        let skipped = |byte: &&u8| matches!(**byte, b' ' | b'\t' | b'\r' | b'\n' | b',' | b':');
        self.at += self.json[self.at..].iter().take_while(skipped).count();
        let rest = &self.json[self.at..];
        let length = match rest.first() {
            None => 0,
            Some(b'{' | b'}' | b'[' | b']') => 1,
            Some(b'"') => parse_string(rest).map_err(|fault| self.syntax(self.at, &fault))?.1,
            Some(_) => rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte)).count(),
        };
        if length == 0 {
            return Err(self.syntax(self.at, "unexpected token "));
        }
        let token = Token { at: self.at, raw: &rest[..length] };
        self.at += length;
        Ok(token)
    }

    /// The next token, which stays.
    fn peek(&mut self) -> Result<Token<'a>, String> {
        let token = self.token()?;
        self.at = token.at;
        Ok(token)
    }

    fn text(&self, token: Token<'a>) -> Result<String, String> {
        Ok(parse_string(token.raw).map_err(|fault| self.syntax(token.at, &fault))?.0)
    }

    fn message(&mut self, message: &MessageDescriptor, wire: &mut Vec<u8>, depth: usize) -> Result<(), String> {
        let Some(depth) = depth.checked_sub(1) else { return Err("proto: exceeded max recursion depth".to_owned()) };
        let open = self.token()?;
        if open.raw != b"{" {
            return Err(self.unexpected(open));
        }
        let (mut fields, mut oneofs) = (Vec::new(), Vec::new());
        loop {
            let token = self.token()?;
            if token.raw == b"}" {
                return Ok(());
            }
            let name = self.text(token)?;
            let Some(field) = message.get_field_by_json_name(&name).or_else(|| message.get_field_by_name(&name)) else {
                self.skip()?;
                continue;
            };
            if fields.contains(&field.number()) {
                return Err(self.fault(token.at, &format!("duplicate field {}", token.shown())));
            }
            fields.push(field.number());
            if self.peek()?.raw == b"null" {
                self.token()?;
                continue;
            }
            if field.is_list() {
                self.list(&field, wire, depth)?;
                continue;
            }
            if let Some(oneof) = field.containing_oneof() {
                if oneofs.contains(&oneof) {
                    let text = format!("error parsing {}, oneof {} is already set", token.shown(), oneof.full_name());
                    return Err(self.fault(token.at, &text));
                }
                oneofs.push(oneof);
            }
            self.value(&field, wire, depth)?;
        }
    }

    fn list(&mut self, field: &FieldDescriptor, wire: &mut Vec<u8>, depth: usize) -> Result<(), String> {
        let open = self.token()?;
        if open.raw != b"[" {
            return Err(self.unexpected(open));
        }
        while self.peek()?.raw != b"]" {
            self.value(field, wire, depth)?;
        }
        self.token()?;
        Ok(())
    }

    /// One value of the field, with its key.
    fn value(&mut self, field: &FieldDescriptor, wire: &mut Vec<u8>, depth: usize) -> Result<(), String> {
        if let Kind::Message(message) = field.kind() {
            let mut inner = Vec::new();
            self.message(&message, &mut inner, depth)?;
            push_bytes(field, &inner, wire);
            return Ok(());
        }
        let token = self.token()?;
        let number = match (field.kind(), token.first()) {
            (Kind::Bool, b't') => Some(1),
            (Kind::Bool, b'f') => Some(0),
            (Kind::Int32, _) => self.integer(token)?.and_then(|text| text.parse::<i32>().ok()).map(|it| it as u64),
            (Kind::Int64, _) => self.integer(token)?.and_then(|text| text.parse::<i64>().ok()).map(|it| it as u64),
            (Kind::Uint32, _) => self.integer(token)?.and_then(|text| text.parse::<u32>().ok()).map(u64::from),
            (Kind::Uint64, _) => self.integer(token)?.and_then(|text| text.parse().ok()),
            (Kind::Enum(values), b'"') => match values.get_value_by_name(&self.text(token)?) {
                Some(value) => Some(value.number() as u64),
                // Unknown, as a field may be.
                None => return Ok(()),
            },
            (Kind::Enum(_), _) if token.is_number() => {
                whole_number(token.raw).and_then(|text| text.parse::<i32>().ok()).map(|it| it as u64)
            }
            (Kind::String, b'"') => {
                push_bytes(field, self.text(token)?.as_bytes(), wire);
                return Ok(());
            }
            (Kind::Bytes, b'"') => match bytes(&self.text(token)?) {
                Some(value) => {
                    push_bytes(field, &value, wire);
                    return Ok(());
                }
                None => None,
            },
            _ => None,
        };
        let Some(number) = number else {
            let text = format!(
                "invalid value for {} field {}: {}",
                kind_name(&field.kind()),
                field.json_name(),
                token.shown()
            );
            return Err(self.fault(token.at, &text));
        };
        encode_key(field.number(), WireType::Varint, wire);
        encode_varint(number, wire);
        Ok(())
    }

    /// The digits of a number, or of a text that is one.
    fn integer(&self, token: Token<'a>) -> Result<Option<String>, String> {
        if token.is_number() {
            return Ok(whole_number(token.raw));
        }
        if token.first() != b'"' {
            return Ok(None);
        }
        let text = self.text(token)?;
        if text.trim() != text {
            return Ok(None);
        }
        Ok(parse_number(text.as_bytes()).and_then(|length| whole_number(&text.as_bytes()[..length])))
    }

    /// Leaves one value out.
    fn skip(&mut self) -> Result<(), String> {
        let mut open = 0usize;
        loop {
            match self.token()?.first() {
                b'{' | b'[' => open += 1,
                b'}' | b']' => open = open.saturating_sub(1),
                _ => {}
            }
            if open == 0 {
                return Ok(());
            }
        }
    }

    fn unexpected(&self, token: Token<'a>) -> String {
        self.syntax(token.at, &format!("unexpected token {}", token.shown()))
    }

    fn syntax(&self, at: usize, text: &str) -> String {
        if text == UNEXPECTED_EOF {
            return format!("proto: {text}");
        }
        format!("proto: syntax error {}: {text}", self.position(at))
    }

    fn fault(&self, at: usize, text: &str) -> String {
        format!("proto: {}: {text}", self.position(at))
    }

    fn position(&self, at: usize) -> String {
        let before = &self.json[..at];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let begin = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        let column = String::from_utf8_lossy(&before[begin..]).chars().count() + 1;
        format!("(line {line}:{column})")
    }
}

fn push_bytes(field: &FieldDescriptor, value: &[u8], wire: &mut Vec<u8>) {
    encode_key(field.number(), WireType::LengthDelimited, wire);
    encode_varint(value.len() as u64, wire);
    wire.extend_from_slice(value);
}

const fn base64(alphabet: &Alphabet, padding: DecodePaddingMode) -> GeneralPurpose {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(padding).with_decode_allow_trailing_bits(true);
    GeneralPurpose::new(alphabet, config)
}

const PADDED: GeneralPurpose = base64(&STANDARD, DecodePaddingMode::RequireCanonical);
const BARE: GeneralPurpose = base64(&STANDARD, DecodePaddingMode::RequireNone);
const URL_PADDED: GeneralPurpose = base64(&URL_SAFE, DecodePaddingMode::RequireCanonical);
const URL_BARE: GeneralPurpose = base64(&URL_SAFE, DecodePaddingMode::RequireNone);

/// Go's decoder takes line breaks anywhere.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let decoder = match (text.contains(['-', '_']), text.len() % 4) {
        (false, 0) => PADDED,
        (false, _) => BARE,
        (true, 0) => URL_PADDED,
        (true, _) => URL_BARE,
    };
    if text.contains(['\r', '\n']) {
        return decoder.decode(text.replace(['\r', '\n'], "")).ok();
    }
    decoder.decode(text).ok()
}

fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool => "bool",
        Kind::Int32 => "int32",
        Kind::Int64 => "int64",
        Kind::Uint32 => "uint32",
        Kind::Uint64 => "uint64",
        Kind::String => "string",
        Kind::Bytes => "bytes",
        Kind::Enum(_) => "enum",
        Kind::Message(_) => "message",
        // No request has one: a test looks.
        _ => "number",
    }
}
