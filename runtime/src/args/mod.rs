//! The command line, compatible with runc's: parsed into plain values, options before or after positionals.
//!
//! A command is one struct in `commands/` with a table of its options, and one line in [`COMMANDS`]; parsing and help
//! read these tables.

pub mod help;
pub mod value;

use crate::commands::COMMANDS;
use crate::error::{FAILED, Outcome};
use lexopt::prelude::*;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
pub use value::Value;

/// A line that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct UsageError {
    text: String,
    /// The command it was meant for.
    pub command: Option<&'static str>,
    /// Exit code.
    pub code: u8,
}

/// Exit code for a command that does not exist, as runc's.
const NO_COMMAND: u8 = 3;

impl UsageError {
    /// An error about the command that is being parsed.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), command: None, code: FAILED }
    }
}

impl From<lexopt::Error> for UsageError {
    fn from(error: lexopt::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// An option of `C`: how it is written, and what it sets there.
pub struct Opt<C> {
    /// How it is written.
    pub written: Written,
    /// Set it.
    pub set: fn(&mut C, &Value) -> Result<(), UsageError>,
}

/// How an option is written, whatever it sets.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    /// Name after two dashes; one dash works too, as with every program that uses Go's flags.
    pub long: &'static str,
    /// Letter after one dash.
    pub short: Option<char>,
    /// What its value is called in the help; `None` for a switch.
    pub takes: Option<&'static str>,
    /// What it does, for the help.
    pub says: &'static str,
}

impl Written {
    fn has(&self, name: &Name) -> bool {
        match name {
            Name::Long(long) => self.long == long,
            Name::Short(letter) => self.short == Some(*letter),
        }
    }
}

impl<C> Opt<C> {
    /// An option without a value, which `=true` and `=false` may follow.
    pub const fn switch(
        long: &'static str,
        says: &'static str,
        set: fn(&mut C, &Value) -> Result<(), UsageError>,
    ) -> Self {
        Self { written: Written { long, short: None, takes: None, says }, set }
    }

    /// An option with a value.
    pub const fn value(
        long: &'static str,
        takes: &'static str,
        says: &'static str,
        set: fn(&mut C, &Value) -> Result<(), UsageError>,
    ) -> Self {
        Self { written: Written { long, short: None, takes: Some(takes), says }, set }
    }

    /// The same with a letter.
    #[must_use]
    pub const fn short(mut self, letter: char) -> Self {
        self.written.short = Some(letter);
        self
    }
}

impl<C> fmt::Debug for Opt<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}", self.written.long)
    }
}

/// A command: its default value, its options' effects, and what it does then.
pub trait Command: fmt::Debug + Default + 'static {
    /// Its name on the command line.
    const NAME: &'static str;
    /// One line for the help.
    const SUMMARY: &'static str;
    /// What stands after the options, for the help.
    const OPERANDS: &'static str;
    /// More for the help, or nothing.
    const NOTES: &'static str = "";
    /// After this many operands everything belongs to the last of them, options included.
    const REST_AFTER: usize = usize::MAX;
    /// Its options, in groups that several commands may share.
    const OPTIONS: &'static [&'static [Opt<Self>]];

    /// Take what stood beside the options.
    ///
    /// # Errors
    /// An operand is missing, or options contradict each other.
    fn operands(&mut self, operands: &mut Operands) -> Result<(), UsageError>;

    /// Carry it out; returns the exit code.
    ///
    /// # Errors
    /// It failed; nothing half-done is left but what `delete --force` removes.
    fn run(&self, global: &Global) -> Outcome<i32>;
}

/// A [`Command`] of any type.
pub trait AnyCommand: fmt::Debug {
    /// Whether this option takes a value; `None` when there is no such option.
    fn takes(&self, name: &Name) -> Option<bool>;
    /// Set an option.
    ///
    /// # Errors
    /// The value is wrong.
    fn set(&mut self, name: &Name, value: &Value) -> Result<(), UsageError>;
    /// See [`Command::operands`].
    ///
    /// # Errors
    /// As there.
    fn operands(&mut self, operands: &mut Operands) -> Result<(), UsageError>;
    /// See [`Command::run`].
    ///
    /// # Errors
    /// As there.
    fn run(&self, global: &Global) -> Outcome<i32>;
}

impl<C: Command> AnyCommand for C {
    fn takes(&self, name: &Name) -> Option<bool> {
        find(C::OPTIONS, name).map(|option| option.written.takes.is_some())
    }

    fn set(&mut self, name: &Name, value: &Value) -> Result<(), UsageError> {
        find(C::OPTIONS, name).map_or(Ok(()), |option| (option.set)(self, value))
    }

    fn operands(&mut self, operands: &mut Operands) -> Result<(), UsageError> {
        Command::operands(self, operands)
    }

