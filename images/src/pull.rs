//! From a reference to an image in the store.
//!
//! ```text
//! present? ─ no ─► HEAD tag ─► GET manifest by digest ─► choose platform ─► configuration ─► layers ─► commit
//!    └ yes: done      └ known digest: done                                   (several at once, largest first)
//! ```

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};

use crate::auth::{self, Credentials};
use crate::batch::Batch;
use crate::digest::Digest;
use crate::error::{ImageError, Result, at};
use crate::image::Image;
use crate::index::Entry;
use crate::layer::{self, Origin, Part, Source, Verified};
use crate::lease::Lease;
use crate::manifest::{
    self, CONFIG_MAX, ConfigFile, Descriptor, Document, LayerSpec, MANIFEST_MAX, Manifest, OCI_MANIFEST,
};
use crate::peers::{FromPeers, Got, Peers, SIGNATURE_KEPT, Signed};
use crate::platform::Platform;
use crate::progress::{Event, Progress};
use crate::reference::Reference;
use crate::registries::{Endpoint, Registries};
use crate::registry::{Fetched, Registry};
use crate::store::Store;
use crate::trust::{self, Require, Rule};
use crate::window;

/// Layers fetched and unpacked at once. Each has three threads, so this keeps eight processors busy; and each has a few
/// MiB under way.
const LAYERS_AT_ONCE: usize = 3;

/// Bytes that the network hands on at once, so that no thread is woken for every packet.
const BATCH: usize = 64 << 10;

/// Batches of a layer between the network and the disk; more wait behind that.
const BATCHES_WAITING: usize = 1;

/// How often a layer that another one fetches is looked at: the first pause, doubled up to the second.
const LOOK: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// A registry that does not tell a digest in this time counts as unreachable, if another node knows it.
const RESOLVE_TIME_MAX: Duration = Duration::from_secs(15);

/// All layers of an image together, packed.
const IMAGE_MAX: u64 = 256 << 30;

/// Where the index of the store keeps which key has signed an image.
const SIGNED_BY: &str = "dev.gantry.image.signed-by";

/// A manifest of signatures, whose configuration says nothing.
#[derive(Deserialize)]
struct SignatureManifest {
    layers: Vec<Descriptor>,
}

/// When a registry is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    /// If the image is not in the store.
    #[default]
    Missing,
    /// Always; nothing is fetched if the tag has not moved.
    Always,
    /// Never.
    Never,
}

/// How an image is pulled.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// When to ask the registry.
    pub policy: PullPolicy,
    /// The platform wanted; that of the host if not given. An image for another one is refused.
    pub platform: Option<Platform>,
    /// Registries, as in references, that are spoken to over plain HTTP. Those on loopback always are.
    pub insecure_registries: Vec<String>,
    /// For the registry; without them `auth_file` is read.
    pub credentials: Option<Credentials>,
    /// Mirrors, certificates and trust.
    pub registries: Registries,
    /// A docker `config.json` or containers `auth.json`; `default_auth_file()` gives the usual one.
    pub auth_file: Option<PathBuf>,
    /// A connection that does not bring 64 KiB in this time is given up; a minute if not given.
    pub patience: Option<Duration>,
    /// Other nodes that may have the content: asked for blobs before any registry.
    pub peers: Option<Arc<dyn Peers>>,
}

impl PullOptions {
    /// Who we are to a registry or mirror. What was given for the registry itself is for no mirror.
    pub(crate) async fn credentials_for(&self, endpoint: &Endpoint) -> Result<Option<Credentials>> {
        match (&self.credentials, &self.auth_file) {
            (Some(credentials), _) => Ok(Some(credentials.clone())),
            (None, Some(file)) => {
                let (file, name, repository) = (file.clone(), endpoint.name.clone(), endpoint.repository.clone());
                blocking(move || auth::from_file(&file, &name, &repository)).await
            }
            (None, None) => Ok(None),
        }
    }
}

