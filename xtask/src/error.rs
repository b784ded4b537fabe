//! What can go wrong in a task, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Result of a step of a task.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// A task that cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Wrong command line.
    #[error("{0}")]
    Usage(String),
    /// A file or directory.
    #[error("cannot {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    /// A program that did not start.
    #[error("cannot run `{program}`")]
    Spawn { program: String, source: io::Error },
    /// A program that started and failed.
    #[error("`{command}` failed: {reason}")]
    Failed { command: String, reason: String },
    /// The host is not what the task needs.
    #[error("{what}")]
    Host { what: String, hint: String },
    /// A file of ours, a package or an answer that does not say what it should.
    #[error("{subject}: {problem}")]
    Input { subject: String, problem: String },
    /// Something was promised and did not happen.
    #[error("expected {expected}; {found}")]
    Broken { expected: String, found: String },
    /// An HTTP request without an answer.
    #[error("no answer from {url}")]
    Http { url: String, source: io::Error },
}

impl Error {
    /// For `map_err` on a file operation.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { action, path: path.to_owned(), source }
    }

    /// A document that does not say what it should.
    pub(crate) fn input(subject: impl ToString, problem: impl ToString) -> Self {
        Self::Input { subject: subject.to_string(), problem: problem.to_string() }
    }

    /// A promise that was not kept.
    pub(crate) fn broken(expected: impl ToString, found: impl ToString) -> Self {
        Self::Broken { expected: expected.to_string(), found: found.to_string() }
    }

    /// What to do about it; `None` when only the cause knows.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Usage(_) => Some("cargo xtask help".into()),
            Self::Host { hint, .. } => Some(hint.clone()),
            Self::Spawn { program, source } if source.kind() == io::ErrorKind::NotFound => {
                Some(format!("install the package that holds `{program}`"))
            }
            Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run the task as root".into())
            }
            Self::File { .. }
            | Self::Spawn { .. }
            | Self::Failed { .. }
            | Self::Input { .. }
            | Self::Broken { .. }
            | Self::Http { .. } => None,
        }
    }

    /// The whole chain in one line.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(one) = cause {
            text.push_str(": ");
            text.push_str(&one.to_string());
            cause = one.source();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_operation_object_and_cause_once() {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let file = Error::file("write", Path::new("/x/y"))(denied());
        assert_eq!(file.chain(), "cannot write /x/y: permission denied");
        assert_eq!(file.hint().as_deref(), Some("run the task as root"));
        let broken = Error::broken("the counter to grow", "it stayed at 4");
        assert_eq!(broken.chain(), "expected the counter to grow; it stayed at 4");
        assert_eq!(broken.hint(), None);
    }
}
