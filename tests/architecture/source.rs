//! Reads Rust source as far as these tests need it: tokens, and the paths that begin at `crate` or `super`.

use std::path::{Path, PathBuf};

/// Every path in the source that starts at `crate`, at `super` or, in the binary, at the library: as module paths
/// from the crate root, with the line each begins in.
pub fn paths(module: &[&str], source: &str) -> Vec<(usize, Vec<String>)> {
    let tokens = tokens(source);
    let mut found = Vec::new();
    // What each open brace belongs to: the name of an inline module, or nothing.
    let mut braces: Vec<Option<String>> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let (line, token) = &tokens[at];
        let previous = at.checked_sub(1).map_or("", |index| tokens[index].1.as_str());
        match token.as_str() {
            "{" => {
                let is_module = at >= 2 && tokens[at - 2].1 == "mod";
                braces.push(is_module.then(|| previous.to_owned()));
            }
            "}" => {
                braces.pop();
            }
            "crate" | "super" | "self" | "watershed" if previous != "::" && next(&tokens, at) == "::" => {
                let mut base: Vec<String> = module.iter().map(|&part| part.to_owned()).collect();
                base.extend(braces.iter().flatten().cloned());
                let mut start = at + 2;
                match token.as_str() {
                    "crate" => base.clear(),
                    "watershed" if module == ["main"] => base.clear(),
                    "super" => {
                        base.pop();
                        while tokens.get(start).is_some_and(|(_, t)| t == "super") && next(&tokens, start) == "::" {
                            base.pop();
                            start += 2;
                        }
                    }
                    _ => {
                        at += 1;
                        continue;
                    }
                }
                let inside = token == "super" && room_of(&as_strs(&base)) == room_of(module);
                if !inside {
                    let mut leaves = Vec::new();
                    tree(&tokens, &mut start, &base, &mut leaves);
                    found.extend(leaves.into_iter().map(|leaf| (*line, leaf.path)));
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

pub fn as_strs(path: &[String]) -> Vec<&str> {
    path.iter().map(String::as_str).collect()
}

pub fn next(tokens: &[(usize, String)], at: usize) -> &str {
    tokens.get(at + 1).map_or("", |(_, token)| token.as_str())
}

/// One path of a `use`, and the name it has afterwards.
pub struct Leaf {
    pub path: Vec<String>,
    pub name: String,
}

/// Reads one `a::b::{c, d::e as f}` from `at` on, below `base`.
pub fn tree(tokens: &[(usize, String)], at: &mut usize, base: &[String], leaves: &mut Vec<Leaf>) {
    let mut path = base.to_vec();
    loop {
        match tokens.get(*at).map(|(_, token)| token.as_str()) {
            Some("{") => {
                *at += 1;
                while let Some((_, token)) = tokens.get(*at) {
                    match token.as_str() {
                        "}" => break,
                        "," => *at += 1,
                        _ => {
                            tree(tokens, at, &path, leaves);
                            while tokens.get(*at).is_some_and(|(_, token)| token != "," && token != "}") {
                                *at += 1;
                            }
                        }
                    }
                }
                *at += 1;
                return;
            }
            Some(word) if is_word(word) => {
                path.push(word.to_owned());
                *at += 1;
                if tokens.get(*at).is_some_and(|(_, token)| token == "::") {
                    *at += 1;
                    continue;
                }
            }
            _ => {}
        }
        let is_renamed = tokens.get(*at).is_some_and(|(_, token)| token == "as");
        let name = if is_renamed { next(tokens, *at).to_owned() } else { path.last().cloned().unwrap_or_default() };
        leaves.push(Leaf { path, name });
        return;
    }
}

/// Whether a token is a name, a keyword or a number.
pub fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '*')
}

/// Words, `::` and single signs, with their lines; comments, strings and characters are left out.
pub fn tokens(source: &str) -> Vec<(usize, String)> {
    let chars: Vec<char> = source.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    let peek = |index: usize| chars.get(index).copied().unwrap_or('\0');
    while at < chars.len() {
        let begin = at;
        match chars[at] {
            '/' if peek(at + 1) == '/' => {
                while at < chars.len() && chars[at] != '\n' {
                    at += 1;
                }
            }
            '/' if peek(at + 1) == '*' => {
                let mut depth = 0;
                while at < chars.len() {
                    match (chars[at], peek(at + 1)) {
                        ('/', '*') => (depth, at) = (depth + 1, at + 2),
                        ('*', '/') => (depth, at) = (depth - 1, at + 2),
                        _ => at += 1,
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            'r' if peek(at + 1) == '"' || (peek(at + 1) == '#' && matches!(peek(at + 2), '"' | '#')) => {
                let hashes = chars[at + 1..].iter().take_while(|&&c| c == '#').count();
                at += hashes + 2;
                while at < chars.len() && !(chars[at] == '"' && (1..=hashes).all(|back| peek(at + back) == '#')) {
                    at += 1;
                }
                at += hashes + 1;
            }
            '"' => {
                at += 1;
                while at < chars.len() && chars[at] != '"' {
                    at += if chars[at] == '\\' { 2 } else { 1 };
                }
                at += 1;
            }
            // A character, not a lifetime.
            '\'' if peek(at + 1) == '\\' || peek(at + 2) == '\'' => {
                at += if peek(at + 1) == '\\' { 3 } else { 2 };
                while at < chars.len() && chars[at] != '\'' {
                    at += 1;
                }
                at += 1;
            }
            c if c.is_alphanumeric() || c == '_' => {
                while at < chars.len() && (chars[at].is_alphanumeric() || chars[at] == '_') {
                    at += 1;
                }
                tokens.push((line, chars[begin..at].iter().collect()));
            }
            ':' if peek(at + 1) == ':' => {
                tokens.push((line, "::".into()));
                at += 2;
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push((line, c.into()));
                }
                at += 1;
            }
        }
        line += chars[begin..at.min(chars.len())].iter().filter(|&&c| c == '\n').count();
    }
    tokens
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("src is readable") {
        let path = entry.expect("src is readable").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The module a file holds, from the crate root.
pub fn module_of(file: &Path) -> Vec<String> {
    let mut parts: Vec<String> = file
        .strip_prefix(root().join("src"))
        .expect("below src")
        .with_extension("")
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    if parts.last().is_some_and(|last| last == "mod" || last == "lib") {
        parts.pop();
    }
    parts
}

/// The room a module is in.
pub fn room_of(module: &[&str]) -> String {
    match module {
        ["core", inner, ..] => format!("core::{inner}"),
        [room, ..] => (*room).to_owned(),
        [] => "crate root".to_owned(),
    }
}

/// The tokens without what is compiled for tests only.
pub fn without_tests(tokens: &[(usize, String)]) -> Vec<(usize, String)> {
    let is_at = |at: usize, words: &[&str]| {
        words.iter().enumerate().all(|(step, word)| tokens.get(at + step).is_some_and(|(_, token)| token == word))
    };
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if is_at(at, &["#", "[", "cfg", "(", "test", ")", "]"]) {
            at = item_end(tokens, at + 7);
            continue;
        }
        kept.push(tokens[at].clone());
        at += 1;
    }
    kept
}

/// Where the item that begins here has ended: after its `;` or its closing brace.
fn item_end(tokens: &[(usize, String)], begin: usize) -> usize {
    let mut depth = 0;
    let mut is_use = false;
    for (at, (_, token)) in tokens.iter().enumerate().skip(begin) {
        match token.as_str() {
            "use" => is_use = true,
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => {
                depth -= 1;
                if depth == 0 && token == "}" && !is_use {
                    return at + 1;
                }
            }
            ";" if depth == 0 => return at + 1,
            _ => {}
        }
    }
    tokens.len()
}