/// What is to be fetched.
struct Plan {
    manifest: Vec<u8>,
    media_type: String,
    config: Vec<u8>,
    platform: Platform,
    layers: Vec<LayerSpec>,
    /// The index that it was chosen from, and its digest.
    index: Option<(Digest, Vec<u8>)>,
}

/// Who has signed an image, and by what.
struct Signer {
    key: Digest,
    signed: Signed,
}

impl Store {
    /// Get an image, from the store or from its registry. Needs a tokio runtime.
    ///
    /// # Errors
    /// `NotInRegistry`, `Unauthorized`, `WrongPlatform`, `Damaged`, `DiskFull`, `Network` and others. What was fetched and
    /// verified is kept, so that the next attempt goes on from there.
    pub async fn pull(&self, reference: &Reference, options: &PullOptions, progress: &dyn Progress) -> Result<Image> {
        let platform = options.platform.clone().unwrap_or_else(Platform::host);
        let present = self.find_meant(reference)?.filter(|image| {
            let own = image.platform();
            own.architecture.is_empty() || own.fits(&platform).is_some()
        });
        let pinned = reference.digest().is_some();
        let present = match (present, options.registries.rule(reference)) {
            (present, None) => present,
            (present, Some(rule)) => {
                check_name(reference, rule)?;
                // Signed by a key that is no longer trusted, or never: the registry is asked for its signature.
                present.filter(|image| rule.require != Require::Signature || self.is_signed(image, rule))
            }
        };
        match (present, options.policy) {
            (Some(image), PullPolicy::Missing | PullPolicy::Never) => return Ok(image),
            (Some(image), PullPolicy::Always) if pinned => return Ok(image),
            (None, PullPolicy::Never) => return Err(ImageError::NotFound(reference.familiar())),
            _ => {}
        }
        progress.event(Event::Resolving { what: reference.familiar() });
        let pull = Pull::new(self, reference, platform, options, progress).await?;
        let image = pull.run().await.map_err(|e| e.in_store(self.root()).in_pull(reference))?;
        progress.event(Event::Done { digest: image.digest });
        Ok(image)
    }

    /// Whether an image was verified with one of the keys when it came.
    fn is_signed(&self, image: &Image, rule: &Rule) -> bool {
        let entries = self.index().map(|index| index.manifests).unwrap_or_default();
        let mut keys = entries.iter().filter(|entry| entry.digest == image.digest);
        keys.any(|entry| {
            let by = entry.annotations.get(SIGNED_BY);
            by.is_some_and(|by| rule.keys.iter().any(|key| key.fingerprint.to_string() == *by))
        })
    }

    /// Fetch again the packed layers of an image that the store has lost.
    pub(crate) async fn fetch_missing(
        &self,
        image: &Image,
        specs: &[LayerSpec],
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<()> {
        let missing: Vec<LayerSpec> =
            specs.iter().filter(|spec| !self.has_blob(spec.digest, spec.size)).cloned().collect();
        let Some(first) = missing.first() else {
            return Ok(());
        };
        let reference = image
            .names
            .first()
            .ok_or_else(|| ImageError::NotFound(format!("layer {} of an image without a name", first.digest)))?;
        let pull = Pull::new(self, reference, image.platform(), options, progress).await?;
        pull.check_room(&missing)?;
        let lease = Arc::new(self.lease()?);
        self.protect(&lease, image.parts())?;
        let batch = Arc::new(Batch::new(self));
        pull.layers(&missing, &lease, &batch).await.map_err(|e| e.in_store(self.root()))
    }
}

struct Pull<'a> {
    store: &'a Store,
    /// Mirrors first, the registry itself last.
    registries: Vec<Registry>,
    reference: &'a Reference,
    platform: Platform,
    /// What the operator wants of the image.
    rule: Option<&'a Rule>,
    /// Other nodes of the cluster.
    peers: Option<FromPeers<'a>>,
    progress: &'a dyn Progress,
    /// Set when one layer has failed: the others need not go on.
    stop: watch::Sender<bool>,
}

