//! Cuts a body into JSON values.

use bytes::{Bytes, BytesMut};

/// Arrays and objects within one another, as many as etcd's parser takes.
const DEPTH_MAX: usize = 10_000;

/// The values of a body that comes in chunks. What stands between two values is left out; nothing but white space may.
#[derive(Debug, Default)]
pub(super) struct Values {
    /// What has come and does not belong to a value that was given out.
    held: BytesMut,
    /// How much of it `scanner` has seen.
    scanned: usize,
    scanner: Scanner,
}

impl Values {
    /// Takes a chunk in.
    pub(super) fn push(&mut self, chunk: &[u8]) {
        self.held.extend_from_slice(chunk);
    }

    /// Bytes of the value that is not complete.
    pub(super) fn held_bytes(&self) -> usize {
        self.held.len()
    }

    /// The next value; none before all of it has come.
    ///
    /// # Errors
    /// What is wrong with it, in the words of Go's parser.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, String> {
        if self.scanner.is_fresh() {
            let space = self.held.iter().take_while(|&&byte| is_space(byte)).count();
            let _ = self.held.split_to(space);
        }
        while let Some(&byte) = self.held.get(self.scanned) {
            match self.scanner.step(byte)? {
                Step::Inside => self.scanned += 1,
                Step::EndWith => {
                    self.scanned += 1;
                    return Ok(Some(self.take()));
                }
                Step::EndBefore => return Ok(Some(self.take())),
            }
        }
        Ok(None)
    }

    /// The value that the end of the body completes, if there is one.
    ///
    /// # Errors
    /// When a value has begun and is not complete.
    pub(super) fn end(&mut self) -> Result<Option<Bytes>, String> {
        if self.held.is_empty() {
            return Ok(None);
        }
        match self.scanner.step(b' ') {
            Ok(Step::EndBefore) => Ok(Some(self.take())),
            _ => Err("unexpected EOF".to_owned()),
        }
    }

    fn take(&mut self) -> Bytes {
        self.scanner = Scanner::default();
        self.held.split_to(std::mem::take(&mut self.scanned)).freeze()
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// What a byte is to the value.
enum Step {
    Inside,
    /// Its last byte.
    EndWith,
    /// The first one after it.
    EndBefore,
}

/// Recognises one JSON value byte by byte.
#[derive(Debug, Default)]
struct Scanner {
    state: State,
    /// The arrays and objects that are open.
    open: Vec<Open>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Open {
    Array,
    /// Before the colon.
    Key,
    /// After it.
    Value,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum State {
    /// Before a value.
    #[default]
    Value,
    /// Before the first value of an array.
    ValueOrEnd,
    /// Before the first key of an object.
    KeyOrEnd,
    Key,
    /// After a value or a key.
    After,
    Text,
    Escape,
    /// In `\u`, with this many digits to come.
    Hex(u8),
    Minus,
    Zero,
    Digits,
    Dot,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    /// In this literal, at this byte of it.
    Literal(&'static str, u8),
}

impl Scanner {
    fn is_fresh(&self) -> bool {
        self.state == State::Value && self.open.is_empty()
    }

    fn step(&mut self, byte: u8) -> Result<Step, String> {
        use State::*;
        match self.state {
            Value | ValueOrEnd | KeyOrEnd | Key | After if is_space(byte) => {
                let ends = self.state == After && self.open.is_empty();
                return Ok(if ends { Step::EndBefore } else { Step::Inside });
            }
            ValueOrEnd if byte == b']' => return Ok(self.close()),
            Value | ValueOrEnd => return self.value(byte),
            KeyOrEnd if byte == b'}' => return Ok(self.close()),
            KeyOrEnd | Key if byte == b'"' => self.state = Text,
            KeyOrEnd | Key => return Err(invalid(byte, "looking for beginning of object key string")),
            After => return self.after(byte),
            Text => match byte {
                b'"' => self.state = After,
                b'\\' => self.state = Escape,
                0..0x20 => return Err(invalid(byte, "in string literal")),
                _ => {}
            },
            Escape => match byte {
                b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => self.state = Text,
                b'u' => self.state = Hex(4),
                _ => return Err(invalid(byte, "in string escape code")),
            },
            Hex(left) if byte.is_ascii_hexdigit() => self.state = if left == 1 { Text } else { Hex(left - 1) },
            Hex(_) => return Err(invalid(byte, "in \\u hexadecimal character escape")),
            Minus => match byte {
                b'0' => self.state = Zero,
                b'1'..=b'9' => self.state = Digits,
                _ => return Err(invalid(byte, "in numeric literal")),
            },
            Digits if byte.is_ascii_digit() => {}
            Digits | Zero => match byte {
                b'.' => self.state = Dot,
                b'e' | b'E' => self.state = Exponent,
                _ => return self.after(byte),
            },
            Dot if byte.is_ascii_digit() => self.state = Fraction,
            Dot => return Err(invalid(byte, "after decimal point in numeric literal")),
            Fraction if byte.is_ascii_digit() => {}
            Fraction if matches!(byte, b'e' | b'E') => self.state = Exponent,
            Exponent if matches!(byte, b'+' | b'-') => self.state = ExponentSign,
            Exponent | ExponentSign if byte.is_ascii_digit() => self.state = ExponentDigits,
            Exponent | ExponentSign => return Err(invalid(byte, "in exponent of numeric literal")),
            ExponentDigits if byte.is_ascii_digit() => {}
            Fraction | ExponentDigits => return self.after(byte),
            Literal(text, at) => {
                let expected = text.as_bytes()[usize::from(at)];
                if byte != expected {
                    let expected = char::from(expected);
                    return Err(invalid(byte, &format!("in literal {text} (expecting '{expected}')")));
                }
                let done = usize::from(at) + 1 == text.len();
                self.state = if done { After } else { Literal(text, at + 1) };
            }
        }
        Ok(Step::Inside)
    }

    /// The first byte of a value.
    fn value(&mut self, byte: u8) -> Result<Step, String> {
        self.state = match byte {
            b'{' => return self.open(byte, Open::Key, State::KeyOrEnd),
            b'[' => return self.open(byte, Open::Array, State::ValueOrEnd),
            b'"' => State::Text,
            b'-' => State::Minus,
            b'0' => State::Zero,
            b'1'..=b'9' => State::Digits,
            b't' => State::Literal("true", 1),
            b'f' => State::Literal("false", 1),
            b'n' => State::Literal("null", 1),
            _ => return Err(invalid(byte, "looking for beginning of value")),
        };
        Ok(Step::Inside)
    }

    fn open(&mut self, byte: u8, open: Open, state: State) -> Result<Step, String> {
        if self.open.len() >= DEPTH_MAX {
            return Err(invalid(byte, "exceeded max depth"));
        }
        self.open.push(open);
        self.state = state;
        Ok(Step::Inside)
    }

    fn close(&mut self) -> Step {
        self.open.pop();
        self.state = State::After;
        if self.open.is_empty() { Step::EndWith } else { Step::Inside }
    }

    /// A byte after a value or a key.
    fn after(&mut self, byte: u8) -> Result<Step, String> {
        let Some(open) = self.open.last_mut() else { return Ok(Step::EndBefore) };
        self.state = State::After;
        match (*open, byte) {
            _ if is_space(byte) => {}
            (Open::Key, b':') => {
                *open = Open::Value;
                self.state = State::Value;
            }
            (Open::Key, _) => return Err(invalid(byte, "after object key")),
            (Open::Value, b',') => {
                *open = Open::Key;
                self.state = State::Key;
            }
            (Open::Array, b',') => self.state = State::Value,
            (Open::Value, b'}') | (Open::Array, b']') => return Ok(self.close()),
            (Open::Value, _) => return Err(invalid(byte, "after object key:value pair")),
            (Open::Array, _) => return Err(invalid(byte, "after array element")),
        }
        Ok(Step::Inside)
    }
}

fn invalid(byte: u8, place: &str) -> String {
    let shown = match byte {
        b'\'' => r"\'".to_owned(),
        b'"' => "\"".to_owned(),
        0x07 => r"\a".to_owned(),
        0x08 => r"\b".to_owned(),
        0x0b => r"\v".to_owned(),
        0x0c => r"\f".to_owned(),
        b'\n' | b'\r' | b'\t' | b'\\' => char::from(byte).escape_default().to_string(),
        0..0x20 | 0x7f => format!(r"\x{byte:02x}"),
        0x80..0xa0 | 0xad => format!(r"\u{byte:04x}"),
        _ => char::from(byte).to_string(),
    };
    format!("invalid character '{shown}' {place}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of a body that comes in chunks of `step` bytes, and the error that ends it.
    fn read(text: &str, step: usize) -> (Vec<String>, Option<String>) {
        let (mut values, mut read) = (Values::default(), Vec::new());
        let mut outcome = || {
            for chunk in text.as_bytes().chunks(step) {
                values.push(chunk);
                while let Some(value) = values.next()? {
                    read.push(String::from_utf8(value.to_vec()).expect("text"));
                }
            }
            read.extend(values.end()?.map(|value| String::from_utf8(value.to_vec()).expect("text")));
            Ok(())
        };
        let error = outcome().err();
        (read, error)
    }

    fn check(text: &str, values: &[&str], error: Option<&str>) {
        for step in 1..=text.len().max(1) {
            let expected = (values.iter().map(ToString::to_string).collect(), error.map(str::to_owned));
            assert_eq!(read(text, step), expected, "{text:?} in steps of {step}");
        }
    }

    #[test]
    fn values_are_cut_wherever_the_chunks_end() {
        check(r#" {"a":[1,{"b":"}\""}]}{"c":null}  {} "#, &[r#"{"a":[1,{"b":"}\""}]}"#, r#"{"c":null}"#, "{}"], None);
        check("12 true\"x\"-0.5e+7[ ]", &["12", "true", "\"x\"", "-0.5e+7", "[ ]"], None);
        check("12", &["12"], None);
        check("", &[], None);
        check(" \n", &[], None);
    }

    #[test]
    fn errors_are_worded_as_those_of_go() {
        for (text, error) in [
            ("{", "unexpected EOF"),
            ("\"", "unexpected EOF"),
            ("-", "unexpected EOF"),
            ("tru", "unexpected EOF"),
            ("- ", "invalid character ' ' in numeric literal"),
            ("nope", "invalid character 'o' in literal null (expecting 'u')"),
            ("x", "invalid character 'x' looking for beginning of value"),
            ("{x", "invalid character 'x' looking for beginning of object key string"),
            ("{\"a\" 1", "invalid character '1' after object key"),
            ("{\"a\":1 2", "invalid character '2' after object key:value pair"),
            ("[1 2", "invalid character '2' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
            ("\"\n", "invalid character '\\n' in string literal"),
            ("\"\\x", "invalid character 'x' in string escape code"),
            ("\"\\u00g", "invalid character 'g' in \\u hexadecimal character escape"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1ex", "invalid character 'x' in exponent of numeric literal"),
        ] {
            check(text, &[], Some(error));
        }
        let deep = "[".repeat(DEPTH_MAX + 1);
        assert_eq!(read(&deep, deep.len()).1.as_deref(), Some("invalid character '[' exceeded max depth"));
    }
}
