use bytes::Bytes;

use super::failure::{Exit, Failure};
use super::flags::{Parsed, Word};
use super::golang;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};
use crate::types::KeyRange;

/// Where `get` and `del` get their key and range end from.
struct Span {
    key: Bytes,
    range_end: Bytes,
}

/// The key and range end that words and flags mean.
fn span(parsed: &Parsed) -> Result<Span, Failure> {
    let (prefix, from_key) = (parsed.bool("prefix"), parsed.bool("from-key"));
    let mut words = parsed.args.iter().map(|word| Bytes::copy_from_slice(word));
    let key = words.next().unwrap_or_default();
    let range_end = words.next();
    if range_end.is_some() && (prefix || from_key) {
        return Err(Failure::args(
            "too many arguments, only accept one argument when `--prefix` or `--from-key` is set",
        ));
    }
    if prefix || from_key {
        return Ok(open_span(key, prefix));
    }
    Ok(Span { key, range_end: range_end.unwrap_or_default() })
}

fn open_span(key: Bytes, prefix: bool) -> Span {
    let range = if prefix || key.is_empty() { KeyRange::prefix(key) } else { KeyRange::From(key) };
    let (key, range_end) = range.to_wire();
    Span { key, range_end }
}

/// The key and range end of a watch.
pub(super) fn watch_span(words: &[Word], prefix: bool) -> Result<(Bytes, Bytes), Failure> {
    match words {
        [key] if prefix => {
            let span = open_span(Bytes::copy_from_slice(key), true);
            Ok((span.key, span.range_end))
        }
        [key] => Ok((Bytes::copy_from_slice(key), Bytes::new())),
        [_, _] if prefix => Err(Failure::args("`range_end` and `--prefix` are mutually exclusive")),
        [key, end] => Ok((Bytes::copy_from_slice(key), Bytes::copy_from_slice(end))),
        // etcdctl takes more words than two for a watch of the first alone.
        [key, ..] => Ok((Bytes::copy_from_slice(key), Bytes::new())),
        [] => Err(Failure::args("bad number of arguments")),
    }
}

/// `l` or `s`.
pub(super) fn serializable(parsed: &Parsed) -> Result<bool, Failure> {
    match parsed.text("consistency") {
        "s" => Ok(true),
        "l" => Ok(false),
        other => {
            let text = format!("unknown consistency flag {}", golang::quote(other.as_bytes()));
            Err(Failure::new(Exit::BadFeature, text))
        }
    }
}

/// The request of a `get`.
pub(super) fn get(parsed: &Parsed) -> Result<RangeRequest, Failure> {
    if parsed.args.is_empty() {
        return Err(Failure::args("get command needs one argument as key and an optional argument as range_end"));
    }
    one_of(parsed, "prefix", "from-key")?;
    one_of(parsed, "keys-only", "count-only")?;
    let serializable = serializable(parsed)?;
    let Span { key, range_end } = span(parsed)?;
    let order = parsed.text("order");
    let mut sort_order = match order.to_uppercase().as_str() {
        "ASCEND" => SortOrder::Ascend,
        "DESCEND" => SortOrder::Descend,
        "" => SortOrder::None,
        _ => return Err(Failure::new(Exit::BadFeature, format!("bad sort order {order}"))),
    };
    let target = parsed.text("sort-by");
    let sort_target = match target.to_uppercase().as_str() {
        "CREATE" => SortTarget::Create,
        "KEY" | "" => SortTarget::Key,
        "MODIFY" => SortTarget::Mod,
        "VALUE" => SortTarget::Value,
        "VERSION" => SortTarget::Version,
        _ => return Err(Failure::new(Exit::BadFeature, format!("bad sort target {target}"))),
    };
    // Ascending by key is how answers come anyway; asking for it would cost the server a sort.
    if sort_target == SortTarget::Key && sort_order == SortOrder::Ascend {
        sort_order = SortOrder::None;
    }
    Ok(RangeRequest {
        key,
        range_end,
        limit: parsed.int("limit"),
        revision: parsed.int("rev").max(0),
        sort_order: sort_order as i32,
        sort_target: sort_target as i32,
        serializable,
        keys_only: parsed.bool("keys-only"),
        count_only: parsed.bool("count-only"),
        min_mod_revision: bound(parsed, "min-mod-rev"),
        max_mod_revision: upper_bound(parsed, "max-mod-rev", "getMaxModRev", "min-mod-rev", "getMinModRev")?,
        min_create_revision: bound(parsed, "min-create-rev"),
        max_create_revision: upper_bound(
            parsed,
            "max-create-rev",
            "getMaxCreateRev",
            "min-create-rev",
            "getMinCreateRev",
        )?,
    })
}