impl<'a> Pull<'a> {
    async fn new(
        store: &'a Store,
        reference: &'a Reference,
        platform: Platform,
        options: &'a PullOptions,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let mut registries = Vec::new();
        for endpoint in options.registries.endpoints(reference, &options.insecure_registries)? {
            let own = endpoint.name == reference.registry();
            let given = options.credentials.is_some() && !own;
            let credentials = if given { None } else { options.credentials_for(&endpoint).await? };
            registries.push(Registry::new(endpoint, credentials)?.with_patience(options.patience));
        }
        let rule = options.registries.rule(reference);
        let peers = options.peers.as_deref().map(|peers| FromPeers::new(peers, reference));
        Ok(Self { store, registries, reference, platform, rule, peers, progress, stop: watch::Sender::new(false) })
    }

    async fn run(&self) -> Result<Image> {
        let wanted = match (self.reference.digest(), self.reference.tag()) {
            (Some(digest), _) => Some(digest),
            (None, Some(tag)) => self.resolve_or_known(tag).await?,
            (None, None) => None,
        };
        if let Some(image) = self.known(wanted)? {
            return Ok(image);
        }
        let plan = self.plan(wanted).await?;
        let manifest = Digest::of(&plan.manifest);
        let source = plan.index.as_ref().map_or(manifest, |(digest, _)| *digest);
        let signer = self.check_trust(&[source, manifest]).await?;
        self.check_room(&plan.layers)?;
        let lease = Arc::new(self.store.lease()?);
        let parts = plan.layers.iter().flat_map(|spec| [spec.digest, spec.diff_id]);
        let own = [source, manifest, Digest::of(&plan.config)];
        self.store.protect(&lease, parts.chain(own))?;
        let batch = Arc::new(Batch::new(self.store));
        for bytes in [&plan.config, &plan.manifest] {
            self.small_file(bytes, &lease, &batch)?;
        }
        self.layers(&plan.layers, &lease, &batch).await?;
        self.commit(plan, lease, signer).await
    }

    /// An image of this digest that has this name already.
    fn known(&self, wanted: Option<Digest>) -> Result<Option<Image>> {
        let Some(wanted) = wanted else {
            return Ok(None);
        };
        let same = |image: &Image| {
            let digest = image.digest == wanted || image.source_digests.contains(&wanted);
            digest && image.platform().fits(&self.platform).is_some()
        };
        let trusted = |image: &Image| {
            self.rule.is_none_or(|rule| rule.require != Require::Signature || self.store.is_signed(image, rule))
        };
        Ok(self.store.find(self.reference)?.filter(same).filter(trusted))
    }

