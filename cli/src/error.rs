//! How a command ends: what a person reads, and the exit code a script reads.

use std::fmt::Display;

/// Refused or failed.
pub const REFUSED: u8 = 1;
/// Wrong usage (clap uses it too).
pub const USAGE: u8 = 2;
/// Not ready within the time given.
pub const NOT_READY: u8 = 3;
/// `run` and `exec`: Gantry itself failed, the command did not run (as docker).
pub const NOT_RUN: u8 = 125;

/// An error at the edge: one line, maybe a hint, an exit code.
#[derive(Debug)]
pub struct CliError {
    /// The whole chain in one line: operation, object, cause.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Exit code of the command.
    pub code: u8,
}

/// What every command returns: its exit code, or an error to print.
pub type Outcome = Result<u8, CliError>;

impl CliError {
    /// A refusal with exit code 1.
    pub fn new(message: impl Display) -> Self {
        Self { message: message.to_string(), hint: None, code: REFUSED }
    }

    /// An error with the chain of its sources joined by `: `.
    pub fn chain(error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::new(message)
    }

    /// The same with a hint.
    pub fn hint(mut self, hint: impl Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// The same with an exit code.
    pub const fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Prints `gantry: message` and `hint: …` to stderr.
    pub fn print(&self) {
        eprintln!("gantry: {}", self.message);
        if let Some(hint) = &self.hint {
            eprintln!("hint: {hint}");
        }
    }
}
