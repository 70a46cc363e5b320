use std::io::BufRead;

use super::failure::{Exit, Failure};
use super::flags::{self, Flag, Word};
use super::tree::{DEL_FLAGS, GET_FLAGS, PUT_FLAGS};
use super::{golang, requests};
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{Compare, RequestOp, TxnRequest};

/// Reads a whole transaction: compares, success operations, failure operations, each ended by an empty line.
/// `prompt` is told what comes next.
pub(super) fn read(input: &mut impl BufRead, mut prompt: impl FnMut(&str)) -> Result<TxnRequest, Failure> {
    prompt("compares:");
    let compare = section(input, compare)?;
    prompt("success requests (get, put, del):");
    let success = section(input, operation)?;
    prompt("failure requests (get, put, del):");
    let failure = section(input, operation)?;
    Ok(TxnRequest { compare, success, failure })
}

fn section<T>(input: &mut impl BufRead, read: impl Fn(&str) -> Result<T, Failure>) -> Result<Vec<T>, Failure> {
    let mut items = Vec::new();
    loop {
        let mut line = Vec::new();
        input.read_until(b'\n', &mut line).map_err(|error| invalid(format!("read standard input: {error}")))?;
        if line.pop() != Some(b'\n') {
            return Err(invalid("EOF"));
        }
        let line = String::from_utf8(line).map_err(|_| invalid("input is not UTF-8, quote other bytes as \\xff"))?;
        match line.trim() {
            "" => return Ok(items),
            line => items.push(read(line)?),
        }
    }
}

fn invalid(text: impl Into<String>) -> Failure {
    Failure::new(Exit::InvalidInput, text)
}

/// Reads `target("key") op "value"`.
fn compare(line: &str) -> Result<Compare, Failure> {
    let (target, rest) = line.split_once('(').ok_or_else(|| invalid(format!("malformed comparison: {line}")))?;
    let (mut key, mut op, mut value) = (Vec::new(), "", None);
    if let Some((quoted, rest)) = golang::unquote_prefix(rest.trim_start()) {
        key = quoted;
        if let Some(rest) = rest.strip_prefix(')') {
            let rest = rest.trim_start();
            let (word, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            op = word;
            value = golang::unquote_prefix(rest.trim_start()).map(|(value, _)| value);
        }
    }
    let Some(value) = value else {
        let key = golang::quote(&key);
        return Err(invalid(format!("malformed comparison: {line}; got {target}({key}) {op} \"\"")));
    };
    let result = match op {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        _ => return Err(invalid(format!("malformed comparison: {line} (unknown operator {op})"))),
    };
    let number = |base| {
        let text = String::from_utf8_lossy(&value);
        golang::parse_int(&text, base).map_err(|_| invalid(format!("invalid txn compare request: {line}")))
    };
    let (target, union) = match target {
        "ver" | "version" => (CompareTarget::Version, TargetUnion::Version(number(10)?)),
        "c" | "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number(10)?)),
        "m" | "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number(10)?)),
        "val" | "value" => (CompareTarget::Value, TargetUnion::Value(value.clone().into())),
        // Lease ids are hex everywhere else on this command line.
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number(16)?)),
        _ => return Err(invalid(format!("malformed comparison: {line} (unknown target {target})"))),
    };
    Ok(Compare {
        result: result as i32,
        target: target as i32,
        key: key.into(),
        target_union: Some(union),
        ..Default::default()
    })
}

/// Reads `get …`, `put …` or `del …` with the flags of these commands.
fn operation(line: &str) -> Result<RequestOp, Failure> {
    let words = split(line)?;
    let [verb, rest @ ..] = words.as_slice() else {
        return Err(invalid(format!("invalid txn compare request: {line}")));
    };
    if rest.is_empty() {
        return Err(invalid(format!("invalid txn compare request: {line}")));
    }
    let parse = |flags: &[Flag]| {
        flags::parse(&flags.iter().collect::<Vec<_>>(), rest)
            .map_err(|why| invalid(format!("invalid txn request: {line} ({why})")))
    };
    let request = match verb.as_slice() {
        b"get" => Request::RequestRange(requests::get(&parse(GET_FLAGS)?)?),
        // Standard input holds the transaction, so a value cannot come from there.
        b"put" => Request::RequestPut(requests::put(&parse(PUT_FLAGS)?, || Ok(Vec::new()))?),
        b"del" => Request::RequestDeleteRange(requests::delete(&parse(DEL_FLAGS)?)?.0),
        _ => return Err(invalid(format!("invalid txn request: {line}"))),
    };
    Ok(RequestOp { request: Some(request) })
}

