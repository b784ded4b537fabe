//! Root file systems of containers: the layers of an image below, a directory of the container's own on top.
//!
//! Two ways make them, behind one trait and one suite of tests: overlayfs stacks the layers where they are; where the
//! kernel or the disk cannot do that, they are copied together.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::copies;
use crate::digest::Digest;
use crate::error::{ImageError, Result, at};
use crate::files;
use crate::image::Image;
use crate::lease::Lease;
use crate::manifest::LAYERS_MAX;
use crate::merge::Stack;
use crate::mount::{self, Overlay};
use crate::store::Store;
use crate::sys;

/// Most ranges of a map that we take; the kernel takes 340.
const RANGES_MAX: usize = 300;

/// Numbers of our projects begin here: administrators begin with small ones.
const FIRST_PROJECT: u32 = 0x6700_0000;

/// How many there are.
const PROJECTS: u32 = 0x0100_0000;

/// What the kernel shows for an owner that a namespace does not have (`/proc/sys/kernel/overflowuid`).
const NOBODY: u32 = 65_534;

/// How far an id is into a range that starts at `start`.
fn within(start: u32, length: u32, id: u32) -> Option<u32> {
    id.checked_sub(start).filter(|offset| *offset < length)
}

/// How a root file system is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum RootKind {
    /// The layers stacked by overlayfs: at once, and shared with all containers of the image.
    #[default]
    Overlay,
    /// A copy of all files: takes its time and its room, but needs nothing of the kernel.
    Copy,
}

/// One range of ids: `length` ids from `inside` on are those from `outside` on of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// In the container, and on disk.
    pub inside: u32,
    /// On the host.
    pub outside: u32,
    /// How many.
    pub length: u32,
}

/// How the owners of files are shown to the user namespace of a container. The layers of the image stay as they are; what
/// the container writes has the owners of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMaps {
    /// Of users.
    pub users: Vec<IdRange>,
    /// Of groups.
    pub groups: Vec<IdRange>,
}

impl IdMaps {
    /// A namespace that has these maps.
    pub(crate) fn namespace(&self) -> io::Result<OwnedFd> {
        let lines = |ranges: &[IdRange]| -> String {
            ranges.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.length)).collect()
        };
        sys::user_namespace(&lines(&self.users), &lines(&self.groups))
    }

    /// The owner on the host of what belongs to `owner` inside.
    fn outside(&self, owner: (u32, u32)) -> (u32, u32) {
        let one = |ranges: &[IdRange], id: u32| {
            let found = ranges.iter().find_map(|range| Some(range.outside + within(range.inside, range.length, id)?));
            found.unwrap_or(NOBODY)
        };
        (one(&self.users, owner.0), one(&self.groups, owner.1))
    }

    /// The owner inside of what belongs to `owner` on the host.
    pub(crate) fn inside(&self, owner: (u32, u32)) -> (u32, u32) {
        let one = |ranges: &[IdRange], id: u32| {
            let found = ranges.iter().find_map(|range| Some(range.inside + within(range.outside, range.length, id)?));
            found.unwrap_or(NOBODY)
        };
        (one(&self.users, owner.0), one(&self.groups, owner.1))
    }

    fn check(&self) -> Result<()> {
        for (field, ranges) in [("user map", &self.users), ("group map", &self.groups)] {
            let ends = |start: u32, length: u32| start.checked_add(length).is_some();
            let fits = |range: &IdRange| {
                range.length > 0 && ends(range.inside, range.length) && ends(range.outside, range.length)
            };
            if ranges.is_empty() || ranges.len() > RANGES_MAX || !ranges.iter().all(fits) {
                let why = format!("give 1 to {RANGES_MAX} ranges of ids that exist");
                return Err(ImageError::BadOption { field, value: format!("{ranges:?}"), why });
            }
        }
        Ok(())
    }
}

