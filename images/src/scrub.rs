//! Checks unpacked layers against what was unpacked, and puts back what is damaged.
//!
//! A disk that lies, a power cut on a file system without barriers or a careless hand change files that every container
//! of an image sees. The list that was made while a layer was unpacked ([`crate::catalog`]) tells.
//!
//! Layers are repaired file by file, from a fresh copy that is unpacked beside them: containers may have them mounted.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use crate::catalog::{self, Catalog, Entry, Item};
use crate::digest::{Digest, HashReader};
use crate::error::{ImageError, Result, at};
use crate::files;
use crate::image::Image;
use crate::layer::{self, Origin};
use crate::lease::Lease;
use crate::manifest::LayerSpec;
use crate::progress::Progress;
use crate::pull::{PullOptions, blocking};
use crate::store::Store;

/// Read at once while a file is hashed.
const CHUNK: usize = 1 << 20;

/// What is wrong with a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The layer, as packed.
    pub layer: Digest,
    /// Below the root of the layer; `None` if it is about the layer as a whole.
    pub path: Option<PathBuf>,
    /// In words.
    pub what: String,
}

/// What a check has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Files, directories and the like that were looked at.
    pub files: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// What is wrong; empty if all is well.
    pub damage: Vec<Damage>,
}

impl Verified {
    fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.damage.extend(other.damage);
    }
}

