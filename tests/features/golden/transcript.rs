use std::fmt::Write as _;

/// One call and what was answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Block {
    /// Comments and empty lines before it.
    pub head: String,
    pub call: String,
    pub input: String,
    pub stock: String,
    /// The reason and our answer, where it is another.
    pub ours: Option<(String, String)>,
}

/// The blocks of a transcript, and what follows the last.
pub fn parse(text: &str) -> (Vec<Block>, String) {
    let (mut blocks, mut head): (Vec<Block>, String) = (Vec::new(), String::new());
    for line in text.lines() {
        let line = format!("{line}\n");
        match (line.as_bytes()[0], blocks.last_mut().filter(|_| head.is_empty())) {
            (b'$', _) => {
                let (head, call) = (std::mem::take(&mut head), line[2..].trim_end().to_owned());
                blocks.push(Block { head, call, ..Block::default() });
            }
            (b'<', Some(block)) => block.input += line[1..].strip_prefix(' ').unwrap_or(&line[1..]),
            (b'~', Some(block)) => block.ours = Some((line, String::new())),
            (b'|' | b'!' | b'=', Some(Block { ours: Some((_, ours)), .. })) => *ours += &line,
            (b'|' | b'!' | b'=', Some(block)) => block.stock += &line,
            _ => head += &line,
        }
    }
    (blocks, head)
}

/// The transcript that [`parse`] reads as these blocks.
pub fn text(blocks: &[Block], tail: &str) -> String {
    let mut text = String::new();
    for Block { head, call, input, stock, ours } in blocks {
        let _ = writeln!(text, "{head}$ {call}");
        input.lines().for_each(|line| text += &format!("< {line}").trim_end().to_owned().add_line());
        text += stock;
        if let Some((reason, answer)) = ours {
            text += &format!("{reason}{answer}");
        }
    }
    text + tail
}

pub trait AddLine {
    fn add_line(self) -> Self;
}

impl AddLine for String {
    fn add_line(mut self) -> Self {
        self.push('\n');
        self
    }
}

/// Words as a shell splits them, with double quotes, single quotes and backslashes.
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut open, mut begun) = (String::new(), None, false);
    let mut letters = line.chars();
    while let Some(c) = letters.next() {
        match (c, open) {
            ('\\', None | Some('"')) => word.extend(letters.next()),
            (c, Some(quote)) if c == quote => open = None,
            ('"' | '\'', None) => (open, begun) = (Some(c), true),
            (' ', None) => {
                if begun || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            (c, _) => word.push(c),
        }
    }
    if begun || !word.is_empty() {
        words.push(word);
    }
    words
}

#[test]
fn transcripts_are_read_as_they_are_written() {
    let transcript = "# head\n\n$ get a\n|a\n|\n$ txn\n< x\n<\n! Error: EOF\n= 3\n~ because\n|y\n# end\n";
    let (blocks, tail) = parse(transcript);
    assert_eq!((blocks.len(), blocks[1].input.as_str()), (2, "x\n\n"));
    assert_eq!(text(&blocks, &tail), transcript);
    assert_eq!(words(r#"put "a b" 'c"d' \x ''"#), ["put", "a b", "c\"d", "x", ""]);
}