/// How a snapshot is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// What the container writes need not survive a crash of the host: for replicas and `--rm`. Such a snapshot is
    /// empty again after a reboot.
    pub volatile: bool,
    /// Nothing can be written at all.
    pub read_only: bool,
    /// Most bytes that the container may write: where the file system has quotas of projects, else refused.
    pub size_max: Option<u64>,
    /// Show the files to a user namespace as its own.
    pub ids: Option<IdMaps>,
    /// How it is made; if not given, by overlayfs if that is possible, else by a copy.
    pub kind: Option<RootKind>,
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
    /// How it was made.
    pub kind: RootKind,
}

/// What a container has written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SnapshotUsage {
    /// Bytes on disk.
    pub bytes: u64,
    /// Files, directories and everything else.
    pub inodes: u64,
    /// Most bytes that it may write.
    pub size_max: Option<u64>,
}

/// What a container has written over its image, and where.
pub(crate) struct Written {
    pub(crate) image: Digest,
    /// In the form of overlayfs.
    pub(crate) dir: PathBuf,
    /// Its owners are those of the host.
    pub(crate) ids: Option<IdMaps>,
}

/// `containers/<id>/snapshot.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    image: Digest,
    volatile: bool,
    /// Of the boot in which it was last mounted.
    boot: String,
    #[serde(default)]
    kind: RootKind,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    size_max: Option<u64>,
    /// Number of its project on the disk, if it has a limit.
    #[serde(default)]
    project: Option<u32>,
    #[serde(default)]
    ids: Option<IdMaps>,
}

/// The layers of an image as they are on disk.
struct View<'a> {
    stack: &'a Stack,
    /// Topmost first, with corrections of directories on top.
    lowers: Vec<PathBuf>,
    /// Corrections that are not in `lowers`, because there is no room for one more.
    fix: Option<PathBuf>,
}

/// One way to make root file systems. `own` is the directory of a container, where it finds what it has made.
trait Snapshotter {
    /// Make what the container owns, without its root file system being there yet.
    fn create(&self, own: &Path, view: &View<'_>, record: &Record) -> Result<()>;

    /// Have the root file system at `own/rootfs`, where it is not mounted.
    fn mount(&self, own: &Path, view: &View<'_>, record: &Record) -> Result<()>;

    /// Names in `own` that hold what does not survive: after a reboot, and before each mount.
    fn lost(&self) -> (&'static [&'static str], &'static [&'static str]);

    /// The directory that has what the container wrote, and nothing else if it can be told.
    fn written(&self, own: &Path) -> PathBuf;
}

fn snapshotter(kind: RootKind) -> &'static dyn Snapshotter {
    match kind {
        RootKind::Overlay => &Stacked,
        RootKind::Copy => &Copied,
    }
}

/// By overlayfs: `upper` and `work`, mounted over the layers.
struct Stacked;

impl Snapshotter for Stacked {
    fn create(&self, own: &Path, view: &View<'_>, record: &Record) -> Result<()> {
        for name in ["work", "rootfs"] {
            files::ensure_dir(&own.join(name), 0o700)?;
        }
        let upper = own.join("upper");
        files::ensure_dir(&upper, 0o755)?;
        if let (Some(bytes), Some(project)) = (record.size_max, record.project) {
            limit(&[&upper, &own.join("work")], project, bytes)?;
        }
        match (&view.fix, &record.ids) {
            (None, _) => {}
            (Some(fix), None) => copies::directories(fix, &upper)?,
            (Some(_), Some(_)) => {
                let why = "an image of so many layers cannot be shown to a user namespace".to_owned();
                return Err(ImageError::BadOption { field: "user namespace", value: "maps of ids".to_owned(), why });
            }
        }
        // overlayfs shows the root directory of the topmost one.
        dress_root(&upper, view.stack, record.ids.as_ref())
    }

    fn mount(&self, own: &Path, view: &View<'_>, record: &Record) -> Result<()> {
        let overlay = Overlay {
            lowers: &view.lowers,
            own,
            volatile: record.volatile,
            read_only: record.read_only,
            ids: record.ids.as_ref(),
        };
        mount::mount(&overlay, &own.join("rootfs"))
    }

