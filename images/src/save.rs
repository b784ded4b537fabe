//! Writes images as one archive: an OCI layout that docker reads too (`manifest.json` beside `index.json`).
//!
//! Blobs are copied as they are, so digests stay. The same images give the same bytes.
//!
//! # Source
//! OCI image-spec 1.1 `image-layout.md`; docker image spec 1.3, "Combined Image JSON + Filesystem Changeset Format".

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::digest::{Digest, HashReader};
use crate::error::{ImageError, Result};
use crate::image::Image;
use crate::index::REF_NAME;
use crate::manifest::OCI_INDEX;
use crate::reference::Reference;
use crate::store::{LAYOUT, Store};

impl Store {
    /// Write `names` (names, ids or digests) as one archive. An image given by name has that name in it, one given by
    /// digest or id has all its names.
    ///
    /// # Errors
    /// `NotFound`; `Damaged` if a blob is no longer what it was; a failure to write as `Io` on `title`.
    ///
    /// - `title`: what `out` is, for messages.
    pub fn save(&self, names: &[&str], out: &mut dyn Write, title: &str) -> Result<()> {
        let lease = self.lease()?;
        let images = names.iter().map(|name| self.named(name)).collect::<Result<Vec<_>>>()?;
        self.protect(&lease, images.iter().flat_map(|(image, _)| image.parts()))?;
        let mut archive = Archive { tar: Builder::new(out), title, store: self };
        archive.bytes("oci-layout", LAYOUT)?;
        archive.json("index.json", &self.index_of(&images)?)?;
        archive.json("manifest.json", &docker_manifest(&images))?;
        archive.directory("blobs/")?;
        archive.directory("blobs/sha256/")?;
        let blobs: BTreeSet<Digest> = images
            .iter()
            .flat_map(|(image, _)| {
                image.layers.iter().map(|layer| layer.digest).chain([image.digest, image.id]).collect::<Vec<_>>()
            })
            .collect();
        blobs.into_iter().try_for_each(|digest| archive.blob(digest))?;
        archive.finish()
    }

    /// An image, and the names under which it was asked for.
    fn named(&self, name: &str) -> Result<(Image, Vec<Reference>)> {
        let image = self.image(name)?.ok_or_else(|| ImageError::NotFound(name.to_owned()))?;
        let asked: Option<Reference> = name.parse().ok().filter(|name| image.names.contains(name));
        let names = asked.map_or_else(|| image.names.clone(), |name| vec![name]);
        Ok((image, names))
    }

    fn index_of(&self, images: &[(Image, Vec<Reference>)]) -> Result<Value> {
        let mut entries = Vec::new();
        for (image, names) in images {
            let (media_type, size) = self.manifest_type(image.digest)?;
            let entry = |annotations: BTreeMap<&str, String>| {
                json!({ "mediaType": media_type, "digest": image.digest, "size": size, "annotations": annotations,
                        "platform": image.platform() })
            };
            let named = |name: &Reference| {
                entry(BTreeMap::from([(REF_NAME, name.to_string()), ("io.containerd.image.name", name.to_string())]))
            };
            if names.is_empty() {
                entries.push(entry(BTreeMap::new()));
            }
            entries.extend(names.iter().map(named));
        }
        Ok(json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries }))
    }
}

fn path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn docker_manifest(images: &[(Image, Vec<Reference>)]) -> Value {
    let one = |(image, names): &(Image, Vec<Reference>)| {
        let tags: Vec<String> = names.iter().filter(|name| name.tag().is_some()).map(Reference::familiar).collect();
        let layers: Vec<String> = image.layers.iter().map(|layer| path(layer.digest)).collect();
        json!({ "Config": path(image.id), "RepoTags": tags, "Layers": layers })
    };
    images.iter().map(one).collect()
}

struct Archive<'a> {
    tar: Builder<&'a mut dyn Write>,
    title: &'a str,
    store: &'a Store,
}

impl Archive<'_> {
    fn failed(title: &str) -> impl FnOnce(io::Error) -> ImageError {
        move |error| ImageError::io("write", Path::new(title), error)
    }

    fn header(name: &str, kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o444 });
        header.set_size(size);
        header.set_mtime(0);
        // Our own short names always fit.
        let _ = header.set_path(name);
        header.set_cksum();
        header
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let header = Self::header(name, EntryType::Regular, bytes.len() as u64);
        self.tar.append(&header, bytes).map_err(Self::failed(self.title))
    }

    fn json(&mut self, name: &str, value: &Value) -> Result<()> {
        self.bytes(name, value.to_string().as_bytes())
    }

    fn directory(&mut self, name: &str) -> Result<()> {
        let header = Self::header(name, EntryType::Directory, 0);
        self.tar.append(&header, io::empty()).map_err(Self::failed(self.title))
    }

    fn blob(&mut self, digest: Digest) -> Result<()> {
        let file = self.store.blob(digest);
        let opened = File::open(&file).and_then(|blob| Ok((blob.metadata()?.len(), blob)));
        let (size, blob) = opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ImageError::NotFound(format!("blob {digest}")),
            _ => ImageError::io("open", &file, error),
        })?;
        let header = Self::header(&path(digest), EntryType::Regular, size);
        let mut hashed = HashReader::new(blob, size);
        self.tar.append(&header, hashed.by_ref()).map_err(Self::failed(self.title))?;
        let got = hashed.finish().map_err(|error| ImageError::io("read", &file, error))?;
        if got == digest {
            Ok(())
        } else {
            Err(ImageError::Damaged { what: format!("blob {digest}"), wanted: digest, got })
        }
    }

    fn finish(self) -> Result<()> {
        self.tar.into_inner().and_then(Write::flush).map_err(Self::failed(self.title))
    }
}
