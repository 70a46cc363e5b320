//! Notations of Go that etcdctl's output and input are made of: quoting, numbers, sizes. What flags of other modes have too
//! is in `config/golang.rs`.

pub(super) use crate::config::golang::{duration, parse_bool, parse_duration, quote};

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

/// `strconv.ParseInt`; base 0 understands `0x`, `0o`, `0b`, a leading `0` for octal, and `_` between digits.
pub(super) fn parse_int(text: &str, base: u32) -> Result<i64, String> {
    parse_number(text, base, "ParseInt", i128::from(i64::MIN), i128::from(i64::MAX))
        .map(|value| i64::try_from(value).expect("inside the bounds given"))
}

/// `strconv.ParseUint`.
pub(super) fn parse_uint(text: &str, base: u32) -> Result<u64, String> {
    if text.starts_with(['+', '-']) {
        return Err(format!("strconv.ParseUint: parsing {}: invalid syntax", quote(text.as_bytes())));
    }
    parse_number(text, base, "ParseUint", 0, i128::from(u64::MAX))
        .map(|value| u64::try_from(value).expect("inside the bounds given"))
}

fn parse_number(text: &str, base: u32, function: &str, least: i128, most: i128) -> Result<i128, String> {
    let wrong = |why: &str| format!("strconv.{function}: parsing {}: {why}", quote(text.as_bytes()));
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, prefix) = match (base, digits.as_bytes()) {
        (0, [b'0', b'x' | b'X', _, ..]) => (16, 2),
        (0, [b'0', b'o' | b'O', _, ..]) => (8, 2),
        (0, [b'0', b'b' | b'B', _, ..]) => (2, 2),
        (0, [b'0', ..]) => (8, 0),
        (0, _) => (10, 0),
        (base, _) => (base, 0),
    };
    let digits = &digits[prefix..];
    // With base 0 one `_` may follow a prefix or a digit, if a digit follows it.
    let groups: Vec<&str> = match (base, prefix) {
        (0, 0) => digits.split('_').collect(),
        (0, _) => digits.strip_prefix('_').unwrap_or(digits).split('_').collect(),
        _ => vec![digits],
    };
    if groups.iter().any(|group| group.is_empty() || !group.chars().all(|c| c.is_digit(radix))) {
        return Err(wrong("invalid syntax"));
    }
    let value = i128::from_str_radix(&groups.concat(), radix).map_err(|_| wrong("value out of range"))?;
    let value = if negative { -value } else { value };
    if (least..=most).contains(&value) { Ok(value) } else { Err(wrong("value out of range")) }
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
    fn numbers_fail_in_gos_words() {
        assert_eq!(parse_int("-0x10", 0), Ok(-16));
        assert_eq!(parse_int("zz", 16).unwrap_err(), r#"strconv.ParseInt: parsing "zz": invalid syntax"#);
        assert_eq!(
            parse_int("8000000000000000", 16).unwrap_err(),
            r#"strconv.ParseInt: parsing "8000000000000000": value out of range"#
        );
        assert_eq!(parse_uint("90f0f695f833e81f", 16), Ok(0x90f0f695f833e81f));
        assert_eq!(parse_uint("-1", 16).unwrap_err(), r#"strconv.ParseUint: parsing "-1": invalid syntax"#);
        assert_eq!(parse_int("", 10).unwrap_err(), r#"strconv.ParseInt: parsing "": invalid syntax"#);
    }

    #[test]
    fn base_0_is_that_of_go() {
        // Cause: a leading zero was decimal, and `_` was refused.
        let cases = [
            ("0", 0),
            ("-0", 0),
            ("10", 10),
            ("010", 8),
            ("-010", -8),
            ("0o10", 8),
            ("0X1f", 31),
            ("0b11", 3),
            ("1_000", 1000),
            ("0_7", 7),
            ("0x_1_0", 16),
            ("-0b1_1", -3),
        ];
        for (text, value) in cases {
            assert_eq!(parse_int(text, 0), Ok(value), "{text}");
        }
        assert_eq!(parse_uint("0_10", 0), Ok(8));
        for text in
            ["089", "0x", "0b", "0o", "0b2", "_1", "1_", "1__0", "0_", "0x_", "0x1_", "0x__1", "-_1", "_", "-", "1é"]
        {
            let error = format!("strconv.ParseInt: parsing {}: invalid syntax", quote(text.as_bytes()));
            assert_eq!(parse_int(text, 0), Err(error));
        }
        // Another base allows none of it.
        assert_eq!(parse_int("010", 10), Ok(10));
        parse_int("1_0", 10).unwrap_err();
        parse_int("0x10", 16).unwrap_err();
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
