//! Images made on this host: from a root file system, or from what a container has changed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::digest::{Digest, Hasher};
use crate::error::{ImageError, Result, at};
use crate::files;
use crate::image::Image;
use crate::index::Entry;
use crate::layer::{self, Origin};
use crate::lease::Lease;
use crate::manifest::{CONFIG_MAX, Compression, ImageConfig, LayerSpec, MANIFEST_MAX, OCI_CONFIG, OCI_MANIFEST};
use crate::pack::{self, Packed, Packing};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::snapshot::Written;
use crate::store::Store;

/// Level 3 is zstd's own default; 6 is gzip's.
const ZSTD_LEVEL: i32 = 3;
const GZIP_LEVEL: u32 = 6;

/// What a new image is to say of itself.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// Its name.
    pub name: Option<Reference>,
    /// How its layer is packed.
    pub packed: Packed,
    /// When it was made, in seconds since 1970, and the latest time that a file in it may have; files keep their times if
    /// not given, and the image says nothing.
    pub time: Option<u64>,
    /// Who made it.
    pub author: Option<String>,
    /// A remark for its history.
    pub comment: Option<String>,
    /// How its containers run. `None`: as those of the image before, or nothing at all.
    pub config: Option<ImageConfig>,
}

/// How a path of a container differs from its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// New.
    Added,
    /// Other content or attributes.
    Changed,
    /// Gone.
    Deleted,
}

impl Store {
    /// Make an image of one layer from a directory.
    ///
    /// With `time` given, the same files give the same digest, whenever and wherever it is made.
    ///
    /// # Errors
    /// The directory cannot be read; those of a load.
    pub fn from_rootfs(&self, dir: &Path, options: &BuildOptions) -> Result<Image> {
        if !dir.metadata().map_err(at("read", dir))?.is_dir() {
            let why = "give a directory that is to become the root file system".to_owned();
            return Err(ImageError::BadOption { field: "root file system", value: dir.display().to_string(), why });
        }
        let platform = Platform::host();
        let mut config = json!({ "architecture": platform.architecture, "os": platform.os, "config": {} });
        if let Some(variant) = platform.variant {
            config["variant"] = variant.into();
        }
        config["rootfs"] = json!({ "type": "layers", "diff_ids": [] });
        let packing = Packing { overlay: false, time_max: options.time, ids: None };
        self.build(Base { config, layers: Vec::new() }, dir, packing, "image from-rootfs", options)
    }

    /// Make an image from the image of a container and one more layer: what the container has changed.
    ///
    /// What it holds in volumes is no part of it. A running container goes on; what it writes meanwhile may be half in.
    ///
    /// # Errors
    /// There is no such container; those of a load.
    pub fn commit_container(&self, id: &str, options: &BuildOptions) -> Result<Image> {
        let Written { image, dir: upper, ids } = self.written(id)?;
        let (manifest, _, _) = self.manifest(image)?;
        let config = self.read_blob("configuration", manifest.config.digest, CONFIG_MAX)?;
        let config = serde_json::from_slice(&config)
            .map_err(|e| ImageError::BadImage { what: "configuration".into(), why: e.to_string() })?;
        let bytes = self.read_blob("manifest", image, MANIFEST_MAX)?;
        let manifest: Value = serde_json::from_slice(&bytes)
            .map_err(|e| ImageError::BadImage { what: "manifest".into(), why: e.to_string() })?;
        let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
        let packing = Packing { overlay: true, time_max: options.time, ids: ids.as_ref() };
        self.build(Base { config, layers }, &upper, packing, "commit", options)
    }

