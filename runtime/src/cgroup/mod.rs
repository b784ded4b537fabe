//! The cgroup of one container: one directory of the same path in every hierarchy of the host.
//!
//! ```text
//! v1      /sys/fs/cgroup/memory/PATH  /sys/fs/cgroup/pids/PATH  ...      limits per hierarchy
//! hybrid  the same, and /sys/fs/cgroup/unified/PATH                      balancing programs hang on it
//! v2      /sys/fs/cgroup/PATH                                            everything
//! ```
//! Joining by `cgroup.procs` costs an RCU grace period (8-25 ms measured on Linux 6.18), so a process is born in its
//! v2 directory (`CLONE_INTO_CGROUP`) and moves itself, single-threaded, through the `tasks` files of v1.
//!
//! This is on the path of every start and removal: per v1 hierarchy it is one `mkdir`, one `open` of the file to join
//! by, one write, and one `rmdir` in the end; anything more is done only after the kernel's answer asked for it.

pub mod aside;
pub mod devices;
pub mod freezer;
pub mod hierarchy;
mod make;
pub mod oom;
pub mod owner;
pub mod stats;
pub mod systemd;
pub mod table;
pub mod update;

use crate::config::Resources;
use crate::error::{Because, Failure, InStep, Outcome, is_absent};
use crate::rootless;
use crate::sys::socket::DESCRIPTORS_MAX;
use crate::sys::{bpf, clone};
use hierarchy::{Hierarchies, V1, read};
use make::{Removed, processes_below};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use table::Version;

/// Parent of the cgroups of containers whose bundle names no place. It stays when they are gone: making it anew in
/// every hierarchy would cost each start more than the container's own directories do.
const DEFAULT_PARENT: &str = "gantry-runtime";
/// Whether cgroups can be made through systemd.
pub const SYSTEMD: bool = true;
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
    /// Its v1 hierarchy; `None` on v2.
    v1: Option<V1>,
}

/// The cgroup of one container.
#[derive(Debug, Clone)]
pub struct Cgroup {
    hierarchies: Hierarchies,
    /// Below each mount point, without a leading slash.
    path: String,
    /// Mount points of hierarchies that the container is not in, because a rootless runtime may not write there.
    left_out: Vec<PathBuf>,
    /// The systemd unit it belongs to.
    unit: Option<systemd::Unit>,
    /// Every mount point was checked.
    is_located: bool,
}

/// Files into which a single-threaded process writes `0` to move itself.
#[derive(Debug, Default)]
pub struct Doors(Vec<OwnedFd>);

impl From<Vec<OwnedFd>> for Doors {
    fn from(files: Vec<OwnedFd>) -> Self {
        Self(files)
    }
}

impl Doors {
    /// Move the calling process, which must have one thread. Nothing is allocated unless it fails.
    ///
    /// # Errors
    /// A cgroup does not take it.
    pub fn enter(&self) -> Outcome<()> {
        self.0.iter().try_for_each(|door| rustix::io::write(door, b"0").map(drop)).map_err(refused)
    }

    /// The files.
    pub fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd)
    }

    /// More of them, or files of something else that is joined the same way.
    pub fn add(&mut self, more: Doors) {
        self.0.extend(more.0);
    }

    /// Leave the files open, for a process that will execute another program or end: both close them for nothing.
    pub fn leave_open(self) {
        self.0.into_iter().for_each(std::mem::forget);
    }
}

/// A cgroup that has just been made.
#[derive(Debug, Default)]
pub struct Made {
    /// To be entered by the container's first process.
    pub doors: Doors,
    /// Keeps a systemd scope alive until that process is in it.
    pub placeholder: Option<systemd::Placeholder>,
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

/// What a bundle asks for in vain, to be said once.
pub fn warnings(resources: &Resources) -> Vec<String> {
    let kernel = resources.memory.as_ref().is_some_and(|memory| memory.kernel.is_some_and(|limit| limit > 0));
    let text = "`linux.resources.memory.kernel` is ignored: Linux no longer counts kernel memory apart from the rest";
    kernel.then(|| text.to_owned()).into_iter().collect()
}

impl Cgroup {
    /// The cgroup at `path` below each hierarchy, whether it exists or not.
    ///
    /// # Errors
    /// The host's hierarchies cannot be found out.
    pub fn at(path: String) -> Outcome<Self> {
        Ok(Self { hierarchies: Hierarchies::observe()?, path, left_out: Vec::new(), unit: None, is_located: false })
    }

