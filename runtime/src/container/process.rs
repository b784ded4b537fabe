//! The last steps to a program, shared by a container's first process and by `exec`.
//!
//! Order matters: the working directory before the user changes and again after, the bounding set while `CAP_SETPCAP`
//! is there, user and groups before capabilities, the filter last of all (or just before the capabilities go when it
//! needs the privilege), so that it has to allow as little as possible beyond what the program needs.

use super::capabilities::{self, Sets};
use super::channel::Channel;
use super::labels;
use super::mounts::copy_of;
use super::rlimits;
use super::scheduling;
use crate::config::{Process, Rlimit};
use crate::error::{Because, Failure, InStep, NOT_EXECUTABLE, NOT_FOUND, Outcome};
use crate::files;
use crate::seccomp::{Filter, notify};
use crate::sys::{process, seccomp, signal, tty};
use rustix::fs::{Mode, OFlags};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS_MAGIC: u64 = 0x1cd1;

/// Longest `/etc/passwd` of an image that is searched for a home directory.
const PASSWD_BYTES_MAX: u64 = 1 << 20;

/// Everything needed to become the program.
#[derive(Debug)]
pub struct Program<'a> {
    /// From `config.json` or the command line.
    pub process: &'a Process,
    /// Compiled filter.
    pub filter: Option<&'a Filter>,
    /// Descriptors 3 to 3 + this many stay open.
    pub preserve_fds: u32,
    /// How many of these, the first ones, are sockets that a service manager opened; the program is told.
    pub listen_fds: u32,
    /// Limit of open files to restore.
    pub open_files: Option<(u64, u64)>,
    /// Signals that the caller had us ignore, as [`signal::ignored`] gives them.
    pub ignored: u64,
    /// Session keyring to join, unless the caller keeps its own.
    pub keyring: Option<&'a str>,
    /// The current directory is the container's root already.
    pub at_root: bool,
    /// This process has the capabilities that the runtime was started with: it has entered no user namespace.
    pub same_rights: bool,
}

/// When a resource limit is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    BeforeStart,
    Last,
}

/// Open files that we need ourselves from the start to the program: sockets, hooks, descriptors to keep.
const OPEN_FILES_MIN: u64 = 64;

/// A program found and ready to be executed.
#[derive(Debug)]
pub struct Ready {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    /// The working directory was entered as root already.
    in_cwd: bool,
}

impl Ready {
    /// The environment of the program.
    pub fn environment(&self) -> &[CString] {
        &self.environment
    }
}

