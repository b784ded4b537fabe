//! The maps and programs in the kernel, where they are kept, and the cgroup they hang on.
//!
//! ```text
//! RUN_DIR/bpf                      a bpffs of our own
//! RUN_DIR/bpf/LAYOUT/services      maps: LAYOUT changes with what is in them
//!                    endpoints
//!                    sockets
//!                    connect4-CODE links: CODE changes with the program
//! ```
//! All of it stays when netd ends. The next one compares names, and what each link hangs on, and writes what differs.

use super::asm::Code;
use super::book::{ENDPOINTS_MAX, LIST_LENGTH};
use super::programs::{self, Map, Program, RECORD_SIZE, RECORDS};
use crate::error::NetError;
use crate::sys::bpf::{self, Endpoint, Endpoints, Hash, MMAPABLE, MapAttr, NO_PREALLOC};
use rustix::mount::{MountFlags, UnmountFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Memory is taken for services that are there only.
const SERVICES_MAX: u32 = 65_536;
/// Of the maps' contents. Change it whenever a map, a record or a list changes its form.
const LAYOUT: &str = "1";

/// Name of the directory in a run directory.
const DIRECTORY: &str = "bpf";

/// Maps and programs, in force.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) services: Hash<4, LIST_LENGTH>,
    pub(crate) endpoints: Endpoints,
    maps: Maps,
    directory: PathBuf,
    cgroup: PathBuf,
    /// The cgroup's number when the programs were attached.
    attached_to: u64,
    /// Where the links are kept.
    links: Vec<PathBuf>,
}

#[derive(Debug)]
struct Maps {
    services: OwnedFd,
    endpoints: OwnedFd,
    sockets: OwnedFd,
}

impl Maps {
    fn descriptor(&self, map: Map) -> i32 {
        match map {
            Map::Services => self.services.as_raw_fd(),
            Map::Endpoints => self.endpoints.as_raw_fd(),
            Map::Sockets => self.sockets.as_raw_fd(),
        }
    }
}

fn failed(operation: &'static str, object: impl Into<String>, source: io::Error) -> NetError {
    NetError::Bpf { operation, object: object.into(), detail: None, source }
}

impl Kernel {
    /// Take over what is there, and make what is missing. Answers how much was written, too.
    ///
    /// # Errors
    /// The kernel lacks or refuses a part; nothing of it stays then.
    pub(crate) fn open(run_dir: &Path, cgroup: &Path) -> Result<(Self, usize), NetError> {
        let opened = Self::try_open(run_dir, cgroup);
        if opened.is_err() {
            // What went wrong is told by the first error.
            let _ = remove(run_dir);
        }
        opened
    }

    fn try_open(run_dir: &Path, cgroup: &Path) -> Result<(Self, usize), NetError> {
        let root = run_dir.join(DIRECTORY);
        let mut written = mount(&root)?;
        let directory = root.join(LAYOUT);
        if !directory.is_dir() {
            std::fs::create_dir(&directory).map_err(|e| NetError::file("create directory", &directory, e))?;
            written += 1;
        }
        let maps = Maps {
            services: map(&directory, "services", services, &mut written)?,
            endpoints: map(&directory, "endpoints", endpoints, &mut written)?,
            sockets: map(&directory, "sockets", sockets, &mut written)?,
        };
        let clone = |fd: &OwnedFd| fd.try_clone().map_err(|e| failed("use", "a map", e));
        let mut kernel = Self {
            services: Hash::new(clone(&maps.services)?),
            endpoints: Endpoints::map(maps.endpoints.as_fd(), ENDPOINTS_MAX)
                .map_err(|e| failed("map", "the map `endpoints` into memory", e))?,
            maps,
            directory,
            cgroup: cgroup.to_owned(),
            attached_to: 0,
            links: Vec::new(),
        };
        written += kernel.attach()?;
        // Other layouts. The kernel puts iterators of its own, which cannot be removed, beside our directories.
        let others = std::fs::read_dir(&root).map_err(|e| NetError::file("list", &root, e))?;
        for other in others.flatten().filter(|other| other.file_name() != LAYOUT && other.path().is_dir()) {
            remove_others(&other.path(), &[])?;
            std::fs::remove_dir(other.path()).map_err(|e| NetError::file("remove", &other.path(), e))?;
            written += 1;
        }
        Ok((kernel, written))
    }

