//! The road of one layer: bytes from somewhere → verified blob and unpacked tree, both in the store.
//!
//! ```text
//! source ─ chunk ─► hash, count, keep in ingest/<hex>.part ─ chunk ─► inflate ─► hash ─► unpack to <lease>/*.tree/fs
//!  (this thread)                                             (a second thread)
//! then, if digest, size and diff-id are right: sync, rename the blob, rename the tree
//! ```
//!
//! Nothing is renamed before everything is verified and on disk, so what has a name in the store is whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::catalog;
use crate::digest::{Digest, HashReader, Hasher};
use crate::error::{ImageError, Result, at};
use crate::files;
use crate::lease::Lease;
use crate::manifest::{Compression, LayerSpec};
use crate::store::Store;
use crate::unpack::{self, LayerMeta, Limits, UnpackError};

/// Bytes handed on at once.
const CHUNK: usize = 256 << 10;

/// Chunks that may wait for the second thread: 2 MiB per layer.
const CHUNKS_WAITING: usize = 8;

/// A blob being fetched: `ingest/<hex>.part`, locked against other pulls, and kept when a fetch breaks off.
#[derive(Debug)]
pub(crate) struct Part {
    file: File,
    path: PathBuf,
}

impl Part {
    /// Waits while another pull or load, in this process or not, fetches the same blob.
    pub(crate) fn lock(store: &Store, digest: Digest) -> Result<Self> {
        let path = store.ingest().join(format!("{}.part", digest.hex()));
        loop {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path).map_err(at("open", &path))?;
            files::lock(&file, &path)?;
            let part = Self { file, path: path.clone() };
            // The one who had the lock may have renamed or removed the file: then it is not ours to write.
            if part.is_in_place()? {
                return Ok(part);
            }
        }
    }

    /// Whether the path still means the locked file. Only who holds the lock of a file changes that.
    fn is_in_place(&self) -> Result<bool> {
        let inode = self.file.metadata().map_err(at("read", &self.path))?.ino();
        Ok(self.path.symlink_metadata().is_ok_and(|meta| meta.ino() == inode))
    }

    /// Bytes that an earlier attempt left.
    pub(crate) fn length(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(at("read", &self.path))?.len())
    }

    /// Forget what is there.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(at("write", &self.path))
    }

    /// Not needed any more.
    pub(crate) fn remove(&self) -> Result<()> {
        if self.is_in_place()? { files::remove_all(&self.path) } else { Ok(()) }
    }
}

/// Where the bytes of a layer come from.
pub(crate) enum Origin<'a> {
    /// Elsewhere: they are kept in the part, after those that the part has already.
    Fetch(&'a mut Part),
    /// A verified or unverified file of our own, that becomes the blob by a rename.
    Spooled(PathBuf),
    /// The blob in the store: its tree is missing.
    Stored,
}

/// Verify a layer, unpack it, and put both into the store.
///
/// # Errors
/// `Damaged`, `WrongSize`, `Truncated`, `BadArchive`, `TooBig`, `DiskFull`. Of the tree nothing is left; a blob that is
/// right is kept even if there was no room for its tree.
pub(crate) fn ingest(
    store: &Store,
    lease: &Lease,
    spec: &LayerSpec,
    mut origin: Origin<'_>,
    source: &mut dyn Read,
) -> Result<()> {
    let (tree, scratch) = place(lease)?;
    let (fed, unpacked) = run(spec, &tree, &scratch, store.limits(), &mut origin, source);
    let outcome = settle(store, spec, &tree, origin, fed, unpacked);
    files::remove_all(&scratch)?;
    if outcome.is_err() {
        files::remove_all(&tree)?;
    }
    outcome.map_err(|error| error.in_store(store.root()))
}

/// Verify a layer that the store has, and unpack it once more; returns the directory with its `fs` and its list, which
/// goes with the lease.
///
/// # Errors
/// As `ingest`.
pub(crate) fn unpack_beside(store: &Store, lease: &Lease, spec: &LayerSpec, blob: &mut dyn Read) -> Result<PathBuf> {
    let (tree, scratch) = place(lease)?;
    let (fed, unpacked) = run(spec, &tree, &scratch, store.limits(), &mut Origin::Stored, blob);
    files::remove_all(&scratch)?;
    match fed.and(unpacked) {
        Ok(_) => Ok(tree),
        Err(error) => {
            files::remove_all(&tree)?;
            Err(error.in_store(store.root()))
        }
    }
}