impl Program<'_> {
    /// Find the program and enter its directory, as far as root may. Fails before anything was started.
    ///
    /// # Errors
    /// No such program, not executable.
    pub fn prepare(&self) -> Outcome<Ready> {
        let in_cwd = match self.enter_directory() {
            Ok(()) => true,
            Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => false,
            Err(error) => {
                return Err(error)
                    .because(|| format!("cannot enter working directory `{}`", self.process.cwd))
                    .map_err(|failure| failure.code(NOT_EXECUTABLE));
            }
        };
        rlimits::restore_open_files(self.open_files).in_step("resource limits")?;
        rlimits::apply(&self.limits(When::BeforeStart)).in_step("resource limits")?;
        let environment = self.environment();
        let search = environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or("");
        let path = find_program(self.process.args.first().map_or("", String::as_str), search)?;
        let c_strings = |list: &[String]| -> Outcome<Vec<CString>> {
            list.iter()
                .map(|text| CString::new(text.as_str()).because(|| format!("`{text}` contains a zero byte")))
                .collect()
        };
        Ok(Ready {
            path: CString::new(path).because(|| "the program's path contains a zero byte".to_owned())?,
            arguments: c_strings(&self.process.args)?,
            environment: c_strings(&environment)?,
            in_cwd,
        })
    }

    /// Whether there is no path to follow: where the pivot has left us is where the program starts.
    fn stays_at_root(&self) -> bool {
        self.at_root && self.process.cwd == "/"
    }

    fn enter_directory(&self) -> Result<(), rustix::io::Errno> {
        if self.stays_at_root() { Ok(()) } else { rustix::process::chdir(self.process.cwd.as_str()) }
    }

    /// The resource limits that are set at a point. Most are set before the start, so that `create` tells which cannot
    /// be; those that we ourselves might not survive come last.
    fn limits(&self, when: When) -> Vec<Rlimit> {
        let last = |limit: &Rlimit| match limit.kind.as_str() {
            "RLIMIT_AS" | "RLIMIT_DATA" | "RLIMIT_STACK" | "RLIMIT_CPU" | "RLIMIT_FSIZE" => true,
            "RLIMIT_NOFILE" => limit.soft < OPEN_FILES_MIN,
            _ => false,
        };
        self.process.rlimits.iter().filter(|limit| last(limit) == (when == When::Last)).cloned().collect()
    }

    /// The environment, with `HOME` from the container's `/etc/passwd` when the bundle gives none.
    fn environment(&self) -> Vec<String> {
        let mut list = self.process.env.clone();
        if self.listen_fds > 0 {
            // The protocol of systemd, sd_listen_fds(3).
            let process = std::process::id();
            list.extend([format!("LISTEN_FDS={}", self.listen_fds), format!("LISTEN_PID={process}")]);
        }
        if !list.iter().any(|entry| entry.starts_with("HOME=")) {
            // The image's file: it may be anything.
            let passwd = files::read_of_image("/etc/passwd", PASSWD_BYTES_MAX).unwrap_or_default();
            let passwd = String::from_utf8_lossy(&passwd);
            list.push(format!("HOME={}", home_of(&passwd, self.process.user.uid)));
        }
        list
    }

    /// Turn into the program. Returns only on failure.
    ///
    /// - `channel`: to the runtime, for the listener of the filter.
    /// - `wait`: until it may; what comes after cannot talk to anybody.
    ///
    /// # Errors
    /// A step of isolation fails, or the program cannot be executed.
    pub fn become_it(
        &self,
        ready: &Ready,
        channel: &Channel,
        wait: impl FnOnce() -> Outcome<()>,
    ) -> Outcome<std::convert::Infallible> {
        let process = self.process;
        labels::apply(process)?;
        if let Some(name) = self.keyring {
            self.join_keyring(name)?;
        }
        rlimits::apply(&self.limits(When::Last)).in_step("resource limits")?;
        scheduling::apply(process)?;
        self.give_stdio();
        let sets = self.change_user().in_step("credentials")?;
        process::set_umask(process.user.umask.unwrap_or(0o022));
        process::close_on_exec_from(3 + self.preserve_fds)
            .because(|| "cannot close inherited descriptors".to_owned())
            .in_step("descriptors")?;
        wait()?;
        signal::stop_ignoring(self.ignored);
        signal::set_mask(&signal::SignalSet::empty())
            .because(|| "cannot reset the signal mask".to_owned())
            .in_step("signals")?;
        if ready.in_cwd && !self.stays_at_root() {
            check_working_directory()?;
        }
        // Without no_new_privs, loading a filter takes CAP_SYS_ADMIN, which is about to go.
        let filter_early = !process.no_new_privileges;
        if filter_early && self.filter.is_some() {
            sets.raise_all(process.user.uid).in_step("seccomp")?;
            self.load_filter(channel)?;
        }
        sets.wanted.apply().in_step("credentials")?;
        if !ready.in_cwd {
            rustix::process::chdir(process.cwd.as_str())
                .because(|| format!("cannot enter working directory `{}`", process.cwd))
                .in_step("working directory")?;
            check_working_directory()?;
        }
        if process.no_new_privileges {
            process::set_no_new_privs()
                .because(|| "cannot set no_new_privs".to_owned())
                .in_step("no new privileges")?;
        }
        if !filter_early {
            self.load_filter(channel)?;
        }
        let error = process::execve(&ready.path, &ready.arguments, &ready.environment);
        let path = ready.path.to_string_lossy();
        let hint = match error.raw_os_error() {
            Some(libc::ENOENT) => "the file exists, so its interpreter or dynamic linker is missing in the image",
            Some(libc::ENOEXEC) => "is the image built for this processor, or does a script lack its `#!` line?",
            Some(libc::EACCES) => "the user of the process may not execute it, or its mount is noexec",
            _ => "see execve(2)",
        };
        Err(Failure {
            step: "exec".into(),
            what: format!("exec: \"{path}\""),
            cause: Some(plain(&error)),
            hint: Some(hint.to_owned()),
            code: NOT_EXECUTABLE,
        })
    }

    /// In the process of a hook that the image provides: no more rights than the program will have.
    ///
    /// # Errors
    /// A step of isolation fails.
    pub fn restrict(&self) -> Outcome<()> {
        let filter_early = !self.process.no_new_privileges;
        let sets = self.change_user().in_step("credentials")?;
        if filter_early && self.filter.is_some() {
            sets.raise_all(self.process.user.uid).in_step("seccomp")?;
            self.load_quiet_filter()?;
        }
        sets.wanted.apply().in_step("credentials")?;
        if !filter_early {
            process::set_no_new_privs().because(|| "cannot set no_new_privs".to_owned())?;
            self.load_quiet_filter()?;
        }
        Ok(())
    }

    /// The filter for a process that no agent knows of: calls that one would decide about answer `ENOSYS`.
    fn load_quiet_filter(&self) -> Outcome<()> {
        let Some(filter) = self.filter else {
            return Ok(());
        };
        seccomp::set_filter(&filter.program, filter.flags_without_agent())
            .map(drop)
            .because(|| "cannot load the filter".to_owned())
            .in_step("seccomp")
    }

    fn load_filter(&self, channel: &Channel) -> Outcome<()> {
        let Some(filter) = self.filter else {
            return Ok(());
        };
        if filter.notifies {
            return notify::load(filter, channel).in_step("seccomp");
        }
        seccomp::set_filter(&filter.program, filter.flags)
            .map(drop)
            .because(|| "cannot load the filter".to_owned())
            .or_hint("is seccomp enabled in this kernel, and does it know the `flags` of the profile?")
            .in_step("seccomp")
    }

    fn join_keyring(&self, name: &str) -> Outcome<()> {
        let name = CString::new(name).because(|| "keyring name".to_owned())?;
        match process::new_session_keyring(&name) {
            Err(error) if error.raw_os_error() != Some(libc::ENOSYS) => Err(error)
                .because(|| "cannot make a session keyring".to_owned())
                .or_hint("raise kernel.keys.maxkeys, or use --no-new-keyring")
                .in_step("session keyring"),
            _ => Ok(()),
        }
    }

    /// Let the user open `/dev/stdout` and the like: pipes made by the caller belong to root.
    fn give_stdio(&self) {
        let uid = self.process.user.uid;
        if uid == 0 {
            return;
        }
        for number in 0..3 {
            let Some(fd) = process::inherited(number) else {
                continue;
            };
            let is_null = rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_rdev == rustix::fs::makedev(1, 3));
            if !is_null {
                // Not ours to give (a host's file in a user namespace): the program can still read and write it.
                let _ = rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None);
            }
        }
    }

    /// Become the user, keeping the capabilities for what is left to do.
    fn change_user(&self) -> Outcome<Capable> {
        let user = &self.process.user;
        let ours = match self.same_rights {
            true => process::permitted_at_start(),
            false => process::capget().map(|[_, ours, _]| ours),
        };
        let ours = ours.because(|| "cannot read the capabilities".to_owned())?;
        let wanted = match &self.process.capabilities {
            Some(config) => capabilities::grant(config, ours).sets,
            None => Sets::default(),
        };
        wanted.limit_bounding()?;
        // Root stays root, and with it its capabilities.
        let changes_user = user.uid != 0;
        if changes_user {
            process::set_keep_caps(true).because(|| "cannot keep capabilities over the change of user".to_owned())?;
        }
        set_groups(&user.additional_gids)?;
        process::set_gid(user.gid)
            .because(|| format!("cannot become group {}", user.gid))
            .or_hint("is the group mapped in the user namespace?")?;
        process::set_uid(user.uid)
            .because(|| format!("cannot become user {}", user.uid))
            .or_hint("is the user mapped in the user namespace?")?;
        if changes_user {
            process::set_keep_caps(false).because(|| "cannot stop keeping capabilities".to_owned())?;
        }
        Ok(Capable { wanted, ours })
    }
}

