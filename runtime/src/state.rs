//! What is known about a container between two commands: `ROOT/ID/`.
//!
//! ```text
//! state.json   written before anything is made, again when the process exists; replaced as a whole
//! config.json  the configuration it was created with, for exec and hooks
//! start.sock   there while the container is created and not started
//! ```
//! A process is known by its number and start time, on this boot; both are checked through a pidfd before any signal.

use crate::error::{Because, Failure, InStep, Outcome, is_absent};
use crate::files;
use crate::sys::clone;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Longest container ID; it becomes a file name.
const ID_MAX: usize = 250;

/// How long to try to remove a directory that somebody still writes to.
const REMOVE_WITHIN: Duration = Duration::from_secs(2);

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being made.
    Creating,
    /// Made, waiting for `start`.
    Created,
    /// The program runs.
    Running,
    /// The program has ended, or creation was cut short.
    Stopped,
}

impl Status {
    /// The word in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
        }
    }
}

/// The state as the specification defines it, for `state` and for hooks.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the specification.
    pub oci_version: String,
    /// Container.
    pub id: String,
    /// Where it is in its life.
    pub status: Status,
    /// Its first process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its root filesystem.
    pub rootfs: PathBuf,
    /// When it was created.
    pub created: String,
    /// Free-form pairs of its configuration.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl State {
    /// The same container at another point.
    pub fn with(&self, status: Status, pid: Option<i32>) -> Self {
        Self { status, pid, ..self.clone() }
    }

    /// One line of JSON.
    pub fn to_line(&self) -> String {
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }
}

/// A process that must not be mistaken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Number.
    pub pid: i32,
    /// Clock ticks after boot at which it started.
    pub start_time: u64,
}

/// What `/proc/PID/stat` says.
struct Stat {
    state: u8,
    start_time: u64,
}

fn stat(pid: i32) -> io::Result<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    // The name may contain anything, so fields are counted from its closing bracket.
    let after = text.iter().rposition(|&byte| byte == b')').map_or(&[][..], |at| &text[at + 1..]);
    let text = String::from_utf8_lossy(after);
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    let start_time = fields.get(19).and_then(|field| field.parse().ok());
    match (fields.first().and_then(|field| field.bytes().next()), start_time) {
        (Some(state), Some(start_time)) => Ok(Stat { state, start_time }),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

impl ProcessId {
    /// A process that is alive now.
    ///
    /// # Errors
    /// It is gone.
    pub fn of(pid: i32) -> Outcome<Self> {
        let found = stat(pid).because(|| format!("cannot read `/proc/{pid}/stat`"))?;
        Ok(Self { pid, start_time: found.start_time })
    }

    /// A descriptor of the process, if it is still the same and has not ended.
    pub fn open(&self) -> Option<OwnedFd> {
        let pidfd = clone::pidfd_open(self.pid).ok()?;
        // Read after the descriptor is held: the number cannot be reused between the two.
        let found = stat(self.pid).ok()?;
        (found.start_time == self.start_time && !matches!(found.state, b'Z' | b'X')).then_some(pidfd)
    }
}

/// What is kept in `state.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Container.
    pub id: String,
    /// Version of the specification in its configuration.
    pub oci_version: String,
    /// Bundle.
    pub bundle: PathBuf,
    /// Root filesystem.
    pub rootfs: PathBuf,
    /// When `create` began.
    pub created: String,
    /// Boot of the host this belongs to.
    pub boot_id: String,
    /// Place below each cgroup mount.
    pub cgroup: String,
    /// Annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// The process that creates it.
    pub creator: ProcessId,
    /// The first process; absent while being made.
    pub init: Option<ProcessId>,
    /// The process that stays for its output and exit.
    pub supervisor: Option<ProcessId>,
    /// Created completely.
    pub complete: bool,
}

impl Record {
    /// Whether this can be about the container `id`. A damaged record must not lead to what belongs to others.
    fn makes_sense(&self, id: &str) -> bool {
        let good_part = |part: &str| !part.is_empty() && part != "." && part != "..";
        let pids = [Some(self.creator), self.init, self.supervisor];
        self.id == id
            && self.cgroup.split('/').all(good_part)
            && pids.into_iter().flatten().all(|process| process.pid > 1 && process.start_time > 0)
    }
}

/// The right to make or remove a container: one process has it at a time.
#[derive(Debug)]
pub struct Lock(Option<OwnedFd>);

impl Lock {
    /// In a clone of the process that has it: it stays locked, but not by us.
    pub fn leave(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(directory) = &self.0 {
            // Closing would not do as long as a clone of this process has the same open file.
            let _ = rustix::fs::flock(directory, FlockOperation::Unlock);
        }
    }
}