/// Directories for a tree and for what is replaced while it is made.
fn place(lease: &Lease) -> Result<(PathBuf, PathBuf)> {
    // Two blobs of one image may unpack to the same tree, at the same time.
    let name = files::unique();
    let tree = lease.path(&format!("{name}.tree"));
    let scratch = lease.path(&format!("{name}.replaced"));
    for dir in [&tree, &tree.join("fs"), &scratch] {
        files::ensure_dir(dir, if dir.ends_with("fs") { 0o755 } else { 0o700 })?;
    }
    Ok((tree, scratch))
}

/// Both threads; returns when both have ended.
fn run(
    spec: &LayerSpec,
    tree: &Path,
    scratch: &Path,
    limits: Limits,
    origin: &mut Origin<'_>,
    source: &mut dyn Read,
) -> (Result<()>, Result<LayerMeta>) {
    let no_room = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(CHUNKS_WAITING);
        let second = scope.spawn(|| {
            let done = unpack_stream(receiver, spec, tree, scratch, limits);
            let full = matches!(&done, Err(ImageError::DiskFull { .. }));
            no_room.store(full, Ordering::Release);
            done
        });
        let part = if let Origin::Fetch(part) = origin { Some(&mut **part) } else { None };
        let fed = feed(spec, part, source, sender, &no_room);
        let unpacked = second.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (fed, unpacked)
    })
}

/// Decide what the two results mean, and commit what is good.
fn settle(
    store: &Store,
    spec: &LayerSpec,
    tree: &Path,
    origin: Origin<'_>,
    fed: Result<()>,
    unpacked: Result<LayerMeta>,
) -> Result<()> {
    let part = if let Origin::Fetch(part) = &origin { Some(&**part) } else { None };
    if let Err(error) = fed {
        // What broke off can go on later; what is wrong or has no room cannot.
        let resumable = matches!(error, ImageError::Truncated { .. } | ImageError::Stopped);
        if !resumable && let Some(part) = part {
            part.remove()?;
        }
        return match unpacked {
            Err(full @ ImageError::DiskFull { .. }) => Err(full),
            _ => Err(error),
        };
    }
    match unpacked {
        Ok(meta) => commit(store, spec, Some((tree, &meta)), origin),
        Err(full @ ImageError::DiskFull { .. }) => {
            files::remove_all(tree)?;
            commit(store, spec, None, origin)?;
            Err(full)
        }
        Err(error) => {
            if let Some(part) = part {
                part.remove()?;
            }
            Err(error)
        }
    }
}

/// Sync, then rename: first the blob, so that a tree never lacks what it was made from.
fn commit(store: &Store, spec: &LayerSpec, tree: Option<(&Path, &LayerMeta)>, origin: Origin<'_>) -> Result<()> {
    if let Some((tree, meta)) = tree {
        let path = tree.join("meta.json");
        let text = serde_json::to_vec(meta).map_err(|e| ImageError::io("write", &path, e))?;
        fs::write(&path, text).map_err(at("write", &path))?;
    }
    store.sync()?;
    let blob = match origin {
        Origin::Fetch(part) => Some(part.path.clone()),
        Origin::Spooled(path) => Some(path),
        Origin::Stored => None,
    };
    if let Some(path) = blob {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).map_err(at("write", &path))?;
        let target = store.blob(spec.digest);
        fs::rename(&path, &target).map_err(at("replace", &target))?;
    }
    if let Some((tree, _)) = tree {
        let target = store.layer(spec.diff_id);
        match fs::rename(tree, &target) {
            // Another process was faster with the same content.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOTEMPTY)) => {
                files::remove_all(tree)?
            }
            other => other.map_err(at("replace", &target))?,
        }
    }
    Ok(())
}

/// First thread: hash, count, keep, hand on.
fn feed(
    spec: &LayerSpec,
    part: Option<&mut Part>,
    source: &mut dyn Read,
    sender: SyncSender<Vec<u8>>,
    no_room: &AtomicBool,
) -> Result<()> {
    let mut feed = Feed { spec, hasher: Hasher::default(), total: 0, sender: Some(sender), no_room };
    match part {
        Some(part) => {
            part.file.seek(SeekFrom::Start(0)).map_err(at("read", &part.path))?;
            let mut kept = (&part.file).take(part.length()?);
            feed.pump(&mut kept, None).map_err(|e| ImageError::io("read", &part.path, e))??;
            let mut keep = &part.file;
            let pumped = feed.pump(source, Some(&mut keep));
            pumped.map_err(|e| ImageError::io("write", &part.path, e))??;
        }
        None => feed.pump(source, None).map_err(|e| ImageError::io("read", Path::new(&spec.digest.hex()), e))??,
    }
    feed.finish()
}

