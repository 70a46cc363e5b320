use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue};
use clap::{ArgAction, ArgMatches, Command, FromArgMatches};

use super::error::{ConfigError, FlagWords, WrongFlag};
use super::file::{self, Notation};
use super::flag_type::FlagType;
use super::golang::parse_bool;

/// The flag that names the configuration file, in a mode that has one.
const CONFIG_FILE: &str = "config-file";

/// Where the value of a flag comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Argument,
    /// The environment.
    Variable,
    /// This line of the configuration file.
    File(usize),
}

/// The flags of a mode with their values, before they are checked.
#[derive(Debug)]
pub struct Parsed {
    /// The values, for `T::from_arg_matches`.
    pub matches: ArgMatches,
    /// Flags that are given, without dashes, with value and source.
    pub given: BTreeMap<String, (String, Source)>,
    /// Variables with our prefix that name no flag.
    pub unknown_variables: Vec<String>,
    /// The configuration file, if there is one: it replaces arguments and variables.
    pub file: Option<PathBuf>,
    /// Its keys that mean nothing, with their lines.
    pub unknown_keys: Vec<(String, usize)>,
    variables: Variables,
    words: FlagWords,
}

impl Parsed {
    /// Whether the operator gave this flag.
    pub fn is_given(&self, flag: &str) -> bool {
        self.given.contains_key(flag)
    }

    /// Why the value of this flag is wrong, in the words that fit where it comes from.
    pub fn wrong(&self, flag: &str, reason: String) -> ConfigError {
        let given = self.given.get(flag);
        let value = given.map(|(value, _)| value.clone()).unwrap_or_default();
        let wrong = Wrong { words: self.words, variables: &self.variables, file: self.file.as_ref() };
        wrong.value(flag, value, given.map(|(_, source)| *source), reason)
    }

    /// The same error, which the check of the values found, with file and line if the value is from the configuration file.
    pub fn in_file(&self, error: ConfigError) -> ConfigError {
        match (error, &self.file) {
            (ConfigError::Value { flag, reason }, Some(path)) => {
                let first = flag.split(',').next().unwrap_or_default();
                let line = match self.given.get(first) {
                    Some((_, Source::File(line))) => format!("line {line}: "),
                    _ => String::new(),
                };
                ConfigError::File { path: path.clone(), reason: format!("{line}{flag}: {reason}") }
            }
            (error, _) => error,
        }
    }

    /// Flags whose variable is used.
    pub fn variables_used(&self) -> impl Iterator<Item = String> {
        let from_variables = self.given.iter().filter(|(_, (_, source))| *source == Source::Variable);
        from_variables.map(|(flag, _)| self.variables.name_of(flag))
    }

    /// Reads the values into a struct that derives `clap::Parser`.
    ///
    /// # Errors
    /// When the struct and the command differ.
    pub fn read<T: FromArgMatches>(&self) -> Result<T, ConfigError> {
        T::from_arg_matches(&self.matches).map_err(|error| ConfigError::Other(one_line(&error)))
    }
}

/// Environment variables that may stand for flags.
#[derive(Clone, Debug, Default)]
pub struct Variables {
    prefix: &'static str,
    values: BTreeMap<String, OsString>,
}

impl Variables {
    /// For modes that read none.
    pub fn none() -> Self {
        Self::default()
    }

    /// The variables of this process whose name starts with `prefix`, such as `ETCD_`.
    pub fn of_process(prefix: &'static str) -> Self {
        Self::new(prefix, std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))))
    }

    /// These.
    pub fn new(prefix: &'static str, values: impl IntoIterator<Item = (String, OsString)>) -> Self {
        let relevant = values.into_iter().filter(|(name, value)| name.starts_with(prefix) && !value.is_empty());
        Self { prefix, values: relevant.collect() }
    }

    fn name_of(&self, flag: &str) -> String {
        format!("{}{}", self.prefix, flag.to_uppercase().replace('-', "_"))
    }
}

