//! The runtime's command line: one function is one command.

use crate::error::chain;
use gantry_api::ids::ReplicaId;
use serde::Deserialize;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

/// No command of the runtime takes this long unless the kernel hangs.
const COMMAND_MAX: Duration = Duration::from_secs(30);
/// After a command has ended its words are there; a supervisor that kept the pipe must not hold us up.
const WORDS_MAX: Duration = Duration::from_millis(100);
/// Size of one part of a replica's log, and how many there are.
const LOG_BYTES_MAX: u64 = 10 << 20;
const LOG_FILES_MAX: u32 = 3;

/// The runtime's binary with the directory where it keeps its containers.
#[derive(Debug)]
pub(crate) struct Runtime {
    program: PathBuf,
    root: PathBuf,
    scratch: PathBuf,
}

/// A command of the runtime that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuntimeError {
    /// It cannot be run at all.
    #[error("cannot run {}", program.display())]
    Run { program: PathBuf, source: io::Error },
    /// It says no.
    #[error("{message}")]
    Refused { message: String },
    /// It does not end.
    #[error("the runtime's {command} did not end within {COMMAND_MAX:?}")]
    Stuck { command: &'static str },
    /// It says what nobody understands.
    #[error("the runtime's {command} answers what is no JSON")]
    Answer { command: &'static str, source: serde_json::Error },
}

/// One line of `list`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Listed {
    pub(crate) id: String,
    /// `creating`, `created`, `running`, `paused`, `stopped`.
    pub(crate) status: String,
}

impl Listed {
    /// Whether a process of the user's is in it.
    pub(crate) fn runs(&self) -> bool {
        matches!(self.status.as_str(), "running" | "paused")
    }
}

/// Files that a container is made with.
pub(crate) struct Create<'a> {
    pub(crate) bundle: &'a Path,
    pub(crate) log: &'a Path,
    pub(crate) exit_file: &'a Path,
}

/// A command run inside a replica to its end.
#[derive(Debug)]
pub(crate) struct Output {
    /// Exit code; `None` when it took too long and was killed.
    pub(crate) code: Option<i32>,
    /// The end of what it wrote on both streams.
    pub(crate) text: String,
}

