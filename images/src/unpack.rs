//! Makes the directory tree of one layer from its tar archive, in the form that overlayfs reads.
//!
//! Layers come from strangers. Every parent directory is opened with `openat2` so that neither `..` nor a symbolic
//! link is ever followed; every leaf is made anew (`O_EXCL`, `O_NOFOLLOW`). Deletions of the layer become what
//! overlayfs takes for them: a character device 0:0 for `.wh.NAME`, an attribute of the directory for `.wh..wh..opq`.
//!
//! # Source
//! OCI image-spec `layer.md`; kernel `Documentation/filesystems/overlayfs.rst`, "whiteouts and opaque directories".

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    self as sys, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::catalog::{self, Item, Owned, Recorder};
use crate::error::is_disk_full;
use crate::tarball::{Kind, Member, TarReader};

/// The attribute with which overlayfs hides the same directory of lower layers.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// Names deeper than this are refused: deleting such a tree needs a descriptor per level.
const DEPTH_MAX: usize = 256;

/// The kernel's limits for a path and for one name.
const PATH_MAX: usize = 4095;
const NAME_MAX: usize = 255;

/// Names of directories are remembered until the end: real layers have a few MiB of them.
const REMEMBERED_MAX: u64 = 256 << 20;

/// What one layer may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of all files of a layer.
    pub bytes: u64,
    /// Files, directories and everything else of a layer.
    pub inodes: u64,
}

impl Default for Limits {
    /// Far above real images (the largest known have layers of 30 GiB and half a million files).
    fn default() -> Self {
        Self { bytes: 128 << 30, inodes: 4_000_000 }
    }
}

impl Limits {
    /// The limits for a layer of `packed` bytes: real files shrink to a hundredth at best, a bomb to a thousandth; and
    /// no member takes less than a byte.
    pub(crate) fn for_packed(self, packed: u64) -> Self {
        Self {
            bytes: self.bytes.min(packed.saturating_mul(250).max(1 << 30)),
            inodes: self.inodes.min(packed.max(100_000)),
        }
    }
}

/// What must be known about an unpacked layer besides its tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerMeta {
    /// Bytes of all files.
    pub(crate) size: u64,
    /// Files, directories and the like.
    pub(crate) inodes: u64,
    /// Directories that the layer has only as parents of something: their owner and mode come from below.
    /// Escaped as `escape` does it; the empty path is the root directory.
    pub(crate) undeclared: BTreeSet<String>,
    /// Directories in which the layer deletes something, escaped too.
    pub(crate) deletes_in: BTreeSet<String>,
    /// Nothing of the layers below is to be seen.
    pub(crate) opaque_root: bool,
}

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// The archive is malformed or does what it must not.
    #[error("{0}")]
    Archive(String),
    #[error("more than {limit} {unit}")]
    TooBig { limit: u64, unit: &'static str },
    /// The stream that the archive comes from failed.
    #[error("cannot read the archive: {0}")]
    Read(io::Error),
    #[error("cannot {action} `{path}`: {source}")]
    Write { action: &'static str, path: String, source: io::Error },
}

impl UnpackError {
    pub(crate) fn is_disk_full(&self) -> bool {
        matches!(self, Self::Write { source, .. } if is_disk_full(source))
    }
}

type Result<T, E = UnpackError> = std::result::Result<T, E>;

/// A path as text: bytes that are not printable ASCII, and `%`, as `%` and two digits.
pub(crate) fn escape(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    escape_to(&mut text, path);
    text
}

/// As `escape`, at the end of `text`.
pub(crate) fn escape_to(text: &mut String, path: &[u8]) {
    for byte in path {
        match byte {
            b'%' => text.push_str("%25"),
            b' '..=b'~' => text.push(char::from(*byte)),
            // Writing to a string does not fail.
            other => drop(write!(text, "%{other:02x}")),
        }
    }
}

/// The inverse of `escape`.
pub(crate) fn unescape(text: &str) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(&unescape_bytes(text)))
}

