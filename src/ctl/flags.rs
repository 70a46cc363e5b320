use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::golang;

/// A word of the command line. Keys and values may be any bytes.
pub(super) type Word = Vec<u8>;

/// One flag, as a command declares it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) short: Option<char>,
    pub(super) kind: Kind,
    /// In the flag's own notation; empty is the kind's zero.
    pub(super) default: &'static str,
    pub(super) about: &'static str,
}

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `--x`, `--x=true`; never the next word.
    Bool,
    Int,
    Uint,
    Text,
    /// Go's notation, `1m30s`.
    Duration,
    /// Comma-separated.
    List,
}

impl Flag {
    pub(super) const fn new(name: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Self {
        Self { name, short: None, kind, default, about }
    }

    pub(super) const fn short(mut self, letter: char) -> Self {
        self.short = Some(letter);
        self
    }

    /// Reads one value, in Go's words when it is none of this kind.
    fn read(&self, text: &str) -> Result<Value, String> {
        Ok(match self.kind {
            Kind::Bool => Value::Bool(golang::parse_bool(text)?),
            Kind::Int => Value::Int(golang::parse_int(text, 0)?),
            Kind::Uint => Value::Uint(golang::parse_uint(text, 0)?),
            Kind::Text => Value::Text(text.to_owned()),
            Kind::Duration => Value::Duration(golang::parse_duration(text)?),
            Kind::List if text.is_empty() => Value::List(Vec::new()),
            Kind::List => Value::List(text.split(',').map(str::to_owned).collect()),
        })
    }

    fn zero(&self) -> Value {
        match self.kind {
            Kind::Bool => Value::Bool(false),
            Kind::Int => Value::Int(0),
            Kind::Uint => Value::Uint(0),
            Kind::Text => Value::Text(String::new()),
            Kind::Duration => Value::Duration(Duration::ZERO),
            Kind::List => Value::List(Vec::new()),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Text(String),
    Duration(Duration),
    List(Vec<String>),
}

/// The values of all flags of a command, and the words that are none.
#[derive(Clone, Debug)]
pub(super) struct Parsed {
    values: BTreeMap<&'static str, Value>,
    set: Vec<&'static str>,
    /// Words that are no flags, in order.
    pub(super) args: Vec<Word>,
    /// How many of `args` stood before `--`, when there was one.
    pub(super) separator: Option<usize>,
}

/// Reads `words` with the rules of Go's pflag: flags anywhere, `--x=v`, `--x v`, `-x v`, `-xv`, `--` ends them.
pub(super) fn parse(flags: &[&Flag], words: &[Word]) -> Result<Parsed, String> {
    let mut values = BTreeMap::new();
    for flag in flags {
        let value = if flag.default.is_empty() { flag.zero() } else { flag.read(flag.default)? };
        values.insert(flag.name, value);
    }
    let mut parsed = Parsed { values, set: Vec::new(), args: Vec::new(), separator: None };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == b"--" {
            parsed.separator = Some(parsed.args.len());
            parsed.args.extend(words.cloned());
            break;
        }
        if word.len() < 2 || word[0] != b'-' {
            parsed.args.push(word.clone());
            continue;
        }
        let text = utf8(word)?;
        if let Some(long) = text.strip_prefix("--") {
            let (name, inline) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (long, None),
            };
            let flag = flags.iter().find(|flag| flag.name == name).ok_or_else(|| format!("unknown flag: --{name}"))?;
            let value = match inline {
                Some(value) => value,
                None if flag.kind == Kind::Bool => "true",
                None => utf8(words.next().ok_or_else(|| format!("flag needs an argument: --{name}"))?)?,
            };
            parsed.put(flag, value)?;
        } else {
            let cluster = &text[1..];
            for (at, letter) in cluster.char_indices() {
                let flag = flags
                    .iter()
                    .find(|flag| flag.short == Some(letter))
                    .ok_or_else(|| format!("unknown shorthand flag: '{letter}' in -{cluster}"))?;
                let rest = &cluster[at + letter.len_utf8()..];
                if flag.kind == Kind::Bool && !rest.starts_with('=') {
                    parsed.put(flag, "true")?;
                    continue;
                }
                let value = match rest {
                    "" => {
                        utf8(words.next().ok_or_else(|| format!("flag needs an argument: '{letter}' in -{cluster}"))?)?
                    }
                    rest => rest.strip_prefix('=').unwrap_or(rest),
                };
                parsed.put(flag, value)?;
                break;
            }
        }
    }
    Ok(parsed)
}

fn utf8(word: &Word) -> Result<&str, String> {
    std::str::from_utf8(word).map_err(|_| format!("flag {} is not UTF-8", golang::quote(word)))
}

impl Parsed {
    fn put(&mut self, flag: &Flag, text: &str) -> Result<(), String> {
        let value = flag.read(text).map_err(|why| {
            let name = match flag.short {
                Some(letter) => format!("-{letter}, --{}", flag.name),
                None => format!("--{}", flag.name),
            };
            format!(
                "invalid argument {} for {} flag: {why}",
                golang::quote(text.as_bytes()),
                golang::quote(name.as_bytes())
            )
        })?;
        self.store(flag.name, value);
        Ok(())
    }

