//! The runtime's binary: every use of it that containers without a daemon need.

use super::error::LocalError;
use super::record::Place;
use crate::global::Global;
use serde::Deserialize;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const NAME: &str = "gantry-runtime";
/// Size of one part of a log, and how many there are.
const LOG_BYTES_MAX: u32 = 10 << 20;
const LOG_FILES_MAX: u32 = 3;

/// Where the runtime is and keeps its containers.
#[derive(Debug, Clone)]
pub struct Runtime {
    program: PathBuf,
    root: PathBuf,
}

/// `state`.
#[derive(Debug, Clone, Deserialize)]
pub struct State {
    /// `creating`, `created`, `running`, `stopped`.
    pub status: String,
    /// First process.
    #[serde(default)]
    pub pid: Option<i32>,
}

impl Runtime {
    /// As named, else beside this program, else on PATH.
    ///
    /// # Errors
    /// It is nowhere.
    pub fn find(global: &Global) -> Result<Self, LocalError> {
        let run = std::path::absolute(&global.run_dir).unwrap_or_else(|_| global.run_dir.clone());
        let root = run.join("run");
        if let Some(named) = &global.runtime {
            let there = named.is_file();
            let program = std::path::absolute(named).unwrap_or_else(|_| named.clone());
            return if there {
                Ok(Self { program, root })
            } else {
                Err(LocalError::NoRuntime(named.display().to_string()))
            };
        }
        let beside = std::env::current_exe().ok().and_then(|own| own.parent().map(|folder| folder.join(NAME)));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut candidates = beside.into_iter().chain(std::env::split_paths(&path).map(|folder| folder.join(NAME)));
        let program = candidates.find(|file| file.is_file()).ok_or_else(|| LocalError::NoRuntime(NAME.to_owned()))?;
        Ok(Self { program, root })
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root);
        if !name.is_empty() {
            command.arg(name);
        }
        command
    }

    /// Runs a command to its end; its complaint when it fails.
    fn quiet<I: AsRef<OsStr>>(&self, name: &str, arguments: &[I]) -> Result<Vec<u8>, LocalError> {
        let mut command = self.command(name);
        command.args(arguments).stdin(Stdio::null());
        let done = command.output().map_err(LocalError::file("run", &self.program))?;
        if done.status.success() {
            return Ok(done.stdout);
        }
        Err(complaint(&String::from_utf8_lossy(&done.stderr)))
    }

    /// Begins a container in the foreground, with this process's standard streams (standard input only if wanted).
    ///
    /// # Errors
    /// The binary cannot be run.
    pub fn run(&self, id: &str, place: &Place, interactive: bool) -> Result<Child, LocalError> {
        let mut command = self.command("");
        command.arg("--log").arg(place.complaints()).args(["--log-format", "json", "run", "--bundle"]);
        command.arg(place.bundle()).arg(id);
        if !interactive {
            command.stdin(Stdio::null());
        }
        crate::lab::sys::prepare(&mut command, false);
        command.spawn().map_err(LocalError::file("run", &self.program))
    }

    /// Makes a container with a supervisor, and starts it.
    ///
    /// # Errors
    /// The runtime's complaint; nothing of the container is left then.
    pub fn start_detached(&self, id: &str, place: &Place) -> Result<(), LocalError> {
        let (bundle, log, exit) = (place.bundle(), place.log(), place.exit());
        let (bytes, files) = (LOG_BYTES_MAX.to_string(), LOG_FILES_MAX.to_string());
        let o = OsStr::new;
        let create = [
            o("--bundle"),
            bundle.as_os_str(),
            o("--supervise"),
            o("--container-log"),
            log.as_os_str(),
            o("--exit-file"),
            exit.as_os_str(),
            o("--log-max-bytes"),
            o(&bytes),
            o("--log-max-files"),
            o(&files),
            o(id),
        ];
        self.quiet("create", &create)?;
        self.quiet("start", &[id]).map(drop).inspect_err(|_| {
            let _ = self.delete(id); // the first error is the one to tell
        })
    }

    /// What the runtime knows; `None` when there is no such container.
    pub fn state(&self, id: &str) -> Option<State> {
        let text = self.quiet("state", &[id]).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Signals the first process.
    ///
    /// # Errors
    /// There is none, or no such signal.
    pub fn kill(&self, id: &str, signal: &str) -> Result<(), LocalError> {
        self.quiet("kill", &[id, signal]).map(drop)
    }

    /// Takes a container away, running or not; succeeds when it is gone.
    ///
    /// # Errors
    /// A process hangs in the kernel.
    pub fn delete(&self, id: &str) -> Result<(), LocalError> {
        self.quiet("delete", &["--force", id]).map(drop)
    }

    /// Begins a command in a container, with this process's streams (standard input only if wanted).
    ///
    /// - `log`: gets what the runtime complains of.
    ///
    /// # Errors
    /// The binary cannot be run.
    pub fn exec(&self, arguments: &[String], interactive: bool, log: &Path) -> Result<Child, LocalError> {
        let mut command = self.command("");
        command.arg("--log").arg(log).args(["--log-format", "json", "exec"]).args(arguments);
        if !interactive {
            command.stdin(Stdio::null());
        }
        crate::lab::sys::prepare(&mut command, false);
        command.spawn().map_err(LocalError::file("run", &self.program))
    }
}

