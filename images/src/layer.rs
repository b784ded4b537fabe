//! The road of one layer: bytes from somewhere → verified blob and unpacked tree, both in the store.
//!
//! ```text
//! source ─► hash, count, keep in ingest/<hex>.part ─► inflate ─► hash, unpack to <lease>/*.tree/fs
//!            (this thread)                         (a second)    (a third)
//! then, if digest, size and diff-id are right: sync, rename the blob, rename the tree
//! ```
//!
//! Nothing is renamed before everything is verified and on disk, so what has a name in the store is whole. The sync is
//! of the whole file system, so layers that come together share one: see `batch`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::catalog;
use crate::digest::{Digest, Hasher};
use crate::error::{ImageError, Result, at};
use crate::files;
use crate::lease::Lease;
use crate::manifest::{Compression, LayerSpec};
use crate::store::Store;
use crate::unpack::{self, LayerMeta, Limits, UnpackError};
use crate::window;

/// Bytes handed on at once: as many as stay in a cache until the next thread has them.
const CHUNK: usize = 128 << 10;

/// Batches and chunks that may wait for the next thread: a MiB or two for each layer under way, however large it is.
const WAITING: usize = 2;

/// Pieces of a packed layer that were read at once.
pub(crate) type Batch = Vec<Bytes>;

/// A blob being fetched: `ingest/<hex>.part`, locked against other pulls, and kept when a fetch breaks off.
#[derive(Debug)]
pub(crate) struct Part {
    file: File,
    path: PathBuf,
}

impl Part {
    /// `None` if another one fetches the same blob at this moment.
    pub(crate) fn try_lock(store: &Store, digest: Digest) -> Result<Option<Self>> {
        loop {
            let part = Self::open(store, digest)?;
            if !files::try_lock(&part.file) {
                return Ok(None);
            }
            // The one who had the lock may have renamed or removed the file: then it is not ours to write.
            if part.is_in_place()? {
                return Ok(Some(part));
            }
        }
    }

