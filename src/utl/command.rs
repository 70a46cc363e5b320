use std::ffi::OsString;
use std::num::NonZeroU64;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, CommandFactory, Parser, Subcommand};

use super::data_dir::{check_target_version, defragment, migrate};
use super::db_file::{must_exist, status};
use super::error::{Refusal, UtlError};
use super::hash_kv::hash_kv;
use super::print::Printer;
use super::restore::{RestoreRequest, restore};
use crate::config::GoDuration;
use crate::config::golang::{self, parse_bool, quote};
use crate::types::{API_VERSION, Revision};

/// Wrong arguments.
const BAD_ARGS: u8 = 128;

#[derive(Debug, Parser)]
#[command(
    about = "Works on db snapshots and on the files of a member that does not run",
    disable_version_flag = true,
    infer_subcommands = true,
    args_override_self = true
)]
struct Line {
    /// How long to wait for whoever has the database open; 0 waits for ever
    #[arg(long, global = true, default_value = "10s", value_name = "duration")]
    timeout: GoDuration,
    /// Format of the output: fields, json, protobuf, simple or table
    #[arg(short = 'w', long, global = true, default_value = "simple", value_name = "string")]
    write_out: String,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Restores and inspects db snapshots
    #[command(subcommand, infer_subcommands = true)]
    Snapshot(Snapshot),
    /// Gives unused space in a data directory back to the disk
    Defrag {
        /// The data directory of a member that does not run (required)
        #[arg(long)]
        data_dir: Option<PathBuf>,
    },
    /// Shows the hash of the history in a file
    Hashkv {
        file: Vec<PathBuf>,
        /// Hash up to this revision (0: the newest)
        #[arg(long, default_value = "0", value_parser = parse_int, allow_hyphen_values = true, value_name = "int")]
        rev: i64,
    },
    /// Changes the storage version of a data directory
    Migrate {
        /// The data directory of a member that does not run (required)
        #[arg(long)]
        data_dir: Option<PathBuf>,
        /// The version it is to have, as X.Y (required)
        #[arg(long)]
        target_version: Option<String>,
        /// Does not make a refused version possible: no other version reads these files
        #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false",
              default_missing_value = "true", value_parser = parse_bool)]
        force: bool,
    },
    /// Shows the version of this tool and of the API
    Version,
    /// Prints a completion script for bash, zsh, fish or powershell
    Completion { shell: Vec<String> },
}

#[derive(Debug, Subcommand)]
enum Snapshot {
    /// Shows hash, revision, keys, size and version of a file
    Status { file: Vec<PathBuf> },
    /// Makes the data directory of one member of a new cluster
    Restore(Restore),
}

#[derive(Debug, clap::Args)]
struct Restore {
    file: Vec<PathBuf>,
    /// Where the files of the member go; must be empty or missing (NAME.etcd when it is not given)
    // clap's own parser of paths refuses an empty one.
    #[arg(long, value_parser = OsStringValueParser::new().map(PathBuf::from))]
    data_dir: Option<PathBuf>,
    /// Where its log goes (in the data directory when it is not given)
    #[arg(long, value_parser = OsStringValueParser::new().map(PathBuf::from))]
    wal_dir: Option<PathBuf>,
    /// The members of the new cluster
    #[arg(long, default_value = "default=http://localhost:2380")]
    initial_cluster: String,
    /// Part of the ids of the new cluster
    #[arg(long, default_value = "etcd-cluster")]
    initial_cluster_token: String,
    /// Peer URLs of this member
    #[arg(long, default_value = "http://localhost:2380")]
    initial_advertise_peer_urls: String,
    /// Name of this member
    #[arg(long, default_value = "default")]
    name: String,
    /// Take a file without digest, as it is in a data directory, or with a wrong one
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = parse_bool)]
    skip_hash_check: bool,
    /// No effect: the database is not mapped into memory
    #[arg(long, default_value = "10737418240", value_parser = parse_uint, value_name = "uint")]
    initial_memory_map_size: u64,
    /// How far to raise the newest revision (with --mark-compacted)
    #[arg(long, default_value = "0", value_parser = parse_uint, value_name = "uint")]
    bump_revision: u64,
    /// Compact to the newest revision, so that clients which watch begin anew (with --bump-revision)
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = parse_bool)]
    mark_compacted: bool,
}

