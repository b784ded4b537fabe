//! Mounts overlayfs in the mount namespace of the caller.
//!
//! Directories are given as descriptors: no path is resolved twice, and the option string of the old call, one page
//! long, does not limit the number of layers. Kernels before 6.13 get the same directories by their names under
//! `/proc/self/fd`, through the new calls (6.5) or the old one.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    self, FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::error::{ImageError, Result, at};
use crate::snapshot::IdMaps;
use crate::sys;

/// What to mount: directories, topmost lower one first.
#[derive(Debug)]
pub(crate) struct Overlay<'a> {
    pub(crate) lowers: &'a [PathBuf],
    /// The directory that has `upper` and `work`.
    pub(crate) own: &'a Path,
    /// Never sync what is written: a crash of the host may lose it.
    pub(crate) volatile: bool,
    /// Nothing is to be written.
    pub(crate) read_only: bool,
    /// Show the files of `lowers` to a user namespace as if they were its own. Those above have its owners on disk: what
    /// overlayfs makes for itself would otherwise belong to nobody.
    pub(crate) ids: Option<&'a IdMaps>,
}

struct Opened {
    lowers: Vec<Directory>,
    upper: OwnedFd,
    work: OwnedFd,
    volatile: bool,
    read_only: bool,
}

/// How the kernel is told of the directories.
#[derive(Debug, Clone, Copy)]
enum Way {
    Descriptors,
    Names,
    OldCall,
}

/// Best first.
const WAYS: [Way; 3] = [Way::Descriptors, Way::Names, Way::OldCall];

/// Mount at `target`, which must be a directory.
pub(crate) fn mount(overlay: &Overlay<'_>, target: &Path) -> Result<()> {
    let namespace = overlay.ids.map(IdMaps::namespace).transpose().map_err(|source| ImageError::Mount {
        target: target.to_path_buf(),
        detail: "there is no user namespace with these maps".to_owned(),
        source,
    })?;
    let own = open(overlay.own)?;
    let inside = |name: &str| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&own, name, flags, Mode::empty()).map_err(at("open", &overlay.own.join(name)))
    };
    let opened = Opened {
        lowers: overlay.lowers.iter().map(|dir| mapped(dir, namespace.as_ref())).collect::<Result<_>>()?,
        upper: inside("upper")?,
        work: inside("work")?,
        volatile: overlay.volatile,
        read_only: overlay.read_only,
    };
    let mut failure = None;
    // A mount that nobody else sees has no name that the older ways could use.
    let ways = if overlay.ids.is_some() { &WAYS[..1] } else { &WAYS };
    for way in ways.iter().copied() {
        match mount_by(way, &opened, target) {
            Ok(()) => return Ok(()),
            Err((errno, detail)) => {
                // The first refusal with words of the kernel is the one that explains.
                let better =
                    failure.as_ref().is_none_or(|(_, old): &(Errno, String)| old.is_empty() && !detail.is_empty());
                if better {
                    failure = Some((errno, detail));
                }
                if !matches!(errno, Errno::INVAL | Errno::NOSYS | Errno::BADF | Errno::OPNOTSUPP) {
                    break;
                }
            }
        }
    }
    let (errno, detail) = failure.unwrap_or((Errno::NOSYS, String::new()));
    Err(ImageError::Mount { target: target.to_path_buf(), detail, source: errno.into() })
}

fn mount_by(way: Way, opened: &Opened, target: &Path) -> Result<(), (Errno, String)> {
    match way {
        Way::Descriptors | Way::Names => new_api(opened, target, way),
        Way::OldCall => old_api(opened, target),
    }
}

/// A directory, and what must live as long.
struct Directory {
    fd: OwnedFd,
    /// A mount that nobody else sees; it goes when this is closed.
    _tree: Option<OwnedFd>,
}

/// The directory itself, or a mount of it that shows its owners as a user namespace has them.
fn mapped(dir: &Path, namespace: Option<&OwnedFd>) -> Result<Directory> {
    let fd = open(dir)?;
    let Some(namespace) = namespace else {
        return Ok(Directory { fd, _tree: None });
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mapped = mount::open_tree(&fd, "", flags).map_err(io::Error::from).and_then(|tree| {
        sys::map_ids(tree.as_fd(), namespace.as_fd())?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Directory { fd: rustix::fs::openat(&tree, ".", flags, Mode::empty())?, _tree: Some(tree) })
    });
    mapped.map_err(|source| ImageError::Mount {
        target: dir.to_path_buf(),
        detail: "its owners cannot be mapped to a user namespace".to_owned(),
        source,
    })
}

fn open(dir: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::empty()).map_err(at("open", dir))
}

fn new_api(opened: &Opened, target: &Path, way: Way) -> Result<(), (Errno, String)> {
    let context = mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| (e, String::new()))?;
    let fs = context.as_fd();
    let attributes = if opened.read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    let done = configure(fs, opened, way)
        .and_then(|()| mount::fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes))
        .and_then(|made| mount::move_mount(&made, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH));
    done.map_err(|errno| (errno, words(fs)))
}

fn configure(fs: BorrowedFd<'_>, opened: &Opened, way: Way) -> rustix::io::Result<()> {
    mount::fsconfig_set_string(fs, "source", "overlay")?;
    for lower in &opened.lowers {
        set_directory(fs, "lowerdir+", &lower.fd, way)?;
    }
    set_directory(fs, "upperdir", &opened.upper, way)?;
    set_directory(fs, "workdir", &opened.work, way)?;
    if opened.volatile {
        mount::fsconfig_set_flag(fs, "volatile")?;
    }
    mount::fsconfig_create(fs)
}

