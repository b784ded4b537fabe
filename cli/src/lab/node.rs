//! PID 1 of a node: makes one machine out of namespaces, runs the node's daemon, reaps orphans.
//!
//! Shared with the host are the kernel, the clock and the root file system, but for `/run`, `/var/lib`, `/var/log`,
//! `/dev/shm`, `/proc`, `/sys` and three files of `/etc`. Of these only `/var/lib/gantry` outlives the node.

use super::cgroup::{Hierarchy, Join};
use super::error::LabError;
use super::helper::{self, BootFile, LOG_BYTES_MAX};
use super::sys;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A crash of the daemon costs the least when it is back at once.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A daemon that ran this long was well.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// What the node is to be.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Boot {
    /// Its name.
    pub name: String,
    /// Its cgroups.
    pub join: Join,
    /// Mounted again inside, seen from the node's own cgroup.
    pub hierarchies: Vec<Hierarchy>,
    /// Becomes `/var/lib/gantry`.
    pub disk: PathBuf,
    /// Becomes `/run/gantry`.
    pub run: PathBuf,
    /// Holds `hosts`, `hostname` and `resolv.conf`.
    pub etc: PathBuf,
    /// What is mounted below these belongs to others.
    pub foreign: Vec<PathBuf>,
    /// The node's daemon: program and arguments.
    pub daemon: Vec<String>,
}

/// Runs as PID 1; returns only when the node could not be made.
pub fn run(file: &BootFile) -> u8 {
    let boot = match file.read::<Boot>().and_then(|boot| set_up(&boot).map(|()| boot)) {
        Ok(boot) => boot,
        Err(error) => return helper::not_ready(&error),
    };
    if helper::ready().is_err() {
        return crate::error::REFUSED;
    }
    match supervise(&boot) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("lab-node: {}", crate::error::CliError::chain(&error).message);
            crate::error::REFUSED
        }
    }
}

fn set_up(boot: &Boot) -> Result<(), LabError> {
    boot.join.enter_root()?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP)
        .map_err(LabError::kernel("make a cgroup namespace"))?;
    boot.join.enter_leaf()?;
    nix::unistd::sethostname(&boot.name).map_err(LabError::kernel("set the host name"))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(LabError::kernel("keep mounts private to the node"))?;
    // Taken before anything is detached or covered.
    let disk = take(&boot.disk)?;
    let run = take(&boot.run)?;
    let etc = [
        ("/etc/hosts", take(&boot.etc.join("hosts"))?),
        ("/etc/hostname", take(&boot.etc.join("hostname"))?),
        ("/etc/resolv.conf", take(&boot.etc.join("resolv.conf"))?),
    ];
    let links = cgroup_links();
    detach_foreign(&boot.foreign)?;
    fresh("proc", "/proc", "")?;
    fresh("sysfs", "/sys", "")?;
    mount_cgroups(&boot.hierarchies, &links)?;
    if Path::new("/sys/fs/bpf").is_dir() {
        drop(fresh("bpf", "/sys/fs/bpf", "")); // a kernel without it has nothing to pin
    }
    fresh("tmpfs", "/dev/shm", "mode=1777")?;
    if Path::new("/dev/mqueue").is_dir() {
        drop(fresh("mqueue", "/dev/mqueue", "")); // a kernel without message queues
    }
    fresh("tmpfs", "/run", "mode=755")?;
    fresh("tmpfs", "/var/lib", "mode=755")?;
    fresh("tmpfs", "/var/log", "mode=755")?;
    for folder in ["/run/lock", "/run/gantry", "/var/lib/gantry"] {
        fs::create_dir(folder).map_err(LabError::file("make", folder))?;
    }
    put(&disk, Path::new("/var/lib/gantry"))?;
    put(&run, Path::new("/run/gantry"))?;
    etc.iter().try_for_each(|(target, tree)| put_file(tree, Path::new(target)))
}

/// A detached copy of what is at `path`, to be put elsewhere later.
fn take(path: &Path) -> Result<OwnedFd, LabError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(rustix::fs::CWD, path, flags).map_err(|error| LabError::file("take", path)(error.into()))
}

