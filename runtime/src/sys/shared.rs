//! A little memory that two processes share, for what must not take a system call.
#![allow(unsafe_code)] // mmap, and an instruction that ends the process

use super::{check, check_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::AtomicU32;

/// Bytes of the mapping: one page of any architecture is at least this.
const SIZE: usize = 4096;

/// Two words that whoever has the file sees.
#[derive(Debug)]
pub struct Words {
    address: *mut AtomicU32,
}

impl Words {
    /// New memory, all zero, and the file through which another process gets it.
    ///
    /// # Errors
    /// Out of memory or descriptors.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: the name is a C string with static lifetime.
        let fd = check(unsafe { libc::syscall(libc::SYS_memfd_create, c"gantry-words".as_ptr(), flags) })?;
        // SAFETY: the descriptor was created by the call above and nothing else holds it.
        let file = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // SAFETY: integers by value.
        check_int(unsafe { libc::ftruncate(file.as_raw_fd(), SIZE as libc::off_t) })?;
        Ok((Self::map(file.as_fd())?, file))
    }

    /// The memory behind a file of [`Words::new`], which must not be able to shrink any more.
    ///
    /// # Errors
    /// The file is of another kind.
    pub fn open(file: BorrowedFd<'_>) -> io::Result<Self> {
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: integers by value.
        check_int(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
        if rustix::fs::fstat(file)?.st_size < SIZE as i64 {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        Self::map(file)
    }

    fn map(file: BorrowedFd<'_>) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), SIZE, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { address: address.cast() }) }
    }

    /// One of the two words.
    pub fn word(&self, second: bool) -> &AtomicU32 {
        // SAFETY: the mapping is a page that lives as long as `self`, page-aligned, and only read and written as atomic
        // words; both words lie inside it.
        unsafe { &*self.address.add(usize::from(second)) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this size, and references to it cannot outlive `self`.
        unsafe { libc::munmap(self.address.cast(), SIZE) };
    }
}

/// End this process without a system call, by an instruction that is none.
pub fn trap() -> ! {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    // SAFETY: the instruction raises SIGILL and does nothing else.
    unsafe {
        std::arch::asm!("ud2", options(noreturn, nomem, nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the instruction raises SIGILL and does nothing else.
    unsafe {
        std::arch::asm!("udf #0", options(noreturn, nomem, nostack));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
    super::process::exit_now(1)
}
