//! Copies the merged layers of an image into one directory, where the kernel cannot stack them.
//!
//! Lowest layer first, each over the one before, by the rules that overlayfs has: a mark of a deletion removes, an opaque
//! directory hides, a directory over a directory is merged. No link is ever followed: what is descended into was looked
//! at with `lstat` and made by this copy, which nobody else sees yet.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use crate::error::{ImageError, Result, at};
use crate::files;
use crate::pack::{attributes_of_image, is_opaque};

/// Merge `layers`, topmost first, into the directory `target`, which is there and empty.
///
/// # Errors
/// Those of the file system; what is half made is the caller's to remove.
pub(crate) fn merge(layers: &[PathBuf], target: &Path) -> Result<()> {
    for layer in layers.iter().rev() {
        let mut one = Layer { from: layer, to: target, names: BTreeMap::new() };
        one.directory(Path::new(""))?;
    }
    Ok(())
}

struct Layer<'a> {
    from: &'a Path,
    to: &'a Path,
    /// Of files with several names, by inode, where the first one was copied to.
    names: BTreeMap<u64, PathBuf>,
}

impl Layer<'_> {
    fn directory(&mut self, path: &Path) -> Result<()> {
        let (from, to) = (self.from.join(path), self.to.join(path));
        for name in fs::read_dir(&from).map_err(at("list", &from))? {
            let name = name.map_err(at("list", &from))?.file_name();
            self.entry(&path.join(name))?;
        }
        let meta = from.symlink_metadata().map_err(at("read", &from))?;
        // Last, because what is made inside changes the time.
        dress(&from, &to, &meta)
    }

    fn entry(&mut self, path: &Path) -> Result<()> {
        let (from, to) = (self.from.join(path), self.to.join(path));
        let meta = from.symlink_metadata().map_err(at("read", &from))?;
        let kind = meta.file_type();
        if kind.is_char_device() && meta.rdev() == 0 {
            return files::remove_all(&to);
        }
        let there = to.symlink_metadata().ok();
        let merged = kind.is_dir() && there.as_ref().is_some_and(Metadata::is_dir) && !is_opaque(&from);
        if there.is_some() && !merged {
            files::remove_all(&to)?;
        }
        if kind.is_dir() {
            files::ensure_dir(&to, 0o700)?;
            return self.directory(path);
        }
        if meta.nlink() > 1 {
            if let Some(first) = self.names.get(&meta.ino()) {
                return fs::hard_link(first, &to).map_err(at("make", &to));
            }
            self.names.insert(meta.ino(), to.clone());
        }
        make(&from, &to, &meta)?;
        dress(&from, &to, &meta)
    }
}

/// Everything but a directory, without its attributes.
fn make(from: &Path, to: &Path, meta: &Metadata) -> Result<()> {
    let kind = meta.file_type();
    if kind.is_symlink() {
        let target = fs::read_link(from).map_err(at("read", from))?;
        return std::os::unix::fs::symlink(target, to).map_err(at("make", to));
    }
    let node = match kind {
        kind if kind.is_file() => return fs::copy(from, to).map(drop).map_err(at("copy", from)),
        kind if kind.is_fifo() => FileType::Fifo,
        kind if kind.is_block_device() => FileType::BlockDevice,
        kind if kind.is_char_device() => FileType::CharacterDevice,
        // A layer has no sockets.
        _ => return Ok(()),
    };
    rustix::fs::mknodat(CWD, to, node, Mode::from_raw_mode(0o600), meta.rdev()).map_err(at("make", to))
}

