//! Images from files: OCI image layouts (directory or tar) and what `docker save` writes, from a path or a stream.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;

use crate::batch::Batch;
use crate::digest::{Digest, Hasher};
use crate::error::{ImageError, Result, at};
use crate::files;
use crate::image::Image;
use crate::index::{Entry, Index, REF_NAME};
use crate::layer::{self, Origin, Part, Source, Verified};
use crate::lease::Lease;
use crate::manifest::{
    self, CONFIG_MAX, Compression, ConfigFile, Descriptor, Document, LayerSpec, MANIFEST_MAX, Manifest, OCI_CONFIG,
    OCI_MANIFEST,
};
use crate::platform::Platform;
use crate::progress::{Event, Progress};
use crate::reference::Reference;
use crate::store::Store;
use crate::tarball::{Kind, TarReader};
use crate::window;

/// Largest `index.json` or `manifest.json` of an archive.
const JSON_MAX: u64 = 16 << 20;

/// Most members of an archive: blobs of many images, not files of a root file system.
const MEMBERS_MAX: usize = 100_000;

/// Longest name of a member; those of images are a hundred bytes.
const NAME_MAX: usize = 4096;

/// How deep indexes may be nested.
const NESTING_MAX: u32 = 3;

/// Layers unpacked at once, of whichever image.
const LAYERS_AT_ONCE: usize = 4;

/// How often a layer that another one is at is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Where images are loaded from.
pub enum LoadSource {
    /// A directory with an OCI image layout, or an archive: tar, gzip'ed or zstd-compressed tar.
    Path(PathBuf),
    /// An archive from a stream such as the standard input.
    Reader {
        /// The stream.
        reader: Box<dyn Read + Send>,
        /// For messages, and the name of an image that has none; may be empty.
        name: String,
    },
}

impl std::fmt::Debug for LoadSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Reader { name, .. } => f.debug_struct("Reader").field("name", name).finish_non_exhaustive(),
        }
    }
}

/// What to load.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The platform wanted, that of the host if not given. An image for another one is refused.
    pub platform: Option<Platform>,
}

impl Store {
    /// Load all images of a layout or archive, for this host's platform.
    ///
    /// Names are those that the archive gives (`org.opencontainers.image.ref.name`, docker's `RepoTags`), else the
    /// name of the file or directory.
    ///
    /// # Errors
    /// `BadArchive`, `BadImage`, `Damaged`, `WrongPlatform`, `DiskFull` and others; images that were complete stay.
    pub fn load(&self, source: LoadSource, progress: &dyn Progress) -> Result<Vec<Image>> {
        self.load_with(source, &LoadOptions::default(), progress)
    }

    /// As `load`, with options.
    ///
    /// # Errors
    /// As `load`.
    pub fn load_with(&self, source: LoadSource, options: &LoadOptions, progress: &dyn Progress) -> Result<Vec<Image>> {
        let lease = self.lease()?;
        let archive = Archive::open(source, &lease).map_err(|e| e.in_store(self.root()))?;
        progress.event(Event::Resolving { what: archive.title.clone() });
        let platform = options.platform.clone().unwrap_or_else(Platform::host);
        let batch = Batch::new(self);
        let loader = Loader { store: self, lease: &lease, archive: &archive, platform, progress, batch };
        if archive.has("index.json") && archive.has("oci-layout") {
            loader.all(loader.oci()?)
        } else if archive.has("manifest.json") {
            loader.all(loader.docker()?)
        } else {
            Err(archive.bad("it has neither index.json with oci-layout, nor manifest.json: it is not an image"))
        }
    }
}

/// The files of an archive by name.
#[derive(Debug)]
struct Archive {
    /// For messages.
    title: String,
    /// For an image that has no name.
    stem: String,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Directory(PathBuf),
    Spool { files: BTreeMap<String, Spooled>, links: BTreeMap<String, String> },
}

/// A file of a tar archive, in the lease.
#[derive(Debug, Clone)]
struct Spooled {
    path: PathBuf,
    size: u64,
    digest: Digest,
}