struct Feed<'a> {
    spec: &'a LayerSpec,
    hasher: Hasher,
    total: u64,
    /// `None` once the second thread has ended.
    sender: Option<SyncSender<Vec<u8>>>,
    no_room: &'a AtomicBool,
}

impl Feed<'_> {
    fn what(&self) -> String {
        format!("layer {}", self.spec.digest)
    }

    /// Until the source ends. The outer error is that of reading or keeping.
    fn pump(&mut self, source: &mut dyn Read, mut keep: Option<&mut dyn Write>) -> io::Result<Result<()>> {
        loop {
            let chunk = read_chunk(source)?;
            if chunk.is_empty() {
                return Ok(Ok(()));
            }
            self.total += chunk.len() as u64;
            if self.total > self.spec.size {
                return Ok(Err(ImageError::WrongSize { what: self.what(), wanted: self.spec.size, got: self.total }));
            }
            self.hasher.update(&chunk);
            if let Some(keep) = &mut keep {
                keep.write_all(&chunk)?;
            }
            // If unpacking failed, the digest is still wanted: it tells damage from a malformed archive.
            if self.sender.as_ref().is_some_and(|sender| sender.send(chunk).is_err()) {
                self.sender = None;
            }
            if self.no_room.load(Ordering::Acquire) {
                return Ok(Err(ImageError::Stopped));
            }
        }
    }

    fn finish(self) -> Result<()> {
        let (what, wanted, got) = (self.what(), self.spec.size, self.total);
        if got < wanted {
            return Err(ImageError::Truncated { what, wanted, got });
        }
        let got = self.hasher.finish();
        if got == self.spec.digest { Ok(()) } else { Err(ImageError::Damaged { what, wanted: self.spec.digest, got }) }
    }
}

/// At least one byte unless the source is at its end.
fn read_chunk(source: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut chunk = vec![0; CHUNK];
    let mut filled = 0;
    while filled < CHUNK / 4 {
        match source.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    chunk.truncate(filled);
    Ok(chunk)
}

/// Second thread: inflate, hash, unpack; all of the stream is read, so that all of it is in the diff-id.
fn unpack_stream(
    receiver: Receiver<Vec<u8>>,
    spec: &LayerSpec,
    tree: &Path,
    scratch: &Path,
    limits: Limits,
) -> Result<LayerMeta> {
    let what = format!("layer {}", spec.digest);
    let limits = limits.for_packed(spec.size);
    let packed = Chunks { receiver, chunk: Vec::new(), at: 0 };
    let stream_max = limits.bytes.saturating_add(limits.inodes.saturating_mul(4096));
    let reader =
        HashReader::new(decoder(spec.compression, packed).map_err(|e| bad(&what, &e.to_string()))?, stream_max);
    let (meta, rest) = unpack::unpack(reader, &tree.join("fs"), scratch, &tree.join(catalog::NAME), limits)
        .map_err(|error| unpack_error(&what, tree, error))?;
    // What a buffer has already read has been hashed on the way in.
    let got = rest.into_inner().finish().map_err(|e| bad(&what, &format!("cannot be unpacked: {e}")))?;
    if got == spec.diff_id {
        Ok(meta)
    } else {
        Err(ImageError::Damaged { what: format!("unpacked layer {}", spec.digest), wanted: spec.diff_id, got })
    }
}

fn bad(what: &str, why: &str) -> ImageError {
    ImageError::BadArchive { archive: what.to_owned(), why: why.to_owned() }
}

fn unpack_error(what: &str, tree: &Path, error: UnpackError) -> ImageError {
    match error {
        full if full.is_disk_full() => ImageError::DiskFull { dir: tree.to_path_buf(), needed: None },
        UnpackError::TooBig { limit, unit } => ImageError::TooBig { what: what.to_owned(), limit, unit },
        UnpackError::Write { action, path, source } => ImageError::Io { action, path: tree.join(path), source },
        other => bad(what, &other.to_string()),
    }
}

/// The plain bytes of a stream. All members of a gzip file and all frames of a zstd file count; other bytes after
/// them are an error.
pub(crate) fn decoder<'a>(compression: Compression, packed: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::Plain => Box::new(packed),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(packed)?),
    })
}

/// The chunks as one stream, which ends when the first thread does.
struct Chunks {
    receiver: Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.len() {
            self.chunk = self.receiver.recv().unwrap_or_default();
            self.at = 0;
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}