/// The first line that the runtime said, without its name, as an error; whether the program was the trouble.
fn complaint(text: &str) -> LocalError {
    let mut lines = text.lines().filter(|line| !line.contains("warning:"));
    let first = lines.next().unwrap_or("it failed without a word");
    let message = first.strip_prefix("gantry-runtime: ").unwrap_or(first).to_owned();
    let hint = lines.find_map(|line| line.strip_prefix("hint: ")).map(str::to_owned);
    let message = hint.map_or_else(|| message.clone(), |hint| format!("{message} ({hint})"));
    match program_trouble(&message) {
        Some(found) => LocalError::Command { message, found },
        None => LocalError::Runtime(message),
    }
}

/// Whether a complaint is about the program itself: `Some(false)` when it is not there, `Some(true)` when it cannot be
/// executed. The words are those of the runtime, which keeps to runc's.
fn program_trouble(message: &str) -> Option<bool> {
    if !message.contains("exec: \"") {
        return None;
    }
    let absent = ["executable file not found in $PATH", "no such file or directory", "No such file or directory"];
    Some(!absent.iter().any(|words| message.contains(words)))
}

/// Why the runtime failed to run a container in the foreground, from the log it was given; `None` when it did not fail.
/// It has told the user itself.
pub fn foreground_trouble(log: &Path) -> Option<LocalError> {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let text = match fs::read_to_string(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        other => other.unwrap_or_default(),
    };
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let message = lines.filter(|line| line.level == "error").map(|line| line.msg).next()?;
    Some(complaint(&message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_of_the_runtime_are_told_apart() {
        let kind = |text: &str| match complaint(text) {
            LocalError::Command { message, found } => format!("{found} {message}"),
            other => format!("runtime {other}"),
        };
        for (text, want) in [
            (
                "gantry-runtime: exec: \"x\": executable file not found in $PATH\nhint: PATH is `/bin`\n",
                "false exec: \"x\": executable file not found in $PATH (PATH is `/bin`)",
            ),
            (
                "gantry-runtime: exec: \"/x\": stat /x: no such file or directory\n",
                "false exec: \"/x\": stat /x: no such file or directory",
            ),
            ("gantry-runtime: exec: \"/etc\": permission denied\n", "true exec: \"/etc\": permission denied"),
            ("gantry-runtime: warning: a\ngantry-runtime: mounts: cannot mount\n", "runtime mounts: cannot mount"),
            ("", "runtime it failed without a word"),
        ] {
            assert_eq!(kind(text), want);
        }
    }

    #[test]
    fn only_errors_in_the_log_are_trouble() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert!(foreground_trouble(&log).is_none());
        fs::write(&log, "{\"level\":\"warning\",\"msg\":\"w\",\"time\":\"t\"}\n").unwrap();
        assert!(foreground_trouble(&log).is_none());
        fs::write(&log, "{\"level\":\"error\",\"msg\":\"exec: \\\"x\\\": executable file not found in $PATH\"}\n")
            .unwrap();
        assert!(matches!(foreground_trouble(&log), Some(LocalError::Command { found: false, .. })));
    }
}