/// Reads flags in the syntax of etcd's users: `-f` or `--f`, `--f=v` or `--f v`, `--f` alone and `--f=false` for
/// booleans. The last of repeated flags wins; values of repeated list flags are joined where etcd reads them with `pflag`
/// (gateway and proxy). Variables stand in for flags that are not given; both at once is an error. A configuration file,
/// named by `--config-file` or its variable, replaces both: then no other flag and no other variable counts. The gateway
/// refuses other flags beside it.
///
/// `command` comes from a struct that derives `clap::Parser`, all of its arguments with long names; what is refused gets
/// these `words`.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse_flags(
    command: Command,
    args: &[OsString],
    variables: &Variables,
    words: FlagWords,
) -> Result<Parsed, ConfigError> {
    let mut command = command.disable_version_flag(true).args_override_self(true).no_binary_name(true);
    command.build();
    let known: BTreeMap<String, FlagType> =
        command.get_arguments().filter_map(|arg| Some((arg.get_long()?.to_owned(), FlagType::of(arg)))).collect();
    let arguments = from_arguments(&mut command, &known, args, words)?;
    let mut given: BTreeMap<String, (String, Source)> =
        arguments.into_iter().map(|(flag, value)| (flag, (value, Source::Argument))).collect();
    let path = known.get(CONFIG_FILE).and_then(|_| {
        let argument = given.get(CONFIG_FILE).map(|(path, _)| path.into()).filter(|path: &OsString| !path.is_empty());
        argument.or_else(|| variables.values.get(&variables.name_of(CONFIG_FILE)).cloned())
    });
    let wrong = Wrong { words, variables, file: None };
    let Some(path) = path.map(PathBuf::from) else {
        let unknown_variables = add_variables(&mut given, &known, variables)?;
        let matches = matches(&command, &given, &known, wrong)?;
        let (variables, unknown_keys) = (variables.clone(), Vec::new());
        return Ok(Parsed { matches, given, unknown_variables, file: None, unknown_keys, variables, words });
    };
    let notation = match words {
        FlagWords::Go => Notation::Etcd,
        FlagWords::Cobra => Notation::Flags,
    };
    if let Some(other) = given.keys().find(|flag| notation == Notation::Flags && *flag != CONFIG_FILE) {
        let reason = format!("replaces all other flags, and --{other} stands beside it");
        return Err(ConfigError::Value { flag: CONFIG_FILE, reason });
    }
    // What the command line of a member says is not used, as in etcd, yet it has to be well formed.
    matches(&command, &given, &known, wrong)?;
    let asks_for_version = given.remove("version");
    let from_file = file::read(&path, &file::Flags { known: &known, notation })?;
    let line = |flag: &str| Source::File(from_file.lines.get(flag).copied().unwrap_or_default());
    given = from_file.values.into_iter().map(|(flag, value)| (flag.clone(), (value, line(&flag)))).collect();
    given.insert(CONFIG_FILE.to_owned(), (path.to_string_lossy().into_owned(), Source::Argument));
    given.extend(asks_for_version.map(|version| ("version".to_owned(), version)));
    let matches = matches(&command, &given, &known, Wrong { file: Some(&path), ..wrong })?;
    Ok(Parsed {
        matches,
        given,
        unknown_variables: Vec::new(),
        file: Some(path),
        unknown_keys: from_file.unknown,
        variables: variables.clone(),
        words,
    })
}

/// Has the values parsed.
fn matches(
    command: &Command,
    given: &BTreeMap<String, (String, Source)>,
    known: &BTreeMap<String, FlagType>,
    wrong: Wrong<'_>,
) -> Result<ArgMatches, ConfigError> {
    let mut flags = Vec::new();
    for (flag, (value, source)) in given {
        flags.push(match known.get(flag) {
            Some(FlagType::Integer(sign)) => {
                let refused = |why| wrong.value(flag, value.clone(), Some(*source), number_reason(why, wrong.words));
                format!("--{flag}={}", sign.read(value).map_err(refused)?)
            }
            _ => format!("--{flag}={value}"),
        });
    }
    command.clone().try_get_matches_from(flags).map_err(|error| {
        let Some((flag, value, reason)) = refused(&error, given, known, wrong.words) else {
            return ConfigError::Other(one_line(&error));
        };
        let source = given.get(&flag).map(|(_, source)| *source);
        wrong.value(&flag, value, source, reason)
    })
}

