//! Starting the lab's long-lived processes: node, switch and forwarder.
//!
//! ```text
//! lab up                              helper
//!   clone3 ───────────────────────────► joins its cgroups, sets itself up
//!          ◄──────────────── `ready` or what went wrong (its standard output)
//!   writes it into the state file
//!   `go` (its standard input) ────────► lives on; end of file instead: exits
//! ```
//! So a helper that no state file knows of ends by itself when `lab up` is killed half-way.

use super::error::LabError;
use super::state::{Paths, Process, ensure_dir, write_whole};
use super::sys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Mounts and cgroups take milliseconds; a loaded machine takes longer.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// A log over this begins anew, with the old one kept as `.1`.
pub const LOG_BYTES_MAX: u64 = 16 << 20;
const READY: &str = "ready\n";
const GO: u8 = b'g';

/// Argument of the hidden commands.
#[derive(Debug, clap::Args)]
pub struct BootFile {
    /// What `lab up` wants of it.
    pub file: PathBuf,
}

impl BootFile {
    /// Reads it.
    ///
    /// # Errors
    /// It is not there or not whole.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, LabError> {
        let text = fs::read(&self.file).map_err(LabError::file("read", &self.file))?;
        serde_json::from_slice(&text)
            .map_err(|error| LabError::State { path: self.file.clone(), reason: error.to_string() })
    }
}

/// A helper that waits for [`Started::go`].
#[derive(Debug)]
pub struct Started {
    /// Which process.
    pub process: Process,
    pidfd: OwnedFd,
    go: PipeWriter,
}

impl Started {
    /// Lets it live on. Only after the state file knows it.
    ///
    /// # Errors
    /// It has died meanwhile.
    pub fn go(mut self) -> Result<(), LabError> {
        self.go.write_all(&[GO]).map_err(LabError::kernel("start a process that was just made"))
    }

    /// Ends it.
    pub fn end(self) {
        end(&self.pidfd);
    }
}

/// SIGKILL, and waits until it is dead; with PID 1 of a namespace all of that namespace is dead then.
pub fn end(pidfd: &OwnedFd) {
    let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL); // ESRCH: it is dead
    let mut waits = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    while poll(&mut waits, PollTimeout::NONE) == Err(nix::errno::Errno::EINTR) {}
    // It is our child only when this very command started it.
    let id = rustix::process::WaitId::PidFd(pidfd.as_fd());
    let now = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOHANG;
    let _ = rustix::process::waitid(id, now);
}

/// Starts `gantry <command> <boot file>` in new namespaces and waits until it is ready.
///
/// # Errors
/// What kept it from being ready, in its own words.
pub fn start<T: Serialize>(
    paths: &Paths,
    who: &str,
    command: &str,
    boot: &T,
    namespaces: u64,
) -> Result<Started, LabError> {
    let file = paths.etc(who).join("boot.json");
    ensure_dir(&paths.etc(who), 0o755)?;
    let text = serde_json::to_vec_pretty(boot)
        .map_err(|error| LabError::State { path: file.clone(), reason: error.to_string() })?;
    write_whole(&file, &text, 0o600)?;
    let log_path = paths.log(who);
    let log = open_log(&log_path)?;
    let program = std::env::current_exe().map_err(LabError::kernel("find this program's file"))?;
    let argv = [program.display().to_string(), command.to_owned(), file.display().to_string()];
    let argv: Vec<CString> = argv.into_iter().filter_map(|text| CString::new(text).ok()).collect();
    let environment: Vec<CString> = environment().into_iter().filter_map(|text| CString::new(text).ok()).collect();
    let pipe = || io::pipe().map_err(LabError::kernel("make a pipe"));
    let ((go_reader, go), (answer, answer_writer)) = (pipe()?, pipe()?);
    let mut detached = sys::Detached {
        namespaces,
        argv: &argv,
        environment: &environment,
        stdin: go_reader.as_fd(),
        stdout: answer_writer.as_fd(),
        stderr: log.as_fd(),
    };
    let mut made = sys::spawn(&detached);
    if namespaces & sys::NEW_TIME != 0 && made.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL)) {
        detached.namespaces &= !sys::NEW_TIME; // a kernel without time namespaces
        made = sys::spawn(&detached);
    }
    let (pid, pidfd) = made.map_err(LabError::kernel(format!("make the namespaces of {who}")))?;
    drop((go_reader, answer_writer));
    let failed = |reason: String| LabError::Boot { lab: paths.name.clone(), who: who.to_owned(), reason };
    let text = read_answer(answer).unwrap_or_else(|error| error.to_string());
    let process = (text == READY).then(|| Process::now(pid)).flatten();
    match process {
        Some(process) => Ok(Started { process, pidfd, go }),
        None => {
            end(&pidfd);
            let reason = if text.trim().is_empty() { last_line(&log_path) } else { text.trim().to_owned() };
            Err(failed(reason))
        }
    }
}