    /// The digest of a tag; the one that other nodes know while the registry does not answer.
    async fn resolve_or_known(&self, tag: &str) -> Result<Option<Digest>> {
        let Some(known) = self.peers.as_ref().and_then(FromPeers::digest) else {
            return self.resolve(tag).await;
        };
        let why = match tokio::time::timeout(RESOLVE_TIME_MAX, self.resolve(tag)).await {
            Ok(Err(error)) if is_outage(&error) => error.to_string(),
            Ok(resolved) => return resolved,
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::warn!(reference = %self.reference, digest = %known, why, "taken as other nodes know it");
        Ok(Some(known))
    }

    /// The digest of a tag, if the registry tells.
    async fn resolve(&self, tag: &str) -> Result<Option<Digest>> {
        for registry in &self.registries {
            match registry.resolve(tag).await {
                Err(error) if self.goes_on_without(registry, &error) => {}
                other => return other,
            }
        }
        Err(ImageError::NotFound(self.reference.to_string()))
    }

    /// A manifest, verified if its digest is known.
    async fn manifest(&self, what: &str, asked: &str, wanted: Option<Digest>) -> Result<Fetched> {
        if let (Some(peers), Some(wanted)) = (&self.peers, wanted)
            && let Some(bytes) = peers.small(wanted, MANIFEST_MAX).await
        {
            return Ok(Fetched { content_type: None, bytes });
        }
        for registry in &self.registries {
            let fetched = registry.manifest(asked).await;
            match fetched.and_then(|fetched| verify(what, &fetched.bytes, wanted).map(|_| fetched)) {
                Err(error) if self.goes_on_without(registry, &error) => {}
                other => return other,
            }
        }
        Err(ImageError::NotFound(self.reference.to_string()))
    }

    /// A small blob, verified.
    async fn small_blob(&self, what: &str, digest: Digest, size: u64) -> Result<Vec<u8>> {
        if let Some(peers) = &self.peers
            && let Some(bytes) = peers.small(digest, size).await.filter(|bytes| bytes.len() as u64 == size)
        {
            return Ok(bytes);
        }
        for registry in &self.registries {
            let bytes = registry.small_blob(what, digest, size).await;
            match bytes.and_then(|bytes| verify(what, &bytes, Some(digest)).map(|_| bytes)) {
                Err(error) if self.goes_on_without(registry, &error) => {}
                other => return other,
            }
        }
        Err(ImageError::NotFound(self.reference.to_string()))
    }

    /// Whether another endpoint follows this one, which may do better.
    fn goes_on_without(&self, registry: &Registry, error: &ImageError) -> bool {
        let last = self.registries.last().is_some_and(|last| std::ptr::eq(last, registry));
        let goes_on = !last && may_be_elsewhere(error);
        if goes_on {
            tracing::warn!(mirror = registry.name(), %error, "going on without this mirror");
        }
        goes_on
    }

    /// Refuse what the operator does not trust. Returns the key that has signed it, if one is needed.
    ///
    /// - `digests`: of the index that the image was chosen from, and of the image.
    async fn check_trust(&self, digests: &[Digest]) -> Result<Option<Signer>> {
        let Some(rule) = self.rule else {
            return Ok(None);
        };
        check_name(self.reference, rule)?;
        if rule.require != Require::Signature {
            return Ok(None);
        }
        for digest in digests {
            match self.signer(rule, *digest, digests).await {
                Ok(None) => {}
                // What other nodes have kept is as good: the signature says it all.
                Err(error) if is_outage(&error) => match self.signer_known(rule, *digest, digests).await {
                    Some(signer) => return Ok(Some(signer)),
                    None => return Err(error),
                },
                other => return other,
            }
        }
        Err(untrusted(self.reference, "none of the keys has signed it"))
    }

    async fn signer_known(&self, rule: &Rule, digest: Digest, digests: &[Digest]) -> Option<Signer> {
        for signed in self.peers.as_ref()?.signatures(digest).await {
            if let Some(key) = rule.signer(&signed.payload, &signed.signature, digests) {
                return Some(Signer { key: key.fingerprint, signed });
            }
        }
        None
    }

    async fn signer(&self, rule: &Rule, digest: Digest, digests: &[Digest]) -> Result<Option<Signer>> {
        let what = format!("signatures of {}", self.reference.familiar());
        let fetched = match self.manifest(&what, &trust::tag(digest), None).await {
            Err(ImageError::NotInRegistry { .. }) => return Ok(None),
            other => other?,
        };
        let document: SignatureManifest = serde_json::from_slice(&fetched.bytes)
            .map_err(|error| ImageError::BadImage { what: what.clone(), why: error.to_string() })?;
        for layer in document.layers.iter().take(trust::SIGNATURES_MAX) {
            let fits = layer.media_type == trust::PAYLOAD && layer.size <= trust::PAYLOAD_MAX;
            let Some(signature) = layer.annotations.get(trust::SIGNATURE).filter(|_| fits) else {
                continue;
            };
            let payload = self.small_blob(&what, layer.digest, layer.size).await?;
            if let Some(key) = rule.signer(&payload, signature, digests) {
                let signed = Signed { signature: signature.clone(), payload };
                return Ok(Some(Signer { key: key.fingerprint, signed }));
            }
        }
        Ok(None)
    }

    async fn plan(&self, wanted: Option<Digest>) -> Result<Plan> {
        let title = self.reference.familiar();
        let asked = wanted.map(|digest| digest.to_string());
        let asked = asked.or_else(|| self.reference.tag().map(str::to_owned)).unwrap_or_default();
        let what = format!("manifest of {title}");
        let first = self.manifest(&what, &asked, wanted).await?;
        let (fetched, manifest, index) = match manifest::parse(&what, first.content_type.as_deref(), &first.bytes)? {
            Document::Manifest(manifest) => (first, *manifest, None),
            Document::Index(parts) => {
                let (fetched, manifest) = self.chosen(&title, &parts).await?;
                (fetched, manifest, Some((Digest::of(&first.bytes), first.bytes)))
            }
        };
        let what = format!("configuration of {title}");
        let descriptor = &manifest.config;
        if descriptor.size > CONFIG_MAX {
            return Err(ImageError::TooBig { what, limit: CONFIG_MAX, unit: "bytes" });
        }
        let config = self.small_blob(&what, descriptor.digest, descriptor.size).await?;
        let file = ConfigFile::parse(&title, &config)?;
        file.check_platform(&title, &self.platform)?;
        let layers = manifest.layer_specs(&format!("manifest of {title}"), &file)?;
        let media_type = manifest.media_type.or(fetched.content_type).unwrap_or_else(|| OCI_MANIFEST.to_owned());
        Ok(Plan { manifest: fetched.bytes, media_type, config, platform: file.platform(), layers, index })
    }

    async fn chosen(&self, title: &str, parts: &[manifest::Descriptor]) -> Result<(Fetched, Manifest)> {
        let what = format!("manifest of {title} for {}", self.platform);
        let descriptor = manifest::choose(title, parts, &self.platform)?;
        if descriptor.size > MANIFEST_MAX {
            return Err(ImageError::TooBig { what, limit: MANIFEST_MAX, unit: "bytes" });
        }
        let fetched = self.manifest(&what, &descriptor.digest.to_string(), Some(descriptor.digest)).await?;
        let got = fetched.bytes.len() as u64;
        if got != descriptor.size {
            return Err(ImageError::WrongSize { what, wanted: descriptor.size, got });
        }
        match manifest::parse(&what, Some(&descriptor.media_type), &fetched.bytes)? {
            Document::Manifest(manifest) => Ok((fetched, *manifest)),
            Document::Index(_) => Err(ImageError::BadImage { what, why: "it is an index inside an index".into() }),
        }
    }

    /// Refuse before anything is fetched what cannot fit: packed layers alone need this much.
    fn check_room(&self, layers: &[LayerSpec]) -> Result<()> {
        let missing = layers.iter().filter(|spec| !self.store.has_blob(spec.digest, spec.size));
        let needed = missing.fold(0u64, |sum, spec| sum.saturating_add(spec.size));
        if needed > IMAGE_MAX {
            return Err(ImageError::TooBig { what: self.reference.familiar(), limit: IMAGE_MAX, unit: "bytes packed" });
        }
        self.store.check_room(layers)
    }

    /// A verified document, to get its name with the layers.
    fn small_file(&self, bytes: &[u8], lease: &Lease, batch: &Batch) -> Result<()> {
        let digest = Digest::of(bytes);
        if !self.store.has_blob(digest, bytes.len() as u64) {
            let path = lease.path(&digest.hex());
            std::fs::write(&path, bytes).map_err(at("write", &path))?;
            batch.add(Verified::blob(path, digest), None);
        }
        Ok(())
    }

    /// Largest first: it decides when all are done. What `batch` has is committed with them.
    async fn layers(&self, layers: &[LayerSpec], lease: &Arc<Lease>, batch: &Arc<Batch>) -> Result<()> {
        let _decoders = window::keep();
        let failure = tokio::select! {
            failure = self.each_layer(layers, lease, batch) => failure,
            never = commit_when_due(batch) => match never {},
        };
        // Also after a failure: what is verified stays, so that the next attempt goes on from there.
        let batch = Arc::clone(batch);
        let committed = blocking(move || batch.commit()).await;
        failure.map_or(committed, Err)
    }

    /// The first failure, after all have ended.
    async fn each_layer(&self, layers: &[LayerSpec], lease: &Arc<Lease>, batch: &Batch) -> Option<ImageError> {
        let unique: BTreeMap<Digest, &LayerSpec> = layers.iter().map(|spec| (spec.digest, spec)).collect();
        let mut specs: Vec<LayerSpec> = unique.into_values().cloned().collect();
        specs.sort_by_key(|spec| std::cmp::Reverse(spec.size));
        let mut all = stream::iter(specs).map(|spec| self.layer(spec, lease, batch)).buffer_unordered(LAYERS_AT_ONCE);
        let mut failure = None;
        // All are waited for, so that nothing is still writing when the caller is told.
        while let Some(done) = all.next().await {
            if let Err(error) = done {
                self.stop.send_replace(true);
                failure.get_or_insert(error);
            }
        }
        failure
    }

    async fn stopped(&self) -> ImageError {
        // Fails only without a sender, which is ourselves.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
        ImageError::Stopped
    }

    async fn layer(&self, spec: LayerSpec, lease: &Arc<Lease>, batch: &Batch) -> Result<()> {
        let (digest, total) = (spec.digest, spec.size);
        if *self.stop.borrow() {
            return Err(ImageError::Stopped);
        }
        self.progress.event(Event::LayerStart { digest, total });
        let reused = match self.lock_part(&spec, batch).await? {
            None => true,
            Some(part) => self.locked_layer(&spec, part, lease, batch).await?,
        };
        self.progress.event(Event::LayerDone { digest, reused });
        Ok(())
    }

    /// Get a layer that nobody else is at. Whether it was there.
    async fn locked_layer(&self, spec: &LayerSpec, mut part: Part, lease: &Arc<Lease>, batch: &Batch) -> Result<bool> {
        match self.reuse(spec, lease).await? {
            Had::All => return part.remove().map(|()| true),
            Had::Blob(verified) => {
                batch.add(verified, Some(part));
                return Ok(true);
            }
            Had::Nothing => {}
        }
        let resumed = part.length()?;
        if resumed > spec.size {
            part.clear()?;
        }
        let mut fetched = self.fetch(spec, lease, part, &self.registries).await;
        // Nodes that gave wrong bytes are dropped, so each time there are fewer of them.
        while let (Err(ImageError::Damaged { .. } | ImageError::BadArchive { .. }), Some(peers)) =
            (&fetched, &self.peers)
            && peers.blame(spec.digest)
        {
            let Some(mut part) = self.lock_part(spec, batch).await? else {
                return Ok(true);
            };
            part.clear()?;
            fetched = self.fetch(spec, lease, part, &self.registries).await;
        }
        let fetched = match fetched {
            // What an earlier attempt left, or a mirror, may be what is damaged: begin again, once.
            Err(ImageError::Damaged { .. } | ImageError::BadArchive { .. })
                if resumed > 0 || self.registries.len() > 1 =>
            {
                let Some(mut part) = self.lock_part(spec, batch).await? else {
                    return Ok(true);
                };
                part.clear()?;
                self.fetch(spec, lease, part, &self.registries[self.registries.len() - 1..]).await?
            }
            other => other?,
        };
        batch.add(fetched.0, Some(fetched.1));
        Ok(false)
    }

    /// The right to fetch a layer; `None` when it is there. Waits while another pull or load, in this process or not, is
    /// at it, without a thread: they may be many.
    async fn lock_part(&self, spec: &LayerSpec, batch: &Batch) -> Result<Option<Part>> {
        let (mut pause, mut waits) = (LOOK.0, None);
        loop {
            if self.store.has_layer(spec.diff_id) && self.store.has_blob(spec.digest, spec.size) {
                return Ok(None);
            }
            if let Some(part) = Part::try_lock(self.store, spec.digest)? {
                return Ok(Some(part));
            }
            waits.get_or_insert_with(|| batch.waits());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                stopped = self.stopped() => return Err(stopped),
            }
            pause = LOOK.1.min(pause * 2);
        }
    }

