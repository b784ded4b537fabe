//! Which namespaces a container gets new, and which it joins.

use crate::config::{Config, Process};
use crate::error::{Because, Failure, InStep, Outcome};
use crate::rootless;
use crate::sys::{clone, process};
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A kind of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Users; first, because it owns the others.
    User,
    /// Processes.
    Pid,
    /// Network.
    Network,
    /// System V IPC and POSIX queues.
    Ipc,
    /// Host name.
    Uts,
    /// Clocks.
    Time,
    /// Cgroup root.
    Cgroup,
    /// Mounts; last to join, because paths change their meaning.
    Mount,
}

impl Kind {
    /// Every kind, in the order of joining.
    pub const ALL: [Self; 8] =
        [Self::User, Self::Pid, Self::Network, Self::Ipc, Self::Uts, Self::Time, Self::Cgroup, Self::Mount];

    /// The name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Pid => "pid",
            Self::Network => "network",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Time => "time",
            Self::Cgroup => "cgroup",
            Self::Mount => "mount",
        }
    }

    /// The kind of a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The name below `/proc/PID/ns`.
    pub fn file(self) -> &'static str {
        match self {
            Self::Network => "net",
            Self::Mount => "mnt",
            other => other.name(),
        }
    }

    /// `CLONE_NEW*`.
    pub fn flag(self) -> i32 {
        match self {
            Self::User => libc::CLONE_NEWUSER,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Network => libc::CLONE_NEWNET,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Time => libc::CLONE_NEWTIME,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Mount => libc::CLONE_NEWNS,
        }
    }
}

/// In whose mount namespace the container lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MountsOf {
    /// One of its own: what is mounted there is gone with it, and the root is pivoted.
    #[default]
    Container,
    /// One it joins: its mounts stay there, and the root is changed for the container only.
    Joined,
    /// The runtime's: nothing may be mounted.
    Runtime,
}

impl MountsOf {
    /// From the configuration.
    pub fn of(config: &Config) -> Self {
        match config.namespace(Kind::Mount.name()) {
            None => Self::Runtime,
            Some(namespace) if namespace.joined().is_some() => Self::Joined,
            Some(_) => Self::Container,
        }
    }
}

/// What to make and what to join.
#[derive(Debug)]
pub struct Namespaces {
    /// Flags for `clone3`: new namespaces that a process can be born into.
    pub born_into: u64,
    /// Flags for `unshare` in the child: a cgroup namespace has its root where the process is, so it comes after
    /// joining the cgroup; clock offsets must be set before a process is in the time namespace.
    pub unshare_cgroup: bool,
    /// See [`Namespaces::unshare_cgroup`].
    pub unshare_time: bool,
    /// Existing namespaces, in the order to join.
    pub join: Vec<(Kind, OwnedFd)>,
}

impl Namespaces {
    /// From the configuration, opening those to join.
    ///
    /// # Errors
    /// A namespace file cannot be opened or is something else; or the bundle would change the host through it.
    pub fn plan(config: &Config) -> Outcome<Self> {
        let mut plan = Self { born_into: 0, unshare_cgroup: false, unshare_time: false, join: Vec::new() };
        for kind in Kind::ALL {
            let Some(namespace) = config.namespace(kind.name()) else {
                continue;
            };
            match (namespace.joined(), kind) {
                (Some(path), _) => {
                    let fd = open(path, kind).map_err(|mut failure| {
                        let entry = config.linux.namespaces.iter().position(|entry| entry.kind == kind.name());
                        failure.what = format!("$.linux.namespaces[{}].path: {}", entry.unwrap_or(0), failure.what);
                        failure
                    })?;
                    protect_host(config, kind, fd.as_fd())?;
                    plan.join.push((kind, fd));
                }
                (None, Kind::Cgroup) => plan.unshare_cgroup = true,
                (None, Kind::Time) => plan.unshare_time = true,
                (None, _) => plan.born_into |= kind.flag() as u64,
            }
        }
        Ok(plan)
    }

    /// Whether joining and making must happen in two processes: what is made must be owned by the user namespace that
    /// is joined, or what is joined must be joined before the new user namespace takes the right away. Or the runtime
    /// could not go back to its PID namespace, which takes rights in the user namespace that owns that one.
    pub fn needs_go_between(&self) -> bool {
        let joins = |wanted: Kind| self.join.iter().any(|(kind, _)| *kind == wanted);
        let makes_user = self.born_into & libc::CLONE_NEWUSER as u64 != 0;
        joins(Kind::User) || makes_user && !self.join.is_empty() || joins(Kind::Pid) && rootless::is_rootless()
    }

    /// Whether a new user namespace needs its ID maps written.
    pub fn makes_user(&self) -> bool {
        self.born_into & libc::CLONE_NEWUSER as u64 != 0
    }

