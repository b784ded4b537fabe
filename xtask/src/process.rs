//! Other programs, run and waited for.

use crate::error::{Error, Result};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

fn spawn_error(command: &Command) -> impl FnOnce(std::io::Error) -> Error {
    let program = command.get_program().to_string_lossy().into_owned();
    move |source| Error::Spawn { program, source }
}

/// Runs a command with our own output streams; its failure is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().map_err(spawn_error(command))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Failed { command: shown(command), reason: status.to_string() })
}

/// Runs a command and keeps what it printed, whatever its exit code.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().map_err(spawn_error(command))
}

/// Standard output of a command; its failure is an error that carries what it complained about.
pub(crate) fn stdout(command: &mut Command) -> Result<Vec<u8>> {
    let output = output(command)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(failed(command, &output))
}

/// Standard output of a command as text.
pub(crate) fn text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&stdout(command)?).into_owned())
}

/// The error for a command that ended badly: the last lines of what it complained about, or its status.
pub(crate) fn failed(command: &Command, output: &Output) -> Error {
    const LINES_MAX: usize = 12; // the cause is at the end; what came before is in the program's own log
    let complaint = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = complaint.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(LINES_MAX)..].join("; ");
    let reason = if tail.is_empty() { output.status.to_string() } else { tail };
    Error::Failed { command: shown(command), reason }
}

/// Where a program lies, as a shell with root's PATH would find it.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_the_complaint() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo first >&2; echo second >&2; exit 3"]);
        let error = stdout(&mut command).unwrap_err().to_string();
        assert!(error.ends_with("failed: first; second"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program")).unwrap_err();
        assert!(error.to_string().contains("`no-such-program`"));
        assert!(error.hint().is_some());
        assert_eq!(find("no-such-program"), None);
        assert!(find("sh").is_some());
    }
}