impl Archive {
    fn open(source: LoadSource, lease: &Lease) -> Result<Self> {
        match source {
            LoadSource::Path(path) if path.is_dir() => {
                let full = path.canonicalize().map_err(at("open", &path))?;
                Ok(Self { title: path.display().to_string(), stem: stem(&full), content: Content::Directory(full) })
            }
            LoadSource::Path(path) => {
                let file = File::open(&path).map_err(at("open", &path))?;
                Self::spool(file, path.display().to_string(), stem(&path), lease)
            }
            LoadSource::Reader { reader, name } => {
                let title = if name.is_empty() { "the archive".to_owned() } else { name.clone() };
                Self::spool(reader, title, stem(Path::new(&name)), lease)
            }
        }
    }

    /// Streams have their parts in any order, so all of it goes to files first; those of layers become the blobs.
    fn spool(reader: impl Read, title: String, stem: String, lease: &Lease) -> Result<Self> {
        let bad = |error: io::Error| ImageError::BadArchive { archive: title.clone(), why: error.to_string() };
        let mut packed = BufReader::with_capacity(256 << 10, reader);
        let compression = Compression::sniff(packed.fill_buf().map_err(bad)?);
        let plain = layer::decoder(compression, packed).map_err(bad)?;
        let mut tar = TarReader::new(BufReader::with_capacity(256 << 10, plain));
        let (mut files, mut links) = (BTreeMap::new(), BTreeMap::new());
        while let Some(member) = tar.next_member().map_err(bad)? {
            if member.path.len() > NAME_MAX || member.link.len() > NAME_MAX {
                return Err(bad(io::Error::other("a name in it is too long")));
            }
            let name = normal(&String::from_utf8_lossy(&member.path), "");
            match member.kind {
                Kind::File if member.sparse.is_none() => {
                    let path = lease.path(&format!("in-{}", files.len()));
                    let spooled = write_member(&mut tar, path).map_err(|e| e.named(&title))?;
                    files.insert(name, spooled);
                }
                Kind::Symlink => {
                    let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                    let target = normal(&String::from_utf8_lossy(&member.link), dir);
                    links.insert(name, target);
                }
                Kind::Hardlink => {
                    links.insert(name, normal(&String::from_utf8_lossy(&member.link), ""));
                }
                _ => {}
            }
            if files.len() + links.len() > MEMBERS_MAX {
                return Err(ImageError::TooBig { what: title, limit: MEMBERS_MAX as u64, unit: "members" });
            }
        }
        // To the end: a stream that was cut off or damaged behind the last member is not to be trusted.
        io::copy(&mut tar.into_inner(), &mut io::sink()).map_err(bad)?;
        Ok(Self { title, stem, content: Content::Spool { files, links } })
    }

    fn bad(&self, why: impl Into<String>) -> ImageError {
        ImageError::BadArchive { archive: self.title.clone(), why: why.into() }
    }

    /// The file of that name in the archive, links followed.
    fn spooled(&self, name: &str) -> Option<&Spooled> {
        let Content::Spool { files, links } = &self.content else {
            return None;
        };
        let mut name = name;
        // Bounded: docker's links point straight at the file.
        for _ in 0..8 {
            match files.get(name) {
                Some(file) => return Some(file),
                None => name = links.get(name)?,
            }
        }
        None
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        let name = normal(name, "");
        match &self.content {
            Content::Directory(dir) => Some(dir.join(name)).filter(|path| path.is_file()),
            Content::Spool { .. } => self.spooled(&name).map(|file| file.path.clone()),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.path(name).is_some()
    }

    fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let path = self.path(name).ok_or_else(|| self.bad(format!("`{name}` is missing")))?;
        match files::read_limited(&path, limit) {
            Err(ImageError::TooBig { limit, unit, .. }) => {
                Err(ImageError::TooBig { what: format!("`{name}` of {}", self.title), limit, unit })
            }
            Ok(None) => Err(self.bad(format!("`{name}` is missing"))),
            Ok(Some(bytes)) => Ok(bytes),
            Err(other) => Err(other),
        }
    }

