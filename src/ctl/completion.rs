use clap::{Arg, ArgAction, Command as ClapCommand};
use clap_complete::Shell;

use super::flags::{Flag, Kind};
use super::options;
use super::program::Program;
use super::tree::{Body, Command, ROOT};

/// The completion script of a shell: commands, flags, and the values where there are few.
///
/// `shell` is one of the four that the command line accepts.
pub(super) fn script(program: Program, shell: &[u8]) -> Vec<u8> {
    let shell = match shell {
        b"zsh" => Shell::Zsh,
        b"fish" => Shell::Fish,
        b"powershell" => Shell::PowerShell,
        _ => Shell::Bash,
    };
    let own = described(ClapCommand::new(program.name()), ROOT)
        .disable_help_subcommand(true)
        .args(options::FLAGS.iter().map(|flag| argument(flag).global(true)));
    let (name, mut root) = match program.name().split_once(' ') {
        // `watershed ctl`: the shell completes the first word's arguments.
        Some((first, second)) => (
            first,
            ClapCommand::new(first.to_owned()).disable_help_subcommand(true).subcommand(own.name(second.to_owned())),
        ),
        None => (program.name(), own),
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut root, name, &mut script);
    script
}

fn described(command: ClapCommand, children: &[Command]) -> ClapCommand {
    children.iter().fold(command, |command, child| {
        let mut own = ClapCommand::new(child.name).about(child.about).disable_help_subcommand(true);
        own = own.args(child.flags.iter().map(|flag| match child.body {
            Body::Group(_) => argument(flag).global(true),
            Body::Leaf(_) => argument(flag),
        }));
        if let Body::Group(children) = child.body {
            own = described(own, children);
        }
        if child.name == "completion" {
            own = own.arg(Arg::new("shell").value_parser(["bash", "zsh", "fish", "powershell"]));
        }
        command.subcommand(own)
    })
}

fn argument(flag: &Flag) -> Arg {
    let mut argument = Arg::new(flag.name).long(flag.name).help(flag.about);
    if let Some(letter) = flag.short {
        argument = argument.short(letter);
    }
    match flag.kind {
        Kind::Bool => argument.action(ArgAction::SetTrue),
        _ if flag.name == "write-out" => argument.value_parser(["fields", "json", "protobuf", "simple", "table"]),
        _ if flag.name == "load" => argument.value_parser(["small", "medium", "large", "xLarge"]),
        _ => argument,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_completes_every_command() {
        for shell in ["bash", "zsh", "fish", "powershell"] {
            for program in [Program::Etcdctl, Program::Ctl] {
                let script = String::from_utf8(script(program, shell.as_bytes())).unwrap();
                // The generator for fish does not support a third level below `watershed`.
                let deep: &[&str] = if program == Program::Ctl { &[] } else { &["grant-permission", "auto-defrag"] };
                for word in ["make-mirror", "print-value-only", "endpoints"].iter().chain(deep) {
                    assert!(script.contains(word), "{shell}: {word}");
                }
            }
        }
    }
}
