//! Builds layers, layouts and archives, and a place to work in.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use gantry_images::{Digest, Event, Progress};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tar::EntryType;

/// A `tmpfs` of `size` in a mount namespace of this thread and the threads and processes that it starts.
pub(crate) fn workplace(size: &str) -> PathBuf {
    unshare(CloneFlags::CLONE_NEWNS).expect("needs root");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), "/mnt", Some("tmpfs"), MsFlags::empty(), Some(format!("size={size}").as_str())).unwrap();
    PathBuf::from("/mnt")
}

/// The time of everything that is packed here.
pub(crate) const TIME: u64 = 1_700_000_000;

/// A tar archive in the making. Names are written as they are, also those that a sane writer refuses.
pub(crate) struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn entry(
        mut self,
        kind: EntryType,
        path: &str,
        data: &[u8],
        change: impl FnOnce(&mut tar::Header),
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mtime(TIME);
        header.set_mode(0o644);
        if path.len() < 100 {
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        } else {
            let mut long = tar::Header::new_gnu();
            long.set_entry_type(EntryType::GNULongName);
            long.set_size(path.len() as u64 + 1);
            long.set_cksum();
            self.0.append(&long, format!("{path}\0").as_bytes()).unwrap();
        }
        change(&mut header);
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub(crate) fn file(self, path: &str, data: &str) -> Self {
        self.entry(EntryType::Regular, path, data.as_bytes(), |_| {})
    }

    pub(crate) fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, path, b"", |h| h.set_mode(mode))
    }

    pub(crate) fn owned(self, kind: EntryType, path: &str, mode: u32, uid: u64, gid: u64) -> Self {
        self.entry(kind, path, b"", |h| {
            h.set_mode(mode);
            h.set_uid(uid);
            h.set_gid(gid);
        })
    }

    pub(crate) fn link(self, kind: EntryType, path: &str, target: &str) -> Self {
        self.entry(kind, path, b"", |h| h.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes()))
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, path, target)
    }

    pub(crate) fn hardlink(self, path: &str, target: &str) -> Self {
        self.link(EntryType::Link, path, target)
    }

    pub(crate) fn device(self, kind: EntryType, path: &str, major: u32, minor: u32) -> Self {
        self.entry(kind, path, b"", |h| {
            h.set_device_major(major).unwrap();
            h.set_device_minor(minor).unwrap();
        })
    }

    /// For the next entry.
    pub(crate) fn pax(mut self, key: &str, value: &[u8]) -> Self {
        self.0.append_pax_extensions([(key, value)]).unwrap();
        self
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer as packed, with what its manifest and configuration say of it.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) blob: Vec<u8>,
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) diff_id: Digest,
}

impl Layer {
    pub(crate) fn plain(tar: Tar) -> Self {
        let blob = tar.bytes();
        Self::raw(Digest::of(&blob), blob, "tar")
    }

    pub(crate) fn gzip(tar: Tar) -> Self {
        let bytes = tar.bytes();
        Self::raw(Digest::of(&bytes), gzip(&bytes), "tar+gzip")
    }

    /// Two frames, as some writers make them.
    pub(crate) fn zstd(tar: Tar) -> Self {
        let bytes = tar.bytes();
        let (a, b) = bytes.split_at(bytes.len() / 2);
        let frames = [a, b].map(|part| zstd::encode_all(part, 3).unwrap()).concat();
        Self::raw(Digest::of(&bytes), frames, "tar+zstd")
    }

    pub(crate) fn raw(diff_id: Digest, blob: Vec<u8>, kind: &str) -> Self {
        let media_type = format!("application/vnd.oci.image.layer.v1.{kind}");
        Self { digest: Digest::of(&blob), size: blob.len() as u64, diff_id, media_type, blob }
    }
}

/// A layer of incompressible noise: `files` of `size` bytes.
pub(crate) fn noise(seed: u64, files: usize, size: usize) -> Layer {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut tar = Tar::new().dir("noise", 0o755);
    for at in 0..files {
        let data: Vec<u8> = (0..size)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect();
        tar = tar.entry(EntryType::Regular, &format!("noise/{seed}-{at}"), &data, |_| {});
    }
    Layer::gzip(tar)
}

/// One image with all its blobs.
#[derive(Clone)]
pub(crate) struct Built {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<Layer>,
}

pub(crate) fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

impl Built {
    pub(crate) fn new(layers: &[Layer]) -> Self {
        Self::with(layers, json!({ "Cmd": ["/bin/true"], "Env": ["A=1"] }), architecture())
    }

