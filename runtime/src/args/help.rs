//! Help, made from the tables of options.

use super::{Command, GLOBAL_OPTIONS, Opt};
use crate::commands::COMMANDS;

/// Where the explanation of an option begins.
const COLUMN: usize = 30;

/// Help for one command.
pub fn command<C: Command>() -> String {
    let options = if C::OPTIONS.iter().all(|group| group.is_empty()) { "" } else { " [OPTIONS]" };
    let operands = if C::OPERANDS.is_empty() { String::new() } else { format!(" {}", C::OPERANDS) };
    let mut text = format!("{}\n\nUsage: gantry-runtime {}{options}{operands}\n", C::SUMMARY, C::NAME);
    if !options.is_empty() {
        text += "\nOptions:\n";
        text += &list(C::OPTIONS);
    }
    if !C::NOTES.is_empty() {
        text += &format!("\n{}\n", C::NOTES);
    }
    text
}

fn list<C>(groups: &[&[Opt<C>]]) -> String {
    let mut text = String::new();
    for option in groups.iter().copied().flatten() {
        let short = option.short.map(|letter| format!(", -{letter}")).unwrap_or_default();
        let value = option.takes.map(|value| format!(" {value}")).unwrap_or_default();
        let left = format!("  --{}{short}{value}", option.long);
        if left.len() < COLUMN {
            text += &format!("{left:COLUMN$}{}\n", option.says);
        } else {
            text += &format!("{left}\n{:COLUMN$}{}\n", "", option.says);
        }
    }
    text
}

/// Help for all.
pub fn all() -> String {
    let mut text = "\
gantry-runtime runs OCI bundles as containers on Linux.

Usage: gantry-runtime [GLOBAL OPTIONS] COMMAND [OPTIONS] ...

Commands:
"
    .to_owned();
    for entry in COMMANDS {
        text += &format!("  {:12}{}\n", entry.name, entry.summary);
    }
    text += "\nGlobal options:\n";
    text += &list(GLOBAL_OPTIONS);
    text += &format!("{:COLUMN$}this text, or that of a command\n", "  --help, -h");
    text += &format!("{:COLUMN$}the version\n", "  --version, -v");
    text += "
Exit codes: run and exec give the program's code, or 128 + the signal that ended it;
otherwise 0 done, 1 failed or not understood, 126 the program cannot be executed,
127 it is not there, 255 exec failed.
";
    text
}
