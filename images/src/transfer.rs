//! Copies files between a host and the root file system of a container, or a tar stream, by descriptors only.
//!
//! ```text
//! a directory tree ─┐            ┌─► a directory tree
//!                   ├─► members ─┤
//! a tar stream ─────┘            └─► a tar stream
//! ```
//!
//! What is in a container is hostile, and may change while it is copied: a path is resolved once, inside the root of the
//! container (`openat2`, `RESOLVE_IN_ROOT`), and from there on no link is followed, neither where files are read nor
//! where they are made. What a path means is what `docker cp` takes it for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    self as sys, AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::error::{ImageError, Result};
use crate::pack::belongs_to_image;
use crate::tarball::{Kind, Member, TarReader};

/// Deeper than any real tree; each level needs two descriptors.
const DEPTH_MAX: usize = 256;

/// Read and written at once.
const CHUNK: usize = 256 << 10;

/// Times that a path is resolved again when something was renamed meanwhile.
const RESOLVE_TRIES: usize = 64;

/// Largest list of names, and largest value, of attributes.
const ATTRIBUTES_MAX: usize = 64 << 10;

/// File systems that are no files: proc, sysfs, cgroup 1 and 2, devpts, mqueue (`<linux/magic.h>`).
const NO_FILES: [u64; 6] = [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270, 0x1cd1, 0x1980_0202];

/// A path, on the host or in a container.
#[derive(Debug)]
pub struct Place {
    root: OwnedFd,
    path: PathBuf,
    /// In a container: its links are not ours to follow out of it.
    container: Option<String>,
}

impl Place {
    /// A path of the host.
    ///
    /// # Errors
    /// The root or the current directory cannot be opened.
    pub fn host(path: &Path) -> Result<Self> {
        let mut absolute = std::path::absolute(path).map_err(|error| cannot(&path.display(), &error))?.into_os_string();
        // Which of the three it is counts.
        let given = path.as_os_str().as_bytes();
        for ending in [&b"/."[..], b"/"] {
            if given.ends_with(ending) && !absolute.as_bytes().ends_with(ending) {
                absolute.push(std::ffi::OsStr::from_bytes(ending));
                break;
            }
        }
        if given == b"." {
            absolute.push("/.");
        }
        Ok(Self { root: open_root(Path::new("/"))?, path: absolute.into(), container: None })
    }

    /// A path in a container.
    ///
    /// - `root`: where its root file system is.
    /// - `name`: of the container, for messages.
    ///
    /// # Errors
    /// The root file system cannot be opened.
    pub fn container(root: &Path, name: &str, path: &Path) -> Result<Self> {
        Ok(Self { root: open_root(root)?, path: Path::new("/").join(path), container: Some(name.to_owned()) })
    }

    fn shown(&self) -> String {
        match &self.container {
            Some(name) => format!("{name}:{}", self.path.display()),
            None => self.path.display().to_string(),
        }
    }

    /// What is at `path` of this root.
    fn resolve(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let mut resolve = ResolveFlags::IN_ROOT;
        if self.container.is_some() {
            resolve |= ResolveFlags::NO_MAGICLINKS;
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC | flags;
        let mut tries = 0;
        loop {
            match sys::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) if tries < RESOLVE_TRIES => tries += 1,
                Err(Errno::INTR) => {}
                other => return other,
            }
        }
    }

    fn fails(&self, why: impl std::fmt::Display) -> ImageError {
        cannot(&self.shown(), &why)
    }
}

fn open_root(root: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    sys::openat(CWD, root, flags, Mode::empty()).map_err(|errno| cannot(&root.display(), &errno))
}

fn cannot(path: &impl ToString, why: &impl ToString) -> ImageError {
    ImageError::Copy { path: path.to_string(), why: why.to_string() }
}

/// How files are copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TransferOptions {
    /// Copy what a link at the end of the source path points to, not the link.
    pub follow: bool,
    /// Keep owners, attributes and set-id bits; otherwise files belong to root.
    pub archive: bool,
}

