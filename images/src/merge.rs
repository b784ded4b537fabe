//! How the layers of one image are stacked, and corrections where stacking alone would be wrong.
//!
//! A layer may hold `etc/app/config` without saying what `etc` is. Unpacked alone, its `etc` is an ordinary directory,
//! and overlayfs shows the attributes of the topmost one: a private directory would open up. Because a layer is
//! unpacked once for all images, the right attributes go into a small extra layer of the image, on top.
//!
//! The same layer helps with another gap: overlayfs hides the marks of deletions only in directories that it merges from
//! several layers. In a directory that one layer alone has they would be listed, as names that cannot be opened.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, Metadata};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Result, at};
use crate::pack::is_opaque;
use crate::unpack::{LayerMeta, unescape};

/// An unpacked layer.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) diff_id: Digest,
    pub(crate) fs: PathBuf,
    pub(crate) meta: LayerMeta,
}

/// What to mount for an image, in `images/<manifest>/stack.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stack {
    /// Topmost first; each once.
    pub(crate) layers: Vec<Digest>,
    /// There is a directory `fix` beside this file, to be stacked above all layers.
    pub(crate) fix: bool,
    /// Of the root directory.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Stack `layers`, lowest first, and make `fix` if corrections are needed.
pub(crate) fn stack(layers: &[Tree], fix: &Path) -> Result<Stack> {
    let mut visible: Vec<&Tree> = Vec::new();
    for tree in layers.iter().rev() {
        // overlayfs refuses the same directory twice; the lower one has no effect below the upper one.
        if !visible.iter().any(|above| above.diff_id == tree.diff_id) {
            visible.push(tree);
        }
        if tree.meta.opaque_root {
            break;
        }
    }
    let wrong = wrong_directories(&visible)?;
    let with_parents: BTreeSet<&Path> = wrong.iter().flat_map(|path| path.ancestors()).collect();
    if !wrong.is_empty() {
        for path in &with_parents {
            let target = fix.join(path);
            DirBuilder::new().mode(0o755).create(&target).map_err(at("make directory", &target))?;
        }
        // Deepest first, so that setting a time inside does not change one already set.
        for path in with_parents.iter().rev() {
            correct(&visible, path, fix)?;
        }
    }
    let root = effective(&visible, Path::new(""))?;
    let root = root.map_or((0o755, 0, 0), |meta| (meta.permissions().mode() & 0o7777, meta.uid(), meta.gid()));
    Ok(Stack {
        layers: visible.iter().map(|tree| tree.diff_id).collect(),
        fix: !wrong.is_empty(),
        mode: root.0,
        uid: root.1,
        gid: root.2,
    })
}

/// Directories that would show other attributes than those of the layer that declared them, or marks of deletions.
fn wrong_directories(layers: &[&Tree]) -> Result<BTreeSet<PathBuf>> {
    let mut wrong = BTreeSet::new();
    let undeclared = layers.iter().flat_map(|tree| &tree.meta.undeclared);
    for path in undeclared.filter(|path| !path.is_empty()).map(|path| unescape(path)) {
        if let Some(top) = stacked(layers, &path)?.first() {
            let shown = top.fs.join(&path).symlink_metadata();
            let shown = shown.map_err(at("read", &path))?;
            if let Some(target) = hidden_link(layers, &path) {
                // As containerd has it; docker's builders never make such a layer.
                let (path, target) = (path.display(), target.display());
                tracing::warn!("directory `{path}` of a layer hides a link to `{target}` of a layer below");
            }
            if effective(layers, &path)?.is_some_and(|meta| !same_attributes(&meta, &shown)) {
                wrong.insert(path);
            }
        }
    }
    for path in layers.iter().flat_map(|tree| &tree.meta.deletes_in) {
        let path = unescape(path);
        if stacked(layers, &path)?.len() == 1 {
            wrong.insert(path);
        }
    }
    Ok(wrong)
}

/// Where the link leads that the directory `path`, which a layer only passes through, stands in the place of.
fn hidden_link(layers: &[&Tree], path: &Path) -> Option<PathBuf> {
    for tree in layers {
        let here = tree.fs.join(path);
        match here.symlink_metadata() {
            Ok(meta) if meta.is_symlink() => return fs::read_link(here).ok(),
            Ok(meta) if !meta.is_dir() || is_opaque(&here) => return None,
            _ => {}
        }
    }
    None
}

fn same_attributes(a: &Metadata, b: &Metadata) -> bool {
    (a.mode(), a.uid(), a.gid()) == (b.mode(), b.uid(), b.gid())
}

/// The layers whose directory `path` is part of the merged one, topmost first; none if it is no directory there.
fn stacked<'a>(layers: &[&'a Tree], path: &Path) -> Result<Vec<&'a Tree>> {
    let mut alive = layers.to_vec();
    let mut prefix = PathBuf::new();
    for name in path.components() {
        prefix.push(name);
        let mut next = Vec::new();
        for tree in alive {
            let here = tree.fs.join(&prefix);
            match here.symlink_metadata() {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(at("read", &here)(error)),
                Ok(meta) if !meta.is_dir() => break,
                Ok(_) => next.push(tree),
            }
            if is_opaque(&here) {
                break;
            }
        }
        alive = next;
    }
    Ok(alive)
}

/// The attributes that the directory should have: those of the topmost layer that declared it.
fn effective(layers: &[&Tree], path: &Path) -> Result<Option<Metadata>> {
    let declared = |tree: &&&Tree| !tree.meta.undeclared.iter().any(|other| unescape(other) == path);
    let stacked = stacked(layers, path)?;
    let Some(tree) = stacked.iter().find(declared) else {
        return Ok(None);
    };
    let full = tree.fs.join(path);
    full.symlink_metadata().map(Some).map_err(at("read", &full))
}

fn correct(layers: &[&Tree], path: &Path, fix: &Path) -> Result<()> {
    let target = fix.join(path);
    // Declared nowhere: as it is shown.
    let shown = || stacked(layers, path).map(|stacked| stacked.first().map(|tree| tree.fs.join(path)));
    let meta = match effective(layers, path)? {
        Some(meta) => meta,
        None => match shown()? {
            Some(full) => full.symlink_metadata().map_err(at("read", &full))?,
            None => return Ok(()),
        },
    };
    std::os::unix::fs::chown(&target, Some(meta.uid()), Some(meta.gid())).map_err(at("set the owner of", &target))?;
    fs::set_permissions(&target, fs::Permissions::from_mode(meta.mode() & 0o7777))
        .map_err(at("set the mode of", &target))?;
    let time = Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, &target, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(at("set the time of", &target))
}
