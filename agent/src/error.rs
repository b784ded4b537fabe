//! Errors of the daemon as a whole, and how a chain of causes becomes one line.

use crate::fsx::FileError;
use crate::identity::IdentityError;
use crate::tls::TlsError;
use std::path::PathBuf;

/// The agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The host belongs to no cluster.
    #[error("this host has not joined a cluster: {} holds no membership", .0.display())]
    NotJoined(PathBuf),
    /// Its identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its certificate or key cannot be used.
    #[error("cannot use the node's certificate")]
    Tls(#[from] TlsError),
    /// What it keeps cannot be read or written.
    #[error("cannot keep the node's ledger")]
    Ledger(#[from] FileError),
    /// The image store cannot be opened.
    #[error("cannot open the image store")]
    Images(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The runtime's binary cannot be run.
    #[error("cannot run {}", .0.display())]
    Runtime(PathBuf, #[source] std::io::Error),
    /// The kernel does not tell of exits.
    #[error("cannot watch {}", .0.display())]
    Watch(PathBuf, #[source] std::io::Error),
    /// Another agent has this data directory.
    #[error("another agent already uses {}", .0.display())]
    Locked(PathBuf),
}

impl AgentError {
    /// What the operator can do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotJoined(_) => Some("gantry join SERVER --token TOKEN".to_owned()),
            Self::Identity(error) => error.hint(),
            Self::Tls(_) => Some("remove the identity file and join again".to_owned()),
            Self::Ledger(error) => error.hint(),
            Self::Images(_) => None,
            Self::Runtime(..) => Some("gantry-runtime belongs beside gantry, or name it with --runtime".to_owned()),
            Self::Watch(..) => Some("raise fs.inotify.max_user_instances".to_owned()),
            Self::Locked(_) => Some("stop it, or give this one another --data-dir".to_owned()),
        }
    }
}

/// An error with its causes in one line, as a person reads them.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}