fn set_directory(fs: BorrowedFd<'_>, key: &str, dir: &OwnedFd, way: Way) -> rustix::io::Result<()> {
    match way {
        Way::Descriptors => mount::fsconfig_set_fd(fs, key, dir),
        Way::Names | Way::OldCall => mount::fsconfig_set_string(fs, key, name(dir)),
    }
}

fn name(dir: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", dir.as_raw_fd())
}

/// What the kernel says about the failure: lines such as `e overlay: …`.
fn words(fs: BorrowedFd<'_>) -> String {
    let mut lines = Vec::new();
    let mut buffer = [0; 1024];
    // Bounded: the kernel keeps eight messages.
    for _ in 0..8 {
        let Ok(count) = rustix::io::read(fs, &mut buffer) else {
            break;
        };
        let line = String::from_utf8_lossy(&buffer[..count]);
        lines.push(line.trim_start_matches(['e', 'w', 'i']).trim().to_owned());
    }
    lines.join("; ")
}

fn old_api(opened: &Opened, target: &Path) -> Result<(), (Errno, String)> {
    let lowers: Vec<String> = opened.lowers.iter().map(|lower| name(&lower.fd)).collect();
    let mut options =
        format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), name(&opened.upper), name(&opened.work));
    if opened.volatile {
        options.push_str(",volatile");
    }
    let options = CString::new(options).map_err(|_| (Errno::INVAL, String::new()))?;
    let flags = if opened.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    mount::mount("overlay", target, "overlay", flags, &*options).map_err(|e| (e, String::new()))
}

/// Show a directory at itself, read-only.
pub(crate) fn lock_in(dir: &Path) -> Result<()> {
    let refused = |errno: Errno| ImageError::Mount {
        target: dir.to_path_buf(),
        detail: "it cannot be made read-only".to_owned(),
        source: errno.into(),
    };
    mount::mount_bind(dir, dir).map_err(refused)?;
    mount::mount_remount(dir, MountFlags::BIND | MountFlags::RDONLY, "").map_err(refused)
}

/// Whether something is mounted at `path`.
pub(crate) fn is_mounted(path: &Path) -> Result<bool> {
    match rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE) {
        Ok(stat) => Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(errno) => Err(ImageError::io("look at", path, errno)),
    }
}

/// Unmount whatever is mounted at `path`, also if it is in use.
pub(crate) fn unmount(path: &Path) -> Result<()> {
    while is_mounted(path)? {
        match mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(ImageError::io("unmount", path, io::Error::from(errno))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};

    /// All ways work on this kernel, so that the older ones are known to work before an older kernel needs them.
    #[test]
    fn every_way_mounts_the_same() {
        unshare(CloneFlags::CLONE_NEWNS).expect("needs root");
        mount::mount_change("/", mount::MountPropagationFlags::REC | mount::MountPropagationFlags::PRIVATE).unwrap();
        mount::mount("tmpfs", "/mnt", "tmpfs", MountFlags::empty(), None).unwrap();
        for way in WAYS {
            let base = Path::new("/mnt").join(format!("{way:?}"));
            let dir = |name: &str| {
                let dir = base.join(name);
                std::fs::create_dir_all(&dir).unwrap();
                dir
            };
            let (top, bottom, target) = (dir("top,a:b"), dir("bottom"), dir("target"));
            std::fs::write(top.join("file"), "top").unwrap();
            std::fs::write(bottom.join("file"), "bottom").unwrap();
            let opened = Opened {
                lowers: vec![mapped(&top, None).unwrap(), mapped(&bottom, None).unwrap()],
                upper: open(&dir("upper")).unwrap(),
                work: open(&dir("work")).unwrap(),
                volatile: true,
                read_only: false,
            };
            mount_by(way, &opened, &target).unwrap_or_else(|e| panic!("{way:?}: {e:?}"));
            assert!(is_mounted(&target).unwrap(), "{way:?}");
            assert_eq!(std::fs::read_to_string(target.join("file")).unwrap(), "top", "{way:?}");
            unmount(&target).unwrap();
            assert!(!is_mounted(&target).unwrap(), "{way:?}");
            assert!(!target.join("file").exists(), "{way:?}");
        }
    }

    #[test]
    fn a_refusal_of_the_kernel_is_told_in_its_words() {
        unshare(CloneFlags::CLONE_NEWNS).expect("needs root");
        mount::mount_change("/", mount::MountPropagationFlags::REC | mount::MountPropagationFlags::PRIVATE).unwrap();
        mount::mount("tmpfs", "/mnt", "tmpfs", MountFlags::empty(), None).unwrap();
        let dir = |name: &str| {
            let dir = Path::new("/mnt").join(name);
            std::fs::create_dir_all(&dir).unwrap();
            dir
        };
        let lowers = [dir("lower")];
        let (own, target) = (dir(""), dir("target"));
        for name in ["upper", "work"] {
            dir(name);
        }
        let good = Overlay { lowers: &lowers, own: &own, volatile: false, read_only: false, ids: None };
        super::mount(&good, &target).unwrap();
        // overlayfs cannot write to an overlay.
        for name in ["target/upper", "target/work"] {
            dir(name);
        }
        let bad = Overlay { own: &target, ..good };
        let error = super::mount(&bad, &dir("other")).unwrap_err();
        assert!(matches!(&error, ImageError::Mount { detail, .. } if detail.contains("upperdir")), "{error}");
        assert!(error.hint().unwrap().contains("not on an overlay"));
    }
}
