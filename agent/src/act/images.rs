//! Images on the node: a registry is asked only when it must be, and once for all replicas that wait.

use crate::error::chain;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use gantry_api::spec::{HealthCheck, PullPolicy};
use gantry_api::units::{Bytes, Millis};
use gantry_images::{
    Digest, Event, Healthcheck, Image, ImageError, Peers, Progress, PullOptions, Reference, Registries, Store,
    Watermarks, default_auth_file,
};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::spawn_blocking;
use tracing::warn;

type Pulled = Shared<BoxFuture<'static, Result<Arc<Image>, String>>>;

/// A pull under way.
struct Flight {
    pulled: Pulled,
    meter: Arc<Meter>,
}

/// How far a pull is: bytes that arrived and bytes there are, by layer.
#[derive(Default)]
struct Meter {
    layers: Mutex<HashMap<Digest, (u64, u64)>>,
}

impl Progress for Meter {
    fn event(&self, event: Event) {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::LayerStart { digest, total } => drop(layers.insert(digest, (0, total))),
            Event::LayerProgress { digest, done, total } => drop(layers.insert(digest, (done, total))),
            _ => {}
        }
    }
}

impl Meter {
    fn words(&self, name: &str) -> String {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let (done, total) = layers.values().fold((0, 0), |(a, b), (done, total)| (a + done, b + total));
        match total {
            0 => format!("pulls image {name}"),
            _ => format!("pulls image {name}: {} of {}", Bytes(done), Bytes(total)),
        }
    }
}

/// The store, and the pulls under way.
pub(crate) struct Images {
    store: Store,
    insecure_registries: Vec<String>,
    watermarks: Watermarks,
    /// Other nodes, asked before registries.
    peers: Option<Arc<dyn Peers>>,
    flights: Mutex<HashMap<String, Flight>>,
    /// Names that were neither here nor could be pulled, as long as replicas wait for them.
    missing: Mutex<HashSet<String>>,
}

