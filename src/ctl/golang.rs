//! Notations of Go that etcdctl's output and input are made of: quoting, ids, sizes. What flags of other modes have too is
//! in `config/golang.rs`.

pub(super) use crate::config::golang::{duration, parse_bool, parse_duration, parse_int, parse_uint, quote};

/// `%016x` of a signed number: a sign takes the place of a digit, as in `-000000000000001`.
pub(super) fn lease_id(id: i64) -> String {
    if id < 0 { format!("-{:015x}", id.unsigned_abs()) } else { format!("{id:016x}") }
}

/// What the system said, as Go words it.
pub(super) fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// The quoted literal at the start of `text` and what follows it. Back quotes take everything literally.
pub(super) fn unquote_prefix(text: &str) -> Option<(Vec<u8>, &str)> {
    if let Some(rest) = text.strip_prefix('`') {
        let (raw, rest) = rest.split_once('`')?;
        return Some((raw.replace('\r', "").into_bytes(), rest));
    }
    let mut bytes = Vec::new();
    let mut rest = text.strip_prefix('"')?;
    loop {
        let c = rest.chars().next()?;
        rest = &rest[c.len_utf8()..];
        match c {
            '"' => return Some((bytes, rest)),
            '\n' => return None,
            '\\' => {
                let kind = rest.chars().next()?;
                rest = &rest[kind.len_utf8()..];
                let simple = match kind {
                    'a' => Some(0x07),
                    'b' => Some(0x08),
                    'f' => Some(0x0c),
                    'n' => Some(b'\n'),
                    'r' => Some(b'\r'),
                    't' => Some(b'\t'),
                    'v' => Some(0x0b),
                    '\\' => Some(b'\\'),
                    '"' => Some(b'"'),
                    _ => None,
                };
                if let Some(byte) = simple {
                    bytes.push(byte);
                    continue;
                }
                let mut digits = |count: usize, radix: u32, skip: &str| -> Option<u32> {
                    let digits = rest.get(..count)?;
                    if !digits.chars().all(|c| c.is_digit(radix)) {
                        return None;
                    }
                    rest = &rest[count..];
                    u32::from_str_radix(&format!("{skip}{digits}"), radix).ok()
                };
                match kind {
                    'x' => bytes.push(digits(2, 16, "")? as u8),
                    '0'..='7' => bytes.push(u8::try_from(digits(2, 8, &kind.to_string())?).ok()?),
                    'u' | 'U' => {
                        let c = char::from_u32(digits(if kind == 'u' { 4 } else { 8 }, 16, "")?)?;
                        bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    }
                    _ => return None,
                }
            }
            c => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Bytes in decimal units, two digits: `20 kB`, `1.1 GB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let mut exponent = 0;
    let mut unit: u64 = 1;
    while exponent + 1 < UNITS.len() && bytes / unit >= 1000 {
        unit *= 1000;
        exponent += 1;
    }
    let value = (bytes as f64 / unit as f64 * 10.0 + 0.5).floor() / 10.0;
    if value < 10.0 { format!("{value:.1} {}", UNITS[exponent]) } else { format!("{value:.0} {}", UNITS[exponent]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_and_reading_back_agree() {
        let cases: [(&[u8], &str); 8] = [
            (b"plain", r#""plain""#),
            (b"a \"b\"\\\n\x01\x7f", r#""a \"b\"\\\n\x01\x7f""#),
            (b"\xff\xfe", r#""\xff\xfe""#),
            ("grün\u{301}".as_bytes(), "\"grün\u{301}\""),
            ("\u{200b}\u{e0001}".as_bytes(), r#""\u200b\U000e0001""#),
            (b"", r#""""#),
            // Letters of Unicode 15.0 and of 16.0.
            ("\u{1e4d0}".as_bytes(), "\"\u{1e4d0}\""),
            ("\u{1c89}\u{105c0}".as_bytes(), r#""\u1c89\U000105c0""#),
        ];
        for (bytes, text) in cases {
            assert_eq!(quote(bytes), text);
            assert_eq!(unquote_prefix(text), Some((bytes.to_vec(), "")), "{text}");
        }
        assert_eq!(unquote_prefix(r#""\101" rest"#), Some((b"A".to_vec(), " rest")));
        assert_eq!(unquote_prefix("`a\\n`)"), Some((b"a\\n".to_vec(), ")")));
        for bad in ["\"open", r#""\q""#, "bare", r#""\xf""#, r#""\777""#] {
            assert_eq!(unquote_prefix(bad), None, "{bad}");
        }
    }

    #[test]
    fn lease_ids_read_back() {
        let cases = [
            (0, "0000000000000000"),
            (0x32c0_a223_13cc_5209, "32c0a22313cc5209"),
            (-1, "-000000000000001"),
            (i64::MIN, "-8000000000000000"),
        ];
        for (id, text) in cases {
            assert_eq!(lease_id(id), text);
            assert_eq!(parse_int(text, 16), Ok(id));
        }
    }

    #[test]
    fn sizes_have_two_digits() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (20480, "20 kB"),
            (1_100, "1.1 kB"),
            (24576, "25 kB"),
            (2_147_483_648, "2.1 GB"),
            (9_960, "10 kB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }
}
