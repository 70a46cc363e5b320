use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, StrInput, Tag};

/// Deepest nesting.
const DEPTH_MAX: usize = 32;

/// A value with the line where it starts, counted from 1.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::config) struct Node {
    pub line: usize,
    pub value: Value,
}

/// What a YAML or JSON file holds. A plain scalar is resolved as etcd's parser does it, which follows YAML 1.1: `yes` and
/// `on` are booleans, and `010` is 8.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::config) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    /// A number that is no integer, as it was written.
    Float(String),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file; a repeated key is there more than once.
    Map(Vec<(Node, Node)>),
}

impl Value {
    /// Its kind, in the words of Go's JSON decoder.
    pub fn kind(&self) -> Cow<'static, str> {
        match self {
            Self::Null => "null".into(),
            Self::Bool(_) => "bool".into(),
            Self::Int(number) => format!("number {number}").into(),
            Self::Float(text) => format!("number {text}").into(),
            Self::Text(_) => "string".into(),
            Self::List(_) => "array".into(),
            Self::Map(_) => "object".into(),
        }
    }
}

/// Reads the first document, of at most `nodes_max` values, those that aliases repeat included.
///
/// # Errors
/// What is wrong, with its line.
pub(in crate::config) fn parse(text: &str, nodes_max: usize) -> Result<Node, String> {
    let mut parser = Parser::new(StrInput::new(text));
    let mut builder = Builder { open: Vec::new(), anchors: HashMap::new(), nodes: 0, nodes_max };
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|error| format!("yaml: line {}: {}", error.marker().line(), error.info()))?;
        let line = span.start.line();
        if let Some(root) = builder.take(event, line).map_err(|reason| format!("yaml: line {line}: {reason}"))? {
            return Ok(root);
        }
    }
    Ok(Node { line: 1, value: Value::Null })
}

/// A list or mapping that is still open.
struct Open {
    line: usize,
    anchor: usize,
    items: Vec<Node>,
    is_map: bool,
}

struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
    nodes_max: usize,
}

impl Builder {
    /// Takes the next event; gives the root once it is complete.
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<Option<Node>, String> {
        let complete = |line, value| Node { line, value };
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => (complete(line, scalar(&text, style, tag.as_deref())), anchor),
            Event::SequenceStart(anchor, _) => return self.open(line, anchor, false),
            Event::MappingStart(anchor, _) => return self.open(line, anchor, true),
            Event::SequenceEnd | Event::MappingEnd => {
                let open = self.open.pop().ok_or("unexpected end")?;
                let value = if open.is_map { Value::Map(pairs(open.items)) } else { Value::List(open.items) };
                (complete(open.line, value), open.anchor)
            }
            Event::Alias(id) => {
                let (node, size) = self.anchors.get(&id).cloned().ok_or("unknown anchor")?;
                self.count(size)?;
                return Ok(self.put(Node { line, ..node }));
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                return Ok(None);
            }
        };
        self.count(1)?;
        if anchor > 0 {
            let size = size(&node);
            self.count(size)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        Ok(self.put(node))
    }

    fn open(&mut self, line: usize, anchor: usize, is_map: bool) -> Result<Option<Node>, String> {
        if self.open.len() == DEPTH_MAX {
            return Err(format!("nested deeper than {DEPTH_MAX} levels"));
        }
        self.open.push(Open { line, anchor, items: Vec::new(), is_map });
        Ok(None)
    }

    fn put(&mut self, node: Node) -> Option<Node> {
        match self.open.last_mut() {
            Some(open) => {
                open.items.push(node);
                None
            }
            None => Some(node),
        }
    }

    fn count(&mut self, nodes: usize) -> Result<(), String> {
        self.nodes = self.nodes.saturating_add(nodes);
        let max = self.nodes_max;
        if self.nodes > max { Err(format!("more than {max} values")) } else { Ok(()) }
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(size).sum(),
        Value::Map(pairs) => pairs.iter().map(|(key, value)| size(key) + size(value)).sum(),
        _ => 0,
    }
}