    fn lost(&self) -> (&'static [&'static str], &'static [&'static str]) {
        // overlayfs marks a volatile work directory when it mounts it, and refuses it a second time.
        (&["upper", "work"], &["work"])
    }

    fn written(&self, own: &Path) -> PathBuf {
        own.join("upper")
    }
}

/// By a copy of all layers in `rootfs`.
struct Copied;

impl Snapshotter for Copied {
    fn create(&self, own: &Path, view: &View<'_>, record: &Record) -> Result<()> {
        let refused = |field, value: String| {
            let why = "its root file system is a copy, for which this cannot be done: it needs overlayfs".to_owned();
            Err(ImageError::BadOption { field, value, why })
        };
        if let Some(bytes) = record.size_max {
            return refused("size", bytes.to_string());
        }
        if record.ids.is_some() {
            return refused("user namespace", "maps of ids".to_owned());
        }
        let rootfs = own.join("rootfs");
        files::ensure_dir(&rootfs, 0o755)?;
        copies::merge(&view.lowers, &rootfs)?;
        if let Some(fix) = &view.fix {
            copies::directories(fix, &rootfs)?;
        }
        dress_root(&rootfs, view.stack, None)
    }

    fn mount(&self, own: &Path, _: &View<'_>, record: &Record) -> Result<()> {
        if record.read_only { mount::lock_in(&own.join("rootfs")) } else { Ok(()) }
    }

    fn lost(&self) -> (&'static [&'static str], &'static [&'static str]) {
        (&["rootfs"], &[])
    }

    fn written(&self, own: &Path) -> PathBuf {
        own.join("rootfs")
    }
}

/// The root directory of the container has the attributes that the image says.
fn dress_root(dir: &Path, stack: &Stack, ids: Option<&IdMaps>) -> Result<()> {
    let own = (stack.uid, stack.gid);
    let (uid, gid) = ids.map_or(own, |ids| ids.outside(own));
    std::os::unix::fs::chown(dir, Some(uid), Some(gid)).map_err(at("set the owner of", dir))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(stack.mode)).map_err(at("set the mode of", dir))
}

/// Directories that belong together may hold so many bytes.
fn limit(dirs: &[&Path], project: u32, bytes: u64) -> Result<()> {
    for dir in dirs {
        let open = fs::File::open(dir).map_err(at("open", dir))?;
        let limited =
            sys::set_project(open.as_fd(), project).and_then(|()| sys::limit_project(open.as_fd(), project, bytes));
        limited.map_err(|error| ImageError::NoQuota {
            dir: dir.to_path_buf(),
            why: format!("the file system has no quotas of projects, or they are off ({error})"),
        })?;
    }
    Ok(())
}

impl Store {
    /// Mount a root file system of `image` for container `id`.
    ///
    /// If there is one already it is mounted again where it is not mounted (after a reboot, or in another mount
    /// namespace), with what the container wrote. The mount is made in the mount namespace of the calling thread.
    ///
    /// - `options`: of a new one; one that is there stays as it was made.
    ///
    /// # Errors
    /// `id` is of another image or cannot be a name, the layers are damaged, or the kernel refuses.
    pub fn snapshot(&self, image: &Image, id: &str, options: &SnapshotOptions) -> Result<Snapshot> {
        check_id(id)?;
        options.ids.as_ref().map_or(Ok(()), IdMaps::check)?;
        let lease = self.lease()?;
        self.protect(&lease, image.parts())?;
        let (_, _, layers) = self.manifest(image.digest)?;
        self.ensure_unpacked(&lease, &layers)?;
        let (stack_dir, stack) = self.stack(&lease, image.digest, &layers).map_err(|e| e.in_store(self.root()))?;
        // Held until it is mounted, so that two callers do not mount it one over the other.
        let _lock = self.lock()?;
        let record = match self.record(id)? {
            Some(record) if record.image == image.digest => record,
            Some(record) => {
                return Err(ImageError::SnapshotExists { id: id.to_owned(), image: record.image });
            }
            None => return self.first(&lease, id, image.digest, &self.view(&stack_dir, &stack), options),
        };
        self.mounted(&lease, id, &self.view(&stack_dir, &stack), record)
    }