    /// What the store has of the layer. If that is only its blob, it is unpacked again.
    async fn reuse(&self, spec: &LayerSpec, lease: &Arc<Lease>) -> Result<Had> {
        if !self.store.has_blob(spec.digest, spec.size) {
            return Ok(Had::Nothing);
        }
        if self.store.has_layer(spec.diff_id) {
            return Ok(Had::All);
        }
        let (store, lease, spec) = (self.store.clone(), Arc::clone(lease), spec.clone());
        blocking(move || {
            let path = store.blob(spec.digest);
            let mut blob = File::open(&path).map_err(at("open", &path))?;
            match layer::prepare(&store, &lease, &spec, Origin::Stored, Source::Read(&mut blob)) {
                Err(ImageError::Damaged { .. }) => store.to_trash(&path).map(|()| Had::Nothing),
                other => other.map(Had::Blob),
            }
        })
        .await
    }

    async fn fetch(
        &self,
        spec: &LayerSpec,
        lease: &Arc<Lease>,
        mut part: Part,
        registries: &[Registry],
    ) -> Result<(Verified, Part)> {
        let (digest, total) = (spec.digest, spec.size);
        let offset = part.length()?;
        let (sender, receiver) = mpsc::channel::<layer::Batch>(BATCHES_WAITING);
        let (store, lease, copy) = (self.store.clone(), Arc::clone(lease), spec.clone());
        let task = tokio::task::spawn_blocking(move || {
            let source = Source::Batches(receiver);
            layer::prepare(&store, &lease, &copy, Origin::Fetch(&mut part), source).map(|verified| (verified, part))
        });
        let arrived = AtomicU64::new(offset);
        let gathered = Gathered::default();
        let sink = |bytes: Bytes, done: u64| {
            arrived.store(done, Ordering::Relaxed);
            self.progress.event(Event::LayerProgress { digest, done, total });
            let (sender, full) = (&sender, gathered.add(bytes));
            async move {
                match full {
                    Some(batch) => sender.send(batch).await.is_ok(),
                    None => true,
                }
            }
        };
        let sent = tokio::select! {
            sent = self.bytes_of(spec, registries, &arrived, sink) => sent,
            stopped = self.stopped() => Err(stopped),
        };
        let rest = gathered.take();
        if !rest.is_empty() {
            // Nobody listens any more: then the task tells why.
            let _ = sender.send(rest).await;
        }
        drop(sender);
        if sent.is_ok() {
            self.progress.event(Event::Unpacking { digest });
        }
        let ingested = task.await.map_err(|_| ImageError::Stopped)?;
        // The end that comes early is only the echo of what the registry did.
        match (sent, ingested) {
            (Err(error), Err(ImageError::Truncated { .. }) | Ok(_)) => Err(error),
            (_, ingested) => ingested,
        }
    }