fn put(tree: &OwnedFd, target: &Path) -> Result<(), LabError> {
    move_mount(tree, "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|error| LabError::file("mount on", target)(error.into()))
}

/// Covers a file of `/etc`. A host that lacks the file goes without: none is made on its disk. One that is a link
/// into `/run` (a resolver's) gets its target there, since that `/run` is the node's own.
fn put_file(tree: &OwnedFd, path: &Path) -> Result<(), LabError> {
    let target = match fs::read_link(path) {
        Ok(link) => {
            let joined = path.parent().unwrap_or(path).join(link);
            let target = normal(&joined);
            if let Some(folder) = target.parent().filter(|_| target.starts_with("/run")) {
                fs::create_dir_all(folder).map_err(LabError::file("make", folder))?;
                fs::write(&target, "").map_err(LabError::file("make", &target))?;
            }
            target
        }
        Err(_) => path.to_owned(),
    };
    if target.exists() { put(tree, &target) } else { Ok(()) }
}

/// `/etc/../run/x` is `/run/x`; no link is followed.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(out.pop()),
            std::path::Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// Lets go of what others have mounted, so that their namespaces, loop devices and file systems can be removed
/// while the node lives.
fn detach_foreign(folders: &[PathBuf]) -> Result<(), LabError> {
    let file = "/proc/self/mountinfo";
    let text = fs::read_to_string(file).map_err(LabError::file("read", file))?;
    for target in foreign(&text, folders).into_iter().rev() {
        match umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Gone with one above it, or under one that cannot be reached any more.
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(LabError::file("detach", &target)(error.into())),
        }
    }
    Ok(())
}

/// Mount points in a mountinfo text that lie in one of the folders, in the order in which they were made.
fn foreign(mountinfo: &str, folders: &[PathBuf]) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    points.filter(|point| folders.iter().any(|folder| point.starts_with(folder))).collect()
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut out = text.to_owned();
    for (code, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        out = out.replace(code, plain);
    }
    PathBuf::from(out)
}

fn fresh(kind: &str, target: &str, options: &str) -> Result<(), LabError> {
    let flags =
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | if kind == "tmpfs" { MsFlags::empty() } else { MsFlags::MS_NOEXEC };
    mount(Some(kind), target, Some(kind), flags, Some(options))
        .map_err(|error| LabError::Kernel { action: format!("mount {kind} on {target}"), source: error.into() })
}

/// `cpu -> cpu,cpuacct` and the like.
fn cgroup_links() -> Vec<(PathBuf, PathBuf)> {
    let entries = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok().map(|target| (entry.path(), target))).collect()
}

fn mount_cgroups(hierarchies: &[Hierarchy], links: &[(PathBuf, PathBuf)]) -> Result<(), LabError> {
    let top = Path::new("/sys/fs/cgroup");
    if !hierarchies.iter().any(|hierarchy| hierarchy.mount == top) {
        fresh("tmpfs", "/sys/fs/cgroup", "mode=755")?;
    }
    for Hierarchy { mount, v1 } in hierarchies {
        fs::create_dir_all(mount).map_err(LabError::file("make", mount))?;
        let (kind, options) = v1.as_deref().map_or(("cgroup2", ""), |options| ("cgroup", options));
        fresh(kind, &mount.display().to_string(), options)?;
    }
    for (link, target) in links {
        drop(symlink(target, link)); // a convenience only
    }
    Ok(())
}

/// Keeps the daemon running and reaps what it or anybody leaves behind.
fn supervise(boot: &Boot) -> Result<(), LabError> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block().map_err(LabError::kernel("block SIGCHLD"))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(LabError::kernel("make a signal descriptor"))?;
    let mut daemon = Daemon { pid: None, since: Instant::now(), due: Some(Instant::now()), backoff: Duration::ZERO };
    loop {
        if daemon.due.is_some_and(|due| due <= Instant::now()) {
            daemon.start(&boot.daemon);
        }
        let wait = daemon.due.map_or(HEALTHY_AFTER, |due| due.saturating_duration_since(Instant::now()));
        // Rounded up: a wait of nothing would spin.
        let timeout = PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(LabError::kernel("wait for children")(error)),
        }
        while let Ok(Some(_)) = signals.read_signal() {}
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(_) => break,
                Ok(status) => daemon.ended(status),
            }
        }
        bound_log();
    }
}