    /// Mount the root file system of a container that has one, again if need be; where it is.
    ///
    /// # Errors
    /// `NotFound`, and those of `snapshot`.
    pub fn remount(&self, id: &str) -> Result<PathBuf> {
        check_id(id)?;
        let record = self.record(id)?.ok_or_else(|| ImageError::NotFound(format!("container {id}")))?;
        let image = self.by_digest(record.image)?;
        Ok(self.snapshot(&image, id, &SnapshotOptions::default())?.rootfs)
    }

    /// What to stack. An image without layers still needs something below.
    fn view<'a>(&self, stack_dir: &Path, stack: &'a Stack) -> View<'a> {
        let mut lowers: Vec<PathBuf> = stack.layers.iter().map(|layer| self.layer(*layer).join("fs")).collect();
        let mut fix = stack.fix.then(|| stack_dir.join("fix"));
        if lowers.len() < LAYERS_MAX {
            lowers.splice(0..0, fix.take());
        }
        View { stack, lowers, fix }
    }

    /// Make one that is not there.
    fn first(
        &self,
        lease: &Lease,
        id: &str,
        image: Digest,
        view: &View<'_>,
        options: &SnapshotOptions,
    ) -> Result<Snapshot> {
        let made = |kind| {
            let record = self.create(lease, id, image, view, kind, options)?;
            self.mounted(lease, id, view, record)
        };
        match (made(options.kind.unwrap_or_default()), options.kind) {
            (Err(ImageError::Mount { source, detail, .. }), None)
                if matches!(source.raw_os_error(), Some(libc::ENODEV | libc::EINVAL | libc::EOPNOTSUPP))
                    && options.ids.is_none()
                    && options.size_max.is_none() =>
            {
                tracing::warn!(container = id, %source, detail, "overlayfs cannot be used here: all files are copied");
                self.to_trash(&self.containers().join(id))?;
                made(RootKind::Copy)
            }
            (Err(error), _) => {
                // Of what was not mounted nothing is left.
                self.to_trash(&self.containers().join(id))?;
                Err(error)
            }
            (made, _) => made,
        }
    }

    fn create(
        &self,
        lease: &Lease,
        id: &str,
        image: Digest,
        view: &View<'_>,
        kind: RootKind,
        options: &SnapshotOptions,
    ) -> Result<Record> {
        let dir = self.containers().join(id);
        let record = Record {
            image,
            volatile: options.volatile,
            boot: boot_id(),
            kind,
            read_only: options.read_only,
            size_max: options.size_max,
            project: options.size_max.map(|_| self.free_project()).transpose()?,
            ids: options.ids.clone(),
        };
        let new = lease.path(&format!("container-{}", files::unique()));
        files::ensure_dir(&new, 0o700)?;
        empty_below(&new, view)?;
        snapshotter(kind).create(&new, view, &record).map_err(|error| error.in_store(self.root()))?;
        if kind == RootKind::Copy && !record.volatile {
            self.sync()?;
        }
        write_record(&new, &record)?;
        // A directory without a record is what a removal left that was killed.
        self.to_trash(&dir)?;
        fs::rename(&new, &dir).map_err(at("replace", &dir))?;
        if !record.volatile {
            files::sync_parent(&dir)?;
        }
        Ok(record)
    }

    /// A number that no other container has: by chance, so that what waits to be deleted does not count for a new one.
    fn free_project(&self) -> Result<u32> {
        let mut taken = Vec::new();
        for id in files::names(&self.containers())? {
            taken.extend(self.record(&id)?.and_then(|record| record.project));
        }
        loop {
            let random = u32::from_str_radix(&files::unique()[..8], 16).unwrap_or(0);
            let project = FIRST_PROJECT + random % PROJECTS;
            if !taken.contains(&project) {
                return Ok(project);
            }
        }
    }

    /// Have it mounted.
    fn mounted(&self, lease: &Lease, id: &str, view: &View<'_>, record: Record) -> Result<Snapshot> {
        let dir = self.containers().join(id);
        let rootfs = dir.join("rootfs");
        let snapshot =
            Snapshot { id: id.to_owned(), image: record.image, volatile: record.volatile, kind: record.kind, rootfs };
        if mount::is_mounted(&snapshot.rootfs)? {
            return Ok(snapshot);
        }
        let mut lowers = view.lowers.clone();
        if lowers.is_empty() {
            lowers.push(dir.join("empty"));
        }
        let view = &View { stack: view.stack, lowers, fix: view.fix.clone() };
        let record = if record.volatile { self.renew(lease, &dir, view, record)? } else { record };
        snapshotter(record.kind).mount(&dir, view, &record)?;
        Ok(snapshot)
    }

    /// What a volatile container wrote may have been lost if the host has not run on: then it starts anew.
    fn renew(&self, lease: &Lease, dir: &Path, view: &View<'_>, record: Record) -> Result<Record> {
        let same_boot = record.boot == boot_id();
        let way = snapshotter(record.kind);
        let (after_reboot, before_mount) = way.lost();
        let used = record.kind == RootKind::Overlay && dir.join("work/work/incompat").exists();
        let old = match (same_boot, used) {
            (false, _) => after_reboot,
            (true, true) => before_mount,
            (true, false) => return Ok(record),
        };
        for name in old {
            let aside = lease.path(&format!("{name}-{}", files::unique()));
            match fs::rename(dir.join(name), &aside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(ImageError::io("replace", dir, error));
                }
                _ => {}
            }
        }
        if same_boot {
            files::ensure_dir(&dir.join("work"), 0o700)?;
            if let (Some(bytes), Some(project)) = (record.size_max, record.project) {
                limit(&[&dir.join("work")], project, bytes)?;
            }
            return Ok(record);
        }
        let record = Record { boot: boot_id(), ..record };
        way.create(dir, view, &record)?;
        write_record(dir, &record)?;
        Ok(record)
    }

    /// What a container has written, counted file by file.
    ///
    /// # Errors
    /// `NotFound`, and those of the file system.
    pub fn snapshot_usage(&self, id: &str) -> Result<SnapshotUsage> {
        check_id(id)?;
        let record = self.record(id)?.ok_or_else(|| ImageError::NotFound(format!("container {id}")))?;
        let own = self.containers().join(id);
        let (bytes, inodes) = copies::measure(&snapshotter(record.kind).written(&own))?;
        Ok(SnapshotUsage { bytes, inodes, size_max: record.size_max })
    }

    /// What a container wrote over its image.
    pub(crate) fn written(&self, id: &str) -> Result<Written> {
        let none = || ImageError::NotFound(format!("container {id}"));
        check_id(id).map_err(|_| none())?;
        let record = self.record(id)?.ok_or_else(none)?;
        if record.kind == RootKind::Copy {
            let why = "its root file system is a copy, of which nobody knows what was written to it".to_owned();
            return Err(ImageError::BadOption { field: "container", value: id.to_owned(), why });
        }
        let dir = snapshotter(record.kind).written(&self.containers().join(id));
        Ok(Written { image: record.image, dir, ids: record.ids })
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
                let Record { image, volatile, kind, .. } = record;
                snapshots.push(Snapshot { id, rootfs, image, volatile, kind });
            }
        }
        Ok(snapshots)
    }
}

/// For an image without layers: overlayfs wants something below.
fn empty_below(dir: &Path, view: &View<'_>) -> Result<()> {
    if view.lowers.is_empty() { files::ensure_dir(&dir.join("empty"), 0o755) } else { Ok(()) }
}

fn write_record(dir: &Path, record: &Record) -> Result<()> {
    let path = dir.join("snapshot.json");
    let text = serde_json::to_vec(record).map_err(|e| ImageError::io("write", &path, e))?;
    if record.volatile {
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