fn parse_int(text: &str) -> Result<i64, String> {
    golang::parse_int(text, 0)
}

fn parse_uint(text: &str) -> Result<u64, String> {
    golang::parse_uint(text, 0)
}

/// Runs one command line and answers with what goes to standard output.
///
/// `program` is the name in texts, `args` what follows it.
///
/// # Errors
/// What etcdutl says, with its exit code.
pub fn run(program: &str, args: &[OsString]) -> Result<String, Refusal> {
    let words = std::iter::once(OsString::from(program)).chain(args.iter().cloned());
    let line = match Line::try_parse_from(words) {
        Ok(line) => line,
        Err(error) if error.kind() == ErrorKind::DisplayHelp => return Ok(error.render().to_string()),
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return Ok(error.render().to_string());
        }
        Err(error) => return Err(refusal(program, &error)),
    };
    let timeout = line.timeout.0;
    match line.command {
        None => Ok(command(program).render_help().to_string()),
        Some(Command::Version) => {
            Ok(format!("{program} version: {API_VERSION}\nAPI version: {}\n", minor(API_VERSION)))
        }
        Some(Command::Completion { shell }) => completion(program, &shell),
        Some(Command::Snapshot(Snapshot::Status { file })) => {
            let [file] = file.as_slice() else {
                return Err(Refusal::new(BAD_ARGS, "snapshot status requires exactly one argument"));
            };
            must_exist(file)?;
            let printer = Printer::named(&line.write_out)?;
            printer.status(&status(file, timeout)?)
        }
        Some(Command::Hashkv { file, rev }) => {
            let printer = Printer::named(&line.write_out)?;
            let [file] = file.as_slice() else {
                let text = format!("accepts 1 arg(s), received {}", file.len());
                return Err(with_usage(program, "hashkv", Refusal::new(1, text)));
            };
            printer.hash_kv(&hash_kv(file, Revision(rev), timeout)?)
        }
        Some(Command::Defrag { data_dir }) => {
            let Some(data_dir) = data_dir else { return Err(missing(program, "defrag", &["data-dir"])) };
            let failed = |error: UtlError| {
                let refusal = Refusal::from(error);
                let text = format!("Failed to defragment etcd data[{}] ({})", data_dir.display(), refusal.text);
                Refusal { text, ..refusal }
            };
            defragment(&data_dir, timeout).map(|()| String::new()).map_err(failed)
        }
        Some(Command::Migrate { data_dir, target_version, force }) => {
            let flags = [("data-dir", data_dir.is_some()), ("target-version", target_version.is_some())];
            let unset: Vec<&str> = flags.into_iter().filter(|(_, set)| !set).map(|(name, _)| name).collect();
            let (Some(data_dir), Some(target)) = (data_dir, target_version) else {
                return Err(missing(program, "migrate", &unset));
            };
            check_target_version(&target).map_err(|text| Refusal::new(BAD_ARGS, text))?;
            if force {
                tracing::warn!("--force has no effect: no other version reads these files");
            }
            migrate(&data_dir, &target, timeout)?;
            Ok(String::new())
        }
        Some(Command::Snapshot(Snapshot::Restore(flags))) => {
            let request = restore_request(flags, line.timeout)?;
            restore(&request)?;
            Ok(String::new())
        }
    }
}

fn restore_request(flags: Restore, timeout: GoDuration) -> Result<RestoreRequest, Refusal> {
    let [file] = flags.file.as_slice() else {
        return Err(Refusal::new(BAD_ARGS, "snapshot restore requires exactly one argument"));
    };
    if (flags.bump_revision > 0) != flags.mark_compacted {
        return Err(Refusal::new(BAD_ARGS, "--mark-compacted required if --revision-bump > 0"));
    }
    let _ = flags.initial_memory_map_size;
    let given = |dir: Option<PathBuf>| dir.filter(|dir| !dir.as_os_str().is_empty());
    Ok(RestoreRequest {
        snapshot: file.clone(),
        data_dir: given(flags.data_dir).unwrap_or_else(|| format!("{}.etcd", flags.name).into()),
        name: flags.name,
        wal_dir: given(flags.wal_dir),
        initial_cluster: flags.initial_cluster,
        initial_cluster_token: flags.initial_cluster_token,
        advertised_peer_urls: flags.initial_advertise_peer_urls,
        skip_hash_check: flags.skip_hash_check,
        bump: NonZeroU64::new(flags.bump_revision),
        lock_timeout: timeout.0,
    })
}