    fn open(store: &Store, digest: Digest) -> Result<Self> {
        let path = store.ingest().join(format!("{}.part", digest.hex()));
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(at("open", &path))?;
        Ok(Self { file, path })
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

/// The bytes of a packed layer.
pub(crate) enum Source<'a> {
    /// A file at hand.
    Read(&'a mut dyn Read),
    /// What a network task sends.
    Batches(mpsc::Receiver<Batch>),
}

impl Source<'_> {
    /// Nothing at the end.
    fn next(&mut self) -> io::Result<Batch> {
        match self {
            Self::Read(source) => read_chunk(&mut **source).map(|chunk| chunk.into_iter().collect()),
            Self::Batches(receiver) => Ok(receiver.blocking_recv().unwrap_or_default()),
        }
    }
}

/// Files that are verified, but may not be on disk, and have no name in the store yet.
#[derive(Debug)]
pub(crate) struct Verified {
    /// Where the blob lies; `None` if it is in the store.
    blob: Option<(PathBuf, Digest)>,
    /// Where the tree lies, with its list, and the diff-id that it has.
    tree: Option<(PathBuf, Digest)>,
}

impl Verified {
    /// A small blob in a file of its own.
    pub(crate) fn blob(path: PathBuf, digest: Digest) -> Self {
        Self { blob: Some((path, digest)), tree: None }
    }
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
    origin: Origin<'_>,
    source: &mut dyn Read,
) -> Result<()> {
    let verified = prepare(store, lease, spec, origin, Source::Read(source))?;
    commit(store, &[verified])
}

/// As `ingest`, up to the point where only `commit` is to be done. Until then, the part must stay locked.
pub(crate) fn prepare(
    store: &Store,
    lease: &Lease,
    spec: &LayerSpec,
    mut origin: Origin<'_>,
    source: Source<'_>,
) -> Result<Verified> {
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
    let (fed, unpacked) = run(spec, &tree, &scratch, store.limits(), &mut Origin::Stored, Source::Read(blob));
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

/// All threads; returns when they have ended.
fn run(
    spec: &LayerSpec,
    tree: &Path,
    scratch: &Path,
    limits: Limits,
    origin: &mut Origin<'_>,
    source: Source<'_>,
) -> (Result<()>, Result<LayerMeta>) {
    let no_room = AtomicBool::new(false);
    let limits = limits.for_packed(spec.size);
    std::thread::scope(|scope| {
        let (packed, batches) = sync_channel(WAITING);
        let (plain, chunks) = sync_channel(WAITING);
        let (empty, emptied) = sync_channel(WAITING + 2);
        scope.spawn(move || inflate(spec.compression, batches, &plain, &emptied));
        let last = scope.spawn(|| {
            let done = unpack_stream(Plain::new(chunks, empty, limits), spec, tree, scratch, limits);
            let full = matches!(&done, Err(ImageError::DiskFull { .. }));
            no_room.store(full, Ordering::Release);
            done
        });
        let part = if let Origin::Fetch(part) = origin { Some(&mut **part) } else { None };
        let fed = feed(spec, part, source, packed, &no_room);
        let unpacked = last.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (fed, unpacked)
    })
}

/// Decide what the two results mean.
fn settle(
    store: &Store,
    spec: &LayerSpec,
    tree: &Path,
    origin: Origin<'_>,
    fed: Result<()>,
    unpacked: Result<LayerMeta>,
) -> Result<Verified> {
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
        Ok(meta) => {
            let path = tree.join("meta.json");
            let text = serde_json::to_vec(&meta).map_err(|e| ImageError::io("write", &path, e))?;
            fs::write(&path, text).map_err(at("write", &path))?;
            Ok(Verified { blob: blob(spec, origin), tree: Some((tree.to_path_buf(), spec.diff_id)) })
        }
        Err(full @ ImageError::DiskFull { .. }) => {
            files::remove_all(tree)?;
            commit(store, &[Verified { blob: blob(spec, origin), tree: None }])?;
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

/// The file that becomes the blob.
fn blob(spec: &LayerSpec, origin: Origin<'_>) -> Option<(PathBuf, Digest)> {
    match origin {
        Origin::Fetch(part) => Some((part.path.clone(), spec.digest)),
        Origin::Spooled(path) => Some((path, spec.digest)),
        Origin::Stored => None,
    }
}

/// One sync for all, then the renames: blobs first, so that a tree never lacks what it was made from.
pub(crate) fn commit(store: &Store, all: &[Verified]) -> Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    for (path, _) in all.iter().filter_map(|one| one.blob.as_ref()) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o444)).map_err(at("write", path))?;
    }
    store.sync()?;
    for (path, digest) in all.iter().filter_map(|one| one.blob.as_ref()) {
        let target = store.blob(*digest);
        fs::rename(path, &target).map_err(at("replace", &target))?;
    }
    for (tree, diff_id) in all.iter().filter_map(|one| one.tree.as_ref()) {
        let target = store.layer(*diff_id);
        match fs::rename(tree, &target) {
            // Another one was faster with the same content.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOTEMPTY)) => {
                files::remove_all(tree)?;
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
    mut source: Source<'_>,
    sender: SyncSender<Batch>,
    no_room: &AtomicBool,
) -> Result<()> {
    let mut feed = Feed { spec, hasher: Hasher::default(), total: 0, sender: Some(sender), no_room };
    match part {
        Some(part) => {
            part.file.seek(SeekFrom::Start(0)).map_err(at("read", &part.path))?;
            let mut kept = (&part.file).take(part.length()?);
            feed.pump(&mut Source::Read(&mut kept), None).map_err(|e| ImageError::io("read", &part.path, e))??;
            let pumped = feed.pump(&mut source, Some(&part.file));
            pumped.map_err(|e| ImageError::io("write", &part.path, e))??;
        }
        None => {
            feed.pump(&mut source, None).map_err(|e| ImageError::io("read", Path::new(&spec.digest.hex()), e))??
        }
    }
    feed.finish()
}

struct Feed<'a> {
    spec: &'a LayerSpec,
    hasher: Hasher,
    total: u64,
    /// `None` once the second thread has ended.
    sender: Option<SyncSender<Batch>>,
    no_room: &'a AtomicBool,
}

impl Feed<'_> {
    fn what(&self) -> String {
        format!("layer {}", self.spec.digest)
    }

