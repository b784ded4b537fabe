//! What can go wrong with a lab, and what to do about it.

use crate::error::CliError;
use std::io;
use std::path::{Path, PathBuf};

/// A lab command that failed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Namespaces and cgroups need root.
    #[error("`gantry {command}` needs root")]
    NotRoot { command: &'static str },
    /// A file operation.
    #[error("cannot {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    /// A system call or netlink message without a file.
    #[error("cannot {action}")]
    Kernel { action: String, source: io::Error },
    /// No control groups to put a node into.
    #[error("no cgroup hierarchy is mounted below /sys/fs/cgroup")]
    NoCgroups,
    /// Not a lab name.
    #[error("`{0}` is not a lab name: use 1 to 20 of a-z, 0-9 and `-`, beginning with a letter")]
    Name(String),
    /// Too few or too many nodes.
    #[error("{0} nodes are asked for, a lab has 1 to {max}", max = super::NODES_MAX)]
    Count(u32),
    /// Nothing of that name.
    #[error("there is no lab `{name}` in {}", data_dir.display())]
    NoLab { name: String, data_dir: PathBuf },
    /// A state file of another version or with other content.
    #[error("the lab's state in {} cannot be read: {reason}", path.display())]
    State { path: PathBuf, reason: String },
    /// No such node.
    #[error("lab `{lab}` has no node `{node}`; it has {there}")]
    NoNode { lab: String, node: String, there: String },
    /// The node is off.
    #[error("node `{node}` of lab `{lab}` is not running")]
    NodeDown { lab: String, node: String },
    /// The bridge's holder is gone.
    #[error("the switch of lab `{0}` is not running")]
    SwitchDown(String),
    /// Processes in the lab's cgroup that the state file knows nothing of.
    #[error("{count} processes run in cgroup `{cgroup}`, but {} has no state of lab `{name}`", data_dir.display())]
    Foreign { name: String, count: usize, cgroup: String, data_dir: PathBuf },
    /// A helper process that gave up while starting.
    #[error("{who} of lab `{lab}` did not start: {reason}")]
    Boot { lab: String, who: String, reason: String },
    /// A cgroup that stays.
    #[error("cgroups of the lab do not go away: {0}")]
    Cgroups(String),
    /// Deadline over.
    #[error("{what}, after {seconds} s")]
    NotReady { what: String, seconds: u64, logs: String },
    /// The scheduler's answer was not understood or a refusal.
    #[error("the scheduler of lab `{lab}` answered: {message}")]
    Api { lab: String, message: String },
    /// Not everything loaded.
    #[error("{0}")]
    Load(String),
    /// `exec` could not run the program.
    #[error("cannot run `{program}` on node `{node}`")]
    Exec { node: String, program: String, source: io::Error },
}

impl LabError {
    /// What the person can do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotRoot { command } => Some(format!("sudo gantry {command} …")),
            Self::NoCgroups => Some("mount cgroup2 on /sys/fs/cgroup: mount -t cgroup2 cgroup2 /sys/fs/cgroup".into()),
            Self::NoLab { name, .. } => Some(format!("make it with `gantry lab up --name {name}`")),
            Self::State { .. } => Some("`gantry lab down` removes the lab, whatever its state".into()),
            Self::NodeDown { lab, node } => Some(format!("gantry lab start --name {lab} {node}")),
            Self::SwitchDown(lab) => Some(format!("`gantry lab up --name {lab}` completes the lab")),
            Self::Foreign { name, .. } => Some(format!(
                "another --data-dir holds that lab, or its files were lost: `gantry lab down --name {name}` removes it; \
                 or choose another --name"
            )),
            Self::NotReady { logs, .. } => Some(format!("see {logs}; `gantry lab up` again goes on waiting")),
            Self::Kernel { source, .. } if source.raw_os_error() == Some(libc::EPERM) => {
                Some("namespaces need CAP_SYS_ADMIN and CAP_NET_ADMIN; a container must be privileged".into())
            }
            Self::Boot { lab, .. } => Some(format!("`gantry lab down --name {lab}` removes what was made")),
            _ => None,
        }
    }

    /// For `map_err` on a file operation.
    pub fn file(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::File { action, path, source }
    }

    /// For `map_err` on a system call.
    pub fn kernel<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::Kernel { action, source: source.into() }
    }
}

impl From<LabError> for CliError {
    fn from(error: LabError) -> Self {
        let code = match &error {
            LabError::NotReady { .. } => crate::error::NOT_READY,
            LabError::Name(_) | LabError::Count(_) => crate::error::USAGE,
            LabError::Exec { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            LabError::Exec { .. } => 126,
            _ => crate::error::REFUSED,
        };
        let hint = error.hint();
        let edge = Self::chain(&error).code(code);
        match hint {
            Some(hint) => edge.hint(hint),
            None => edge,
        }
    }
}