    fn store(&mut self, name: &'static str, value: Value) {
        // A list flag given again adds to the list, every other flag replaces.
        if let (Some(Value::List(old)), Value::List(new)) = (self.values.get_mut(name), &value)
            && self.set.contains(&name)
        {
            old.extend(new.iter().cloned());
            return;
        }
        self.values.insert(name, value);
        if !self.set.contains(&name) {
            self.set.push(name);
        }
    }

    /// Takes the value of an environment variable for a flag that was not given.
    pub(super) fn put_variable(&mut self, flag: &Flag, variable: &str, text: &str) -> Result<(), String> {
        let value = flag
            .read(text)
            .map_err(|why| format!("invalid value {} for {variable}: {why}", golang::quote(text.as_bytes())))?;
        self.values.insert(flag.name, value);
        Ok(())
    }

    /// Whether the flag stood on the command line.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.set.contains(&name)
    }

    pub(super) fn bool(&self, name: &str) -> bool {
        matches!(self.values.get(name), Some(Value::Bool(true)))
    }

    pub(super) fn int(&self, name: &str) -> i64 {
        match self.values.get(name) {
            Some(Value::Int(value)) => *value,
            _ => 0,
        }
    }

    pub(super) fn uint(&self, name: &str) -> u64 {
        match self.values.get(name) {
            Some(Value::Uint(value)) => *value,
            _ => 0,
        }
    }

    pub(super) fn text(&self, name: &str) -> &str {
        match self.values.get(name) {
            Some(Value::Text(value)) => value,
            _ => "",
        }
    }

    pub(super) fn duration(&self, name: &str) -> Duration {
        match self.values.get(name) {
            Some(Value::Duration(value)) => *value,
            _ => Duration::ZERO,
        }
    }

    pub(super) fn list(&self, name: &str) -> &[String] {
        match self.values.get(name) {
            Some(Value::List(value)) => value,
            _ => &[],
        }
    }
}

