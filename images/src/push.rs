//! From the store to a registry, blob by blob, unchanged.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};

use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::image::LayerInfo;
use crate::manifest::MANIFEST_MAX;
use crate::progress::{Event, Progress};
use crate::pull::PullOptions;
use crate::reference::Reference;
use crate::registry::Registry;
use crate::store::Store;

/// Blobs sent at once.
const AT_ONCE: usize = 3;

impl Store {
    /// Send an image to the registry of `target`. What the registry has already, also in another repository that the
    /// image has a name in, is not sent again. Returns the digest of the manifest. Needs a tokio runtime.
    ///
    /// - `name`: the image, as for `image`.
    /// - `options`: credentials and insecure registries; the rest is not used.
    ///
    /// # Errors
    /// `NotFound`, `Unauthorized`, `Registry`, `Network` and others.
    pub async fn push(
        &self,
        name: &str,
        target: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Digest> {
        let image = self.image(name)?.ok_or_else(|| ImageError::NotFound(name.to_owned()))?;
        if let Some(wanted) = target.digest().filter(|wanted| *wanted != image.digest) {
            return Err(ImageError::Damaged { what: image.display_name(), wanted, got: image.digest });
        }
        let lease = self.lease()?;
        self.protect(&lease, image.parts())?;
        progress.event(Event::Resolving { what: target.familiar() });
        // Mirrors are for reading.
        let endpoint = options.registries.endpoints(target, &options.insecure_registries)?.pop();
        let endpoint = endpoint.ok_or_else(|| ImageError::NotFound(target.to_string()))?;
        let credentials = options.credentials_for(&endpoint).await?;
        let registry = Registry::new(endpoint, credentials)?;
        let from = image
            .names
            .iter()
            .find(|other| other.registry() == target.registry() && other.repository() != target.repository())
            .map(Reference::repository);
        let manifest = self.read_blob("manifest", image.digest, MANIFEST_MAX)?;
        let config = std::fs::metadata(self.blob(image.id)).map(|meta| meta.len()).unwrap_or(0);
        let mut blobs: BTreeMap<Digest, u64> = image.layers.iter().map(|l: &LayerInfo| (l.digest, l.size)).collect();
        blobs.insert(image.id, config);
        let mut blobs: Vec<(Digest, u64)> = blobs.into_iter().collect();
        blobs.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
        let one = |(digest, total): (Digest, u64)| {
            let registry = &registry;
            async move {
                progress.event(Event::LayerStart { digest, total });
                let told = |done| progress.event(Event::LayerProgress { digest, done, total });
                let sent = registry.push_blob(digest, total, &self.blob(digest), from, &told).await?;
                progress.event(Event::LayerDone { digest, reused: !sent });
                Ok(())
            }
        };
        let mut all = stream::iter(blobs).map(one).buffer_unordered(AT_ONCE);
        while let Some(done) = all.next().await {
            done?;
        }
        drop(all);
        let (media_type, _) = self.manifest_type(image.digest)?;
        let by = target.tag().map_or_else(|| image.digest.to_string(), str::to_owned);
        registry.push_manifest(&by, &media_type, manifest).await?;
        progress.event(Event::Done { digest: image.digest });
        Ok(image.digest)
    }
}