/// As `unescape`, for what is not a path of its own.
pub(crate) fn unescape_bytes(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok());
        match (first, code) {
            (b'%', Some(code)) => {
                bytes.push(code);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// Unpack the archive into the empty directory `root`; what is replaced on the way goes to `scratch`, and a list of what
/// is there to `list`.
///
/// The reader is not read beyond the end mark of the archive; it is handed back.
pub(crate) fn unpack<R: BufRead>(
    reader: R,
    root: &Path,
    scratch: &Path,
    list: &Path,
    limits: Limits,
) -> Result<(LayerMeta, R)> {
    let open = |dir: &Path| {
        sys::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Write("open", dir.as_os_str().as_bytes()).failed(e))
    };
    let mut unpacker = Unpacker {
        root: Rc::new(open(root)?),
        scratch: open(scratch)?,
        recorder: Recorder::create(list).map_err(unlisted)?,
        hasher: blake3::Hasher::new(),
        replaced: 0,
        parent: None,
        directories: BTreeMap::new(),
        undeclared: BTreeSet::from([Vec::new()]),
        remembered: 0,
        meta: LayerMeta::default(),
        limits,
    };
    let mut tar = TarReader::new(reader);
    while let Some(member) = tar.next_member().map_err(read_error)? {
        unpacker.member(&member, &mut tar)?;
    }
    unpacker.finish_directories()?;
    unpacker.recorder.finish().map_err(unlisted)?;
    let undeclared = unpacker.undeclared.iter().map(|path| escape(path)).collect();
    Ok((LayerMeta { undeclared, ..unpacker.meta }, tar.into_inner()))
}

/// The list of the layer could not be written.
fn unlisted(source: io::Error) -> UnpackError {
    Write("write the list of files", catalog::NAME.as_bytes()).failed(source)
}

fn read_error(error: io::Error) -> UnpackError {
    match error.kind() {
        io::ErrorKind::InvalidData => UnpackError::Archive(error.to_string()),
        _ => UnpackError::Read(error),
    }
}

/// An action and its object, for the error if it fails.
struct Write<'a>(&'static str, &'a [u8]);

impl Write<'_> {
    fn failed(&self, source: impl Into<io::Error>) -> UnpackError {
        UnpackError::Write { action: self.0, path: lossy(self.1), source: source.into() }
    }
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn refuse<T>(path: &[u8], why: &str) -> Result<T> {
    Err(UnpackError::Archive(format!("`{}` {why}", lossy(path))))
}

struct Unpacker {
    root: Rc<OwnedFd>,
    scratch: OwnedFd,
    recorder: Recorder,
    /// Of the file being written.
    hasher: blake3::Hasher,
    replaced: u64,
    /// The last parent directory used: archives are in order, so it nearly always serves again.
    parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Times are set last, when nothing more is made inside.
    directories: BTreeMap<Vec<u8>, Timestamps>,
    undeclared: BTreeSet<Vec<u8>>,
    /// Bytes of names in the two.
    remembered: u64,
    meta: LayerMeta,
    limits: Limits,
}

/// What a member's last name asks for.
#[derive(Debug, PartialEq, Eq)]
enum Leaf<'a> {
    Make,
    Delete(&'a [u8]),
    Opaque,
    /// Book-keeping of aufs that means nothing here.
    Ignore,
}

fn leaf(name: &[u8]) -> Option<Leaf<'_>> {
    let Some(rest) = name.strip_prefix(b".wh.") else {
        return Some(Leaf::Make);
    };
    match rest {
        b".wh..opq" => Some(Leaf::Opaque),
        _ if rest.starts_with(b".wh.") => Some(Leaf::Ignore),
        b"" | b"." | b".." => None,
        name => Some(Leaf::Delete(name)),
    }
}

/// A path inside the layer: without `.`, doubled and leading slashes; `..` is refused.
fn clean(path: &[u8]) -> Result<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return refuse(path, "has `..` in its path"),
            _ if part.len() > NAME_MAX => return refuse(path, "has a name of more than 255 bytes"),
            _ if part.contains(&0) => return refuse(path, "has a NUL byte in its name"),
            _ => parts.push(part),
        }
    }
    let whole = parts.join(&b'/');
    if parts.len() > DEPTH_MAX || whole.len() > PATH_MAX {
        return refuse(&path[..path.len().min(80)], "is too deep or too long");
    }
    if parts.iter().rev().skip(1).any(|part| part.starts_with(b".wh.")) {
        return if parts.iter().any(|part| part.starts_with(b".wh..wh.")) {
            Ok(b".wh..wh.aufs".to_vec())
        } else {
            refuse(path, "is inside a whiteout")
        };
    }
    Ok(whole)
}

