//! Content from other nodes of the cluster: whom to ask, how long to wait, and what to show of our own store.
//!
//! ```text
//! a blob ─► each source in turn ─┬─ bytes ─► verified by the caller, a liar is dropped
//!                                ├─ later: it comes there, or too many ask ─► wait, ask again
//!                                └─ absent, silent, slow ─► the next; none left ─► the registry
//! ```
//!
//! How nodes talk is not known here: the agent brings [`Peers`]. Nothing that one says is believed, since every blob has
//! its digest, and every wait has a bound, after which the registry is asked as if there were no peers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::auth::{decode_base64, encode_base64};
use crate::digest::Digest;
use crate::error::{ImageError, Result, at};
use crate::lease;
use crate::manifest::LayerSpec;
use crate::reference::Reference;
use crate::store::Store;

/// Where the index of the store keeps the signature that an image was verified by, for nodes that cannot ask its registry.
pub(crate) const SIGNATURE_KEPT: &str = "dev.gantry.image.signature";

/// A signed document that is larger is not kept: real ones have some hundred bytes.
const SIGNED_MAX: usize = 8 << 10;

/// Connections that break off although bytes came, before a peer counts as bad.
const BREAKS_MAX: u32 = 3;

/// The other nodes of the cluster.
pub trait Peers: Debug + Send + Sync {
    /// The digest that some node knows for a name. It is used while the registry does not answer.
    fn digest(&self, reference: &Reference) -> Option<Digest>;

    /// Whom to ask now, best first. It is asked again while we wait, since nodes come and go.
    fn sources(&self, reference: &Reference) -> Vec<Arc<dyn Peer>>;
}

/// One other node.
pub trait Peer: Debug + Send + Sync {
    /// Tells it from others.
    fn name(&self) -> &str;

    /// It has the whole image. Otherwise it is fetching it, and is worth waiting for.
    fn whole(&self) -> bool;

    /// Ask for a blob from `offset` on.
    fn blob(&self, digest: Digest, offset: u64) -> BoxFuture<'_, io::Result<Offer>>;

    /// Ask for the signatures of a manifest.
    fn signatures(&self, digest: Digest) -> BoxFuture<'_, io::Result<Vec<Signed>>>;
}

/// What a peer answers to a request for a blob.
pub enum Offer {
    /// Its bytes, from the offset on.
    Bytes(BoxStream<'static, io::Result<Bytes>>),
    /// It does not have it.
    Absent,
    /// It will have it, or serves too many at present.
    Later,
}

/// A signed document with its signature, in base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The document.
    pub payload: Vec<u8>,
    /// Over the document.
    pub signature: String,
}

impl Signed {
    /// One word; `None` if it is too large to keep.
    pub fn to_text(&self) -> Option<String> {
        let fits = self.payload.len() <= SIGNED_MAX && self.signature.len() <= SIGNED_MAX;
        fits.then(|| format!("{}.{}", encode_base64(&self.payload), self.signature))
    }

    /// As [`Signed::to_text`] writes it.
    pub fn from_text(text: &str) -> Option<Self> {
        let (payload, signature) = text.trim().split_once('.').filter(|_| text.len() <= 4 * SIGNED_MAX)?;
        Some(Self { payload: decode_base64(payload)?, signature: signature.to_owned() })
    }
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// A request's answer. A peer holds it back for a while when the blob is about to come.
    answer: Duration,
    /// A peer that gives fewer bytes than `least` in this time is dropped.
    stall: Duration,
    least: u64,
    /// One that fetches too may begin so much after we did.
    begin: Duration,
    /// Without any bytes, although it is coming.
    patience: Duration,
    /// Between two rounds.
    pause: Duration,
}

const BOUNDS: Bounds = Bounds {
    answer: Duration::from_secs(8),
    stall: Duration::from_secs(10),
    least: 128 << 10,
    begin: Duration::from_secs(10),
    patience: Duration::from_secs(60),
    pause: Duration::from_millis(150),
};

/// What came of asking peers for a layer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Got {
    /// All of it, or as much as was wanted.
    Enough,
    /// Not all: the registry has the rest.
    Elsewhere,
}

