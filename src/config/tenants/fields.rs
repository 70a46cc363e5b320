use std::fmt;

use super::super::file::yaml::{Node, Value};

/// What is wrong with a file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub line: usize,
    pub field: String,
    pub reason: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, field, reason } = self;
        if field.is_empty() { write!(f, "line {line}: {reason}") } else { write!(f, "line {line}: {field}: {reason}") }
    }
}

/// A value with the line where it stands and the path to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Located<T> {
    pub line: usize,
    pub field: String,
    pub value: T,
}

impl<T> Located<T> {
    /// What is wrong with it.
    pub fn wrong(&self, reason: impl Into<String>) -> Wrong {
        Wrong { line: self.line, field: self.field.clone(), reason: reason.into() }
    }

    pub fn with<U>(self, value: U) -> Located<U> {
        Located { line: self.line, field: self.field, value }
    }

    pub fn try_map<U>(self, change: impl FnOnce(&T) -> Result<U, String>) -> Result<Located<U>, Wrong> {
        match change(&self.value) {
            Ok(value) => Ok(self.with(value)),
            Err(reason) => Err(self.wrong(reason)),
        }
    }
}

/// A mapping whose keys are taken one by one.
pub(super) struct Fields<'n> {
    pub line: usize,
    path: String,
    left: Vec<(&'n str, &'n Node)>,
}

impl<'n> Fields<'n> {
    /// The mapping at `path`.
    pub fn of(node: &'n Node, path: impl Into<String>) -> Result<Self, Wrong> {
        let (line, path) = (node.line, path.into());
        let Value::Map(pairs) = &node.value else {
            return Err(Wrong { line, field: path, reason: format!("must be a mapping, not {}", node.value.kind()) });
        };
        let mut left: Vec<(&str, &Node)> = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let Value::Text(name) = &key.value else {
                let reason = format!("a key must be text, not {}", key.value.kind());
                return Err(Wrong { line: key.line, field: path, reason });
            };
            if left.iter().any(|(known, _)| known == name) {
                return Err(Wrong { line: key.line, field: path, reason: format!("{name:?} is given twice") });
            }
            left.push((name, value));
        }
        Ok(Self { line, path, left })
    }

    /// What is wrong with the mapping as a whole.
    pub fn wrong(&self, reason: impl Into<String>) -> Wrong {
        Wrong { line: self.line, field: self.path.clone(), reason: reason.into() }
    }

    /// The mapping below a key.
    pub fn below(&mut self, name: &str) -> Result<Option<Self>, Wrong> {
        self.take(name).map(|node| Fields::of(node.value, node.field)).transpose()
    }

    /// The items of the list below a key.
    pub fn list(&mut self, name: &str) -> Result<Option<Located<Vec<Located<&'n Node>>>>, Wrong> {
        let Some(node) = self.take(name) else { return Ok(None) };
        let Value::List(items) = &node.value.value else { return Err(node.wrong(must_be("a list", node.value))) };
        let item = |(index, item): (usize, &'n Node)| Located {
            line: item.line,
            field: format!("{}[{index}]", node.field),
            value: item,
        };
        let items = items.iter().enumerate().map(item).collect();
        Ok(Some(node.clone().with(items)))
    }

    /// A text that is not empty.
    pub fn text(&mut self, name: &str) -> Result<Option<Located<String>>, Wrong> {
        self.take(name).map(text).transpose()
    }

    /// A whole number above zero.
    pub fn number(&mut self, name: &str) -> Result<Option<u64>, Wrong> {
        let Some(node) = self.take(name) else { return Ok(None) };
        match node.value.value {
            Value::Int(number) if number >= 1 => {
                let number = u64::try_from(number).map_err(|_| node.wrong(format!("must be at most {}", u64::MAX)))?;
                Ok(Some(number))
            }
            Value::Int(_) => Err(node.wrong("must be at least 1")),
            _ => Err(node.wrong(must_be("a whole number", node.value))),
        }
    }

    pub fn boolean(&mut self, name: &str) -> Result<bool, Wrong> {
        match self.take(name) {
            None => Ok(false),
            Some(node) => match node.value.value {
                Value::Bool(value) => Ok(value),
                _ => Err(node.wrong(must_be("true or false", node.value))),
            },
        }
    }

    /// Refuses what was not taken.
    pub fn finish(self) -> Result<(), Wrong> {
        match self.left.first() {
            None => Ok(()),
            Some((name, node)) => {
                let field = if self.path.is_empty() { (*name).to_owned() } else { format!("{}.{name}", self.path) };
                Err(Wrong { line: node.line, field, reason: "is not a key of this file".to_owned() })
            }
        }
    }

    /// A key without a value counts as left out.
    fn take(&mut self, name: &str) -> Option<Located<&'n Node>> {
        let at = self.left.iter().position(|(known, _)| *known == name)?;
        let (name, node) = self.left.remove(at);
        let field = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        (node.value != Value::Null).then_some(Located { line: node.line, field, value: node })
    }
}

/// A text that is not empty.
pub(super) fn text(node: Located<&Node>) -> Result<Located<String>, Wrong> {
    match &node.value.value {
        Value::Text(text) if text.is_empty() => Err(node.wrong("must not be empty")),
        Value::Text(text) => Ok(node.clone().with(text.clone())),
        _ => Err(node.wrong(format!("{}; quote it", must_be("text", node.value)))),
    }
}

fn must_be(what: &str, node: &Node) -> String {
    format!("must be {what}, not {}", node.value.kind())
}
