//! The cgroup of one container: one directory of the same path in every hierarchy of the host.
//!
//! ```text
//! v1      /sys/fs/cgroup/memory/PATH  /sys/fs/cgroup/pids/PATH  ...      limits per hierarchy
//! hybrid  the same, and /sys/fs/cgroup/unified/PATH                      balancing programs hang on it
//! v2      /sys/fs/cgroup/PATH                                            everything
//! ```
//! Joining by `cgroup.procs` costs an RCU grace period (8-25 ms measured on Linux 6.18), so a process is born in its
//! v2 directory (`CLONE_INTO_CGROUP`) and moves itself, single-threaded, through the `tasks` files of v1.

pub mod devices;
pub mod hierarchy;
pub mod table;

use crate::config::Resources;
use crate::error::{Because, Failure, InStep, Outcome, is_absent};
use crate::rootless;
use crate::sys::{bpf, clone};
use hierarchy::Hierarchies;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use table::Version;

/// Parent of the cgroups of containers whose bundle names no place.
const DEFAULT_PARENT: &str = "gantry-runtime";
/// Whether cgroups can be made through systemd.
pub const SYSTEMD: bool = false;
/// The same through a user's own systemd.
pub const SYSTEMD_USER: bool = false;
/// How long to wait for killed processes to leave.
const EMPTY_WITHIN: Duration = Duration::from_secs(10);

/// One directory of the container in one hierarchy.
#[derive(Debug, Clone)]
struct Directory {
    /// Mount point of the hierarchy.
    mount: PathBuf,
    /// The directory itself.
    path: PathBuf,
    /// Its v1 controllers; `None` on v2.
    v1: Option<Vec<String>>,
}

/// The cgroup of one container.
#[derive(Debug, Clone)]
pub struct Cgroup {
    hierarchies: Hierarchies,
    /// Below each mount point, without a leading slash.
    path: String,
    /// Mount points of hierarchies that the container is not in, because a rootless runtime may not write there.
    left_out: Vec<PathBuf>,
}

/// What a container used and suffered, read before its cgroup goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account {
    /// Some process was killed for lack of memory.
    pub oom_killed: bool,
    /// Highest memory use.
    pub memory_peak_bytes: Option<u64>,
}

/// The place of a container below each mount point, from `linux.cgroupsPath`.
pub fn place(cgroups_path: Option<&str>, id: &str) -> String {
    let given = cgroups_path.unwrap_or("");
    let clean: Vec<&str> = given.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if clean.is_empty() { format!("{DEFAULT_PARENT}/{id}") } else { clean.join("/") }
}

impl Cgroup {
    /// The cgroup at `path` below each hierarchy, whether it exists or not.
    ///
    /// # Errors
    /// The host's hierarchies cannot be found out.
    pub fn at(path: String) -> Outcome<Self> {
        Ok(Self { hierarchies: Hierarchies::observe()?, path, left_out: Vec::new() })
    }

    /// The same without some hierarchies, by mount point.
    pub fn without(self, left_out: &[PathBuf]) -> Self {
        Self { left_out: left_out.to_vec(), ..self }
    }

    /// The same without directories that are there and not ours: an ordinary user may not take them for its own.
    pub fn without_foreign(mut self) -> Self {
        let foreign = |directory: &Directory| {
            directory.path.exists() && rustix::fs::access(&directory.path, rustix::fs::Access::WRITE_OK).is_err()
        };
        let mounts: Vec<PathBuf> =
            self.directories().into_iter().filter(foreign).map(|directory| directory.mount).collect();
        self.left_out.extend(mounts);
        self
    }

    /// Mount points of the hierarchies that the container is not in.
    pub fn left_out(&self) -> &[PathBuf] {
        &self.left_out
    }

    /// The same in another place.
    pub fn moved_to(self, path: String) -> Self {
        Self { path, left_out: Vec::new(), ..self }
    }

    /// Below each mount point.
    pub fn path(&self) -> &str {
        &self.path
    }

