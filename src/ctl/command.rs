use super::failure::{Exit, Failure};
use super::flags::{self, Flag, Parsed, Word};
use super::help::{self, HELP};
use super::options;
use super::program::Program;
use super::tree::{Body, Command, ROOT, Section, Verb};

/// What the command line asks for.
#[derive(Debug)]
pub(super) enum Asked {
    /// A command with its flags and arguments.
    Run(Verb, Parsed),
    /// A text to print.
    Help(String),
}

/// Finds the command and reads its flags. Global options may stand anywhere, and a unique beginning of a command's
/// name is enough, as in etcdctl.
pub(super) fn read(program: Program, words: &[Word]) -> Result<Asked, Failure> {
    let (path, rest) = find(program, words)?;
    let last = path.last().map(|command| command.body);
    let wrong = |text: String| Failure::new(Exit::Error, text).with_usage(help::usage(program, &path));
    let known = flags_of(&path);
    let parsed = flags::parse(&known, &rest).map_err(wrong)?;
    match last {
        Some(Body::Leaf(Verb::Help)) if !parsed.bool("help") => topic(program, &parsed.args),
        Some(Body::Leaf(Verb::Completion)) if !parsed.bool("help") => {
            check_shell(program, &parsed.args).map_err(wrong)?;
            Ok(Asked::Run(Verb::Completion, parsed))
        }
        Some(Body::Leaf(verb)) if !parsed.bool("help") => Ok(Asked::Run(verb, parsed)),
        _ => Ok(Asked::Help(help::help(program, &path))),
    }
}

/// The command that the words name, and the words that are left: flags and arguments.
fn find(program: Program, words: &[Word]) -> Result<(Vec<&'static Command>, Vec<Word>), Failure> {
    let mut path: Vec<&Command> = Vec::new();
    let mut rest = words.to_vec();
    let mut at = 0;
    loop {
        let known = flags_of(&path);
        let children = match path.last() {
            None => ROOT,
            Some(Command { body: Body::Group(children), .. }) => children,
            Some(Command { body: Body::Leaf(_), .. }) => break,
        };
        let Some(word) = rest.get(at) else { break };
        if word == b"--" {
            break;
        }
        if word.len() > 1 && word[0] == b'-' {
            at += 1 + usize::from(takes_next(word, &known));
            continue;
        }
        let name = String::from_utf8_lossy(word).into_owned();
        match child(children, &name) {
            Some(child) => {
                path.push(child);
                rest.remove(at);
            }
            None if path.is_empty() => return Err(unknown(program, &name)),
            // Below the root etcdctl shows the help text of the group.
            None => break,
        }
    }
    Ok((path, rest))
}

