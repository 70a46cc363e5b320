//! Strings of JSON.

/// The one fault that has no place.
pub(super) const UNEXPECTED_EOF: &str = "unexpected EOF";

/// The string that `json` begins with, without quotes and escapes, and its length with them.
///
/// # Errors
/// What is wrong, in the words of Go's `protojson`.
pub(super) fn parse_string(json: &[u8]) -> Result<(String, usize), String> {
    let mut out = Vec::new();
    let mut at = 1;
    loop {
        let plain =
            json[at.min(json.len())..].iter().take_while(|&&byte| !matches!(byte, b'"' | b'\\' | 0..0x20)).count();
        out.extend_from_slice(json.get(at..at + plain).unwrap_or_default());
        at += plain;
        match json.get(at) {
            Some(b'"') => {
                let text = String::from_utf8(out).map_err(|_| "invalid UTF-8 in string".to_owned())?;
                return Ok((text, at + 1));
            }
            Some(b'\\') => {
                let (character, length) = escape(&json[at..])?;
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                at += length;
            }
            Some(byte) => return Err(format!("invalid character {:?} in string", char::from(*byte))),
            None => return Err(UNEXPECTED_EOF.to_owned()),
        }
    }
}

/// The character of an escape sequence, and the length of the sequence.
fn escape(json: &[u8]) -> Result<(char, usize), String> {
    let character = match json.get(1) {
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => return unicode(json),
        Some(&byte) if b"\"\\/".contains(&byte) => char::from(byte),
        _ => return Err(invalid(json, 2)),
    };
    Ok((character, 2))
}

fn unicode(json: &[u8]) -> Result<(char, usize), String> {
    let unit = |at: usize| {
        let digits = json.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let first = unit(0).ok_or_else(|| invalid(json, 6))?;
    if let Some(character) = char::from_u32(u32::from(first)) {
        return Ok((character, 6));
    }
    // Half of a pair.
    if json.len() < 12 {
        return Err(UNEXPECTED_EOF.to_owned());
    }
    let pair = unit(6).and_then(|second| char::decode_utf16([first, second]).next()?.ok());
    pair.filter(|&character| character > '\u{ffff}')
        .map(|character| (character, 12))
        .ok_or_else(|| invalid(&json[6..], 6))
}

fn invalid(json: &[u8], length: usize) -> String {
    let shown = String::from_utf8_lossy(&json[..length.min(json.len())]).into_owned();
    format!("invalid escape code {shown:?} in string")
}

/// Appends `text` as a string of JSON.
pub(super) fn push_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend([b'\\', character as u8]),
            '\u{8}' => out.extend(b"\\b"),
            '\u{c}' => out.extend(b"\\f"),
            '\n' => out.extend(b"\\n"),
            '\r' => out.extend(b"\\r"),
            '\t' => out.extend(b"\\t"),
            '\0'..' ' => out.extend(format!("\\u{:04x}", u32::from(character)).bytes()),
            _ => out.extend(character.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_read_with_their_escapes() {
        let (text, length) = parse_string(br#""a\"\\\/\b\f\n\r\t\u00e4\ud83d\ude00\u20ac" rest"#).expect("a string");
        assert_eq!((text.as_str(), length), ("a\"\\/\u{8}\u{c}\n\r\tä😀€", 43));
        for (json, error) in [
            (&b"\"\xff\""[..], "invalid UTF-8 in string"),
            (br#""\ud800abcdefg""#, r#"invalid escape code "abcdef" in string"#),
            (br#""\ud800\u0041""#, r#"invalid escape code "\\u0041" in string"#),
            (br#""\ud800""#, "unexpected EOF"),
        ] {
            assert_eq!(parse_string(json), Err(error.to_owned()));
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for text in ["", "plain", "\"\\\u{0}\u{1f}\u{7f}\n\r\t\u{8}\u{c}", "ä€😀</script>"] {
            let mut json = Vec::new();
            push_string(text, &mut json);
            assert_eq!(parse_string(&json), Ok((text.to_owned(), json.len())));
            assert_eq!(serde_json::from_slice::<String>(&json).expect("JSON"), text);
        }
    }
}
