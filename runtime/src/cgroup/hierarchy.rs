//! Where the cgroup hierarchies of this host are mounted, as this process sees them.

use super::table::Version;
use crate::error::{Because, Outcome};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::cell::OnceCell;
use std::ffi::OsStr;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// `CGROUP_SUPER_MAGIC`.
const V1_MAGIC: u64 = 0x0027_e0eb;
/// `CGROUP2_SUPER_MAGIC`.
const V2_MAGIC: u64 = 0x6367_7270;
/// Where hosts mount cgroups.
pub(super) const USUAL: &str = "/sys/fs/cgroup";

/// One v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V1 {
    /// Its controllers, or one `name=...` for a hierarchy without any.
    pub controllers: Vec<String>,
    /// Mount point.
    pub mount: PathBuf,
}

impl V1 {
    /// Whether a controller is in it.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// Name of the directory the container sees it under.
    pub fn directory_name(&self) -> String {
        self.controllers.iter().map(|name| name.strip_prefix("name=").unwrap_or(name)).collect::<Vec<_>>().join(",")
    }
}

/// All hierarchies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// v1, in the kernel's order.
    pub v1: Vec<V1>,
    /// Mount point of the unified hierarchy.
    pub v2: Option<PathBuf>,
    /// Controllers available there, once somebody asked.
    v2_controllers: OnceCell<Vec<String>>,
}

impl Hierarchies {
    /// Look at this host, as cheaply as a start must: v1 hierarchies are taken to be in their usual places. Who finds
    /// that one is not calls [`Hierarchies::located`].
    ///
    /// # Errors
    /// `/proc` is not readable.
    pub fn observe() -> Outcome<Self> {
        if magic(Path::new(USUAL)) == Some(V2_MAGIC) {
            return Ok(Self { v2: Some(PathBuf::from(USUAL)), ..Self::default() });
        }
        let membership = read_once("/proc/self/cgroup").because(|| "cannot read `/proc/self/cgroup`".to_owned())?;
        let mut found = Self::default();
        for controllers in controller_sets(&membership) {
            if controllers.is_empty() {
                // A host without it at this place has no use for it, so the mount table is not searched.
                let path = Path::new(USUAL).join("unified");
                found.v2 = (magic(&path) == Some(V2_MAGIC)).then_some(path);
            } else {
                found.v1.push(V1 { mount: usual_v1(&controllers), controllers });
            }
        }
        Ok(found)
    }

    /// The same with every mount checked: what is not in its usual place is looked up in the mount table, and what is
    /// not mounted at all is left out.
    pub fn located(&self) -> Self {
        let mut table = None;
        let locate = |v1: &V1| {
            // A mount may be hidden under another one.
            let elsewhere = |table: &mut Option<String>| {
                mounts_of(mount_table(table), Some(&v1.controllers)).find(|mount| magic(mount) == Some(V1_MAGIC))
            };
            let mount =
                if magic(&v1.mount) == Some(V1_MAGIC) { Some(v1.mount.clone()) } else { elsewhere(&mut table) }?;
            Some(V1 { mount, controllers: v1.controllers.clone() })
        };
        let v1 = self.v1.iter().filter_map(locate).collect();
        Self { v1, v2: self.v2.clone(), v2_controllers: OnceCell::new() }
    }

    /// Whether all controllers are in the unified hierarchy.
    pub fn is_pure_v2(&self) -> bool {
        self.v1.is_empty()
    }

    /// Which interface a controller has here.
    pub fn version_of(&self, controller: &str) -> Option<Version> {
        if self.v1_of(controller).is_some() {
            return Some(Version::V1);
        }
        let mount = self.v2.as_ref()?;
        let names = self.v2_controllers.get_or_init(|| words(&mount.join("cgroup.controllers")));
        names.iter().any(|name| name == controller).then_some(Version::V2)
    }

    /// The v1 hierarchy that has a controller.
    pub fn v1_of(&self, controller: &str) -> Option<&V1> {
        self.v1.iter().find(|hierarchy| hierarchy.has(controller))
    }
}

