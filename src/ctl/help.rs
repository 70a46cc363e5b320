use super::flags::{self, Flag, Kind};
use super::program::Program;
use super::tree::{Body, Command, ROOT, Section};

/// The flag that every command has.
pub(super) const HELP: Flag = Flag::new("help", Kind::Bool, "", "Show this text").short('h');

/// Narrowest column of command names.
const NAME_WIDTH: usize = 11;
/// Wrong, missing and additional letters in a name that still suggest a command.
const DISTANCE_MAX: usize = 2;

fn full_name(program: Program, path: &[&Command]) -> String {
    path.iter().fold(program.name().to_owned(), |name, command| name + " " + command.name)
}

/// The text of `--help`: what the command does, its usage, and where the other flags are.
pub(super) fn help(program: Program, path: &[&Command]) -> String {
    let about = match path.last() {
        Some(command) => command.about,
        None => "A command-line client for etcd v3 clusters, with the commands, flags and output of etcdctl.",
    };
    let options = format!("Use \"{} options\" for the flags that every command takes.\n", program.name());
    format!("{about}\n\n{}{options}", usage(program, path))
}

/// The usage text alone, which also follows a wrong flag.
pub(super) fn usage(program: Program, path: &[&Command]) -> String {
    let name = full_name(program, path);
    let more = format!("\nUse \"{name} [command] --help\" for more about a command.\n");
    let Some(last) = path.last() else {
        return format!("Usage:\n  {name} [command]\n{}{more}", sections(ROOT));
    };
    let mut own: Vec<&Flag> = last.flags.iter().collect();
    own.push(&HELP);
    let mut text = match last.body {
        Body::Group(children) => {
            format!("Usage:\n  {name} [command]\n\nAvailable Commands:\n{}", list(children, children))
        }
        Body::Leaf(_) => {
            let args = if last.args.is_empty() { String::new() } else { format!(" {}", last.args) };
            let flags = if last.name == "completion" { "" } else { " [flags]" };
            format!("Usage:\n  {name}{args}{flags}\n")
        }
    };
    text += &format!("\nFlags:\n{}", flags::usage(&own));
    let inherited: Vec<&Flag> = path[..path.len() - 1].iter().flat_map(|command| command.flags).collect();
    if !inherited.is_empty() {
        text += &format!("\nGlobal Flags:\n{}", flags::usage(&inherited));
    }
    if matches!(last.body, Body::Group(_)) {
        text += &more;
    }
    text
}

fn sections(commands: &[Command]) -> String {
    Section::ALL
        .iter()
        .filter_map(|section| {
            let own: Vec<Command> = commands.iter().filter(|command| command.section == *section).copied().collect();
            (!own.is_empty()).then(|| format!("\n{}\n{}", section.title(), list(&own, commands)))
        })
        .collect()
}

/// Commands sorted by name, as wide as the longest of `siblings`.
fn list(commands: &[Command], siblings: &[Command]) -> String {
    let width = siblings.iter().map(|sibling| sibling.name.len()).max().unwrap_or(0).max(NAME_WIDTH);
    let mut commands = commands.to_vec();
    commands.sort_by_key(|command| command.name);
    commands.iter().map(|command| format!("  {:<width$} {}\n", command.name, command.about)).collect()
}

/// The names that may have been meant: those that begin so, and those that are nearly the same.
pub(super) fn suggestions(commands: &[Command], word: &str) -> Vec<&'static str> {
    let word = word.to_lowercase();
    let names = commands.iter().map(|command| command.name).filter(|name| *name != "help");
    names.filter(|name| name.starts_with(&word) || distance(&word, name) <= DISTANCE_MAX).collect()
}

/// Levenshtein's distance.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, &b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_meant_is_suggested_in_etcdctls_order() {
        for (word, names) in [
            ("nope", &["role"][..]),
            ("l", &["del", "lease", "lock"]),
            ("d", &["del", "defrag", "downgrade"]),
            ("c", &["compaction", "check", "completion"]),
            ("lsae", &["lease"]),
            ("ROEL", &["del", "role"]),
            ("zzzz", &[]),
        ] {
            assert_eq!(suggestions(ROOT, word), names, "{word}");
        }
    }
}
