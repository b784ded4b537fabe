//! `tmpcopyup`: fill a new tmpfs with the files it is going to cover, by descriptors only.

use super::path::{Links, RootDir};
use crate::error::{Because, Outcome};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Deepest directory that is copied; each level holds descriptors and stack.
const DEPTH_MAX: u32 = 128;

/// Copy the content of `path` in the root to the root of `target`.
///
/// # Errors
/// A file cannot be read or written.
pub fn copy(root: RootDir<'_>, path: &str, target: BorrowedFd<'_>) -> Outcome<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let source = match root.open(path, flags, Links::for_path(path)) {
        Err(Errno::NOENT) => return Ok(()),
        result => result.because(|| format!("cannot read `{path}`"))?,
    };
    let stat = rustix::fs::fstat(&source).because(|| format!("cannot read `{path}`"))?;
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let target =
        rustix::fs::openat(target, ".", flags, Mode::empty()).because(|| "cannot open the tmpfs".to_owned())?;
    copy_directory(source.as_fd(), target.as_fd(), 0)
        .and_then(|()| copy_attributes(&stat, target.as_fd()))
        .because(|| format!("cannot copy what is in `{path}`"))
}

/// Copy what is in a directory. Everything is known from its descriptor: a name may stand for another file at any time.
fn copy_directory(source: BorrowedFd<'_>, target: BorrowedFd<'_>, depth: u32) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(Errno::NAMETOOLONG.into());
    }
    for entry in Dir::read_from(source)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(source, name, flags, Mode::empty()) {
            // Removed meanwhile.
            Err(Errno::NOENT) => continue,
            result => result?,
        };
        copy_file(source, name, &file, target, depth)?;
    }
    Ok(())
}

/// Copy one file.
///
/// - `file`: it, as a path descriptor; to be read, it is opened again and must still be the same.
fn copy_file(
    source: BorrowedFd<'_>,
    name: &CStr,
    file: &OwnedFd,
    target: BorrowedFd<'_>,
    depth: u32,
) -> io::Result<()> {
    let stat = rustix::fs::fstat(file)?;
    let private = Mode::from_raw_mode(0o700);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            rustix::fs::mkdirat(target, name, private)?;
            let from = rustix::fs::openat(file, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let to = rustix::fs::openat(target, name, flags, Mode::empty())?;
            copy_directory(from.as_fd(), to.as_fd(), depth + 1)?;
            copy_attributes(&stat, to.as_fd())
        }
        FileType::RegularFile => {
            // Not waiting, should it be a pipe by now.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
            let from = rustix::fs::openat(source, name, flags, Mode::empty())?;
            let opened = rustix::fs::fstat(&from)?;
            if (opened.st_dev, opened.st_ino) != (stat.st_dev, stat.st_ino) {
                return Err(io::Error::other(format!("{name:?} was replaced while it was copied")));
            }
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let to = rustix::fs::openat(target, name, flags, private)?;
            io::copy(&mut File::from(from), &mut File::from(to.try_clone()?))?;
            copy_attributes(&stat, to.as_fd())
        }
        FileType::Symlink => {
            let link = rustix::fs::readlinkat(file, "", Vec::new())?;
            rustix::fs::symlinkat(link.as_c_str(), target, name)?;
            copy_owner(&stat, target, name)
        }
        kind => {
            rustix::fs::mknodat(target, name, kind, Mode::from_raw_mode(stat.st_mode), stat.st_rdev)?;
            copy_owner(&stat, target, name)
        }
    }
}

fn copy_owner(stat: &rustix::fs::Stat, target: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let (uid, gid) = owner(stat);
    Ok(rustix::fs::chownat(target, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn owner(stat: &rustix::fs::Stat) -> (rustix::fs::Uid, rustix::fs::Gid) {
    (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid))
}

fn copy_attributes(stat: &rustix::fs::Stat, target: BorrowedFd<'_>) -> io::Result<()> {
    let (uid, gid) = owner(stat);
    rustix::fs::fchown(target, Some(uid), Some(gid))?;
    Ok(rustix::fs::fchmod(target, Mode::from_raw_mode(stat.st_mode))?)
}