fn bound(parsed: &Parsed, name: &str) -> i64 {
    parsed.int(name).max(0)
}

fn upper_bound(parsed: &Parsed, most: &str, most_text: &str, least: &str, least_text: &str) -> Result<i64, Failure> {
    let (upper, lower) = (bound(parsed, most), parsed.int(least));
    if upper > 0 && lower > upper {
        let text = format!("{least_text}(={lower}) > {most_text}(={upper})");
        return Err(Failure::new(Exit::BadFeature, text));
    }
    Ok(upper)
}

fn one_of(parsed: &Parsed, one: &str, other: &str) -> Result<(), Failure> {
    if parsed.bool(one) && parsed.bool(other) {
        let text = format!("`--{one}` and `--{other}` cannot be set at the same time, choose one");
        return Err(Failure::args(text));
    }
    Ok(())
}

/// The request of a `put`. `input` is read when the value is not among the words.
pub(super) fn put(parsed: &Parsed, input: impl FnOnce() -> std::io::Result<Vec<u8>>) -> Result<PutRequest, Failure> {
    const USAGE: &str = "put command needs 1 argument and input from stdin or 2 arguments";
    let ignore_value = parsed.bool("ignore-value");
    let key = parsed.args.first().ok_or_else(|| Failure::args(USAGE))?;
    let value = match parsed.args.get(1) {
        Some(_) if ignore_value => {
            return Err(Failure::args("put command needs only 1 argument when 'ignore-value' is set"));
        }
        Some(value) => value.clone(),
        None if ignore_value => Vec::new(),
        None => input().ok().filter(|value| !value.is_empty()).ok_or_else(|| Failure::args(USAGE))?,
    };
    let lease = golang::parse_int(parsed.text("lease"), 16)
        .map_err(|why| Failure::args(format!("bad lease ID ({why}), expecting ID in Hex")))?;
    Ok(PutRequest {
        key: Bytes::copy_from_slice(key),
        value: value.into(),
        lease,
        prev_kv: parsed.bool("prev-kv"),
        ignore_value,
        ignore_lease: parsed.bool("ignore-lease"),
    })
}

/// The request of a `del`, and whether the operator should have a moment to think again.
pub(super) fn delete(parsed: &Parsed) -> Result<(DeleteRangeRequest, bool), Failure> {
    if parsed.args.is_empty() || parsed.args.len() > 2 {
        return Err(Failure::args("del command needs one argument as key and an optional argument as range_end"));
    }
    one_of(parsed, "prefix", "from-key")?;
    let Span { key, range_end } = span(parsed)?;
    let pause = parsed.args.len() == 2 && !parsed.bool("range");
    Ok((DeleteRangeRequest { key, range_end, prev_kv: parsed.bool("prev-kv") }, pause))
}

/// A lease id of the command line.
pub(super) fn lease(word: &Word) -> Result<i64, Failure> {
    golang::parse_int(&String::from_utf8_lossy(word), 16)
        .map_err(|why| Failure::args(format!("bad lease ID arg ({why}), expecting ID in Hex")))
}

/// A member id of the command line.
pub(super) fn member(word: &Word) -> Result<u64, Failure> {
    golang::parse_uint(&String::from_utf8_lossy(word), 16)
        .map_err(|why| Failure::args(format!("bad member ID arg ({why}), expecting ID in Hex")))
}

#[cfg(test)]
mod tests {
    use super::super::flags::{self, Flag};
    use super::super::tree::{DEL_FLAGS, GET_FLAGS, PUT_FLAGS};
    use super::*;

    fn parsed(flags: &[Flag], line: &str) -> Parsed {
        let words: Vec<Word> = line.split_whitespace().map(|word| word.as_bytes().to_vec()).collect();
        flags::parse(&flags.iter().collect::<Vec<_>>(), &words).unwrap()
    }