/// Directory and last name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

impl Unpacker {
    fn member<R: BufRead>(&mut self, member: &Member, tar: &mut TarReader<R>) -> Result<()> {
        self.count(member)?;
        let path = clean(&member.path)?;
        if path.is_empty() {
            return self.root_directory(member);
        }
        let (dir, name) = split(&path);
        match leaf(name) {
            None => refuse(&path, "is a whiteout of nothing"),
            Some(Leaf::Ignore) => Ok(()),
            Some(Leaf::Delete(target)) => self.whiteout(dir, target, &path),
            Some(Leaf::Opaque) => self.opaque(dir),
            Some(Leaf::Make) => self.make(member, &path, tar),
        }
    }

    fn count(&mut self, member: &Member) -> Result<()> {
        self.meta.inodes += 1;
        if self.meta.inodes > self.limits.inodes {
            return Err(UnpackError::TooBig { limit: self.limits.inodes, unit: "files" });
        }
        self.meta.size = self.meta.size.saturating_add(member.size);
        if self.meta.size > self.limits.bytes {
            return Err(UnpackError::TooBig { limit: self.limits.bytes, unit: "bytes unpacked" });
        }
        if self.remembered > REMEMBERED_MAX {
            return Err(UnpackError::TooBig { limit: REMEMBERED_MAX, unit: "bytes of names of directories" });
        }
        Ok(())
    }

    fn root_directory(&mut self, member: &Member) -> Result<()> {
        if member.kind != Kind::Directory {
            return refuse(&member.path, "stands for the root directory, but is none");
        }
        self.record(b"", &Item::Directory(owned(member)))?;
        dress_fd(self.root.as_fd(), member, b"", &mut self.recorder)?;
        self.declare_directory(Vec::new(), member);
        Ok(())
    }

    fn declare_directory(&mut self, path: Vec<u8>, member: &Member) {
        self.undeclared.remove(&path);
        self.remembered += path.len() as u64;
        self.directories.insert(path, times(member));
    }

    /// Note what is at `path` now.
    fn record(&mut self, path: &[u8], item: &Item) -> Result<()> {
        self.recorder.item(path, item).map_err(unlisted)
    }

