//! Root file systems of containers: the layers of an image below, a directory of the container's own on top.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{ImageError, Result, at};
use crate::files;
use crate::image::Image;
use crate::lease::Lease;
use crate::merge::Stack;
use crate::mount::{self, Overlay};
use crate::store::Store;

/// How a snapshot is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// What the container writes need not survive a crash of the host: for replicas and `--rm`. Such a snapshot is
    /// empty again after a reboot.
    pub volatile: bool,
}

/// A mounted root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The container that it was made for.
    pub id: String,
    /// Where it is mounted.
    pub rootfs: PathBuf,
    /// Digest of the manifest of its image.
    pub image: Digest,
    /// As in `SnapshotOptions`.
    pub volatile: bool,
}

/// `containers/<id>/snapshot.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    image: Digest,
    volatile: bool,
    /// Of the boot in which it was last mounted.
    boot: String,
}

impl Store {
    /// Mount a root file system of `image` for container `id`.
    ///
    /// If there is one already it is mounted again where it is not mounted (after a reboot, or in another mount
    /// namespace), with what the container wrote. The mount is made in the mount namespace of the calling thread.
    ///
    /// # Errors
    /// `id` is of another image or cannot be a name, the layers are damaged, or the kernel refuses.
    pub fn snapshot(&self, image: &Image, id: &str, options: &SnapshotOptions) -> Result<Snapshot> {
        check_id(id)?;
        let lease = self.lease()?;
        self.protect(&lease, image.parts())?;
        let (_, _, layers) = self.manifest(image.digest)?;
        self.ensure_unpacked(&lease, &layers)?;
        let (stack_dir, stack) = self.stack(&lease, image.digest, &layers).map_err(|e| e.in_store(self.root()))?;
        // Held until it is mounted, so that two callers do not mount it one over the other.
        let _lock = self.lock()?;
        let dir = self.containers().join(id);
        let volatile = match self.record(id)? {
            Some(record) if record.image == image.digest => record.volatile,
            Some(record) => {
                return Err(ImageError::SnapshotExists { id: id.to_owned(), image: record.image });
            }
            None => {
                self.create(&lease, &dir, image.digest, &stack, options)?;
                options.volatile
            }
        };
        let rootfs = dir.join("rootfs");
        if !mount::is_mounted(&rootfs)? {
            // overlayfs marks a volatile directory when it mounts it.
            if volatile && dir.join("work/work/incompat").exists() {
                self.renew_volatile(&lease, &dir, image.digest, &stack)?;
            }
            let overlay = Overlay {
                lowers: &self.lowers(&dir, &stack_dir, &stack)?,
                upper: &dir.join("upper"),
                work: &dir.join("work"),
                volatile,
            };
            mount::mount(&overlay, &rootfs)?;
        }
        Ok(Snapshot { id: id.to_owned(), rootfs, image: image.digest, volatile })
    }

    /// Directories to stack, topmost first. An image without layers still needs something below.
    fn lowers(&self, dir: &Path, stack_dir: &Path, stack: &Stack) -> Result<Vec<PathBuf>> {
        let mut lowers = Vec::new();
        if stack.fix {
            lowers.push(stack_dir.join("fix"));
        }
        lowers.extend(stack.layers.iter().map(|layer| self.layer(*layer).join("fs")));
        if lowers.is_empty() {
            let empty = dir.join("empty");
            files::ensure_dir(&empty, 0o755)?;
            lowers.push(empty);
        }
        Ok(lowers)
    }

    fn create(&self, lease: &Lease, dir: &Path, image: Digest, stack: &Stack, options: &SnapshotOptions) -> Result<()> {
        let new = lease.path("container");
        files::ensure_dir(&new, 0o700)?;
        for name in ["work", "rootfs"] {
            files::ensure_dir(&new.join(name), 0o700)?;
        }
        make_upper(&new, stack)?;
        write_record(&new, image, options.volatile)?;
        // A directory without a record is what a removal left that was killed.
        self.to_trash(dir)?;
        fs::rename(&new, dir).map_err(at("replace", dir))?;
        if options.volatile { Ok(()) } else { files::sync_parent(dir) }
    }