/// The peers of one pull.
pub(crate) struct FromPeers<'a> {
    peers: &'a dyn Peers,
    reference: &'a Reference,
    begun: Instant,
    bounds: Bounds,
    memory: Mutex<Memory>,
}

/// What was found out during one pull.
#[derive(Default)]
struct Memory {
    /// Asked for nothing more.
    dropped: BTreeSet<String>,
    /// Who gave bytes of which blob.
    givers: BTreeMap<Digest, BTreeSet<String>>,
    breaks: BTreeMap<String, u32>,
}

impl<'a> FromPeers<'a> {
    pub(crate) fn new(peers: &'a dyn Peers, reference: &'a Reference) -> Self {
        Self { peers, reference, begun: Instant::now(), bounds: BOUNDS, memory: Mutex::default() }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The digest that nodes know for the name.
    pub(crate) fn digest(&self) -> Option<Digest> {
        self.peers.digest(self.reference)
    }

    fn sources(&self) -> Vec<Arc<dyn Peer>> {
        let sources = self.peers.sources(self.reference);
        let memory = self.memory();
        sources.into_iter().filter(|peer| !memory.dropped.contains(peer.name())).collect()
    }

    fn drop(&self, peer: &dyn Peer, why: &str) {
        tracing::warn!(node = peer.name(), why, "nothing more is fetched from this node");
        self.memory().dropped.insert(peer.name().to_owned());
    }

    /// The blob was wrong: those who gave of it are asked for nothing more. Whether there were any.
    pub(crate) fn blame(&self, digest: Digest) -> bool {
        let mut memory = self.memory();
        let givers = memory.givers.remove(&digest).unwrap_or_default();
        for node in &givers {
            tracing::warn!(node, %digest, "gave wrong bytes; nothing more is fetched from this node");
        }
        let any = !givers.is_empty();
        memory.dropped.extend(givers);
        any
    }

    /// A small blob, verified, from a node that has all of the image; nobody is waited for.
    pub(crate) async fn small(&self, digest: Digest, limit: u64) -> Option<Vec<u8>> {
        for peer in self.sources().into_iter().filter(|peer| peer.whole()) {
            match timeout(self.bounds.stall, collect(&*peer, digest, limit)).await {
                Ok(Ok(Some(bytes))) if Digest::of(&bytes) == digest => return Some(bytes),
                Ok(Ok(Some(_))) => self.drop(&*peer, "it gave wrong bytes"),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => self.drop(&*peer, &error.to_string()),
                Err(_) => self.drop(&*peer, "it does not answer in time"),
            }
        }
        None
    }

    /// What nodes keep of the signatures of a manifest.
    pub(crate) async fn signatures(&self, digest: Digest) -> Vec<Signed> {
        let mut all = Vec::new();
        for peer in self.sources().into_iter().filter(|peer| peer.whole()) {
            match timeout(self.bounds.answer, peer.signatures(digest)).await {
                Ok(Ok(signatures)) => all.extend(signatures),
                Ok(Err(error)) => tracing::debug!(node = peer.name(), %error, "tells no signatures"),
                Err(_) => tracing::debug!(node = peer.name(), "tells no signatures in time"),
            }
        }
        all
    }

    /// The bytes of a layer from where it stands on, given to `sink` in order. `sink` answers false when it wants no more.
    pub(crate) async fn layer<F, W>(&self, spec: &LayerSpec, arrived: &AtomicU64, sink: &mut F) -> Got
    where
        F: FnMut(Bytes, u64) -> W,
        W: Future<Output = bool>,
    {
        let mut last = Instant::now();
        loop {
            let mut hope = false;
            for peer in self.sources() {
                let before = arrived.load(Ordering::Relaxed);
                let asked = timeout(self.bounds.answer, peer.blob(spec.digest, before)).await;
                match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                    Ok(Offer::Absent) => hope |= !peer.whole() && self.begun.elapsed() < self.bounds.begin,
                    Ok(Offer::Later) => hope = true,
                    Ok(Offer::Bytes(bytes)) => {
                        if self.take(&*peer, spec, bytes, arrived, sink).await == Taken::Enough {
                            return Got::Enough;
                        }
                        if arrived.load(Ordering::Relaxed) > before {
                            (last, hope) = (Instant::now(), true);
                        }
                    }
                    Err(error) => self.drop(&*peer, &error.to_string()),
                }
            }
            if !hope || last.elapsed() > self.bounds.patience {
                return Got::Elsewhere;
            }
            sleep(self.bounds.pause).await;
        }
    }