/// Between the change of user and the loss of capabilities.
struct Capable {
    /// What the program gets.
    wanted: Sets,
    /// What is permitted until then.
    ours: u64,
}

impl Capable {
    /// The change to an ordinary user has emptied the effective set; what is permitted is still there to raise from.
    fn raise_all(&self, uid: u32) -> Outcome<()> {
        if uid == 0 {
            return Ok(());
        }
        process::capset(self.ours, self.ours, 0).because(|| "cannot use the capabilities".to_owned())
    }
}

/// A directory outside the root, reached through a leaked descriptor, has no path here.
fn check_working_directory() -> Outcome<()> {
    std::env::current_dir()
        .map(drop)
        .because(|| "the working directory is outside the root filesystem".to_owned())
        .in_step("working directory")
}

/// Capabilities a process asks for and will not get, in words for the operator.
///
/// - `in_user_namespace`: it is root there, whatever the runtime lacks.
pub fn capability_warnings(wanted: &Process, in_user_namespace: bool) -> Vec<String> {
    let ours = match process::permitted_at_start() {
        Ok(ours) if !in_user_namespace => ours,
        _ => u64::MAX,
    };
    let granted = wanted.capabilities.as_ref().map(|config| capabilities::grant(config, ours));
    granted.map_or_else(Vec::new, |granted| granted.warnings)
}

