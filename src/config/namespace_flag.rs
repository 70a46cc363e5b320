use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;

/// Puts a value of `--namespace` that is not UTF-8 into `--namespace-hex`, since flags are texts. The shells of operators
/// pass any bytes.
pub(super) fn spell_in_hex(args: &[OsString]) -> Vec<OsString> {
    let mut out = Vec::with_capacity(args.len());
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let bytes = arg.as_bytes();
        let flag = bytes.strip_prefix(b"--").or_else(|| bytes.strip_prefix(b"-")).unwrap_or_default();
        if let Some(value) = flag.strip_prefix(b"namespace=").filter(|value| !is_text(value)) {
            out.push(in_hex(value));
        } else if flag == b"namespace" {
            match rest.next() {
                Some(value) if !is_text(value.as_bytes()) => out.push(in_hex(value.as_bytes())),
                value => out.extend([arg].into_iter().chain(value).cloned()),
            }
        } else {
            out.push(arg.clone());
        }
    }
    out
}

fn is_text(bytes: &[u8]) -> bool {
    OsStr::from_bytes(bytes).to_str().is_some()
}

fn in_hex(bytes: &[u8]) -> OsString {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("--namespace-hex={digits}").into()
}

/// The bytes that are written as pairs of hexadecimal digits.
///
/// # Errors
/// What is wrong with the text.
pub(super) fn from_hex(text: &str) -> Result<Bytes, &'static str> {
    const FORM: &str = "must be pairs of hexadecimal digits";
    let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(FORM);
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(FORM) };
    pairs.iter().map(|&[high, low]| Ok((digit(high)? * 16 + digit(low)?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_no_text_is_spelled_in_hex() {
        let check = |args: &[&[u8]], expected: &[&[u8]]| {
            let args: Vec<OsString> = args.iter().map(|arg| OsStr::from_bytes(arg).to_owned()).collect();
            let spelled = spell_in_hex(&args);
            assert_eq!(spelled.iter().map(|arg| arg.as_bytes()).collect::<Vec<_>>(), expected);
        };
        check(&[b"--namespace=a\xffb"], &[b"--namespace-hex=61ff62"]);
        check(&[b"-namespace", b"\xff", b"--debug"], &[b"--namespace-hex=ff", b"--debug"]);
        check(&[b"--namespace", b"a/"], &[b"--namespace", b"a/"]);
        check(&[b"--namespace"], &[b"--namespace"]);
        // Another flag's value stays what it is, for its own error.
        check(&[b"--endpoints=\xff", b"--namespaces=\xff"], &[b"--endpoints=\xff", b"--namespaces=\xff"]);
    }

    #[test]
    fn hex_is_pairs_of_digits() {
        assert_eq!(from_hex("61fF0a").as_deref(), Ok(&b"a\xff\n"[..]));
        assert_eq!(from_hex("").as_deref(), Ok(&b""[..]));
        for wrong in ["6", "6g", "+1", "a b "] {
            assert!(from_hex(wrong).is_err(), "{wrong}");
        }
    }
}