/// The command of that name, else the only one of etcdctl's whose name begins so: what is short there is short here.
fn child(commands: &'static [Command], name: &str) -> Option<&'static Command> {
    if let Some(exact) = commands.iter().find(|command| command.name == name) {
        return Some(exact);
    }
    let begins = |command: &&Command| command.section != Section::Own && command.name.starts_with(name);
    let mut candidates = commands.iter().filter(|_| !name.is_empty()).filter(begins);
    candidates.next().filter(|_| candidates.next().is_none())
}

fn unknown(program: Program, name: &str) -> Failure {
    let suggestions = help::suggestions(ROOT, name);
    let meant: String = suggestions.iter().map(|name| format!("\t{name}\n")).collect();
    let meant = if meant.is_empty() { meant } else { format!("\n\nDid you mean this?\n{meant}") };
    let text = format!("unknown command {name:?} for {:?}{meant}", program.name());
    Failure::new(Exit::Error, text).with_usage(format!("Run '{} --help' for usage.", program.name()))
}

/// The help text of the command that `words` name.
fn topic(program: Program, words: &[Word]) -> Result<Asked, Failure> {
    match find(program, words) {
        Ok((path, _)) => Ok(Asked::Help(help::help(program, &path))),
        Err(_) => {
            let words: Vec<String> = words.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
            let note = format!("Unknown help topic [`{}`]\n{}", words.join("` `"), help::usage(program, &[]));
            Err(Failure { note: Some(note), ..Failure::silent(0) })
        }
    }
}

fn check_shell(program: Program, words: &[Word]) -> Result<(), String> {
    let [shell] = words else {
        return Err(format!("accepts 1 arg(s), received {}", words.len()));
    };
    match shell.as_slice() {
        b"bash" | b"zsh" | b"fish" | b"powershell" => Ok(()),
        other => {
            let shell = String::from_utf8_lossy(other);
            Err(format!("invalid argument {shell:?} for \"{} completion\"", program.name()))
        }
    }
}

/// Whether a flag's value is the next word. A flag that is not known here has one, as cobra supposes: it may be of the
/// command whose name comes behind it.
fn takes_next(word: &[u8], known: &[&Flag]) -> bool {
    let text = String::from_utf8_lossy(word);
    if text.contains('=') {
        return false;
    }
    let flag = match text.strip_prefix("--") {
        Some(name) => known.iter().find(|flag| flag.name == name),
        None if text.len() == 2 => known.iter().find(|flag| flag.short == text.chars().nth(1)),
        None => return false,
    };
    flag.is_none_or(|flag| flag.kind != flags::Kind::Bool)
}

fn flags_of<'a>(path: &[&'a Command]) -> Vec<&'a Flag> {
    path.iter().flat_map(|command| command.flags).chain([&HELP]).chain(options::FLAGS.iter()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<Word> {
        line.split_whitespace().map(|word| word.as_bytes().to_vec()).collect()
    }

    fn verb(line: &str) -> Verb {
        match read(Program::Ctl, &words(line)) {
            Ok(Asked::Run(verb, _)) => verb,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn commands_are_found_behind_options() {
        assert_eq!(verb("get k"), Verb::Get);
        assert_eq!(verb("--endpoints=a:1 -w json get k"), Verb::Get);
        assert_eq!(verb("--endpoints a:1 --hex lease -w json list"), Verb::LeaseList);
        assert_eq!(verb("p a b"), Verb::Put, "etcdctl has no other command that begins so");
        assert_eq!(verb("proxy stat"), Verb::ProxyStatus);
        assert_eq!(verb("gateway status"), Verb::GatewayStatus);
        assert_eq!(verb("endpoint --cluster health"), Verb::EndpointHealth);
        assert_eq!(verb("--consistency s get k"), Verb::Get);
        assert_eq!(verb("endpoint health --cluster --endpoints x:1"), Verb::EndpointHealth);
        assert_eq!(verb("put get put"), Verb::Put);
    }

    #[test]
    fn a_unique_beginning_is_a_command() {
        assert_eq!(verb("compact 2"), Verb::Compaction);
        assert_eq!(verb("mem list"), Verb::MemberList);
        assert_eq!(verb("--endpoints a:1 endp -w json heal"), Verb::EndpointHealth);
        assert_eq!(verb("snap save f"), Verb::SnapshotSave);
        // The whole name counts before other names that begin so.
        assert_eq!(verb("member list"), Verb::MemberList);
        for line in ["he", "h get"] {
            assert!(matches!(read(Program::Ctl, &words(line)), Ok(Asked::Help(_))), "{line}");
        }
        let ambiguous = read(Program::Ctl, &words("comp 2")).unwrap_err();
        assert_eq!(ambiguous.code, 1);
        let meant = "Did you mean this?\n\tcompaction\n\tcompletion\n";
        assert_eq!(ambiguous.text, format!("unknown command \"comp\" for \"watershed ctl\"\n\n{meant}"));
        assert_eq!(read(Program::Ctl, &[Word::new()]).unwrap_err().code, 1);
    }

    #[test]
    fn errors_have_the_name_of_the_program() {
        let text = |program, line: &str| read(program, &words(line)).unwrap_err().text;
        assert_eq!(text(Program::Etcdctl, "zzz"), r#"unknown command "zzz" for "etcdctl""#);
        assert_eq!(text(Program::Ctl, "zzz"), r#"unknown command "zzz" for "watershed ctl""#);
    }

    #[test]
    fn what_does_not_exist_is_named() {
        let failure = |line: &str| read(Program::Ctl, &words(line)).unwrap_err();
        assert_eq!(failure("zzz").text, r#"unknown command "zzz" for "watershed ctl""#);
        assert_eq!(failure("zzz").usage.as_deref(), Some("Run 'watershed ctl --help' for usage."));
        assert_eq!(failure("get k --nope").text, "unknown flag: --nope");
        assert!(failure("get k --nope").usage.unwrap().starts_with("Usage:\n  watershed ctl get [options] <key>"));
        let topic = failure("help nope");
        assert_eq!((topic.code, topic.text.as_str()), (0, ""));
        assert!(topic.note.unwrap().starts_with("Unknown help topic [`nope`]\nUsage:\n"));
        // Below the root, what does not exist is answered with what does.
        assert!(matches!(read(Program::Ctl, &words("lease nope")), Ok(Asked::Help(_))));
        assert_eq!(failure("completion").text, "accepts 1 arg(s), received 0");
        assert_eq!(failure("completion tcsh").text, r#"invalid argument "tcsh" for "watershed ctl completion""#);
    }

    #[test]
    fn every_flag_is_read() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ctl");
        let entries = [folder.join("check"), folder.join("mirror"), folder]
            .map(|folder| std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()));
        let code: String = entries
            .into_iter()
            .flatten()
            .filter(|path| path.is_file())
            .map(|path| std::fs::read_to_string(path).expect("a source file"))
            .map(|text| text.split("#[cfg(test)]").next().unwrap_or_default().to_owned())
            .collect();
        let is_read = |name: &str| {
            let literal = format!("{name:?}");
            code.match_indices(&literal).any(|(at, _)| !code[..at].trim_end().ends_with("Flag::new("))
        };
        let mut flags: Vec<&Flag> = options::FLAGS.iter().chain([&HELP]).collect();
        let mut commands: Vec<&Command> = ROOT.iter().collect();
        while let Some(command) = commands.pop() {
            flags.extend(command.flags);
            if let Body::Group(children) = command.body {
                commands.extend(children);
            }
        }
        assert!(flags.len() > 70 && !is_read("no-such-flag"), "{} flags", flags.len());
        let unread: Vec<_> = flags.iter().filter(|flag| !is_read(flag.name)).map(|flag| flag.name).collect();
        assert!(unread.is_empty(), "accepted and read by nothing: {unread:?}");
    }

    #[test]
    fn help_is_given_for_every_command() {
        for line in ["", "lease", "get --help", "help get", "-h", "help"] {
            assert!(matches!(read(Program::Ctl, &words(line)), Ok(Asked::Help(_))), "{line}");
        }
    }
}