/// Supplementary groups; a user namespace may deny even an empty list, which is then empty already.
fn set_groups(groups: &[u32]) -> Outcome<()> {
    match process::set_groups(groups) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && groups.is_empty() => {
            let denied = fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny");
            if denied { Ok(()) } else { Err(error).because(|| "cannot drop the groups".to_owned()) }
        }
        result => result.because(|| format!("cannot join groups {groups:?}")),
    }
}

/// An I/O error in the plain words of other runtimes, which callers look for.
pub fn plain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory".to_owned(),
        Some(libc::EACCES) => "permission denied".to_owned(),
        Some(libc::ENOEXEC) => "exec format error".to_owned(),
        _ => error.to_string(),
    }
}

/// The home directory of a user in the text of an `/etc/passwd`.
fn home_of(passwd: &str, uid: u32) -> &str {
    let home = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let number = fields.nth(2)?.parse::<u32>().ok()?;
        (number == uid).then(|| fields.nth(2)).flatten()
    });
    home.filter(|home| !home.is_empty()).unwrap_or("/")
}

/// Where a command is, searching `PATH` as `execvp` would.
fn find_program(name: &str, search: &str) -> Outcome<String> {
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => Ok(name.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Failure::new(format!("exec: \"{name}\": stat {name}: no such file or directory"))
                    .hint("is the path right inside the image?")
                    .code(NOT_FOUND))
            }
            Err(error) => Err(Failure::new(format!("exec: \"{name}\": {}", plain(&error)))
                .hint("the file must be a regular file with an execute bit")
                .code(NOT_EXECUTABLE)),
        };
    }
    let mut refused = None;
    for directory in search.split(':').filter(|directory| directory.starts_with('/')) {
        let path = format!("{}/{name}", directory.trim_end_matches('/'));
        match executable(Path::new(&path)) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => refused = Some(path),
            Err(_) => {}
        }
    }
    match refused {
        Some(path) => Err(Failure::new(format!("exec: \"{path}\": permission denied"))
            .hint("the file must be a regular file with an execute bit")
            .code(NOT_EXECUTABLE)),
        None => Err(Failure::new(format!("exec: \"{name}\": executable file not found in $PATH"))
            .hint(format!("PATH in the container is `{search}`"))
            .code(NOT_FOUND)),
    }
}