    /// Attach what is not attached: all of it when the cgroup is another than before. Answers how much was.
    ///
    /// # Errors
    /// The kernel refused a program.
    pub(crate) fn attach(&mut self) -> Result<usize, NetError> {
        let inode = std::fs::metadata(&self.cgroup).map(|found| found.ino()).unwrap_or_default();
        if inode != 0 && inode == self.attached_to && self.links.iter().all(|link| link.exists()) {
            return Ok(0);
        }
        std::fs::create_dir_all(&self.cgroup).map_err(|e| NetError::file("create cgroup", &self.cgroup, e))?;
        let directory = File::open(&self.cgroup).map_err(|e| NetError::file("open cgroup", &self.cgroup, e))?;
        let inode = directory.metadata().map_err(|e| NetError::file("inspect", &self.cgroup, e))?.ino();
        let mut written = 0;
        let mut links = Vec::new();
        let mut names: Vec<String> = ["services", "endpoints", "sockets"].map(str::to_owned).to_vec();
        for program in programs::all() {
            // A dot is not allowed in a name there.
            let name = format!("{}-{:016x}", program.name, fingerprint(&program.code));
            let path = self.directory.join(&name);
            let linked = bpf::get(&path).map_err(|e| failed("open", path.display().to_string(), e))?;
            let fine = |link: &OwnedFd| bpf::link_info(link.as_fd()).is_ok_and(|info| info.cgroup == inode);
            if !linked.as_ref().is_some_and(fine) {
                let link = self.link(&program, &directory)?;
                remove_file(&path)?;
                bpf::pin(link.as_fd(), &path).map_err(|e| failed("pin", path.display().to_string(), e))?;
                written += 1;
            }
            names.push(name);
            links.push(path);
        }
        // An earlier version's program, or one on a cgroup that is gone, goes when its follower is in force. Both may
        // run for one socket: the second finds nothing left to do.
        written += remove_others(&self.directory, &names)?;
        self.attached_to = inode;
        self.links = links;
        Ok(written)
    }

    /// Whether the maps are still kept: without their names a later netd could not find them.
    pub(crate) fn is_there(&self) -> bool {
        ["services", "endpoints", "sockets"].iter().all(|map| self.directory.join(map).exists())
    }

    fn link(&self, program: &Program, cgroup: &File) -> Result<OwnedFd, NetError> {
        let code = program.code.with_maps(|map| self.maps.descriptor(map));
        let loaded = bpf::load_program(program.kind, program.attach_type, program.name, &code);
        let loaded = loaded.map_err(|(source, words)| NetError::Bpf {
            operation: "load",
            object: format!("the program `{}`", program.name),
            detail: (!words.is_empty()).then_some(words),
            source,
        })?;
        bpf::create_link(loaded.as_fd(), cgroup.as_fd(), program.attach_type)
            .map_err(|e| failed("attach", format!("the program `{}` to {}", program.name, self.cgroup.display()), e))
    }

    /// One replica's line, which the programs see at once.
    pub(crate) fn endpoint(&self, id: u32) -> Option<&Endpoint> {
        self.endpoints.get(id)
    }
}

fn fingerprint(code: &Code<Map>) -> u64 {
    code.fingerprint(|map| map as i32)
}

fn services() -> io::Result<OwnedFd> {
    const HASH: u32 = 1;
    bpf::create_map(MapAttr {
        kind: HASH,
        key_size: 4,
        value_size: LIST_LENGTH as u32,
        entries_max: SERVICES_MAX,
        flags: NO_PREALLOC,
        name: bpf::name("gantry_services"),
        ..MapAttr::default()
    })
}

fn endpoints() -> io::Result<OwnedFd> {
    const ARRAY: u32 = 2;
    bpf::create_map(MapAttr {
        kind: ARRAY,
        key_size: 4,
        value_size: size_of::<Endpoint>() as u32,
        entries_max: ENDPOINTS_MAX,
        flags: MMAPABLE,
        name: bpf::name("gantry_endpoint"),
        ..MapAttr::default()
    })
}

fn sockets() -> io::Result<OwnedFd> {
    const SOCKET_STORAGE: u32 = 24;
    let size = (RECORDS * RECORD_SIZE) as u32;
    let types = bpf::load_btf(&words_type(size / 4))?;
    bpf::create_map(MapAttr {
        kind: SOCKET_STORAGE,
        key_size: 4,
        value_size: size,
        flags: NO_PREALLOC,
        name: bpf::name("gantry_sockets"),
        btf: types.as_raw_fd() as u32,
        btf_key_type: 1,
        btf_value_type: 2,
        ..MapAttr::default()
    })
}

