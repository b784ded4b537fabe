//! `index.json`: the names of the images, in the form that every OCI tool reads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::files;
use crate::manifest::OCI_INDEX;
use crate::reference::Reference;

/// Where a layout keeps a name (image-spec `annotations.md`).
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What the registry gave as the digest of a tag: that of the index, when the image was chosen from one.
const SOURCE_DIGEST: &str = "dev.gantry.image.source-digest";

/// Room for some hundred thousand names.
const INDEX_MAX: u64 = 64 << 20;

/// One name of one image. Fields that are not ours are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(flatten)]
    pub(crate) rest: Map<String, Value>,
}

impl Entry {
    /// The name, if it is one that we could have written.
    pub(crate) fn reference(&self) -> Option<Reference> {
        self.annotations.get(REF_NAME)?.parse().ok()
    }

    pub(crate) fn source_digest(&self) -> Option<Digest> {
        self.annotations.get(SOURCE_DIGEST)?.parse().ok()
    }

    pub(crate) fn set_names(&mut self, name: Option<&Reference>, source: Option<Digest>) {
        self.annotations.extend(name.map(|name| (REF_NAME.to_owned(), name.to_string())));
        self.annotations.extend(source.map(|digest| (SOURCE_DIGEST.to_owned(), digest.to_string())));
    }
}

/// All of `index.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    pub(crate) manifests: Vec<Entry>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Default for Index {
    fn default() -> Self {
        Self { schema_version: 2, media_type: Some(OCI_INDEX.to_owned()), manifests: Vec::new(), rest: Map::new() }
    }
}

impl Index {
    fn path(root: &Path) -> PathBuf {
        root.join("index.json")
    }

    pub(crate) fn parse(what: &str, bytes: &[u8]) -> Result<Self> {
        let invalid = |why: String| ImageError::BadImage { what: what.to_owned(), why };
        let index: Self = serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?;
        match index.schema_version {
            2 => Ok(index),
            other => Err(invalid(format!("schemaVersion must be 2, is {other}"))),
        }
    }

    /// `None` if there is no index yet.
    pub(crate) fn read(root: &Path) -> Result<Option<Self>> {
        let path = Self::path(root);
        let Some(bytes) = files::read_limited(&path, INDEX_MAX)? else {
            return Ok(None);
        };
        Self::parse(&path.display().to_string(), &bytes).map(Some)
    }

    /// Must be called with the store locked.
    pub(crate) fn write(&self, root: &Path) -> Result<()> {
        let path = Self::path(root);
        let bytes = serde_json::to_vec(self).map_err(|e| ImageError::io("write", &path, e))?;
        files::write_atomic(&path, &root.join("index.json.tmp"), &bytes, 0o644)
    }

    /// Give a name to an image; it is taken from the image that had it.
    pub(crate) fn put(&mut self, entry: Entry) {
        let name = entry.annotations.get(REF_NAME).cloned();
        self.manifests.retain(|old| match (&name, old.annotations.get(REF_NAME)) {
            (Some(name), Some(other)) => name != other,
            // An image with a name needs no entry without one.
            (_, None) => old.digest != entry.digest,
            (None, Some(_)) => true,
        });
        if name.is_some() || !self.manifests.iter().any(|old| old.digest == entry.digest) {
            self.manifests.push(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(content: &str, name: Option<&str>) -> Entry {
        let annotations = name.map(|n| (REF_NAME.to_owned(), n.to_owned())).into_iter().collect();
        Entry { media_type: "m".into(), digest: Digest::of(content.as_bytes()), size: 1, annotations, rest: Map::new() }
    }

    #[test]
    fn a_name_belongs_to_one_image_and_a_nameless_entry_goes_when_there_is_a_name() {
        let mut index = Index::default();
        for (content, name) in
            [("1", Some("a")), ("2", None), ("1", Some("b")), ("3", Some("a")), ("2", Some("c")), ("2", None)]
        {
            index.put(entry(content, name));
        }
        assert_eq!(index.manifests, [entry("1", Some("b")), entry("3", Some("a")), entry("2", Some("c"))]);
    }

    #[test]
    fn fields_of_others_are_kept() {
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"m","digest":"{}","size":1,"artifactType":"x"}}],"subject":{{"a":1}}}}"#,
            Digest::of(b"1")
        );
        let index = Index::parse("x", text.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&index).unwrap(), text);
    }
}
