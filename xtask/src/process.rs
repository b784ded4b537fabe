//! Other programs, run and waited for.

use crate::error::{Error, Result};
use crate::files::Scratch;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

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

/// As [`text`], but a command that is not done within `limit` is killed, and daemons that it leaves behind with its
/// output streams do not hold us up.
pub(crate) fn text_within(command: &mut Command, limit: Duration) -> Result<String> {
    const LOOK: Duration = Duration::from_millis(2); // short beside anything that is measured here
    let scratch = Scratch::new()?;
    let file = |name: &str| {
        let path = scratch.path().join(name);
        let file = std::fs::File::create_new(&path).map_err(Error::file("make", &path))?;
        Ok::<_, Error>((path, file))
    };
    let ((out_path, out), (err_path, err)) = (file("stdout")?, file("stderr")?);
    let mut child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().map_err(spawn_error(command))?;
    let end = Instant::now() + limit;
    let status = loop {
        match child.try_wait().map_err(spawn_error(command))? {
            Some(status) => break Some(status),
            None if Instant::now() >= end => break None,
            None => std::thread::sleep(LOOK),
        }
    };
    if status.is_none() {
        child.kill().and_then(|()| child.wait()).map_err(spawn_error(command))?;
    }
    let read = |path: &Path| std::fs::read(path).map_err(Error::file("read", path));
    let (stdout, stderr) = (read(&out_path)?, read(&err_path)?);
    let Some(status) = status else {
        let said = tail(&stderr);
        let said = if said.is_empty() { String::new() } else { format!("; it said: {said}") };
        let reason = format!("not done after {} s{said}", limit.as_secs());
        return Err(Error::Failed { command: shown(command), reason });
    };
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    Err(failed(command, &Output { status, stdout, stderr }))
}

/// The error for a command that ended badly: the last lines of what it complained about, or its status.
pub(crate) fn failed(command: &Command, output: &Output) -> Error {
    let said = tail(&output.stderr);
    let reason = if said.is_empty() { output.status.to_string() } else { said };
    Error::Failed { command: shown(command), reason }
}

/// The last lines, in one.
fn tail(text: &[u8]) -> String {
    const LINES_MAX: usize = 12; // the cause is at the end; what came before is in the program's own log
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES_MAX)..].join("; ")
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
    fn a_command_has_a_deadline_and_what_it_leaves_behind_does_not_count() {
        let sh = |text: &str, limit| text_within(Command::new("sh").args(["-c", text]), limit);
        let long = Duration::from_secs(60);
        assert_eq!(sh("echo yes", long).unwrap(), "yes\n");
        let begun = Instant::now();
        assert_eq!(sh("sleep 20 & echo yes", long).unwrap(), "yes\n");
        assert!(begun.elapsed() < Duration::from_secs(15), "the daemon that kept the stream was not waited for");
        assert!(sh("echo why >&2; exit 4", long).unwrap_err().to_string().ends_with("failed: why"));
        let late = sh("echo begun >&2; exec sleep 60", Duration::from_millis(200)).unwrap_err().to_string();
        assert!(late.ends_with("not done after 0 s; it said: begun"), "{late}");
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