    /// overlayfs refuses a volatile directory a second time, because it may have lost data. It has not if the host has
    /// run on; otherwise start anew.
    fn renew_volatile(&self, lease: &Lease, dir: &Path, image: Digest, stack: &Stack) -> Result<()> {
        let same_boot = self.record_in(dir)?.is_some_and(|record| record.boot == boot_id());
        let mut old = vec!["work"];
        if !same_boot {
            old.push("upper");
        }
        for name in old {
            let aside = lease.path(&format!("{name}-{}", files::unique()));
            match fs::rename(dir.join(name), &aside) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(ImageError::io("replace", dir, error));
                }
                _ => {}
            }
        }
        files::ensure_dir(&dir.join("work"), 0o700)?;
        if !dir.join("upper").is_dir() {
            make_upper(dir, stack)?;
        }
        if same_boot { Ok(()) } else { write_record(dir, image, true) }
    }

    fn record(&self, id: &str) -> Result<Option<Record>> {
        self.record_in(&self.containers().join(id))
    }

    /// None too if a crash has lost what it says: the snapshot is then made anew.
    fn record_in(&self, dir: &Path) -> Result<Option<Record>> {
        let path = dir.join("snapshot.json");
        let Some(bytes) = files::read_limited(&path, 1 << 20)? else {
            return Ok(None);
        };
        match serde_json::from_slice(&bytes) {
            Ok(record) => Ok(Some(record)),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "a snapshot is damaged");
                Ok(None)
            }
        }
    }

    /// Unmount and delete the root file system of container `id`, and collect its image if nothing needs it any more.
    /// Nothing there is success.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove_snapshot(&self, id: &str) -> Result<()> {
        check_id(id)?;
        let lock = self.lock()?;
        let dir = self.containers().join(id);
        if dir.symlink_metadata().is_ok() {
            let record = self.record(id)?;
            mount::unmount(&dir.join("rootfs"))?;
            self.to_trash(&dir)?;
            if record.as_ref().is_none_or(|record| !record.volatile) {
                files::sync_parent(&dir)?;
            }
            drop(lock);
            self.empty_trash();
            // The list of names alone is read: the image itself is many files.
            if let Some(record) = record
                && !self
                    .index()?
                    .manifests
                    .iter()
                    .any(|entry| entry.digest == record.image && entry.reference().is_some())
            {
                self.collect()?;
            }
        }
        Ok(())
    }

    /// All snapshots, by container.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let mut snapshots = Vec::new();
        for id in files::names(&self.containers())? {
            if let Some(record) = self.record(&id)? {
                let rootfs = self.containers().join(&id).join("rootfs");
                snapshots.push(Snapshot { id, rootfs, image: record.image, volatile: record.volatile });
            }
        }
        Ok(snapshots)
    }
}

/// The root directory of the container has the attributes of this one.
fn make_upper(dir: &Path, stack: &Stack) -> Result<()> {
    let upper = dir.join("upper");
    files::ensure_dir(&upper, 0o755)?;
    std::os::unix::fs::chown(&upper, Some(stack.uid), Some(stack.gid)).map_err(at("set the owner of", &upper))?;
    fs::set_permissions(&upper, fs::Permissions::from_mode(stack.mode)).map_err(at("set the mode of", &upper))
}

fn write_record(dir: &Path, image: Digest, volatile: bool) -> Result<()> {
    let path = dir.join("snapshot.json");
    let record = Record { image, volatile, boot: boot_id() };
    let text = serde_json::to_vec(&record).map_err(|e| ImageError::io("write", &path, e))?;
    if volatile {
        // Not worth a sync: after a crash it starts anew anyway.
        return fs::write(&path, text).map_err(at("write", &path));
    }
    files::write_atomic(&path, &dir.join("snapshot.tmp"), &text, 0o600)
}

/// Changes with every boot; empty if the kernel does not tell.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// A container's id is a directory's name.
fn check_id(id: &str) -> Result<()> {
    let word = |b: u8| b.is_ascii_alphanumeric();
    let good = id.len() <= 128
        && id.bytes().next().is_some_and(word)
        && id.bytes().all(|b| word(b) || matches!(b, b'-' | b'_' | b'.' | b'+'));
    if good {
        return Ok(());
    }
    let why = "write up to 128 letters, digits, `-`, `_`, `.` and `+`, starting with a letter or digit".to_owned();
    Err(ImageError::BadOption { field: "container id", value: id.to_owned(), why })
}