    /// The bytes of a layer, from where they stopped coming.
    async fn bytes_of<F, W>(
        &self,
        spec: &LayerSpec,
        registries: &[Registry],
        arrived: &AtomicU64,
        mut sink: F,
    ) -> Result<()>
    where
        F: FnMut(Bytes, u64) -> W,
        W: Future<Output = bool>,
    {
        if let Some(peers) = &self.peers
            && peers.layer(spec, arrived, &mut sink).await == Got::Enough
        {
            return Ok(());
        }
        for registry in registries {
            match registry.layer(spec, arrived.load(Ordering::Relaxed), &mut sink).await {
                Err(error) if self.goes_on_without(registry, &error) => {}
                other => return other,
            }
        }
        Ok(())
    }

    async fn commit(&self, plan: Plan, lease: Arc<Lease>, signer: Option<Signer>) -> Result<Image> {
        let name = match self.reference.digest() {
            Some(digest) => self.reference.with_digest(digest),
            None => self.reference.clone(),
        };
        let store = self.store.clone();
        blocking(move || {
            store.write_blob(&lease, &plan.config)?;
            let digest = store.write_blob(&lease, &plan.manifest)?;
            let source = plan.index.as_ref().map(|(digest, _)| *digest);
            if let Some((_, index)) = &plan.index {
                store.write_blob(&lease, index)?;
            }
            let kept = signer.as_ref().and_then(|signer| signer.signed.to_text());
            let signer = signer.map(|signer| (SIGNED_BY.to_owned(), signer.key.to_string()));
            let entry = Entry {
                media_type: plan.media_type,
                digest,
                size: plan.manifest.len() as u64,
                annotations: signer.into_iter().chain(kept.map(|signed| (SIGNATURE_KEPT.to_owned(), signed))).collect(),
                rest: serde_json::Map::from_iter([("platform".to_owned(), serde_json::json!(plan.platform))]),
            };
            store.commit(&lease, &entry, &[name], source)
        })
        .await
    }
}