/// What Go's `strconv` says about a number, in the words of those that print it.
fn number_reason(why: String, words: FlagWords) -> String {
    match words {
        FlagWords::Cobra => why,
        FlagWords::Go if why.ends_with("value out of range") => "value out of range".to_owned(),
        FlagWords::Go => "parse error".to_owned(),
    }
}

/// What the text of a refusal depends on, beside the flag.
#[derive(Clone, Copy)]
struct Wrong<'a> {
    words: FlagWords,
    variables: &'a Variables,
    file: Option<&'a PathBuf>,
}

impl Wrong<'_> {
    fn value(self, flag: &str, value: String, source: Option<Source>, reason: String) -> ConfigError {
        match (source, self.file) {
            (Some(Source::Variable), _) => {
                ConfigError::InvalidVariable { variable: self.variables.name_of(flag), value, reason }
            }
            (Some(Source::File(line)), Some(path)) => ConfigError::File {
                path: path.clone(),
                reason: format!("line {line}: invalid value {value:?} for {flag}: {reason}"),
            },
            _ => {
                let wrong = WrongFlag::Invalid { flag: flag.to_owned(), value, reason };
                ConfigError::Flag { words: self.words, wrong }
            }
        }
    }
}

fn from_arguments(
    command: &mut Command,
    known: &BTreeMap<String, FlagType>,
    args: &[OsString],
    words: FlagWords,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let refuse = |wrong| ConfigError::Flag { words, wrong };
    let mut values = BTreeMap::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let arg = arg.to_str().ok_or_else(|| ConfigError::NotUtf8(arg.clone()))?;
        let flag = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).filter(|flag| !flag.is_empty());
        let Some(flag) = flag else { return Err(ConfigError::Stray(arg.to_owned())) };
        if flag.starts_with(['-', '=']) {
            return Err(refuse(WrongFlag::BadSyntax(arg.to_owned())));
        }
        let (name, inline) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        if matches!(name, "h" | "help") {
            return Err(ConfigError::Help(command.render_help().to_string()));
        }
        let value = match (known.get(name), inline) {
            (None, _) => {
                return Err(refuse(WrongFlag::Unknown { flag: name.to_owned(), argument: arg.to_owned() }));
            }
            (Some(FlagType::Bool), None) => "true".to_owned(),
            (Some(FlagType::Bool), Some(value)) => parse_bool(value)
                .map_err(|_| refuse(WrongFlag::InvalidBool { flag: name.to_owned(), value: value.to_owned() }))?
                .to_string(),
            (Some(_), Some(value)) => value.to_owned(),
            (Some(_), None) => {
                let next = rest.next().ok_or_else(|| refuse(WrongFlag::MissingValue(name.to_owned())))?;
                next.to_str().ok_or_else(|| ConfigError::NotUtf8(next.clone()))?.to_owned()
            }
        };
        let adds = words == FlagWords::Cobra && is_list(command, name);
        let value = match values.remove(name).filter(|_| adds) {
            Some(earlier) => format!("{earlier},{value}"),
            None => value,
        };
        values.insert(name.to_owned(), value);
    }
    Ok(values)
}

/// Whether a flag may be given more than once.
fn is_list(command: &Command, flag: &str) -> bool {
    let mut lists = command.get_arguments().filter(|arg| matches!(arg.get_action(), ArgAction::Append));
    lists.any(|arg| arg.get_long() == Some(flag))
}

/// Adds what only variables say and returns those that name no flag.
fn add_variables(
    given: &mut BTreeMap<String, (String, Source)>,
    known: &BTreeMap<String, FlagType>,
    variables: &Variables,
) -> Result<Vec<String>, ConfigError> {
    let mut unknown = variables.values.clone();
    // Containers set ETCD_VERSION for other purposes; etcd does not read it either.
    for (flag, kind) in known.iter().filter(|(flag, _)| *flag != "version") {
        let variable = variables.name_of(flag);
        let Some(value) = unknown.remove(&variable) else { continue };
        if given.contains_key(flag) {
            return Err(ConfigError::Shadowed { variable, flag: flag.clone() });
        }
        let value = value.into_string().map_err(ConfigError::NotUtf8)?;
        let value = match kind {
            FlagType::Bool => match parse_bool(&value) {
                Ok(value) => value.to_string(),
                Err(_) => return Err(ConfigError::InvalidVariable { variable, value, reason: "parse error".into() }),
            },
            _ => value,
        };
        given.insert(flag.clone(), (value, Source::Variable));
    }
    Ok(unknown.into_keys().collect())
}