    fn whiteout(&mut self, dir: &[u8], target: &[u8], path: &[u8]) -> Result<()> {
        let parent = self.parent(dir)?;
        if !dir.is_empty() && self.meta.deletes_in.insert(escape(dir)) {
            self.remembered += dir.len() as u64;
        }
        match sys::mknodat(parent.as_fd(), target, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) if dir.is_empty() => self.record(target, &Item::Whiteout),
            Ok(()) => self.record(&[dir, b"/", target].concat(), &Item::Whiteout),
            Err(Errno::EXIST) if is_whiteout(parent.as_fd(), target) => Ok(()),
            Err(Errno::EXIST) => refuse(path, "deletes what the same layer makes"),
            Err(errno) => Err(Write("make whiteout", path).failed(errno)),
        }
    }

    fn opaque(&mut self, dir: &[u8]) -> Result<()> {
        if dir.is_empty() {
            self.meta.opaque_root = true;
            return Ok(());
        }
        let parent = self.parent(dir)?;
        sys::fsetxattr(parent.as_fd(), OPAQUE, b"y", XattrFlags::empty())
            .map_err(|e| Write("make opaque", dir).failed(e))?;
        self.recorder.attribute(dir, OPAQUE.as_bytes(), b"y").map_err(unlisted)
    }

    fn make<R: BufRead>(&mut self, member: &Member, path: &[u8], tar: &mut TarReader<R>) -> Result<()> {
        let (dir, name) = split(path);
        let parent = self.parent(dir)?;
        let parent = parent.as_fd();
        match member.kind {
            Kind::Directory => self.directory(parent, name, path, member),
            Kind::File => self.file(parent, name, path, member, tar),
            Kind::Symlink => self.symlink(parent, name, path, member),
            Kind::Hardlink => self.hardlink(parent, name, path, member),
            Kind::Char | Kind::Block | Kind::Fifo => self.node(parent, name, path, member),
        }
    }

    /// The directory `dir` of the layer, made if it is not there yet.
    fn parent(&mut self, dir: &[u8]) -> Result<Rc<OwnedFd>> {
        if dir.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        if let Some((cached, fd)) = &self.parent
            && cached == dir
        {
            return Ok(Rc::clone(fd));
        }
        let fd = match open_beneath(self.root.as_fd(), dir) {
            Err(Errno::NOENT) => self.make_parents(dir)?,
            other => Rc::new(other.map_err(|errno| parent_error(dir, errno))?),
        };
        self.parent = Some((dir.to_vec(), Rc::clone(&fd)));
        Ok(fd)
    }

    fn make_parents(&mut self, dir: &[u8]) -> Result<Rc<OwnedFd>> {
        let mut current = Rc::clone(&self.root);
        let mut end = 0;
        for part in dir.split(|byte| *byte == b'/') {
            end += part.len() + usize::from(end > 0);
            let so_far = &dir[..end];
            match sys::mkdirat(current.as_fd(), part, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    sys::chmodat(current.as_fd(), part, Mode::from_raw_mode(0o755), AtFlags::empty())
                        .map_err(|e| Write("make", so_far).failed(e))?;
                    self.meta.inodes += 1;
                    self.remembered += so_far.len() as u64;
                    self.undeclared.insert(so_far.to_vec());
                    self.record(so_far, &Item::Directory(Owned { mode: 0o755, uid: 0, gid: 0 }))?;
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(Write("make directory", so_far).failed(errno)),
            }
            current = Rc::new(open_beneath(current.as_fd(), part).map_err(|errno| parent_error(so_far, errno))?);
        }
        Ok(current)
    }

    /// Make something with `make`; if the name is taken, put that out of the way and try once more.
    fn replace<T>(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T> {
        match make() {
            Err(Errno::EXIST) => self.clear(parent, name, path)?,
            other => return other.map_err(|e| Write("make", path).failed(e)),
        }
        make().map_err(|e| Write("make", path).failed(e))
    }

    fn clear(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<()> {
        if is_whiteout(parent, name) {
            return refuse(path, "is deleted by the same layer");
        }
        self.replaced += 1;
        let aside = self.replaced.to_string();
        sys::renameat(parent, name, &self.scratch, aside).map_err(|e| Write("replace", path).failed(e))?;
        self.recorder.gone(path).map_err(unlisted)?;
        let inside =
            |other: &[u8]| other == path || other.strip_prefix(path).is_some_and(|rest| rest.starts_with(b"/"));
        self.parent = self.parent.take().filter(|(dir, _)| !inside(dir));
        self.directories.remove(path);
        self.undeclared.remove(path);
        // What lies inside is sorted between `path/` and `path0`; only that is looked at, whatever else is remembered.
        let bounds = [path, b"/"].concat()..[path, b"0"].concat();
        let gone: Vec<Vec<u8>> = self.directories.range(bounds.clone()).map(|(dir, _)| dir.clone()).collect();
        for dir in gone {
            self.directories.remove(&dir);
        }
        let gone: Vec<Vec<u8>> = self.undeclared.range(bounds).cloned().collect();
        for dir in gone {
            self.undeclared.remove(&dir);
        }
        Ok(())
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: &[u8], member: &Member) -> Result<()> {
        let make = || match sys::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            // A directory that is there already is the same directory, with other attributes.
            Err(Errno::EXIST) if file_type(parent, name) == Some(FileType::Directory) => Ok(()),
            other => other,
        };
        self.replace(parent, name, path, make)?;
        let fd = open_beneath(parent, name).map_err(|e| Write("open", path).failed(e))?;
        self.record(path, &Item::Directory(owned(member)))?;
        dress_fd(fd.as_fd(), member, path, &mut self.recorder)?;
        self.declare_directory(path.to_vec(), member);
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        member: &Member,
        tar: &mut TarReader<R>,
    ) -> Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = self.replace(parent, name, path, || sys::openat(parent, name, flags, Mode::from_raw_mode(0o600)))?;
        let file = File::from(fd);
        let failed = |e: io::Error| Write("write", path).failed(e);
        self.hasher.reset();
        match &member.sparse {
            None => self.copy(tar, &file, 0, member.size).map_err(|e| e.at(path))?,
            Some(pieces) => {
                file.set_len(member.size).map_err(failed)?;
                let mut end = 0;
                for (offset, length) in pieces {
                    self.hash_hole(offset - end);
                    self.copy(tar, &file, *offset, *length).map_err(|e| e.at(path))?;
                    end = offset + length;
                }
                self.hash_hole(member.size - end);
            }
        }
        let hash = self.hasher.finalize();
        self.record(path, &Item::File { owned: owned(member), size: member.size, hash })?;
        dress_fd(file.as_fd(), member, path, &mut self.recorder)?;
        sys::futimens(&file, &times(member)).map_err(|e| failed(e.into()))
    }

    fn copy<R: BufRead>(
        &mut self,
        tar: &mut TarReader<R>,
        file: &File,
        mut offset: u64,
        mut left: u64,
    ) -> Result<(), CopyError> {
        while left > 0 {
            let data = tar.data(left).map_err(CopyError::Read)?;
            if data.is_empty() {
                return Err(CopyError::Read(io::ErrorKind::UnexpectedEof.into())); // less than the map of pieces says
            }
            file.write_all_at(data, offset).map_err(CopyError::Write)?;
            self.hasher.update(data);
            let count = data.len();
            tar.consume_data(count);
            offset += count as u64;
            left -= count as u64;
        }
        Ok(())
    }

    /// A hole of a sparse file reads as zeros.
    fn hash_hole(&mut self, mut length: u64) {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        while length > 0 {
            let count = length.min(ZEROS.len() as u64);
            self.hasher.update(&ZEROS[..count as usize]);
            length -= count;
        }
    }

    fn symlink(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: &[u8], member: &Member) -> Result<()> {
        if member.link.is_empty() || member.link.len() > PATH_MAX || member.link.contains(&0) {
            return refuse(path, "is a symbolic link without a proper target");
        }
        self.replace(parent, name, path, || sys::symlinkat(member.link.as_slice(), parent, name))?;
        self.record(path, &Item::Symlink { uid: member.uid, gid: member.gid, target: member.link.clone() })?;
        dress_leaf(parent, name, member, path)
    }

    /// A second name for a file of the same layer, which must be there already.
    fn hardlink(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: &[u8], member: &Member) -> Result<()> {
        let target = clean(&member.link)?;
        let (dir, target_name) = split(&target);
        let absent = || format!("is a hard link to `{}`, which is not a file of the same layer", lossy(&member.link));
        let Ok(from) = open_beneath(self.root.as_fd(), if dir.is_empty() { b"." } else { dir }) else {
            return refuse(path, &absent());
        };
        match file_type(from.as_fd(), target_name) {
            None | Some(FileType::Directory) => return refuse(path, &absent()),
            Some(FileType::CharacterDevice) if is_whiteout(from.as_fd(), target_name) => {
                return refuse(path, &absent());
            }
            Some(_) if target == path => return Ok(()),
            Some(_) => {}
        }
        self.replace(parent, name, path, || sys::linkat(&from, target_name, parent, name, AtFlags::empty()))?;
        self.recorder.hardlink(path, &target).map_err(unlisted)
    }

    fn node(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: &[u8], member: &Member) -> Result<()> {
        let (file_type, kind) = match member.kind {
            Kind::Char if member.device == (0, 0) => {
                return refuse(path, "is character device 0:0, which overlayfs takes for a whiteout");
            }
            Kind::Char => (FileType::CharacterDevice, 'c'),
            Kind::Block => (FileType::BlockDevice, 'b'),
            _ => (FileType::Fifo, 'p'),
        };
        let device = sys::makedev(member.device.0, member.device.1);
        let mode = Mode::from_raw_mode(member.mode);
        self.replace(parent, name, path, || sys::mknodat(parent, name, file_type, mode, device))?;
        self.record(path, &Item::Node { kind, owned: owned(member), device: member.device })?;
        dress_leaf(parent, name, member, path)?;
        sys::chmodat(parent, name, mode, AtFlags::empty()).map_err(|e| Write("set the mode of", path).failed(e))
    }

    /// In any order: setting a time inside does not change the time of the parent.
    fn finish_directories(&mut self) -> Result<()> {
        for (path, times) in &self.directories {
            let target: &[u8] = if path.is_empty() { b"." } else { path };
            sys::utimensat(self.root.as_fd(), target, times, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| Write("set the time of", path).failed(e))?;
        }
        Ok(())
    }
}

enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

impl CopyError {
    fn at(self, path: &[u8]) -> UnpackError {
        match self {
            Self::Read(error) => read_error(error),
            Self::Write(error) => Write("write", path).failed(error),
        }
    }
}

/// Open a directory below `root` without following any link.
fn open_beneath(root: BorrowedFd<'_>, dir: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    sys::openat2(
        root,
        dir,
        flags,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

fn parent_error(dir: &[u8], errno: Errno) -> UnpackError {
    match errno {
        Errno::LOOP => UnpackError::Archive(format!("`{}` leads through a symbolic link", lossy(dir))),
        Errno::NOTDIR => UnpackError::Archive(format!("`{}` is used as a directory, but is none", lossy(dir))),
        other => Write("open", dir).failed(other),
    }
}

fn file_type(parent: BorrowedFd<'_>, name: &[u8]) -> Option<FileType> {
    sys::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).ok().map(|stat| FileType::from_raw_mode(stat.st_mode))
}

fn is_whiteout(parent: BorrowedFd<'_>, name: &[u8]) -> bool {
    let stat = sys::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::CharacterDevice && s.st_rdev == 0)
}

fn owned(member: &Member) -> Owned {
    Owned { mode: member.mode & 0o7777, uid: member.uid, gid: member.gid }
}

