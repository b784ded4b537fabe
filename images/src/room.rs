//! Room on the disk: whether an image fits before it is fetched, and giving room back when the disk fills up.
//!
//! A node pulls images for years, and nobody removes them. Above a high mark images that no container uses go, those
//! that were used longest ago first, until the disk is below a low mark; two marks, so that not every pull removes one.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, StatVfs, Timespec, Timestamps, UTIME_NOW};

use crate::digest::Digest;
use crate::error::{ImageError, Result, at};
use crate::lease;
use crate::manifest::LayerSpec;
use crate::store::{Removed, Store};

/// An image that was pulled or used so recently is about to be used: a replica is made a moment after its pull.
const FRESH: Duration = Duration::from_secs(300);

/// Every layer needs its blob, its directory, its tree and two files beside it; the image a few more.
const INODES_OF_LAYER: u64 = 6;
const INODES_OF_IMAGE: u64 = 16;

/// When images are removed to make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// Percent of the disk (or of its inodes) in use from which on images go.
    pub high_percent: u8,
    /// Until no more than this is in use.
    pub low_percent: u8,
}

impl Default for Watermarks {
    /// As kubelet has had them for years on nodes of all sizes, with a little more room below.
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 75 }
    }
}

impl std::str::FromStr for Watermarks {
    type Err = ImageError;

    /// `HIGH:LOW`, in percent.
    fn from_str(text: &str) -> Result<Self> {
        let percent = |part: &str| part.parse::<u8>().ok().filter(|percent| (1..=100).contains(percent));
        let parts = text.split_once(':').and_then(|(high, low)| Some((percent(high)?, percent(low)?)));
        match parts {
            Some((high_percent, low_percent)) if low_percent < high_percent => Ok(Self { high_percent, low_percent }),
            _ => {
                let why = "write HIGH:LOW in percent of the disk, such as 85:75, the first one larger".to_owned();
                Err(ImageError::BadOption { field: "watermarks", value: text.to_owned(), why })
            }
        }
    }
}

/// How full a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fill {
    used_bytes: u64,
    bytes: u64,
    used_inodes: u64,
    /// 0 if the file system makes as many as it needs.
    inodes: u64,
}

impl Fill {
    /// As `df` counts: what only root may still use counts neither way.
    fn of(stat: &StatVfs) -> Self {
        let used = stat.f_blocks.saturating_sub(stat.f_bfree);
        Self {
            used_bytes: used.saturating_mul(stat.f_frsize),
            bytes: used.saturating_add(stat.f_bavail).saturating_mul(stat.f_frsize),
            used_inodes: stat.f_files.saturating_sub(stat.f_ffree),
            inodes: stat.f_files,
        }
    }

    /// Without so many bytes.
    fn less(self, bytes: u64) -> Self {
        Self { used_bytes: self.used_bytes.saturating_sub(bytes), ..self }
    }

    /// The fuller of bytes and inodes.
    fn percent(self) -> u64 {
        let percent = |used: u64, all: u64| used.saturating_mul(100).checked_div(all).unwrap_or(0);
        percent(self.used_bytes, self.bytes).max(percent(self.used_inodes, self.inodes))
    }
}

impl Store {
    fn room(&self) -> Result<StatVfs> {
        rustix::fs::statvfs(self.root()).map_err(at("look at", self.root()))
    }

    /// Refuse before anything is fetched what cannot fit: packed and unpacked, layers take at least twice their packed
    /// size, and some inodes.
    pub(crate) fn check_room(&self, layers: &[LayerSpec]) -> Result<()> {
        let unique: BTreeSet<(Digest, u64, Digest)> =
            layers.iter().map(|spec| (spec.digest, spec.size, spec.diff_id)).collect();
        let (mut needed, mut inodes) = (0_u64, 0_u64);
        for (digest, size, diff_id) in unique {
            let (packed, unpacked) = (self.has_blob(digest, size), self.has_layer(diff_id));
            let part = self.ingest().join(format!("{}.part", digest.hex()));
            let begun = part.symlink_metadata().map_or(0, |meta| meta.blocks() * 512).min(size);
            needed = needed.saturating_add(if packed { 0 } else { size - begun });
            needed = needed.saturating_add(if unpacked { 0 } else { size });
            inodes += if packed && unpacked { 0 } else { INODES_OF_LAYER };
        }
        if inodes == 0 {
            return Ok(());
        }
        let room = self.room()?;
        let dir = self.root().to_path_buf();
        // Data that shrinks a little when it is packed by no more than its headers.
        if needed - needed / 32 > room.f_bavail.saturating_mul(room.f_frsize) {
            return Err(ImageError::DiskFull { dir, needed: Some(needed) });
        }
        if room.f_files > 0 && inodes + INODES_OF_IMAGE > room.f_favail {
            return Err(ImageError::DiskFull { dir, needed: None });
        }
        Ok(())
    }