    fn get_line(line: &str) -> Result<RangeRequest, Failure> {
        get(&parsed(GET_FLAGS, line))
    }

    #[test]
    fn ranges_follow_the_wire_rule() {
        let span = |line: &str| {
            let request = get_line(line).unwrap();
            (request.key.to_vec(), request.range_end.to_vec())
        };
        assert_eq!(span("a"), (b"a".to_vec(), b"".to_vec()));
        assert_eq!(span("a c"), (b"a".to_vec(), b"c".to_vec()));
        assert_eq!(span("a --prefix"), (b"a".to_vec(), b"b".to_vec()));
        assert_eq!(span("a --from-key"), (b"a".to_vec(), b"\0".to_vec()));
        let all = flags::parse(&GET_FLAGS.iter().collect::<Vec<_>>(), &[b"".to_vec(), b"--prefix".to_vec()]).unwrap();
        let all = get(&all).unwrap();
        assert_eq!((all.key.as_ref(), all.range_end.as_ref()), (&b"\0"[..], &b"\0"[..]));
    }

    #[test]
    fn sort_options_are_read_in_any_case() {
        let request = get_line("a --order=descend --sort-by=modify --limit=5 --rev=7").unwrap();
        assert_eq!((request.sort_order(), request.sort_target()), (SortOrder::Descend, SortTarget::Mod));
        assert_eq!((request.limit, request.revision), (5, 7));
        assert_eq!(get_line("a --order=ASCEND").unwrap().sort_order(), SortOrder::None);
    }

    #[test]
    fn refusals_have_etcdctls_words_and_codes() {
        let cases = [
            ("", 128, "get command needs one argument as key and an optional argument as range_end"),
            ("a --prefix --from-key", 128, "`--prefix` and `--from-key` cannot be set at the same time, choose one"),
            (
                "a --keys-only --count-only",
                128,
                "`--keys-only` and `--count-only` cannot be set at the same time, choose one",
            ),
            (
                "a b --prefix",
                128,
                "too many arguments, only accept one argument when `--prefix` or `--from-key` is set",
            ),
            ("a --consistency x", 4, r#"unknown consistency flag "x""#),
            ("a --sort-by=foo", 4, "bad sort target foo"),
            ("a --order=foo", 4, "bad sort order foo"),
            ("a --min-mod-rev=5 --max-mod-rev=2", 4, "getMinModRev(=5) > getMaxModRev(=2)"),
        ];
        for (line, code, text) in cases {
            let failure = get_line(line).unwrap_err();
            assert_eq!((failure.code, failure.text.as_str()), (code, text), "{line}");
        }
    }

    #[test]
    fn a_value_comes_from_the_words_or_from_input() {
        let none = || Ok(Vec::new());
        let input = || Ok(b"piped".to_vec());
        assert_eq!(put(&parsed(PUT_FLAGS, "k v"), none).unwrap().value, "v");
        assert_eq!(put(&parsed(PUT_FLAGS, "k"), input).unwrap().value, "piped");
        let kept = put(&parsed(PUT_FLAGS, "k --ignore-value --lease=ff"), none).unwrap();
        assert!(kept.ignore_value && kept.value.is_empty() && kept.lease == 255);
        for (line, text) in [
            ("k", "put command needs 1 argument and input from stdin or 2 arguments"),
            ("k v --ignore-value", "put command needs only 1 argument when 'ignore-value' is set"),
            ("k v --lease=zz", r#"bad lease ID (strconv.ParseInt: parsing "zz": invalid syntax), expecting ID in Hex"#),
        ] {
            assert_eq!(put(&parsed(PUT_FLAGS, line), none).unwrap_err(), Failure::args(text));
        }
    }

    #[test]
    fn only_an_unconfirmed_range_waits() {
        assert!(!delete(&parsed(DEL_FLAGS, "a")).unwrap().1);
        assert!(delete(&parsed(DEL_FLAGS, "a b")).unwrap().1);
        assert!(!delete(&parsed(DEL_FLAGS, "a b --range")).unwrap().1);
        assert_eq!(delete(&parsed(DEL_FLAGS, "a b c")).unwrap_err().code, 128);
    }
}
