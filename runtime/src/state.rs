//! What is known about a container between two commands: `ROOT/ID/`.
//!
//! ```text
//! state.json   written before anything is made, again when the process exists; replaced as a whole
//! config.json  the configuration it was created with, for exec and hooks
//! start.sock   there while the container is created and not started
//! traced       there when an added process may look into all others, and the configuration gives that right to none
//! ```
//! A process is known by its number and the inode of its pidfd (before Linux 6.9: its start time), on this boot; both
//! are checked before any signal.

use crate::cgroup::systemd::Unit;
use crate::cgroup::{Cgroup, freezer};
use crate::error::{Because, Failure, InStep, Outcome, is_absent};
use crate::sys::{clone, file};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// Longest container ID; it becomes a file name.
const ID_MAX: usize = 250;

/// The record.
const STATE: &str = "state.json";
/// What takes its place once the container is complete.
const DRAFT: &str = "state.json.new";
/// The configuration.
const CONFIG: &str = "config.json";
/// The socket on which a created container waits.
const START: &str = "start.sock";
/// See [`StateDir::mark_traced`].
const TRACED: &str = "traced";

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
    /// Its processes are stopped where they are.
    Paused,
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
            Self::Paused => "paused",
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
    /// Its first process. Before the status, as runc has it: some read by position.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Where it is in its life.
    pub status: Status,
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
///
/// Since Linux 6.9 a pidfd has an inode number that no other process of this boot gets; asking for it takes a
/// microsecond, where the start time from `/proc/PID/stat` takes fifty. Older kernels have the start time only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Number.
    pub pid: i32,
    /// Inode number of its pidfd; 0 where that says nothing.
    #[serde(default)]
    pub inode: u64,
    /// Clock ticks after boot at which it started; 0 where the inode is known.
    #[serde(default)]
    pub start_time: u64,
}

/// `PID_FS_MAGIC`.
const PIDFS_MAGIC: u64 = 0x5049_4446;

/// What `/proc/PID/stat` says.
struct Stat {
    state: u8,
    start_time: u64,
}