impl Store {
    /// Read all blobs and all unpacked files of an image and compare them with their digests.
    ///
    /// Several layers at once, as many as there are processors.
    ///
    /// # Errors
    /// Something cannot be read. Damage is no error.
    pub fn verify(&self, image: &Image) -> Result<Verified> {
        let lease = self.lease()?;
        self.protect(&lease, image.parts())?;
        let (_, _, specs) = self.manifest(image.digest)?;
        let unique: BTreeMap<Digest, LayerSpec> = specs.into_iter().map(|spec| (spec.diff_id, spec)).collect();
        let queue = Mutex::new(unique.into_values().collect::<Vec<_>>());
        let next = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
        let work = || {
            let mut found = Verified::default();
            while let Some(spec) = next() {
                found.add(self.verify_layer(&spec)?);
            }
            Ok(found)
        };
        let mut found = Verified::default();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let results: Vec<Result<Verified>> = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            handles.into_iter().map(|h| h.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect()
        });
        for result in results {
            found.add(result?);
        }
        found.damage.sort_by(|a, b| (a.layer, &a.path).cmp(&(b.layer, &b.path)));
        Ok(found)
    }

    fn verify_layer(&self, spec: &LayerSpec) -> Result<Verified> {
        let mut found = Verified::default();
        if let Some(what) = self.blob_damage(spec)? {
            found.damage.push(Damage { layer: spec.digest, path: None, what });
        }
        found.bytes += spec.size;
        let layer = self.layer(spec.diff_id);
        match catalog::read(&layer.join(catalog::NAME)) {
            Ok(Some(catalog)) => found.add(compare(spec.digest, &layer.join("fs"), &catalog)?),
            Ok(None) | Err(ImageError::BadImage { .. }) => {
                let what =
                    if self.has_layer(spec.diff_id) { "its list of files is damaged" } else { "it is not unpacked" };
                found.damage.push(Damage { layer: spec.digest, path: None, what: what.to_owned() });
            }
            Err(error) => return Err(error),
        }
        Ok(found)
    }

    fn blob_damage(&self, spec: &LayerSpec) -> Result<Option<String>> {
        let path = self.blob(spec.digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Some("its packed form is missing".to_owned()));
            }
            Err(error) => return Err(ImageError::io("open", &path, error)),
        };
        let got = HashReader::new(file, u64::MAX).finish().map_err(at("read", &path))?;
        Ok((got != spec.digest).then(|| "its packed form is damaged".to_owned()))
    }

    /// Put back what `found` says is damaged: from the packed layers of this store, and where those are damaged too,
    /// from the registry that the image is named after. Needs a tokio runtime.
    ///
    /// Containers that run see the whole files when they open them the next time.
    ///
    /// # Errors
    /// Those of a pull. Layers that could be repaired are.
    pub async fn repair(
        &self,
        image: &Image,
        found: &Verified,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<()> {
        let damaged: BTreeSet<Digest> = found.damage.iter().map(|damage| damage.layer).collect();
        let (_, _, mut specs) = self.manifest(image.digest)?;
        specs.retain(|spec| damaged.contains(&spec.digest));
        let (store, parts) = (self.clone(), image.parts());
        let lost = blocking(move || store.repair_from_blobs(parts, specs)).await?;
        self.fetch_missing(image, &lost, options, progress).await?;
        let (store, parts) = (self.clone(), image.parts());
        blocking(move || store.repair_from_blobs(parts, lost)).await.map(drop)
    }

    /// Repair the layers whose packed form is whole; the others go, so that they are fetched, and are returned.
    fn repair_from_blobs(&self, parts: Vec<Digest>, specs: Vec<LayerSpec>) -> Result<Vec<LayerSpec>> {
        let lease = self.lease()?;
        self.protect(&lease, parts)?;
        let mut lost = Vec::new();
        for spec in specs {
            if self.blob_damage(&spec)?.is_none() {
                self.repair_layer(&lease, &spec)?;
            } else {
                self.to_trash(&self.blob(spec.digest))?;
                lost.push(spec);
            }
        }
        self.empty_trash();
        self.sync()?;
        Ok(lost)
    }

    fn repair_layer(&self, lease: &Lease, spec: &LayerSpec) -> Result<()> {
        let path = self.blob(spec.digest);
        let mut blob = File::open(&path).map_err(at("open", &path))?;
        if !self.has_layer(spec.diff_id) {
            return layer::ingest(self, lease, spec, Origin::Stored, &mut blob);
        }
        let fresh = layer::unpack_beside(self, lease, spec, &mut blob)?;
        let list = fresh.join(catalog::NAME);
        let catalog = catalog::read(&list)?.ok_or_else(|| ImageError::NotFound(list.display().to_string()))?;
        let layer = self.layer(spec.diff_id);
        let found = compare(spec.digest, &layer.join("fs"), &catalog)?;
        let aside = lease.path(&format!("{}.aside", files::unique()));
        files::ensure_dir(&aside, 0o700)?;
        let mend = Mend { from: fresh.join("fs"), to: layer.join("fs"), aside, catalog: &catalog };
        mend.all(found.damage.iter().filter_map(|damage| damage.path.as_deref()))?;
        fs::rename(&list, layer.join(catalog::NAME)).map_err(at("replace", &layer))?;
        files::remove_all(&fresh)?;
        files::remove_all(&mend.aside)?;
        match compare(spec.digest, &mend.to, &catalog)?.damage.first() {
            None => Ok(()),
            Some(still) => Err(ImageError::BadImage {
                what: format!("layer {}", spec.digest),
                why: format!("it cannot be repaired: {}", still.what),
            }),
        }
    }
}

/// Compare a tree with its list.
fn compare(layer: Digest, root: &Path, catalog: &Catalog) -> Result<Verified> {
    let mut check = Check { layer, root, catalog, found: Verified::default(), inodes: BTreeMap::new() };
    let mut skip: Option<Vec<u8>> = None;
    for (path, entry) in catalog {
        // What is below something that is no directory cannot be there.
        if skip.as_ref().is_some_and(|above| inside(path, above)) {
            continue;
        }
        let is_directory = check.one(path, entry)?;
        skip = (!is_directory && matches!(entry.item, Item::Directory(_))).then(|| path.clone());
    }
    Ok(check.found)
}

fn inside(path: &[u8], above: &[u8]) -> bool {
    above.is_empty() || path.strip_prefix(above).is_some_and(|rest| rest.starts_with(b"/"))
}

struct Check<'a> {
    layer: Digest,
    root: &'a Path,
    catalog: &'a Catalog,
    found: Verified,
    /// Of files with several names, where the first one is.
    inodes: BTreeMap<u64, u64>,
}