fn times(member: &Member) -> Timestamps {
    let time = Timespec { tv_sec: member.mtime_s, tv_nsec: member.mtime_ns.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Owner, mode and attributes of a file or directory, in this order: a new owner takes away set-id bits and
/// capabilities. Attributes are recorded, so the file must be already.
fn dress_fd(fd: BorrowedFd<'_>, member: &Member, path: &[u8], recorder: &mut Recorder) -> Result<()> {
    if (member.uid, member.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
        sys::fchown(fd, Some(uid), Some(gid)).map_err(|e| Write("set the owner of", path).failed(e))?;
    }
    sys::fchmod(fd, Mode::from_raw_mode(member.mode)).map_err(|e| Write("set the mode of", path).failed(e))?;
    for (name, value) in &member.xattrs {
        if !wanted_attribute(name, path)? {
            continue;
        }
        match sys::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()) {
            Ok(()) => recorder.attribute(path, name, value).map_err(unlisted)?,
            Err(Errno::NOTSUP) if name.as_slice() != b"security.capability" => {}
            Err(errno) => return Err(Write("set an attribute of", path).failed(errno)),
        }
    }
    Ok(())
}

/// Owner and time of what cannot be opened.
fn dress_leaf(parent: BorrowedFd<'_>, name: &[u8], member: &Member, path: &[u8]) -> Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    if (member.uid, member.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
        sys::chownat(parent, name, Some(uid), Some(gid), flags)
            .map_err(|e| Write("set the owner of", path).failed(e))?;
    }
    for (attribute, _) in &member.xattrs {
        wanted_attribute(attribute, path)?;
    }
    sys::utimensat(parent, name, &times(member), flags).map_err(|e| Write("set the time of", path).failed(e))
}

/// Attributes of overlayfs itself would let a layer redirect look-ups; those that belong to the host's policy
/// (SELinux labels and the like) are left out.
fn wanted_attribute(name: &[u8], path: &[u8]) -> Result<bool> {
    if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
        return refuse(path, "has an attribute of overlayfs");
    }
    Ok(name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_") || name == b"security.capability")
}
