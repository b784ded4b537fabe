//! Mounts by descriptor: trees that exist before they are attached, and attributes changed in place.
#![allow(unsafe_code)] // raw mount_setattr, pivot_root

use super::{check, check_int};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct mount_attr` from `linux/mount.h`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct MountAttr {
    /// Attributes to add, `MOUNT_ATTR_*`.
    pub set: u64,
    /// Attributes to take away; `MOUNT_ATTR__ATIME` must be here whenever an atime mode is set.
    pub clear: u64,
    /// One of `MS_SHARED`, `MS_PRIVATE`, `MS_SLAVE`, `MS_UNBINDABLE`, or 0 to leave propagation alone.
    pub propagation: u64,
    /// User namespace for `MOUNT_ATTR_IDMAP`, or 0.
    pub userns_fd: u64,
}

/// `mount_setattr(2)` on the mount a descriptor refers to, Linux 5.12.
///
/// # Errors
/// `EINVAL` when the descriptor is not the root of a mount; `EPERM` for a locked attribute.
pub fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a constant C string and `attr` is readable for the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// The same on the mount at a name in a directory, with all mounts below it; a link is not followed.
///
/// # Errors
/// As [`mount_setattr`].
pub fn mount_setattr_at(directory: BorrowedFd<'_>, name: &CStr, attr: &MountAttr) -> io::Result<()> {
    let flags = libc::AT_RECURSIVE | libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: `name` is a C string and `attr` is readable for the size given; both live across the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory.as_raw_fd(),
            name.as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// `pivot_root(".", ".")`: the current directory becomes the root, the old root is stacked on top of it.
///
/// # Errors
/// `EINVAL` when the current directory is not a mount or its parent is shared.
pub fn pivot_root_here() -> io::Result<()> {
    let dot: &CStr = c".";
    // SAFETY: two constant C strings.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, dot.as_ptr(), dot.as_ptr()) }).map(drop)
}

/// `chroot(".")`.
///
/// # Errors
/// `EPERM` without `CAP_SYS_CHROOT`.
pub fn chroot_here() -> io::Result<()> {
    // SAFETY: a constant C string.
    check_int(unsafe { libc::chroot(c".".as_ptr()) }).map(drop)
}

/// `sethostname(2)`.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN` in the owner of the UTS namespace.
pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length come from one live str.
    check_int(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// `setdomainname(2)`.
///
/// # Errors
/// As [`set_hostname`].
pub fn set_domainname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length come from one live str.
    check_int(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Set `IFF_UP` on `lo` of the current network namespace.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` there.
pub fn loopback_up() -> io::Result<()> {
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: integers by value.
    let fd = check_int(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: created just above, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: an all-zero ifreq is a valid value of a plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which `request` is.
    check_int(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) })?;
    // The exec that follows closes it for nothing.
    std::mem::forget(socket);
    Ok(())
}