/// What was copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transferred {
    /// Files, directories and links.
    pub files: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// What was not: sockets, devices on their way to the host, and what is no file, such as `/proc`.
    pub left_out: Vec<String>,
}

/// Copy from one place to another.
///
/// # Errors
/// `Copy`, with the path. What was copied before stays.
pub fn copy(from: &Place, to: &Place, options: TransferOptions) -> Result<Transferred> {
    let source = Source::find(from, options.follow)?;
    let target = Target::find(to, &source)?;
    let mut sink = match target {
        Target::Into { dir, name } => Directory::new(to, dir, name, options.archive),
        Target::Through(file) => return source.write_through(&file, to),
    };
    source.walk(&mut sink)?;
    sink.finish()
}

/// Write what is at a place as a tar stream.
///
/// # Errors
/// `Copy`, with the path, or the stream cannot be written.
pub fn to_tar(from: &Place, out: &mut dyn Write, options: TransferOptions) -> Result<Transferred> {
    let source = Source::find(from, options.follow)?;
    let mut top = source.name.clone();
    if top.is_empty() {
        top = b".".to_vec();
    }
    let mut sink = Stream { tar: tar::Builder::new(out), top, done: Transferred::default() };
    source.walk(&mut sink)?;
    sink.tar.finish().map_err(|error| from.fails(error))?;
    Ok(sink.done)
}

/// Unpack a tar stream, plain or packed with gzip or zstd, into a directory that is there. Owners are those of the stream.
///
/// # Errors
/// `Copy`, with the path; `BadArchive`.
pub fn from_tar(input: &mut dyn Read, to: &Place) -> Result<Transferred> {
    let dir = to.resolve(to.path.as_os_str().as_bytes(), OFlags::DIRECTORY).map_err(|errno| match errno {
        Errno::NOTDIR => to.fails("it is not a directory, and a tar stream needs one"),
        other => to.fails(other),
    })?;
    let mut sink = Directory::new(to, readable(&dir).map_err(|errno| to.fails(errno))?, Vec::new(), true);
    let mut input = io::BufReader::with_capacity(CHUNK, input);
    let start = io::BufRead::fill_buf(&mut input).map_err(|error| bad_stream(&error))?;
    let packed = crate::manifest::Compression::sniff(start);
    let plain = crate::layer::decoder(packed, input).map_err(|error| bad_stream(&error))?;
    let mut reader = TarReader::new(io::BufReader::with_capacity(CHUNK, plain));
    while let Some(member) = reader.next_member().map_err(|error| bad_stream(&error))? {
        let path = clean(&member.path)?;
        if !path.is_empty() {
            unpack(&mut sink, &path, &member, &mut reader)?;
        }
    }
    sink.finish()
}

fn unpack<R: io::BufRead>(
    sink: &mut Directory<'_>,
    path: &[u8],
    member: &Member,
    reader: &mut TarReader<R>,
) -> Result<()> {
    let meta = Meta {
        mode: member.mode & 0o7777,
        uid: member.uid,
        gid: member.gid,
        time: Timespec { tv_sec: member.mtime_s, tv_nsec: member.mtime_ns.into() },
        attributes: member.xattrs.iter().filter(|(name, _)| wanted(name)).cloned().collect(),
    };
    let link;
    let mut data;
    let node = match member.kind {
        Kind::Directory => Node::Directory,
        Kind::File if member.sparse.is_some() => {
            let why = "sparse files are not taken from a stream: make it without --sparse".to_owned();
            return Err(ImageError::BadArchive {
                archive: "the stream".into(),
                why: format!("`{}`: {why}", lossy(path)),
            });
        }
        Kind::File => {
            data = Data(reader);
            Node::File(member.size, &mut data)
        }
        Kind::Symlink => Node::Symlink(&member.link),
        Kind::Hardlink => {
            link = clean(&member.link)?;
            Node::Hardlink(&link)
        }
        Kind::Fifo => Node::Special(FileType::Fifo, 0),
        Kind::Char => Node::Special(FileType::CharacterDevice, sys::makedev(member.device.0, member.device.1)),
        Kind::Block => Node::Special(FileType::BlockDevice, sys::makedev(member.device.0, member.device.1)),
    };
    sink.put(path, &meta, node)
}

