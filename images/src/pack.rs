//! Makes a layer from a directory tree: the way back of [`crate::unpack`].
//!
//! Sorted by name, without times of access and without names of users, so that the same tree gives the same bytes.
//!
//! # Source
//! OCI image-spec 1.1 `layer.md`; kernel `Documentation/filesystems/overlayfs.rst`, "whiteouts and opaque directories".

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use crate::error::{ImageError, Result, at};
use crate::snapshot::IdMaps;
use crate::unpack::OPAQUE;

/// Largest list of attribute names, and largest value, that a file can have (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const ATTRIBUTES_MAX: usize = 64 << 10;

/// How a tree becomes a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packing<'a> {
    /// The tree is the upper directory of an overlay: deletions become whiteouts.
    pub(crate) overlay: bool,
    /// Later times of modification become this one, in seconds since 1970.
    pub(crate) time_max: Option<u64>,
    /// The owners are those of the host: in the layer are those of the container.
    pub(crate) ids: Option<&'a IdMaps>,
}

/// Write the tree below `root` to `out`; returns how many bytes its files have.
///
/// # Errors
/// Something cannot be read, or is a socket's neighbour of a kind that layers do not have; `out` cannot be written.
pub(crate) fn pack(root: &Path, packing: Packing<'_>, out: impl Write) -> Result<u64> {
    let mut packer = Packer { root, packing, tar: Builder::new(out), links: BTreeMap::new(), bytes: 0 };
    packer.directory(Path::new(""))?;
    packer.tar.into_inner().and_then(|mut out| out.flush()).map_err(at("pack", root))?;
    Ok(packer.bytes)
}

struct Packer<'a, W: Write> {
    root: &'a Path,
    packing: Packing<'a>,
    tar: Builder<W>,
    /// Files with several names, by device and inode.
    links: BTreeMap<(u64, u64), PathBuf>,
    bytes: u64,
}

