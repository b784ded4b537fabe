//! What the store tells about an image.

use crate::digest::Digest;
use crate::manifest::ImageConfig;
use crate::platform::Platform;
use crate::reference::Reference;

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its names; none if it was loaded without one.
    pub names: Vec<Reference>,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Digests under which registries gave it: of an index, if it was chosen from one.
    pub source_digests: Vec<Digest>,
    /// Digest of its configuration; what docker calls the image id.
    pub id: Digest,
    /// Bytes of its files, unpacked.
    pub size: u64,
    /// Bytes of its layers, packed.
    pub download_size: u64,
    /// When it was made, in RFC 3339, if it says so.
    pub created: Option<String>,
    /// Such as `amd64`.
    pub architecture: String,
    /// Such as `linux`.
    pub os: String,
    /// Such as `v8`.
    pub variant: Option<String>,
    /// How its containers are to run.
    pub config: ImageConfig,
    /// Its layers, lowest first.
    pub layers: Vec<LayerInfo>,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Digest as packed.
    pub digest: Digest,
    /// Digest as unpacked; the name of its directory in the store.
    pub diff_id: Digest,
    /// Bytes, packed.
    pub size: u64,
}

impl Image {
    /// Operating system, processor and variant.
    pub fn platform(&self) -> Platform {
        Platform { os: self.os.clone(), architecture: self.architecture.clone(), variant: self.variant.clone() }
    }

    /// Everything of it that must not be collected while it is used.
    pub(crate) fn parts(&self) -> Vec<Digest> {
        let layers = self.layers.iter().flat_map(|layer| [layer.digest, layer.diff_id]);
        layers.chain([self.digest, self.id]).collect()
    }

    /// The name to show: the first one in short form, or the start of the id.
    pub fn display_name(&self) -> String {
        self.names.first().map_or_else(|| self.id.short(), Reference::familiar)
    }
}
