//! Reading files that may not be what they should: never waits, never reads without a bound.

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Longest configuration or state. Real ones have some hundred KiB.
pub const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// For opening a file that may turn out to be a pipe, a device or a terminal.
const NEVER_WAIT: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// The content of a regular file.
///
/// # Errors
/// Those of opening and reading; `InvalidInput` for another kind of file (a pipe would keep us waiting for ever) and
/// `FileTooLarge` for one longer than `bytes_max`.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_open(&rustix::fs::open(path, NEVER_WAIT, Mode::empty())?, bytes_max)
}

/// The same for a file that is no link, with the directory it is in, by a path without links: one name is resolved where
/// the two by themselves take two.
///
/// # Errors
/// As [`read`]; `ELOOP` for a link, and `InvalidData` when the kernel has no name for the file any more.
pub fn read_in(directory: &Path, name: &str, bytes_max: u64) -> io::Result<(PathBuf, Vec<u8>)> {
    let file = rustix::fs::open(directory.join(name), NEVER_WAIT | OFlags::NOFOLLOW, Mode::empty())?;
    let link = rustix::fs::readlink(format!("/proc/self/fd/{}", file.as_raw_fd()), Vec::new())?;
    let found = Path::new(OsStr::from_bytes(link.as_bytes()));
    match found.parent() {
        Some(parent) if found.is_absolute() && found.file_name() == Some(OsStr::new(name)) => {
            Ok((parent.to_owned(), read_open(&file, bytes_max)?))
        }
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

/// The content of a file that the user names on the command line: a pipe (`<(...)` of a shell), too, until its end.
///
/// # Errors
/// As [`read`], but for pipes.
pub fn read_given(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = rustix::fs::open(path, NEVER_WAIT, Mode::empty())?;
    if !FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode).is_fifo() {
        return read_open(&file, bytes_max);
    }
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags.difference(OFlags::NONBLOCK))?;
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(bytes_max + 1).read_to_end(&mut bytes)?;
    within(bytes, bytes_max)
}

fn within(bytes: Vec<u8>, bytes_max: u64) -> io::Result<Vec<u8>> {
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// The content of a regular file of an image, by a process that has it as its root and descriptors of the host.
///
/// # Errors
/// As [`read`], and `ELOOP` when the path leads through a descriptor.
pub fn read_of_image(path: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = rustix::fs::openat2(CWD, path, NEVER_WAIT, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
    read_open(&file, bytes_max)
}

fn read_open(file: &OwnedFd, bytes_max: u64) -> io::Result<Vec<u8>> {
    let stat = rustix::fs::fstat(file)?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    // One more than it says, so that the first read sees the end.
    let mut bytes = Vec::with_capacity(size.min(bytes_max) as usize + 1);
    while bytes.len() as u64 <= bytes_max {
        match rustix::io::read(file, rustix::buffer::spare_capacity(&mut bytes)) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            // A regular file gives all that is asked for unless it ends.
            Ok(count) if count == 0 || bytes.len() < bytes.capacity() => break,
            Ok(_) => bytes.reserve(64 * 1024),
        }
    }
    within(bytes, bytes_max)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn regular_files_within_the_bound_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        std::fs::write(&path, "12345").expect("a file");
        assert_eq!(read(&path, 5).expect("exactly the bound"), b"12345");
        std::os::unix::fs::symlink(dir.path(), dir.path().join("way")).expect("a link");
        let real = std::fs::canonicalize(dir.path()).expect("there");
        assert_eq!(read_in(&dir.path().join("way/."), "file", 5).expect("a file"), (real, b"12345".to_vec()));
        assert!(read_in(dir.path(), "way", 5).is_err(), "a link");
        assert_eq!(read(&path, 4).expect_err("one more").kind(), io::ErrorKind::FileTooLarge);
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).expect("a pipe");
        for (why, path) in [("pipe", fifo.as_path()), ("device", Path::new("/dev/zero")), ("directory", dir.path())] {
            assert_eq!(read(path, 5).expect_err(why).kind(), io::ErrorKind::InvalidInput, "{why}");
        }
        std::os::unix::fs::symlink("/proc/self/exe", dir.path().join("link")).expect("a link");
        let link = dir.path().join("link").display().to_string();
        assert!(read_of_image(&link, u64::from(u32::MAX)).is_err(), "a magic link");
        assert_eq!(read_of_image(&path.display().to_string(), 5).expect("a file"), b"12345");
        assert_eq!(read(&dir.path().join("none"), 5).expect_err("absent").kind(), io::ErrorKind::NotFound);
    }
}
