use super::failure::{Exit, Failure};
use super::flags::{self, Flag, Kind, Parsed, Word};
use super::options;
use crate::types::API_VERSION;

/// The name under which this client runs. It decides which commands exist and how help and errors call the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `watershed ctl`, with a version of its own.
    Ctl,
    /// The client of a cluster.
    Etcdctl,
    /// The tool for files.
    Etcdutl,
}

impl Program {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ctl => "watershed ctl",
            Self::Etcdctl => "etcdctl",
            Self::Etcdutl => "etcdutl",
        }
    }

    /// The version scripts compare: etcd's for the names that are etcd's.
    pub(super) fn version(self) -> &'static str {
        match self {
            Self::Ctl => env!("CARGO_PKG_VERSION"),
            Self::Etcdctl | Self::Etcdutl => API_VERSION,
        }
    }

    fn commands(self) -> &'static [Command] {
        match self {
            Self::Ctl | Self::Etcdctl => ROOT,
            Self::Etcdutl => OFFLINE,
        }
    }
}

/// What a leaf of the command tree does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Put,
    Del,
    Txn,
    Watch,
    Compaction,
    LeaseGrant,
    LeaseRevoke,
    LeaseTimeToLive,
    LeaseList,
    LeaseKeepAlive,
    MemberList,
    MemberAdd,
    MemberRemove,
    MemberUpdate,
    MemberPromote,
    EndpointStatus,
    EndpointHealth,
    EndpointHashKv,
    SnapshotSave,
    SnapshotStatus,
    AlarmList,
    AlarmDisarm,
    Defrag,
    MoveLeader,
    Lock,
    Elect,
    Version,
    Options,
    /// A command of etcdctl that this client does not have yet.
    Absent,
}

/// One node of the command tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command {
    name: &'static str,
    args: &'static str,
    about: &'static str,
    flags: &'static [Flag],
    body: Body,
}