fn stat(pid: i32) -> io::Result<Stat> {
    // 52 numbers and a name of at most 16 bytes.
    let mut buffer = [0; 1536];
    let count = file::read_into(Path::new(&format!("/proc/{pid}/stat")), &mut buffer)?;
    let text = &buffer[..count];
    // The name may contain anything, so fields are counted from its closing bracket.
    let after = text.iter().rposition(|&byte| byte == b')').map_or(&[][..], |at| &text[at + 1..]);
    let mut fields = after.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
    let state = fields.next().and_then(|field| field.first().copied());
    let start_time = fields.nth(18).and_then(|field| std::str::from_utf8(field).ok()?.parse().ok());
    match (state, start_time) {
        (Some(state), Some(start_time)) => Ok(Stat { state, start_time }),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

/// Whether pidfds have inode numbers of their own; asked once.
fn has_pidfs(pidfd: BorrowedFd<'_>) -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| rustix::fs::fstatfs(pidfd).is_ok_and(|found| found.f_type as u64 == PIDFS_MAGIC))
}

fn inode(pidfd: BorrowedFd<'_>) -> Option<u64> {
    Some(rustix::fs::fstat(pidfd).ok()?.st_ino)
}

impl ProcessId {
    /// A process that is alive now.
    ///
    /// # Errors
    /// It is gone.
    pub fn of(pid: i32) -> Outcome<Self> {
        let pidfd = clone::pidfd_open(pid).because(|| format!("there is no process {pid}"))?;
        Self::held(pid, pidfd.as_fd())
    }

    /// This process.
    ///
    /// # Errors
    /// As [`ProcessId::held`].
    pub fn own() -> Outcome<Self> {
        let pid = std::process::id() as i32;
        let pidfd = clone::pidfd_open(pid).because(|| format!("there is no process {pid}"))?;
        let own = Self::held(pid, pidfd.as_fd());
        // Of itself and to nobody's harm until it ends.
        std::mem::forget(pidfd);
        own
    }

    /// A process that is alive, or a child not reaped, from its number and a descriptor.
    ///
    /// # Errors
    /// `/proc` is not mounted and the kernel is old.
    pub fn held(pid: i32, pidfd: BorrowedFd<'_>) -> Outcome<Self> {
        let unique = has_pidfs(pidfd);
        if unique && let Some(inode) = inode(pidfd) {
            return Ok(Self { pid, inode, start_time: 0 });
        }
        let found = stat(pid).because(|| format!("cannot read `/proc/{pid}/stat`"))?;
        Ok(Self { pid, inode: 0, start_time: found.start_time })
    }

    /// A descriptor of the process, if it is still the same and has not ended.
    pub fn open(&self) -> Option<OwnedFd> {
        let pidfd = clone::pidfd_open(self.pid).ok()?;
        let same = if self.inode != 0 {
            inode(pidfd.as_fd()) == Some(self.inode) && !has_ended(pidfd.as_fd())
        } else {
            // Read after the descriptor is held: the number cannot be reused between the two.
            let found = stat(self.pid).ok()?;
            found.start_time == self.start_time && !matches!(found.state, b'Z' | b'X')
        };
        same.then_some(pidfd)
    }
}

/// A pidfd can be read when its process has ended.
fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
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
    /// The systemd unit it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Unit>,
    /// Hierarchies it is not in, by mount point: a rootless runtime may not write there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cgroup_left_out: Vec<PathBuf>,
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
    /// Its configuration has hooks for after the start.
    #[serde(default)]
    pub poststart: bool,
    /// Its configuration has hooks for after the end.
    #[serde(default)]
    pub poststop: bool,
}

impl Record {
    /// The state as the specification defines it, of a container at this point.
    pub fn state(&self, status: Status, pid: Option<i32>) -> State {
        State {
            oci_version: self.oci_version.clone(),
            id: self.id.clone(),
            status,
            pid,
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            created: self.created.clone(),
            annotations: self.annotations.clone(),
        }
    }
}

impl Record {
    /// Whether this can be about the container `id`. A damaged record must not lead to what belongs to others.
    fn makes_sense(&self, id: &str) -> bool {
        let good_part = |part: &str| !part.is_empty() && part != "." && part != "..";
        let pids = [Some(self.creator), self.init, self.supervisor];
        self.id == id
            && self.cgroup.split('/').all(good_part)
            && pids
                .into_iter()
                .flatten()
                .all(|process| process.pid > 1 && (process.start_time > 0 || process.inode > 0))
    }

    /// The container's cgroup, as it was made.
    ///
    /// # Errors
    /// The host's hierarchies cannot be found out.
    pub fn own_cgroup(&self) -> Outcome<Cgroup> {
        Ok(Cgroup::existing(self.cgroup.clone())?.without(&self.cgroup_left_out).with_unit(self.unit.clone()))
    }
}

/// The right to make or remove a container: one process has it at a time.
#[derive(Debug)]
pub struct Lock(Option<Held>);

/// The directory of a container that this process has made or found. As long as it is open, no other directory can be
/// mistaken for it.
#[derive(Debug)]
pub struct Held {
    directory: OwnedFd,
    device: u64,
    inode: u64,
}

impl Lock {
    /// In a clone of the process that has it: it stays locked, but not by us.
    pub fn leave(mut self) {
        drop(self.0.take());
    }

    /// Let others have it, keeping the directory open.
    pub fn release(mut self) -> Held {
        let held = self.0.take().expect("only what consumes a lock takes it");
        unlock(&held);
        held
    }

    /// Keep it until this process ends.
    pub fn keep(mut self) {
        std::mem::forget(self.0.take());
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.0.iter().for_each(unlock);
    }
}

fn unlock(held: &Held) {
    // Closing would not do as long as a clone of this process has the same open file.
    let _ = rustix::fs::flock(&held.directory, FlockOperation::Unlock);
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
pub fn boot_id() -> &'static str {
    static FOUND: OnceLock<String> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mut buffer = [0; 64];
        let count = file::read_once(Path::new("/proc/sys/kernel/random/boot_id"), &mut buffer).unwrap_or(0);
        String::from_utf8_lossy(&buffer[..count]).trim().to_owned()
    })
}