    fn run(&self, global: &Global) -> Outcome<i32> {
        Command::run(self, global)
    }
}

fn find<C>(groups: &'static [&'static [Opt<C>]], name: &Name) -> Option<&'static Opt<C>> {
    groups.iter().flat_map(|group| group.iter()).find(|option| option.written.has(name))
}

/// A line of the table of commands.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Name on the command line.
    pub name: &'static str,
    /// One line of help.
    pub summary: &'static str,
    rest_after: usize,
    make: fn() -> Box<dyn AnyCommand>,
    /// The whole help.
    pub help: fn() -> String,
}

impl Entry {
    /// The line of one command.
    pub const fn of<C: Command>() -> Self {
        Self {
            name: C::NAME,
            summary: C::SUMMARY,
            rest_after: C::REST_AFTER,
            make: || Box::new(C::default()),
            help: help::command::<C>,
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// How an option was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// `--name`.
    Long(String),
    /// `-n`.
    Short(char),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Long(name) => write!(f, "--{name}"),
            Self::Short(letter) => write!(f, "-{letter}"),
        }
    }
}

/// What stands on the line beside options.
#[derive(Debug)]
pub struct Operands {
    command: &'static str,
    list: VecDeque<String>,
}

impl Operands {
    /// The container.
    ///
    /// # Errors
    /// It is missing.
    pub fn id(&mut self) -> Result<String, UsageError> {
        self.next().ok_or_else(|| UsageError::new(format!("\"{}\" requires a container id", self.command)))
    }

    /// All that is left.
    pub fn rest(&mut self) -> Vec<String> {
        self.list.drain(..).collect()
    }
}

impl Iterator for Operands {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        self.list.pop_front()
    }
}

/// Options before every command.
#[derive(Debug, Clone, Default)]
pub struct Global {
    /// `--root`.
    pub root: PathBuf,
    /// `--log`.
    pub log: Option<PathBuf>,
    /// `--log-format json`.
    pub log_json: bool,
    /// `--debug`.
    pub debug: bool,
    /// `--systemd-cgroup`.
    pub systemd_cgroup: bool,
    /// `--rootless`: what to do without the rights of root; `None` finds out.
    pub rootless: Option<bool>,
    /// `--criu`: the program for checkpoints.
    pub criu: Option<PathBuf>,
}

/// Options before every command; they are understood after it too, unless it has one of the same name.
const GLOBAL_OPTIONS: &[&[Opt<Global>]] = &[&[
    Opt::value("root", "DIR", "where states are kept [default: /run/gantry-runtime]", |global, value| {
        value.path().map(|path| global.root = path)
    }),
    Opt::value("log", "FILE", "also write errors to this file", |global, value| {
        value.path().map(|path| global.log = Some(path))
    }),
    Opt::value("log-format", "text|json", "its format [default: text]", |global, value| {
        value.one_of(&["text", "json"]).map(|format| global.log_json = format == "json")
    }),
    Opt::switch("debug", "also log what every command does and how long it takes", |global, value| {
        value.on().map(|on| global.debug = on)
    }),
    Opt::switch("systemd-cgroup", "make cgroups through systemd", |global, value| {
        value.on().map(|on| global.systemd_cgroup = on)
    }),
    Opt::value(
        "rootless",
        "true|false|auto",
        "do without cgroups that an ordinary user may not make",
        |global, value| {
            global.rootless = if value.text()? == "auto" { None } else { Some(value.on()?) };
            Ok(())
        },
    ),
    Opt::value("criu", "PROGRAM", "for checkpoint and restore [default: criu]", |global, value| {
        global.criu = Some(PathBuf::from(value.text()?));
        Ok(())
    }),
]];