/// The data of one member.
struct Data<'a, R>(&'a mut TarReader<R>);

impl<R: io::BufRead> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_data(buffer)
    }
}

fn bad_stream(error: &io::Error) -> ImageError {
    ImageError::BadArchive { archive: "the stream".into(), why: error.to_string() }
}

/// A path of a stream: without leading `/` and `.`; `..` is refused.
fn clean(path: &[u8]) -> Result<Vec<u8>> {
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                let why = format!("`{}` has `..` in its path", lossy(path));
                return Err(ImageError::BadArchive { archive: "the stream".into(), why });
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn wanted(name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok_and(belongs_to_image)
}

/// What all members have.
struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    time: Timespec,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Meta {
    fn of(stat: &Stat) -> Self {
        Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            time: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
            attributes: Vec::new(),
        }
    }
}

enum Node<'a> {
    Directory,
    File(u64, &'a mut dyn Read),
    Symlink(&'a [u8]),
    /// Another name of a member that came before, by its path.
    Hardlink(&'a [u8]),
    Special(FileType, u64),
}

/// Takes members, in order; paths are those below the top of the source, which itself is the empty path.
trait Sink {
    fn put(&mut self, path: &[u8], meta: &Meta, node: Node<'_>) -> Result<()>;

    fn left_out(&mut self, what: String);
}

/// What is to be copied.
struct Source<'a> {
    place: &'a Place,
    /// The file, directory or link itself.
    fd: OwnedFd,
    stat: Stat,
    /// The name that it has in a directory; empty if only what is in it is wanted.
    name: Vec<u8>,
}

/// A path that ends in `/`, or in `/.`, is a directory; with `/.` only what is in it is meant.
struct Ending<'a> {
    parent: &'a [u8],
    name: &'a [u8],
    directory: bool,
}

fn ending(path: &[u8]) -> Ending<'_> {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    let (whole, directory) = (&path[..end], end < path.len());
    let at = whole.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    match &whole[at..] {
        b"" | b"." | b".." => Ending { parent: path, name: b"", directory: true },
        name => Ending { parent: &whole[..at], name, directory },
    }
}

impl<'a> Source<'a> {
    fn find(place: &'a Place, follow: bool) -> Result<Self> {
        let path = place.path.as_os_str().as_bytes();
        let end = ending(path);
        let flags = match (end.directory, follow) {
            (true, _) => OFlags::DIRECTORY,
            (false, true) => OFlags::empty(),
            (false, false) => OFlags::NOFOLLOW,
        };
        let fd = place.resolve(path, flags).map_err(|errno| place.fails(errno))?;
        let stat = sys::fstat(&fd).map_err(|errno| place.fails(errno))?;
        Ok(Self { place, fd, stat, name: end.name.to_vec() })
    }

    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    fn walk(&self, sink: &mut dyn Sink) -> Result<()> {
        let mut walk = Walk { place: self.place, names: BTreeMap::new() };
        match self.kind() {
            FileType::Directory => {
                let dir = readable(&self.fd).map_err(|errno| self.place.fails(errno))?;
                walk.directory(&dir, b"", 0, sink)
            }
            FileType::RegularFile => walk.file(&self.reopened()?, b"", sink),
            FileType::Symlink => {
                let target = sys::readlinkat(&self.fd, "", Vec::new()).map_err(|errno| self.place.fails(errno))?;
                sink.put(b"", &Meta::of(&self.stat), Node::Symlink(target.to_bytes()))
            }
            kind => walk.special(kind, &self.stat, b"", sink),
        }
    }

