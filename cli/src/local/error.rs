//! What can go wrong with containers and images of this host, and what to do about it.

use crate::error::{self, CliError};
use std::io;
use std::path::{Path, PathBuf};

/// A local command that failed.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Namespaces, mounts and cgroups need root.
    #[error("`gantry {0}` needs root")]
    NotRoot(&'static str),
    /// An option that cannot be understood.
    #[error("`{value}` is no {what}: {rule}")]
    Option { what: &'static str, value: String, rule: String },
    /// A file operation.
    #[error("cannot {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    /// A system call without a file.
    #[error("cannot {action}")]
    Kernel { action: &'static str, source: io::Error },
    /// From the image store.
    #[error(transparent)]
    Image(#[from] gantry_images::ImageError),
    /// A volume could not be made or filled.
    #[error(transparent)]
    Volume(gantry_agent::VolumeError),
    /// From the node network.
    #[error("cannot give the container its network: {message}")]
    Network { message: String, hint: Option<String> },
    /// The runtime's binary is nowhere.
    #[error("the container runtime `{0}` is not there")]
    NoRuntime(String),
    /// The runtime refused.
    #[error("{0}")]
    Runtime(String),
    /// The program is not in the image, or cannot be executed.
    #[error("{message}")]
    Command { message: String, found: bool },
    /// No such container.
    #[error("there is no container `{0}` on this host")]
    NoContainer(String),
    /// More than one.
    #[error("`{0}` is the beginning of several containers' ids")]
    Ambiguous(String),
    /// Taken.
    #[error("container name `{name}` is in use by {id}")]
    NameTaken { name: String, id: String },
    /// It must be stopped first.
    #[error("container `{0}` is running")]
    Running(String),
    /// It must run.
    #[error("container `{0}` is not running")]
    NotRunning(String),
    /// A volume is only there while its container runs.
    #[error("`{volume}` is a volume of container `{container}`, which is not running")]
    VolumeAway { container: String, volume: String },
    /// Its log is somewhere else.
    #[error("container `{0}` ran in the foreground: its output went to the terminal")]
    NoLog(String),
    /// State that cannot be read.
    #[error("{} cannot be understood: {reason}", path.display())]
    State { path: PathBuf, reason: String },
    /// It goes on running.
    #[error("container `{0}` does not end")]
    Stuck(String),
    /// Interrupted before the container ran.
    #[error("interrupted")]
    Interrupted(i32),
}

impl LocalError {
    /// What the person can do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotRoot(command) => Some(format!("sudo gantry {command} …")),
            Self::Image(error) => error.hint(),
            Self::Network { hint, .. } => hint.clone(),
            Self::NoRuntime(_) => {
                Some("install gantry-runtime beside gantry or on PATH, or name it with --runtime".into())
            }
            Self::NoContainer(_) => Some("`gantry ps --local -a` lists them".into()),
            Self::Ambiguous(_) => Some("give more characters".into()),
            Self::VolumeAway { container, .. } => Some(format!("`gantry start {container}` first")),
            Self::NameTaken { name, .. } => Some(format!("choose another name, or `gantry rm {name}` first")),
            Self::Running(name) => Some(format!("`gantry stop {name}` first, or `gantry rm -f {name}`")),
            Self::File { source, path, .. } if source.raw_os_error() == Some(libc::ENOSPC) => {
                Some(format!("free space on the file system of {}, or use another --data-dir", path.display()))
            }
            Self::NoLog(_) => Some("only `gantry run -d` keeps a log".into()),
            _ => None,
        }
    }

    /// For `map_err` on a file operation.
    pub fn file(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::File { action, path, source }
    }

    /// For `map_err` on a system call.
    pub fn kernel<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Kernel { action, source: source.into() }
    }

    /// A wrong option.
    pub fn option(what: &'static str, value: impl Into<String>, rule: impl Into<String>) -> Self {
        Self::Option { what, value: value.into(), rule: rule.into() }
    }

    /// For the edge of `gantry run`, whose exit codes are docker's.
    pub fn of_run(self) -> CliError {
        let code = match &self {
            Self::Command { found: false, .. } => 127,
            Self::Command { found: true, .. } => 126,
            Self::Interrupted(signal) => (128 + signal) as u8,
            _ => error::NOT_RUN,
        };
        CliError::from(self).code(code)
    }
}

impl From<LocalError> for CliError {
    fn from(error: LocalError) -> Self {
        let code = if matches!(error, LocalError::Option { .. }) { error::USAGE } else { error::REFUSED };
        let hint = error.hint();
        let edge = Self::chain(&error).code(code);
        match hint {
            Some(hint) => edge.hint(hint),
            None => edge,
        }
    }
}