/// A line that was understood.
#[derive(Debug)]
pub enum Parsed {
    /// Print the help of a command, or of all.
    Help(Option<&'static Entry>),
    /// Print the version.
    Version,
    /// Carry this out.
    Command(Box<dyn AnyCommand>),
}

/// The state of parsing one line.
struct Line {
    parser: lexopt::Parser,
    global: Global,
    command: Option<(&'static Entry, Box<dyn AnyCommand>)>,
    operands: VecDeque<String>,
}

/// Parse a command line, without the name of the program. The global options are there in any case, as far as the line
/// was understood: an error goes to the log they name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> (Global, Result<Parsed, UsageError>) {
    let global = Global { root: crate::rootless::state_root().unwrap_or_default(), ..Global::default() };
    let parser = lexopt::Parser::from_args(arguments);
    let mut line = Line { parser, global, command: None, operands: VecDeque::new() };
    let parsed = line
        .parse()
        .map_err(|error| UsageError { command: line.command.as_ref().map(|(entry, _)| entry.name), ..error });
    (line.global, parsed)
}

impl Line {
    fn parse(&mut self) -> Result<Parsed, UsageError> {
        loop {
            if let Some((name, value)) = self.one_dash()? {
                self.option(&name, value)?;
                continue;
            }
            let Some(argument) = self.parser.next()? else { break };
            let name = match argument {
                Long("help") | Short('h') => return Ok(Parsed::Help(self.command.as_ref().map(|(entry, _)| *entry))),
                Long("version") => return Ok(Parsed::Version),
                Short('v') if self.command.is_none() => return Ok(Parsed::Version),
                Value(text) => {
                    if let Some(done) = self.operand(text)? {
                        return Ok(done);
                    }
                    continue;
                }
                Long(name) => Name::Long(name.to_owned()),
                Short(letter) => Name::Short(letter),
            };
            self.option(&name, None)?;
        }
        let Some((entry, command)) = &mut self.command else { return Ok(Parsed::Help(None)) };
        let mut operands = Operands { command: entry.name, list: std::mem::take(&mut self.operands) };
        command.operands(&mut operands)?;
        if let Some(extra) = operands.next() {
            return Err(UsageError::new(format!("\"{}\" does not take `{extra}`", entry.name)));
        }
        let make = entry.make;
        let command = std::mem::replace(command, make());
        Ok(Parsed::Command(command))
    }

    /// A whole option name after one dash, as Go's flags have it, or a letter with `=`: `-bundle DIR`, `-f=false`. Letters
    /// in a row are tried after it.
    fn one_dash(&mut self) -> Result<Option<(Name, Option<OsString>)>, UsageError> {
        let Some(mut rest) = self.parser.try_raw_args() else { return Ok(None) };
        let Some(text) = rest.peek().and_then(|argument| argument.as_bytes().strip_prefix(b"-")) else {
            return Ok(None);
        };
        let (name, value) = match text.iter().position(|&byte| byte == b'=') {
            Some(at) => (&text[..at], Some(OsString::from_vec(text[at + 1..].to_vec()))),
            None => (text, None),
        };
        let Ok(name) = std::str::from_utf8(name) else { return Ok(None) };
        let mut letters = name.chars();
        let name = match (letters.next(), letters.next(), &value) {
            (None | Some('-'), ..) | (Some(_), None, None) => return Ok(None),
            (Some(letter), None, Some(_)) => Name::Short(letter),
            _ => Name::Long(name.to_owned()),
        };
        let known = self.command.as_ref().and_then(|(_, command)| command.takes(&name));
        if known.is_none() && find(GLOBAL_OPTIONS, &name).is_none() {
            return Ok(None);
        }
        rest.next();
        Ok(Some((name, value)))
    }

    /// - `given`: a value that is known to belong to it.
    fn option(&mut self, name: &Name, given: Option<OsString>) -> Result<(), UsageError> {
        let known = self.command.as_ref().and_then(|(_, command)| command.takes(name));
        let global = find(GLOBAL_OPTIONS, name);
        let Some(takes) = known.or(global.map(|option| option.written.takes.is_some())) else {
            return Err(match &self.command {
                Some((entry, _)) => UsageError::new(format!("`{}` has no option `{name}`", entry.name)),
                None => UsageError::new(format!("there is no option `{name}`")),
            });
        };
        let text = match (given, takes, name) {
            (Some(given), ..) => Some(given),
            (None, true, _) => Some(self.parser.value().map_err(|_| UsageError::new(format!("{name} needs a value")))?),
            (None, false, Name::Long(_)) => self.parser.optional_value(),
            (None, false, Name::Short(_)) => None,
        };
        let value = Value::new(name, text);
        match (&mut self.command, global) {
            (Some((_, command)), _) if known.is_some() => command.set(name, &value),
            (_, Some(option)) => (option.set)(&mut self.global, &value),
            _ => Ok(()),
        }
    }

    /// The command's name, or what it works on.
    fn operand(&mut self, text: OsString) -> Result<Option<Parsed>, UsageError> {
        let text = value::utf8(text)?;
        let Some((entry, _)) = &self.command else {
            return self.command(&text);
        };
        self.operands.push_back(text);
        if self.operands.len() >= entry.rest_after {
            for rest in self.parser.raw_args()? {
                self.operands.push_back(value::utf8(rest)?);
            }
        }
        Ok(None)
    }

    fn command(&mut self, name: &str) -> Result<Option<Parsed>, UsageError> {
        let found = |name: &OsStr| COMMANDS.iter().find(|entry| OsStr::new(entry.name) == name);
        if name == "help" {
            let about = self.parser.raw_args()?.next();
            return Ok(Some(Parsed::Help(about.as_deref().and_then(found))));
        }
        let entry = found(OsStr::new(name)).ok_or_else(|| UsageError {
            code: NO_COMMAND,
            ..UsageError::new(format!("there is no command `{name}`"))
        })?;
        let make = entry.make;
        self.command = Some((entry, make()));
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
