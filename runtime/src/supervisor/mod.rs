//! The process that stays with a supervised container: it owns the output and knows how it ended.
//!
//! ```text
//! create ── clone ─► supervisor (own session) ── clone ─► container
//!   ◄─ created ─────┘  │ stdout, stderr or terminal ─► log file, rotated
//!   exits              └ pidfd ─► exit file, then the supervisor ends
//! ```
//! Idle, it sleeps in one poll without a timeout. It holds no other descriptor and no configuration, survives its
//! creator, and its own death leaves a container that `delete --force` can remove.

pub mod log;

use crate::error::{Because, Outcome};
use crate::foreground::{Signals, poll};
use crate::launch::Launched;
use crate::state;
use crate::sys::clone::{self, Exit};
use crate::sys::process;
use log::{ContainerLog, Stream};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::SystemTime;

/// How much a container may be ahead of us.
const PIPE_SIZE: usize = 1024 * 1024;
/// How much is read at a time.
const CHUNK: usize = 256 * 1024;
/// How often one stream is read before the others get their turn.
const READS_MAX: usize = 8;

/// What `--supervise` asks for.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `--container-log`.
    pub log: PathBuf,
    /// `--log-max-bytes`.
    pub log_bytes_max: u64,
    /// `--log-max-files`.
    pub log_files_max: u32,
    /// `--exit-file`.
    pub exit_file: PathBuf,
}

/// Standard streams of a container: for itself, and our ends.
#[derive(Debug)]
pub struct Streams {
    /// For the container.
    pub theirs: [OwnedFd; 3],
    /// Standard output, to read.
    pub stdout: OwnedFd,
    /// Standard error, to read.
    pub stderr: OwnedFd,
}

impl Streams {
    /// Nothing to read for the container, two pipes to write.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn make() -> Outcome<Self> {
        let what = || "cannot make pipes for the container's output".to_owned();
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).because(what)?;
        let flags = rustix::pipe::PipeFlags::CLOEXEC;
        let (stdout, out) = rustix::pipe::pipe_with(flags).because(what)?;
        let (stderr, err) = rustix::pipe::pipe_with(flags).because(what)?;
        for pipe in [&stdout, &stderr] {
            // With less room it works as well, only slower.
            let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE_SIZE);
        }
        Ok(Self { theirs: [null, out, err], stdout, stderr })
    }
}

/// What is written when the container has ended.
#[derive(Debug, Serialize)]
struct ExitRecord {
    id: String,
    pid: i32,
    exit_code: Option<i32>,
    signal: Option<i32>,
    oom_killed: bool,
    started_at: String,
    finished_at: String,
    memory_peak_bytes: Option<u64>,
}

/// Detach from the session and terminal of the caller.
///
/// # Errors
/// Never known to fail in a new process.
pub fn detach() -> Outcome<()> {
    process::set_session().because(|| "cannot make a session for the supervisor".to_owned())
}

/// Be the last to be killed when memory runs out. Only once the container's process is there: it would inherit this.
fn sink() {
    // Without the privilege to sink lower, it is as likely to be killed as others of its size.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-999");
}