impl Check<'_> {
    fn damage(&mut self, path: &[u8], what: impl Into<String>) {
        let path = Some(PathBuf::from(OsStr::from_bytes(path)));
        self.found.damage.push(Damage { layer: self.layer, path, what: what.into() });
    }

    /// Check what is at `path`; true if it is a directory.
    fn one(&mut self, path: &[u8], entry: &Entry) -> Result<bool> {
        let full = self.root.join(OsStr::from_bytes(path));
        let meta = match full.symlink_metadata() {
            Ok(meta) => meta,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                self.damage(path, "missing");
                return Ok(false);
            }
            Err(error) => return Err(ImageError::io("read", &full, error)),
        };
        self.found.files += 1;
        let wrong = match difference(&full, &meta, entry) {
            Some(wrong) => Some(wrong.to_owned()),
            None => self.content(&full, entry, &meta)?,
        };
        if let Some(wrong) = wrong {
            self.damage(path, wrong);
        }
        if meta.is_dir() && matches!(entry.item, Item::Directory(_)) {
            self.unexpected(path, &full)?;
        }
        Ok(meta.is_dir())
    }

    /// What is in a directory and should not be.
    fn unexpected(&mut self, path: &[u8], full: &Path) -> Result<()> {
        for name in fs::read_dir(full).map_err(at("list", full))? {
            let name = name.map_err(at("list", full))?.file_name();
            let child = if path.is_empty() { name.as_bytes().to_vec() } else { [path, b"/", name.as_bytes()].concat() };
            if !self.catalog.contains_key(&child) {
                self.damage(&child, "not part of the layer");
            }
        }
        Ok(())
    }

    fn content(&mut self, full: &Path, entry: &Entry, meta: &Metadata) -> Result<Option<String>> {
        let Item::File { hash, .. } = &entry.item else {
            return Ok(None);
        };
        // The other names of a file that was read already.
        match self.inodes.insert(entry.file, meta.ino()) {
            Some(inode) if inode == meta.ino() => return Ok(None),
            Some(_) => return Ok(Some("no longer the same file as its other name".to_owned())),
            None => {}
        }
        self.found.bytes += meta.len();
        match hash_file(full) {
            Ok(got) if got == *hash => Ok(None),
            Ok(_) => Ok(Some("its content has changed".to_owned())),
            // A disk that cannot be read is what this is looking for.
            Err(error) => Ok(Some(format!("it cannot be read: {error}"))),
        }
    }
}

fn hash_file(path: &Path) -> io::Result<blake3::Hash> {
    let flags = libc::O_NOFOLLOW | libc::O_NOATIME | libc::O_NONBLOCK;
    let mut file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; CHUNK]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finalize()),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
    }
}

/// What differs besides content.
fn difference(full: &Path, meta: &Metadata, entry: &Entry) -> Option<&'static str> {
    let kind = meta.file_type();
    let (same_kind, owned) = match &entry.item {
        Item::File { owned, .. } => (kind.is_file(), Some(*owned)),
        Item::Directory(owned) => (kind.is_dir(), Some(*owned)),
        Item::Symlink { .. } => (kind.is_symlink(), None),
        Item::Node { kind: 'p', owned, .. } => (kind.is_fifo(), Some(*owned)),
        Item::Node { kind: 'b', owned, .. } => (kind.is_block_device(), Some(*owned)),
        Item::Node { owned, .. } => (kind.is_char_device(), Some(*owned)),
        Item::Whiteout => (kind.is_char_device(), None),
    };
    if !same_kind {
        return Some("something else is there");
    }
    if let Some(owned) = owned
        && (meta.mode() & 0o7777, meta.uid(), meta.gid()) != (owned.mode, owned.uid, owned.gid)
    {
        return Some("its mode or owner has changed");
    }
    let right = match &entry.item {
        Item::File { size, .. } => meta.len() == *size,
        Item::Symlink { uid, gid, target } => {
            let same = fs::read_link(full).is_ok_and(|found| found.as_os_str().as_bytes() == target.as_slice());
            same && (meta.uid(), meta.gid()) == (*uid, *gid)
        }
        Item::Node { kind: 'p', .. } | Item::Directory(_) => true,
        Item::Node { device, .. } => meta.rdev() == rustix::fs::makedev(device.0, device.1),
        Item::Whiteout => meta.rdev() == 0,
    };
    let attributes = entry.attributes.iter().all(|(name, value)| has_attribute(full, name, value));
    match (right, attributes) {
        (false, _) => Some("its size, target or number has changed"),
        (true, false) => Some("its extended attributes have changed"),
        (true, true) => None,
    }
}