    /// A blob of a layout, verified.
    fn blob(&self, what: &str, digest: Digest, size: u64, limit: u64) -> Result<Vec<u8>> {
        let bytes = self.read(&blob_name(digest), limit)?;
        let what = format!("{what} {digest}");
        if bytes.len() as u64 != size {
            return Err(ImageError::WrongSize { what, wanted: size, got: bytes.len() as u64 });
        }
        match Digest::of(&bytes) {
            got if got == digest => Ok(bytes),
            got => Err(ImageError::Damaged { what, wanted: digest, got }),
        }
    }
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A name without `.` and `..`, relative to the archive; `..` cannot leave it.
fn normal(name: &str, dir: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let start = if name.starts_with('/') { "" } else { dir };
    for part in start.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Reading and writing fail for different reasons: a bad archive, or a full disk.
enum SpoolError {
    Read(io::Error),
    Write(ImageError),
}

impl SpoolError {
    fn named(self, title: &str) -> ImageError {
        match self {
            Self::Read(error) => ImageError::BadArchive { archive: title.to_owned(), why: error.to_string() },
            Self::Write(error) => error,
        }
    }
}

fn write_member<R: BufRead>(tar: &mut TarReader<R>, path: PathBuf) -> Result<Spooled, SpoolError> {
    let failed = |e: io::Error| SpoolError::Write(ImageError::io("write", &path, e));
    let mut file = File::create_new(&path).map_err(failed)?;
    let (mut hasher, mut size, mut buffer) = (Hasher::default(), 0, vec![0; 256 << 10]);
    loop {
        let count = tar.read_data(&mut buffer).map_err(SpoolError::Read)?;
        if count == 0 {
            return Ok(Spooled { path, size, digest: hasher.finish() });
        }
        hasher.update(&buffer[..count]);
        size += count as u64;
        io::Write::write_all(&mut file, &buffer[..count]).map_err(failed)?;
    }
}

/// The name of a file without what says that it is an archive, as the name of an image.
fn stem(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let mut stem = name.as_str();
    for end in [".gz", ".zst", ".tgz", ".tar", ".oci", ".docker"] {
        stem = stem.strip_suffix(end).unwrap_or(stem);
    }
    let clean: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':') { c } else { '-' }).collect();
    clean.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

/// What `org.opencontainers.image.ref.name` means. Tools write a full name, a name, or only a tag; a tag is taken for
/// one if it is `latest` or starts with a digit, or with `v` and a digit.
fn name_of(ref_name: Option<&str>, full_name: Option<&str>, stem: &str) -> Option<Reference> {
    if let Some(reference) = full_name.and_then(|name| name.parse().ok()) {
        return Some(reference);
    }
    let Some(name) = ref_name else {
        return stem.parse().ok();
    };
    let digit = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    let is_tag = !name.contains([':', '/', '@'])
        && (name == "latest" || digit(name) || name.strip_prefix('v').is_some_and(digit));
    if is_tag && let Ok(reference) = stem.parse::<Reference>() {
        return reference.with_tag(name).ok();
    }
    name.parse().ok()
}

struct Loader<'a> {
    store: &'a Store,
    lease: &'a Lease,
    archive: &'a Archive,
    platform: Platform,
    progress: &'a dyn Progress,
    batch: Batch,
}

/// An image of the archive, read and checked, but for its layers.
struct Plan {
    names: Vec<Reference>,
    bytes: Vec<u8>,
    media_type: String,
    config: Vec<u8>,
    platform: Platform,
    specs: Vec<LayerSpec>,
    /// The index that it was chosen from.
    source: Option<Digest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Loader<'_> {
    /// Those that are good, and the layers of all of them at once; the first failure is told when they are in the store.
    fn all(&self, plans: Vec<Result<Plan>>) -> Result<Vec<Image>> {
        let specs = plans.iter().flatten().flat_map(|plan| plan.specs.iter().map(|spec| (spec.digest, spec)));
        let mut specs: Vec<&LayerSpec> = specs.collect::<BTreeMap<_, _>>().into_values().collect();
        // Taken from the end: largest first, because it decides when all are done.
        specs.sort_by_key(|spec| spec.size);
        let decoders = window::keep();
        let mut failed = self.layers(specs);
        drop(decoders);
        self.batch.commit()?;
        let mut images = Vec::new();
        for plan in plans {
            let plan = plan?;
            if let Some(error) = plan.specs.iter().find_map(|spec| failed.remove(&spec.digest)) {
                return Err(error);
            }
            images.push(self.commit(plan)?);
        }
        Ok(images)
    }