/// Splits a line into words: `"…"` with Go's escapes, `'…'` as it stands, everything else up to white space.
pub(super) fn split(line: &str) -> Result<Vec<Word>, Failure> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let quoted = match first {
            '"' => double_quoted(rest),
            '\'' => rest[1..].find('\'').map(|end| &rest[..end + 2]),
            _ => None,
        };
        match (first, quoted) {
            ('"', Some(literal)) => {
                let (bytes, _) = golang::unquote_prefix(literal).ok_or_else(|| invalid("invalid syntax"))?;
                words.push(bytes);
                rest = &rest[literal.len()..];
            }
            ('\'', Some(literal)) => {
                words.push(literal.as_bytes()[1..literal.len() - 1].to_vec());
                rest = &rest[literal.len()..];
            }
            // A quote that nothing closes stands for nothing.
            ('"' | '\'', _) => rest = &rest[1..],
            _ => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                words.push(rest.as_bytes()[..end].to_vec());
                rest = &rest[end..];
            }
        }
        rest = rest.trim_start();
    }
    Ok(words)
}

/// The literal at the start, from quote to quote.
fn double_quoted(text: &str) -> Option<&str> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(&text[..=at]),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn txn(text: &str) -> Result<TxnRequest, Failure> {
        read(&mut text.as_bytes(), |_| {})
    }

    #[test]
    fn a_transaction_has_three_sections() {
        let request =
            txn("mod(\"a\") > \"0\"\nval(\"b\") = \"x y\"\n\nput a \"b c\"\nget a --prefix\n\ndel a --prev-kv\n\n")
                .unwrap();
        assert_eq!(request.compare.len(), 2);
        assert_eq!(request.compare[0].target_union, Some(TargetUnion::ModRevision(0)));
        assert_eq!(request.compare[0].result(), CompareResult::Greater);
        assert_eq!(request.compare[1].target_union, Some(TargetUnion::Value("x y".into())));
        let Some(Request::RequestPut(put)) = &request.success[0].request else { panic!("a put") };
        assert_eq!((put.key.as_ref(), put.value.as_ref()), (&b"a"[..], &b"b c"[..]));
        let Some(Request::RequestRange(get)) = &request.success[1].request else { panic!("a get") };
        assert_eq!(get.range_end, "b");
        assert!(matches!(request.failure[0].request, Some(Request::RequestDeleteRange(_))));
    }

    #[test]
    fn prompts_come_before_each_section() {
        let mut prompts = Vec::new();
        read(&mut &b"\n\n\n"[..], |text| prompts.push(text.to_owned())).unwrap();
        assert_eq!(prompts, ["compares:", "success requests (get, put, del):", "failure requests (get, put, del):"]);
    }

    #[test]
    fn every_target_is_understood() {
        for (line, union) in [
            (r#"ver("k") = "1""#, TargetUnion::Version(1)),
            (r#"version("k") = "1""#, TargetUnion::Version(1)),
            (r#"c("k") = "2""#, TargetUnion::CreateRevision(2)),
            (r#"create("k") = "2""#, TargetUnion::CreateRevision(2)),
            (r#"m("k") != "3""#, TargetUnion::ModRevision(3)),
            (r#"value("k") < "v""#, TargetUnion::Value("v".into())),
            (r#"lease("k") = "ff""#, TargetUnion::Lease(255)),
        ] {
            assert_eq!(compare(line).unwrap().target_union, Some(union), "{line}");
        }
    }

    #[test]
    fn bad_input_is_named_with_its_code() {
        let cases = [
            ("mod(\"foo\") > \"0\"", 3, "EOF"),
            ("mod(\"foo\") > 0\n\n\n\n", 3, r#"malformed comparison: mod("foo") > 0; got mod("foo") > """#),
            ("mod foo > 0\n\n\n\n", 3, "malformed comparison: mod foo > 0"),
            ("mdo(\"foo\") > \"0\"\n\n\n\n", 3, r#"malformed comparison: mdo("foo") > "0" (unknown target mdo)"#),
            ("mod(\"foo\") > \"x\"\n\n\n\n", 3, r#"invalid txn compare request: mod("foo") > "x""#),
            ("mod(\"foo\") ~ \"0\"\n\n\n\n", 3, r#"malformed comparison: mod("foo") ~ "0" (unknown operator ~)"#),
            ("\nput a\n\n\n", 128, "put command needs 1 argument and input from stdin or 2 arguments"),
            ("\nput\n\n\n", 3, "invalid txn compare request: put"),
            ("\nput a b --foo\n\n\n", 3, "invalid txn request: put a b --foo (unknown flag: --foo)"),
            ("\nfrob a b\n\n\n", 3, "invalid txn request: frob a b"),
            ("\nget a --sort-by=xx\n\n\n", 4, "bad sort target xx"),
        ];
        for (input, code, text) in cases {
            let failure = txn(input).unwrap_err();
            assert_eq!((failure.code, failure.text.as_str()), (code, text), "{input:?}");
        }
    }

    #[test]
    fn words_split_like_a_small_shell() {
        let split = |line: &str| {
            let words = split(line).unwrap();
            words.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(split(r#"put a "b \"c\"" 'd e'"#), ["put", "a", "b \"c\"", "d e"]);
        assert_eq!(split("put  k  v=\"x\""), ["put", "k", "v=\"x\""]);
        assert_eq!(split("get \"open"), ["get", "open"]);
        assert_eq!(split(""), Vec::<String>::new());
    }
}
