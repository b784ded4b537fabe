//! Volumes: directories that hold data, filled from the image where they are new.
//!
//! A new volume is filled beside its place and then renamed, so that it is there as a whole or not at all. Paths of the
//! image are resolved inside of it: a link in an image must not lead to the host's files.

use crate::fsx::{self, FileError};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::fs::{chmodat, chownat, fchmod, fchown, futimens, mkdirat, openat, openat2, readlinkat, statat, symlinkat};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// No image nests deeper; a descriptor is held per level.
const DEPTH_MAX: u32 = 200;

/// The data of an image could not be put into a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A file operation around it.
    #[error(transparent)]
    File(#[from] FileError),
    /// Copying.
    #[error("cannot fill volume {} from the image's {target}", volume.display())]
    Fill {
        /// Its directory.
        volume: PathBuf,
        /// Path in the image.
        target: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Not a name.
    #[error("`{0}` is not the name of a volume")]
    Name(String),
}

/// One change of a volume at a time: two replicas that share a new one must not both fill it, and one that is being
/// removed must not be filled. Others do not wait for it: filling copies as much as an image holds.
fn turn(dir: &Path) -> Arc<Mutex<()>> {
    static TURNS: Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());
    let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    turns.retain(|_, turn| Arc::strong_count(turn) > 1);
    Arc::clone(turns.entry(dir.to_owned()).or_default())
}

/// The data directory of the volume at `dir`; made, and filled from `target` of the image, where it is new or empty.
///
/// # Errors
/// The disk, or a file of the image that cannot be copied; the volume is not there then.
pub fn ensure(dir: &Path, rootfs: &Path, target: &str) -> Result<PathBuf, VolumeError> {
    let data = dir.join("_data");
    let turn = turn(dir);
    let _one = turn.lock().unwrap_or_else(PoisonError::into_inner);
    let used = fs::read_dir(&data).is_ok_and(|mut entries| entries.next().is_some());
    if used {
        return Ok(data);
    }
    fsx::ensure_dir(dir, 0o711)?;
    let new = dir.join("_new");
    fsx::remove_tree(&new)?;
    fsx::ensure_dir(&new, 0o755)?;
    let fill = |source| VolumeError::Fill { volume: dir.to_owned(), target: target.to_owned(), source };
    copy_image_dir(rootfs, target, &new).map_err(|errno| fill(errno.into()))?;
    // An empty directory may be replaced by rename.
    fs::rename(&new, &data).map_err(fill)?;
    Ok(data)
}

/// Deletes a named volume with its data.
pub(crate) fn remove(volumes: &Path, name: &str) -> Result<(), VolumeError> {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_';
    if name.is_empty() || !name.bytes().all(plain) {
        return Err(VolumeError::Name(name.to_owned()));
    }
    let dir = volumes.join(name);
    let turn = turn(&dir);
    let _one = turn.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(fsx::remove_tree(&dir)?)
}

/// Named volumes with data.
pub(crate) fn list(volumes: &Path) -> Result<Vec<String>, FileError> {
    let names = fsx::names(volumes)?;
    Ok(names.into_iter().filter(|name| volumes.join(name).join("_data").is_dir()).collect())
}

fn copy_image_dir(rootfs: &Path, target: &str, to: &Path) -> Result<(), Errno> {
    let dir = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs, OFlags::PATH | dir, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let from = match openat2(&root, target.trim_start_matches('/'), OFlags::RDONLY | dir, Mode::empty(), resolve) {
        Ok(from) => from,
        // The image has nothing there, or no directory: the volume begins empty.
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(error) => return Err(error),
    };
    let to = rustix::fs::open(to, OFlags::RDONLY | dir, Mode::empty())?;
    copy_dir(from, to, DEPTH_MAX)
}

/// Copies what is in `from`, and its owner, mode and time.
fn copy_dir(from: OwnedFd, to: OwnedFd, depth: u32) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(&from)?;
    for entry in Dir::read_from(&from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from.as_fd(), to.as_fd(), name, depth.checked_sub(1).ok_or(Errno::NAMETOOLONG)?)?;
        }
    }
    fchown(&to, Some(uid(&stat)), Some(gid(&stat)))?;
    fchmod(&to, mode(&stat))?;
    futimens(&to, &times(&stat))
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: u32) -> Result<(), Errno> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let follow_not = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | follow_not;
            copy_dir(openat(from, name, flags, Mode::empty())?, openat(to, name, flags, Mode::empty())?, depth)
        }
        FileType::RegularFile => {
            // Not blocked by a FIFO, should it have become one.
            let source = openat(from, name, OFlags::RDONLY | OFlags::NONBLOCK | follow_not, Mode::empty())?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | follow_not;
            let copy = openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
            copy_bytes(source, &copy)?;
            fchown(&copy, Some(uid(&stat)), Some(gid(&stat)))?;
            fchmod(&copy, mode(&stat))?;
            futimens(&copy, &times(&stat))
        }
        FileType::Symlink => {
            let link = readlinkat(from, name, Vec::new())?;
            symlinkat(&link, to, name)?;
            chownat(to, name, Some(uid(&stat)), Some(gid(&stat)), AtFlags::SYMLINK_NOFOLLOW)
        }
        FileType::Fifo => {
            rustix::fs::mknodat(to, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
            chownat(to, name, Some(uid(&stat)), Some(gid(&stat)), AtFlags::SYMLINK_NOFOLLOW)?;
            chmodat(to, name, mode(&stat), AtFlags::empty())
        }
        // Devices are for /dev, and a socket without its process is nothing.
        _ => Ok(()),
    }
}