    /// Until the source ends. The outer error is that of reading or keeping.
    fn pump(&mut self, source: &mut Source<'_>, mut keep: Option<&File>) -> io::Result<Result<()>> {
        loop {
            let batch = source.next()?;
            if batch.is_empty() {
                return Ok(Ok(()));
            }
            for piece in &batch {
                self.total += piece.len() as u64;
                if self.total > self.spec.size {
                    let (what, wanted, got) = (self.what(), self.spec.size, self.total);
                    return Ok(Err(ImageError::WrongSize { what, wanted, got }));
                }
                self.hasher.update(piece);
                if let Some(keep) = &mut keep {
                    keep.write_all(piece)?;
                }
            }
            // If unpacking failed, the digest is still wanted: it tells damage from a malformed archive.
            if self.sender.as_ref().is_some_and(|sender| sender.send(batch).is_err()) {
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

/// `None` at the end of the source.
fn read_chunk(source: &mut dyn Read) -> io::Result<Option<Bytes>> {
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
    Ok((filled > 0).then(|| Bytes::from(chunk)))
}

/// Plain bytes: a buffer, and how much of it counts.
type Chunk = (Vec<u8>, usize);

/// Second thread: from packed to plain. An error is handed on like data; the end of the channel is the end of the data.
fn inflate(
    compression: Compression,
    batches: Receiver<Batch>,
    plain: &SyncSender<io::Result<Chunk>>,
    emptied: &Receiver<Vec<u8>>,
) {
    let mut packed = Packed { batches, batch: Vec::new().into_iter(), piece: Bytes::new() };
    if compression == Compression::Zstd {
        // A failure comes again when the decoder reads.
        let mut room = window::room(packed.fill_buf().unwrap_or_default());
        return hand_on(&mut zstd::stream::read::Decoder::with_context(packed, room.context()), plain, emptied);
    }
    match decoder(compression, packed) {
        Ok(mut decoder) => hand_on(&mut *decoder, plain, emptied),
        // Who does not listen has failed already, and tells why.
        Err(error) => drop(plain.send(Err(error))),
    }
}

/// All that `decoder` gives, in chunks.
fn hand_on(decoder: &mut dyn Read, plain: &SyncSender<io::Result<Chunk>>, emptied: &Receiver<Vec<u8>>) {
    let mut failure = None;
    while failure.is_none() {
        let mut buffer = emptied.try_recv().unwrap_or_else(|_| vec![0; CHUNK]);
        let mut filled = 0;
        while filled < CHUNK && failure.is_none() {
            match decoder.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => failure = Some(error),
            }
        }
        // What came before the failure counts: it may be the whole archive.
        if filled == 0 && failure.is_none() || filled > 0 && plain.send(Ok((buffer, filled))).is_err() {
            return;
        }
    }
    if let Some(error) = failure {
        // Who does not listen has failed already, and tells why.
        drop(plain.send(Err(error)));
    }
}

/// The batches as one stream, which ends when the first thread does.
struct Packed {
    batches: Receiver<Batch>,
    batch: std::vec::IntoIter<Bytes>,
    piece: Bytes,
}

impl BufRead for Packed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.batch.next() {
                Some(piece) => self.piece = piece,
                None => match self.batches.recv() {
                    Ok(batch) => self.batch = batch.into_iter(),
                    Err(_) => break,
                },
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, count: usize) {
        bytes::Buf::advance(&mut self.piece, count);
    }
}

impl Read for Packed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

/// What the second thread has made, as one stream. Hashes and counts, and stops a stream that never ends.
struct Plain {
    chunks: Receiver<io::Result<Chunk>>,
    /// Back to where they came from.
    empty: SyncSender<Vec<u8>>,
    chunk: Chunk,
    used: usize,
    hasher: Hasher,
    total: u64,
    limit: u64,
}

impl Plain {
    fn new(chunks: Receiver<io::Result<Chunk>>, empty: SyncSender<Vec<u8>>, limits: Limits) -> Self {
        let limit = limits.bytes.saturating_add(limits.inodes.saturating_mul(4096));
        Self { chunks, empty, chunk: (Vec::new(), 0), used: 0, hasher: Hasher::default(), total: 0, limit }
    }

    /// Read to the end, so that every byte is in the digest.
    fn finish(mut self) -> io::Result<Digest> {
        loop {
            match self.fill_buf()?.len() {
                0 => return Ok(self.hasher.finish()),
                count => self.consume(count),
            }
        }
    }
}

impl BufRead for Plain {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used == self.chunk.1 {
            let (old, _) = std::mem::take(&mut self.chunk);
            self.used = 0;
            // One too many, or nobody there any more: it is dropped.
            if !old.is_empty() {
                let _ = self.empty.try_send(old);
            }
            if let Ok(chunk) = self.chunks.recv() {
                let (bytes, count) = chunk?;
                self.hasher.update(&bytes[..count]);
                self.total += count as u64;
                if self.total > self.limit {
                    let why = format!("unpacks to more than {} bytes", self.limit);
                    return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
                }
                self.chunk = (bytes, count);
            }
        }
        Ok(&self.chunk.0[self.used..self.chunk.1])
    }

    fn consume(&mut self, count: usize) {
        self.used += count;
    }
}

impl Read for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

/// Third thread: hash, unpack; all of the stream is read, so that all of it is in the diff-id.
fn unpack_stream(plain: Plain, spec: &LayerSpec, tree: &Path, scratch: &Path, limits: Limits) -> Result<LayerMeta> {
    let what = format!("layer {}", spec.digest);
    let (meta, rest) = unpack::unpack(plain, &tree.join("fs"), scratch, &tree.join(catalog::NAME), limits)
        .map_err(|error| unpack_error(&what, tree, error))?;
    let got = rest.finish().map_err(|e| bad(&what, &format!("cannot be unpacked: {e}")))?;
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