/// What an attempt to get a [`Lock`] gives.
#[derive(Debug)]
pub enum Grip {
    /// It is ours.
    Locked(Lock),
    /// Another process makes or removes the container.
    Busy,
    /// There is no such container.
    Absent,
}

/// The directory of one container.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
    id: String,
}

/// Check an ID: a file name without surprises.
///
/// # Errors
/// Empty, too long, `.` or `..`, or another character than letters, digits, `_`, `+`, `-`, `.`.
pub fn check_id(id: &str) -> Outcome<()> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-' | b'.');
    if id.is_empty() || id.len() > ID_MAX || id == "." || id == ".." || !id.bytes().all(good) {
        return Err(Failure::new(format!("invalid container id `{}`", id.escape_debug()))
            .hint(format!("use 1 to {ID_MAX} letters, digits, `_`, `+`, `-` and `.`")));
    }
    Ok(())
}

/// Identity of this boot.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

impl StateDir {
    /// The directory of a container, whether it exists or not.
    ///
    /// # Errors
    /// The ID is not valid.
    pub fn new(root: &Path, id: &str) -> Outcome<Self> {
        check_id(id)?;
        Ok(Self { path: root.join(id), id: id.to_owned() })
    }

    /// Claim the ID.
    ///
    /// # Errors
    /// It is in use, or the directory cannot be made.
    pub fn claim(&self) -> Outcome<Lock> {
        self.make()?;
        match self.try_lock() {
            Ok(Grip::Locked(lock)) => Ok(lock),
            Ok(_) => Err(Failure::new(format!("container id `{}` was deleted while it was made", self.id))),
            Err(failure) => {
                let _ = fs::remove_dir(&self.path);
                Err(failure)
            }
        }
    }

    /// Get the lock if it is free.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn try_lock(&self) -> Outcome<Grip> {
        let what = || format!("cannot lock `{}`", self.path.display());
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        loop {
            let directory = match rustix::fs::open(&self.path, flags, Mode::empty()) {
                Err(Errno::NOENT) => return Ok(Grip::Absent),
                result => result.because(what)?,
            };
            match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => return Ok(Grip::Busy),
                result => result.because(what)?,
            }
            let ours = rustix::fs::fstat(&directory).because(what)?;
            let lock = Lock(Some(directory));
            match rustix::fs::lstat(&self.path) {
                Ok(now) if (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino) => return Ok(Grip::Locked(lock)),
                // Removed, and perhaps made anew, between the two.
                Ok(_) => {}
                Err(Errno::NOENT) => return Ok(Grip::Absent),
                Err(error) => return Err(error).because(what),
            }
        }
    }

    fn make(&self) -> Outcome<()> {
        let root = self.path.parent().unwrap_or(Path::new("/"));
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        match builder.create(&self.path) {
            Err(error) if is_absent(&error) => {
                fs::DirBuilder::new()
                    .mode(0o711)
                    .recursive(true)
                    .create(root)
                    .because(|| format!("cannot make `{}`", root.display()))
                    .or_hint("give another directory with --root")?;
                builder.create(&self.path)
            }
            result => result,
        }
        .map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Failure::new(format!("container id `{}` is in use", self.id))
                .hint(format!("choose another id, or remove it: gantry-runtime delete --force {}", self.id)),
            _ => Failure {
                cause: Some(error.to_string()),
                ..Failure::new(format!("cannot make `{}`", self.path.display()))
            },
        })
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replace `state.json`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, record: &Record) -> Outcome<()> {
        let bytes = serde_json::to_vec(record).because(|| "cannot encode the state".to_owned())?;
        write_atomically(&self.file("state.json"), &bytes, false)
    }

    /// Read `state.json`; `None` when creation was cut short before it was there.
    ///
    /// # Errors
    /// There is no such container, or the file is damaged.
    pub fn read(&self) -> Outcome<Option<Record>> {
        let file = self.file("state.json");
        let remedy = "remove the container: gantry-runtime delete --force ID";
        match files::read(&file, files::CONFIG_BYTES_MAX) {
            Ok(bytes) => {
                let what = || format!("cannot understand `{}`", file.display());
                let record: Record = serde_json::from_slice(&bytes).because(what).or_hint(remedy)?;
                if !record.makes_sense(&self.id) {
                    return Err(Failure::new(what()).hint(remedy));
                }
                Ok(Some(record))
            }
            Err(error) if is_absent(&error) && self.path.is_dir() => Ok(None),
            Err(error) if is_absent(&error) => {
                Err(Failure::new(format!("container `{}` does not exist", self.id)).hint("see `gantry-runtime list`"))
            }
            Err(error) => Err(error).because(|| format!("cannot read `{}`", file.display())),
        }
    }

    /// Read a container that must be complete enough to be used.
    ///
    /// # Errors
    /// As [`StateDir::read`], or it was never completed.
    pub fn read_complete(&self) -> Outcome<Record> {
        self.read()?.ok_or_else(|| {
            Failure::new(format!("container `{}` was never completed", self.id))
                .hint(format!("remove it: gantry-runtime delete --force {}", self.id))
        })
    }

    /// Where the container is in its life.
    pub fn status(&self, record: &Record) -> Status {
        if record.boot_id != boot_id() {
            return Status::Stopped;
        }
        match record.init {
            Some(init) if init.open().is_none() => Status::Stopped,
            Some(_) if !record.complete => Status::Creating,
            Some(_) if self.file("start.sock").exists() => Status::Created,
            Some(_) => Status::Running,
            None if record.creator.open().is_some() => Status::Creating,
            None => Status::Stopped,
        }
    }

    /// The state as the specification defines it.
    pub fn state(&self, record: &Record) -> State {
        let status = self.status(record);
        let pid = match status {
            Status::Stopped => Some(0),
            _ => record.init.map(|init| init.pid),
        };
        State {
            oci_version: record.oci_version.clone(),
            id: record.id.clone(),
            status,
            pid,
            bundle: record.bundle.clone(),
            rootfs: record.rootfs.clone(),
            created: record.created.clone(),
            annotations: record.annotations.clone(),
        }
    }

    /// Remove the directory; absent is success. A creator that is still writing makes it fill up again for a moment;
    /// it fails and gives up when the directory is gone.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self) -> Outcome<()> {
        let deadline = Instant::now() + REMOVE_WITHIN;
        loop {
            match fs::remove_dir_all(&self.path) {
                Ok(()) => return Ok(()),
                Err(error) if is_absent(&error) => return Ok(()),
                // Looking into it takes a descriptor; what we put there has known names.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) && self.remove_known() =>
                {
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(error) => {
                    return Err(error).because(|| format!("cannot remove `{}`", self.path.display())).in_step("state");
                }
            }
        }
    }
}