    /// For reading: what was looked at, whatever has its name by now.
    fn reopened(&self) -> Result<File> {
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        File::open(path).map_err(|error| self.place.fails(error))
    }

    /// Over the content of a file that a link at the target path leads to.
    fn write_through(&self, file: &OwnedFd, to: &Place) -> Result<Transferred> {
        if self.kind() != FileType::RegularFile {
            return Err(to.fails("it is a link to a file, which only a file can be copied over"));
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let out = File::options().write(true).truncate(true).open(path);
        let copied = out.and_then(|mut out| io::copy(&mut self.reopened().map_err(io::Error::other)?, &mut out));
        let bytes = copied.map_err(|error| to.fails(error))?;
        Ok(Transferred { files: 1, bytes, left_out: Vec::new() })
    }
}

/// A directory of which there is only an `O_PATH` descriptor, to be read.
fn readable(dir: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    sys::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// An error about something in a tree.
fn below(place: &Place, path: &[u8], why: impl std::fmt::Display) -> ImageError {
    let top = place.shown();
    if path.is_empty() { cannot(&top, &why) } else { cannot(&format!("{top}/{}", lossy(path)), &why) }
}

/// Reads a tree.
struct Walk<'a> {
    place: &'a Place,
    /// Of files with several names, by device and inode, the first one.
    names: BTreeMap<(u64, u64), Vec<u8>>,
}

impl Walk<'_> {
    fn fails(&self, path: &[u8], why: impl std::fmt::Display) -> ImageError {
        below(self.place, path, why)
    }

    fn directory(&mut self, dir: &OwnedFd, path: &[u8], depth: usize, sink: &mut dyn Sink) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(self.fails(path, format!("directories are more than {DEPTH_MAX} deep")));
        }
        let fails = |errno: Errno| self.fails(path, errno);
        let magic = sys::fstatfs(dir).map_err(fails)?.f_type as u64;
        if NO_FILES.contains(&magic) {
            sink.left_out(format!("{}/{}", self.place.shown(), lossy(path)));
            return Ok(());
        }
        let stat = sys::fstat(dir).map_err(fails)?;
        let meta = Meta { attributes: attributes(dir.as_fd()).map_err(fails)?, ..Meta::of(&stat) };
        sink.put(path, &meta, Node::Directory)?;
        let mut names = Vec::new();
        for entry in sys::Dir::read_from(dir).map_err(fails)? {
            let entry = entry.map_err(fails)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort();
        for name in names {
            let below = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
            self.entry(dir, &name, &below, depth, sink)?;
        }
        Ok(())
    }

    fn entry(&mut self, dir: &OwnedFd, name: &[u8], path: &[u8], depth: usize, sink: &mut dyn Sink) -> Result<()> {
        let stat = match sys::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            // Removed meanwhile.
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(|errno| self.fails(path, errno))?,
        };
        let open = |flags: OFlags| {
            let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            sys::openat(dir, name, flags, Mode::empty()).map_err(|errno| self.fails(path, errno))
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.directory(&open(OFlags::DIRECTORY)?, path, depth + 1, sink),
            FileType::RegularFile => self.file(&File::from(open(OFlags::empty())?), path, sink),
            FileType::Symlink => {
                let target = sys::readlinkat(dir, name, Vec::new()).map_err(|errno| self.fails(path, errno))?;
                sink.put(path, &Meta::of(&stat), Node::Symlink(target.to_bytes()))
            }
            kind => self.special(kind, &stat, path, sink),
        }
    }

    fn file(&mut self, file: &File, path: &[u8], sink: &mut dyn Sink) -> Result<()> {
        let place = self.place;
        let fails = |errno: Errno| below(place, path, errno);
        let stat = sys::fstat(file).map_err(fails)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.fails(path, "it has become something else while it was copied"));
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.names.get(&(stat.st_dev, stat.st_ino)) {
                return sink.put(path, &Meta::of(&stat), Node::Hardlink(first));
            }
            self.names.insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
        let meta = Meta { attributes: attributes(file.as_fd()).map_err(fails)?, ..Meta::of(&stat) };
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        sink.put(path, &meta, Node::File(size, &mut io::Read::take(file, size)))
    }

    fn special(&mut self, kind: FileType, stat: &Stat, path: &[u8], sink: &mut dyn Sink) -> Result<()> {
        // A socket is there only while somebody listens.
        if kind == FileType::Socket {
            sink.left_out(format!("{}/{}", self.place.shown(), lossy(path)));
            return Ok(());
        }
        sink.put(path, &Meta::of(stat), Node::Special(kind, stat.st_rdev))
    }
}

