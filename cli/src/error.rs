//! How a command ends: what a person reads, and the exit code a script reads.

use std::fmt::Display;
use std::io::Write;

/// Refused or failed.
pub(crate) const REFUSED: u8 = 1;
/// Wrong usage (clap uses it too).
pub(crate) const USAGE: u8 = 2;
/// Not ready within the time given.
pub(crate) const NOT_READY: u8 = 3;
/// `run` and `exec`: Gantry itself failed, the command did not run (as docker).
pub(crate) const NOT_RUN: u8 = 125;
/// `run` and `exec`: the command is there and cannot be invoked (as docker).
pub(crate) const NOT_INVOKABLE: u8 = 126;
/// `run` and `exec`: the command is not there (as docker).
pub(crate) const NOT_FOUND: u8 = 127;
/// The person pressed Ctrl-C: 128 + SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

/// An error at the edge: one line, maybe a hint, an exit code.
#[derive(Debug)]
pub(crate) struct CliError {
    /// The whole chain in one line: operation, object, cause. Empty says nothing: the reader of our output has gone.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
    /// Exit code of the command.
    pub(crate) code: u8,
}

/// What every command returns: its exit code, or an error to print.
pub(crate) type Outcome = Result<u8, CliError>;

impl CliError {
    /// A refusal with exit code 1.
    pub(crate) fn new(message: impl Display) -> Self {
        Self { message: message.to_string(), hint: None, code: REFUSED }
    }

    /// An error with the chain of its sources joined by `: `.
    pub(crate) fn chain(error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::new(message)
    }

    /// Ends the command without a word.
    pub(crate) const fn silent(code: u8) -> Self {
        Self { message: String::new(), hint: None, code }
    }

    /// The same with a hint.
    pub(crate) fn hint(mut self, hint: impl Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// The same with an exit code.
    pub(crate) const fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Prints `gantry: message` and `hint: …` to stderr.
    pub(crate) fn print(&self) {
        if self.message.is_empty() {
            return;
        }
        // Nobody is left to tell when stderr is closed.
        let mut stderr = std::io::stderr().lock();
        let _ = writeln!(stderr, "gantry: {}", self.message);
        if let Some(hint) = &self.hint {
            let _ = writeln!(stderr, "hint: {hint}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_one_line_and_names_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read the manifest")]
        struct Outer(#[source] std::io::Error);
        let error = CliError::chain(&Outer(std::io::Error::other("disk on fire"))).hint("put it out").code(NOT_RUN);
        assert_eq!(error.message, "cannot read the manifest: disk on fire");
        assert_eq!((error.hint.as_deref(), error.code), (Some("put it out"), 125));
    }
}