impl Images {
    pub(crate) fn new(
        store: Store,
        insecure_registries: Vec<String>,
        watermarks: Watermarks,
        peers: Option<Arc<dyn Peers>>,
    ) -> Self {
        Self { store, insecure_registries, watermarks, peers, flights: Mutex::default(), missing: Mutex::default() }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The image for a replica. `pinned` is the one it was made from before: it is not asked for again.
    pub(crate) async fn ensure(
        self: &Arc<Self>,
        name: &str,
        policy: PullPolicy,
        pinned: Option<&str>,
    ) -> Result<Arc<Image>, String> {
        let found = self.find(name, policy, pinned).await;
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        match &found {
            Err(_) if policy != PullPolicy::Always => drop(missing.insert(name.to_owned())),
            _ => drop(missing.remove(name)),
        }
        drop(missing);
        found
    }

    /// Images that were missing and have been loaded since. Others than `wanted` are not missed any more.
    pub(crate) async fn arrived(&self, wanted: &HashSet<String>) -> Vec<String> {
        let missing: Vec<String> = {
            let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
            missing.retain(|name| wanted.contains(name));
            missing.iter().cloned().collect()
        };
        let mut arrived = Vec::new();
        for name in missing {
            // A store that cannot be read is told of by the next try.
            if matches!(self.present(&name).await, Ok(Some(_))) {
                arrived.push(name);
            }
        }
        arrived
    }

    async fn find(
        self: &Arc<Self>,
        name: &str,
        policy: PullPolicy,
        pinned: Option<&str>,
    ) -> Result<Arc<Image>, String> {
        if let Some(digest) = pinned
            && let Some(image) = self.present(digest).await?
        {
            return Ok(image);
        }
        if policy != PullPolicy::Always
            && let Some(image) = self.present(name).await?
        {
            return Ok(image);
        }
        if policy == PullPolicy::Never {
            return Err(format!(
                "image {name} is not on this node, and its pull policy is `never`; load it here first"
            ));
        }
        let flight = {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            flights.entry(name.to_owned()).or_insert_with(|| self.take_off(name, policy)).pulled.clone()
        };
        flight.await
    }

    /// A pull that goes on whoever stops waiting for it.
    fn take_off(self: &Arc<Self>, name: &str, policy: PullPolicy) -> Flight {
        let (images, name) = (Arc::clone(self), name.to_owned());
        let meter = Arc::new(Meter::default());
        let progress = Arc::clone(&meter);
        let pull = tokio::spawn(async move {
            let result = images.pull(&name, policy, &progress).await;
            images.relieve().await;
            images.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
            result
        });
        let pulled = async move { pull.await.unwrap_or_else(|error| Err(format!("the pull failed: {error}"))) };
        Flight { pulled: pulled.boxed().shared(), meter }
    }

    /// How far the pull of an image is, in words; `None` when there is none under way.
    pub(crate) fn pulling(&self, name: &str) -> Option<String> {
        let flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.get(name).map(|flight| flight.meter.words(name))
    }

    async fn pull(&self, name: &str, policy: PullPolicy, progress: &Meter) -> Result<Arc<Image>, String> {
        let reference: Reference = name.parse().map_err(|error: ImageError| words(&error))?;
        let options = PullOptions {
            policy: match policy {
                PullPolicy::Always => gantry_images::PullPolicy::Always,
                PullPolicy::Missing => gantry_images::PullPolicy::Missing,
                PullPolicy::Never => gantry_images::PullPolicy::Never,
            },
            insecure_registries: self.insecure_registries.clone(),
            auth_file: default_auth_file(),
            peers: self.peers.clone(),
            // Read each time: the operator may have changed them.
            registries: Registries::of_host().map_err(|error| words(&error))?,
            ..PullOptions::default()
        };
        let image = self.store.pull(&reference, &options, progress).await;
        image.map(Arc::new).map_err(|error| {
            let what = match policy {
                PullPolicy::Always => "cannot be checked in its registry",
                PullPolicy::Missing | PullPolicy::Never => "is not on this node and cannot be pulled",
            };
            format!("image {name} {what}: {}", words(&error))
        })
    }

    /// Remove images that no replica uses if the disk is too full. What fails is tried again soon.
    pub(crate) async fn relieve(&self) {
        let (store, marks) = (self.store.clone(), self.watermarks);
        match spawn_blocking(move || store.relieve(marks)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => warn!("cannot remove unused images: {}", chain(&error)),
            Err(error) => warn!("cannot remove unused images: {error}"),
        }
    }

    async fn present(&self, name: &str) -> Result<Option<Arc<Image>>, String> {
        let (store, name) = (self.store.clone(), name.to_owned());
        let found = spawn_blocking(move || store.image(&name)).await.map_err(|error| error.to_string())?;
        found.map(|image| image.map(Arc::new)).map_err(|error| words(&error))
    }
}

/// The health check that an image brings along, with docker's defaults; `None` if it has none or switches it off.
pub(crate) fn check(health: &Healthcheck) -> Option<HealthCheck> {
    let command = match health.test.split_first() {
        Some((kind, words)) if kind == "CMD" && !words.is_empty() => words.to_vec(),
        Some((kind, [line])) if kind == "CMD-SHELL" => vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()],
        _ => return None,
    };
    let millis = |ns: i64, default: u64| match u64::try_from(ns).unwrap_or(0) / 1_000_000 {
        0 => Millis(default),
        ms => Millis(ms),
    };
    let interval_ms = millis(health.interval_ns, 30_000);
    Some(HealthCheck {
        command,
        interval_ms,
        timeout_ms: millis(health.timeout_ns, 30_000),
        retries: u32::try_from(health.retries).ok().filter(|retries| *retries > 0).unwrap_or(3),
        start_period_ms: millis(health.start_period_ns, 0),
        // As for a manifest's: docker's 5 s would hide a service for most of its start.
        start_interval_ms: millis(health.start_interval_ns, interval_ms.0.min(500)),
    })
}

