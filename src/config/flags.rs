use std::any::TypeId;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue};
use clap::{ArgMatches, Command, FromArgMatches};

use super::error::ConfigError;
use super::golang::parse_bool;

/// What a mode was told, before it is checked.
#[derive(Debug)]
pub struct Parsed {
    /// The values, for `T::from_arg_matches`.
    pub matches: ArgMatches,
    /// Flags given as an argument or a variable, without dashes.
    pub given: BTreeSet<String>,
    /// Variables with our prefix that name no flag.
    pub unknown_variables: Vec<String>,
}

impl Parsed {
    /// Whether the operator gave this flag.
    pub fn is_given(&self, flag: &str) -> bool {
        self.given.contains(flag)
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

    /// Those of this process whose name starts with `prefix`, such as `ETCD_`.
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
/// booleans; the last of repeated flags wins. Variables stand in for flags that are not given; both at once is an
/// error.
///
/// `command` comes from a struct that derives `clap::Parser`, all of its arguments with long names.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse_flags(command: Command, args: &[OsString], variables: &Variables) -> Result<Parsed, ConfigError> {
    let mut command = command.disable_version_flag(true).args_override_self(true).no_binary_name(true);
    command.build();
    let known: BTreeMap<String, bool> = command
        .get_arguments()
        .filter_map(|arg| Some((arg.get_long()?.to_owned(), arg.get_value_parser().type_id() == TypeId::of::<bool>())))
        .collect();
    let mut values = from_arguments(&mut command, &known, args)?;
    let arguments: BTreeSet<String> = values.keys().cloned().collect();
    let unknown_variables = add_variables(&mut values, &known, variables)?;
    let flags = values.iter().map(|(flag, value)| format!("--{flag}={value}"));
    let matches = command.clone().try_get_matches_from(flags).map_err(|error| match refused(&error, &values) {
        ConfigError::Invalid { flag, value, reason } if !arguments.contains(&flag) => {
            ConfigError::InvalidVariable { variable: variables.name_of(&flag), value, reason }
        }
        error => error,
    })?;
    Ok(Parsed { matches, given: values.into_keys().collect(), unknown_variables })
}

fn from_arguments(
    command: &mut Command,
    known: &BTreeMap<String, bool>,
    args: &[OsString],
) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut values = BTreeMap::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let arg = arg.to_str().ok_or_else(|| ConfigError::NotUtf8(arg.clone()))?;
        let flag = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).filter(|flag| !flag.is_empty());
        let Some(flag) = flag else { return Err(ConfigError::Stray(arg.to_owned())) };
        let (name, inline) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        if matches!(name, "h" | "help") {
            return Err(ConfigError::Help(command.render_help().to_string()));
        }
        let value = match (known.get(name), inline) {
            (None, _) => return Err(ConfigError::Unknown(name.to_owned())),
            (Some(true), None) => "true".to_owned(),
            (Some(true), Some(value)) => boolean(value).map_err(|reason| ConfigError::Invalid {
                flag: name.to_owned(),
                value: value.to_owned(),
                reason,
            })?,
            (Some(false), Some(value)) => value.to_owned(),
            (Some(false), None) => {
                let next = rest.next().ok_or_else(|| ConfigError::MissingValue(name.to_owned()))?;
                next.to_str().ok_or_else(|| ConfigError::NotUtf8(next.clone()))?.to_owned()
            }
        };
        values.insert(name.to_owned(), value);
    }
    Ok(values)
}

/// Adds what only variables say and returns those that name no flag.
fn add_variables(
    values: &mut BTreeMap<String, String>,
    known: &BTreeMap<String, bool>,
    variables: &Variables,
) -> Result<Vec<String>, ConfigError> {
    let mut unknown = variables.values.clone();
    for (flag, &is_boolean) in known {
        let variable = variables.name_of(flag);
        let Some(value) = unknown.remove(&variable) else { continue };
        if values.contains_key(flag) {
            return Err(ConfigError::Shadowed { variable, flag: flag.clone() });
        }
        let value = value.into_string().map_err(ConfigError::NotUtf8)?;
        let value = match is_boolean {
            true => boolean(&value).map_err(|reason| ConfigError::InvalidVariable { variable, value, reason })?,
            false => value,
        };
        values.insert(flag.clone(), value);
    }
    Ok(unknown.into_keys().collect())
}

fn boolean(value: &str) -> Result<String, String> {
    parse_bool(value).map(|value| value.to_string())
}

/// Names the flag and the value in the parser's complaint.
fn refused(error: &clap::Error, values: &BTreeMap<String, String>) -> ConfigError {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let Some(argument) = text(ContextKind::InvalidArg) else { return ConfigError::Other(one_line(error)) };
    let flag = argument.trim_start_matches('-').split([' ', '=']).next().unwrap_or_default().to_owned();
    let value = text(ContextKind::InvalidValue).or(values.get(&flag).map(String::as_str)).unwrap_or_default();
    let reason = std::error::Error::source(error).map_or_else(|| "not accepted".to_owned(), ToString::to_string);
    ConfigError::Invalid { value: value.to_owned(), flag, reason }
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
    }

    fn parse(line: &str, variables: &[(&str, &str)]) -> String {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let variables =
            Variables::new("ETCD_", variables.iter().map(|&(name, value)| (name.to_owned(), OsString::from(value))));
        match parse_flags(Example::command(), &args, &variables) {
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
        assert_eq!(parse("--nme a", &[]), "flag provided but not defined: --nme (--help lists the flags)");
        assert_eq!(parse("extra", &[]), "\"extra\" is not a valid flag");
        assert_eq!(parse("--name", &[]), "flag needs an argument: --name");
        assert_eq!(
            parse("--quick=maybe", &[]),
            "invalid value \"maybe\" for flag --quick: strconv.ParseBool: parsing \"maybe\": invalid syntax"
        );
        let refused = parse("--quota-bytes 1k", &[]);
        assert_eq!(refused, "invalid value \"1k\" for flag --quota-bytes: invalid digit found in string");
        assert!(parse("-h", &[]).contains("--quota-bytes"));
    }

    #[test]
    fn variables_stand_in_for_flags() {
        assert_eq!(parse("", &[("ETCD_NAME", "v"), ("ETCD_QUICK", "1"), ("OTHER", "y")]), "v true 3");
        assert_eq!(parse("", &[("ETCD_NAME", ""), ("ETCD_NMAE", "1")]), "x false 3 ETCD_NMAE");
        let bad = parse("", &[("ETCD_QUICK", "maybe")]);
        assert_eq!(bad, "invalid value \"maybe\" for ETCD_QUICK: strconv.ParseBool: parsing \"maybe\": invalid syntax");
        let bad = parse("", &[("ETCD_QUOTA_BYTES", "1k")]);
        assert_eq!(bad, "invalid value \"1k\" for ETCD_QUOTA_BYTES: invalid digit found in string");
        let both = parse("--name a", &[("ETCD_NAME", "b")]);
        assert!(both.starts_with("conflicting environment variable \"ETCD_NAME\" is shadowed by"), "{both}");
    }
}
