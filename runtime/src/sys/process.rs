//! Attributes of the calling process: identity, capabilities, limits, and the final `execve`.
#![allow(unsafe_code)] // raw prctl, capset, set*id, execve

use super::{check, check_int};
use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

/// The arguments that C's `main` is given. Not every C library lets the standard library find them by itself.
///
/// # Safety
/// There are `count` pointers to C strings at `list`, valid from now on.
pub unsafe fn arguments(count: i32, list: *const *const libc::c_char) -> Vec<OsString> {
    // SAFETY: what the caller vouches for.
    let one = |at| unsafe { CStr::from_ptr(*list.add(at)) };
    (0..usize::try_from(count).unwrap_or(0)).map(|at| OsStr::from_bytes(one(at).to_bytes()).to_owned()).collect()
}

/// One `prctl(2)` of integers.
fn prctl(option: libc::c_int, a: libc::c_ulong, b: libc::c_ulong) -> io::Result<libc::c_int> {
    let zero: libc::c_ulong = 0;
    // SAFETY: every option used below takes integers only.
    check_int(unsafe { libc::prctl(option, a, b, zero, zero) })
}

/// The effective user and group this program was started with, which the kernel left in our memory: no system call.
pub fn ids_at_start() -> (u32, u32) {
    // SAFETY: integers by value; reads the auxiliary vector.
    let value = |kind| unsafe { libc::getauxval(kind) } as u32;
    (value(libc::AT_EUID), value(libc::AT_EGID))
}

/// Be killed by `signal` when the parent dies; 0 takes it back.
///
/// # Errors
/// `EINVAL` for an invalid signal.
pub fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong, 0).map(drop)
}

/// Close `/proc/self` of this process, and with it `/proc/self/exe`, to everyone without privilege on the host.
///
/// # Errors
/// None known.
pub fn set_not_dumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
}

/// The reverse of [`set_not_dumpable`]: only while nothing of a container can see this process.
///
/// # Errors
/// None known.
pub fn set_dumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 1, 0).map(drop)
}

/// `PR_SET_NO_NEW_PRIVS`.
///
/// # Errors
/// None known on Linux 3.5 and newer.
pub fn set_no_new_privs() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// Keep permitted capabilities over a change of the user ID.
///
/// # Errors
/// `EPERM` under `SECBIT_KEEP_CAPS_LOCKED`.
pub fn set_keep_caps(keep: bool) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep), 0).map(drop)
}

/// Take a capability out of the bounding set.
///
/// # Errors
/// `EPERM` without `CAP_SETPCAP`.
pub fn bounding_drop(capability: u8) -> io::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0).map(drop)
}

/// Empty the ambient set.
///
/// # Errors
/// `EINVAL` before Linux 4.3.
pub fn ambient_clear() -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0).map(drop)
}

