//! The one thing here that needs the compiler's trust: to wait for a descriptor of ours beside everything else.
#![allow(unsafe_code)] // this room only; every other module denies it

use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// Registers `fd` with the runtime's `epoll(7)`. It must be non-blocking.
///
/// # Errors
/// Those of `epoll_ctl(2)`; `EPERM` for a regular file.
pub(crate) fn ready(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open until it is dropped, nothing else can close it, and its number never changes;
    // the `AsyncFd` owns it from here on.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pipe_becomes_ready_when_it_is_written_to() {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        let read = ready(read).unwrap();
        rustix::io::write(&write, b"x").unwrap();
        let mut guard = read.readable().await.unwrap();
        let mut byte = [0];
        assert_eq!(guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut byte)?)).unwrap().unwrap(), 1);
    }
}