/// The node's daemon: runs (`pid`), or is due to be started.
#[derive(Debug)]
struct Daemon {
    pid: Option<i32>,
    since: Instant,
    due: Option<Instant>,
    backoff: Duration,
}

impl Daemon {
    fn start(&mut self, argv: &[String]) {
        let Some((program, arguments)) = argv.split_first() else {
            self.due = None; // a node without a daemon
            return;
        };
        let mut command = Command::new(program);
        command.args(arguments).current_dir("/").stdin(Stdio::null());
        sys::prepare(&mut command, false);
        self.since = Instant::now();
        match command.spawn() {
            Ok(child) => (self.pid, self.due) = (Some(child.id() as i32), None),
            Err(error) => {
                eprintln!("lab-node: cannot run {program}: {error}");
                self.again();
            }
        }
    }

    fn ended(&mut self, status: WaitStatus) {
        if status.pid().map(nix::unistd::Pid::as_raw) != self.pid || self.pid.is_none() {
            return; // an orphan
        }
        self.pid = None;
        match status {
            WaitStatus::Exited(_, code) => eprintln!("lab-node: the daemon exited with {code}"),
            WaitStatus::Signaled(_, signal, _) => eprintln!("lab-node: the daemon was ended by {signal}"),
            _ => {}
        }
        self.again();
    }

    fn again(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.since) >= HEALTHY_AFTER {
            self.backoff = Duration::ZERO;
        }
        self.due = Some(now + self.backoff);
        if !self.backoff.is_zero() {
            eprintln!("lab-node: starting it again in {:.1} s", self.backoff.as_secs_f64());
        }
        self.backoff = next_backoff(self.backoff);
    }
}

/// At once, then 0.1 s doubling to 30 s.
fn next_backoff(now: Duration) -> Duration {
    if now.is_zero() { BACKOFF_MIN } else { (now * 2).min(BACKOFF_MAX) }
}

/// Standard error is the log: when it has grown too long it begins anew, and says so.
fn bound_log() {
    let log = io::stderr();
    if rustix::fs::fstat(&log).is_ok_and(|found| found.st_size as u64 > LOG_BYTES_MAX)
        && rustix::fs::ftruncate(&log, 0).is_ok()
    {
        eprintln!("lab-node: the log was over {} MiB and begins anew here", LOG_BYTES_MAX >> 20);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_mounted_is_found() {
        let text = "\
22 27 0:21 / /proc rw - proc proc rw
23 27 0:22 / /sys rw - sysfs sysfs rw
40 27 0:4 net:[1] /run/netns/a rw - nsfs nsfs rw
41 27 8:1 / /var/lib/gantry rw - ext4 /dev/sdb rw
42 27 8:1 / /var/lib/a\\040b rw - ext4 /dev/sdb rw
43 27 8:1 / /running rw - ext4 /dev/sdb rw
44 27 8:1 / /home rw - ext4 /dev/sdb rw
";
        let folders = ["/proc", "/sys", "/run", "/var/lib"].map(PathBuf::from);
        let found = foreign(text, &folders);
        let want = ["/proc", "/sys", "/run/netns/a", "/var/lib/gantry", "/var/lib/a b"].map(PathBuf::from);
        assert_eq!(found, want);
    }

    #[test]
    fn links_into_run_are_resolved_by_their_text() {
        for (given, want) in [
            ("/etc/../run/systemd/resolve/stub-resolv.conf", "/run/systemd/resolve/stub-resolv.conf"),
            ("/etc/./x", "/etc/x"),
            ("/../../x", "/x"),
        ] {
            assert_eq!(normal(Path::new(given)), Path::new(want));
        }
    }

    #[test]
    fn the_first_restart_is_at_once_and_the_pause_is_bounded() {
        let mut pauses = vec![Duration::ZERO];
        for _ in 0..12 {
            pauses.push(next_backoff(pauses[pauses.len() - 1]));
        }
        let ms: Vec<u128> = pauses.iter().map(Duration::as_millis).collect();
        assert_eq!(ms[..5], [0, 100, 200, 400, 800]);
        assert_eq!(ms[12], 30_000);
    }
}