    /// The cgroup at `path` of a container that is there, with every mount point checked.
    ///
    /// # Errors
    /// As [`Cgroup::at`].
    pub fn existing(path: String) -> Outcome<Self> {
        Ok(Self::at(path)?.located())
    }

    /// The same without some hierarchies, by mount point.
    pub fn without(self, left_out: &[PathBuf]) -> Self {
        Self { left_out: left_out.to_vec(), ..self }
    }

    /// The same without directories that are there and not ours: an ordinary user may not take them for its own.
    pub fn without_foreign(mut self) -> Self {
        let foreign = |directory: &Directory| directory.path.exists() && !is_writable(&directory.path);
        let mounts: Vec<PathBuf> =
            self.directories().into_iter().filter(foreign).map(|directory| directory.mount).collect();
        self.left_out.extend(mounts);
        self
    }

    /// Whether the container has no directory in any hierarchy.
    pub fn is_nowhere(&self) -> bool {
        self.directories().is_empty()
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

    /// The same, as the cgroup of a systemd unit.
    pub fn with_unit(self, unit: Option<systemd::Unit>) -> Self {
        Self { unit, ..self }
    }

    /// The same with every mount point checked.
    pub fn located(&self) -> Self {
        Self { hierarchies: self.hierarchies.located(), is_located: true, ..self.clone() }
    }

    /// Whether it took a look at every mount point to find where it is.
    pub fn is_located(&self) -> bool {
        self.is_located
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
        let membership = read("/proc/self/cgroup").unwrap_or_default();
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
        let directory = |mount: &Path, v1: Option<&V1>| Directory {
            mount: mount.to_owned(),
            path: mount.join(&self.path),
            v1: v1.cloned(),
        };
        let v1 = self.hierarchies.v1.iter().map(|found| directory(&found.mount, Some(found)));
        v1.chain(self.hierarchies.v2.iter().map(|mount| directory(mount, None)))
            .filter(|directory| !self.is_left_out(&directory.mount))
            .collect()
    }

    fn v2_directory(&self) -> Option<PathBuf> {
        let mount = self.hierarchies.v2.as_ref().filter(|mount| !self.is_left_out(mount));
        mount.map(|mount| mount.join(&self.path))
    }

    /// Make the directories, through systemd when it belongs to a unit, and open the files to join by.
    ///
    /// # Errors
    /// One cannot be made, or exists and already has processes or is frozen; what was made is taken back.
    pub fn create(&mut self, resources: &Resources) -> Outcome<Made> {
        let placeholder = match &self.unit {
            Some(unit) => Some(unit.start(resources, &self.hierarchies)?),
            None => None,
        };
        let doors = match self.make_wherever(placeholder.is_some(), false) {
            Ok(doors) => doors,
            Err(failure) => {
                drop(placeholder);
                if let Some(unit) = &self.unit {
                    // Without its only process the scope ends by itself; a slower systemd is helped.
                    let _ = unit.stop();
                }
                return Err(failure);
            }
        };
        Ok(Made { doors, placeholder })
    }

    /// Make the directories that a rootless runtime may make, leaving out the other hierarchies; `None` when none is
    /// left.
    ///
    /// # Errors
    /// As [`Cgroup::create`], but for the lack of permission.
    pub fn create_where_allowed(&mut self) -> Outcome<Option<Made>> {
        let doors = self.make_wherever(false, true)?;
        let any = !self.directories().is_empty();
        Ok(any.then_some(Made { doors, placeholder: None }))
    }

    /// Make every directory, looking for the hierarchies when one is not where it usually is.
    fn make_wherever(&mut self, shared: bool, tolerant: bool) -> Outcome<Doors> {
        if let Some(doors) = self.make_all(shared, tolerant)? {
            return Ok(doors);
        }
        *self = self.located();
        self.make_all(shared, tolerant)?
            .ok_or_else(|| Failure::new("the cgroup hierarchies are mounted in a way nobody understands"))
    }

    /// Make every directory; `None` when one turned out not to be a cgroup.
    ///
    /// - `shared`: they may be there with processes.
    /// - `tolerant`: leave out those that we may not make.
    fn make_all(&mut self, shared: bool, tolerant: bool) -> Outcome<Option<Doors>> {
        let mut made = Vec::new();
        let mut left_out = Vec::new();
        let mut doors = Vec::with_capacity(self.hierarchies.v1.len() + 1);
        let mut one = |directory: &Directory| -> Outcome<bool> {
            let existed = match make::make(directory) {
                Err(_) if directory.v1.is_some() && !directory.mount.is_dir() => return Ok(false),
                Err(error) if tolerant && is_refusal(&error) => {
                    left_out.push(directory.mount.clone());
                    return Ok(true);
                }
                result => result.because(|| format!("cannot make cgroup `{}`", directory.path.display()))?,
            };
            if existed && tolerant && !is_writable(&directory.path) {
                left_out.push(directory.mount.clone());
                return Ok(true);
            }
            if !existed {
                made.push(directory.path.clone());
            }
            if directory.v1.is_some() {
                match make::door(&directory.path, "tasks") {
                    Ok(door) => doors.push(door),
                    Err(error) if is_absent(&error) => return Ok(false),
                    Err(error) => {
                        return Err(error).because(|| format!("cannot open `{}/tasks`", directory.path.display()));
                    }
                }
            } else if self.hierarchies.is_pure_v2() {
                make::hand_down(&directory.mount, &directory.path);
            }
            if existed && !shared { self.refuse_if_used(directory).map(|()| true) } else { Ok(true) }
        };
        let mut result = Ok(true);
        for directory in self.directories() {
            result = one(&directory);
            if !matches!(result, Ok(true)) {
                break;
            }
        }
        match result {
            Ok(true) => {
                self.left_out.extend(left_out);
                Ok(Some(Doors(doors)))
            }
            other => {
                for path in made.iter().rev() {
                    let _ = rustix::fs::rmdir(path);
                }
                other.map(|_| None)
            }
        }
    }

    /// A directory that was there before must be empty and not frozen: a start would hang or mix with others.
    fn refuse_if_used(&self, directory: &Directory) -> Outcome<()> {
        let shown = directory.path.display();
        if !processes_below(&directory.path).is_empty() {
            return Err(Failure::new(format!("container's cgroup is not empty: `{shown}` already contains processes"))
                .hint("choose another `linux.cgroupsPath`, or delete the container that uses it"));
        }
        let freezer = match &directory.v1 {
            Some(v1) => v1.has("freezer").then(|| freezer::Freezer::V1(directory.path.clone())),
            None => Some(freezer::Freezer::V2(directory.path.clone())),
        };
        if freezer.is_some_and(|freezer| freezer.is_ordered().unwrap_or(false)) {
            return Err(Failure::new(format!("container's cgroup unexpectedly frozen: `{shown}`"))
                .hint("thaw or remove it, a container started there would hang"));
        }
        let handed = read(directory.path.join("cgroup.subtree_control")).unwrap_or_default();
        if directory.v1.is_none() && !handed.trim().is_empty() {
            let handed = handed.trim();
            return Err(Failure::new(format!(
                "cgroup `{shown}` hands `{handed}` to others below it and is no place for processes"
            ))
            .hint("let `linux.cgroupsPath` name a directory below it"));
        }
        Ok(())
    }

    /// Write the limits and the device rules.
    ///
    /// # Errors
    /// A limit that this host cannot carry out, with the key that asked for it.
    pub fn apply(&self, resources: &Resources) -> Outcome<()> {
        self.apply_limits(resources)?;
        self.apply_devices(resources)
    }

    /// Write the limits.
    fn apply_limits(&self, resources: &Resources) -> Outcome<()> {
        let writes =
            table::writes(resources, &|controller| self.hierarchies.version_of(controller)).map_err(|error| {
                let failure = Failure::new(error.to_string());
                match error.hint() {
                    Some(hint) => failure.hint(hint),
                    None => failure,
                }
            })?;
        let mut again = Vec::new();
        for write in &writes {
            match self.try_write(write) {
                // It does not fit beside the old value of another file (a limit above the one of memory and swap, a
                // quota below the burst): next time that is new, too.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) && writes.len() > 1 => again.push(write),
                result => self.explain(write, result)?,
            }
        }
        for write in again {
            self.explain(write, self.try_write(write))?;
        }
        Ok(())
    }

    fn directory_of(&self, controller: &str) -> Option<PathBuf> {
        match self.hierarchies.v1_of(controller) {
            Some(hierarchy) if self.is_left_out(&hierarchy.mount) => None,
            Some(hierarchy) => Some(hierarchy.mount.join(&self.path)),
            None => self.v2_directory(),
        }
    }

    fn try_write(&self, write: &table::Write) -> io::Result<()> {
        let directory = self.directory_of(write.controller).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let mut result = write_once(&directory.join(&write.file), &write.value);
        if let (Err(error), Some((other, other_value))) = (&result, &write.instead)
            && is_absent(error)
        {
            result = write_once(&directory.join(other), other_value);
        }
        match result {
            Err(error) if is_absent(&error) && write.optional => Ok(()),
            Err(error) if is_absent(&error) && !self.hierarchies.is_pure_v2() => {
                // On hybrid hosts nothing is handed down in v2 until a limit asks for it.
                let (Some(mount), None) = (&self.hierarchies.v2, self.hierarchies.v1_of(write.controller)) else {
                    return Err(error);
                };
                make::hand_down(mount, &directory);
                write_once(&directory.join(&write.file), &write.value)
            }
            result => result,
        }
    }

    /// Say what a failed write means.
    fn explain(&self, write: &table::Write, result: io::Result<()>) -> Outcome<()> {
        let Err(error) = result else { return Ok(()) };
        if self.directory_of(write.controller).is_none() && !self.left_out.is_empty() {
            return Err(no_permission(write));
        }
        let directory = self.directory_of(write.controller).unwrap_or_default();
        let file = directory.join(&write.file);
        if error.raw_os_error() == Some(libc::EBUSY) && write.file == "memory.limit_in_bytes" {
            // The words of runc, which callers look for.
            let figure = |name: &str| read(directory.join(name)).unwrap_or_default().trim().to_owned();
            let (usage, peak) = (figure("memory.usage_in_bytes"), figure("memory.max_usage_in_bytes"));
            let limit = &write.value;
            return Err(Failure::new(format!(
                "unable to set memory limit to {limit} (current usage: {usage}, peak usage: {peak})"
            )));
        }
        let key = &write.key;
        Err(error)
            .because(|| format!("cannot write `{}` to `{}` for `linux.resources.{key}`", write.value, file.display()))
            .map_err(|failure| match self.hint(write.controller, &file) {
                Some(hint) => failure.hint(hint),
                None => failure,
            })
    }

    /// A remedy for the usual reasons of a failed write.
    fn hint(&self, controller: &str, file: &Path) -> Option<String> {
        if file.exists() {
            return None;
        }
        if self.hierarchies.version_of(controller) == Some(Version::V2) {
            let mount = self.hierarchies.v2.as_ref()?;
            if let Some(parent) = make::first_that_keeps(mount, &self.path, controller) {
                let has_processes = read(parent.join("cgroup.procs")).is_ok_and(|text| !text.is_empty());
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
            let writes = devices::v1_writes(&rules).map_err(|error| Failure::new(error.to_string()))?;
            let mut open: Option<(&str, ManuallyDrop<OwnedFd>)> = None;
            for (name, line) in writes {
                let what = || format!("cannot write `{line}` to `{}/{name}`", directory.display());
                let file = match open.take() {
                    Some(file) if file.0 == name => file,
                    // Closed as in `write_once`.
                    _ => (name, ManuallyDrop::new(make::door(&directory, name).because(what)?)),
                };
                rustix::io::write(&*file.1, line.as_bytes()).because(what)?;
                open = Some(file);
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
        let membership = read(format!("/proc/{pid}/cgroup")).ok()?;
        open_directory(&self.v2_directory()?.join(below(&membership, &self.path)?)).ok()
    }

    /// Whether it is in v1 hierarchies only, is made without systemd, and has no limit for which [`Cgroup::aside`] is
    /// needed.
    pub fn is_plain_v1(&self, resources: &Resources) -> bool {
        self.hierarchies.v2.is_none()
            && self.hierarchies.v1.len() <= DESCRIPTORS_MAX
            && self.unit.is_none()
            && !aside::is_wanted(resources)
    }

    /// The files to join an existing cgroup by: `tasks` of every v1 hierarchy.
    ///
    /// # Errors
    /// A file cannot be opened.
    pub fn doors(&self) -> Outcome<Doors> {
        let open = |this: &Self| -> io::Result<Vec<OwnedFd>> {
            let v1 = this.hierarchies.v1.iter().filter(|v1| !this.is_left_out(&v1.mount));
            v1.map(|v1| make::door(&v1.mount.join(&this.path), "tasks")).collect()
        };
        let doors = match open(self) {
            Err(error) if is_absent(&error) => open(&self.located()),
            result => result,
        };
        doors.map(Doors).because(|| format!("cannot join cgroup `/{}`", self.path))
    }

    /// Add the door of v2, for a process that was not born there.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn add_v2_door(&self, doors: &mut Doors) -> Outcome<()> {
        if let Some(path) = self.v2_directory() {
            let door = make::door(&path, "cgroup.procs")
                .because(|| format!("cannot open `{}/cgroup.procs`", path.display()))?;
            doors.0.push(door);
        }
        Ok(())
    }

    /// The same for places below the container's directory, in every hierarchy.
    ///
    /// - `place`: the path below, from the controllers of a v1 hierarchy, or from `None` for v2.
    ///
    /// # Errors
    /// There is no such cgroup.
    pub fn doors_below<'a>(&self, place: impl Fn(Option<&[String]>) -> &'a str) -> Outcome<Doors> {
        let mut doors = Vec::new();
        for directory in self.located().directories() {
            let name = if directory.v1.is_some() { "tasks" } else { "cgroup.procs" };
            let controllers = directory.v1.as_ref().map(|v1| v1.controllers.as_slice());
            let path = directory.path.join(place(controllers));
            let door = make::door(&path, name)
                // The words of runc, which callers look for.
                .because(|| {
                    format!("cannot join: adding pid {} to {}/cgroup.procs", std::process::id(), path.display())
                })
                .or_hint("--cgroup names a cgroup that exists below the container's own")?;
            doors.push(door);
        }
        Ok(Doors(doors))
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

    /// Kill every process in the cgroup and wait until it is empty.
    ///
    /// # Errors
    /// Some process is still there after ten seconds, which means it hangs inside the kernel.
    pub fn kill(&self) -> Outcome<()> {
        let deadline = Instant::now() + EMPTY_WITHIN;
        let mut pause = Duration::from_micros(200);
        let this = self.located();
        loop {
            let left = this.processes();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Failure::new(format!("processes {left:?} do not die"))
                    .hint("they hang inside the kernel (state D); see /proc/PID/stack"));
            }
            let at_once = this.v2_directory().is_some_and(|path| write_file(&path.join("cgroup.kill"), "1").is_ok());
            if !at_once || pause > Duration::from_millis(5) {
                this.signal_all(libc::SIGKILL);
            }
            // A frozen process of v1 dies when it is let go.
            this.thaw();
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Remove the directories, with those the container made below them; a systemd unit is stopped first.
    ///
    /// # Errors
    /// One stays busy or cannot be removed.
    pub fn remove(&self) -> Outcome<()> {
        let stopped = match &self.unit {
            // systemd would ask its processes to end, and wait.
            Some(unit) => self.kill().and_then(|()| unit.stop()),
            None => Ok(()),
        };
        // A systemd that cannot be asked any more does not keep a container: once its cgroup is gone, so is the scope.
        let removed = self.remove_directories().map_err(|failure| stopped.err().unwrap_or(failure))?;
        if removed == Removed::Absent && !self.hierarchies.is_pure_v2() {
            let located = self.located();
            if located.hierarchies.v1 != self.hierarchies.v1 {
                located.remove_directories()?;
            }
        }
        Ok(())
    }

    /// Whether its processes sleep until somebody frees memory, the OOM killer being disabled (v1 only).
    pub fn waits_for_memory(&self) -> bool {
        let Some(v1) = self.hierarchies.v1_of("memory") else { return false };
        let text = std::fs::read_to_string(v1.mount.join(&self.path).join("memory.oom_control")).unwrap_or_default();
        ["oom_kill_disable 1", "under_oom 1"].iter().all(|wanted| text.lines().any(|line| line == *wanted))
    }

    /// Remove every directory; `Absent` when some v1 hierarchy had none.
    fn remove_directories(&self) -> Outcome<Removed> {
        let mut all = Removed::Now;
        let remove = |path: &Path| {
            make::remove_tree(path)
                .because(|| format!("cannot remove cgroup `{}`", path.display()))
                .or_hint("a process is still in it: `gantry-runtime delete --force ID`")
        };
        for v1 in self.hierarchies.v1.iter().filter(|v1| !self.is_left_out(&v1.mount)) {
            if remove(&v1.mount.join(&self.path))? == Removed::Absent {
                all = Removed::Absent;
            }
        }
        if let Some(path) = self.v2_directory() {
            remove(&path)?;
        }
        Ok(all)
    }

    /// Memory figures of the container.
    pub fn account(&self) -> Account {
        let Some(directory) = self.directory_of("memory") else {
            return Account::default();
        };
        let number = |file: &str| -> Option<u64> { read(directory.join(file)).ok()?.trim().parse().ok() };
        let counter = |file: &str| -> u64 {
            let text = read(directory.join(file)).unwrap_or_default();
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

/// Whether a rootless runtime may do without: the kernel or a read-only mount refuses.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EROFS))
}

fn is_writable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

/// A limit of a container that has no cgroup where it would be set; in words that callers of runc look for.
fn no_permission(write: &table::Write) -> Failure {
    let text = "rootless needs no limits + no cgrouppath when no permission is granted for cgroups";
    Failure::new(format!("cannot set `linux.resources.{}`: {text}", write.key))
        .hint("let a cgroup with this controller be delegated to the user, or remove the limit")
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

/// Where below `path` a process is in the unified hierarchy, from its `/proc/PID/cgroup`.
fn below<'a>(membership: &'a str, path: &str) -> Option<&'a str> {
    let place = membership.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let rest = place.strip_prefix(path)?.strip_prefix('/')?;
    (!rest.split('/').any(|part| part == "..")).then_some(rest)
}

/// One file of a cgroup: opened, written at once, closed.
fn write_file(path: &Path, value: &str) -> io::Result<()> {
    write_open(&rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?, value)
}

/// The same, once in the life of a process: closing is left to its end, its next program, or the supervisor, which
/// closes all that it does not need.
fn write_once(path: &Path, value: &str) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    write_open(&ManuallyDrop::new(file), value)
}

fn write_open(file: &OwnedFd, value: &str) -> io::Result<()> {
    loop {
        match rustix::io::write(file, value.as_bytes()) {
            Err(Errno::INTR) => {}
            result => return result.map(drop).map_err(io::Error::from),
        }
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
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
    fn what_to_do_about_a_parent() {
        let remedy = |has_processes| not_handed_down("memory", Path::new("/cg/a"), has_processes);
        assert_eq!(remedy(false), "echo +memory > /cg/a/cgroup.subtree_control");
        assert!(remedy(true).contains("`/cg/a` has processes of its own"), "{}", remedy(true));
    }
}