    /// The errors of those that failed.
    fn layers(&self, specs: Vec<&LayerSpec>) -> BTreeMap<Digest, ImageError> {
        let threads = LAYERS_AT_ONCE.min(specs.len());
        let (waiting, failed) = (Mutex::new(specs), Mutex::new(BTreeMap::new()));
        let locked = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(spec) = locked() {
                        if let Err(error) = self.layer(spec) {
                            failed.lock().unwrap_or_else(PoisonError::into_inner).insert(spec.digest, error);
                        }
                    }
                });
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit(&self, plan: Plan) -> Result<Image> {
        self.store.write_blob(self.lease, &plan.config)?;
        let digest = self.store.write_blob(self.lease, &plan.bytes)?;
        let entry = Entry {
            media_type: plan.media_type,
            digest,
            size: plan.bytes.len() as u64,
            annotations: BTreeMap::new(),
            rest: serde_json::Map::from_iter([("platform".to_owned(), serde_json::json!(plan.platform))]),
        };
        let image = self.store.commit(self.lease, &entry, &plan.names, plan.source)?;
        self.progress.event(Event::Done { digest });
        Ok(image)
    }

    fn oci(&self) -> Result<Vec<Result<Plan>>> {
        let what = format!("index.json of {}", self.archive.title);
        let index = Index::parse(&what, &self.archive.read("index.json", JSON_MAX)?)?;
        // Several entries of one name are one image for several platforms.
        let mut groups: Vec<(Option<Reference>, Vec<Descriptor>)> = Vec::new();
        for entry in &index.manifests {
            let name = self.entry_name(entry);
            let descriptor = descriptor(entry);
            match groups.iter_mut().find(|(other, _)| *other == name) {
                Some((_, group)) => group.push(descriptor),
                None => groups.push((name, vec![descriptor])),
            }
        }
        if groups.is_empty() {
            return Err(self.archive.bad("its index.json lists no image"));
        }
        Ok(groups.iter().map(|(name, group)| self.oci_image(name.as_ref(), group)).collect())
    }

    fn entry_name(&self, entry: &Entry) -> Option<Reference> {
        let annotation = |key: &str| entry.annotations.get(key).map(String::as_str);
        name_of(annotation(REF_NAME), annotation("io.containerd.image.name"), &self.archive.stem)
    }

    fn oci_image(&self, name: Option<&Reference>, group: &[Descriptor]) -> Result<Plan> {
        let title = name.map_or_else(|| self.archive.title.clone(), Reference::familiar);
        let mut chosen = match group {
            [only] => only.clone(),
            several => manifest::choose(&title, several, &self.platform)?.clone(),
        };
        let source = chosen.digest;
        for _ in 0..NESTING_MAX {
            let bytes = self.archive.blob("manifest", chosen.digest, chosen.size, MANIFEST_MAX)?;
            let what = format!("manifest of {title}");
            match manifest::parse(&what, Some(&chosen.media_type), &bytes)? {
                Document::Index(parts) => chosen = manifest::choose(&title, &parts, &self.platform)?.clone(),
                Document::Manifest(manifest) => {
                    let config =
                        self.archive.blob("configuration", manifest.config.digest, manifest.config.size, CONFIG_MAX)?;
                    let source = Some(source).filter(|digest| *digest != chosen.digest);
                    return self.image(&title, name.cloned().into_iter().collect(), bytes, &manifest, config, source);
                }
            }
        }
        Err(self.archive.bad("its indexes are nested too deep"))
    }

    fn docker(&self) -> Result<Vec<Result<Plan>>> {
        let what = format!("manifest.json of {}", self.archive.title);
        let bytes = self.archive.read("manifest.json", JSON_MAX)?;
        let images: Vec<DockerImage> =
            serde_json::from_slice(&bytes).map_err(|e| ImageError::BadImage { what, why: e.to_string() })?;
        if images.is_empty() {
            return Err(self.archive.bad("its manifest.json lists no image"));
        }
        Ok(images.iter().map(|image| self.docker_image(image)).collect())
    }

    fn docker_image(&self, image: &DockerImage) -> Result<Plan> {
        let tags = image.repo_tags.clone().unwrap_or_default();
        let mut names = tags.iter().map(|tag| tag.parse()).collect::<Result<Vec<Reference>>>()?;
        if names.is_empty() {
            names.extend(name_of(None, None, &self.archive.stem));
        }
        let title = names.first().map_or_else(|| self.archive.title.clone(), Reference::familiar);
        let config = self.archive.read(&image.config, CONFIG_MAX)?;
        let layers = image.layers.iter().map(|name| self.docker_layer(name)).collect::<Result<Vec<_>>>()?;
        let plain = |media_type: &str, digest, size| Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(OCI_MANIFEST.to_owned()),
            config: plain(OCI_CONFIG, Digest::of(&config), config.len() as u64),
            layers: layers.iter().map(|(c, digest, size)| plain(c.media_type(), *digest, *size)).collect(),
        };
        let bytes = serde_json::to_vec(&manifest).map_err(|e| self.archive.bad(e.to_string()))?;
        self.image(&title, names, bytes, &manifest, config, None)
    }

    /// Such an archive does not give the digests of its layers as packed, so they are computed.
    fn docker_layer(&self, name: &str) -> Result<(Compression, Digest, u64)> {
        let path = self.archive.path(name).ok_or_else(|| self.archive.bad(format!("`{name}` is missing")))?;
        let mut file = File::open(&path).map_err(at("open", &path))?;
        let mut start = [0; 4];
        let length = file.read(&mut start).map_err(at("read", &path))?;
        let compression = Compression::sniff(&start[..length]);
        if let Some(spooled) = self.archive.spooled(&normal(name, "")) {
            return Ok((compression, spooled.digest, spooled.size));
        }
        let file = File::open(&path).map_err(at("open", &path))?;
        let size = file.metadata().map_err(at("read", &path))?.len();
        let digest = crate::digest::HashReader::new(file, u64::MAX).finish().map_err(at("read", &path))?;
        Ok((compression, digest, size))
    }

    fn image(
        &self,
        title: &str,
        names: Vec<Reference>,
        bytes: Vec<u8>,
        manifest: &Manifest,
        config: Vec<u8>,
        source: Option<Digest>,
    ) -> Result<Plan> {
        let file = ConfigFile::parse(title, &config)?;
        file.check_platform(title, &self.platform)?;
        let specs = manifest.layer_specs(&format!("manifest of {title}"), &file)?;
        let parts = specs.iter().flat_map(|spec| [spec.digest, spec.diff_id]);
        self.store.protect(self.lease, parts.chain([Digest::of(&bytes), manifest.config.digest]))?;
        let media_type = manifest.media_type.clone().unwrap_or_else(|| OCI_MANIFEST.to_owned());
        Ok(Plan { names, bytes, media_type, config, platform: file.platform(), specs, source })
    }

    fn layer(&self, spec: &LayerSpec) -> Result<()> {
        self.progress.event(Event::LayerStart { digest: spec.digest, total: spec.size });
        let reused = match self.lock_part(spec)? {
            None => true,
            Some(mut part) => match self.ingest(spec, &mut part) {
                Ok(verified) => {
                    self.batch.add(verified, Some(part));
                    false
                }
                Err(error) => {
                    // The source is at hand: there is nothing to go on with.
                    part.remove()?;
                    return Err(error);
                }
            },
        };
        if self.batch.left().is_some_and(|left| left.is_zero()) {
            self.batch.commit()?;
        }
        self.progress.event(Event::LayerDone { digest: spec.digest, reused });
        Ok(())
    }

    /// `None` when the layer is there. Nothing that is complete is held back while another one is waited for.
    fn lock_part(&self, spec: &LayerSpec) -> Result<Option<Part>> {
        loop {
            if self.store.has_layer(spec.diff_id) && self.store.has_blob(spec.digest, spec.size) {
                return Ok(None);
            }
            if let Some(part) = Part::try_lock(self.store, spec.digest)? {
                return Ok(Some(part));
            }
            self.batch.commit()?;
            std::thread::sleep(LOOK);
        }
    }

    fn ingest(&self, spec: &LayerSpec, part: &mut Part) -> Result<Verified> {
        let name = blob_name(spec.digest);
        let spooled = match &self.archive.content {
            // A docker archive has other names, but the same bytes.
            Content::Spool { files, .. } => {
                files.get(&name).or_else(|| files.values().find(|file| file.digest == spec.digest))
            }
            Content::Directory(_) => None,
        };
        if let Some(file) = spooled {
            let mut source = Counted::open(&file.path, spec, self.progress)?;
            let origin = Origin::Spooled(file.path.clone());
            return layer::prepare(self.store, self.lease, spec, origin, Source::Read(&mut source));
        }
        let path = match self.archive.path(&name) {
            Some(path) => path,
            None => self.find_by_digest(spec)?,
        };
        part.clear()?;
        let mut source = Counted::open(&path, spec, self.progress)?;
        layer::prepare(self.store, self.lease, spec, Origin::Fetch(part), Source::Read(&mut source))
    }

    /// A layer of a docker archive that was unpacked into a directory.
    fn find_by_digest(&self, spec: &LayerSpec) -> Result<PathBuf> {
        let missing = || self.archive.bad(format!("layer {} is missing", spec.digest));
        let Content::Directory(_) = &self.archive.content else {
            return Err(missing());
        };
        let bytes = self.archive.read("manifest.json", JSON_MAX).map_err(|_| missing())?;
        let images: Vec<DockerImage> = serde_json::from_slice(&bytes).map_err(|_| missing())?;
        for name in images.iter().flat_map(|image| &image.layers) {
            if self.docker_layer(name)?.1 == spec.digest {
                return self.archive.path(name).ok_or_else(missing);
            }
        }
        Err(missing())
    }
}