/// Add one capability to the ambient set.
///
/// # Errors
/// `EPERM` when it is not both permitted and inheritable.
pub fn ambient_raise(capability: u8) -> io::Result<()> {
    let raise = libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong;
    prctl(libc::PR_CAP_AMBIENT, raise, libc::c_ulong::from(capability)).map(drop)
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`: two 32-bit words per set.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// The calling thread's effective, permitted and inheritable sets, one bit per capability.
///
/// # Errors
/// None known.
pub fn capget() -> io::Result<[u64; 3]> {
    let mut header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 makes the kernel write exactly two CapData, which `data` holds.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok([
        join(data[0].effective, data[1].effective),
        join(data[0].permitted, data[1].permitted),
        join(data[0].inheritable, data[1].inheritable),
    ])
}

/// The permitted set this program was started with, asked for once.
///
/// # Errors
/// As [`capget`].
pub fn permitted_at_start() -> io::Result<u64> {
    static FOUND: OnceLock<u64> = OnceLock::new();
    match FOUND.get() {
        Some(found) => Ok(*found),
        None => capget().map(|[_, permitted, _]| *FOUND.get_or_init(|| permitted)),
    }
}

/// Set the calling thread's effective, permitted and inheritable sets.
///
/// # Errors
/// `EPERM` for a capability that is not permitted now.
pub fn capset(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    let mut header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let half = |shift: u32| CapData {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 makes the kernel read exactly two CapData, which `data` holds.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }).map(drop)
}

/// `setgroups(2)` by system call: the glibc wrapper would look for other threads.
///
/// # Errors
/// `EPERM` without `CAP_SETGID` or where a user namespace denies it.
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length come from one live slice.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// Real, effective and saved group ID.
///
/// # Errors
/// `EINVAL` when the ID is not mapped in this user namespace.
pub fn set_gid(gid: u32) -> io::Result<()> {
    // SAFETY: integers by value.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

/// Real, effective and saved user ID.
///
/// # Errors
/// `EINVAL` when the ID is not mapped in this user namespace.
pub fn set_uid(uid: u32) -> io::Result<()> {
    // SAFETY: integers by value.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// `umask(2)`.
pub fn set_umask(mask: u32) {
    exchange_umask(mask);
}

/// `umask(2)`: the mask before.
pub fn exchange_umask(mask: u32) -> u32 {
    // SAFETY: an integer by value; umask cannot fail.
    unsafe { libc::umask(mask as libc::mode_t) }
}

/// `personality(2)`.
///
/// # Errors
/// `EINVAL` for an unknown domain.
pub fn set_personality(domain: u64) -> io::Result<()> {
    // SAFETY: an integer by value.
    check_int(unsafe { libc::personality(domain as libc::c_ulong) }).map(drop)
}

/// What the C library takes for the number of a resource limit.
#[cfg(target_env = "gnu")]
pub type Resource = libc::__rlimit_resource_t;
/// What the C library takes for the number of a resource limit.
#[cfg(not(target_env = "gnu"))]
pub type Resource = libc::c_int;

/// `setrlimit(2)`.
///
/// # Errors
/// `EPERM` when the hard limit would rise without `CAP_SYS_RESOURCE`.
pub fn set_rlimit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is readable and of the type the call wants.
    check_int(unsafe { libc::setrlimit(resource, &raw const limit) }).map(drop)
}

/// `getrlimit(2)`: soft and hard limit.
///
/// # Errors
/// `EINVAL` for an unknown resource.
pub fn get_rlimit(resource: Resource) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable and of the type the call wants.
    check_int(unsafe { libc::getrlimit(resource, &raw mut limit) })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// `prlimit(2)`: let another process raise its soft limit up to `hard`; its soft limit stays.
///
/// # Errors
/// `EPERM` without `CAP_SYS_RESOURCE`, `ESRCH` when it is gone.
pub fn raise_hard_limit_of(pid: i32, resource: Resource, hard: u64) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let none = std::ptr::null();
    // SAFETY: the new limit is absent and `limit` is writable and of the type the call wants.
    check_int(unsafe { libc::prlimit(pid, resource, none, &raw mut limit) })?;
    if limit.rlim_max >= hard {
        return Ok(());
    }
    limit.rlim_max = hard;
    // SAFETY: `limit` is readable and of the type the call wants; the old one is not asked for.
    check_int(unsafe { libc::prlimit(pid, resource, &raw const limit, std::ptr::null_mut()) }).map(drop)
}

/// Mark every descriptor from `first` on as close-on-exec, Linux 5.11.
///
/// # Errors
/// `EINVAL` before Linux 5.11.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: integers by value; nothing is closed before the exec.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Close every descriptor from `first` on that is not in `keep`; only for a process that owns no Rust descriptor
/// beyond those.
pub fn close_all_from(first: i32, keep: &[i32]) {
    let mut keep: Vec<i32> = keep.iter().copied().filter(|&fd| fd >= first).collect();
    keep.sort_unstable();
    let mut from = first;
    for fd in keep.into_iter().chain([i32::MAX]) {
        if fd > from {
            // SAFETY: integers by value; the caller promises that nothing else uses these descriptors.
            unsafe { libc::syscall(libc::SYS_close_range, from, fd - 1, 0) };
        }
        from = fd.saturating_add(1);
    }
}

/// Join a new session keyring, so that the container cannot read the caller's keys.
///
/// # Errors
/// `ENOSYS` in a kernel without keys, `EDQUOT` over the user's quota.
pub fn new_session_keyring(name: &CStr) -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: `name` is a C string that lives across the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) }).map(drop)
}

/// `execve(2)`; returns only on failure.
pub fn execve(program: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|item| item.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end in a null pointer and point to C strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// `execveat(2)` of an open file with our own environment, for the runtime itself; returns only on failure.
pub fn execute_again(program: BorrowedFd<'_>, arguments: &[CString]) -> io::Error {
    unsafe extern "C" {
        static environ: *const *const libc::c_char;
    }
    let pointers: Vec<*const libc::c_char> =
        arguments.iter().map(|item| item.as_ptr()).chain([std::ptr::null()]).collect();
    // SAFETY: the array ends in a null pointer and its strings outlive the call; `environ` is the process's own list,
    // which nothing changes in this single-threaded program.
    unsafe {
        let (empty, number) = (c"".as_ptr(), program.as_raw_fd());
        libc::syscall(libc::SYS_execveat, number, empty, pointers.as_ptr(), environ, libc::AT_EMPTY_PATH);
    }
    io::Error::last_os_error()
}

/// End this process now, without running destructors or exit handlers: for a clone of the runtime.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: an integer by value; does not return.
    unsafe { libc::_exit(code) }
}

/// Make sure that descriptors 0 to 2 are open, so that no file of ours becomes somebody's standard output. Rust's own
/// start does the same; this program is entered without it.
pub fn fill_standard_streams() {
    let stream = |fd| libc::pollfd { fd, events: 0, revents: 0 };
    let mut streams = [stream(0), stream(1), stream(2)];
    // SAFETY: `streams` is writable and has the length given.
    if unsafe { libc::poll(streams.as_mut_ptr(), 3, 0) } == 0 {
        return;
    }
    for stream in streams.iter().filter(|stream| stream.revents & libc::POLLNVAL != 0) {
        // SAFETY: a constant C string; the descriptor is meant to stay open. The lowest free number is taken.
        if unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) } != stream.fd {
            exit_now(1);
        }
    }
}

/// `setsid(2)`.
///
/// # Errors
/// `EPERM` when the caller already leads a process group.
pub fn set_session() -> io::Result<()> {
    // SAFETY: no argument.
    check_int(unsafe { libc::setsid() }).map(drop)
}

/// Make `fd` available as descriptor `target` (without close-on-exec).
///
/// # Errors
/// `EBADF` for a closed descriptor.
pub fn dup_to(fd: BorrowedFd<'_>, target: i32) -> io::Result<()> {
    // SAFETY: integers by value; only descriptors 0 to 2, which no Rust object owns, are targets.
    check_int(unsafe { libc::dup2(fd.as_raw_fd(), target) }).map(drop)
}

/// Give free heap pages back to the kernel; for the supervisor, which stays for long and needs little.
pub fn trim_heap() {
    // SAFETY: integers by value; glibc's allocator keeps its own state consistent. The fixed threshold makes large
    // buffers mappings of their own, which go when they are freed.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_TOP_PAD, 0);
        libc::malloc_trim(0);
    }
}

/// Borrow one of the inherited descriptors by number, if it is open.
pub fn inherited(fd: i32) -> Option<BorrowedFd<'static>> {
    // SAFETY: an integer by value.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: the descriptor was open when checked, and callers name only 0, 1, 2 and `--preserve-fds` descriptors,
    // which the runtime never closes.
    Some(unsafe { BorrowedFd::borrow_raw(fd) })
}
