//! Small files in as few system calls as they take: no size is asked for, and no name is resolved twice.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Read the start of a file of procfs into `buffer`; these come whole, if there is room for them.
///
/// # Errors
/// It is not there or cannot be read.
pub fn read_into(path: &Path, buffer: &mut [u8]) -> io::Result<usize> {
    read_start(&rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?, buffer)
}

/// The same for a file that a process reads once: left to its end to close it.
///
/// # Errors
/// As [`read_into`].
pub fn read_once(path: &Path, buffer: &mut [u8]) -> io::Result<usize> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let fd = std::mem::ManuallyDrop::new(fd);
    read_start(&fd, buffer)
}

fn read_start(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(fd, &mut *buffer) {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Make a new file, and leave it to the end of this process, or its next program, to close it.
///
/// # Errors
/// As [`create`].
pub fn create_and_leave(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fd = open_new(path)?;
    write_all(&fd, bytes)?;
    std::mem::forget(fd);
    Ok(())
}

/// Read a regular file whole.
///
/// # Errors
/// It is not there or cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes: Vec<u8> = Vec::with_capacity(16 * 1024);
    loop {
        match rustix::io::read(&fd, rustix::buffer::spare_capacity(&mut bytes)) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            // A regular file gives all that is asked for unless it ends.
            Ok(count) if count == 0 || bytes.len() < bytes.capacity() => return Ok(bytes),
            Ok(_) => bytes.reserve(bytes.capacity()),
        }
    }
}

/// The path of a directory without links, `.` and `..`. The kernel resolves it at once, where the standard library asks
/// for each part.
///
/// # Errors
/// It is not there, or no directory.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    match rustix::fs::readlink(link, Vec::new()) {
        Ok(found) => Ok(PathBuf::from(OsStr::from_bytes(found.as_bytes()))),
        // Without procfs, the long way.
        Err(_) => std::fs::canonicalize(path),
    }
}

/// Make a new file.
///
/// # Errors
/// It is there already, or cannot be made or written.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_all(open_new(path)?, bytes)
}

fn open_new(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?)
}

fn write_all(fd: impl std::os::fd::AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_links() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("real")).expect("a directory");
        std::os::unix::fs::symlink("real", dir.path().join("link")).expect("a link");
        std::fs::write(dir.path().join("file"), "").expect("a file");
        let real = std::fs::canonicalize(dir.path()).expect("there").join("real");
        assert_eq!(resolve(&dir.path().join("link/../real/.")).expect("there"), real);
        assert_eq!(resolve(&dir.path().join("link")).expect("there"), real);
        assert!(resolve(&dir.path().join("file")).is_err());
        assert!(resolve(&dir.path().join("none")).is_err());
    }

    #[test]
    fn a_file_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a directory");
        for size in [0, 1, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 200_000] {
            let path = dir.path().join(size.to_string());
            let bytes: Vec<u8> = (0..size).map(|at: usize| at as u8).collect();
            create(&path, &bytes).expect("a new file");
            assert_eq!(read(&path).expect("the file"), bytes, "{size}");
            assert!(create(&path, b"").is_err(), "there already");
        }
        let mut buffer = [0; 4];
        assert_eq!(read_into(&dir.path().join("200000"), &mut buffer).expect("the file"), 4);
        assert_eq!(buffer, [0, 1, 2, 3]);
    }
}
