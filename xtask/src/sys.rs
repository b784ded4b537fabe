//! The few system calls that std does not have.
#![allow(unsafe_code)] // this module only

use std::io;
use std::time::Duration;

/// `kill(2)` with SIGKILL: the process ends without a chance to clean up.
///
/// # Errors
/// `ESRCH` when it is gone already.
pub(crate) fn kill(pid: i32) -> io::Result<()> {
    if pid <= 1 {
        return Err(io::ErrorKind::InvalidInput.into()); // 0 and below are groups, 1 is the host's init
    }
    // SAFETY: two integers by value; the kernel reads and writes no memory of ours.
    if unsafe { libc::kill(pid, libc::SIGKILL) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `kill(2)` with SIGTERM: the process is asked to end.
///
/// # Errors
/// `ESRCH` when it is gone already.
pub(crate) fn terminate(pid: i32) -> io::Result<()> {
    if pid <= 1 {
        return Err(io::ErrorKind::InvalidInput.into()); // as for `kill`
    }
    // SAFETY: two integers by value; the kernel reads and writes no memory of ours.
    if unsafe { libc::kill(pid, libc::SIGTERM) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `syncfs(2)`: all that was written to the file system of `path` is on disk.
///
/// # Errors
/// It cannot be opened, or not be written.
pub(crate) fn sync_file_system(path: &std::path::Path) -> io::Result<()> {
    let dir = std::fs::File::open(path)?;
    // SAFETY: a descriptor that is open across the call, and no memory.
    if unsafe { libc::syncfs(std::os::fd::AsRawFd::as_raw_fd(&dir)) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Give this process and its children a network namespace of their own, in which nothing is up.
///
/// # Errors
/// Not root.
pub(crate) fn own_network_namespace() -> io::Result<()> {
    // SAFETY: an integer by value.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How a child ended and what it used, with the children that it waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    /// As `wait(2)` gives it: 0 is success.
    pub(crate) status: i32,
    /// User and system time.
    pub(crate) cpu: Duration,
}

/// `wait4(2)`: wait for a child that nobody else waits for.
///
/// # Errors
/// `ECHILD` when it is none.
pub(crate) fn wait(pid: u32) -> io::Result<Used> {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both places are writable and of the types the call wants.
    while unsafe { libc::wait4(pid as i32, &raw mut status, 0, usage.as_mut_ptr()) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: zeroed is a valid value of this plain C structure, and the call has filled it.
    let usage = unsafe { usage.assume_init() };
    let time =
        |time: libc::timeval| Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64);
    Ok(Used { status, cpu: time(usage.ru_utime) + time(usage.ru_stime) })
}

/// Give this process and its children a mount namespace of their own, and take one mount out of it if it is there.
///
/// # Errors
/// Not root, or several threads.
pub(crate) fn own_mount_namespace(without: &str) -> io::Result<()> {
    let path = std::ffi::CString::new(without)?;
    let done = |result: i32| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: integers, null pointers where the calls take them, and C strings that live across the calls.
    unsafe {
        done(libc::unshare(libc::CLONE_NEWNS))?;
        let (none, all) = (std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
        done(libc::mount(none, c"/".as_ptr(), none, all, std::ptr::null()))?;
        match done(libc::umount2(path.as_ptr(), libc::MNT_DETACH)) {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_killed_process_ends_by_the_signal() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        kill(child.id() as i32).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert!(kill(0).is_err());
        assert!(kill(1).is_err());
        assert!(kill(-1).is_err());
    }

    #[test]
    #[allow(clippy::zombie_processes)] // it is waited for, by the function under test
    fn a_child_is_waited_for_with_what_it_used() {
        let child = std::process::Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let used = wait(child.id()).unwrap();
        assert_eq!(used.status, 3 << 8);
        assert!(used.cpu < Duration::from_secs(10));
        assert!(wait(child.id()).is_err(), "reaped");
    }
}