/// Flag, value and reason in the parser's complaint, the reason in Go's words where Go has a fixed one.
fn refused(
    error: &clap::Error,
    given: &BTreeMap<String, (String, Source)>,
    known: &BTreeMap<String, FlagType>,
    words: FlagWords,
) -> Option<(String, String, String)> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let argument = text(ContextKind::InvalidArg)?;
    let flag = argument.trim_start_matches('-').split([' ', '=']).next().unwrap_or_default().to_owned();
    let kind = known.get(&flag);
    let given = given.get(&flag).map(|(value, _)| value.as_str());
    let value = match kind {
        // The parser had it in decimal.
        Some(FlagType::Integer(_)) => given,
        _ => text(ContextKind::InvalidValue).or(given),
    };
    let value = value.unwrap_or_default().to_owned();
    let reason = match (kind, words) {
        // It is a number, as it was read before, of fewer bits or in narrower bounds than Go's.
        (Some(FlagType::Integer(sign)), _) => {
            let why = format!("strconv.{}: parsing {value:?}: value out of range", sign.parser());
            number_reason(why, words)
        }
        (Some(FlagType::Duration), FlagWords::Go) => "parse error".to_owned(),
        _ => std::error::Error::source(error).map_or_else(|| "not accepted".to_owned(), ToString::to_string),
    };
    Some((flag, value, reason))
}