    fn is_left_out(&self, mount: &Path) -> bool {
        self.left_out.iter().any(|other| other == mount)
    }

    /// The host's hierarchies.
    pub fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    /// The container's directory below a mount point.
    pub fn path_in(&self, mount: &Path) -> PathBuf {
        mount.join(&self.path)
    }

    /// The directory below a mount point that a container without a cgroup namespace sees: its own, or that of this
    /// process in a hierarchy that the container is not moved in.
    pub fn seen_in(&self, mount: &Path, v1: Option<&hierarchy::V1>) -> PathBuf {
        if !self.is_left_out(mount) {
            return self.path_in(mount);
        }
        let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = membership.lines().find_map(|line| {
            let (names, path) = line.split_once(':')?.1.split_once(':')?;
            let same = match v1 {
                Some(v1) => v1.controllers.iter().map(String::as_str).eq(names.split(',')),
                None => names.is_empty(),
            };
            same.then(|| path.trim_start_matches('/').to_owned())
        });
        // Above the root of our own cgroup namespace there is nothing to show.
        let own = own.filter(|path| !path.split('/').any(|part| part == ".."));
        mount.join(own.unwrap_or_default())
    }

    fn directories(&self) -> Vec<Directory> {
        let directory = |mount: &Path, v1: Option<&[String]>| Directory {
            mount: mount.to_owned(),
            path: mount.join(&self.path),
            v1: v1.map(<[String]>::to_vec),
        };
        let v1 = self.hierarchies.v1.iter().map(|found| directory(&found.mount, Some(&found.controllers)));
        v1.chain(self.hierarchies.v2.iter().map(|mount| directory(mount, None)))
            .filter(|directory| !self.is_left_out(&directory.mount))
            .collect()
    }

    fn v2_directory(&self) -> Option<PathBuf> {
        let mount = self.hierarchies.v2.as_ref().filter(|mount| !self.is_left_out(mount));
        mount.map(|mount| mount.join(&self.path))
    }

    /// Make the directories that a rootless runtime may make, leaving out the other hierarchies. False when none is
    /// left.
    ///
    /// # Errors
    /// As [`Cgroup::create`], but for the lack of permission.
    pub fn create_where_allowed(&mut self) -> Outcome<bool> {
        for directory in self.directories() {
            let writable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
            match make(&directory) {
                Ok(false) => {}
                Ok(true) if writable(&directory.path) => self.refuse_if_used(&directory)?,
                Ok(true) => self.left_out.push(directory.mount),
                Err(error) if is_refusal(&error) => self.left_out.push(directory.mount),
                Err(error) => {
                    return Err(error).because(|| format!("cannot make cgroup `{}`", directory.path.display()));
                }
            }
        }
        Ok(!self.directories().is_empty())
    }

    /// Make the directories.
    ///
    /// # Errors
    /// One cannot be made, or exists and already has processes or is frozen.
    pub fn create(&self) -> Outcome<()> {
        let mut made = Vec::new();
        let result = self.directories().iter().try_for_each(|directory| {
            if make(directory).because(|| format!("cannot make cgroup `{}`", directory.path.display()))? {
                return self.refuse_if_used(directory);
            }
            made.push(directory.path.clone());
            Ok(())
        });
        if result.is_err() {
            // What was there before belongs to somebody else.
            for path in &made {
                let _ = fs::remove_dir(path);
            }
        }
        result
    }

