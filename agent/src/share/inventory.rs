//! Which images the store holds, kept up to date by looking at its index, and told by difference.

use crate::error::chain;
use gantry_api::images::{HELD_MAX, HeldImage, ImageNews, NAME_BYTES_MAX};
use gantry_images::{HeldName, Store};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::warn;

/// Between two looks at whether the index has changed: other programs load and remove images too.
const LOOK: Duration = Duration::from_millis(500);

/// By name.
pub(crate) type Inventory = BTreeMap<String, HeldImage>;

/// Looks until nobody listens.
pub(crate) async fn keep(store: Store, inventory: watch::Sender<Arc<Inventory>>) {
    let mut seen = None;
    while !inventory.is_closed() {
        let meta = std::fs::symlink_metadata(store.root().join("index.json"));
        let state = meta.ok().map(|meta| (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()));
        if state.is_some() && state != seen {
            let of = store.clone();
            match spawn_blocking(move || of.held()).await {
                Ok(Ok(held)) => {
                    seen = state;
                    let now = Arc::new(list(held));
                    inventory.send_if_modified(|told| {
                        let changed = **told != *now;
                        *told = now;
                        changed
                    });
                }
                Ok(Err(error)) => warn!("cannot tell which images are here: {}", chain(&error)),
                Err(error) => warn!("cannot tell which images are here: {error}"),
            }
        }
        sleep(LOOK).await;
    }
}

/// As the scheduler is told; of too many the ones that came last.
fn list(held: Vec<HeldName>) -> Inventory {
    let mut images: Vec<HeldImage> = held
        .into_iter()
        .map(|held| HeldImage {
            name: held.name.to_string(),
            digest: held.digest.to_string(),
            manifest: held.manifest.to_string(),
            since_ms: held.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64,
        })
        .filter(|image| image.name.len() <= NAME_BYTES_MAX)
        .collect();
    if images.len() > HELD_MAX {
        warn!("{} image names are here, {HELD_MAX} are offered to other nodes", images.len());
        images.sort_by_key(|image| std::cmp::Reverse(image.since_ms));
        images.truncate(HELD_MAX);
    }
    images.into_iter().map(|image| (image.name.clone(), image)).collect()
}

/// What is new since `told`, which is nothing at the start of a stream; `None` when nothing is.
pub(crate) fn difference(told: Option<&Inventory>, now: &Inventory) -> Option<ImageNews> {
    let Some(told) = told else {
        return Some(ImageNews { whole: true, held: now.values().cloned().collect(), gone: Vec::new() });
    };
    let held: Vec<HeldImage> = now.values().filter(|image| told.get(&image.name) != Some(image)).cloned().collect();
    let gone: Vec<String> = told.keys().filter(|name| !now.contains_key(*name)).cloned().collect();
    (!held.is_empty() || !gone.is_empty()).then_some(ImageNews { whole: false, held, gone })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(names: &[(&str, &str)]) -> Inventory {
        let image = |(name, digest): &(&str, &str)| HeldImage {
            name: (*name).to_owned(),
            digest: (*digest).to_owned(),
            manifest: (*digest).to_owned(),
            since_ms: 1,
        };
        names.iter().map(|one| (one.0.to_owned(), image(one))).collect()
    }

    #[test]
    fn what_is_told_is_what_changed() {
        let words = |told: Option<&Inventory>, now: &Inventory| {
            difference(told, now).map_or_else(String::new, |news| {
                let held = news.held.iter().map(|image| format!("+{}={}", image.name, image.digest));
                let gone = news.gone.iter().map(|name| format!("-{name}"));
                let whole = news.whole.then(|| "all".to_owned()).into_iter();
                whole.chain(held).chain(gone).collect::<Vec<_>>().join(" ")
            })
        };
        let (none, one, other) = (inventory(&[]), inventory(&[("a", "1")]), inventory(&[("a", "2"), ("b", "1")]));
        for (why, told, now, expected) in [
            ("a stream begins", None, &one, "all +a=1"),
            ("a stream begins, nothing is here", None, &none, "all"),
            ("nothing new", Some(&one), &one, ""),
            ("one moved, one came", Some(&one), &other, "+a=2 +b=1"),
            ("one went", Some(&other), &one, "+a=1 -b"),
            ("all went", Some(&other), &none, "-a -b"),
        ] {
            assert_eq!(words(told, now), expected, "{why}");
        }
    }
}