impl Runtime {
    pub(crate) fn new(program: &Path, root: &Path, scratch: &Path) -> Self {
        Self { program: program.to_owned(), root: root.to_owned(), scratch: scratch.to_owned() }
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).arg(name);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // A Ctrl-C meant for the agent is not for containers.
        command.process_group(0).kill_on_drop(true);
        command
    }

    /// Makes sure that the binary is one.
    pub(crate) async fn probe(&self) -> io::Result<()> {
        let mut command = Command::new(&self.program);
        command.arg("--version").env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = command.status().await?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("its --version ends with {status}"))) }
    }

    pub(crate) async fn create(&self, id: &ReplicaId, with: Create<'_>) -> Result<(), RuntimeError> {
        let mut command = self.command("create");
        command.arg("--bundle").arg(with.bundle).arg("--supervise");
        command.arg("--container-log").arg(with.log).arg("--exit-file").arg(with.exit_file);
        command.arg("--log-max-bytes").arg(LOG_BYTES_MAX.to_string());
        command.arg("--log-max-files").arg(LOG_FILES_MAX.to_string());
        command.arg(id.as_str());
        self.run("create", command).await.map(drop)
    }

    pub(crate) async fn start(&self, id: &ReplicaId) -> Result<(), RuntimeError> {
        let mut command = self.command("start");
        command.arg(id.as_str());
        self.run("start", command).await.map(drop)
    }

    /// Signals a replica's process; succeeds when there is none.
    pub(crate) async fn kill(&self, id: &ReplicaId, signal: &str) -> Result<(), RuntimeError> {
        let mut command = self.command("kill");
        command.arg(id.as_str()).arg(signal);
        match self.run("kill", command).await {
            Err(error @ RuntimeError::Refused { .. }) => {
                let there = self.list().await?.into_iter().any(|c| c.id == id.as_str() && c.runs());
                if there { Err(error) } else { Ok(()) }
            }
            other => other.map(drop),
        }
    }

    /// Takes a container away, running or not; succeeds when it is gone.
    pub(crate) async fn delete(&self, id: &ReplicaId) -> Result<(), RuntimeError> {
        let mut command = self.command("delete");
        command.arg("--force").arg(id.as_str());
        self.run("delete", command).await.map(drop)
    }

    pub(crate) async fn list(&self) -> Result<Vec<Listed>, RuntimeError> {
        let mut command = self.command("list");
        command.arg("--format").arg("json").stdout(Stdio::piped());
        let answer = self.run("list", command).await?;
        let text = if answer.trim_ascii().is_empty() { b"null".as_slice() } else { &answer };
        let listed: Option<Vec<Listed>> =
            serde_json::from_slice(text).map_err(|source| RuntimeError::Answer { command: "list", source })?;
        Ok(listed.unwrap_or_default())
    }

    /// Runs a command to its end; its standard output.
    async fn run(&self, name: &'static str, mut command: Command) -> Result<Vec<u8>, RuntimeError> {
        let begun = Instant::now();
        let mut child = self.spawn(&mut command)?;
        let words = child.stderr.take().map(|pipe| collect(pipe, WORDS_BYTES_MAX));
        let answer = child.stdout.take().map(|pipe| collect(pipe, LIST_BYTES_MAX));
        let failed = |source| RuntimeError::Run { program: self.program.clone(), source };
        let Ok(ended) = timeout(COMMAND_MAX, child.wait()).await else {
            return Err(RuntimeError::Stuck { command: name });
        };
        let status = ended.map_err(failed)?;
        debug!("runtime {name}: {status} after {:?}", begun.elapsed());
        if status.success() {
            return Ok(collected(answer).await);
        }
        let words = String::from_utf8_lossy(&collected(words).await).into_owned();
        Err(RuntimeError::Refused { message: refusal(name, &words, status) })
    }

    /// The name of a file that nobody else uses and that is gone when the agent begins again.
    pub(crate) fn scratch_file(&self, kind: &str) -> PathBuf {
        self.scratch.join(format!("{kind}-{}", unique()))
    }

    pub(crate) fn spawn(&self, command: &mut Command) -> Result<Child, RuntimeError> {
        command.spawn().map_err(|source| RuntimeError::Run { program: self.program.clone(), source })
    }

    /// `exec`, still to be given its streams and its command.
    pub(crate) fn exec(&self) -> (Command, Process) {
        let mut command = self.command("exec");
        let process = Process { pid_file: self.scratch_file("exec") };
        command.arg("--pid-file").arg(&process.pid_file);
        (command, process)
    }

    /// Runs a health check; nothing of it is left when it took too long.
    pub(crate) async fn check(&self, id: &ReplicaId, argv: &[String], limit: Duration) -> Result<Output, RuntimeError> {
        let (mut command, process) = self.exec();
        command.arg(id.as_str()).args(argv).stdout(Stdio::piped());
        let mut child = self.spawn(&mut command)?;
        let output = child.stdout.take().map(|pipe| collect(pipe, WORDS_BYTES_MAX));
        let errors = child.stderr.take().map(|pipe| collect(pipe, WORDS_BYTES_MAX));
        let deadline = Instant::now() + limit;
        let ended = match timeout(limit, child.wait()).await {
            Ok(status) => Some(status.map_err(|source| RuntimeError::Run { program: self.program.clone(), source })?),
            Err(_) => {
                process.end(&mut child, deadline).await;
                None
            }
        };
        let mut text = collected(output).await;
        text.extend(collected(errors).await);
        Ok(Output { code: ended.map(code), text: last_words(&text) })
    }
}

