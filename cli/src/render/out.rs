//! Standard output and standard error.

use crate::error::{CliError, Outcome};
use serde::Serialize;
use std::fmt::Display;
use std::io::{ErrorKind, Write};

/// Writes `text` and a line end to stdout, at once.
///
/// # Errors
/// A closed pipe ends the command silently (the reader has all it wanted); anything else is a failure.
pub(crate) fn line(text: impl Display) -> Result<(), CliError> {
    write(&format!("{text}\n"))
}

/// Writes `text` to stdout as it is.
///
/// # Errors
/// As [`line`].
pub(crate) fn write(text: &str) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => CliError::silent(0),
        _ => CliError::new(format!("cannot write to standard output: {error}")),
    })
}

/// Writes a value as JSON to stdout, indented.
///
/// # Errors
/// As [`line`].
pub(crate) fn json(value: &impl Serialize) -> Outcome {
    line(serde_json::to_string_pretty(value).expect("our own types are JSON"))?;
    Ok(0)
}

/// Tells the person something that is not data.
pub(crate) fn note(text: impl Display) {
    // Nobody is left to tell when stderr is closed.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