/// Attributes that mean something elsewhere too.
fn attributes(fd: BorrowedFd<'_>) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut list = vec![0; ATTRIBUTES_MAX];
    let length = match sys::flistxattr(fd, &mut list) {
        Err(Errno::NOTSUP) => 0,
        other => other?,
    };
    let mut found = Vec::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| wanted(name)) {
        let mut value = vec![0; ATTRIBUTES_MAX];
        let length = sys::fgetxattr(fd, name, &mut value[..])?;
        value.truncate(length);
        found.push((name.to_vec(), value));
    }
    Ok(found)
}

/// Where things go to.
enum Target {
    /// Into a directory, under a name; without a name, what is in the source goes there.
    Into { dir: OwnedFd, name: Vec<u8> },
    /// Over the content of a file that a link leads to.
    Through(OwnedFd),
}

impl Target {
    fn find(place: &Place, source: &Source<'_>) -> Result<Self> {
        let path = place.path.as_os_str().as_bytes();
        let end = ending(path);
        let is_directory = source.kind() == FileType::Directory;
        let opened = |dir: &OwnedFd| readable(dir).map_err(|errno| place.fails(errno));
        match place.resolve(path, OFlags::empty()) {
            Ok(there) => match FileType::from_raw_mode(sys::fstat(&there).map_err(|e| place.fails(e))?.st_mode) {
                FileType::Directory => Ok(Self::Into { dir: opened(&there)?, name: source.name.clone() }),
                _ if is_directory => Err(place.fails("a directory cannot be copied to what is none")),
                _ if end.directory => Err(place.fails("it is not a directory")),
                _ => {
                    let link = place.resolve(path, OFlags::NOFOLLOW).and_then(|fd| sys::fstat(&fd));
                    match link.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
                        Ok(FileType::Symlink) => Ok(Self::Through(there)),
                        _ => Self::new(place, &end),
                    }
                }
            },
            Err(Errno::NOENT) if end.directory && !is_directory => Err(place.fails("there is no such directory")),
            Err(Errno::NOENT) => {
                if place.resolve(&path[..end.parent.len() + end.name.len()], OFlags::NOFOLLOW).is_ok() {
                    return Err(place.fails("it is a link that leads nowhere"));
                }
                Self::new(place, &end)
            }
            Err(Errno::NOTDIR) => Err(place.fails("it is not a directory")),
            Err(errno) => Err(place.fails(errno)),
        }
    }

    /// Under the last name of the path, in a directory that must be there.
    fn new(place: &Place, end: &Ending<'_>) -> Result<Self> {
        let parent = place.resolve(end.parent, OFlags::DIRECTORY).and_then(|dir| readable(&dir));
        let dir = parent.map_err(|errno| match errno {
            Errno::NOENT => place.fails("the directory that it is to be in is not there"),
            other => place.fails(other),
        })?;
        Ok(Self::Into { dir, name: end.name.to_vec() })
    }
}