/// Owner, mode, attributes and times, in this order: each may undo a later one.
fn dress(from: &Path, to: &Path, meta: &Metadata) -> Result<()> {
    std::os::unix::fs::lchown(to, Some(meta.uid()), Some(meta.gid())).map_err(at("set the owner of", to))?;
    if !meta.is_symlink() {
        fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777)).map_err(at("set the mode of", to))?;
    }
    for (name, value) in attributes_of_image(from)? {
        let set = rustix::fs::lsetxattr(to, name.as_bytes(), &value, XattrFlags::empty());
        match set {
            // The file system that is too poor for overlayfs may be too poor for these.
            Err(rustix::io::Errno::NOTSUP) if name != "security.capability" => {}
            other => other.map_err(at("set an attribute of", to))?,
        }
    }
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(meta.atime(), meta.atime_nsec()),
        last_modification: time(meta.mtime(), meta.mtime_nsec()),
    };
    rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(at("set the time of", to))
}

/// Copy only the directories of a tree, with their attributes, into another tree.
pub(crate) fn directories(from: &Path, to: &Path) -> Result<()> {
    for name in fs::read_dir(from).map_err(at("list", from))? {
        let name = name.map_err(at("list", from))?.file_name();
        let (inner, target) = (from.join(&name), to.join(&name));
        if inner.symlink_metadata().map_err(at("read", &inner))?.is_dir() {
            files::ensure_dir(&target, 0o700)?;
            directories(&inner, &target)?;
        }
    }
    let meta = from.symlink_metadata().map_err(at("read", from))?;
    dress(from, to, &meta)
}

/// Bytes on disk and inodes of a tree. What vanishes while it is counted counts as nothing.
pub(crate) fn measure(root: &Path) -> Result<(u64, u64)> {
    let (mut bytes, mut inodes) = (0, 0);
    let mut seen = std::collections::BTreeSet::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let gone = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => None,
            _ => Some(ImageError::io("read", &path, error)),
        };
        let meta = match path.symlink_metadata() {
            Ok(meta) => meta,
            Err(error) => match gone(error) {
                None => continue,
                Some(error) => return Err(error),
            },
        };
        if meta.nlink() > 1 && !meta.is_dir() && !seen.insert((meta.dev(), meta.ino())) {
            continue;
        }
        bytes += meta.blocks() * 512;
        inodes += 1;
        if meta.is_dir() {
            match fs::read_dir(&path) {
                Ok(entries) => waiting.extend(entries.flatten().map(|entry| entry.path())),
                Err(error) => {
                    if let Some(error) = gone(error) {
                        return Err(error);
                    }
                }
            }
        }
    }
    Ok((bytes, inodes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_copy_follows_no_link_and_obeys_marks() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["low/d", "low/opaque", "high/d", "high/opaque", "high/link", "outside", "to"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("low/d/gone"), "1").unwrap();
        fs::write(at("low/d/kept"), "1").unwrap();
        fs::write(at("low/opaque/old"), "1").unwrap();
        fs::hard_link(at("low/d/kept"), at("low/d/again")).unwrap();
        // The layer above has a directory where this one has a link to outside.
        symlink(at("outside"), at("low/link")).unwrap();
        fs::write(at("high/link/inside"), "2").unwrap();
        fs::write(at("high/opaque/new"), "2").unwrap();
        rustix::fs::mknodat(CWD, at("high/d/gone"), FileType::CharacterDevice, Mode::empty(), 0).expect("needs root");
        rustix::fs::lsetxattr(at("high/opaque"), crate::unpack::OPAQUE, b"y", XattrFlags::empty()).unwrap();
        merge(&[at("high"), at("low")], &at("to")).unwrap();
        let listed = |name: &str| files::names(&at(name)).unwrap().join(" ");
        assert_eq!(listed("to"), "d link opaque");
        assert_eq!(listed("to/d"), "again kept");
        assert_eq!(listed("to/opaque"), "new");
        assert_eq!(listed("to/link"), "inside");
        assert_eq!(listed("outside"), "");
        let inode = |name: &str| at(name).symlink_metadata().unwrap().ino();
        assert_eq!(inode("to/d/again"), inode("to/d/kept"));
        let (bytes, inodes) = measure(&at("to")).unwrap();
        assert_eq!(inodes, 7, "the second name of a file is no file");
        assert!(bytes > 0);
    }
}