    fn build(&self, base: Base, dir: &Path, packing: Packing<'_>, by: &str, options: &BuildOptions) -> Result<Image> {
        let lease = self.lease()?;
        let (spec, spooled) = self.pack(&lease, dir, packing, options.packed)?;
        let Base { mut config, mut layers } = base;
        config["rootfs"]["diff_ids"]
            .as_array_mut()
            .ok_or_else(|| ImageError::BadImage { what: "configuration".into(), why: "it has no diff_ids".into() })?
            .push(json!(spec.diff_id));
        describe(&mut config, by, options);
        layers.push(json!({ "mediaType": spec.compression.media_type(), "digest": spec.digest, "size": spec.size }));
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": { "mediaType": OCI_CONFIG, "digest": Digest::of(&config), "size": config.len() },
            "layers": layers,
        });
        let manifest = manifest.to_string().into_bytes();
        self.protect(&lease, [spec.digest, spec.diff_id, Digest::of(&config), Digest::of(&manifest)])?;
        self.protect_layers(&lease, &layers)?;
        let mut source = File::open(&spooled).map_err(at("open", &spooled))?;
        layer::ingest(self, &lease, &spec, Origin::Spooled(spooled), &mut source)?;
        self.write_blob(&lease, &config)?;
        let digest = self.write_blob(&lease, &manifest)?;
        let entry = Entry {
            media_type: OCI_MANIFEST.to_owned(),
            digest,
            size: manifest.len() as u64,
            annotations: BTreeMap::new(),
            rest: Map::from_iter([("platform".to_owned(), json!(Platform::host()))]),
        };
        self.commit(&lease, &entry, options.name.as_slice(), None)
    }

    /// The layers below must not be collected while the new image is not there yet.
    fn protect_layers(&self, lease: &Lease, layers: &[Value]) -> Result<()> {
        let digests = layers.iter().filter_map(|layer| layer["digest"].as_str()?.parse().ok());
        self.protect(lease, digests.collect::<Vec<Digest>>())
    }

    /// Pack a tree into a file of the lease.
    fn pack(&self, lease: &Lease, dir: &Path, packing: Packing<'_>, packed: Packed) -> Result<(LayerSpec, PathBuf)> {
        let path = lease.path(&format!("{}.packed", files::unique()));
        let file = File::create_new(&path).map_err(at("write", &path))?;
        let mut spool =
            Hashing { inner: io::BufWriter::with_capacity(256 << 10, file), hasher: Hasher::default(), size: 0 };
        let (diff_id, compression) = match packed {
            Packed::Zstd => {
                let encoder = zstd::Encoder::new(&mut spool, ZSTD_LEVEL).map_err(at("write", &path))?;
                let mut tar = Hashing { inner: encoder, hasher: Hasher::default(), size: 0 };
                pack::pack(dir, packing, &mut tar)?;
                tar.inner.finish().map_err(at("write", &path))?;
                (tar.hasher.finish(), Compression::Zstd)
            }
            Packed::Gzip => {
                let encoder = flate2::write::GzEncoder::new(&mut spool, flate2::Compression::new(GZIP_LEVEL));
                let mut tar = Hashing { inner: encoder, hasher: Hasher::default(), size: 0 };
                pack::pack(dir, packing, &mut tar)?;
                tar.inner.finish().map_err(at("write", &path))?;
                (tar.hasher.finish(), Compression::Gzip)
            }
        };
        spool.inner.flush().map_err(at("write", &path)).map_err(|e| e.in_store(self.root()))?;
        Ok((LayerSpec { digest: spool.hasher.finish(), size: spool.size, diff_id, compression }, path))
    }

    /// How the root file system of a container differs from its image, by path.
    ///
    /// # Errors
    /// There is no such container; those of the file system.
    pub fn changes(&self, id: &str) -> Result<Vec<(PathBuf, Change)>> {
        let Written { image, dir: upper, .. } = self.written(id)?;
        let (_, _, layers) = self.manifest(image)?;
        let lowers: Vec<PathBuf> = layers.iter().rev().map(|spec| self.layer(spec.diff_id).join("fs")).collect();
        let mut changes = Vec::new();
        collect_changes(&upper, &lowers, Path::new(""), &mut changes)?;
        changes.sort();
        Ok(changes)
    }
}

struct Base {
    config: Value,
    layers: Vec<Value>,
}

/// What the configuration says of the new image.
fn describe(config: &mut Value, by: &str, options: &BuildOptions) {
    let created = options.time.and_then(|time| jiff::Timestamp::from_second(i64::try_from(time).ok()?).ok());
    let created = created.map(|time| time.to_string());
    let mut step = json!({ "created_by": format!("gantry {by}") });
    if let Some(created) = &created {
        step["created"] = created.as_str().into();
        config["created"] = created.as_str().into();
    }
    if let Some(comment) = &options.comment {
        step["comment"] = comment.as_str().into();
    }
    if let Some(author) = &options.author {
        config["author"] = author.as_str().into();
        step["author"] = author.as_str().into();
    }
    match config["history"].as_array_mut() {
        Some(history) => history.push(step),
        None => config["history"] = json!([step]),
    }
    if let Some(run) = &options.config {
        config["config"] = json!(run);
    }
}

struct Hashing<W> {
    inner: W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn collect_changes(upper: &Path, lowers: &[PathBuf], path: &Path, changes: &mut Vec<(PathBuf, Change)>) -> Result<()> {
    let full = upper.join(path);
    for entry in fs::read_dir(&full).map_err(at("list", &full))? {
        let entry = entry.map_err(at("list", &full))?;
        let meta = entry.metadata().map_err(at("read", &entry.path()))?;
        let path = path.join(entry.file_name());
        let change = match (is_whiteout(&meta), exists_below(lowers, &path)?) {
            (true, true) => Some(Change::Deleted),
            (true, false) => None,
            (false, true) => Some(Change::Changed),
            (false, false) => Some(Change::Added),
        };
        changes.extend(change.map(|change| (path.clone(), change)));
        if meta.is_dir() {
            collect_changes(upper, lowers, &path, changes)?;
        }
    }
    Ok(())
}

fn is_whiteout(meta: &fs::Metadata) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == 0
}

/// Whether the layers below (topmost first) together have something at `path`.
fn exists_below(lowers: &[PathBuf], path: &Path) -> Result<bool> {
    for layer in lowers {
        let mut prefix = PathBuf::new();
        let mut hidden = false;
        for name in path.components() {
            prefix.push(name);
            let full = layer.join(&prefix);
            match full.symlink_metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(ImageError::io("read", &full, error)),
                Ok(meta) if is_whiteout(&meta) => return Ok(false),
                Ok(_) if prefix == path => return Ok(true),
                Ok(meta) if !meta.is_dir() => return Ok(false),
                Ok(_) => hidden |= pack::is_opaque(&full),
            }
        }
        if hidden {
            return Ok(false);
        }
    }
    Ok(false)
}