    /// One answer's bytes. A peer that is slow, gives too much, or breaks off too often is dropped.
    async fn take<F, W>(
        &self,
        peer: &dyn Peer,
        spec: &LayerSpec,
        mut bytes: BoxStream<'static, io::Result<Bytes>>,
        arrived: &AtomicU64,
        sink: &mut F,
    ) -> Taken
    where
        F: FnMut(Bytes, u64) -> W,
        W: Future<Output = bool>,
    {
        self.memory().givers.entry(spec.digest).or_default().insert(peer.name().to_owned());
        // One that fetches is as slow as its registry, and watches that itself.
        let least = if peer.whole() { self.bounds.least } else { 1 };
        let mut done = arrived.load(Ordering::Relaxed);
        let (mut until, mut window) = (Instant::now() + self.bounds.stall, 0);
        while done < spec.size {
            let next = match timeout_at(until, bytes.next()).await {
                Ok(next) => next,
                Err(_) if window < least => {
                    self.drop(peer, "it is too slow");
                    return Taken::Part;
                }
                Err(_) => {
                    (until, window) = (Instant::now() + self.bounds.stall, 0);
                    continue;
                }
            };
            match next {
                Some(Ok(piece)) => {
                    let length = piece.len() as u64;
                    if length > spec.size - done {
                        self.drop(peer, "it gives more than there is");
                        return Taken::Part;
                    }
                    (done, window) = (done + length, window + length);
                    let handed = Instant::now();
                    if !sink(piece, done).await {
                        return Taken::Enough;
                    }
                    // Our own disk is not the peer's fault.
                    until += handed.elapsed();
                }
                Some(Err(_)) | None => {
                    self.broke_off(peer, window == 0);
                    return Taken::Part;
                }
            }
        }
        Taken::Enough
    }

    fn broke_off(&self, peer: &dyn Peer, gave_nothing: bool) {
        let breaks = {
            let mut memory = self.memory();
            let breaks = memory.breaks.entry(peer.name().to_owned()).or_default();
            *breaks += 1;
            *breaks
        };
        if gave_nothing || breaks >= BREAKS_MAX {
            self.drop(peer, "it breaks off");
        }
    }
}

#[derive(PartialEq, Eq)]
enum Taken {
    Enough,
    Part,
}

/// A whole blob of at most `limit` bytes; `None` if the peer does not have it.
async fn collect(peer: &dyn Peer, digest: Digest, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let Offer::Bytes(mut bytes) = peer.blob(digest, 0).await? else {
        return Ok(None);
    };
    let mut all = Vec::new();
    while let Some(piece) = bytes.next().await {
        all.extend_from_slice(&piece?);
        if all.len() as u64 > limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it gives more than there is"));
        }
    }
    Ok(Some(all))
}

/// A blob of our own, for others.
#[derive(Debug)]
pub enum Stored {
    /// All of it, verified.
    Whole {
        /// To read from.
        file: File,
        /// Its bytes.
        size: u64,
    },
    /// The first part of it, not verified; more is being fetched.
    Growing(Growing),
    /// It is not there, but a pull under way will fetch it.
    Coming,
    /// It is not there.
    Absent,
}

/// A blob that is being fetched. The part file is always a prefix of the blob.
#[derive(Debug)]
pub struct Growing {
    /// To read from; it stays the same file when the blob is whole.
    pub file: File,
    part: PathBuf,
    blob: PathBuf,
}

/// How far a blob is that is being fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    /// So many bytes are there, and more may come.
    More(u64),
    /// All of it is there, verified.
    Whole(u64),
    /// It was given up.
    Gone,
}

