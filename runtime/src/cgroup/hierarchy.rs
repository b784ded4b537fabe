//! Where the cgroup hierarchies of this host are mounted, as this process sees them.

use super::table::Version;
use crate::error::{Because, Outcome};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// `CGROUP_SUPER_MAGIC`.
const V1_MAGIC: u64 = 0x0027_e0eb;
/// `CGROUP2_SUPER_MAGIC`.
const V2_MAGIC: u64 = 0x6367_7270;
/// Where hosts mount cgroups.
const USUAL: &str = "/sys/fs/cgroup";

/// One v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V1 {
    /// Its controllers, or one `name=...` for a hierarchy without any.
    pub controllers: Vec<String>,
    /// Mount point.
    pub mount: PathBuf,
}

impl V1 {
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
    /// Controllers available there.
    pub v2_controllers: Vec<String>,
}

impl Hierarchies {
    /// Look at this host. Mount tables grow with the number of containers, so the usual places are tried first.
    ///
    /// # Errors
    /// `/proc` is not readable.
    pub fn observe() -> Outcome<Self> {
        let mut found = Self::default();
        if magic(Path::new(USUAL)) == Some(V2_MAGIC) {
            found.v2 = Some(PathBuf::from(USUAL));
        } else {
            let membership =
                fs::read_to_string("/proc/self/cgroup").because(|| "cannot read `/proc/self/cgroup`".to_owned())?;
            let mut table = None;
            for controllers in controller_sets(&membership) {
                if controllers.is_empty() {
                    found.v2 = usual_v2().or_else(|| find(mount_table(&mut table), None));
                    continue;
                }
                let mount = usual_v1(&controllers).or_else(|| find(mount_table(&mut table), Some(&controllers)));
                if let Some(mount) = mount {
                    found.v1.push(V1 { controllers, mount });
                }
            }
        }
        if let Some(mount) = &found.v2 {
            let file = mount.join("cgroup.controllers");
            let names = fs::read_to_string(&file).because(|| format!("cannot read `{}`", file.display()))?;
            found.v2_controllers = names.split_whitespace().map(str::to_owned).collect();
        }
        Ok(found)
    }

    /// Which interface a controller has here.
    pub fn version_of(&self, controller: &str) -> Option<Version> {
        if self.v1_of(controller).is_some() {
            Some(Version::V1)
        } else if self.v2_controllers.iter().any(|name| name == controller) {
            Some(Version::V2)
        } else {
            None
        }
    }

    /// The v1 hierarchy that has a controller.
    pub fn v1_of(&self, controller: &str) -> Option<&V1> {
        self.v1.iter().find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
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

fn usual_v1(controllers: &[String]) -> Option<PathBuf> {
    let name = controllers.join(",");
    let path = Path::new(USUAL).join(name.strip_prefix("name=").unwrap_or(&name));
    (magic(&path) == Some(V1_MAGIC)).then_some(path)
}

fn usual_v2() -> Option<PathBuf> {
    let path = Path::new(USUAL).join("unified");
    (magic(&path) == Some(V2_MAGIC)).then_some(path)
}

/// Read the mount table once, when something is not in its usual place.
fn mount_table(table: &mut Option<String>) -> &str {
    table.get_or_insert_with(|| {
        let bytes = fs::read("/proc/self/mountinfo").unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Find the mount of a v1 hierarchy, or of the unified one for `None`.
fn find(mountinfo: &str, controllers: Option<&[String]>) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
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
    fn mounts_in_unusual_places() {
        let table = "1 0 0:1 / / rw - ext4 /dev/x rw\n\
            2 1 0:2 / /cg\\040v1/cpu rw,nosuid shared:4 - cgroup cgroup rw,cpu,cpuacct\n\
            3 1 0:3 / /cg2 rw - cgroup2 none rw,nsdelegate\n";
        let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(find(table, Some(&names(&["cpu", "cpuacct"]))), Some(PathBuf::from("/cg v1/cpu")));
        assert_eq!(find(table, Some(&names(&["memory"]))), None);
        assert_eq!(find(table, None), Some(PathBuf::from("/cg2")));
    }
}