fn executable(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        // What `execve` says, and what callers look for.
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(())
}

/// A new terminal of the container: its master side, to hand away, while the other is made standard input, output,
/// error and controlling terminal of this session.
///
/// - `dev`: the container's `/dev`.
///
/// # Errors
/// The container has no devpts mounted there.
pub fn open_terminal(dev: &OwnedFd, process: &Process) -> Outcome<(OwnedFd, OwnedFd)> {
    let what = || "cannot open a terminal in the container".to_owned();
    let hint = "`process.terminal` needs a devpts mount on /dev/pts";
    let resolve = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let pts = rustix::fs::openat2(dev, "pts", flags, Mode::empty(), resolve).because(what).or_hint(hint)?;
    // Before anything is opened there: opening is an act with devices and pipes.
    let found = rustix::fs::fstatfs(&pts).because(what)?;
    if found.f_type as u64 != DEVPTS_MAGIC {
        return Err(Failure::new("`/dev/pts` of the container is not a devpts").hint(hint));
    }
    let resolve = resolve | rustix::fs::ResolveFlags::NO_XDEV;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::openat2(&pts, "ptmx", flags, Mode::empty(), resolve).because(what).or_hint(hint)?;
    let slave = tty::open_peer(master.as_fd()).because(what)?;
    let user = rustix::fs::Uid::from_raw(process.user.uid);
    rustix::fs::fchown(&slave, Some(user), None).because(|| "cannot give the terminal to its user".to_owned())?;
    if let Some(size) = process.console_size.as_ref().filter(|size| size.height > 0 && size.width > 0) {
        let size = tty::Size { rows: size.height, columns: size.width };
        tty::set_size(master.as_fd(), size).because(|| "cannot set the size of the terminal".to_owned())?;
    }
    Ok((master, slave))
}

/// Make a terminal standard input, output and error, and the controlling one.
///
/// # Errors
/// This process leads no session.
pub fn take_terminal(slave: &OwnedFd) -> Outcome<()> {
    for number in 0..3 {
        process::dup_to(slave.as_fd(), number).because(|| "cannot use the terminal".to_owned())?;
    }
    tty::make_controlling(slave.as_fd()).because(|| "cannot make the terminal the controlling one".to_owned())
}

/// A mount of the terminal's slave side, for `/dev/console`.
///
/// # Errors
/// The mount calls fail.
pub fn console_mount(slave: &OwnedFd) -> Outcome<OwnedFd> {
    copy_of(slave.as_fd()).because(|| "cannot mount the terminal".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/var/www:\nnone:x:5:5:::\n";
        for (uid, want) in [(0, "/root"), (33, "/var/www"), (5, "/"), (77, "/")] {
            assert_eq!(home_of(passwd, uid), want, "{uid}");
        }
    }

    #[test]
    fn programs() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name).display().to_string();
        for (name, mode) in [("run", 0o755), ("data", 0o644)] {
            fs::write(path(name), "").expect("a file");
            fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).expect("its mode");
        }
        let search = format!("/nowhere:relative:{}", dir.path().display());
        assert_eq!(find_program("run", &search), Ok(path("run")));
        assert_eq!(find_program(&path("run"), ""), Ok(path("run")));
        for (name, want) in [
            ("data".to_owned(), format!("exec: \"{}\": permission denied", path("data"))),
            (path("data"), format!("exec: \"{}\": permission denied", path("data"))),
            ("none".to_owned(), "exec: \"none\": executable file not found in $PATH".to_owned()),
            ("/none".to_owned(), "exec: \"/none\": stat /none: no such file or directory".to_owned()),
        ] {
            assert_eq!(find_program(&name, &search).map_err(|error| error.to_string()), Err(want));
        }
    }
}