    /// Remove images that no container uses if the disk is fuller than the high mark, those used longest ago first,
    /// until it is at the low mark. Images that were pulled or used in the last minutes stay.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn relieve(&self, marks: Watermarks) -> Result<Removed> {
        self.relieve_as_of(marks, SystemTime::now())
    }

    /// As `relieve`, at another time.
    #[doc(hidden)]
    pub fn relieve_as_of(&self, marks: Watermarks, now: SystemTime) -> Result<Removed> {
        let before = Fill::of(&self.room()?);
        if before.percent() < u64::from(marks.high_percent) {
            return Ok(Removed::default());
        }
        let mut removed = self.collect()?;
        for digest in self.unused_since(now - FRESH)? {
            // What is deleted is free a little later on some file systems: what was counted is believed too.
            let now_used = Fill::of(&self.room()?).percent().min(before.less(removed.freed_bytes).percent());
            if now_used <= u64::from(marks.low_percent) {
                break;
            }
            let one = self.remove_unused(digest)?;
            removed.untagged.extend(one.untagged);
            removed.deleted.extend(one.deleted);
            removed.freed_bytes += one.freed_bytes;
        }
        if !removed.deleted.is_empty() {
            let (images, bytes) = (removed.untagged.len(), removed.freed_bytes);
            tracing::info!(images, bytes, "removed images to make room");
        }
        Ok(removed)
    }

    /// Images that no container and no work under way needs, the longest unused first.
    fn unused_since(&self, limit: SystemTime) -> Result<Vec<Digest>> {
        let images: BTreeSet<Digest> = self.index()?.manifests.iter().map(|entry| entry.digest).collect();
        let mut unused: Vec<(SystemTime, Digest)> = images
            .into_iter()
            .map(|digest| (self.last_use(digest), digest))
            .filter(|(when, _)| *when < limit)
            .collect();
        unused.sort();
        Ok(unused.into_iter().map(|(_, digest)| digest).collect())
    }

    /// Take an image with all its names, unless something needs it by now.
    fn remove_unused(&self, digest: Digest) -> Result<Removed> {
        let lock = self.lock()?;
        let (leased, _) = lease::survey(&self.ingest())?;
        if leased.contains(&digest) || self.snapshots()?.iter().any(|snapshot| snapshot.image == digest) {
            return Ok(Removed::default());
        }
        let mut index = self.index()?;
        let untagged = index.manifests.iter().filter(|entry| entry.digest == digest);
        let untagged = untagged.filter_map(|entry| entry.reference()).collect();
        index.manifests.retain(|entry| entry.digest != digest);
        index.write(self.root())?;
        let mut removed = self.collect_locked()?;
        drop(lock);
        self.empty_trash();
        removed.untagged = untagged;
        Ok(removed)
    }

    fn last_use_file(&self, manifest: Digest) -> PathBuf {
        self.stack_dir(manifest).join("stack.json")
    }

    /// When an image was last pulled, or mounted for a container. One that never was counts as old.
    fn last_use(&self, manifest: Digest) -> SystemTime {
        let meta = fs::symlink_metadata(self.last_use_file(manifest));
        meta.and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// An image is used now. Only a note: without it, it might go a little early.
    pub(crate) fn note_use(&self, manifest: Digest) {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        let file = self.last_use_file(manifest);
        if let Err(error) = rustix::fs::utimensat(CWD, &file, &times, AtFlags::SYMLINK_NOFOLLOW) {
            tracing::debug!(file = %file.display(), %error, "the time of use is not noted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuller_of_bytes_and_inodes_counts() {
        for (used_bytes, bytes, used_inodes, inodes, percent) in
            [(50, 100, 0, 0, 50), (50, 100, 90, 100, 90), (0, 0, 0, 0, 0), (u64::MAX / 200, u64::MAX / 100, 1, 100, 50)]
        {
            assert_eq!(Fill { used_bytes, bytes, used_inodes, inodes }.percent(), percent);
        }
        assert_eq!(Fill { used_bytes: 80, bytes: 100, used_inodes: 0, inodes: 0 }.less(30).percent(), 50);
    }

    #[test]
    fn marks_are_percent_and_in_order() {
        assert_eq!("90:60".parse::<Watermarks>().unwrap(), Watermarks { high_percent: 90, low_percent: 60 });
        for bad in ["", "90", "60:90", "60:60", "101:5", "0:0", "a:b", "90:60:1", "-1:5"] {
            assert!(bad.parse::<Watermarks>().is_err(), "{bad}");
        }
    }
}