/// An error of the store with its advice, for a replica's status.
pub(crate) fn words(error: &ImageError) -> String {
    let text = chain(error);
    match error.hint() {
        Some(hint) => format!("{text}; {hint}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_check_is_dockers() {
        let check = |test: &[&str], seconds: i64| {
            let test = test.iter().map(|word| (*word).to_owned()).collect();
            let health = Healthcheck { test, interval_ns: seconds * 1_000_000_000, ..Healthcheck::default() };
            check(&health).map_or_else(String::new, |check| {
                format!("{} {} {}", check.command.join(" "), check.interval_ms.0, check.retries)
            })
        };
        for (test, seconds, expected) in [
            (&["CMD", "curl", "-f", "http://localhost"][..], 5, "curl -f http://localhost 5000 3"),
            (&["CMD-SHELL", "test -e /ready"], 0, "/bin/sh -c test -e /ready 30000 3"),
            (&["NONE"], 5, ""),
            (&["CMD"], 5, ""),
            (&[], 5, ""),
        ] {
            assert_eq!(check(test, seconds), expected);
        }
    }

    #[test]
    fn progress_is_told_over_all_layers() {
        let meter = Meter::default();
        assert_eq!(meter.words("web:1"), "pulls image web:1");
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        meter.event(Event::LayerStart { digest: a, total: 3 << 20 });
        meter.event(Event::LayerProgress { digest: b, done: 1 << 20, total: 1 << 20 });
        meter.event(Event::LayerProgress { digest: a, done: 1 << 20, total: 3 << 20 });
        assert_eq!(meter.words("web:1"), "pulls image web:1: 2MiB of 4MiB");
    }

    #[tokio::test]
    async fn an_absent_image_is_not_asked_for_where_that_is_forbidden() {
        let dir = tempfile::tempdir().unwrap();
        let images = Arc::new(Images::new(Store::open(dir.path()).unwrap(), Vec::new(), Watermarks::default(), None));
        let error = images.ensure("web:1", PullPolicy::Never, None).await.unwrap_err();
        assert!(error.starts_with("image web:1 is not on this node"), "{error}");
    }

    #[tokio::test]
    async fn an_image_that_was_missing_arrives_once_it_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let images = Arc::new(Images::new(
            Store::open(dir.path().join("store")).unwrap(),
            Vec::new(),
            Watermarks::default(),
            None,
        ));
        let wanted = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<HashSet<_>>();
        assert!(images.ensure("web:1", PullPolicy::Never, None).await.is_err());
        assert!(images.arrived(&wanted(&["web:1"])).await.is_empty());
        // An image without layers is enough of one.
        let layout = dir.path().join("layout");
        let blob = |text: &str| {
            let digest = Digest::of(text.as_bytes());
            let path = layout.join("blobs/sha256").join(digest.to_string().trim_start_matches("sha256:"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
            (digest, text.len())
        };
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let (config, size) = blob(&format!(
            r#"{{"os":"linux","architecture":"{arch}","config":{{}},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#
        ));
        let oci = "application/vnd.oci.image";
        let (manifest, long) = blob(&format!(
            r#"{{"schemaVersion":2,"mediaType":"{oci}.manifest.v1+json","config":{{"mediaType":"{oci}.config.v1+json","digest":"{config}","size":{size}}},"layers":[]}}"#
        ));
        std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{oci}.manifest.v1+json","digest":"{manifest}","size":{long},"annotations":{{"org.opencontainers.image.ref.name":"web:1"}}}}]}}"#
        );
        std::fs::write(layout.join("index.json"), index).unwrap();
        let (store, source) = (images.store().clone(), gantry_images::LoadSource::Path(layout.clone()));
        spawn_blocking(move || store.load(source, &Meter::default()).map(drop)).await.unwrap().unwrap();
        assert_eq!(images.arrived(&wanted(&["web:1"])).await, ["web:1"]);
        assert!(images.arrived(&wanted(&[])).await.is_empty());
        assert!(images.arrived(&wanted(&["web:1"])).await.is_empty(), "nobody misses it any more");
    }

    #[tokio::test]
    async fn replicas_that_wait_for_one_image_share_one_pull_and_its_failure() {
        // A registry on loopback that takes connections and hangs up on them.
        let registry = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let name = format!("{}/web:1", registry.local_addr().unwrap());
        let asked = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            loop {
                drop(registry.accept().await);
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let images = Arc::new(Images::new(Store::open(dir.path()).unwrap(), Vec::new(), Watermarks::default(), None));
        let one = images.ensure(&name, PullPolicy::Missing, None);
        let other = images.ensure(&name, PullPolicy::Missing, None);
        let (one, other) = tokio::join!(one, other);
        let error = one.unwrap_err();
        assert_eq!(error, other.unwrap_err());
        assert!(error.contains("is not on this node and cannot be pulled"), "{error}");
        assert!(images.pulling(&name).is_none(), "the pull is over");
        assert!(asked.load(std::sync::atomic::Ordering::Relaxed) > 0);
    }
}