/// The registry does not answer as one: it may be away, and what it would say is not known.
fn is_outage(error: &ImageError) -> bool {
    matches!(
        error,
        ImageError::Network { .. }
            | ImageError::NotARegistry { .. }
            | ImageError::Registry { status: 429 | 500.., .. }
            | ImageError::Truncated { .. }
    )
}

/// Another endpoint may do better.
fn may_be_elsewhere(error: &ImageError) -> bool {
    use ImageError as E;
    matches!(
        error,
        E::NotInRegistry { .. }
            | E::Unauthorized { .. }
            | E::Registry { .. }
            | E::Network { .. }
            | E::NotARegistry { .. }
            | E::TooSlow { .. }
            | E::Truncated { .. }
            | E::Damaged { .. }
            | E::WrongSize { .. }
            | E::TooBig { .. }
    )
}

fn untrusted(reference: &Reference, why: &str) -> ImageError {
    ImageError::Untrusted { reference: reference.familiar(), why: why.to_owned() }
}

/// What the reference alone tells.
fn check_name(reference: &Reference, rule: &Rule) -> Result<()> {
    match rule.require {
        Require::Refuse => Err(untrusted(reference, "images of this place are not to be used")),
        Require::Digest if reference.digest().is_none() => {
            Err(untrusted(reference, "images of this place must be named with their digest"))
        }
        _ => Ok(()),
    }
}

