//! Notations of Go that flags have: booleans, integers, durations, quoted text.

use std::fmt::{self, Write as _};
use std::str::FromStr;
use std::time::Duration;

use unicode_general_category::{GeneralCategory, get_general_category};

/// A duration in the notation of etcd's flags: `300ms`, `1m30s`, `1.5h`, a bare `0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_duration(text).map(Self)
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&duration(self.0))
    }
}

/// `strconv.ParseBool`.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {}: invalid syntax", quote(text.as_bytes()))),
    }
}

/// `strconv.ParseInt`; base 0 understands `0x`, `0o`, `0b`, a leading `0` for octal, and `_` between digits.
pub fn parse_int(text: &str, base: u32) -> Result<i64, String> {
    parse_number(text, base, "ParseInt", i128::from(i64::MIN), i128::from(i64::MAX))
        .map(|value| i64::try_from(value).expect("inside the bounds given"))
}

/// `strconv.ParseUint`.
pub fn parse_uint(text: &str, base: u32) -> Result<u64, String> {
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

/// `time.ParseDuration`, without negative spans.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let quoted = quote(text.as_bytes());
    let invalid = || format!("time: invalid duration {quoted}");
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (value, after) = rest.split_at(number);
        let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(invalid());
        }
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let scale: u128 = match unit {
            "" => return Err(format!("time: missing unit in duration {quoted}")),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(format!("time: unknown unit {} in duration {quoted}", quote(unit.as_bytes()))),
        };
        let part = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u64>().ok().map(u128::from) };
        let whole = part(whole).ok_or_else(invalid)?;
        // More digits than a nanosecond can hold say nothing.
        let fraction = &fraction[..fraction.len().min(18)];
        let below = part(fraction).ok_or_else(invalid)? * scale / 10u128.pow(fraction.len() as u32);
        nanos += whole * scale + below;
        rest = next;
    }
    if nanos > i64::MAX as u128 {
        return Err(invalid());
    }
    Ok(Duration::from_nanos(nanos as u64))
}

/// `Duration.String`: `1m30s`, `2.132425ms`.
pub fn duration(span: Duration) -> String {
    let nanos = span.as_nanos();
    let fraction = |unit: u128, name: &str| {
        let mut text = (nanos / unit).to_string();
        let rest = nanos % unit;
        if rest > 0 {
            let digits = format!("{rest:0width$}", width = unit.ilog10() as usize);
            text.push('.');
            text.push_str(digits.trim_end_matches('0'));
        }
        text + name
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => fraction(1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(1_000_000, "ms"),
        _ => {
            let minutes = span.as_secs() / 60;
            let seconds = Duration::new(span.as_secs() % 60, span.subsec_nanos()).as_nanos();
            let mut text = (seconds / 1_000_000_000).to_string();
            if !seconds.is_multiple_of(1_000_000_000) {
                text.push('.');
                text.push_str(format!("{:09}", seconds % 1_000_000_000).trim_end_matches('0'));
            }
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{text}s"),
                (0, minutes) => format!("{minutes}m{text}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{text}s"),
            }
        }
    }
}

/// `%q`: a double-quoted literal. Bytes that are no UTF-8 are escaped one by one.
pub fn quote(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 2);
    text.push('"');
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\x07' => text.push_str("\\a"),
                '\x08' => text.push_str("\\b"),
                '\x0c' => text.push_str("\\f"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '\x0b' => text.push_str("\\v"),
                c if (c as u32) < 0x20 || c == '\x7f' => {
                    let _ = write!(text, "\\x{:02x}", c as u32);
                }
                c if is_printable(c) => text.push(c),
                c if (c as u32) < 0x10000 => {
                    let _ = write!(text, "\\u{:04x}", c as u32);
                }
                c => {
                    let _ = write!(text, "\\U{:08x}", c as u32);
                }
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text.push('"');
    text
}

/// `strconv.IsPrint`: letters, marks, numbers, punctuation, symbols and the ASCII space, as of Unicode 15.0. The
/// standard library's tables are newer and would let characters pass that Go escapes.
fn is_printable(c: char) -> bool {
    use GeneralCategory::{
        Control, Format, LineSeparator, ParagraphSeparator, PrivateUse, SpaceSeparator, Surrogate, Unassigned,
    };
    let hidden = matches!(
        get_general_category(c),
        Control | Format | LineSeparator | ParagraphSeparator | PrivateUse | SpaceSeparator | Surrogate | Unassigned
    );
    c == ' ' || !hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print_as_in_go() {
        let cases = [
            (2_132_425, "2.132425ms"),
            (1_000_601_778, "1.000601778s"),
            (5_000_000_000, "5s"),
            (90_500_000_000, "1m30.5s"),
            (3_600_000_000_000, "1h0m0s"),
            (250, "250ns"),
            (1_500, "1.5µs"),
            (0, "0s"),
        ];
        for (nanos, text) in cases {
            assert_eq!(duration(Duration::from_nanos(nanos)), text);
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
        for (text, millis) in [("0", 0), ("1m30s", 90_000), ("1.5h", 5_400_000), ("1h2m3.5s", 3_723_500)] {
            assert_eq!(text.parse(), Ok(GoDuration(Duration::from_millis(millis))), "{text}");
        }
        for text in ["5", "-1s", "s", "1..5s", "1e3s", "9999999999h", "1s ", "∞"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(parse_duration("").unwrap_err(), r#"time: invalid duration """#);
        assert_eq!(parse_duration("5x").unwrap_err(), r#"time: unknown unit "x" in duration "5x""#);
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
}
