//! `--pidfd-socket`: the descriptor of a process for whoever listens there.

use crate::error::{Because, InStep, Outcome};
use crate::sys::socket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// A connected `--pidfd-socket`, or nothing when none was given.
#[derive(Debug)]
pub struct Receiver<'a>(Option<(&'a Path, OwnedFd)>);

impl<'a> Receiver<'a> {
    /// Connect before anything is made: a wrong path must not cost a container.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: Option<&'a PathBuf>) -> Outcome<Self> {
        let Some(path) = path else { return Ok(Self(None)) };
        let socket = UnixStream::connect(path)
            .because(|| format!("cannot connect to pidfd socket `{}`", path.display()))
            .in_step("pidfd socket")?;
        Ok(Self(Some((path, socket.into()))))
    }

    /// Hand the descriptor over.
    ///
    /// # Errors
    /// The receiver is gone.
    pub fn send(&self, pidfd: BorrowedFd<'_>) -> Outcome<()> {
        let Some((path, socket)) = &self.0 else { return Ok(()) };
        socket::send(socket.as_fd(), b"pidfd", Some(pidfd))
            .because(|| format!("cannot send the pidfd to `{}`", path.display()))
            .in_step("pidfd socket")
    }
}