/// Stay until the container has ended, then write how.
///
/// - `outputs`: what to copy into the log.
///
/// # Errors
/// The exit file cannot be written.
pub fn supervise(
    launched: Launched,
    outputs: Vec<(Stream, OwnedFd)>,
    log: ContainerLog,
    settings: &Settings,
    signals: Signals,
) -> Outcome<()> {
    sink();
    let Launched { record, cgroup, pidfd, channel, held, .. } = launched;
    drop(held);
    let (id, pid) = (record.id.clone(), record.init.map_or(0, |init| init.pid));
    drop(record);
    let mut started_at = SystemTime::now();
    // Closed by the container's process when `start` has come, or by the exec if it was started already.
    let mut channel = Some(channel);
    let mut keep: Vec<i32> = outputs.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
    keep.extend([pidfd.as_raw_fd(), log.fd(), signals.fd().as_raw_fd()]);
    keep.extend(channel.iter().map(|channel| channel.fd().as_raw_fd()));
    leave_caller(&keep)?;
    let mut copier = Copier::new(outputs, log);
    loop {
        let mut fds = vec![PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        fds.extend(copier.outputs.iter().map(|(_, fd)| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
        fds.extend(channel.iter().map(|channel| PollFd::from_borrowed_fd(channel.fd(), PollFlags::IN)));
        poll(&mut fds)?;
        let mut ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if channel.is_some() && ready.pop().is_some_and(|closed| closed) {
            channel = None;
            started_at = SystemTime::now();
        }
        copier.copy(&ready[1..]);
        if ready[0] {
            break;
        }
    }
    // Read before the reaping: until then nobody removes the cgroup under us.
    let account = cgroup.account();
    let exit = clone::wait(pidfd.as_fd()).because(|| "cannot take the exit status".to_owned())?;
    copier.drain();
    let (exit_code, signal) = match exit {
        Exit::Code(code) => (Some(code), None),
        Exit::Signal(signal) => (None, Some(signal)),
    };
    let record = ExitRecord {
        id,
        pid,
        exit_code,
        signal,
        oom_killed: account.oom_killed,
        started_at: crate::time::rfc3339(started_at),
        finished_at: crate::time::rfc3339(SystemTime::now()),
        memory_peak_bytes: account.memory_peak_bytes,
    };
    let mut bytes = serde_json::to_vec(&record).because(|| "cannot encode the exit".to_owned())?;
    bytes.push(b'\n');
    state::write_atomically(&settings.exit_file, &bytes, true)
}

/// Let go of everything that belongs to the caller: streams, descriptors, memory, directory.
fn leave_caller(keep: &[i32]) -> Outcome<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .because(|| "cannot open `/dev/null`".to_owned())?;
    for number in 0..3 {
        process::dup_to(null.as_fd(), number).because(|| "cannot let go of standard streams".to_owned())?;
    }
    drop(null);
    process::close_all_from(3, keep);
    rustix::process::chdir("/").because(|| "cannot leave the directory".to_owned())?;
    process::trim_heap();
    Ok(())
}

/// Moves output into the log.
struct Copier {
    outputs: Vec<(Stream, OwnedFd)>,
    log: ContainerLog,
}

/// What a read has found.
enum Read {
    /// Something, which is in the log now.
    Some,
    /// Nothing at the moment.
    Nothing,
    /// Nothing any more.
    End,
}

impl Copier {
    fn new(outputs: Vec<(Stream, OwnedFd)>, log: ContainerLog) -> Self {
        for (_, fd) in &outputs {
            if let Ok(flags) = rustix::fs::fcntl_getfl(fd) {
                let _ = rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK);
            }
        }
        Self { outputs, log }
    }

    /// Copy what each output that is ready has; one that has ended is dropped.
    fn copy(&mut self, ready: &[bool]) {
        if !ready.iter().any(|&ready| ready) {
            return;
        }
        let mut buffer = Vec::with_capacity(CHUNK);
        let log = &mut self.log;
        let mut ready = ready.iter();
        self.outputs.retain(|(stream, fd)| {
            if !ready.next().is_some_and(|&ready| ready) {
                return true;
            }
            for _ in 0..READS_MAX {
                match copy_once(log, *stream, fd, &mut buffer) {
                    Read::Some => {}
                    Read::Nothing => break,
                    Read::End => return false,
                }
            }
            true
        });
        log.rest();
    }

    /// Copy what is left. A process that outlived the container's first one (shared PID namespace) may keep a pipe
    /// open, so this ends when there is nothing to read now.
    fn drain(&mut self) {
        let mut buffer = Vec::with_capacity(CHUNK);
        for (stream, fd) in std::mem::take(&mut self.outputs) {
            while matches!(copy_once(&mut self.log, stream, &fd, &mut buffer), Read::Some) {}
        }
        self.log.finish();
    }
}

/// Copy one chunk.
fn copy_once(log: &mut ContainerLog, stream: Stream, fd: &OwnedFd, buffer: &mut Vec<u8>) -> Read {
    buffer.clear();
    match rustix::io::read(fd, rustix::buffer::spare_capacity(buffer)) {
        Ok(0) => Read::End,
        Ok(_) => {
            log.write(stream, buffer, SystemTime::now());
            Read::Some
        }
        Err(Errno::INTR) => Read::Some,
        Err(Errno::AGAIN) => Read::Nothing,
        // A terminal reports its end as an error.
        Err(_) => Read::End,
    }
}
