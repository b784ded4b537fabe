//! Which namespaces a container gets new, and which it joins.

use crate::config::Config;
use crate::error::{Because, Failure, InStep, Outcome};
use crate::sys::{clone, process};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, OwnedFd};

/// `NSFS_MAGIC`.
const NSFS_MAGIC: u64 = 0x6e73_6673;

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
    /// A namespace file cannot be opened.
    pub fn plan(config: &Config) -> Outcome<Self> {
        let mut plan = Self { born_into: 0, unshare_cgroup: false, unshare_time: false, join: Vec::new() };
        for kind in Kind::ALL {
            let Some(namespace) = config.namespace(kind.name()) else {
                continue;
            };
            match (namespace.joined(), kind) {
                (Some(path), _) => {
                    // A pipe in its place must not keep us waiting.
                    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                    let what = || format!("cannot open the {} namespace `{path}`", kind.name());
                    let fd = rustix::fs::open(path, flags, Mode::empty())
                        .because(what)
                        .or_hint("is the process or container that owns it still running?")?;
                    if rustix::fs::fstatfs(&fd).because(what)?.f_type as u64 != NSFS_MAGIC {
                        let problem = format!("`{path}` is no {} namespace", kind.name());
                        return Err(Failure::new(problem).hint("it must be a file such as /proc/PID/ns/net"));
                    }
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
    /// is joined, or what is joined must be joined before the new user namespace takes the right away.
    pub fn needs_go_between(&self) -> bool {
        let joins_user = self.join.iter().any(|(kind, _)| *kind == Kind::User);
        let makes_user = self.born_into & libc::CLONE_NEWUSER as u64 != 0;
        joins_user || makes_user && !self.join.is_empty()
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

    /// Join the PID namespace, for the children of this process.
    ///
    /// # Errors
    /// As [`Namespaces::join_now`].
    pub fn join_pid_for_children(&self) -> Outcome<()> {
        match self.join.iter().find(|(kind, _)| *kind == Kind::Pid) {
            None => Ok(()),
            Some((kind, fd)) => {
                clone::setns(fd.as_fd(), kind.flag()).because(|| "cannot join the pid namespace".to_owned())
            }
        }
    }

    /// Join all in a go-between: with the rights of now where they suffice, else with those of the user namespace.
    ///
    /// # Errors
    /// As [`Namespaces::join_now`].
    pub fn join_around_user(&self) -> Outcome<()> {
        let refused =
            |(kind, fd): &&(Kind, OwnedFd)| *kind != Kind::User && clone::setns(fd.as_fd(), kind.flag()).is_err();
        let later: Vec<&(Kind, OwnedFd)> = self.join.iter().filter(refused).collect();
        if let Some((kind, fd)) = self.join.iter().find(|(kind, _)| *kind == Kind::User) {
            clone::setns(fd.as_fd(), kind.flag()).because(|| "cannot join the user namespace".to_owned())?;
            become_root()?;
        }
        for (kind, fd) in later {
            clone::setns(fd.as_fd(), kind.flag()).because(|| format!("cannot join the {} namespace", kind.name()))?;
        }
        Ok(())
    }
}

/// Become the root user of the user namespace this process is in.
///
/// # Errors
/// The namespace maps no root.
pub fn become_root() -> Outcome<()> {
    process::set_gid(0)
        .and_then(|()| process::set_uid(0))
        .because(|| "cannot become root in the user namespace".to_owned())
        .or_hint("the ID maps must contain user 0 and group 0 of the container")
}
