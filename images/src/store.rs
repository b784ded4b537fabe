//! The store: one directory that several processes may use at once, and that a crash leaves whole.
//!
//! ```text
//! oci-layout, index.json, blobs/sha256/   a valid OCI image layout
//! layers/<diff-id>/{fs,meta.json}         each layer unpacked once, for all images
//! images/<manifest>/{stack.json,fix/}     how the layers of an image are stacked
//! containers/<id>/{upper,work,rootfs}     snapshots: what one container changed
//! ingest/                                 unfinished work of living processes, and downloads to go on with
//! trash/                                  renamed away, being deleted
//! lock                                    held for every change of names, and for collection
//! ```
//!
//! What has its final name is verified and on disk. A name appears by a rename, and goes by a rename into `trash`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::digest::Digest;
use crate::error::{ImageError, Result, at};
use crate::files;
use crate::image::{Image, LayerInfo};
use crate::index::{Entry, Index};
use crate::lease::{self, Lease};
use crate::manifest::{self, CONFIG_MAX, ConfigFile, Document, History, LayerSpec, MANIFEST_MAX, Manifest};
use crate::merge::{self, Stack, Tree};
use crate::reference::{DEFAULT_REGISTRY, Reference};
use crate::unpack::{LayerMeta, Limits};

pub(crate) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

const DIRECTORIES: [&str; 7] = ["blobs", "blobs/sha256", "layers", "images", "containers", "ingest", "trash"];

/// What may be in the directory before it is a whole store.
const OWN_NAMES: [&str; 11] = [
    "blobs",
    "layers",
    "images",
    "containers",
    "ingest",
    "trash",
    "lock",
    "index.json",
    "index.json.tmp",
    "oci-layout.tmp",
    "lost+found",
];

/// Largest `meta.json`: a path for each of the most files that a layer may have would be larger, but is no real layer.
const META_MAX: u64 = 256 << 20;

/// A download that nobody went on with for so long is given up.
const PART_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// An image store. Clones share it; several processes may open the same directory.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    limits: Limits,
}

/// What `remove` did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<Reference>,
    /// Images, layers and other content that are gone.
    pub deleted: Vec<Digest>,
    /// Space that is free again.
    pub freed_bytes: u64,
}

/// The right to change names; released when dropped.
pub(crate) struct StoreLock {
    _file: File,
}