    /// A directory that was there before must be empty and not frozen: a start would hang or mix with others.
    fn refuse_if_used(&self, directory: &Directory) -> Outcome<()> {
        let shown = directory.path.display();
        if !processes_below(&directory.path).is_empty() {
            return Err(Failure::new(format!("cgroup `{shown}` already contains processes"))
                .hint("choose another `linux.cgroupsPath`, or delete the container that uses it"));
        }
        let frozen = match &directory.v1 {
            Some(names) if names.iter().any(|name| name == "freezer") => {
                fs::read_to_string(directory.path.join("freezer.state")).is_ok_and(|state| state.trim() != "THAWED")
            }
            Some(_) => false,
            None => fs::read_to_string(directory.path.join("cgroup.freeze")).is_ok_and(|state| state.trim() == "1"),
        };
        if frozen {
            return Err(Failure::new(format!("cgroup `{shown}` is frozen"))
                .hint("thaw or remove it, a container started there would hang"));
        }
        let handed = fs::read_to_string(directory.path.join("cgroup.subtree_control")).unwrap_or_default();
        if directory.v1.is_none() && !handed.trim().is_empty() {
            let handed = handed.trim();
            return Err(Failure::new(format!(
                "cgroup `{shown}` hands `{handed}` to others below it and is no place for processes"
            ))
            .hint("let `linux.cgroupsPath` name a directory below it"));
        }
        Ok(())
    }

    /// Write the limits.
    ///
    /// # Errors
    /// A limit that this host cannot carry out, with the key that asked for it.
    pub fn apply(&self, resources: &Resources) -> Outcome<()> {
        let writes =
            table::writes(resources, &|controller| self.hierarchies.version_of(controller)).map_err(|error| {
                let failure = Failure::new(error.to_string());
                match error.hint() {
                    Some(hint) => failure.hint(hint),
                    None => failure,
                }
            })?;
        for write in &writes {
            self.write(write)?;
        }
        self.apply_devices(resources)
    }

    fn directory_of(&self, controller: &str) -> Option<PathBuf> {
        match self.hierarchies.v1_of(controller) {
            Some(hierarchy) if self.is_left_out(&hierarchy.mount) => None,
            Some(hierarchy) => Some(hierarchy.mount.join(&self.path)),
            None => self.v2_directory(),
        }
    }

    fn write(&self, write: &table::Write) -> Outcome<()> {
        let directory = self.directory_of(write.controller).ok_or_else(|| match self.left_out.is_empty() {
            true => Failure::new(format!("no hierarchy has the controller `{}`", write.controller)),
            false => no_permission(write),
        })?;
        let mut file = directory.join(&write.file);
        let mut value = write.value.as_str();
        let mut result = write_file(&file, value);
        if let (Err(error), Some((other, other_value))) = (&result, &write.instead)
            && is_absent(error)
        {
            file = directory.join(other);
            value = other_value;
            result = write_file(&file, value);
        }
        result
            .because(|| format!("cannot write `{value}` to `{}` for `linux.resources.{}`", file.display(), write.key))
            .map_err(|failure| match (self.hint(write.controller, &file), &failure.hint) {
                (Some(hint), None) => failure.hint(hint),
                _ => failure,
            })
    }

    /// A remedy for the usual reasons of a failed write.
    fn hint(&self, controller: &str, file: &Path) -> Option<String> {
        if file.exists() {
            return None;
        }
        if self.hierarchies.version_of(controller) == Some(Version::V2) {
            let mount = self.hierarchies.v2.as_ref()?;
            let stop = first_without(mount, &self.path, |directory| hands_down(directory, controller));
            if let Some(parent) = stop {
                let has_processes = fs::read_to_string(parent.join("cgroup.procs")).is_ok_and(|text| !text.is_empty());
                return Some(not_handed_down(controller, &parent, has_processes));
            }
        }
        missing_file(file.file_name()?.to_str()?)
    }