/// Makes a tree.
struct Directory<'a> {
    place: &'a Place,
    dir: OwnedFd,
    name: Vec<u8>,
    archive: bool,
    /// Set last, when nothing more is made inside.
    times: Vec<(Vec<u8>, Timespec)>,
    done: Transferred,
}

impl<'a> Directory<'a> {
    fn new(place: &'a Place, dir: OwnedFd, name: Vec<u8>, archive: bool) -> Self {
        Self { place, dir, name, archive, times: Vec::new(), done: Transferred::default() }
    }

    fn full(&self, path: &[u8]) -> Vec<u8> {
        match (self.name.is_empty(), path.is_empty()) {
            (true, _) => path.to_vec(),
            (false, true) => self.name.clone(),
            (false, false) => [&self.name, &b"/"[..], path].concat(),
        }
    }

    fn fails(&self, path: &[u8], why: impl std::fmt::Display) -> ImageError {
        cannot(&format!("{} in {}", lossy(path), self.place.shown()), &why)
    }

    /// The directory of a path, which must be one: no link is followed.
    fn parent(&self, full: &[u8]) -> Result<(OwnedFd, Vec<u8>)> {
        let at = full.iter().rposition(|byte| *byte == b'/');
        let (dir, name) = at.map_or((&b"."[..], full), |at| (&full[..at], &full[at + 1..]));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let opened = sys::openat2(&self.dir, dir, flags, Mode::empty(), resolve);
        let parent = opened.map_err(|errno| match errno {
            Errno::LOOP => self.fails(full, "it leads through a symbolic link"),
            other => self.fails(full, other),
        })?;
        Ok((parent, name.to_vec()))
    }

