//! `tmpcopyup`: fill a new tmpfs with the files it is going to cover, by descriptors only.

use super::path::{Links, RootDir};
use crate::error::{Because, Outcome};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

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
    copy_directory(source.as_fd(), target.as_fd())
        .and_then(|()| copy_attributes(&stat, target.as_fd()))
        .because(|| format!("cannot copy what is in `{path}`"))
}

fn copy_directory(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    for entry in Dir::read_from(source)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        let nofollow = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(target, name, mode)?;
                let from = rustix::fs::openat(source, name, OFlags::DIRECTORY | nofollow, Mode::empty())?;
                let to = rustix::fs::openat(target, name, OFlags::DIRECTORY | nofollow, Mode::empty())?;
                copy_directory(from.as_fd(), to.as_fd())?;
                copy_attributes(&stat, to.as_fd())?;
            }
            FileType::RegularFile => {
                let from = rustix::fs::openat(source, name, OFlags::RDONLY | nofollow, Mode::empty())?;
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | nofollow;
                let to = rustix::fs::openat(target, name, flags, mode)?;
                io::copy(&mut File::from(from), &mut File::from(to.try_clone()?))?;
                copy_attributes(&stat, to.as_fd())?;
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(source, name, Vec::new())?;
                rustix::fs::symlinkat(link.as_c_str(), target, name)?;
                let (uid, gid) = owner(&stat);
                rustix::fs::chownat(target, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            kind => {
                rustix::fs::mknodat(target, name, kind, mode, stat.st_rdev)?;
                let (uid, gid) = owner(&stat);
                rustix::fs::chownat(target, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
    }
    Ok(())
}

fn owner(stat: &rustix::fs::Stat) -> (rustix::fs::Uid, rustix::fs::Gid) {
    (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid))
}

fn copy_attributes(stat: &rustix::fs::Stat, target: BorrowedFd<'_>) -> io::Result<()> {
    let (uid, gid) = owner(stat);
    rustix::fs::fchown(target, Some(uid), Some(gid))?;
    Ok(rustix::fs::fchmod(target, Mode::from_raw_mode(stat.st_mode))?)
}