/// The flag section of a help text, one line for each, sorted by name.
pub(super) fn usage(flags: &[&Flag]) -> String {
    let mut flags = flags.to_vec();
    flags.sort_by_key(|flag| flag.name);
    let rows: Vec<(String, String)> = flags
        .iter()
        .map(|flag| {
            let (kind, default) = match flag.kind {
                Kind::Bool => ("", flag.default.to_owned()),
                Kind::Int => (" int", flag.default.to_owned()),
                Kind::Uint => (" uint", flag.default.to_owned()),
                Kind::Text => (" string", format!("{:?}", flag.default)),
                Kind::Duration => (" duration", flag.default.to_owned()),
                Kind::List => (" strings", format!("[{}]", flag.default)),
            };
            let head = match flag.short {
                Some(letter) => format!("  -{letter}, --{}{kind}", flag.name),
                None => format!("      --{}{kind}", flag.name),
            };
            let about = if flag.default.is_empty() {
                flag.about.to_owned()
            } else {
                format!("{} (default {default})", flag.about)
            };
            (head, about)
        })
        .collect();
    let width = rows.iter().map(|(head, _)| head.len()).max().unwrap_or(0);
    rows.iter().fold(String::new(), |mut text, (head, about)| {
        let _ = writeln!(text, "{head:<width$}   {about}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Flag = Flag::new("limit", Kind::Int, "", "");
    const PREFIX: Flag = Flag::new("prefix", Kind::Bool, "", "");
    const OUT: Flag = Flag::new("write-out", Kind::Text, "simple", "").short('w');
    const INTERACTIVE: Flag = Flag::new("interactive", Kind::Bool, "", "").short('i');
    const ENDPOINTS: Flag = Flag::new("endpoints", Kind::List, "127.0.0.1:2379", "");
    const TIMEOUT: Flag = Flag::new("dial-timeout", Kind::Duration, "2s", "");

    fn read(line: &str) -> Result<Parsed, String> {
        let words: Vec<Word> = line.split_whitespace().map(|word| word.as_bytes().to_vec()).collect();
        parse(&[&LIMIT, &PREFIX, &OUT, &INTERACTIVE, &ENDPOINTS, &TIMEOUT], &words)
    }

    #[test]
    fn every_spelling_of_a_flag_is_read() {
        for line in
            ["a --limit 3 b -w json --prefix", "--limit=3 a -wjson b --prefix=true", "a b -w=json --prefix --limit 3"]
        {
            let parsed = read(line).unwrap();
            assert_eq!(parsed.int("limit"), 3, "{line}");
            assert_eq!(parsed.text("write-out"), "json", "{line}");
            assert!(parsed.bool("prefix"), "{line}");
            assert_eq!(parsed.args, [b"a".to_vec(), b"b".to_vec()], "{line}");
        }
        let parsed = read("-iw json").unwrap();
        assert!(parsed.bool("interactive") && parsed.text("write-out") == "json");
    }

    #[test]
    fn the_separator_ends_flags_and_a_lone_dash_is_a_word() {
        let parsed = read("k -- --limit -x").unwrap();
        assert_eq!(parsed.args, [b"k".to_vec(), b"--limit".to_vec(), b"-x".to_vec()]);
        assert_eq!(parsed.separator, Some(1));
        assert_eq!(read("-").unwrap().args, [b"-".to_vec()]);
    }

    #[test]
    fn defaults_hold_until_a_flag_or_a_variable_says_otherwise() {
        let mut parsed = read("--endpoints=a:1,b:2 --endpoints c:3").unwrap();
        assert_eq!(parsed.list("endpoints"), ["a:1", "b:2", "c:3"]);
        assert_eq!(parsed.duration("dial-timeout"), Duration::from_secs(2));
        parsed.put_variable(&TIMEOUT, "ETCDCTL_DIAL_TIMEOUT", "1m").unwrap();
        assert_eq!(parsed.duration("dial-timeout"), Duration::from_secs(60));
        assert!(!parsed.is_set("dial-timeout") && parsed.is_set("endpoints"));
    }

    #[test]
    fn bad_flags_are_named_in_one_line() {
        let cases = [
            ("--nope", "unknown flag: --nope"),
            ("-x", "unknown shorthand flag: 'x' in -x"),
            ("--limit", "flag needs an argument: --limit"),
            ("-w", "flag needs an argument: 'w' in -w"),
            (
                "--limit=abc",
                r#"invalid argument "abc" for "--limit" flag: strconv.ParseInt: parsing "abc": invalid syntax"#,
            ),
            (
                "--prefix=maybe",
                r#"invalid argument "maybe" for "--prefix" flag: strconv.ParseBool: parsing "maybe": invalid syntax"#,
            ),
            (
                "--dial-timeout=5",
                r#"invalid argument "5" for "--dial-timeout" flag: time: missing unit in duration "5""#,
            ),
        ];
        for (line, text) in cases {
            assert_eq!(read(line).unwrap_err(), text);
        }
    }
}