impl Growing {
    /// How far it is.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn growth(&self) -> io::Result<Growth> {
        let meta = self.file.metadata()?;
        let same = |path: &Path| path.symlink_metadata().is_ok_and(|other| other.ino() == meta.ino());
        // It is renamed from one to the other: looked for in that order, and once more at the end.
        if same(&self.part) {
            return Ok(Growth::More(meta.len()));
        }
        if same(&self.blob) { Ok(Growth::Whole(self.file.metadata()?.len())) } else { Ok(Growth::Gone) }
    }
}

/// A name of an image in the store, for other nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldName {
    /// The name.
    pub name: Reference,
    /// What the registry gave for it: the digest of an index, if that is kept, or of the manifest.
    pub digest: Digest,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// When it came.
    pub since: SystemTime,
}

impl Store {
    /// A blob for another node.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn offer(&self, digest: Digest) -> Result<Stored> {
        let (blob, part) = (self.blob(digest), self.ingest().join(format!("{}.part", digest.hex())));
        // A part may become the blob between two looks.
        for _ in 0..2 {
            if let Some(file) = open(&blob)? {
                let size = file.metadata().map_err(at("read", &blob))?.len();
                return Ok(Stored::Whole { file, size });
            }
            if let Some(file) = open(&part)? {
                let growing = Growing { file, part: part.clone(), blob: blob.clone() };
                if let Growth::More(1..) = growing.growth().map_err(at("read", &part))? {
                    return Ok(Stored::Growing(growing));
                }
            }
        }
        let (leased, _) = {
            let _lock = self.lock()?;
            lease::survey(&self.ingest())?
        };
        Ok(if leased.contains(&digest) { Stored::Coming } else { Stored::Absent })
    }

    /// What the images here are called, for other nodes. Names whose content is not there are left out.
    ///
    /// # Errors
    /// The list of names cannot be read.
    pub fn held(&self) -> Result<Vec<HeldName>> {
        let mut held = Vec::new();
        for entry in self.index()?.manifests {
            let since = self.blob(entry.digest).symlink_metadata().and_then(|meta| meta.modified());
            if let (Some(name), Ok(since)) = (entry.reference(), since) {
                let kept = entry.source_digest().filter(|source| self.blob(*source).is_file());
                held.push(HeldName { name, digest: kept.unwrap_or(entry.digest), manifest: entry.digest, since });
            }
        }
        Ok(held)
    }

    /// The signatures that an image was verified by, for other nodes.
    ///
    /// - `digest`: of its manifest, or of the index that it was chosen from.
    ///
    /// # Errors
    /// The list of names cannot be read.
    pub fn signatures(&self, digest: Digest) -> Result<Vec<Signed>> {
        let entries = self.index()?.manifests;
        let of_image = entries.iter().filter(|e| e.digest == digest || e.source_digest() == Some(digest));
        let kept: BTreeSet<&String> = of_image.filter_map(|entry| entry.annotations.get(SIGNATURE_KEPT)).collect();
        Ok(kept.into_iter().filter_map(|text| Signed::from_text(text)).collect())
    }
}