    fn directory(&mut self, full: &[u8], meta: &Meta) -> Result<()> {
        let (parent, name) = self.parent(full)?;
        match sys::mkdirat(&parent, &name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            // One that is there keeps what it is.
            Err(Errno::EXIST) if is_kind(&parent, &name, FileType::Directory) => return Ok(()),
            Err(Errno::EXIST) => return Err(self.fails(full, "a directory cannot be copied over what is none")),
            Err(errno) => return Err(self.fails(full, errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = sys::openat(&parent, &name, flags, Mode::empty());
        made.and_then(|dir| self.dress(dir.as_fd(), meta, 0o1777)).map_err(|errno| self.fails(full, errno))?;
        self.times.push((full.to_vec(), meta.time));
        Ok(())
    }

    fn file(&mut self, full: &[u8], meta: &Meta, size: u64, data: &mut dyn Read) -> Result<()> {
        let (parent, name) = self.parent(full)?;
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let new = flags | OFlags::CREATE | OFlags::EXCL;
        let opened = match self.clear(&parent, &name, full)? {
            true => sys::openat(&parent, &name, new, Mode::from_raw_mode(0o600)),
            // Something is mounted there: then its content is replaced.
            false => sys::openat(&parent, &name, flags | OFlags::NONBLOCK | OFlags::TRUNC, Mode::empty()),
        };
        let mut file = File::from(opened.map_err(|errno| self.fails(full, errno))?);
        let copied = io::copy(data, &mut file).map_err(|error| self.fails(full, error))?;
        if copied < size {
            return Err(self.fails(full, "it has become shorter while it was copied"));
        }
        self.done.bytes += copied;
        let times = Timestamps { last_access: meta.time, last_modification: meta.time };
        self.dress(file.as_fd(), meta, 0o777)
            .and_then(|()| sys::futimens(&file, &times))
            .map_err(|errno| self.fails(full, errno))
    }

    /// Take away what has a name and is no directory; false if it cannot go, because it is mounted.
    fn clear(&self, parent: &OwnedFd, name: &[u8], full: &[u8]) -> Result<bool> {
        match sys::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::ISDIR) => Err(self.fails(full, "a directory is there, which is not replaced")),
            Err(Errno::BUSY) if is_kind(parent, name, FileType::RegularFile) => Ok(false),
            Err(errno) => Err(self.fails(full, errno)),
        }
    }

    /// A link or special file.
    fn leaf(
        &mut self,
        full: &[u8],
        meta: &Meta,
        make: impl Fn(&OwnedFd, &[u8]) -> rustix::io::Result<()>,
    ) -> Result<()> {
        let (parent, name) = self.parent(full)?;
        if !self.clear(&parent, &name, full)? {
            return Err(self.fails(full, Errno::BUSY));
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let times = Timestamps { last_access: meta.time, last_modification: meta.time };
        make(&parent, &name)
            .and_then(|()| match self.archive {
                true => {
                    let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
                    sys::chownat(&parent, &name, Some(uid), Some(gid), flags)
                }
                false => Ok(()),
            })
            .and_then(|()| sys::utimensat(&parent, &name, &times, flags))
            .map_err(|errno| self.fails(full, errno))
    }

    fn hardlink(&mut self, full: &[u8], first: &[u8]) -> Result<()> {
        let (from, first_name) = self.parent(&self.full(first))?;
        let (parent, name) = self.parent(full)?;
        if (first_name.as_slice(), first) != (name.as_slice(), full) && !self.clear(&parent, &name, full)? {
            return Err(self.fails(full, Errno::BUSY));
        }
        match sys::linkat(&from, &first_name, &parent, &name, AtFlags::empty()) {
            Err(Errno::EXIST) if first == full => Ok(()),
            other => other.map_err(|errno| self.fails(full, errno)),
        }
    }

    /// Owner, mode and attributes, in this order: a new owner takes away set-id bits and capabilities.
    ///
    /// - `plain`: the bits of the mode that are kept when owners are not: a file that runs with the rights of its owner
    ///   must not get another one.
    fn dress(&self, fd: BorrowedFd<'_>, meta: &Meta, plain: u32) -> rustix::io::Result<()> {
        if !self.archive {
            return sys::fchmod(fd, Mode::from_raw_mode(meta.mode & plain));
        }
        sys::fchown(fd, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
        sys::fchmod(fd, Mode::from_raw_mode(meta.mode))?;
        for (name, value) in &meta.attributes {
            match sys::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()) {
                Err(Errno::NOTSUP) if name.as_slice() != b"security.capability" => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Transferred> {
        for (path, time) in self.times.iter().rev() {
            let (parent, name) = self.parent(path)?;
            let times = Timestamps { last_access: *time, last_modification: *time };
            sys::utimensat(&parent, &name, &times, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| self.fails(path, errno))?;
        }
        Ok(self.done)
    }
}

fn is_kind(parent: &OwnedFd, name: &[u8], kind: FileType) -> bool {
    let stat = sys::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == kind)
}

impl Sink for Directory<'_> {
    fn put(&mut self, path: &[u8], meta: &Meta, node: Node<'_>) -> Result<()> {
        let full = self.full(path);
        if full.is_empty() {
            // The directory that is there takes in what is in the source.
            return match node {
                Node::Directory => Ok(()),
                _ => Err(self.place.fails("what is copied has no name")),
            };
        }
        match node {
            Node::Directory => self.directory(&full, meta)?,
            Node::File(size, data) => self.file(&full, meta, size, data)?,
            Node::Symlink(target) => self.leaf(&full, meta, |dir, name| sys::symlinkat(target, dir, name))?,
            Node::Hardlink(first) => self.hardlink(&full, first)?,
            Node::Special(kind, _) if kind != FileType::Fifo && self.place.container.is_none() => {
                // A device of the host, for whoever may open the file.
                self.left_out(format!("{} (a device)", lossy(&full)));
                return Ok(());
            }
            Node::Special(kind, device) => {
                let mode = Mode::from_raw_mode(meta.mode & 0o777);
                self.leaf(&full, meta, |dir, name| sys::mknodat(dir, name, kind, mode, device))?;
            }
        }
        self.done.files += 1;
        Ok(())
    }

    fn left_out(&mut self, what: String) {
        self.done.left_out.push(what);
    }
}

/// Writes a stream.
struct Stream<'a> {
    tar: tar::Builder<&'a mut dyn Write>,
    top: Vec<u8>,
    done: Transferred,
}

impl Stream<'_> {
    fn named(&self, path: &[u8]) -> Vec<u8> {
        if path.is_empty() { self.top.clone() } else { [&self.top, &b"/"[..], path].concat() }
    }

    fn append(&mut self, name: &[u8], meta: &Meta, node: Node<'_>) -> io::Result<()> {
        let records: Vec<(String, &[u8])> = meta
            .attributes
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{}", lossy(name)), value.as_slice()))
            .collect();
        if !records.is_empty() {
            self.tar.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), *value)))?;
        }
        let mut header = tar::Header::new_gnu();
        header.set_mode(meta.mode);
        header.set_uid(meta.uid.into());
        header.set_gid(meta.gid.into());
        header.set_mtime(u64::try_from(meta.time.tv_sec).unwrap_or(0));
        header.set_size(0);
        let path = Path::new(std::ffi::OsStr::from_bytes(name));
        let target = |bytes: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
        match node {
            Node::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                self.tar.append_data(&mut header, format_directory(path), io::empty())
            }
            Node::File(size, data) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(size);
                self.done.bytes += size;
                // One that becomes shorter is filled up: its header has been written.
                self.tar.append_data(&mut header, path, data.chain(io::repeat(0)).take(size))
            }
            Node::Symlink(link) => {
                header.set_entry_type(tar::EntryType::Symlink);
                self.tar.append_link(&mut header, path, target(link))
            }
            Node::Hardlink(first) => {
                header.set_entry_type(tar::EntryType::Link);
                let first = self.named(first);
                self.tar.append_link(&mut header, path, target(&first))
            }
            Node::Special(kind, device) => {
                header.set_entry_type(match kind {
                    FileType::CharacterDevice => tar::EntryType::Char,
                    FileType::BlockDevice => tar::EntryType::Block,
                    _ => tar::EntryType::Fifo,
                });
                if kind != FileType::Fifo {
                    header.set_device_major(sys::major(device))?;
                    header.set_device_minor(sys::minor(device))?;
                }
                self.tar.append_data(&mut header, path, io::empty())
            }
        }
    }
}