    /// Join those that a process can join after its birth; the PID namespace only counts for children.
    ///
    /// # Errors
    /// No right to join, or a file of another kind.
    pub fn join_now(&self, skip: Kind) -> Outcome<()> {
        for (kind, fd) in self.join.iter().filter(|(kind, _)| *kind != skip) {
            clone::setns(fd.as_fd(), kind.flag()).because(|| format!("cannot join the {} namespace", kind.name()))?;
        }
        Ok(())
    }

    /// Join the PID namespace, for the children of this process; returns the way back.
    ///
    /// # Errors
    /// As [`Namespaces::join_now`].
    pub fn join_pid_for_children(&self) -> Outcome<Option<OwnedFd>> {
        let Some((kind, fd)) = self.join.iter().find(|(kind, _)| *kind == Kind::Pid) else {
            return Ok(None);
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let own = rustix::fs::open("/proc/self/ns/pid", flags, Mode::empty())
            .because(|| "cannot open the runtime's pid namespace".to_owned())?;
        clone::setns(fd.as_fd(), kind.flag()).because(|| "cannot join the pid namespace".to_owned())?;
        Ok(Some(own))
    }

    /// Join all in a go-between: with the rights of now where they suffice, else with those of the user namespace.
    ///
    /// # Errors
    /// As [`Namespaces::join_now`].
    pub fn join_around_user(&self, process: &Process) -> Outcome<()> {
        let refused =
            |(kind, fd): &&(Kind, OwnedFd)| *kind != Kind::User && clone::setns(fd.as_fd(), kind.flag()).is_err();
        let later: Vec<&(Kind, OwnedFd)> = self.join.iter().filter(refused).collect();
        if let Some((kind, fd)) = self.join.iter().find(|(kind, _)| *kind == Kind::User) {
            clone::setns(fd.as_fd(), kind.flag()).because(|| "cannot join the user namespace".to_owned())?;
            become_root(process)?;
        }
        for (kind, fd) in later {
            clone::setns(fd.as_fd(), kind.flag())
                .because(|| format!("cannot join the {} namespace", kind.name()))
                .or_hint("the user namespace that owns it must be joined, too")?;
        }
        Ok(())
    }
}

/// Open a namespace file of one kind.
fn open(path: &str, kind: Kind) -> Outcome<OwnedFd> {
    let what = || format!("cannot open the {} namespace `{path}`", kind.name());
    // A FIFO must not hold us up, and no terminal is wanted.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty())
        .because(what)
        .or_hint("is the process or container that owns it still running?")?;
    match clone::namespace_kind(fd.as_fd()) {
        Ok(flag) if flag == kind.flag() => Ok(fd),
        Ok(flag) => {
            let found = Kind::ALL.into_iter().find(|kind| kind.flag() == flag).map_or("another", Kind::name);
            Err(Failure::new(format!("`{path}` is a {found} namespace, not a {} namespace", kind.name())))
        }
        Err(_) => Err(Failure::new(format!("`{path}` is not a namespace"))
            .hint(format!("such as /proc/PID/ns/{}, or a bind mount of it", kind.file()))),
    }
}

/// A joined namespace that is the runtime's own must not be changed by what the bundle sets in it.
fn protect_host(config: &Config, kind: Kind, fd: BorrowedFd<'_>) -> Outcome<()> {
    let set = |value: &Option<String>| value.as_deref().is_some_and(|text| !text.is_empty());
    let key = match kind {
        Kind::Uts if set(&config.hostname) => "hostname",
        Kind::Uts if set(&config.domainname) => "domainname",
        Kind::Uts | Kind::Ipc | Kind::Network if !config.linux.sysctl.is_empty() => "linux.sysctl",
        Kind::Mount if !config.mounts.is_empty() => "mounts",
        _ => return Ok(()),
    };
    let host = format!("/proc/self/ns/{}", kind.file());
    let what = || format!("cannot look at `{host}`");
    let (theirs, ours) = (rustix::fs::fstat(fd).because(what)?, rustix::fs::stat(host.as_str()).because(what)?);
    if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino) {
        return Ok(());
    }
    Err(Failure::new(format!("$.{key}: would change the host, whose {} namespace the bundle joins", kind.name()))
        .hint(format!("join another {} namespace, or leave out `{key}`", kind.name())))
}

/// Become the root user of the user namespace this process is in, or, when that maps none, the user of the program.
/// Either has every capability there for as long as no program is executed.
///
/// # Errors
/// The namespace maps neither.
pub fn become_root(process: &Process) -> Outcome<()> {
    let unmapped = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    let or = |become_it: fn(u32) -> io::Result<()>, id: u32| match become_it(0) {
        Err(error) if unmapped(&error) && id != 0 => become_it(id),
        result => result,
    };
    or(process::set_gid, process.user.gid)
        .and_then(|()| or(process::set_uid, process.user.uid))
        .because(|| "cannot become root in the user namespace".to_owned())
        .or_hint("the ID maps must contain user 0 and group 0 of the container, or `process.user`")?;
    // The change of user may have taken these back; nothing of ours may be reached through /proc from now on.
    process::set_not_dumpable().because(|| "cannot make the process undumpable".to_owned())
}