fn copy_bytes(from: OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let mut to = File::from(to.try_clone().map_err(errno)?);
    io::copy(&mut File::from(from), &mut to).map(drop).map_err(errno)
}

fn uid(stat: &rustix::fs::Stat) -> rustix::fs::Uid {
    rustix::fs::Uid::from_raw(stat.st_uid)
}

fn gid(stat: &rustix::fs::Stat) -> rustix::fs::Gid {
    rustix::fs::Gid::from_raw(stat.st_gid)
}

fn mode(stat: &rustix::fs::Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn times(stat: &rustix::fs::Stat) -> Timestamps {
    let at = |seconds, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    Timestamps {
        last_access: at(stat.st_atime as _, stat.st_atime_nsec as _),
        last_modification: at(stat.st_mtime as _, stat.st_mtime_nsec as _),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn image() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("rootfs/var/data");
        fs::create_dir_all(data.join("sub")).unwrap();
        fs::write(data.join("sub/file"), "content").unwrap();
        fs::set_permissions(data.join("sub/file"), fs::Permissions::from_mode(0o4640)).unwrap();
        std::os::unix::fs::chown(data.join("sub/file"), Some(70), Some(71)).unwrap();
        fs::set_permissions(data.join("sub/file"), fs::Permissions::from_mode(0o4640)).unwrap();
        std::os::unix::fs::chown(&data, Some(70), Some(71)).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
        symlink("/etc/passwd", data.join("link")).unwrap();
        symlink("/var/data", dir.path().join("rootfs/alias")).unwrap();
        symlink("/../../../../etc", dir.path().join("rootfs/outside")).unwrap();
        let rootfs = dir.path().join("rootfs");
        (dir, rootfs)
    }

    #[test]
    fn a_volume_does_not_wait_for_another_that_is_being_filled() {
        let dir = tempfile::tempdir().unwrap();
        let (slow, quick) = (dir.path().join("slow"), dir.path().join("quick"));
        let filling = turn(&slow);
        let _held = filling.lock().unwrap();
        assert!(turn(&slow).try_lock().is_err(), "the same volume waits");
        ensure(&quick, dir.path(), "/nothing").unwrap();
    }

    #[test]
    fn a_new_volume_has_the_images_content_owner_and_mode() {
        let (dir, rootfs) = image();
        for target in ["/var/data", "/alias"] {
            let data = ensure(&dir.path().join("v").join(&target[1..]), &rootfs, target).unwrap();
            let top = fs::metadata(&data).unwrap();
            assert_eq!((top.uid(), top.gid(), top.mode() & 0o7777), (70, 71, 0o700), "{target}");
            let file = fs::metadata(data.join("sub/file")).unwrap();
            assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (70, 71, 0o4640));
            assert_eq!(fs::read_to_string(data.join("sub/file")).unwrap(), "content");
            assert_eq!(fs::read_link(data.join("link")).unwrap(), Path::new("/etc/passwd"));
        }
    }

    #[test]
    fn a_volume_with_data_is_left_alone() {
        let (dir, rootfs) = image();
        let volume = dir.path().join("v");
        fs::create_dir_all(volume.join("_new/half")).unwrap();
        let data = ensure(&volume, &rootfs, "/var/data").unwrap();
        fs::remove_dir_all(data.join("sub")).unwrap();
        fs::write(data.join("mine"), "").unwrap();
        ensure(&volume, &rootfs, "/var/data").unwrap();
        assert!(data.join("mine").exists() && !data.join("sub").exists());
    }

    #[test]
    fn a_link_in_the_image_does_not_lead_to_the_host() {
        let (dir, rootfs) = image();
        let data = ensure(&dir.path().join("v"), &rootfs, "/outside").unwrap();
        assert!(fs::read_dir(data).unwrap().next().is_none());
        let data = ensure(&dir.path().join("w"), &rootfs, "/var/data/sub/file").unwrap();
        assert!(fs::read_dir(data).unwrap().next().is_none(), "a file is no directory");
    }

    #[test]
    fn volumes_are_listed_and_removed_by_their_names() {
        let (dir, rootfs) = image();
        let volumes = dir.path().join("volumes");
        ensure(&volumes.join("shop_db"), &rootfs, "/nothing").unwrap();
        assert_eq!(list(&volumes).unwrap(), ["shop_db"]);
        for bad in ["", "..", "../rootfs", "/etc"] {
            assert!(matches!(remove(&volumes, bad), Err(VolumeError::Name(_))), "{bad}");
        }
        for _ in 0..2 {
            remove(&volumes, "shop_db").unwrap();
        }
        assert!(list(&volumes).unwrap().is_empty());
    }
}
