//! Work under way: keeps what a pull or load needs from being collected, and holds its unfinished files.
//!
//! A lease is a directory `ingest/<name>.lease/` with a file `lease` that lists digests and that its owner keeps locked.
//! The kernel drops the lock when the owner dies, however it dies, so nobody has to guess by process numbers.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::digest::Digest;
use crate::error::{Result, at};
use crate::files;

const SUFFIX: &str = ".lease";

/// See the module. Dropping it removes the directory.
#[derive(Debug)]
pub(crate) struct Lease {
    dir: PathBuf,
    file: Mutex<File>,
}

impl Lease {
    /// Must be called with the store locked: between its two steps it looks dead.
    pub(crate) fn new(ingest: &Path) -> Result<Self> {
        let dir = ingest.join(format!("{}{SUFFIX}", files::unique()));
        fs::create_dir(&dir).map_err(at("make directory", &dir))?;
        let path = dir.join("lease");
        let lease = File::create_new(&path).map_err(at("write", &path)).and_then(|file| {
            files::lock(&file, &path)?;
            Ok(file)
        });
        match lease {
            Ok(file) => Ok(Self { dir, file: Mutex::new(file) }),
            Err(error) => {
                // The first error is the one to tell; the next sweep takes the directory.
                let _ = files::remove_all(&dir);
                Err(error)
            }
        }
    }

    /// A path for an unfinished file or tree.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Keep this content. Must be called with the store locked.
    pub(crate) fn protect(&self, digests: impl IntoIterator<Item = Digest>) -> Result<()> {
        let text: String = digests.into_iter().map(|digest| format!("{digest}\n")).collect();
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.write_all(text.as_bytes()).map_err(at("write", &self.dir))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(error) = files::remove_all(&self.dir) {
            tracing::debug!(%error, "left for the next sweep");
        }
    }
}

/// Digests that living leases protect, and the directories of dead ones. Must be called with the store locked.
pub(crate) fn survey(ingest: &Path) -> Result<(Vec<Digest>, Vec<PathBuf>)> {
    let (mut protected, mut dead) = (Vec::new(), Vec::new());
    for name in files::names(ingest)?.iter().filter(|name| name.ends_with(SUFFIX)) {
        let dir = ingest.join(name);
        match File::open(dir.join("lease")) {
            Ok(file) if !files::try_lock(&file) => {
                let text = fs::read_to_string(dir.join("lease")).unwrap_or_default();
                protected.extend(text.lines().filter_map(|line| line.parse::<Digest>().ok()));
            }
            // A lease being dropped is without its file for a moment; removing it twice does no harm.
            _ => dead.push(dir),
        }
    }
    Ok((protected, dead))
}
