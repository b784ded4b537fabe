//! Help, made from the tables of options.

use super::{Command, GLOBAL_OPTIONS, Opt, Written};
use crate::commands::COMMANDS;

/// Where the explanation of an option begins.
const COLUMN: usize = 30;

/// Help for one command.
pub fn command<C: Command>() -> String {
    text(C::NAME, C::SUMMARY, C::OPERANDS, C::NOTES, &list(&mut written(C::OPTIONS)))
}

/// - `options`: a line for each, or nothing.
fn text(name: &str, summary: &str, operands: &str, notes: &str, options: &str) -> String {
    let gap = |text: &str| if text.is_empty() { "" } else { " " };
    let takes_options = if options.is_empty() { "" } else { "[OPTIONS]" };
    let mut text = format!(
        "{summary}\n\nUsage: gantry-runtime {name}{}{takes_options}{}{operands}\n",
        gap(options),
        gap(operands)
    );
    if !options.is_empty() {
        text += &format!("\nOptions:\n{options}");
    }
    if !notes.is_empty() {
        text += &format!("\n{notes}\n");
    }
    text
}

fn written<C>(groups: &'static [&'static [Opt<C>]]) -> impl Iterator<Item = Written> {
    groups.iter().copied().flatten().map(|option| option.written)
}

/// A line for each option. Not generic: there is one such list per command.
fn list(options: &mut dyn Iterator<Item = Written>) -> String {
    let mut text = String::new();
    for option in options {
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
    text += &list(&mut written(GLOBAL_OPTIONS));
    text += &format!("{:COLUMN$}this text, or that of a command\n", "  --help, -h");
    text += &format!("{:COLUMN$}the version\n", "  --version, -v");
    text += "
Exit codes: run and exec give the program's code, or 128 + the signal that ended it;
otherwise 0 done, 1 failed or not understood, 126 the program cannot be executed,
127 it is not there, 255 exec failed.
";
    text
}
