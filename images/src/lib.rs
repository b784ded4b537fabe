//! Images: from a reference or a file to a verified store, a mounted root file system, and an OCI bundle.
//!
//! ```text
//! reference ─ pull ─┐                                            ┌─ snapshot ─► containers/<id>/rootfs
//!                   ├─► blobs ─► layers, each unpacked once ─────┤
//! archive ─── load ─┘                                            └─ bundle::config ─► config.json
//! ```
//!
//! Nothing is believed before its digest is checked, and nothing has its final name before it is on disk. Archives are
//! hostile until unpacked: see [`Limits`] and the document `docs/images.md`.
//!
//! ```no_run
//! # async fn example() -> gantry_images::Result<()> {
//! use gantry_images::{NoProgress, PullOptions, SnapshotOptions, Store, bundle};
//!
//! let store = Store::open("/var/lib/gantry/images")?;
//! let image = store.pull(&"busybox:1.36".parse()?, &PullOptions::default(), &NoProgress).await?;
//! let snapshot = store.snapshot(&image, "web-1", &SnapshotOptions::default())?;
//! let config = bundle::config(&image.config, &snapshot.rootfs, &bundle::Overrides::default())?;
//! bundle::write("/run/gantry/web-1".as_ref(), &config)?;
//! # Ok(())
//! # }
//! ```

mod auth;
mod batch;
mod build;
pub mod bundle;
mod catalog;
mod copies;
mod digest;
mod dns;
mod error;
mod files;
#[cfg(test)]
mod fuzz;
mod image;
mod index;
mod layer;
mod lease;
mod load;
mod manifest;
mod merge;
mod mount;
mod pack;
mod peers;
mod platform;
mod progress;
mod pull;
mod push;
mod reference;
mod registries;
mod registry;
mod room;
mod save;
mod scrub;
mod snapshot;
mod store;
mod sys;
mod tarball;
pub mod transfer;
mod trust;
mod unpack;
mod usage;
mod window;

pub use auth::{Credentials, default_auth_file};
pub use build::{BuildOptions, Change};
pub use digest::{BadDigest, Digest};
pub use error::{ImageError, Result};
pub use image::{Image, LayerInfo};
pub use load::{LoadOptions, LoadSource};
pub use manifest::{Healthcheck, History, ImageConfig};
pub use pack::Packed;
pub use peers::{Growing, Growth, HeldName, Offer, Peer, Peers, Signed, Stored};
pub use platform::Platform;
pub use progress::{Event, NoProgress, Progress};
pub use pull::{PullOptions, PullPolicy};
pub use reference::{DEFAULT_REGISTRY, DEFAULT_TAG, Reference};
pub use registries::Registries;
pub use room::Watermarks;
pub use scrub::{Damage, Verified};
pub use snapshot::{IdMaps, IdRange, RootKind, Snapshot, SnapshotOptions, SnapshotUsage};
pub use store::{Removed, Store};
pub use unpack::Limits;
pub use usage::{Prune, Space, Usage};