/// A helper's environment: nothing of the caller's but what makes programs run and logs speak.
fn environment() -> Vec<String> {
    let keep = ["PATH", "LANG", "TERM", "RUST_LOG", "RUST_BACKTRACE"];
    let kept = keep.iter().filter_map(|key| std::env::var(key).ok().map(|value| format!("{key}={value}")));
    kept.chain(["HOME=/root".to_owned()]).collect()
}

fn read_answer(mut answer: io::PipeReader) -> io::Result<String> {
    let deadline = Instant::now() + READY_WITHIN;
    let mut text = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(format!("no sign of life within {} s", READY_WITHIN.as_secs()));
        }
        let mut waits = [PollFd::new(answer.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut waits, timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        let mut part = [0; 4096];
        let length = answer.read(&mut part)?;
        text.extend(&part[..length]);
        if length == 0 || text == READY.as_bytes() {
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
    }
}

/// The helper's side: says that it is ready, and waits until the state file knows it.
///
/// # Errors
/// `lab up` is gone: this process must end.
pub fn ready() -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(READY.as_bytes())?;
    out.flush()?;
    let mut byte = [0];
    io::stdin().read_exact(&mut byte)?;
    // Standard error is the log; the pipes end here.
    let null = File::open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(io::stderr())?;
    Ok(())
}

/// The helper's side: says why it is not ready. The exit code tells nothing more.
pub fn not_ready(error: &LabError) -> u8 {
    let message = crate::error::CliError::chain(error).message;
    let mut out = io::stdout();
    if out.write_all(message.as_bytes()).and_then(|()| out.flush()).is_err() {
        eprintln!("{message}"); // nobody waits any more: to the log
    }
    crate::error::REFUSED
}

/// Opens a helper's log for appending.
fn open_log(path: &Path) -> Result<File, LabError> {
    if let Some(folder) = path.parent() {
        ensure_dir(folder, 0o755)?;
    }
    if fs::metadata(path).is_ok_and(|found| found.len() > LOG_BYTES_MAX) {
        fs::rename(path, path.with_extension("log.1")).map_err(LabError::file("rotate", path))?;
    }
    OpenOptions::new().append(true).create(true).mode(0o644).open(path).map_err(LabError::file("open", path))
}

/// The last line that says something; one of the daemon's rather than of its PID 1.
pub fn last_line(log: &Path) -> String {
    let text = tail(log, 4096).unwrap_or_default();
    let lines = || text.lines().rev().filter(|line| !line.trim().is_empty() && !line.starts_with("hint: "));
    let last = lines().find(|line| !line.starts_with("lab-node: ")).or_else(|| lines().next());
    last.map_or_else(|| "it ended without a word".to_owned(), |line| line.trim().to_owned())
}

/// The last `bytes` of a file.
///
/// # Errors
/// The disk.
pub fn tail(path: &Path, bytes: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut text = Vec::new();
    file.take(bytes).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