/// Major and minor.
fn minor(version: &str) -> &str {
    version.rsplit_once('.').map_or(version, |(minor, _)| minor)
}

fn command(program: &str) -> clap::Command {
    Line::command().name(program.to_owned()).bin_name(program.to_owned())
}

fn completion(program: &str, shell: &[String]) -> Result<String, Refusal> {
    let [shell] = shell else {
        let text = format!("accepts 1 arg(s), received {}", shell.len());
        return Err(with_usage(program, "completion", Refusal::new(1, text)));
    };
    let known = match shell.as_str() {
        "bash" => clap_complete::Shell::Bash,
        "zsh" => clap_complete::Shell::Zsh,
        "fish" => clap_complete::Shell::Fish,
        "powershell" => clap_complete::Shell::PowerShell,
        _ => {
            let text = format!("invalid argument {} for \"{program} completion\"", quote(shell.as_bytes()));
            return Err(with_usage(program, "completion", Refusal::new(1, text)));
        }
    };
    let mut script = Vec::new();
    clap_complete::generate(known, &mut command(program), program, &mut script);
    Ok(String::from_utf8_lossy(&script).into_owned())
}

fn missing(program: &str, name: &str, flags: &[&str]) -> Refusal {
    let names: Vec<String> = flags.iter().map(|flag| format!("{flag:?}")).collect();
    with_usage(program, name, Refusal::new(1, format!("required flag(s) {} not set", names.join(", "))))
}

fn with_usage(program: &str, name: &str, refusal: Refusal) -> Refusal {
    let mut root = command(program);
    root.build();
    let usage = root.find_subcommand_mut(name).map(|found| found.render_help().to_string());
    Refusal { usage, ..refusal }
}

/// What pflag and cobra say in place of what clap says.
fn refusal(program: &str, error: &clap::Error) -> Refusal {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let usage = match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => Some(usage.to_string()),
        _ => None,
    };
    let flag =
        text(ContextKind::InvalidArg).map(|arg| arg.split([' ', '=', '[']).next().unwrap_or_default().to_owned());
    match (error.kind(), flag) {
        (ErrorKind::UnknownArgument, Some(flag)) => {
            let text = match flag.strip_prefix("--") {
                Some(_) => format!("unknown flag: {flag}"),
                None => format!("unknown shorthand flag: '{}' in {flag}", flag.trim_start_matches('-')),
            };
            Refusal { usage, ..Refusal::new(1, text) }
        }
        (ErrorKind::ValueValidation, Some(flag)) => {
            let value = text(ContextKind::InvalidValue).unwrap_or_default();
            let why = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            let text = format!("invalid argument {} for {flag:?} flag: {why}", quote(value.as_bytes()));
            Refusal { usage, ..Refusal::new(1, text) }
        }
        (ErrorKind::InvalidValue, Some(flag)) => {
            Refusal { usage, ..Refusal::new(1, format!("flag needs an argument: {flag}")) }
        }
        (ErrorKind::InvalidSubcommand, _) => {
            let name = text(ContextKind::InvalidSubcommand).unwrap_or_default();
            let text = format!("unknown command {} for {program:?}", quote(name.as_bytes()));
            Refusal { usage: Some(format!("Run '{program} --help' for usage.")), ..Refusal::new(1, text) }
        }
        _ => {
            let shown = error.to_string();
            let line = shown.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Refusal { usage, ..Refusal::new(1, line) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_directory_is_as_if_it_was_not_given() {
        // Cause: it was refused, where scripts have `--wal-dir="$WAL_DIR"` and etcdutl takes it.
        let words = ["etcdutl", "snapshot", "restore", "f", "--name=n", "--data-dir", "", "--wal-dir="];
        let line = Line::try_parse_from(words).unwrap();
        let Some(Command::Snapshot(Snapshot::Restore(flags))) = line.command else { panic!("it is a restore") };
        let request = restore_request(flags, GoDuration::default()).unwrap();
        assert_eq!((request.data_dir, request.wal_dir), (PathBuf::from("n.etcd"), None));
    }
}