/// The process that an `exec` started.
pub(crate) struct Process {
    pid_file: PathBuf,
}

impl Process {
    /// A handle on it; `None` before it is there.
    pub(crate) fn open(&self) -> Option<OwnedFd> {
        let pid: i32 = fs::read_to_string(&self.pid_file).ok()?.trim().parse().ok()?;
        rustix::process::pidfd_open(rustix::process::Pid::from_raw(pid)?, rustix::process::PidfdFlags::empty()).ok()
    }

    /// Kills it together with the command that waits for it.
    pub(crate) async fn end(&self, child: &mut Child, since: Instant) {
        // It may be just about to be there. Who waits for it dies last, so that its number is not given away before.
        loop {
            if let Some(process) = self.open() {
                // Gone already is as good.
                let _ = rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL);
                break;
            }
            if since.elapsed() > Duration::from_secs(1) || !matches!(child.try_wait(), Ok(None)) {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
        if timeout(Duration::from_secs(1), child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.pid_file);
    }
}

/// The shell's convention for a signal.
pub(crate) fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A pipe that is read beside everything else. Dropping it ends that: a process that was left behind with the pipe
/// holds nothing of ours.
struct Collecting {
    task: JoinHandle<()>,
    text: Arc<Mutex<Vec<u8>>>,
}

impl Drop for Collecting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads a pipe to its end; what is over the limit is read and dropped from the front.
fn collect(mut pipe: impl tokio::io::AsyncRead + Unpin + Send + 'static, bytes_max: usize) -> Collecting {
    let text = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&text);
    let task = tokio::spawn(async move {
        let mut part = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut part).await {
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(&part[..length]);
            if all.len() > bytes_max {
                all.drain(..bytes_max / 2);
            }
        }
    });
    Collecting { task, text }
}

/// The longest answer of a command: `list` with thousands of containers.
const LIST_BYTES_MAX: usize = 16 << 20;
/// Of what a command or a check says, this much of the end is held.
const WORDS_BYTES_MAX: usize = 64 << 10;

/// What came of it; a little is waited for the end.
async fn collected(pipe: Option<Collecting>) -> Vec<u8> {
    let Some(mut pipe) = pipe else { return Vec::new() };
    let _ = timeout(WORDS_MAX, &mut pipe.task).await; // without an end, what came is all there is
    std::mem::take(&mut *pipe.text.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The end of a check's output.
fn last_words(text: &[u8]) -> String {
    const BYTES: usize = 4 << 10;
    String::from_utf8_lossy(&text[text.len().saturating_sub(BYTES)..]).into_owned()
}

/// The runtime's words without its name and without `error:`.
fn refusal(command: &str, words: &str, status: ExitStatus) -> String {
    let words = words.trim();
    let words = words.strip_prefix("gantry-runtime: ").unwrap_or(words);
    let words = words.strip_prefix("error: ").unwrap_or(words);
    if words.is_empty() { format!("the runtime's {command} ended with {status}") } else { words.replace('\n', "; ") }
}

impl RuntimeError {
    /// For a replica's status.
    pub(crate) fn words(&self) -> String {
        chain(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn what_came_is_there_although_a_process_left_behind_holds_the_pipe() {
        let (mut left_behind, pipe) = tokio::io::duplex(64);
        left_behind.write_all(b"well").await.unwrap();
        assert_eq!(collected(Some(collect(pipe, 64))).await, b"well");
        let mut rest = Vec::new();
        let ended = timeout(Duration::from_secs(10), left_behind.read_to_end(&mut rest));
        ended.await.expect("nobody holds our end any more").unwrap();
    }

    #[tokio::test]
    async fn of_too_many_words_the_end_is_kept() {
        let text = b"0123456789".repeat(10_000);
        let words = collected(Some(collect(std::io::Cursor::new(text), 8_192))).await;
        assert!(words.len() <= 8_192 + 4_096 && words.ends_with(b"6789"), "{}", words.len());
    }
}