#[derive(Clone, Copy, Debug)]
enum Body {
    Group(&'static [Command]),
    Leaf(Verb),
}

const fn leaf(
    name: &'static str,
    args: &'static str,
    about: &'static str,
    flags: &'static [Flag],
    verb: Verb,
) -> Command {
    Command { name, args, about, flags, body: Body::Leaf(verb) }
}

const fn group(
    name: &'static str,
    about: &'static str,
    flags: &'static [Flag],
    children: &'static [Command],
) -> Command {
    Command { name, args: "", about, flags, body: Body::Group(children) }
}

const fn absent(name: &'static str) -> Command {
    leaf(name, "", "Not supported yet", &[], Verb::Absent)
}

const PREV_KV: Flag = Flag::new("prev-kv", Kind::Bool, "", "Also show the pairs as they were before");
const FROM_KEY: Flag = Flag::new("from-key", Kind::Bool, "", "Cover every key from this one on, in byte order");
const PREFIX: Flag = Flag::new("prefix", Kind::Bool, "", "Cover every key that starts like this one");
const CONSISTENCY: Flag = Flag::new("consistency", Kind::Text, "l", "l asks the leader, s reads what the member has");
const PEER_URLS: Flag = Flag::new("peer-urls", Kind::Text, "", "Where members reach it, separated by commas");
const CLUSTER: Flag =
    Flag::new("cluster", Kind::Bool, "", "Ask every member of the member list instead of --endpoints");

/// Flags of `get`, also inside `txn`.
pub(super) const GET_FLAGS: &[Flag] = &[
    CONSISTENCY,
    Flag::new("order", Kind::Text, "", "Order of the answer: ASCEND or DESCEND"),
    Flag::new("sort-by", Kind::Text, "", "What to sort by: CREATE, KEY, MODIFY, VALUE or VERSION"),
    Flag::new("limit", Kind::Int, "", "Show that many pairs at most"),
    PREFIX,
    FROM_KEY,
    Flag::new("rev", Kind::Int, "", "Read the store as it was at this revision"),
    Flag::new("keys-only", Kind::Bool, "", "Leave the values out"),
    Flag::new("count-only", Kind::Bool, "", "Only count (with -w fields)"),
    Flag::new("print-value-only", Kind::Bool, "", "Leave the keys out (with -w simple)"),
    Flag::new("min-create-rev", Kind::Int, "", "Leave out keys created before this revision"),
    Flag::new("max-create-rev", Kind::Int, "", "Leave out keys created after this revision"),
    Flag::new("min-mod-rev", Kind::Int, "", "Leave out keys last changed before this revision"),
    Flag::new("max-mod-rev", Kind::Int, "", "Leave out keys last changed after this revision"),
    Flag::new("stream", Kind::Bool, "", "Ask with RangeStream, which sends large answers in pieces"),
];

/// Flags of `put`, also inside `txn`.
pub(super) const PUT_FLAGS: &[Flag] = &[
    Flag::new("lease", Kind::Text, "0", "Lease that owns the key, in hex"),
    PREV_KV,
    Flag::new("ignore-value", Kind::Bool, "", "Keep the value the key has"),
    Flag::new("ignore-lease", Kind::Bool, "", "Keep the lease the key has"),
];

/// Flags of `del`, also inside `txn`.
pub(super) const DEL_FLAGS: &[Flag] = &[
    PREFIX,
    PREV_KV,
    FROM_KEY,
    Flag::new("range", Kind::Bool, "", "Delete a range without the two seconds of second thoughts"),
];

/// Flags of `watch`, also on the lines of `watch -i`.
pub(super) const WATCH_FLAGS: &[Flag] = &[
    Flag::new("interactive", Kind::Bool, "", "Read watches from standard input").short('i'),
    PREFIX,
    Flag::new("rev", Kind::Int, "", "Start at this revision"),
    PREV_KV,
    Flag::new("progress-notify", Kind::Bool, "", "Show the progress the server reports from time to time"),
];

const ROOT: &[Command] = &[
    leaf("get", "<key> [range_end]", "Shows a key or a range of keys", GET_FLAGS, Verb::Get),
    leaf(
        "put",
        "<key> [value]",
        "Writes a key; the value comes from standard input when it is left out",
        PUT_FLAGS,
        Verb::Put,
    ),
    leaf("del", "<key> [range_end]", "Deletes a key or a range of keys", DEL_FLAGS, Verb::Del),
    leaf(
        "txn",
        "",
        "Runs a transaction from standard input: compares, an empty line, operations if they hold, an empty line, operations if not, an empty line",
        &[Flag::new("interactive", Kind::Bool, "", "Prompt for each part").short('i')],
        Verb::Txn,
    ),
    leaf(
        "watch",
        "[key [range_end]] [-- command args...]",
        "Shows changes as they happen, or runs a command for each",
        WATCH_FLAGS,
        Verb::Watch,
    ),
    leaf(
        "compaction",
        "<revision>",
        "Forgets the history before a revision",
        &[Flag::new("physical", Kind::Bool, "", "Wait until the old revisions are gone from the disk")],
        Verb::Compaction,
    ),
    group(
        "lease",
        "Grants, revokes and shows leases",
        &[],
        &[
            leaf("grant", "<ttl>", "Makes a lease of that many seconds", &[], Verb::LeaseGrant),
            leaf("revoke", "<lease>", "Ends a lease and deletes its keys", &[], Verb::LeaseRevoke),
            leaf(
                "timetolive",
                "<lease>",
                "Shows how long a lease has left",
                &[Flag::new("keys", Kind::Bool, "", "Also show the keys it owns")],
                Verb::LeaseTimeToLive,
            ),
            leaf("list", "", "Lists the leases", &[], Verb::LeaseList),
            leaf(
                "keep-alive",
                "<lease>",
                "Keeps a lease alive until it is gone",
                &[Flag::new("once", Kind::Bool, "", "Only once")],
                Verb::LeaseKeepAlive,
            ),
        ],
    ),
    group(
        "member",
        "Shows and changes the members of the cluster",
        &[],
        &[
            leaf("list", "", "Lists the members", &[CONSISTENCY], Verb::MemberList),
            leaf(
                "add",
                "<name>",
                "Adds a member",
                &[PEER_URLS, Flag::new("learner", Kind::Bool, "", "Add it without a vote")],
                Verb::MemberAdd,
            ),
            leaf("remove", "<member>", "Removes a member", &[], Verb::MemberRemove),
            leaf("update", "<member>", "Changes the peer URLs of a member", &[PEER_URLS], Verb::MemberUpdate),
            leaf("promote", "<member>", "Gives a learner its vote", &[], Verb::MemberPromote),
        ],
    ),
    group(
        "endpoint",
        "Asks each endpoint about itself",
        &[CLUSTER],
        &[
            leaf(
                "health",
                "",
                "Tells whether each endpoint can do a read through the leader",
                &[],
                Verb::EndpointHealth,
            ),
            leaf("status", "", "Shows versions, sizes and raft positions", &[], Verb::EndpointStatus),
            leaf(
                "hashkv",
                "",
                "Shows the hash of the stored history",
                &[Flag::new("rev", Kind::Int, "", "Hash up to this revision")],
                Verb::EndpointHashKv,
            ),
        ],
    ),
    group(
        "snapshot",
        "Saves and inspects db snapshots of the store",
        &[],
        &[
            leaf("save", "<file>", "Saves the db snapshot of one member to a file", &[], Verb::SnapshotSave),
            SNAPSHOT_STATUS,
        ],
    ),
    group(
        "alarm",
        "Shows and clears alarms",
        &[],
        &[
            leaf("list", "", "Lists the alarms that are raised", &[], Verb::AlarmList),
            leaf("disarm", "", "Clears all alarms", &[], Verb::AlarmDisarm),
        ],
    ),
    leaf("defrag", "", "Gives unused space of each endpoint back to its disk", &[CLUSTER], Verb::Defrag),
    leaf("move-leader", "<member>", "Hands leadership to another member", &[], Verb::MoveLeader),
    leaf(
        "lock",
        "<name> [command args...]",
        "Holds a lock until a signal, or while a command runs",
        &[Flag::new("ttl", Kind::Int, "10", "Seconds the lock outlives a client that falls silent")],
        Verb::Lock,
    ),
    leaf(
        "elect",
        "<election> [proposal]",
        "Stands for election, or follows one",
        &[Flag::new("listen", Kind::Bool, "", "Only follow").short('l')],
        Verb::Elect,
    ),
    VERSION,
    leaf("options", "", "Lists the options that every command takes", &[], Verb::Options),
    absent("auth"),
    absent("user"),
    absent("role"),
    absent("check"),
    absent("make-mirror"),
    absent("downgrade"),
    absent("completion"),
];

const VERSION: Command = leaf("version", "", "Shows the version of this client and of its API", &[], Verb::Version);
const SNAPSHOT_STATUS: Command = leaf("status", "<file>", "Shows what a db snapshot holds", &[], Verb::SnapshotStatus);

/// etcdutl's commands, which work on files.
const OFFLINE: &[Command] = &[
    group("snapshot", "Inspects db snapshots", &[], &[SNAPSHOT_STATUS, absent("restore")]),
    VERSION,
    absent("defrag"),
    absent("hashkv"),
    absent("migrate"),
    absent("completion"),
];

/// What the command line asks for.
#[derive(Debug)]
pub(super) enum Asked {
    /// A command with its flags and arguments.
    Run(Verb, Parsed),
    /// A text to print.
    Help(String),
}

const HELP: Flag = Flag::new("help", Kind::Bool, "", "Show this text").short('h');

/// Finds the command and reads its flags. Global options may stand anywhere, and a unique beginning of a command's
/// name is enough, as in etcdctl.
pub(super) fn read(program: Program, words: &[Word]) -> Result<Asked, Failure> {
    let mut path: Vec<&Command> = Vec::new();
    let mut rest = words.to_vec();
    let mut at = 0;
    loop {
        let known = flags_of(&path);
        let children = match path.last() {
            None => program.commands(),
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
        match find(children, &name) {
            Ok(child) => {
                path.push(child);
                rest.remove(at);
            }
            Err(candidates) if path.is_empty() && candidates.is_empty() && is_beginning(&name, "help") => {
                rest.remove(at);
                rest.push(b"--help".to_vec());
            }
            Err(candidates) => {
                let parent = full_name(program, &path);
                let reason = match candidates.as_slice() {
                    [] => format!("see '{parent} --help'"),
                    several => format!("it is the beginning of {}", several.join(", ")),
                };
                let text = format!("unknown command {name:?} for {parent:?}, {reason}");
                return Err(Failure::new(Exit::Error, text));
            }
        }
    }
    if let Some(Command { name, body: Body::Leaf(Verb::Absent), .. }) = path.last() {
        let text = format!("{name:?} is not supported yet by {}; etcd's own has it", program.name());
        return Err(Failure::new(Exit::Error, text));
    }
    let known = flags_of(&path);
    let parsed = flags::parse(&known, &rest).map_err(|text| Failure::new(Exit::Error, text))?;
    match path.last() {
        Some(Command { body: Body::Leaf(verb), .. }) if !parsed.bool("help") => Ok(Asked::Run(*verb, parsed)),
        _ => Ok(Asked::Help(help(program, &path))),
    }
}

/// The command of that name, else the only one whose name begins so.
///
/// # Errors
/// The names that begin so, when there is not exactly one.
fn find(commands: &'static [Command], name: &str) -> Result<&'static Command, Vec<&'static str>> {
    if let Some(exact) = commands.iter().find(|command| command.name == name) {
        return Ok(exact);
    }
    let candidates: Vec<&Command> = commands.iter().filter(|command| is_beginning(name, command.name)).collect();
    match candidates.as_slice() {
        [only] => Ok(only),
        _ => Err(candidates.iter().map(|command| command.name).collect()),
    }
}

fn is_beginning(word: &str, name: &str) -> bool {
    !word.is_empty() && name.starts_with(word)
}

fn flags_of(path: &[&Command]) -> Vec<&'static Flag> {
    let own = path.iter().flat_map(|command| command.flags);
    options::FLAGS.iter().chain([&HELP]).chain(own).collect()
}

/// Whether the flag in `word` takes the next word as its value.
fn takes_next(word: &[u8], known: &[&Flag]) -> bool {
    let Ok(text) = std::str::from_utf8(word) else { return false };
    match text.strip_prefix("--") {
        Some(name) => known.iter().any(|flag| flag.name == name && flag.kind != Kind::Bool),
        None => {
            // A longer cluster carries its value itself.
            let letter = text.chars().nth(1);
            text.chars().count() == 2 && known.iter().any(|flag| flag.short == letter && flag.kind != Kind::Bool)
        }
    }
}

fn full_name(program: Program, path: &[&Command]) -> String {
    path.iter().fold(program.name().to_owned(), |name, command| name + " " + command.name)
}

fn help(program: Program, path: &[&Command]) -> String {
    let name = full_name(program, path);
    let own: Vec<&Flag> = path.iter().flat_map(|command| command.flags).chain([&HELP]).collect();
    let flags = flags::usage(&own);
    let tail = match program {
        Program::Etcdutl => String::new(),
        _ => format!("{} options lists the options that every command takes.\n", program.name()),
    };
    let list = |children: &[Command]| {
        let width = children.iter().map(|child| child.name.len()).max().unwrap_or(0);
        children
            .iter()
            .map(|child| format!("  {:<width$}  {}\n", child.name, child.about.split(": ").next().unwrap_or_default()))
            .collect::<String>()
    };
    match path.last() {
        None => format!(
            "A command-line client for etcd v3 clusters, with the commands, flags and output of etcdctl.\n\n\
             Usage:\n  {name} [options] <command>\n\nCommands:\n{}\n{tail}",
            list(program.commands())
        ),
        Some(Command { about, body: Body::Group(children), .. }) => {
            format!("{about}\n\nUsage:\n  {name} <command>\n\nCommands:\n{}\nFlags:\n{flags}\n{tail}", list(children))
        }
        Some(Command { about, args, .. }) => {
            let args = if args.is_empty() { String::new() } else { format!(" {args}") };
            format!("{about}\n\nUsage:\n  {name} [flags]{args}\n\nFlags:\n{flags}\n{tail}")
        }
    }
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
        assert_eq!(verb("endpoint --cluster health"), Verb::EndpointHealth);
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
        assert_eq!(
            ambiguous.text,
            r#"unknown command "comp" for "watershed ctl", it is the beginning of compaction, completion"#
        );
        assert_eq!(read(Program::Ctl, &[Word::new()]).unwrap_err().code, 1);
    }