impl<W: Write> Packer<'_, W> {
    fn directory(&mut self, path: &Path) -> Result<()> {
        let full = self.root.join(path);
        let meta = full.symlink_metadata().map_err(at("read", &full))?;
        let name = if path.as_os_str().is_empty() { Path::new("./") } else { path };
        self.attributes(&full)?;
        self.append(&meta, EntryType::Directory, name, None, io::empty())?;
        if self.packing.overlay && is_opaque(&full) {
            self.mark(&path.join(".wh..wh..opq"))?;
        }
        let mut names = fs::read_dir(&full)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<OsString>>>())
            .map_err(at("list", &full))?;
        names.sort();
        names.iter().try_for_each(|name| self.entry(&path.join(name)))
    }

    fn entry(&mut self, path: &Path) -> Result<()> {
        let full = self.root.join(path);
        let meta = full.symlink_metadata().map_err(at("read", &full))?;
        let kind = meta.file_type();
        if kind.is_dir() {
            return self.directory(path);
        }
        // A socket is there only while somebody listens.
        if kind.is_socket() {
            return Ok(());
        }
        if self.packing.overlay && kind.is_char_device() && meta.rdev() == 0 {
            let name = path.file_name().unwrap_or_default();
            return self.mark(&path.with_file_name(OsString::from_vec([b".wh.", name.as_bytes()].concat())));
        }
        if meta.nlink() > 1 {
            if let Some(first) = self.links.get(&(meta.dev(), meta.ino())).cloned() {
                return self.append(&meta, EntryType::Link, path, Some(&first), io::empty());
            }
            self.links.insert((meta.dev(), meta.ino()), path.to_owned());
        }
        self.attributes(&full)?;
        match kind {
            kind if kind.is_symlink() => {
                let target = fs::read_link(&full).map_err(at("read", &full))?;
                self.append(&meta, EntryType::Symlink, path, Some(&target), io::empty())
            }
            kind if kind.is_fifo() => self.append(&meta, EntryType::Fifo, path, None, io::empty()),
            kind if kind.is_char_device() => self.append(&meta, EntryType::Char, path, None, io::empty()),
            kind if kind.is_block_device() => self.append(&meta, EntryType::Block, path, None, io::empty()),
            _ => self.file(path, &full, &meta),
        }
    }

    fn file(&mut self, path: &Path, full: &Path, meta: &Metadata) -> Result<()> {
        let flags = libc::O_NOFOLLOW | libc::O_NOATIME;
        let file = File::options().read(true).custom_flags(flags).open(full).map_err(at("open", full))?;
        self.bytes += meta.len();
        // One that changes meanwhile is cut off or filled up: its header has been written.
        let whole = file.take(meta.len()).chain(io::repeat(0)).take(meta.len());
        self.append(meta, EntryType::Regular, path, None, whole)
    }

    /// Extended attributes come before their file, as records of PAX.
    fn attributes(&mut self, full: &Path) -> Result<()> {
        let found = attributes_of_image(full)?;
        if found.is_empty() {
            return Ok(());
        }
        let named: Vec<(String, &Vec<u8>)> =
            found.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value)).collect();
        let records = named.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        self.tar.append_pax_extensions(records).map_err(at("pack", full))
    }

    fn mark(&mut self, path: &Path) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(0);
        header.set_mtime(0);
        self.tar.append_data(&mut header, path, io::empty()).map_err(at("pack", &self.root.join(path)))
    }

    fn append(
        &mut self,
        meta: &Metadata,
        kind: EntryType,
        path: &Path,
        link: Option<&Path>,
        data: impl Read,
    ) -> Result<()> {
        let full = self.root.join(path);
        let failed = at("pack", &full);
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(meta.mode() & 0o7777);
        let own = (meta.uid(), meta.gid());
        let (uid, gid) = self.packing.ids.map_or(own, |ids| ids.inside(own));
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        let time = u64::try_from(meta.mtime()).unwrap_or(0);
        header.set_mtime(self.packing.time_max.map_or(time, |max| time.min(max)));
        header.set_size(if kind == EntryType::Regular { meta.len() } else { 0 });
        if matches!(kind, EntryType::Char | EntryType::Block) {
            let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
            header.set_device_major(major).and_then(|()| header.set_device_minor(minor)).map_err(at("pack", &full))?;
        }
        match link {
            Some(target) => self.tar.append_link(&mut header, path, target).map_err(failed),
            None => self.tar.append_data(&mut header, path, data).map_err(failed),
        }
    }
}

/// The extended attributes of a file that belong to an image, by name.
pub(crate) fn attributes_of_image(path: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut list = vec![0; ATTRIBUTES_MAX];
    let length = match rustix::fs::llistxattr(path, &mut list) {
        Err(rustix::io::Errno::NOTSUP) => 0,
        other => other.map_err(at("read the attributes of", path))?,
    };
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Some(text) = std::str::from_utf8(name).ok().filter(|name| belongs_to_image(name)) else {
            continue;
        };
        let mut value = vec![0; ATTRIBUTES_MAX];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).map_err(at("read the attributes of", path))?;
        value.truncate(length);
        found.insert(text.to_owned(), value);
    }
    Ok(found)
}

/// Not what overlayfs or the policy of the host has put there.
pub(crate) fn belongs_to_image(name: &str) -> bool {
    name.starts_with("user.") && !name.starts_with("user.overlay.")
        || name.starts_with("system.posix_acl_")
        || name == "security.capability"
}

/// Whether the directory hides what the layers below have in its place.
pub(crate) fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 1];
    rustix::fs::lgetxattr(path, OPAQUE, &mut value[..]).is_ok_and(|length| length == 1 && value[0] == b'y')
}

/// How the bytes of a new layer are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Packed {
    /// Smaller and faster; docker before 23 cannot read it.
    #[default]
    Zstd,
    /// What every tool reads.
    Gzip,
}

impl std::str::FromStr for Packed {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "zstd" => Ok(Self::Zstd),
            "gzip" => Ok(Self::Gzip),
            other => {
                let why = "write zstd or gzip".to_owned();
                Err(ImageError::BadOption { field: "compression", value: other.to_owned(), why })
            }
        }
    }
}