fn has_attribute(path: &Path, name: &[u8], value: &[u8]) -> bool {
    let mut found = vec![0; value.len() + 1];
    rustix::fs::lgetxattr(path, name, &mut found[..]).is_ok_and(|length| &found[..length] == value)
}

/// Moves good files over damaged ones.
struct Mend<'a> {
    from: PathBuf,
    to: PathBuf,
    /// Where what is damaged goes.
    aside: PathBuf,
    catalog: &'a Catalog,
}

impl Mend<'_> {
    fn all<'p>(&self, damaged: impl Iterator<Item = &'p Path>) -> Result<()> {
        let mut paths: BTreeSet<Vec<u8>> = damaged.map(|path| path.as_os_str().as_bytes().to_vec()).collect();
        // All names of a file are replaced together, so that they stay one file.
        let files: BTreeSet<u64> =
            paths.iter().filter_map(|path| self.catalog.get(path)).map(|entry| entry.file).collect();
        let names = self.catalog.iter().filter(|(_, entry)| files.contains(&entry.file));
        paths.extend(names.filter(|(_, entry)| matches!(entry.item, Item::File { .. })).map(|(path, _)| path.clone()));
        let paths: Vec<&Path> = paths.iter().map(|path| Path::new(OsStr::from_bytes(path))).collect();
        let parents: BTreeSet<&Path> = paths.iter().filter_map(|path| path.parent()).collect();
        // Before anything is moved, which changes them in both trees.
        let times: Vec<(&Path, Timestamps)> =
            parents.into_iter().filter_map(|path| Some((path, times(&self.from.join(path))?))).collect();
        paths.iter().try_for_each(|path| self.one(path))?;
        for (path, times) in times {
            let to = self.to.join(path);
            rustix::fs::utimensat(CWD, &to, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(at("set the time of", &to))?;
        }
        Ok(())
    }

    fn one(&self, path: &Path) -> Result<()> {
        let (from, to) = (self.from.join(path), self.to.join(path));
        let wanted = self.catalog.get(path.as_os_str().as_bytes());
        if let (Some(Entry { item: Item::Directory(owned), attributes, .. }), true) = (wanted, is_directory(&to)) {
            std::os::unix::fs::chown(&to, Some(owned.uid), Some(owned.gid)).map_err(at("set the owner of", &to))?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(owned.mode);
            fs::set_permissions(&to, mode).map_err(at("set the mode of", &to))?;
            for (name, value) in attributes {
                rustix::fs::lsetxattr(&to, name.as_slice(), value, rustix::fs::XattrFlags::empty())
                    .map_err(at("set an attribute of", &to))?;
            }
            return Ok(());
        }
        if to.symlink_metadata().is_ok() {
            let aside = self.aside.join(files::unique());
            fs::rename(&to, &aside).map_err(at("replace", &to))?;
        }
        match fs::rename(&from, &to) {
            // Not part of the layer, or moved with the directory that it is in.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(at("replace", &to)),
        }
    }
}

/// `None` if nothing is there.
fn times(path: &Path) -> Option<Timestamps> {
    let meta = path.symlink_metadata().ok()?;
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    Some(Timestamps {
        last_access: time(meta.atime(), meta.atime_nsec()),
        last_modification: time(meta.mtime(), meta.mtime_nsec()),
    })
}

fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_dir())
}
