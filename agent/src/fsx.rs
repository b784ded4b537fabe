//! Files that are whole or absent whatever happens.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct FileError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    /// For `map_err`.
    pub(crate) fn new(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { operation, path, source }
    }

    /// What the operator can do next.
    pub fn hint(&self) -> Option<String> {
        match self.source.kind() {
            io::ErrorKind::StorageFull => Some("free space on that file system".to_owned()),
            io::ErrorKind::PermissionDenied => Some("run as root".to_owned()),
            io::ErrorKind::ReadOnlyFilesystem => Some("choose a --data-dir that can be written".to_owned()),
            _ => None,
        }
    }
}

/// Replaces `path` as a whole, so that a crash leaves the old content or the new one; on disk when it returns.
pub(crate) fn write_durable(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let write = || {
        replace(path, bytes, mode, File::sync_all)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(FileError::new("write", path))
}

fn replace(path: &Path, bytes: &[u8], mode: u32, before: fn(&File) -> io::Result<()>) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    before(&file)?;
    fs::rename(&temporary, path)
}

/// Replaces `path` as a whole, but not more durably than the file system likes: for what can be made again.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    replace(path, bytes, mode, |_| Ok(())).map_err(FileError::new("write", path))
}

/// The file's bytes, `None` when it is not there.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::new("read", path)(error)),
    }
}

/// Makes a directory and those above it.
pub(crate) fn ensure_dir(path: &Path, mode: u32) -> Result<(), FileError> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(FileError::new("make directory", path))
}

/// Removes a file; succeeds when it is gone.
pub(crate) fn remove_file(path: &Path) -> Result<(), FileError> {
    gone(fs::remove_file(path)).map_err(FileError::new("remove", path))
}

/// Removes a directory with all in it, following no link; succeeds when it is gone.
pub(crate) fn remove_tree(path: &Path) -> Result<(), FileError> {
    gone(fs::remove_dir_all(path)).map_err(FileError::new("remove", path))
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Names in a directory in order; none when it is not there.
pub(crate) fn names(path: &Path) -> Result<Vec<String>, FileError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(FileError::new("list", path)(error)),
    };
    let name = |entry: io::Result<fs::DirEntry>| entry.map(|e| e.file_name().into_string().ok()).transpose();
    let mut names: Vec<String> =
        entries.filter_map(name).collect::<io::Result<_>>().map_err(FileError::new("list", path))?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_replaced_as_a_whole_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for text in ["one", "two"] {
            write_durable(&path, text.as_bytes(), 0o600).unwrap();
            assert_eq!(read(&path).unwrap().unwrap(), text.as_bytes());
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(dir.path()).unwrap(), ["x"]);
    }

    #[test]
    fn what_is_gone_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x/y");
        assert_eq!(read(&path).unwrap(), None);
        assert!(names(&path).unwrap().is_empty());
        remove_file(&path).unwrap();
        remove_tree(&path).unwrap();
    }

    #[test]
    fn an_error_names_operation_and_file() {
        let error = write_durable(Path::new("/proc/nope/x"), b"", 0o600).unwrap_err();
        assert_eq!(error.to_string(), "cannot write /proc/nope/x");
    }
}
