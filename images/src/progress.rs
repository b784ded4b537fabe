//! What a pull or a load tells while it works.

use crate::digest::Digest;

/// One step of a pull or load.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A name is being looked up in a registry or an archive.
    Resolving {
        /// The reference or the archive.
        what: String,
    },
    /// A layer is about to be fetched.
    LayerStart {
        /// The layer.
        digest: Digest,
        /// Bytes to fetch.
        total: u64,
    },
    /// More of a layer has arrived.
    LayerProgress {
        /// The layer.
        digest: Digest,
        /// Bytes that arrived, those of an earlier attempt included.
        done: u64,
        /// Bytes to fetch.
        total: u64,
    },
    /// All of a layer has arrived and is still being unpacked.
    Unpacking {
        /// The layer.
        digest: Digest,
    },
    /// A layer is verified, unpacked and in the store.
    LayerDone {
        /// The layer.
        digest: Digest,
        /// It was there already.
        reused: bool,
    },
    /// The image is ready.
    Done {
        /// Digest of its manifest.
        digest: Digest,
    },
}

/// Receives events, from one or from several threads.
pub trait Progress: Send + Sync {
    /// Called often: must not block.
    fn event(&self, event: Event);
}

/// Ignores all events.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn event(&self, _: Event) {}
}