/// Type information with two types: 1 is a 32-bit number, 2 an array of `count` of them.
fn words_type(count: u32) -> Vec<u8> {
    const MAGIC_AND_VERSION: u32 = 0xeb9f | 1 << 16;
    const HEADER: u32 = 24;
    const INTEGER: u32 = 1 << 24;
    const ARRAY: u32 = 3 << 24;
    const NAMES: &[u8] = b"\0u32\0";
    let types = [1, INTEGER, 4, 32, 0, ARRAY, 0, 1, 1, count];
    let length = 4 * types.len() as u32;
    let header = [MAGIC_AND_VERSION, HEADER, 0, length, length, NAMES.len() as u32];
    let mut bytes: Vec<u8> = header.iter().chain(&types).flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend_from_slice(NAMES);
    bytes
}

fn map(
    directory: &Path,
    name: &'static str,
    create: fn() -> io::Result<OwnedFd>,
    written: &mut usize,
) -> Result<OwnedFd, NetError> {
    let path = directory.join(name);
    if let Some(found) = bpf::get(&path).map_err(|e| failed("open", path.display().to_string(), e))? {
        return Ok(found);
    }
    let made = create().map_err(|e| failed("create", format!("the map `{name}`"), e))?;
    bpf::pin(made.as_fd(), &path).map_err(|e| failed("pin", path.display().to_string(), e))?;
    *written += 1;
    Ok(made)
}

/// A bpffs of our own, where there is none.
fn mount(root: &Path) -> Result<usize, NetError> {
    const BPFFS: u32 = 0xcafe_4a11;
    std::fs::create_dir_all(root).map_err(|e| NetError::file("create directory", root, e))?;
    let kind = rustix::fs::statfs(root).map_err(|e| NetError::file("inspect", root, e))?.f_type;
    if kind as u32 == BPFFS {
        return Ok(0);
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("bpf", root, "bpf", flags, Some(c"mode=0700"))
        .map_err(|e| NetError::file("mount a bpf file system on", root, e))?;
    Ok(1)
}

fn remove_file(path: &Path) -> Result<(), NetError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(NetError::file("remove", path, e)),
        _ => Ok(()),
    }
}

/// Remove the files that have none of these names.
fn remove_others(directory: &Path, names: &[String]) -> Result<usize, NetError> {
    let mut removed = 0;
    let entries = std::fs::read_dir(directory).map_err(|e| NetError::file("list", directory, e))?;
    for entry in entries.flatten() {
        if names.iter().any(|name| entry.file_name() == name.as_str()) {
            continue;
        }
        remove_file(&entry.path())?;
        removed += 1;
    }
    Ok(removed)
}

/// Take programs and maps out of the kernel; fine when there are none.
///
/// # Errors
/// The kernel refused.
pub(crate) fn remove(run_dir: &Path) -> Result<(), NetError> {
    let root = run_dir.join(DIRECTORY);
    match rustix::mount::unmount(&root, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(NetError::file("unmount", &root, e)),
    }
    match std::fs::remove_dir(&root) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(NetError::file("remove", &root, e)),
        _ => Ok(()),
    }
}

/// The directory of a cgroup in the unified hierarchy, where the runtime has every container whatever the limits live
/// in.
///
/// # Errors
/// No cgroup2 is mounted in one of the usual places.
pub(crate) fn cgroup(parent: &str) -> Result<PathBuf, NetError> {
    const CGROUP2: u32 = 0x6367_7270;
    const USUAL: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let is_cgroup2 = |path: &&str| rustix::fs::statfs(*path).is_ok_and(|found| found.f_type as u32 == CGROUP2);
    let Some(mount) = USUAL.iter().find(|path| is_cgroup2(path)) else {
        return Err(failed("find", "a cgroup2 file system in its usual places", io::ErrorKind::NotFound.into()));
    };
    let plain = parent.split('/').filter(|part| !part.is_empty());
    let plain: PathBuf = plain.filter(|part| *part != "." && *part != "..").collect();
    if plain.as_os_str().is_empty() {
        // On the root they would run for every program of the host.
        let object = format!("the programs below `{parent}`, the whole host's cgroup");
        return Err(failed("attach", object, io::ErrorKind::InvalidInput.into()));
    }
    Ok(Path::new(mount).join(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_information_is_what_the_kernel_expects() {
        let bytes = words_type(16);
        assert_eq!(bytes.len(), 24 + 40 + 5);
        assert_eq!(bytes[..4], (0x0001_eb9fu32).to_ne_bytes());
        assert_eq!(&bytes[64..], b"\0u32\0");
    }

    #[test]
    fn the_whole_host_is_never_hooked() {
        for parent in ["", "/", "//", "..", "/../."] {
            assert!(cgroup(parent).is_err(), "{parent}");
        }
    }
}
