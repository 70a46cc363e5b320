//! Numbers as JSON writes them, where whole ones are wanted.

/// Decimal digits of the largest number there is.
const DIGITS_MAX: usize = 20;

/// The length of the number that `text` begins with; none when it begins with no number, or with more than one.
pub(super) fn parse_number(text: &[u8]) -> Option<usize> {
    let digits = |from: usize| text[from.min(text.len())..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut at = usize::from(text.first() == Some(&b'-'));
    match text.get(at)? {
        b'0' => at += 1,
        b'1'..=b'9' => at += digits(at),
        _ => return None,
    }
    if text.get(at) == Some(&b'.') && digits(at + 1) > 0 {
        at += 1 + digits(at + 1);
    }
    if matches!(text.get(at), Some(b'e' | b'E')) && at + 1 < text.len() {
        at += 1;
        if matches!(text[at], b'+' | b'-') {
            at += 1;
            text.get(at)?;
        }
        at += digits(at);
    }
    let delimited = text.get(at).is_none_or(|byte| !byte.is_ascii_alphanumeric() && !b"-+._".contains(byte));
    delimited.then_some(at)
}

/// A number without fraction and exponent; none when it is not a whole one, or too long to be one.
pub(super) fn whole_number(number: &[u8]) -> Option<String> {
    let number = std::str::from_utf8(number).ok()?;
    let (sign, number) = number.strip_prefix('-').map_or(("", number), |number| ("-", number));
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    if whole.is_empty() && fraction.is_empty() {
        return Some("0".to_owned());
    }
    let exponent: i32 = exponent.parse().ok()?;
    let shift = usize::try_from(exponent.unsigned_abs()).ok()?;
    if exponent >= 0 {
        if fraction.len() > shift || whole.len().saturating_add(shift) > DIGITS_MAX {
            return None;
        }
        return Some(format!("{sign}{whole}{fraction}{}", "0".repeat(shift - fraction.len())));
    }
    let (kept, moved) = whole.split_at(whole.len().checked_sub(shift)?);
    let is_whole = fraction.is_empty() && moved.bytes().all(|digit| digit == b'0');
    is_whole.then(|| format!("{sign}{kept}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_may_have_a_fraction_and_an_exponent() {
        for (number, whole) in [
            ("0", "0"),
            ("-0", "0"),
            ("-12", "-12"),
            ("1.0", "1"),
            ("1.50e1", "15"),
            ("12e2", "1200"),
            ("1200e-2", "12"),
            ("0.05e+2", "05"),
            ("0e999", "0"),
        ] {
            assert_eq!(parse_number(number.as_bytes()), Some(number.len()), "{number}");
            assert_eq!(whole_number(number.as_bytes()).as_deref(), Some(whole), "{number}");
        }
        for number in ["1.5", "1e21", "1e-1", "1e99999999999", "120e-2", "1e2147483647", "1e-2147483648"] {
            assert_eq!(whole_number(number.as_bytes()), None, "{number}");
        }
    }

    #[test]
    fn a_number_ends_where_it_cannot_go_on() {
        assert_eq!(parse_number(b"12,"), Some(2));
        for text in ["", "-", "x", "01", "1.", "1x", "+1", "1e+", "0x1"] {
            assert_eq!(parse_number(text.as_bytes()), None, "{text}");
        }
    }
}