impl StateDir {
    fn remove_known(&self) -> bool {
        for name in ["state.json", "config.json", "start.sock"] {
            let _ = fs::remove_file(self.file(name));
        }
        fs::remove_dir(&self.path).is_ok()
    }
}

/// Write a file so that readers see the old content or the new one, never a part. `durable`: it is on the disk when
/// this returns; readers are not made to wait for that, and a crash of the host before may leave an empty file.
///
/// # Errors
/// The directory cannot be written.
pub fn write_atomically(path: &Path, bytes: &[u8], durable: bool) -> Outcome<()> {
    let what = || format!("cannot write `{}`", path.display());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        fs::rename(&temporary, path)?;
        if durable {
            file.sync_all()?;
            if let Some(parent) = path.parent() {
                fs::File::open(parent)?.sync_all()?;
            }
        }
        Ok(())
    };
    let result = write().because(what);
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let long = "a".repeat(251);
        for (id, good) in [
            ("web.1", true),
            ("A_b+c-d", true),
            ("", false),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("a b", false),
            ("ä", false),
            ("\0", false),
            (&long, false),
        ] {
            assert_eq!(check_id(id).is_ok(), good, "{id:?}");
        }
    }

    #[test]
    fn a_process_is_itself_only() {
        let me = ProcessId::of(std::process::id() as i32).expect("this process");
        assert!(me.open().is_some());
        assert!(ProcessId { start_time: me.start_time + 1, ..me }.open().is_none(), "another start time");
        let mut child = std::process::Command::new("true").spawn().expect("a child");
        let pid = child.id() as i32;
        let id = ProcessId::of(pid).expect("the child, running or a zombie");
        child.wait().expect("its end");
        assert!(id.open().is_none(), "reaped");
    }

    #[test]
    fn an_id_is_claimed_once() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = StateDir::new(&root.path().join("deep/er"), "x").expect("a good id");
        assert!(dir.read().is_err(), "absent");
        let lock = dir.claim().expect("free");
        assert!(matches!(dir.try_lock(), Ok(Grip::Busy)), "held");
        drop(lock);
        assert!(matches!(dir.try_lock(), Ok(Grip::Locked(_))), "released");
        assert!(dir.read().expect("half-written").is_none());
        assert!(dir.claim().expect_err("taken").to_string().contains("in use"));
        dir.remove().expect("removed");
        dir.remove().expect("removing twice is fine");
        assert!(matches!(dir.try_lock(), Ok(Grip::Absent)));
        dir.claim().expect("free again");
    }
}