/// With the slash that marks a directory.
fn format_directory(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("/");
    name.into()
}

impl Sink for Stream<'_> {
    fn put(&mut self, path: &[u8], meta: &Meta, node: Node<'_>) -> Result<()> {
        let name = self.named(path);
        self.append(&name, meta, node).map_err(|error| cannot(&lossy(&name), &error))?;
        self.done.files += 1;
        Ok(())
    }

    fn left_out(&mut self, what: String) {
        self.done.left_out.push(what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_path_says_what_is_meant() {
        for (path, parent, name, directory) in [
            ("/a/b", "/a/", "b", false),
            ("/a/b/", "/a/", "b", true),
            ("/a/b//", "/a/", "b", true),
            ("/a/b/.", "/a/b/.", "", true),
            ("/a/..", "/a/..", "", true),
            ("/", "/", "", true),
            ("/b", "/", "b", false),
        ] {
            let end = ending(path.as_bytes());
            let found = (lossy(end.parent), lossy(end.name), end.directory);
            assert_eq!(found, (parent.to_owned(), name.to_owned(), directory), "{path}");
        }
    }

    #[test]
    fn a_path_of_the_host_keeps_its_ending() {
        for (given, end) in [("/a/b/.", "/a/b/."), ("/a/b/", "/a/b/"), ("/a/b", "/a/b"), (".", "/.")] {
            let path = Place::host(Path::new(given)).unwrap().path;
            assert!(path.as_os_str().as_bytes().ends_with(end.as_bytes()), "{given}: {}", path.display());
        }
    }
}