fn verify(what: &str, bytes: &[u8], wanted: Option<Digest>) -> Result<Digest> {
    let got = Digest::of(bytes);
    match wanted {
        Some(wanted) if wanted != got => Err(ImageError::Damaged { what: what.to_owned(), wanted, got }),
        _ => Ok(got),
    }
}

/// Run what waits for disks or locks beside the runtime.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ImageError::Stopped)?
}

/// What the store has of a layer.
enum Had {
    Nothing,
    /// The blob, which has been unpacked.
    Blob(Verified),
    All,
}

/// Commits what is complete while more is coming.
async fn commit_when_due(batch: &Arc<Batch>) -> Infallible {
    loop {
        batch.due().await;
        let batch = Arc::clone(batch);
        // A panic there is one of the runtime's end.
        let _ = tokio::task::spawn_blocking(move || batch.commit_aside()).await;
    }
}

/// Pieces that have arrived and are not handed on yet.
#[derive(Default)]
struct Gathered(Mutex<(layer::Batch, usize)>);

impl Gathered {
    /// All of them, once they are worth waking a thread.
    fn add(&self, bytes: Bytes) -> Option<layer::Batch> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.1 += bytes.len();
        state.0.push(bytes);
        (state.1 >= BATCH).then(|| std::mem::take(&mut *state).0)
    }

    fn take(&self) -> layer::Batch {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).0
    }
}
