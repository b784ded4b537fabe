//! Removal of a large tree by several threads.
//!
//! On a disk that discards what is freed, each unlink waits about a millisecond for the device; eight at once wait
//! together. No link is followed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// More at once gain nothing on the disks measured.
const THREADS: usize = 16;

/// Removes `top` and all in it; gone is fine.
///
/// # Errors
/// What could not be removed in the end.
pub fn remove(top: &Path) -> io::Result<()> {
    let mut levels = Vec::new();
    let mut files = Vec::new();
    match list(top, 0, &mut levels, &mut files) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // A plain file, or something that changes: the plain way says what is wrong.
        Err(_) => return plain(top),
        Ok(()) => {}
    }
    each(&files, |path| fs::remove_file(path));
    for level in levels.iter().rev() {
        each(level, |path| fs::remove_dir(path));
    }
    // Whatever was refused or came meanwhile.
    plain(top)
}

fn plain(top: &Path) -> io::Result<()> {
    match fs::remove_dir_all(top) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Directories by depth, and everything else.
fn list(dir: &Path, depth: usize, levels: &mut Vec<Vec<PathBuf>>, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if levels.len() <= depth {
        levels.push(Vec::new());
    }
    levels[depth].push(dir.to_owned());
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), depth + 1, levels, files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn each(paths: &[PathBuf], remove: impl Fn(&Path) -> io::Result<()> + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS.min(paths.len()) {
            scope.spawn(|| {
                while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // What is refused is told by the plain way at the end.
                    let _ = remove(path);
                }
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_goes_and_what_links_point_to_stays() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        for i in 0..40 {
            let deep = top.join(format!("a{i}/b/c"));
            fs::create_dir_all(&deep).unwrap();
            fs::write(deep.join("file"), "x").unwrap();
            std::os::unix::fs::symlink(&outside, deep.join("link")).unwrap();
        }
        remove(&top).unwrap();
        assert!(!top.exists());
        assert!(outside.join("kept").exists());
        remove(&top).unwrap();
    }

    #[test]
    fn a_file_is_no_tree() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(remove(&file).is_err());
    }
}