    pub(crate) fn with(layers: &[Layer], config: Value, architecture: &str) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let config = json!({
            "created": "2023-11-14T22:13:20Z", "architecture": architecture, "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        Self::assemble(layers, config.to_string().into_bytes())
    }

    pub(crate) fn assemble(layers: &[Layer], config: Vec<u8>) -> Self {
        let descriptor = |l: &Layer| json!({ "mediaType": l.media_type, "digest": l.digest, "size": l.size });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config), "size": config.len() },
            "layers": layers.iter().map(descriptor).collect::<Vec<_>>(),
        });
        Self { manifest: manifest.to_string().into_bytes(), config, layers: layers.to_vec() }
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    pub(crate) fn id(&self) -> Digest {
        Digest::of(&self.config)
    }

    pub(crate) fn descriptor(&self) -> Value {
        json!({ "mediaType": MANIFEST, "digest": self.digest(), "size": self.manifest.len() })
    }

    /// All content by digest; layers under the digest that the manifest says, be it right or not.
    pub(crate) fn blobs(&self) -> BTreeMap<Digest, Vec<u8>> {
        let own = [(self.digest(), self.manifest.clone()), (self.id(), self.config.clone())];
        own.into_iter().chain(self.layers.iter().map(|layer| (layer.digest, layer.blob.clone()))).collect()
    }

    /// An OCI layout in `dir`.
    pub(crate) fn write_layout(&self, dir: &Path, name: &str) {
        let mut entry = self.descriptor();
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        write_layout(dir, &self.blobs(), &[entry]);
    }

    /// What `docker save` makes.
    pub(crate) fn docker_archive(&self, tags: &[&str]) -> Vec<u8> {
        let config = format!("{}.json", self.id().hex());
        let mut layers: Vec<String> = Vec::new();
        let mut tar = Tar::new().entry(EntryType::Regular, &config, &self.config, |_| {});
        for (at, layer) in self.layers.iter().enumerate() {
            let name = format!("{at}/layer.tar");
            tar = tar.entry(EntryType::Regular, &name, &layer.blob, |_| {});
            layers.push(name);
        }
        let manifest = json!([{ "Config": config, "RepoTags": tags, "Layers": layers }]).to_string();
        tar.entry(EntryType::Regular, "manifest.json", manifest.as_bytes(), |_| {}).bytes()
    }
}

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(crate) fn write_layout(dir: &Path, blobs: &BTreeMap<Digest, Vec<u8>>, entries: &[Value]) {
    let folder = dir.join("blobs/sha256");
    fs::create_dir_all(&folder).unwrap();
    for (digest, bytes) in blobs {
        fs::write(folder.join(digest.hex()), bytes).unwrap();
    }
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
}

/// A directory as one archive.
pub(crate) fn pack(dir: &Path) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all(".", dir).unwrap();
    builder.into_inner().unwrap()
}

/// Every file below `root`, one line each: `path kind mode owner …`.
pub(crate) fn tree(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    visit(root, Path::new(""), &mut lines);
    lines.sort();
    lines
}

fn visit(root: &Path, path: &Path, lines: &mut Vec<String>) {
    let mut names: Vec<_> = fs::read_dir(root.join(path)).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let path = path.join(name);
        let full = root.join(&path);
        let meta = full.symlink_metadata().unwrap();
        let kind = meta.file_type();
        let what = match &kind {
            k if k.is_dir() => "dir".to_owned(),
            k if k.is_symlink() => format!("-> {}", fs::read_link(&full).unwrap().display()),
            k if k.is_fifo() => "fifo".to_owned(),
            k if k.is_char_device() => {
                format!("char {}:{}", nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()))
            }
            k if k.is_block_device() => {
                format!("block {}:{}", nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()))
            }
            _ => format!("file {:?}", String::from_utf8_lossy(&fs::read(&full).unwrap())),
        };
        let shown = String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned();
        lines.push(format!("{shown} {:o} {}:{} {what}", meta.mode() & 0o7777, meta.uid(), meta.gid()));
        if kind.is_dir() {
            visit(root, &path, lines);
        }
    }
}

/// Keeps all events.
#[derive(Default)]
pub(crate) struct Events(Mutex<Vec<Event>>);

impl Progress for Events {
    fn event(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl Events {
    pub(crate) fn reused(&self) -> Vec<bool> {
        let one = |event: &Event| match event {
            Event::LayerDone { reused, .. } => Some(*reused),
            _ => None,
        };
        self.0.lock().unwrap().iter().filter_map(one).collect()
    }

    /// Of each layer, the last count of bytes that was told.
    pub(crate) fn last_progress(&self) -> BTreeMap<Digest, (u64, u64)> {
        let mut last = BTreeMap::new();
        for event in self.0.lock().unwrap().iter() {
            if let Event::LayerProgress { digest, done, total } = event {
                last.insert(*digest, (*done, *total));
            }
        }
        last
    }

    pub(crate) fn done(&self) -> bool {
        matches!(self.0.lock().unwrap().last(), Some(Event::Done { .. }))
    }
}

/// What a store must have when nothing is under way: no work, no trash.
pub(crate) fn assert_tidy(store: &Path) {
    for dir in ["ingest", "trash"] {
        let left: Vec<_> = fs::read_dir(store.join(dir)).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{dir} has {left:?}");
    }
}

pub(crate) fn count(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}