fn open(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ImageError::io("open", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Compression;
    use futures_util::{FutureExt, stream};
    use std::collections::VecDeque;

    const BLOB: &[u8] = b"0123456789";
    const FAST: Bounds = Bounds {
        answer: Duration::from_millis(300),
        stall: Duration::from_millis(100),
        least: 2,
        begin: Duration::from_millis(300),
        patience: Duration::from_millis(600),
        pause: Duration::from_millis(5),
    };

    /// What a peer does with one request.
    #[derive(Debug, Clone, Copy)]
    enum Act {
        /// Gives so many bytes, then ends as if that were all.
        Give(usize),
        /// Gives so many bytes, then nothing more.
        Stall(usize),
        /// Gives one byte again and again, slower than is useful.
        Trickle,
        /// Gives more than the blob has.
        TooMuch,
        Absent,
        Later,
        Fail,
        /// Never answers.
        Silent,
    }

    #[derive(Debug)]
    struct Scripted {
        name: String,
        whole: bool,
        acts: Mutex<VecDeque<Act>>,
        last: Act,
        asked: AtomicU64,
    }

    impl Peer for Scripted {
        fn name(&self) -> &str {
            &self.name
        }

        fn whole(&self) -> bool {
            self.whole
        }

        fn blob(&self, _: Digest, offset: u64) -> BoxFuture<'_, io::Result<Offer>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let rest = Bytes::from_static(&BLOB[usize::try_from(offset).unwrap()..]);
            let act = self.acts.lock().unwrap().pop_front().unwrap_or(self.last);
            async move {
                let piece = |count: usize| stream::iter([Ok(rest.slice(..count.min(rest.len())))]);
                Ok(match act {
                    Act::Give(count) => Offer::Bytes(piece(count).boxed()),
                    Act::Stall(count) => Offer::Bytes(piece(count).chain(stream::pending()).boxed()),
                    Act::Trickle => Offer::Bytes(
                        stream::iter(rest.to_vec())
                            .then(|byte| sleep(Duration::from_millis(80)).map(move |()| Ok(Bytes::from(vec![byte]))))
                            .boxed(),
                    ),
                    Act::TooMuch => Offer::Bytes(stream::iter([Ok(Bytes::from_static(&[0; 99]))]).boxed()),
                    Act::Absent => Offer::Absent,
                    Act::Later => Offer::Later,
                    Act::Fail => return Err(io::ErrorKind::ConnectionRefused.into()),
                    Act::Silent => std::future::pending().await,
                })
            }
            .boxed()
        }

        fn signatures(&self, _: Digest) -> BoxFuture<'_, io::Result<Vec<Signed>>> {
            async { Ok(Vec::new()) }.boxed()
        }
    }

    #[derive(Debug)]
    struct Script(Vec<Arc<Scripted>>);

    impl Peers for Script {
        fn digest(&self, _: &Reference) -> Option<Digest> {
            None
        }

        fn sources(&self, _: &Reference) -> Vec<Arc<dyn Peer>> {
            self.0.iter().map(|peer| Arc::clone(peer) as Arc<dyn Peer>).collect()
        }
    }

    /// `acts`: one after another; the last again and again.
    fn peer(name: &str, whole: bool, acts: &[Act]) -> Arc<Scripted> {
        let last = *acts.last().unwrap();
        let acts = Mutex::new(acts.iter().copied().collect());
        Arc::new(Scripted { name: name.to_owned(), whole, acts, last, asked: AtomicU64::new(0) })
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    /// What was got, in words: bytes, then who was dropped, then how often each was asked.
    fn fetched(peers: Vec<Arc<Scripted>>) -> String {
        let (script, reference) = (Script(peers), "x:1".parse().unwrap());
        let from = FromPeers { bounds: FAST, ..FromPeers::new(&script, &reference) };
        let digest = Digest::of(BLOB);
        let spec = LayerSpec { digest, size: BLOB.len() as u64, diff_id: digest, compression: Compression::Plain };
        let (arrived, got) = (AtomicU64::new(0), Mutex::new(Vec::new()));
        let outcome = runtime().block_on(from.layer(&spec, &arrived, &mut |bytes: Bytes, done| {
            got.lock().unwrap().extend_from_slice(&bytes);
            arrived.store(done, Ordering::Relaxed);
            async { true }
        }));
        let got = got.into_inner().unwrap();
        assert_eq!(got, BLOB[..got.len()], "in order, each byte once");
        assert_eq!(outcome == Got::Enough, got.len() == BLOB.len());
        let dropped: Vec<String> = from.memory().dropped.iter().cloned().collect();
        let asked: Vec<String> = script.0.iter().map(|peer| peer.asked.load(Ordering::Relaxed).to_string()).collect();
        format!("{} -{} {}", got.len(), dropped.join(","), asked.join(" "))
    }

    #[test]
    fn a_source_that_fails_is_dropped_and_the_next_goes_on_where_it_ended() {
        use Act::*;
        for (why, peers, expected) in [
            ("nobody", vec![], "0 - "),
            ("one has it", vec![peer("a", true, &[Give(10)])], "10 - 1"),
            ("nobody has it", vec![peer("a", true, &[Absent]), peer("b", true, &[Absent])], "0 - 1 1"),
            ("unreachable", vec![peer("a", true, &[Fail]), peer("b", true, &[Give(10)])], "10 -a 1 1"),
            ("never answers", vec![peer("a", true, &[Silent]), peer("b", true, &[Give(10)])], "10 -a 1 1"),
            ("stalls", vec![peer("a", true, &[Stall(3)]), peer("b", true, &[Give(10)])], "10 -a 1 1"),
            ("a byte now and then", vec![peer("a", true, &[Trickle]), peer("b", true, &[Give(10)])], "10 -a 1 1"),
            ("too much", vec![peer("a", true, &[TooMuch]), peer("b", true, &[Give(10)])], "10 -a 1 1"),
            ("broken off, and again", vec![peer("a", true, &[Give(4), Give(10)])], "10 - 2"),
            ("gives nothing", vec![peer("a", true, &[Give(0)])], "0 -a 1"),
            ("breaks off too often", vec![peer("a", true, &[Give(2)])], "6 -a 3"),
            ("busy, then not", vec![peer("a", true, &[Later, Later, Give(10)])], "10 - 3"),
            ("busy, the other is not", vec![peer("a", true, &[Later]), peer("b", true, &[Give(10)])], "10 - 1 1"),
            ("not begun there yet", vec![peer("a", false, &[Absent, Later, Give(5), Give(5)])], "10 - 4"),
            ("fetches slowly there", vec![peer("a", false, &[Trickle])], "10 - 1"),
        ] {
            assert_eq!(fetched(peers), expected, "{why}");
        }
    }

    #[test]
    fn waiting_has_an_end() {
        for (why, act, at_least, at_most) in
            [("it never begins", Act::Absent, FAST.begin, 5), ("it is always busy", Act::Later, FAST.patience, 5)]
        {
            let begun = Instant::now();
            let got = fetched(vec![peer("a", false, &[act])]);
            assert!(got.starts_with("0 - "), "{why}: {got}");
            let took = begun.elapsed();
            assert!(took >= at_least && took < Duration::from_secs(at_most), "{why}: {took:?}");
        }
    }

    #[test]
    fn who_gave_of_a_wrong_blob_is_dropped_and_nobody_else() {
        let script = Script(vec![
            peer("a", true, &[Act::Give(4)]),
            peer("b", true, &[Act::Give(10)]),
            peer("c", true, &[Act::Give(10)]),
        ]);
        let reference = "x:1".parse().unwrap();
        let from = FromPeers { bounds: FAST, ..FromPeers::new(&script, &reference) };
        let digest = Digest::of(b"another blob");
        assert!(!from.blame(digest), "nobody gave of it");
        let spec = LayerSpec { digest, size: BLOB.len() as u64, diff_id: digest, compression: Compression::Plain };
        let arrived = AtomicU64::new(0);
        let sink = |_: Bytes, done| {
            arrived.store(done, Ordering::Relaxed);
            async { true }
        };
        assert_eq!(runtime().block_on(from.layer(&spec, &arrived, &mut { sink })), Got::Enough);
        assert!(from.blame(digest) && !from.blame(digest), "once");
        let left: Vec<String> = from.sources().iter().map(|peer| peer.name().to_owned()).collect();
        assert_eq!(left, ["c"]);
        assert_eq!(runtime().block_on(from.small(digest, 100)), None);
        assert!(from.sources().is_empty(), "it gave a small blob that was wrong");
    }

    #[test]
    fn a_signature_is_one_word() {
        let signed = Signed { payload: b"{\"critical\": \xff}".to_vec(), signature: "MEUC+/==".to_owned() };
        let text = signed.to_text().unwrap();
        assert!(!text.contains(char::is_whitespace));
        assert_eq!(Signed::from_text(&text), Some(signed));
        for bad in ["", "abc", "!.abc", &"a".repeat(100_000)] {
            assert_eq!(Signed::from_text(bad), None);
        }
        assert_eq!(Signed { payload: vec![0; SIGNED_MAX + 1], signature: String::new() }.to_text(), None);
    }
}