    fn apply_devices(&self, resources: &Resources) -> Outcome<()> {
        let rules = devices::rules(&resources.devices).map_err(|error| Failure::new(error.to_string()))?;
        if let Some(hierarchy) = self.hierarchies.v1_of("devices") {
            if self.is_left_out(&hierarchy.mount) {
                // Whoever may not write there can make no device either; the container has those it is given.
                return Ok(());
            }
            let directory = hierarchy.mount.join(&self.path);
            for (file, line) in devices::v1_writes(&rules).map_err(|error| Failure::new(error.to_string()))? {
                let file = directory.join(file);
                write_file(&file, &line).because(|| format!("cannot write `{line}` to `{}`", file.display()))?;
            }
            return Ok(());
        }
        let Some(program) = devices::program(&rules) else {
            return Ok(());
        };
        if !self.left_out.is_empty() && self.v2_directory().is_none() {
            return Ok(());
        }
        let directory =
            self.v2_directory().ok_or_else(|| Failure::new("no cgroup hierarchy can restrict access to devices"))?;
        let cgroup = open_directory(&directory).because(|| format!("cannot open `{}`", directory.display()))?;
        let loaded = match bpf::load_device_program(&program) {
            // As above.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && rootless::is_rootless() => return Ok(()),
            result => result.because(|| "cannot load the device filter".to_owned())?,
        };
        bpf::attach_device_program(cgroup.as_fd(), loaded.as_fd())
            .because(|| format!("cannot attach the device filter to `{}`", directory.display()))
    }

    /// The v2 directory, to be born in.
    ///
    /// # Errors
    /// It exists and cannot be opened.
    pub fn birthplace(&self) -> Outcome<Option<OwnedFd>> {
        match self.v2_directory() {
            None => Ok(None),
            Some(path) => open_directory(&path).because(|| format!("cannot open `{}`", path.display())).map(Some),
        }
    }

    /// The v2 directory below the container's own in which a process of it is, if it is in one.
    pub fn place_of(&self, pid: i32) -> Option<OwnedFd> {
        let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        open_directory(&self.v2_directory()?.join(below(&membership, &self.path)?)).ok()
    }

    /// Files into which a single-threaded process writes `0` to move itself: `tasks` of every v1 hierarchy, and, when
    /// it was not born in its v2 directory, `cgroup.procs` of that.
    ///
    /// # Errors
    /// A file cannot be opened.
    pub fn doors(&self, with_v2: bool) -> Outcome<Vec<OwnedFd>> {
        let mut doors = Vec::new();
        for directory in self.directories() {
            let file = match directory.v1 {
                Some(_) => directory.path.join("tasks"),
                None if with_v2 => directory.path.join("cgroup.procs"),
                None => continue,
            };
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let door = rustix::fs::open(&file, flags, Mode::empty())
                .because(|| format!("cannot open `{}`", file.display()))?;
            doors.push(door);
        }
        Ok(doors)
    }

