//! Images on the node: a registry is asked only when it must be, and once for all replicas that wait.

use crate::error::chain;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use gantry_api::spec::PullPolicy;
use gantry_images::{Image, ImageError, NoProgress, PullOptions, Reference, Store, default_auth_file};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::spawn_blocking;

type Flight = Shared<BoxFuture<'static, Result<Arc<Image>, String>>>;

/// The store, and the pulls under way.
pub(crate) struct Images {
    store: Store,
    insecure_registries: Vec<String>,
    flights: Mutex<HashMap<String, Flight>>,
}

impl Images {
    pub(crate) fn new(store: Store, insecure_registries: Vec<String>) -> Self {
        Self { store, insecure_registries, flights: Mutex::new(HashMap::new()) }
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
            flights.entry(name.to_owned()).or_insert_with(|| self.take_off(name, policy)).clone()
        };
        flight.await
    }

    /// A pull that goes on whoever stops waiting for it.
    fn take_off(self: &Arc<Self>, name: &str, policy: PullPolicy) -> Flight {
        let (images, name) = (Arc::clone(self), name.to_owned());
        let runtime = tokio::runtime::Handle::current();
        // On a thread of its own: unpacking is long work, and its future is not one that threads may pass on.
        let pull = spawn_blocking(move || {
            let result = runtime.block_on(images.pull(&name, policy));
            images.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
            result
        });
        async move { pull.await.unwrap_or_else(|error| Err(format!("the pull failed: {error}"))) }.boxed().shared()
    }

    async fn pull(&self, name: &str, policy: PullPolicy) -> Result<Arc<Image>, String> {
        let reference: Reference = name.parse().map_err(|error: ImageError| words(&error))?;
        let options = PullOptions {
            policy: match policy {
                PullPolicy::Always => gantry_images::PullPolicy::Always,
                PullPolicy::Missing => gantry_images::PullPolicy::Missing,
                PullPolicy::Never => gantry_images::PullPolicy::Never,
            },
            insecure_registries: self.insecure_registries.clone(),
            auth_file: default_auth_file(),
            ..PullOptions::default()
        };
        let image = self.store.pull(&reference, &options, &NoProgress).await;
        image.map(Arc::new).map_err(|error| {
            let what = match policy {
                PullPolicy::Always => "cannot be checked in its registry",
                PullPolicy::Missing | PullPolicy::Never => "is not on this node and cannot be pulled",
            };
            format!("image {name} {what}: {}", words(&error))
        })
    }

    async fn present(&self, name: &str) -> Result<Option<Arc<Image>>, String> {
        let (store, name) = (self.store.clone(), name.to_owned());
        let found = spawn_blocking(move || store.image(&name)).await.map_err(|error| error.to_string())?;
        found.map(|image| image.map(Arc::new)).map_err(|error| words(&error))
    }
}

/// An error of the store with its advice, for a replica's status.
pub(crate) fn words(error: &ImageError) -> String {
    let text = chain(error);
    match error.hint() {
        Some(hint) => format!("{text}; {hint}"),
        None => text,
    }
}