fn descriptor(entry: &Entry) -> Descriptor {
    Descriptor {
        media_type: entry.media_type.clone(),
        digest: entry.digest,
        size: entry.size,
        urls: Vec::new(),
        annotations: BTreeMap::new(),
        platform: entry.rest.get("platform").and_then(|p| serde_json::from_value(p.clone()).ok()),
    }
}

/// A file that reports how much of it has been read.
struct Counted<'a> {
    file: File,
    spec: &'a LayerSpec,
    done: u64,
    progress: &'a dyn Progress,
}

impl<'a> Counted<'a> {
    fn open(path: &Path, spec: &'a LayerSpec, progress: &'a dyn Progress) -> Result<Self> {
        let meta = fs::metadata(path).map_err(at("open", path))?;
        if meta.len() != spec.size {
            return Err(ImageError::WrongSize {
                what: format!("layer {}", spec.digest),
                wanted: spec.size,
                got: meta.len(),
            });
        }
        Ok(Self { file: File::open(path).map_err(at("open", path))?, spec, done: 0, progress })
    }
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.done += count as u64;
        let (digest, total) = (self.spec.digest, self.spec.size);
        self.progress.event(Event::LayerProgress { digest, done: self.done, total });
        if self.done == total && count > 0 {
            self.progress.event(Event::Unpacking { digest });
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_archive_then_from_the_file() {
        for (ref_name, full_name, file, expected) in [
            (Some("busybox:latest"), None, "x.tar", "busybox:latest"),
            (Some("busybox"), None, "x.tar", "busybox:latest"),
            (Some("latest"), None, "web.tar.gz", "web:latest"),
            (Some("1.36"), None, "dir/busybox", "busybox:1.36"),
            (Some("v2"), None, "api.oci.tar", "api:v2"),
            (Some("latest"), Some("docker.io/library/redis:7"), "x.tar", "redis:7"),
            (Some("reg.example.com/a/b:1"), None, "x", "reg.example.com/a/b:1"),
            (None, None, "shop-api.tgz", "shop-api:latest"),
            (None, None, "My Image.tar", "my-image:latest"),
            (Some("not a name"), None, "x", ""),
            (None, None, "", ""),
        ] {
            let name = name_of(ref_name, full_name, &stem(Path::new(file)));
            assert_eq!(name.map(|n| n.familiar()).unwrap_or_default(), expected, "{ref_name:?} {file}");
        }
    }

    #[test]
    fn names_inside_an_archive_cannot_leave_it() {
        for (name, dir, expected) in [
            ("./a//b", "", "a/b"),
            ("../x/layer.tar", "y", "x/layer.tar"),
            ("../../../etc/passwd", "y", "etc/passwd"),
            ("/etc/passwd", "y", "etc/passwd"),
        ] {
            assert_eq!(normal(name, dir), expected);
        }
    }
}