    /// The same for places below the container's directory, in every hierarchy.
    ///
    /// - `place`: the path below, from the controllers of a v1 hierarchy, or from `None` for v2.
    ///
    /// # Errors
    /// There is no such cgroup.
    pub fn doors_below<'a>(&self, place: impl Fn(Option<&[String]>) -> &'a str) -> Outcome<Vec<OwnedFd>> {
        let mut doors = Vec::new();
        for directory in self.directories() {
            let name = if directory.v1.is_some() { "tasks" } else { "cgroup.procs" };
            let file = directory.path.join(place(directory.v1.as_deref())).join(name);
            let door = rustix::fs::open(&file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .because(|| format!("cannot open `{}`", file.display()))
                .or_hint("--cgroup names a cgroup that exists below the container's own")?;
            doors.push(door);
        }
        Ok(doors)
    }

    /// Whether any of its directories is there.
    pub fn exists(&self) -> bool {
        self.directories().iter().any(|directory| directory.path.is_dir())
    }

    /// Every process in the cgroup and below it.
    pub fn processes(&self) -> Vec<i32> {
        let mut all: Vec<i32> =
            self.directories().iter().flat_map(|directory| processes_below(&directory.path)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Send a signal to every process in the cgroup.
    pub fn signal_all(&self, signal: i32) {
        for pid in self.processes() {
            // Gone between the reading and the signal is as good as signalled; a recycled number is ruled out by
            // looking at the list again while the descriptor is held.
            if let Ok(pidfd) = clone::pidfd_open(pid)
                && self.processes().contains(&pid)
            {
                let _ = clone::pidfd_send_signal(pidfd.as_fd(), signal);
            }
        }
    }

    /// Thaw, so that signals arrive.
    pub fn thaw(&self) {
        for directory in self.directories() {
            match &directory.v1 {
                Some(names) if names.iter().any(|name| name == "freezer") => {
                    for_each_below(&directory.path, &mut |path| {
                        let _ = write_file(&path.join("freezer.state"), "THAWED");
                    });
                }
                Some(_) => {}
                None => for_each_below(&directory.path, &mut |path| {
                    let _ = write_file(&path.join("cgroup.freeze"), "0");
                }),
            }
        }
    }

    /// Kill every process in the cgroup and wait until it is empty.
    ///
    /// # Errors
    /// Some process is still there after ten seconds, which means it hangs inside the kernel.
    pub fn kill(&self) -> Outcome<()> {
        let deadline = Instant::now() + EMPTY_WITHIN;
        let mut pause = Duration::from_micros(200);
        loop {
            let left = self.processes();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Failure::new(format!("processes {left:?} do not die"))
                    .hint("they hang inside the kernel (state D); see /proc/PID/stack"));
            }
            self.thaw();
            let at_once = self.v2_directory().is_some_and(|path| write_file(&path.join("cgroup.kill"), "1").is_ok());
            if !at_once || pause > Duration::from_millis(5) {
                self.signal_all(libc::SIGKILL);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Remove the directories, with those the container made below them.
    ///
    /// # Errors
    /// One stays busy or cannot be removed.
    pub fn remove(&self) -> Outcome<()> {
        for directory in self.directories() {
            remove_tree(&directory.path)
                .because(|| format!("cannot remove cgroup `{}`", directory.path.display()))
                .or_hint("a process is still in it: `gantry-runtime delete --force ID`")?;
            if let Some((parent, _)) = self.path.rsplit_once('/')
                && parent == DEFAULT_PARENT
            {
                // Ours alone; stays while another container is in it.
                let _ = fs::remove_dir(directory.mount.join(parent));
            }
        }
        Ok(())
    }

    /// Whether its processes sleep until somebody frees memory, the OOM killer being disabled (v1 only).
    pub fn waits_for_memory(&self) -> bool {
        let Some(v1) = self.hierarchies.v1_of("memory") else { return false };
        let text = fs::read_to_string(v1.mount.join(&self.path).join("memory.oom_control")).unwrap_or_default();
        ["oom_kill_disable 1", "under_oom 1"].iter().all(|wanted| text.lines().any(|line| line == *wanted))
    }

    /// Memory figures of the container.
    pub fn account(&self) -> Account {
        let Some(directory) = self.directory_of("memory") else {
            return Account::default();
        };
        let number = |file: &str| -> Option<u64> { fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok() };
        let counter = |file: &str| -> u64 {
            let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
        };
        match self.hierarchies.version_of("memory") {
            Some(Version::V1) => Account {
                oom_killed: counter("memory.oom_control") > 0,
                memory_peak_bytes: number("memory.max_usage_in_bytes"),
            },
            Some(Version::V2) => {
                Account { oom_killed: counter("memory.events") > 0, memory_peak_bytes: number("memory.peak") }
            }
            None => Account::default(),
        }
    }
}

/// A cgroup that did not take a process, with the remedy for the reasons the kernel's answer stands for.
pub fn refused(error: Errno) -> Failure {
    let mut failure = Failure::new("cannot join");
    failure.cause = Some(error.to_string());
    failure.hint = match error {
        Errno::NOSPC => Some("for cpuset, the parents need CPUs and memory nodes"),
        Errno::BUSY => Some("it hands controllers to cgroups below it, and takes no process then"),
        Errno::OPNOTSUPP => Some("it is in a threaded tree; let `linux.cgroupsPath` name a place outside of that"),
        _ => None,
    }
    .map(str::to_owned);
    failure
}

/// Why a limit's file may be missing although its controller works there.
fn missing_file(name: &str) -> Option<String> {
    Some(match name {
        "memory.memsw.limit_in_bytes" => {
            "boot with `swapaccount=1`, or remove `linux.resources.memory.swap`".to_owned()
        }
        _ => format!("this kernel has no `{name}`; remove the key, or enable the feature in the kernel"),
    })
}

/// What to do when `parent` does not hand a controller down although we tried.
fn not_handed_down(controller: &str, parent: &Path, has_processes: bool) -> String {
    let shown = parent.display();
    if has_processes {
        format!(
            "`{shown}` has processes of its own, and then cannot hand `{controller}` down: move them into a cgroup \
             below it, or let `linux.cgroupsPath` name another place"
        )
    } else {
        format!("echo +{controller} > {shown}/cgroup.subtree_control")
    }
}

/// The topmost directory above `path` that lacks something, `mount` included and the last one not.
fn first_without(mount: &Path, path: &str, has: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let mut directory = mount.to_owned();
    for part in path.split('/') {
        if !has(&directory) {
            return Some(directory);
        }
        directory.push(part);
    }
    None
}

fn hands_down(directory: &Path, controller: &str) -> bool {
    let handed = fs::read_to_string(directory.join("cgroup.subtree_control")).unwrap_or_default();
    handed.split_whitespace().any(|name| name == controller)
}

/// Where below `path` a process is in the unified hierarchy, from its `/proc/PID/cgroup`.
fn below<'a>(membership: &'a str, path: &str) -> Option<&'a str> {
    let place = membership.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let rest = place.strip_prefix(path)?.strip_prefix('/')?;
    (!rest.split('/').any(|part| part == "..")).then_some(rest)
}

fn write_file(path: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Whether a rootless runtime may do without: the kernel or a read-only mount refuses.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EROFS))
}

