//! Volumes of containers without a daemon: the same directories, filled the same way, as those of replicas.

use super::error::LocalError;
use std::path::{Path, PathBuf};

/// The data directory of the volume at `dir`; made, and filled from `target` of the image, where it is new.
///
/// # Errors
/// The disk.
pub fn ensure(dir: &Path, rootfs: &Path, target: &str) -> Result<PathBuf, LocalError> {
    gantry_agent::ensure_volume(dir, rootfs, target).map_err(LocalError::Volume)
}
