//! What takes how much room, and giving it back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::copies;
use crate::digest::Digest;
use crate::error::Result;
use crate::image::Image;
use crate::store::{Removed, Store};

/// Room that one kind of content takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// How many there are.
    pub count: u64,
    /// How many of them are used by a container.
    pub active: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes that `prune` with `all` would free.
    pub reclaimable_bytes: u64,
}

/// What takes how much room in a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Images: their layers, packed and unpacked. What several images share counts once.
    pub images: Space,
    /// What containers have written into their root file systems.
    pub containers: Space,
    /// Unfinished downloads and what waits to be deleted.
    pub unfinished_bytes: u64,
}

/// What `prune` removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prune {
    /// Images without a name that no container uses.
    Nameless,
    /// All images that no container uses.
    Unused,
}

impl Store {
    /// How much room everything takes.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn usage(&self) -> Result<Usage> {
        let images = self.images()?;
        let used = self.used()?;
        let mut content: BTreeMap<Digest, u64> = BTreeMap::new();
        for image in &images {
            for digest in image.parts() {
                content.entry(digest).or_insert(0);
            }
        }
        for (digest, bytes) in &mut content {
            let unpacked = self.layer_meta(*digest).map_or(0, |meta| meta.size);
            *bytes = disk_bytes(&self.blob(*digest))? + unpacked;
        }
        let kept: BTreeSet<Digest> =
            images.iter().filter(|image| used.contains(&image.digest)).flat_map(Image::parts).collect();
        let sum = |keep: &dyn Fn(&Digest) -> bool| -> u64 {
            content.iter().filter(|(digest, _)| keep(digest)).map(|(_, bytes)| bytes).sum()
        };
        let mut containers = Space::default();
        for snapshot in self.snapshots()? {
            containers.count += 1;
            containers.active += 1;
            containers.bytes += self.snapshot_usage(&snapshot.id)?.bytes;
        }
        Ok(Usage {
            images: Space {
                count: images.len() as u64,
                active: images.iter().filter(|image| used.contains(&image.digest)).count() as u64,
                bytes: sum(&|_| true),
                reclaimable_bytes: sum(&|digest| !kept.contains(digest)),
            },
            containers,
            unfinished_bytes: disk_bytes(&self.ingest())? + disk_bytes(&self.root().join("trash"))?,
        })
    }

    /// Manifests of the images that containers use.
    fn used(&self) -> Result<BTreeSet<Digest>> {
        Ok(self.snapshots()?.into_iter().map(|snapshot| snapshot.image).collect())
    }

    /// Remove images that no container uses, and all content that nothing needs.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn prune(&self, what: Prune) -> Result<Removed> {
        let lock = self.lock()?;
        let used = self.used()?;
        let mut index = self.index()?;
        let named: BTreeSet<Digest> =
            index.manifests.iter().filter(|entry| entry.reference().is_some()).map(|entry| entry.digest).collect();
        let goes = |digest: &Digest| !used.contains(digest) && (what == Prune::Unused || !named.contains(digest));
        let untagged = index.manifests.iter().filter(|entry| goes(&entry.digest)).filter_map(|entry| entry.reference());
        let untagged = untagged.collect();
        let before = index.manifests.len();
        index.manifests.retain(|entry| !goes(&entry.digest));
        if index.manifests.len() != before {
            index.write(self.root())?;
        }
        let mut removed = self.collect_locked()?;
        drop(lock);
        self.empty_trash();
        removed.untagged = untagged;
        Ok(removed)
    }
}

/// Room that a file, or a tree, takes. What vanishes while it is counted counts as nothing.
fn disk_bytes(path: &Path) -> Result<u64> {
    copies::measure(path).map(|(bytes, _)| bytes)
}
