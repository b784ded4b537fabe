//! `bpf(2)`: maps, programs, links, and where they are pinned.
//!
//! One function is one command: descriptors and slices in, `io::Result` out.

use rustix::mm::{MapFlags, ProtFlags};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// One eBPF instruction, `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Instruction {
    /// Operation.
    pub(crate) code: u8,
    /// Destination register in the low half, source in the high half.
    pub(crate) registers: u8,
    /// Jump or memory offset.
    pub(crate) offset: i16,
    /// Constant operand.
    pub(crate) immediate: i32,
}

const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP: libc::c_int = 1;
const MAP_UPDATE: libc::c_int = 2;
const MAP_DELETE: libc::c_int = 3;
const MAP_NEXT_KEY: libc::c_int = 4;
const PROG_LOAD: libc::c_int = 5;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const INFO_BY_FD: libc::c_int = 15;
const BTF_LOAD: libc::c_int = 18;
const LINK_CREATE: libc::c_int = 28;

/// `BPF_F_NO_PREALLOC`: memory for what is in the map, not for what could be.
pub(crate) const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE`, Linux 5.5.
pub(crate) const MMAPABLE: u32 = 1 << 10;

/// What a map is to be; the first part of `union bpf_attr` for its creation.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct MapAttr {
    pub(crate) kind: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) entries_max: u32,
    pub(crate) flags: u32,
    pub(crate) inner: u32,
    pub(crate) numa_node: u32,
    pub(crate) name: [u8; 16],
    pub(crate) interface: u32,
    pub(crate) btf: u32,
    pub(crate) btf_key_type: u32,
    pub(crate) btf_value_type: u32,
}

#[repr(C)]
struct ElementAttr {
    map: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgramAttr {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
struct BtfAttr {
    data: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
}

#[repr(C)]
struct LinkAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// The part of `struct bpf_link_info` that a link to a cgroup fills.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    _padding: u32,
    /// The inode number of the cgroup's directory; 0 once the directory is gone.
    pub(crate) cgroup: u64,
    pub(crate) attach_type: u32,
    _end: u32,
}

/// A name as the kernel keeps it: at most 15 bytes and a zero.
pub(crate) fn name(text: &str) -> [u8; 16] {
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().take(15).zip(text.bytes()) {
        *to = from;
    }
    name
}

/// # Safety
/// Every pointer in `attr` must be valid for what `command` does with it, for the length given beside it.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is readable and writable for its size, and its pointers are valid as this function demands.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as i32) }
}

/// The same for commands that answer a new descriptor.
///
/// # Safety
/// As [`bpf`].
unsafe fn bpf_fd<T>(command: libc::c_int, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: demanded of this function's caller, too.
    let fd = unsafe { bpf(command, attr) }?;
    // SAFETY: the kernel has just made `fd` for this call (close-on-exec), and nothing else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Make a map.
///
/// # Errors
/// `EPERM` without `CAP_BPF`, `EINVAL` for a kind that the kernel lacks.
pub(crate) fn create_map(mut attr: MapAttr) -> io::Result<OwnedFd> {
    // SAFETY: the command reads integers only.
    unsafe { bpf_fd(MAP_CREATE, &mut attr) }
}

/// Load type information, which a map in sockets must have.
///
/// # Errors
/// `EINVAL` for what is not type information.
pub(crate) fn load_btf(data: &[u8]) -> io::Result<OwnedFd> {
    let size = data.len() as u32;
    let mut attr = BtfAttr { data: data.as_ptr() as u64, log: 0, size, log_size: 0, log_level: 0 };
    // SAFETY: the kernel reads `size` bytes at `data`, which is a live slice of that length; no log is asked for.
    unsafe { bpf_fd(BTF_LOAD, &mut attr) }
}

/// Have a program verified and compiled.
///
/// # Errors
/// What the kernel said, and, unless it was a matter of privilege, the verifier's last words.
pub(crate) fn load_program(
    kind: u32,
    attach_type: u32,
    label: &str,
    code: &[Instruction],
) -> Result<OwnedFd, (io::Error, String)> {
    let load = |log: &mut [u8]| {
        let mut attr = ProgramAttr {
            kind,
            instruction_count: code.len() as u32,
            instructions: code.as_ptr() as u64,
            license: c"Dual MIT/GPL".as_ptr() as u64,
            log_level: u32::from(!log.is_empty()),
            log_size: log.len() as u32,
            log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            kernel_version: 0,
            flags: 0,
            name: name(label),
            interface: 0,
            attach_type,
        };
        // SAFETY: the kernel reads `code` for its length and a constant C string, and writes `log` within its length.
        unsafe { bpf_fd(PROG_LOAD, &mut attr) }
    };
    // Without a log first: writing one takes ten times as long as the verification.
    load(&mut []).or_else(|first| {
        if first.raw_os_error() == Some(libc::EPERM) {
            return Err((first, String::new()));
        }
        let mut log = vec![0; 1 << 20];
        load(&mut log).map_err(|error| {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            let text = String::from_utf8_lossy(&log[..end]);
            let last = text.lines().rev().filter(|line| !line.starts_with("processed")).take(2).collect::<Vec<_>>();
            (error, last.into_iter().rev().collect::<Vec<_>>().join("; "))
        })
    })
}

/// Let a program run for all sockets of a cgroup and of those below it, beside what others have attached, until the
/// link is closed and nowhere pinned. Linux 5.7.
///
/// # Errors
/// `EINVAL` when the directory is not on cgroup2, `EPERM` when an ancestor forbids more programs.
pub(crate) fn create_link(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let (program, target) = (program.as_raw_fd() as u32, cgroup.as_raw_fd() as u32);
    let mut attr = LinkAttr { program, target, attach_type, flags: 0 };
    // SAFETY: the command reads integers only.
    unsafe { bpf_fd(LINK_CREATE, &mut attr) }
}

/// What a link is attached to.
///
/// # Errors
/// It is no link.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let mut attr = InfoAttr {
        fd: link.as_raw_fd() as u32,
        length: size_of::<LinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: the kernel writes at most `length` bytes to `info`, which lives until the call returns.
    unsafe { bpf(INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

fn path_of(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Keep a map, a program or a link under a name on a bpffs.
///
/// # Errors
/// `EEXIST`; `EPERM` when the file system is another.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_of(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: fd.as_raw_fd() as u32, flags: 0 };
    // SAFETY: the kernel reads the C string, which lives until the call returns.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

/// Open what was pinned; `None` when nothing is.
///
/// # Errors
/// The name is that of something else.
pub(crate) fn get(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = path_of(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the kernel reads the C string, which lives until the call returns.
    match unsafe { bpf_fd(OBJ_GET, &mut attr) } {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A hash map with keys of `K` and values of `V` bytes.
#[derive(Debug)]
pub(crate) struct Hash<const K: usize, const V: usize>(OwnedFd);

impl<const K: usize, const V: usize> Hash<K, V> {
    /// The map behind `fd`, which the caller made, or pinned, with these sizes.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    fn attr(&self, key: *const u8, value: *const u8) -> ElementAttr {
        ElementAttr { map: self.0.as_raw_fd() as u32, key: key as u64, value: value as u64, flags: 0 }
    }

    /// Set one element; who looks it up meanwhile sees all of the old or all of the new value.
    ///
    /// # Errors
    /// `E2BIG` when the map is full.
    pub(crate) fn set(&self, key: &[u8; K], value: &[u8; V]) -> io::Result<()> {
        let mut attr = self.attr(key.as_ptr(), value.as_ptr());
        // SAFETY: the kernel reads K and V bytes, the sizes the map was made with, from arrays of these sizes.
        unsafe { bpf(MAP_UPDATE, &mut attr) }.map(drop)
    }

    /// The value of a key.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn value(&self, key: &[u8; K]) -> io::Result<Option<[u8; V]>> {
        let mut value = [0; V];
        let mut attr = self.attr(key.as_ptr(), value.as_mut_ptr());
        // SAFETY: the kernel reads K bytes and writes V, the sizes the map was made with, to an array of that size.
        match unsafe { bpf(MAP_LOOKUP, &mut attr) } {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Remove an element; fine when it is absent.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn remove(&self, key: &[u8; K]) -> io::Result<()> {
        let mut attr = self.attr(key.as_ptr(), std::ptr::null());
        // SAFETY: the kernel reads K bytes, the size the map was made with, from an array of that size.
        match unsafe { bpf(MAP_DELETE, &mut attr) } {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All elements. Nobody else may change the map meanwhile.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn all(&self) -> io::Result<Vec<([u8; K], [u8; V])>> {
        let mut found = Vec::new();
        let mut last: Option<[u8; K]> = None;
        loop {
            let mut next = [0; K];
            let key = last.as_ref().map_or(std::ptr::null(), |key| key.as_ptr());
            let mut attr = self.attr(key, next.as_mut_ptr());
            // SAFETY: the kernel reads K bytes (or nothing) and writes K, to an array of that size.
            match unsafe { bpf(MAP_NEXT_KEY, &mut attr) } {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
                Err(error) => return Err(error),
            }
            if let Some(value) = self.value(&next)? {
                found.push((next, value));
            }
            last = Some(next);
        }
    }
}

/// One replica in the map that programs and netd share: 32 bytes, written by plain stores.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Endpoint {
    /// Service address in the high half, replica's in the low one, each as it is on the wire.
    pub(crate) key: AtomicU64,
    /// See [`crate::balance::book::State`].
    pub(crate) state: AtomicU32,
    /// Sockets of this node that were led here and are not closed. The programs count.
    pub(crate) live: AtomicU32,
    /// What the other nodes' connections weigh, in 1/256.
    pub(crate) reported: AtomicU32,
    unused: AtomicU32,
    /// Sockets that were ever led here. The programs count.
    pub(crate) total: AtomicU64,
}

/// An array map as memory.
#[derive(Debug)]
pub(crate) struct Endpoints {
    memory: *mut Endpoint,
    count: usize,
}

// SAFETY: the memory holds atomics only, stays mapped as long as the value lives, and belongs to no thread.
unsafe impl Send for Endpoints {}
// SAFETY: as above; all access is through shared references to atomics.
unsafe impl Sync for Endpoints {}

impl Endpoints {
    /// Map all `count` elements of 32 bytes; the caller made, or pinned, the map with these numbers.
    ///
    /// # Errors
    /// `EINVAL` when the map is smaller.
    pub(crate) fn map(fd: BorrowedFd<'_>, count: u32) -> io::Result<Self> {
        let length = count as usize * size_of::<Endpoint>();
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice; the kernel refuses one longer than the map.
        let memory = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, flags, fd.as_fd(), 0) }?;
        Ok(Self { memory: memory.cast(), count: count as usize })
    }

    /// One element; `None` behind the end.
    pub(crate) fn get(&self, id: u32) -> Option<&Endpoint> {
        let index = usize::try_from(id).ok().filter(|index| *index < self.count)?;
        // SAFETY: `index` is inside the mapping; the element consists of atomics, for which any bytes are valid, and is
        // aligned, since a mapping begins at a page and elements have 32 bytes.
        Some(unsafe { &*self.memory.add(index) })
    }
}

impl Drop for Endpoints {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `map`; no reference into it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.memory.cast(), self.count * size_of::<Endpoint>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_long_as_the_kernel_reads_them() {
        assert_eq!(size_of::<Instruction>(), 8);
        assert_eq!(size_of::<MapAttr>(), 60);
        assert_eq!(size_of::<ProgramAttr>(), 72);
        assert_eq!(std::mem::offset_of!(LinkInfo, cgroup), 16);
        assert_eq!(size_of::<Endpoint>(), 32);
    }

    #[test]
    fn names_are_cut_and_ended() {
        assert_eq!(&name("gantry_services_and_more"), b"gantry_services\0");
        assert_eq!(&name("a")[..2], b"a\0");
    }
}