fn one_line(error: &clap::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[derive(clap::Parser)]
    struct Example {
        #[arg(long, default_value = "x")]
        name: String,
        #[arg(long, default_value_t = false, action = clap::ArgAction::Set)]
        quick: bool,
        #[arg(long, default_value_t = 3)]
        quota_bytes: i64,
        #[arg(long, default_value_t = 0)]
        threads: u32,
        #[arg(long, default_value = "1s", value_parser = <super::super::golang::GoDuration as std::str::FromStr>::from_str)]
        delay: super::super::golang::GoDuration,
    }

    fn parse(line: &str, variables: &[(&str, &str)]) -> String {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let variables =
            Variables::new("ETCD_", variables.iter().map(|&(name, value)| (name.to_owned(), OsString::from(value))));
        match parse_flags(Example::command(), &args, &variables, FlagWords::Go) {
            Ok(parsed) => {
                let example: Example = parsed.read().unwrap();
                let unknown = parsed.unknown_variables.join(",");
                format!("{} {} {} {unknown}", example.name, example.quick, example.quota_bytes).trim_end().to_owned()
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn every_spelling_of_a_flag_is_read() {
        for line in ["-name a -quick", "--name=a --quick", "--name a --quick=t", "--quick -name=b --name a"] {
            assert_eq!(parse(line, &[]), "a true 3", "{line}");
        }
        assert_eq!(parse("--quick --quick=false --quota-bytes -1", &[]), "x false -1");
        assert_eq!(parse("--name -a", &[]), "-a false 3");
        assert_eq!(parse("--name=", &[]), "false 3".to_owned().replacen("false", " false", 1));
    }

    #[test]
    fn a_refusal_names_the_flag() {
        assert_eq!(parse("--nme a", &[]), "flag provided but not defined: -nme");
        assert_eq!(parse("---x", &[]), "bad flag syntax: ---x");
        assert_eq!(parse("extra", &[]), "\"extra\" is not a valid flag");
        assert_eq!(parse("--name", &[]), "flag needs an argument: -name");
        assert_eq!(parse("--quick=maybe", &[]), "invalid boolean value \"maybe\" for -quick: parse error");
        let refused = parse("--quota-bytes 1k", &[]);
        assert_eq!(refused, "invalid value \"1k\" for flag -quota-bytes: parse error");
        let refused = parse("--quota-bytes 99999999999999999999", &[]);
        assert_eq!(refused, "invalid value \"99999999999999999999\" for flag -quota-bytes: value out of range");
        assert!(parse("-h", &[]).contains("--quota-bytes"));
    }

    #[test]
    fn integers_have_the_bases_of_go() {
        // Cause: they were decimal alone, so `0x10` was refused, and `010` was ten.
        let cases = [("0x10", 16), ("-0x10", -16), ("0o17", 15), ("010", 8), ("0b11", 3), ("1_000", 1000), ("+7", 7)];
        for (text, value) in cases {
            assert_eq!(parse(&format!("--quota-bytes={text}"), &[]), format!("x false {value}"), "{text}");
            assert_eq!(parse("", &[("ETCD_QUOTA_BYTES", text)]), format!("x false {value}"), "{text}");
        }
        for (flag, text, reason) in [
            ("quota-bytes", "089", "parse error"),
            ("quota-bytes", "0x", "parse error"),
            ("quota-bytes", "1__0", "parse error"),
            ("quota-bytes", "", "parse error"),
            ("quota-bytes", "0x8000_0000_0000_0000", "value out of range"),
            ("threads", "-1", "parse error"),
            ("threads", "0x1_0000_0000", "value out of range"),
        ] {
            let refused = format!("invalid value {text:?} for flag -{flag}: {reason}");
            assert_eq!(parse(&format!("--{flag}={text}"), &[]), refused);
        }
    }

    #[test]
    fn the_gateway_and_the_proxy_have_the_texts_of_cobra() {
        let refused = |line: &str| {
            let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            let error = parse_flags(Example::command(), &args, &Variables::none(), FlagWords::Cobra).expect_err(line);
            assert_eq!(error.exit_code(), 1, "{line}");
            error.to_string()
        };
        // What etcd 3.7.1 prints after "Error: ".
        let invalid = |flag: &str, value: &str, reason: &str| {
            format!("invalid argument {value:?} for \"--{flag}\" flag: {reason}")
        };
        for (line, text) in [
            ("--nope", "unknown flag: --nope".to_owned()),
            ("--nope=1", "unknown flag: --nope".to_owned()),
            ("-n", "unknown shorthand flag: 'n' in -n".to_owned()),
            ("-x=1", "unknown shorthand flag: 'x' in -x=1".to_owned()),
            ("--=x", "bad flag syntax: --=x".to_owned()),
            ("---x", "bad flag syntax: ---x".to_owned()),
            ("--name", "flag needs an argument: --name".to_owned()),
            ("--quick=maybe", invalid("quick", "maybe", "strconv.ParseBool: parsing \"maybe\": invalid syntax")),
            ("--quota-bytes=x", invalid("quota-bytes", "x", "strconv.ParseInt: parsing \"x\": invalid syntax")),
            ("--threads=x", invalid("threads", "x", "strconv.ParseUint: parsing \"x\": invalid syntax")),
            (
                "--threads=99999999999",
                invalid("threads", "99999999999", "strconv.ParseUint: parsing \"99999999999\": value out of range"),
            ),
            (
                "--threads=0x1_0000_0000",
                invalid("threads", "0x1_0000_0000", "strconv.ParseUint: parsing \"0x1_0000_0000\": value out of range"),
            ),
            ("--quota-bytes=089", invalid("quota-bytes", "089", "strconv.ParseInt: parsing \"089\": invalid syntax")),
            ("--delay=x", invalid("delay", "x", "time: invalid duration \"x\"")),
        ] {
            assert_eq!(refused(line), text, "{line}");
        }
    }

    #[test]
    fn variables_stand_in_for_flags() {
        assert_eq!(parse("", &[("ETCD_NAME", "v"), ("ETCD_QUICK", "1"), ("OTHER", "y")]), "v true 3");
        assert_eq!(parse("", &[("ETCD_NAME", ""), ("ETCD_NMAE", "1")]), "x false 3 ETCD_NMAE");
        let bad = parse("", &[("ETCD_QUICK", "maybe")]);
        assert_eq!(bad, "invalid value \"maybe\" for ETCD_QUICK: parse error");
        let bad = parse("", &[("ETCD_QUOTA_BYTES", "1k")]);
        assert_eq!(bad, "invalid value \"1k\" for ETCD_QUOTA_BYTES: parse error");
        let both = parse("--name a", &[("ETCD_NAME", "b")]);
        assert!(both.starts_with("conflicting environment variable \"ETCD_NAME\" is shadowed by"), "{both}");
    }
}