    #[test]
    fn each_name_of_the_program_has_its_commands() {
        assert!(matches!(read(Program::Etcdutl, &words("snapshot status f")), Ok(Asked::Run(Verb::SnapshotStatus, _))));
        let text = |program, line: &str| read(program, &words(line)).unwrap_err().text;
        assert_eq!(text(Program::Etcdutl, "get k"), r#"unknown command "get" for "etcdutl", see 'etcdutl --help'"#);
        assert!(text(Program::Etcdutl, "snapshot restore f").contains("not supported yet by etcdutl"));
        assert!(text(Program::Etcdctl, "nope").starts_with(r#"unknown command "nope" for "etcdctl""#));
    }

    #[test]
    fn what_does_not_exist_is_named() {
        let text = |line: &str| read(Program::Ctl, &words(line)).unwrap_err();
        assert_eq!(text("nope").text, r#"unknown command "nope" for "watershed ctl", see 'watershed ctl --help'"#);
        assert_eq!(
            text("lease nope").text,
            r#"unknown command "nope" for "watershed ctl lease", see 'watershed ctl lease --help'"#
        );
        assert_eq!(text("user add x").code, 1);
        assert!(text("user add x").text.contains("not supported yet"));
        assert_eq!(text("get k --nope").text, "unknown flag: --nope");
    }

    #[test]
    fn every_flag_is_read() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ctl");
        let files = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        let code: String = files
            .filter(|path| path.is_file())
            .map(|path| std::fs::read_to_string(path).expect("a source file"))
            .map(|text| text.split("#[cfg(test)]").next().unwrap_or_default().to_owned())
            .collect();
        let is_read = |name: &str| {
            let literal = format!("{name:?}");
            code.match_indices(&literal).any(|(at, _)| !code[..at].trim_end().ends_with("Flag::new("))
        };
        let mut flags: Vec<&Flag> = options::EFFECTIVE.iter().chain([&HELP]).collect();
        let mut commands: Vec<&Command> = ROOT.iter().chain(OFFLINE).collect();
        while let Some(command) = commands.pop() {
            flags.extend(command.flags);
            if let Body::Group(children) = command.body {
                commands.extend(children);
            }
        }
        assert!(flags.len() > 40 && !is_read("no-such-flag"), "{} flags", flags.len());
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
