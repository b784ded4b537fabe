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
use rustix::mount::{self, FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags};

use crate::error::{ImageError, Result, at};

/// What to mount: directories, topmost lower one first.
#[derive(Debug)]
pub(crate) struct Overlay<'a> {
    pub(crate) lowers: &'a [PathBuf],
    pub(crate) upper: &'a Path,
    pub(crate) work: &'a Path,
    /// Never sync what is written: a crash of the host may lose it.
    pub(crate) volatile: bool,
}

struct Opened {
    lowers: Vec<OwnedFd>,
    upper: OwnedFd,
    work: OwnedFd,
    volatile: bool,
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
    let opened = Opened {
        lowers: overlay.lowers.iter().map(|dir| open(dir)).collect::<Result<_>>()?,
        upper: open(overlay.upper)?,
        work: open(overlay.work)?,
        volatile: overlay.volatile,
    };
    let mut failure = None;
    for way in WAYS {
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

fn open(dir: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::empty()).map_err(at("open", dir))
}

fn new_api(opened: &Opened, target: &Path, way: Way) -> Result<(), (Errno, String)> {
    let context = mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| (e, String::new()))?;
    let fs = context.as_fd();
    let done = configure(fs, opened, way)
        .and_then(|()| mount::fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()))
        .and_then(|made| mount::move_mount(&made, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH));
    done.map_err(|errno| (errno, words(fs)))
}

fn configure(fs: BorrowedFd<'_>, opened: &Opened, way: Way) -> rustix::io::Result<()> {
    mount::fsconfig_set_string(fs, "source", "overlay")?;
    for lower in &opened.lowers {
        set_directory(fs, "lowerdir+", lower, way)?;
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
    let lowers: Vec<String> = opened.lowers.iter().map(name).collect();
    let mut options =
        format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), name(&opened.upper), name(&opened.work));
    if opened.volatile {
        options.push_str(",volatile");
    }
    let options = CString::new(options).map_err(|_| (Errno::INVAL, String::new()))?;
    mount::mount("overlay", target, "overlay", MountFlags::empty(), &*options).map_err(|e| (e, String::new()))
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
                lowers: vec![open(&top).unwrap(), open(&bottom).unwrap()],
                upper: open(&dir("upper")).unwrap(),
                work: open(&dir("work")).unwrap(),
                volatile: true,
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
        let (upper, work, target) = (dir("upper"), dir("work"), dir("target"));
        let good = Overlay { lowers: &lowers, upper: &upper, work: &work, volatile: false };
        super::mount(&good, &target).unwrap();
        // overlayfs cannot write to an overlay.
        let (upper, work) = (dir("target/upper"), dir("target/work"));
        let bad = Overlay { upper: &upper, work: &work, ..good };
        let error = super::mount(&bad, &dir("other")).unwrap_err();
        assert!(matches!(&error, ImageError::Mount { detail, .. } if detail.contains("upperdir")), "{error}");
        assert!(error.hint().unwrap().contains("not on an overlay"));
    }
}