/// Words in a file of cgroup2; none when it cannot be read.
pub fn words(file: &Path) -> Vec<String> {
    read(file).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// Read a small file of procfs or cgroupfs: it has no size to ask for, and one read gets all of it.
///
/// # Errors
/// It is not there or cannot be read.
pub fn read(file: impl AsRef<Path>) -> io::Result<String> {
    read_open(&rustix::fs::open(file.as_ref(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The same for a file that a process reads once: left to its end to close it.
fn read_once(file: impl AsRef<Path>) -> io::Result<String> {
    let fd = rustix::fs::open(file.as_ref(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    read_open(&ManuallyDrop::new(fd))
}

fn read_open(fd: &OwnedFd) -> io::Result<String> {
    let mut buffer = [0; 4096];
    let mut text = Vec::new();
    loop {
        match rustix::io::read(fd, &mut buffer) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(count) => {
                text.extend_from_slice(&buffer[..count]);
                // These files come whole, or in pieces of a page.
                if count == 0 || (text.len() == count && count < 1024) {
                    return String::from_utf8(text).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
                }
            }
        }
    }
}

/// Sets of controllers in `/proc/PID/cgroup`; the empty set is the unified hierarchy.
fn controller_sets(membership: &str) -> impl Iterator<Item = Vec<String>> + '_ {
    membership.lines().filter_map(|line| {
        let names = line.split(':').nth(1)?;
        Some(names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
    })
}

fn magic(path: &Path) -> Option<u64> {
    rustix::fs::statfs(path).ok().map(|found| found.f_type as u64)
}

fn usual_v1(controllers: &[String]) -> PathBuf {
    let name = controllers.join(",");
    Path::new(USUAL).join(name.strip_prefix("name=").unwrap_or(&name))
}

/// Read the mount table once, when something is not in its usual place.
fn mount_table(table: &mut Option<String>) -> &str {
    table.get_or_insert_with(|| {
        let bytes = fs::read("/proc/self/mountinfo").unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Mounts of a v1 hierarchy, or of the unified one for `None`.
fn mounts_of(mountinfo: &str, controllers: Option<&[String]>) -> impl Iterator<Item = PathBuf> {
    mountinfo.lines().filter_map(move |line| {
        let (front, back) = line.split_once(" - ")?;
        let mount = front.split(' ').nth(4)?;
        let mut back = back.split(' ');
        let (kind, options) = (back.next()?, back.nth(1)?);
        let fits = match controllers {
            None => kind == "cgroup2",
            Some(names) => kind == "cgroup" && names.iter().all(|name| options.split(',').any(|option| option == name)),
        };
        fits.then(|| unescape(mount))
    })
}

/// Undo the octal escapes of the mount table.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if bytes[at] == b'\\' => {
                plain.push(byte);
                at += 4;
            }
            _ => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership_lines() {
        let sets: Vec<_> = controller_sets("9:name=systemd:/\n2:cpu,cpuacct:/a:b\n0::/x\n").collect();
        assert_eq!(sets, [vec!["name=systemd".to_owned()], vec!["cpu".to_owned(), "cpuacct".to_owned()], vec![]]);
    }

    #[test]
    fn where_hierarchies_usually_are() {
        for (names, place) in [
            (&["memory"][..], "/sys/fs/cgroup/memory"),
            (&["net_cls", "net_prio"], "/sys/fs/cgroup/net_cls,net_prio"),
            (&["name=systemd"], "/sys/fs/cgroup/systemd"),
        ] {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            assert_eq!(usual_v1(&names), Path::new(place));
        }
    }

    #[test]
    fn what_is_not_mounted_is_left_out() {
        let v1 = vec![V1 { controllers: vec!["name=gantry-absent".to_owned()], mount: "/sys/fs/cgroup/none".into() }];
        let found = Hierarchies { v1, ..Hierarchies::default() };
        assert_eq!(found.located().v1, []);
        assert_eq!(found.located().version_of("memory"), None);
    }

    #[test]
    fn a_file_of_several_pages_is_read_whole() {
        let text = read("/proc/self/smaps").expect("this process has memory");
        assert!(text.len() > 4096 && text.ends_with('\n'), "{} bytes", text.len());
        assert!(read("/proc/self/no-such-file").is_err());
    }

    #[test]
    fn mounts_in_unusual_places() {
        let table = "1 0 0:1 / / rw - ext4 /dev/x rw\n\
            2 1 0:2 / /cg\\040v1/cpu rw,nosuid shared:4 - cgroup cgroup rw,cpu,cpuacct\n\
            3 1 0:3 / /cg2 rw - cgroup2 none rw,nsdelegate\n";
        let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let found = |names: Option<&[String]>| mounts_of(table, names).collect::<Vec<_>>();
        assert_eq!(found(Some(&names(&["cpu", "cpuacct"]))), [PathBuf::from("/cg v1/cpu")]);
        assert_eq!(found(Some(&names(&["memory"]))), [] as [PathBuf; 0]);
        assert_eq!(found(None), [PathBuf::from("/cg2")]);
    }
}
