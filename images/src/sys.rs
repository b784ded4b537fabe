//! System calls that no crate has: id-mapped mounts and quotas of projects.
//!
//! One function is one or two system calls: descriptors and plain values in, `io::Result` out. No policy, no retry.
#![allow(unsafe_code)] // this room only; every other module of this crate denies it

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `MOUNT_ATTR_IDMAP` of `<linux/mount.h>`.
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// `struct mount_attr`, its first and so far only size.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Show the owners of a detached mount as the user namespace maps them: `mount_setattr(2)`, Linux 5.12.
///
/// # Errors
/// `EINVAL` where the file system has no id-mapped mounts, `ENOSYS` on an older kernel.
pub(crate) fn map_ids(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attributes =
        MountAttr { attr_set: MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd: namespace.as_raw_fd() as u64 };
    // SAFETY: the path is a NUL-terminated constant; the kernel reads `attributes` for exactly the size given, and the
    // value lives until the call returns; both descriptors are borrowed for as long.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A user namespace with these maps (as in `/proc/PID/uid_map`), held by nothing but the descriptor.
///
/// A child is made in it that does nothing, because only a process can be in a new namespace, and only from outside
/// may all of a map be written.
///
/// # Errors
/// The kernel makes no namespace, or does not take the maps.
pub(crate) fn user_namespace(uid_map: &str, gid_map: &str) -> io::Result<OwnedFd> {
    // SAFETY: `clone` without `CLONE_VM` and without a stack of its own is `fork`: the child has a copy of all memory and
    // calls only `pause` and `_exit`, which are safe also in a copy of a process with other threads.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0, 0, 0, 0) };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    if child == 0 {
        // SAFETY: both take no pointers. The parent ends this process; should the parent die, so does this one, because
        // `PR_SET_PDEATHSIG` takes plain values too.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::pause();
            libc::_exit(0);
        }
    }
    let pid = child as libc::pid_t;
    let made = fs::write(format!("/proc/{pid}/uid_map"), uid_map)
        .and_then(|()| fs::write(format!("/proc/{pid}/gid_map"), gid_map))
        .and_then(|()| File::open(format!("/proc/{pid}/ns/user")));
    // SAFETY: `pid` is our own child that nobody has waited for, so the number is not reused; the null pointer asks for
    // no status.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        while libc::waitpid(pid, std::ptr::null_mut(), 0) < 0
            && io::Error::last_os_error().raw_os_error() == Some(libc::EINTR)
        {}
    }
    made.map(OwnedFd::from)
}

/// `struct fsxattr` of `<linux/fs.h>`.
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// `FS_IOC_FSGETXATTR`, `FS_IOC_FSSETXATTR`: the same numbers on all architectures that Gantry is built for.
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;

/// `FS_XFLAG_PROJINHERIT`.
const PROJECT_INHERITED: u32 = 0x200;

/// Give a directory, and all that will be made in it, to a project.
///
/// # Errors
/// `ENOTTY` or `EOPNOTSUPP` where the file system has no projects.
pub(crate) fn set_project(dir: BorrowedFd<'_>, project: u32) -> io::Result<()> {
    let mut attributes = FsXattr::default();
    // SAFETY: the request reads or writes one `struct fsxattr`, whose layout `FsXattr` has, and `attributes` is one.
    let done = unsafe { libc::ioctl(dir.as_raw_fd(), FS_IOC_FSGETXATTR as _, &raw mut attributes) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    attributes.projid = project;
    attributes.xflags |= PROJECT_INHERITED;
    // SAFETY: as above; the kernel only reads it.
    let done = unsafe { libc::ioctl(dir.as_raw_fd(), FS_IOC_FSSETXATTR as _, &raw const attributes) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct if_dqblk` of `<linux/quota.h>`.
#[repr(C)]
#[derive(Default)]
struct Limits {
    hard_blocks: u64,
    soft_blocks: u64,
    space: u64,
    hard_inodes: u64,
    soft_inodes: u64,
    inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

/// `Q_SETQUOTA` for quotas of projects (`PRJQUOTA` is 2): `QCMD(cmd, type)` of `<linux/quota.h>`.
const SET_PROJECT_LIMITS: u32 = (0x0080_0008 << 8) | 2;

/// `QIF_BLIMITS`: only the limits of space are given.
const VALID_BLOCKS: u32 = 1;

/// The unit of `hard_blocks`.
const QUOTA_BLOCK: u64 = 1024;

/// Limit the space of a project on the file system of `dir`: `quotactl_fd(2)`, Linux 5.14. ext4 and XFS both take it.
///
/// # Errors
/// `ESRCH` where quotas of projects are not on, `ENOSYS` where the kernel has none.
pub(crate) fn limit_project(dir: BorrowedFd<'_>, project: u32, bytes: u64) -> io::Result<()> {
    let limits = Limits { hard_blocks: bytes.div_ceil(QUOTA_BLOCK), valid: VALID_BLOCKS, ..Limits::default() };
    // SAFETY: for this command the kernel reads one `struct if_dqblk`, whose layout `Limits` has, and `limits` lives until
    // the call returns.
    let done = unsafe {
        libc::syscall(libc::SYS_quotactl_fd, dir.as_fd().as_raw_fd(), SET_PROJECT_LIMITS, project, &raw const limits)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_namespace_has_the_maps_and_outlives_its_child() {
        let namespace = user_namespace("0 100000 65536\n", "0 200000 65536\n").expect("needs root");
        let link = fs::read_link(format!("/proc/self/fd/{}", namespace.as_raw_fd())).unwrap();
        assert!(link.to_string_lossy().starts_with("user:["), "{link:?}");
        let own = fs::read_link("/proc/self/ns/user").unwrap();
        assert_ne!(link, own);
        assert!(user_namespace("rubbish", "0 0 1").is_err());
    }

    #[test]
    fn a_project_is_refused_where_there_are_none() {
        let dir = File::open("/proc").unwrap();
        assert!(set_project(dir.as_fd(), 7).is_err());
        assert!(limit_project(dir.as_fd(), 7, 1 << 20).is_err());
    }
}
