//! The one system call that std does not have.
#![allow(unsafe_code)] // this module only

use std::io;

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
}