impl Store {
    /// Open the store in `dir`, making it if it is not there, and clear away what dead processes left.
    ///
    /// # Errors
    /// The directory cannot be used, or holds something else.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open_with_limits(dir, Limits::default())
    }

    /// As `open`, with other limits for layers.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_with_limits(dir: impl AsRef<Path>, limits: Limits) -> Result<Self> {
        let dir = dir.as_ref();
        let made = std::fs::create_dir_all(dir).and_then(|()| dir.canonicalize());
        let root = made.map_err(at("make directory", dir))?;
        let store = Self { inner: Arc::new(Inner { root, limits }) };
        store.prepare().map_err(|e| e.in_store(dir))?;
        store.sweep()?;
        Ok(store)
    }

    /// Make what is missing. A process that is killed here leaves only parts that the next one completes.
    fn prepare(&self) -> Result<()> {
        let root = self.root();
        let layout = root.join("oci-layout");
        let names = files::names(root)?;
        let foreign = names.iter().find(|name| !OWN_NAMES.contains(&name.as_str()));
        if let Some(other) = foreign
            && !layout.exists()
        {
            let why = format!("it has `{other}`, but no oci-layout");
            return Err(bad_store(root, why));
        }
        let _lock = self.lock()?;
        let made = files::read_limited(&layout, 4096)?;
        if let Some(bytes) = &made {
            check_layout(root, bytes)?;
        }
        for dir in DIRECTORIES {
            files::ensure_dir(&root.join(dir), 0o700)?;
        }
        match (Index::read(root)?, &made) {
            (Some(_), _) => {}
            (None, None) => Index::default().write(root)?,
            // Not made anew: without names all content would be collected.
            (None, Some(_)) => return Err(bad_store(root, "it has no index.json".into())),
        }
        if made.is_none() {
            // Last, because it says that the rest is there.
            files::write_atomic(&layout, &root.join("oci-layout.tmp"), LAYOUT, 0o644)?;
        }
        Ok(())
    }

    /// Remove what dead processes left.
    fn sweep(&self) -> Result<()> {
        let lock = self.lock()?;
        let (_, dead) = lease::survey(&self.ingest())?;
        for dir in dead {
            self.to_trash(&dir)?;
        }
        for name in files::names(&self.ingest())?.iter().filter(|name| name.ends_with(".part")) {
            let path = self.ingest().join(name);
            let age =
                path.metadata().and_then(|m| m.modified()).ok().and_then(|t| SystemTime::now().duration_since(t).ok());
            if age.is_some_and(|age| age > PART_AGE_MAX) && File::open(&path).is_ok_and(|file| files::try_lock(&file)) {
                files::remove_all(&path)?;
            }
        }
        drop(lock);
        self.empty_trash();
        Ok(())
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    pub(crate) fn limits(&self) -> Limits {
        self.inner.limits
    }

    pub(crate) fn ingest(&self) -> PathBuf {
        self.root().join("ingest")
    }

    pub(crate) fn blob(&self, digest: Digest) -> PathBuf {
        self.root().join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn layer(&self, diff_id: Digest) -> PathBuf {
        self.root().join("layers").join(diff_id.hex())
    }

    pub(crate) fn stack_dir(&self, manifest: Digest) -> PathBuf {
        self.root().join("images").join(manifest.hex())
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.root().join("containers")
    }

    /// Everything written to the file system of the store is on disk when this returns.
    pub(crate) fn sync(&self) -> Result<()> {
        let dir = File::open(self.root()).map_err(at("open", self.root()))?;
        rustix::fs::syncfs(dir).map_err(at("sync", self.root())).map_err(|e| e.in_store(self.root()))
    }

    pub(crate) fn lock(&self) -> Result<StoreLock> {
        let path = self.root().join("lock");
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(at("open", &path))?;
        files::lock(&file, &path)?;
        Ok(StoreLock { _file: file })
    }

    pub(crate) fn lease(&self) -> Result<Lease> {
        let _lock = self.lock()?;
        Lease::new(&self.ingest()).map_err(|e| e.in_store(self.root()))
    }

    /// Keep this content while the lease lives.
    pub(crate) fn protect(&self, lease: &Lease, digests: impl IntoIterator<Item = Digest>) -> Result<()> {
        let _lock = self.lock()?;
        lease.protect(digests).map_err(|e| e.in_store(self.root()))
    }

    pub(crate) fn has_blob(&self, digest: Digest, size: u64) -> bool {
        self.blob(digest).symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.len() == size)
    }

    pub(crate) fn has_layer(&self, diff_id: Digest) -> bool {
        self.layer(diff_id).join("meta.json").is_file()
    }

    /// Move something out of sight. It is deleted by `empty_trash`.
    pub(crate) fn to_trash(&self, path: &Path) -> Result<()> {
        let target = self.root().join("trash").join(files::unique());
        match fs::rename(path, &target) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(at("remove", path)),
        }
    }

    /// Delete what is in the trash. Another process may be at it too, so a failure here is not one.
    pub(crate) fn empty_trash(&self) {
        let trash = self.root().join("trash");
        for name in files::names(&trash).unwrap_or_default() {
            if let Err(error) = files::remove_all(&trash.join(name)) {
                tracing::debug!(%error, "left in the trash");
            }
        }
    }

    pub(crate) fn index(&self) -> Result<Index> {
        Index::read(self.root())?.ok_or_else(|| bad_store(self.root(), "it has no index.json".into()))
    }

    /// A small blob, verified.
    pub(crate) fn read_blob(&self, what: &str, digest: Digest, limit: u64) -> Result<Vec<u8>> {
        let bytes = files::read_limited(&self.blob(digest), limit)?;
        let bytes = bytes.ok_or_else(|| ImageError::NotFound(format!("{what} {digest}")))?;
        match Digest::of(&bytes) {
            got if got == digest => Ok(bytes),
            got => Err(ImageError::Damaged { what: what.to_owned(), wanted: digest, got }),
        }
    }

    /// Add a small blob that is verified already.
    pub(crate) fn write_blob(&self, lease: &Lease, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if !self.has_blob(digest, bytes.len() as u64) {
            let temporary = lease.path(&digest.hex());
            files::write_atomic(&self.blob(digest), &temporary, bytes, 0o444).map_err(|e| e.in_store(self.root()))?;
        }
        Ok(digest)
    }

    pub(crate) fn manifest(&self, digest: Digest) -> Result<(Manifest, ConfigFile, Vec<LayerSpec>)> {
        let what = format!("manifest {digest}");
        let bytes = self.read_blob("manifest", digest, MANIFEST_MAX)?;
        let Document::Manifest(manifest) = manifest::parse(&what, None, &bytes)? else {
            return Err(ImageError::BadImage { what, why: "it is an index".into() });
        };
        let config = self.read_blob("configuration", manifest.config.digest, CONFIG_MAX)?;
        let config = ConfigFile::parse(&what, &config)?;
        let layers = manifest.layer_specs(&what, &config)?;
        Ok((*manifest, config, layers))
    }

    pub(crate) fn layer_meta(&self, diff_id: Digest) -> Result<LayerMeta> {
        let path = self.layer(diff_id).join("meta.json");
        let bytes = files::read_limited(&path, META_MAX)?;
        let bytes = bytes.ok_or_else(|| ImageError::NotFound(format!("unpacked layer {diff_id}")))?;
        serde_json::from_slice(&bytes)
            .map_err(|e| ImageError::BadImage { what: path.display().to_string(), why: e.to_string() })
    }

    /// How to mount an image; made when it is asked for the first time. All layers must be unpacked.
    pub(crate) fn stack(&self, lease: &Lease, manifest: Digest, layers: &[LayerSpec]) -> Result<(PathBuf, Stack)> {
        let dir = self.stack_dir(manifest);
        if let Some(bytes) = files::read_limited(&dir.join("stack.json"), META_MAX)? {
            let parsed = serde_json::from_slice(&bytes)
                .map_err(|e| ImageError::BadImage { what: dir.display().to_string(), why: e.to_string() });
            self.note_use(manifest);
            return Ok((dir, parsed?));
        }
        let tree = |spec: &LayerSpec| {
            let diff_id = spec.diff_id;
            Ok(Tree { diff_id, fs: self.layer(diff_id).join("fs"), meta: self.layer_meta(diff_id)? })
        };
        let trees = layers.iter().map(tree).collect::<Result<Vec<_>>>()?;
        let new = lease.path(&format!("{}.stack-{}", manifest.hex(), files::unique()));
        files::ensure_dir(&new, 0o700)?;
        let stack = merge::stack(&trees, &new.join("fix"))?;
        let text = serde_json::to_vec(&stack).map_err(|e| ImageError::io("write", &new, e))?;
        files::write_atomic(&new.join("stack.json"), &new.join("stack.tmp"), &text, 0o600)?;
        if stack.fix {
            self.sync()?;
        }
        match fs::rename(&new, &dir) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOTEMPTY)) => {}
            other => other.map_err(at("replace", &dir))?,
        }
        Ok((dir, stack))
    }

    /// Unpack from its blobs whatever is missing of an image.
    pub(crate) fn ensure_unpacked(&self, lease: &Lease, layers: &[LayerSpec]) -> Result<()> {
        for spec in layers.iter().filter(|spec| !self.has_layer(spec.diff_id)) {
            let path = self.blob(spec.digest);
            let mut blob = File::open(&path).map_err(at("open", &path))?;
            crate::layer::ingest(self, lease, spec, crate::layer::Origin::Stored, &mut blob)?;
        }
        Ok(())
    }

    /// Make an image, all of whose content is there, known by `names`; the last step of every pull and load.
    pub(crate) fn commit(
        &self,
        lease: &Lease,
        entry: &Entry,
        names: &[Reference],
        source: Option<Digest>,
    ) -> Result<Image> {
        let (_, _, layers) = self.manifest(entry.digest)?;
        self.ensure_unpacked(lease, &layers)?;
        self.stack(lease, entry.digest, &layers).map_err(|e| e.in_store(self.root()))?;
        for dir in ["blobs/sha256", "layers", "images"] {
            files::sync_parent(&self.root().join(dir).join("any"))?;
        }
        {
            let _lock = self.lock()?;
            let mut index = self.index()?;
            let before = index.clone();
            if names.is_empty() {
                index.put(entry.clone());
            }
            for name in names {
                let mut named = entry.clone();
                named.set_names(Some(name), source);
                index.put(named);
            }
            if index != before {
                index.write(self.root()).map_err(|e| e.in_store(self.root()))?;
            }
        }
        self.by_digest(entry.digest)
    }

    /// All images, by name. An image whose files are damaged is left out and logged.
    ///
    /// # Errors
    /// The list of names cannot be read.
    pub fn images(&self) -> Result<Vec<Image>> {
        let mut grouped: BTreeMap<Digest, Vec<Entry>> = BTreeMap::new();
        for entry in self.index()?.manifests {
            grouped.entry(entry.digest).or_default().push(entry);
        }
        let mut images = Vec::new();
        for (digest, entries) in grouped {
            match self.read_image(digest, &entries) {
                Ok(image) => images.push(image),
                Err(error) => tracing::warn!(%digest, %error, "an image cannot be read"),
            }
        }
        images.sort_by(|a, b| a.names.cmp(&b.names).then(a.digest.cmp(&b.digest)));
        Ok(images)
    }

    pub(crate) fn by_digest(&self, digest: Digest) -> Result<Image> {
        let entries: Vec<Entry> = self.index()?.manifests.into_iter().filter(|entry| entry.digest == digest).collect();
        self.read_image(digest, &entries)
    }

    fn read_image(&self, digest: Digest, entries: &[Entry]) -> Result<Image> {
        let (manifest, config, layers) = self.manifest(digest)?;
        let mut size = 0;
        for diff_id in layers.iter().map(|spec| spec.diff_id).collect::<BTreeSet<_>>() {
            size += self.layer_meta(diff_id).map_or(0, |meta| meta.size);
        }
        let mut names: Vec<Reference> = entries.iter().filter_map(Entry::reference).collect();
        names.sort();
        let platform = config.platform();
        Ok(Image {
            names,
            digest,
            source_digests: entries.iter().filter_map(Entry::source_digest).collect(),
            id: manifest.config.digest,
            size,
            download_size: layers.iter().map(|spec| spec.size).sum(),
            created: config.created,
            architecture: platform.architecture,
            os: platform.os,
            variant: platform.variant,
            config: config.config,
            layers: layers.iter().map(|l| LayerInfo { digest: l.digest, diff_id: l.diff_id, size: l.size }).collect(),
        })
    }

    /// Find an image by name, by digest, or by the start of its id (4 digits at least).
    ///
    /// A name means what docker takes it for; if there is none such, `localhost/NAME` is tried, as podman calls
    /// what it builds. No registry is asked.
    ///
    /// # Errors
    /// Several images fit, or the list of names cannot be read.
    pub fn image(&self, name: &str) -> Result<Option<Image>> {
        if let Ok(reference) = name.parse::<Reference>()
            && let Some(image) = self.find_meant(&reference)?
        {
            return Ok(Some(image));
        }
        by_prefix(&self.images()?, name)
    }

    /// Find an image by its full name; only that image is read.
    ///
    /// # Errors
    /// The list of names, or the image, cannot be read.
    pub fn find(&self, reference: &Reference) -> Result<Option<Image>> {
        let entries = self.index()?.manifests;
        let means = |entry: &&Entry| match reference.digest() {
            // A digest says it all; the repository only tells where to fetch it.
            Some(digest) => entry.digest == digest || entry.source_digest() == Some(digest),
            None => entry.reference().as_ref() == Some(reference),
        };
        let found = entries.iter().find(means).map(|entry| entry.digest);
        found.map(|digest| self.by_digest(digest)).transpose()
    }

    /// Find what a person means: the name itself, or `localhost/NAME` for a name without registry, as podman calls what
    /// it builds.
    pub(crate) fn find_meant(&self, reference: &Reference) -> Result<Option<Image>> {
        let found = self.find(reference)?;
        let local = format!("localhost/{}", reference.familiar()).parse();
        match (found, local) {
            (None, Ok(local)) if reference.registry() == DEFAULT_REGISTRY => self.find(&local),
            (found, _) => Ok(found),
        }
    }

    /// Give another name to an image; the image that had it loses it.
    ///
    /// # Errors
    /// `NotFound`, `BadReference` for a name with a digest, and those of the file system.
    pub fn tag(&self, name: &str, new: &Reference) -> Result<Image> {
        if new.digest().is_some() {
            let why = "a name with a digest cannot be given, because content decides it".to_owned();
            return Err(ImageError::BadReference { reference: new.to_string(), why });
        }
        {
            let _lock = self.lock()?;
            let image = self.image(name)?.ok_or_else(|| ImageError::NotFound(name.to_owned()))?;
            let mut index = self.index()?;
            let found = index.manifests.iter().find(|entry| entry.digest == image.digest);
            let mut entry = found.ok_or_else(|| ImageError::NotFound(name.to_owned()))?.clone();
            entry.set_names(Some(new), None);
            // Where the last name of an image goes to another, the image stays under its digest.
            let loser = index.manifests.iter().find(|entry| entry.reference().as_ref() == Some(new)).cloned();
            index.put(entry);
            if let Some(mut loser) = loser.filter(|loser| loser.digest != image.digest) {
                loser.annotations.remove(crate::index::REF_NAME);
                index.put(loser);
            }
            index.write(self.root()).map_err(|e| e.in_store(self.root()))?;
        }
        self.find(new)?.ok_or_else(|| ImageError::NotFound(new.to_string()))
    }

    /// How an image was made, oldest step first, as its configuration tells.
    ///
    /// # Errors
    /// Its configuration cannot be read.
    pub fn history(&self, image: &Image) -> Result<Vec<History>> {
        let (_, config, layers) = self.manifest(image.digest)?;
        let mut layers = layers.into_iter();
        let mut steps = config.history;
        for step in &mut steps {
            step.layer = if step.empty_layer { None } else { layers.next().map(|spec| spec.digest) };
            step.size = step
                .layer
                .and_then(|layer| image.layers.iter().find(|l| l.digest == layer))
                .map_or(0, |l| self.layer_meta(l.diff_id).map_or(0, |meta| meta.size));
        }
        // Layers that the history does not mention were added by a tool that writes none.
        steps.extend(layers.map(|spec| History { layer: Some(spec.digest), ..History::default() }));
        Ok(steps)
    }

    /// Media type and size of a manifest.
    pub(crate) fn manifest_type(&self, digest: Digest) -> Result<(String, u64)> {
        let index = self.index()?;
        let entry = index.manifests.into_iter().find(|entry| entry.digest == digest);
        let entry = entry.ok_or_else(|| ImageError::NotFound(digest.to_string()))?;
        Ok((entry.media_type, entry.size))
    }

    /// Take a name from an image; with its last name goes the image, and all content that no other image needs.
    ///
    /// - `name`: as for `image`; an id or digest means all names.
    /// - `force`: also if it has several names, or a container uses it; then the content stays until that is gone.
    ///
    /// # Errors
    /// `NotFound`, `InUse`, `SeveralNames`, and those of the file system.
    pub fn remove(&self, name: &str, force: bool) -> Result<Removed> {
        let lock = self.lock()?;
        let image = self.image(name)?.ok_or_else(|| ImageError::NotFound(name.to_owned()))?;
        let untagged = self.names_to_remove(&image, name, force)?;
        let mut index = self.index()?;
        let last = untagged.len() == image.names.len();
        index.manifests.retain(|entry| {
            entry.digest != image.digest || (!last && !entry.reference().is_some_and(|name| untagged.contains(&name)))
        });
        index.write(self.root())?;
        let mut removed = self.collect_locked()?;
        drop(lock);
        self.empty_trash();
        removed.untagged = untagged;
        Ok(removed)
    }

    fn names_to_remove(&self, image: &Image, name: &str, force: bool) -> Result<Vec<Reference>> {
        let named = |reference: &&Reference| {
            let given = |text: &str| text.parse::<Reference>().is_ok_and(|given| **reference == given);
            given(name) || given(&format!("localhost/{name}"))
        };
        let untagged: Vec<Reference> = match image.names.iter().find(named) {
            Some(one) => vec![one.clone()],
            None if image.names.len() > 1 && !force => {
                let names = image.names.iter().map(Reference::familiar).collect();
                return Err(ImageError::SeveralNames { image: name.to_owned(), names });
            }
            None => image.names.clone(),
        };
        if untagged.len() == image.names.len() && !force {
            let containers: Vec<String> =
                self.snapshots()?.into_iter().filter(|s| s.image == image.digest).map(|s| s.id).collect();
            if !containers.is_empty() {
                return Err(ImageError::InUse { image: name.to_owned(), containers });
            }
        }
        Ok(untagged)
    }

    /// Remove content that no name, no container and no work under way needs. Returns what went.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn collect(&self) -> Result<Removed> {
        let lock = self.lock()?;
        let removed = self.collect_locked()?;
        drop(lock);
        self.empty_trash();
        Ok(removed)
    }

    pub(crate) fn collect_locked(&self) -> Result<Removed> {
        let keep = self.needed()?;
        let mut removed = Removed::default();
        for (dir, is_blob) in [("images", false), ("layers", false), ("blobs/sha256", true)] {
            for name in files::names(&self.root().join(dir))? {
                let path = self.root().join(dir).join(&name);
                let Some(digest) = Digest::from_hex(&name).filter(|digest| !keep.contains(digest)) else {
                    continue;
                };
                let size = if is_blob {
                    path.symlink_metadata().map_or(0, |meta| meta.blocks() * 512)
                } else {
                    self.layer_meta(digest).map_or(0, |meta| meta.size)
                };
                self.to_trash(&path)?;
                removed.freed_bytes += size;
                if dir != "images" {
                    removed.deleted.push(digest);
                }
            }
        }
        removed.deleted.sort();
        removed.deleted.dedup();
        Ok(removed)
    }

    /// Digests of everything that must stay: manifests, configurations, layers packed and unpacked.
    fn needed(&self) -> Result<BTreeSet<Digest>> {
        let (leased, _) = lease::survey(&self.ingest())?;
        let mut keep: BTreeSet<Digest> = leased.into_iter().collect();
        let index = self.index()?;
        // The index that an image was chosen from is kept for other nodes.
        keep.extend(index.manifests.iter().filter_map(Entry::source_digest));
        let mut roots: Vec<Digest> = index.manifests.iter().map(|entry| entry.digest).collect();
        roots.extend(self.snapshots()?.iter().map(|snapshot| snapshot.image));
        let mut seen = BTreeSet::new();
        while let Some(digest) = roots.pop() {
            keep.insert(digest);
            if seen.insert(digest) {
                self.add_parts(digest, &mut keep, &mut roots)?;
            }
        }
        Ok(keep)
    }

    fn add_parts(&self, digest: Digest, keep: &mut BTreeSet<Digest>, roots: &mut Vec<Digest>) -> Result<()> {
        let what = format!("manifest {digest}");
        let bytes = match self.read_blob("manifest", digest, MANIFEST_MAX) {
            Ok(bytes) => bytes,
            Err(ImageError::NotFound(_) | ImageError::Damaged { .. }) => return Ok(()),
            Err(other) => return Err(other),
        };
        match manifest::parse(&what, None, &bytes) {
            // Another tool has put an index here: all of it belongs to the layout.
            Ok(Document::Index(parts)) => roots.extend(parts.iter().map(|part| part.digest)),
            Ok(Document::Manifest(manifest)) => {
                keep.insert(manifest.config.digest);
                keep.extend(manifest.layers.iter().map(|layer| layer.digest));
                if let Ok(bytes) = self.read_blob("configuration", manifest.config.digest, CONFIG_MAX)
                    && let Ok(config) = ConfigFile::parse(&what, &bytes)
                {
                    keep.extend(config.rootfs.diff_ids);
                }
            }
            Err(error) => tracing::warn!(%error, "its content may be collected"),
        }
        Ok(())
    }
}

fn check_layout(root: &Path, bytes: &[u8]) -> Result<()> {
    let parsed = serde_json::from_slice::<serde_json::Value>(bytes).unwrap_or_default();
    match parsed["imageLayoutVersion"].as_str() {
        Some("1.0.0") => Ok(()),
        other => {
            let version = other.unwrap_or("unknown");
            Err(bad_store(root, format!("its layout has version {version}")))
        }
    }
}

fn bad_store(dir: &Path, why: String) -> ImageError {
    ImageError::BadStore { dir: dir.to_path_buf(), why }
}

fn by_prefix(images: &[Image], text: &str) -> Result<Option<Image>> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    if !(4..=64).contains(&digits.len()) || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Ok(None);
    }
    let fits = |image: &&Image| {
        let mut digests = image.source_digests.iter().chain([&image.id, &image.digest]);
        digests.any(|digest| digest.hex().starts_with(digits))
    };
    let found: Vec<&Image> = images.iter().filter(fits).collect();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some((*one).clone())),
        several => Err(ImageError::Ambiguous {
            prefix: text.to_owned(),
            matches: several.iter().map(|i| i.id.short()).collect(),
        }),
    }
}