/// A limit of a container that has no cgroup where it would be set; in words that callers of runc look for.
fn no_permission(write: &table::Write) -> Failure {
    let text = "rootless needs no limits + no cgrouppath when no permission is granted for cgroups";
    Failure::new(format!("cannot set `linux.resources.{}`: {text}", write.key))
        .hint("let a cgroup with this controller be delegated to the user, or remove the limit")
}

/// Make a directory and its parents; true when it was there before.
fn make(directory: &Directory) -> io::Result<bool> {
    // A parent that is ours may vanish between two steps when another container is deleted: start over.
    for _ in 0..64 {
        match try_make(directory) {
            // Removed, or about to be.
            Err(error) if is_absent(&error) || error.raw_os_error() == Some(libc::ENODEV) => thread::yield_now(),
            result => return result,
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "its parent keeps vanishing"))
}

fn try_make(directory: &Directory) -> io::Result<bool> {
    let below = directory.path.strip_prefix(&directory.mount).unwrap_or(&directory.path);
    let parts: Vec<_> = below.components().collect();
    let is_cpuset = directory.v1.as_ref().is_some_and(|names| names.iter().any(|name| name == "cpuset"));
    // The common case: the parent is there.
    if !is_cpuset && directory.v1.is_some() {
        match fs::create_dir(&directory.path) {
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(true),
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let mut path = directory.mount.clone();
    let mut existed = false;
    for part in parts {
        if directory.v1.is_none() {
            hand_down_controllers(&path);
        }
        let parent = path.clone();
        path.push(part);
        existed = match fs::create_dir(&path) {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => true,
            Err(error) => return Err(error),
        };
        if is_cpuset {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                // An empty set takes no process.
                if fs::read_to_string(path.join(file))?.trim().is_empty() {
                    let inherited = fs::read_to_string(parent.join(file))?;
                    write_file(&path.join(file), inherited.trim())?;
                }
            }
        }
    }
    Ok(existed)
}

/// On v2 a controller works in a directory only when the parent hands it down. One by one, because one that cannot
/// (`cpu` beside real-time tasks) would spoil the others; a limit that misses its controller fails by itself later.
fn hand_down_controllers(parent: &Path) {
    let Ok(available) = fs::read_to_string(parent.join("cgroup.controllers")) else {
        return;
    };
    let Ok(handed) = fs::read_to_string(parent.join("cgroup.subtree_control")) else {
        return;
    };
    let missing: Vec<&str> =
        available.split_whitespace().filter(|name| !handed.split_whitespace().any(|other| other == *name)).collect();
    if missing.is_empty() || refuses_to_hand_down(parent) {
        return;
    }
    for name in missing {
        let _ = write_file(&parent.join("cgroup.subtree_control"), &format!("+{name}"));
    }
}

/// A directory that has processes cannot be a parent with controllers, but for the root of all (the only one without a
/// type). The kernel would let it hand down `cpu` and `pids` and take that as the wish for a threaded tree, in which no
/// container can be.
fn refuses_to_hand_down(parent: &Path) -> bool {
    let is_root = !parent.join("cgroup.type").exists();
    !is_root && fs::read_to_string(parent.join("cgroup.procs")).is_ok_and(|text| !text.is_empty())
}

fn processes_below(path: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    for_each_below(path, &mut |path| {
        let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|&pid| pid > 0));
    });
    found
}