/// Refuse to work without a place for states.
///
/// # Errors
/// There is none: an ordinary user has it in a directory that is not there.
pub fn check_root(root: &Path) -> Outcome<()> {
    if root.as_os_str().is_empty() {
        return Err(Failure::new("there is no place to keep containers of this user: XDG_RUNTIME_DIR is not set")
            .hint("set it to a directory of the user, or give one with --root"));
    }
    Ok(())
}

impl StateDir {
    /// The directory of a container, whether it exists or not.
    ///
    /// # Errors
    /// The ID is not valid.
    pub fn new(root: &Path, id: &str) -> Outcome<Self> {
        check_id(id)?;
        check_root(root)?;
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
            let held = Held { directory, device: ours.st_dev, inode: ours.st_ino };
            match self.still_there(held)? {
                // Removed, and perhaps made anew, between the two.
                None => {}
                Some(grip) => return Ok(grip),
            }
        }
    }

    /// Get the lock of a directory that was ours before; `Absent` when it is gone, whatever is in its place by now.
    ///
    /// # Errors
    /// The directory cannot be looked at.
    pub fn lock_again(&self, held: Held) -> Outcome<Grip> {
        match rustix::fs::flock(&held.directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(Grip::Busy),
            result => result.because(|| format!("cannot lock `{}`", self.path.display()))?,
        }
        Ok(self.still_there(held)?.unwrap_or(Grip::Absent))
    }

    /// What a lock on an open directory is worth; `None` when another one is in its place.
    fn still_there(&self, held: Held) -> Outcome<Option<Grip>> {
        let ours = (held.device, held.inode);
        let lock = Lock(Some(held));
        match rustix::fs::lstat(&self.path) {
            Ok(now) if (now.st_dev, now.st_ino) == ours => Ok(Some(Grip::Locked(lock))),
            Ok(_) => Ok(None),
            Err(Errno::NOENT) => Ok(Some(Grip::Absent)),
            Err(error) => Err(error).because(|| format!("cannot lock `{}`", self.path.display())),
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
            io::ErrorKind::AlreadyExists => {
                Failure::new(format!("container with given ID already exists: `{}`", self.id))
                    .hint(format!("choose another id, or remove it: gantry-runtime delete --force {}", self.id))
            }
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

    /// Write the first `state.json` of a directory that was claimed just now. Nobody else knows of it, so it is not made
    /// beside the place and renamed; should this process die half-way, an empty file counts as none.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_first(&self, record: &Record) -> Outcome<()> {
        let bytes = serde_json::to_vec(record).because(|| "cannot encode the state".to_owned())?;
        let path = self.file(STATE);
        file::create_and_leave(&path, &bytes).because(|| format!("cannot write `{}`", path.display()))
    }

    /// Keep the configuration the container was created with.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_config(&self, text: &[u8]) -> Outcome<()> {
        let path = self.file(CONFIG);
        file::create_and_leave(&path, text).because(|| format!("cannot write `{}`", path.display()))
    }

    /// Write what `state.json` is to be, beside it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn draft(&self, record: &Record) -> Outcome<()> {
        let bytes = serde_json::to_vec(record).because(|| "cannot encode the state".to_owned())?;
        let path = self.file(DRAFT);
        file::create_and_leave(&path, &bytes).because(|| format!("cannot write `{}`", path.display()))
    }

    /// Let the draft take the place of `state.json`.
    ///
    /// # Errors
    /// There is none.
    pub fn publish(&self) -> Outcome<()> {
        let path = self.file(STATE);
        fs::rename(self.file(DRAFT), &path).because(|| format!("cannot write `{}`", path.display()))
    }

    /// Note that a process was added to the container which may look into all others there.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn mark_traced(&self) -> Outcome<()> {
        let path = self.file(TRACED);
        fs::write(&path, "").because(|| format!("cannot write `{}`", path.display()))
    }

    /// Whether that was noted.
    pub fn is_traced(&self) -> bool {
        self.file(TRACED).exists()
    }

    /// Replace `state.json`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, record: &Record) -> Outcome<()> {
        let bytes = serde_json::to_vec(record).because(|| "cannot encode the state".to_owned())?;
        write_atomically(&self.file(STATE), &bytes, false)
    }

    /// Read `state.json`; `None` when creation was cut short before it was there.
    ///
    /// # Errors
    /// There is no such container, or the file is damaged.
    pub fn read(&self) -> Outcome<Option<Record>> {
        let file = self.file(STATE);
        let remedy = "remove the container: gantry-runtime delete --force ID";
        match file::read(&file) {
            Ok(bytes) if bytes.is_empty() => Ok(None),
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
                Err(Failure::new(format!("container does not exist: `{}`", self.id)).hint("see `gantry-runtime list`"))
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

    /// Where the container is in its life, with a descriptor of its first process if that is alive.
    pub fn look(&self, record: &Record) -> (Status, Option<OwnedFd>) {
        let alive = |process: ProcessId| process.open().filter(|_| record.boot_id == boot_id());
        let Some(init) = record.init else {
            let status = if alive(record.creator).is_some() { Status::Creating } else { Status::Stopped };
            return (status, None);
        };
        let Some(pidfd) = alive(init) else {
            return (Status::Stopped, None);
        };
        let status = if !record.complete {
            Status::Creating
        } else if freezer::is_frozen(&record.cgroup) {
            Status::Paused
        } else if self.file(START).exists() {
            Status::Created
        } else {
            Status::Running
        };
        (status, Some(pidfd))
    }

    /// Where the container is in its life.
    pub fn status(&self, record: &Record) -> Status {
        self.look(record).0
    }

    /// The state as the specification defines it.
    pub fn state(&self, record: &Record) -> State {
        let status = self.status(record);
        let pid = match status {
            Status::Stopped => Some(0),
            _ => record.init.map(|init| init.pid),
        };
        record.state(status, pid)
    }

    /// Remove the directory; absent is success. A creator that is still writing makes it fill up again for a moment;
    /// it fails and gives up when the directory is gone.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self) -> Outcome<()> {
        // What is nearly always in it, and nothing else: no need to list it.
        for name in [STATE, CONFIG] {
            let _ = fs::remove_file(self.file(name));
        }
        if fs::remove_dir(&self.path).is_ok() {
            return Ok(());
        }
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
        for name in [STATE, DRAFT, CONFIG, START, TRACED] {
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
        let other = ProcessId { start_time: me.start_time.wrapping_add(1), inode: me.inode.wrapping_add(1), ..me };
        assert!(other.open().is_none(), "another process of this number");
        let old = ProcessId { inode: 0, start_time: stat(me.pid).expect("this process").start_time, ..me };
        assert!(old.open().is_some(), "by its start time");
        assert!(ProcessId { start_time: old.start_time + 1, ..old }.open().is_none(), "another start time");
        let mut child = std::process::Command::new("true").spawn().expect("a child");
        let pid = child.id() as i32;
        let id = ProcessId::of(pid).expect("the child, running or a zombie");
        let pidfd = clone::pidfd_open(pid).expect("not reaped yet");
        let ended = rustix::event::poll(&mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)], None);
        assert_eq!(ended, Ok(1));
        assert!(id.open().is_none(), "a zombie");
        child.wait().expect("its end");
        assert!(id.open().is_none(), "reaped");
    }

    #[test]
    fn a_directory_once_held_is_known_again() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = StateDir::new(root.path(), "x").expect("a good id");
        let release = |grip| match grip {
            Ok(Grip::Locked(lock)) => Lock::release(lock),
            other => panic!("not locked: {other:?}"),
        };
        let mut held = release(dir.claim().map(Grip::Locked));
        held = release(dir.lock_again(held));
        let other = dir.try_lock();
        assert!(matches!(other, Ok(Grip::Locked(_))), "released");
        let second = Held { directory: held.directory.try_clone().expect("a descriptor"), ..held };
        assert!(matches!(dir.lock_again(second), Ok(Grip::Busy)), "another has it");
        drop(other);
        fs::remove_dir(dir.path()).expect("removed by somebody else");
        fs::create_dir(dir.path()).expect("and made anew");
        assert!(matches!(dir.lock_again(held), Ok(Grip::Absent)), "another container of the same ID");
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
        assert!(dir.claim().expect_err("taken").to_string().contains("already exists"));
        dir.remove().expect("removed");
        dir.remove().expect("removing twice is fine");
        assert!(matches!(dir.try_lock(), Ok(Grip::Absent)));
        dir.claim().expect("free again");
    }
}