/// The parser gives keys and values in turn.
fn pairs(items: Vec<Node>) -> Vec<(Node, Node)> {
    let mut pairs = Vec::with_capacity(items.len() / 2);
    let mut items = items.into_iter();
    while let (Some(key), Some(value)) = (items.next(), items.next()) {
        pairs.push((key, value));
    }
    pairs
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let is_text = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
    if style != ScalarStyle::Plain || is_text {
        return Value::Text(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Value::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Value::Bool(false),
        _ => match integer(text) {
            Some(number) => Value::Int(number),
            None if is_float(text) => Value::Float(text.to_owned()),
            None => Value::Text(text.to_owned()),
        },
    }
}

/// `strconv.ParseInt` with base 0, underscores left out.
fn integer(text: &str) -> Option<i128> {
    let plain = text.replace('_', "");
    let (negative, digits) = match plain.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    if !digits.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let number = i128::from(u64::from_str_radix(digits, radix).ok()?);
    Some(if negative { -number } else { number })
}

fn is_float(text: &str) -> bool {
    let number = text.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'));
    number && text.contains(|c: char| c.is_ascii_digit()) && text.parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Node, String> {
        super::parse(text, 10_000)
    }

    fn show(node: &Node) -> String {
        match &node.value {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(text) => format!("~{text}"),
            Value::Text(text) => format!("{text:?}"),
            Value::List(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" ")),
            Value::Map(pairs) => {
                let pair = |(key, value): &(Node, Node)| format!("{}@{}: {}", show(key), key.line, show(value));
                format!("{{{}}}", pairs.iter().map(pair).collect::<Vec<_>>().join(", "))
            }
        }
    }

    fn check(text: &str, expected: &str) {
        let seen = parse(text).map_or_else(|error| error, |node| show(&node));
        assert_eq!(seen, expected, "{text:?}");
    }

    #[test]
    fn scalars_are_resolved_as_in_etcd() {
        check("a: 'x'\nb: 5\nc:\nd: yes\n", r#"{"a"@1: "x", "b"@2: 5, "c"@3: null, "d"@4: true}"#);
        check(
            "[0x10, 1_0, 010, -3, 1.5, 1e3, .5, http://a:1, 10m, 0o17, '7', !!str 7]",
            "[16 10 8 -3 ~1.5 ~1e3 ~.5 \"http://a:1\" \"10m\" 15 \"7\" \"7\"]",
        );
        check(r#"{"name": "j", "on": [true, null]}"#, r#"{"name"@1: "j", "on"@1: [true null]}"#);
        check("# nothing\n", "null");
        check("a: &x [1, 2]\nb: *x\n", r#"{"a"@1: [1 2], "b"@2: [1 2]}"#);
        check("a: 1\n---\nb: 2\n", r#"{"a"@1: 1}"#);
    }

    #[test]
    fn a_refusal_has_its_line() {
        assert!(parse("a: 1\nb: [\n").unwrap_err().starts_with("yaml: line 3: "), "{:?}", parse("a: 1\nb: [\n"));
        assert!(parse("a: b: c").unwrap_err().starts_with("yaml: line 1: "));
        assert!(parse("a: *nope").is_err());
    }

    #[test]
    fn a_small_file_cannot_become_a_big_value() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let below = vec![format!("*a{}", level - 1); 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{below}]\n"));
        }
        assert!(parse(&text).unwrap_err().ends_with("more than 10000 values"));
        assert!(parse(&"[".repeat(40)).unwrap_err().contains("nested deeper"));
        assert!(parse(&"[".repeat(5000)).is_err());
    }

    #[test]
    fn any_text_is_read_or_refused() {
        proptest::proptest!(|(text in "[-a-c0 :,#&*!|>'\"%@`?{}\\[\\]\n\t~<]{0,60}")| { let _ = parse(&text); });
        proptest::proptest!(|(text in "\\PC{0,60}")| { let _ = parse(&text); });
    }
}