/// Visit a directory and those below it, deepest first.
fn for_each_below(path: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            for_each_below(&entry.path(), visit);
        }
    }
    visit(path);
}

/// Remove a cgroup directory and those below it; absent is success. A directory is busy for a moment after its last
/// process has ended, until the kernel has let go of it.
fn remove_tree(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + EMPTY_WITHIN;
    let mut pause = Duration::from_micros(100);
    loop {
        let error = match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => error,
        };
        for_each_below(path, &mut |below| {
            if below != path {
                let _ = fs::remove_dir(below);
            }
        });
        let busy = matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY));
        if !busy || Instant::now() > deadline || !processes_below(path).is_empty() {
            return Err(error);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        for (path, want) in [
            (None, "gantry-runtime/web"),
            (Some(""), "gantry-runtime/web"),
            (Some("/"), "gantry-runtime/web"),
            (Some("/a/b"), "a/b"),
            (Some("a//b/./c/"), "a/b/c"),
        ] {
            assert_eq!(place(path, "web"), want, "{path:?}");
        }
    }

    #[test]
    fn a_process_below_its_container() {
        for (membership, want) in [
            ("0::/gantry/web/init.scope\n", Some("init.scope")),
            ("4:pids:/gantry/web/other\n0::/gantry/web/a/b\n", Some("a/b")),
            ("0::/gantry/web\n", None),
            ("0::/gantry/website/a\n", None),
            ("0::/elsewhere\n", None),
            ("0::/gantry/web/../other\n", None),
            ("4:pids:/gantry/web/a\n", None),
            ("", None),
        ] {
            assert_eq!(below(membership, "gantry/web"), want, "{membership:?}");
        }
    }

    #[test]
    fn what_a_refusal_means() {
        for (error, word) in [(Errno::NOSPC, "cpuset"), (Errno::BUSY, "below"), (Errno::OPNOTSUPP, "threaded")] {
            let hint = refused(error).hint.expect("a remedy");
            assert!(hint.contains(word), "{error}: {hint}");
        }
        assert_eq!(refused(Errno::PERM).hint, None);
    }

    #[test]
    fn the_directory_that_stops_a_controller() {
        let mount = Path::new("/cg");
        for (lacking, want) in
            [("", None), ("/cg", Some("/cg")), ("/cg/a", Some("/cg/a")), ("/cg/a/b", None), ("/cg/x", None)]
        {
            let found = first_without(mount, "a/b", |directory| directory != Path::new(lacking));
            assert_eq!(found, want.map(PathBuf::from), "{lacking}");
        }
        let remedy = |has_processes| not_handed_down("memory", Path::new("/cg/a"), has_processes);
        assert_eq!(remedy(false), "echo +memory > /cg/a/cgroup.subtree_control");
        assert!(remedy(true).contains("`/cg/a` has processes of its own"), "{}", remedy(true));
    }
}
