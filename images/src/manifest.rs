//! Manifests, indexes and image configurations, parsed strictly where they enter.
//!
//! # Source
//! OCI image-spec 1.1: `descriptor.md`, `manifest.md`, `image-index.md`, `config.md`; docker's manifest schema 2.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::platform::Platform;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Largest manifest or index; registries have the same limit (distribution-spec).
pub(crate) const MANIFEST_MAX: u64 = 4 << 20;

/// Largest image configuration: room for a long history.
pub(crate) const CONFIG_MAX: u64 = 8 << 20;

/// Most layers that overlayfs can stack (kernel: `OVL_MAX_STACK`).
pub(crate) const LAYERS_MAX: usize = 500;

/// Points at content: what it is, its digest and its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub(crate) urls: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
}

/// What a reference can point at.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Box<Manifest>),
}

/// One image for one platform.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// How the bytes of a layer are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

impl Compression {
    /// From the first bytes of a file (RFC 1952, RFC 8878); anything else counts as plain.
    pub(crate) fn sniff(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }

    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    fn of_media_type(media_type: &str) -> Result<Self, String> {
        match media_type {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
                Ok(Self::Plain)
            }
            "application/vnd.oci.image.layer.v1.tar+gzip" | "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
                Ok(Self::Gzip)
            }
            "application/vnd.oci.image.layer.v1.tar+zstd" | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
                Ok(Self::Zstd)
            }
            other if other.contains("foreign") || other.contains("nondistributable") => {
                Err(format!("what has type {other} is not fetched: it lives outside the registry"))
            }
            other => Err(format!("its type {other} is not known")),
        }
    }
}

/// One layer: what to fetch and what it unpacks to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerSpec {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) diff_id: Digest,
    pub(crate) compression: Compression,
}

fn invalid(what: &str, why: impl Into<String>) -> ImageError {
    ImageError::BadImage { what: what.to_owned(), why: why.into() }
}

/// Parse a manifest or an index.
///
/// - `what`: for messages, such as `manifest of busybox`.
/// - `content_type`: what the registry or the descriptor says it is.
pub(crate) fn parse(what: &str, content_type: Option<&str>, bytes: &[u8]) -> Result<Document> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| invalid(what, e.to_string()))?;
    let has = |key: &str| value.get(key).is_some_and(|v| !v.is_null());
    if has("manifests") && (has("layers") || has("config")) {
        return Err(invalid(what, "it is both an index and a manifest"));
    }
    match value.get("schemaVersion").and_then(Value::as_u64) {
        Some(2) => {}
        Some(1) => {
            return Err(invalid(what, "schema 1 is obsolete: the image must be pushed again by a newer tool"));
        }
        other => {
            return Err(invalid(what, format!("schemaVersion must be 2, is {other:?}")));
        }
    }
    let inside = value.get("mediaType").and_then(Value::as_str);
    let said = inside.or(content_type.filter(|t| t.contains("manifest") || t.contains("index")));
    match said {
        Some(OCI_INDEX | DOCKER_LIST) => index(what, value),
        Some(OCI_MANIFEST | DOCKER_MANIFEST) => manifest(what, value),
        Some(other) => Err(invalid(what, format!("type {other} is neither an image nor an index"))),
        None if has("manifests") => index(what, value),
        None => manifest(what, value),
    }
}

fn index(what: &str, value: Value) -> Result<Document> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Descriptor>,
    }
    let index: Index = serde_json::from_value(value).map_err(|e| invalid(what, e.to_string()))?;
    Ok(Document::Index(index.manifests))
}

fn manifest(what: &str, value: Value) -> Result<Document> {
    let manifest: Manifest = serde_json::from_value(value).map_err(|e| invalid(what, e.to_string()))?;
    let kind = manifest.config.media_type.as_str();
    if kind != OCI_CONFIG && kind != DOCKER_CONFIG {
        return Err(invalid(what, format!("it holds {kind}, which is not a container image")));
    }
    if manifest.config.size > CONFIG_MAX {
        return Err(invalid(what, format!("the image configuration is larger than {CONFIG_MAX} bytes")));
    }
    if manifest.layers.len() > LAYERS_MAX {
        return Err(invalid(
            what,
            format!("{} layers are more than the {LAYERS_MAX} that can be stacked", manifest.layers.len()),
        ));
    }
    Ok(Document::Manifest(Box::new(manifest)))
}

impl Manifest {
    /// Pair the layers with the digests that the configuration gives for their contents.
    pub(crate) fn layer_specs(&self, what: &str, config: &ConfigFile) -> Result<Vec<LayerSpec>> {
        let (layers, diffs) = (&self.layers, &config.rootfs.diff_ids);
        if layers.len() != diffs.len() {
            return Err(invalid(what, format!("{} layers, but {} diff_ids", layers.len(), diffs.len())));
        }
        let pair = |(layer, diff_id): (&Descriptor, &Digest)| {
            if !layer.urls.is_empty() {
                return Err(invalid(what, format!("layer {} is to be fetched from elsewhere", layer.digest)));
            }
            let compression = Compression::of_media_type(&layer.media_type)
                .map_err(|why| invalid(what, format!("layer {}: {why}", layer.digest)))?;
            Ok(LayerSpec { digest: layer.digest, size: layer.size, diff_id: *diff_id, compression })
        };
        layers.iter().zip(diffs).map(pair).collect()
    }
}

/// Choose from an index what runs best on `platform`; among equals the first.
pub(crate) fn choose<'a>(reference: &str, index: &'a [Descriptor], platform: &Platform) -> Result<&'a Descriptor> {
    let rated = index.iter().filter_map(|d| Some((d.platform.as_ref()?.fits(platform)?, d)));
    let best = rated.fold(None, |best: Option<(u32, &Descriptor)>, next| match best {
        Some(best) if best.0 >= next.0 => Some(best),
        _ => Some(next),
    });
    match best {
        Some((_, descriptor)) => Ok(descriptor),
        None => match index {
            [only] if only.platform.is_none() => Ok(only),
            _ => Err(ImageError::WrongPlatform {
                reference: reference.to_owned(),
                wanted: platform.clone(),
                available: available(index),
            }),
        },
    }
}

fn available(index: &[Descriptor]) -> String {
    let known = index.iter().filter_map(|d| d.platform.as_ref()).filter(|p| p.os != "unknown");
    let all: BTreeSet<String> = known.map(Platform::to_string).collect();
    if all.is_empty() { "no platform at all".into() } else { all.into_iter().collect::<Vec<_>>().join(", ") }
}

/// The image configuration file, as far as we use it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default)]
    pub(crate) created: Option<String>,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) config: ImageConfig,
    pub(crate) rootfs: RootFs,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) history: Vec<History>,
}

/// One step of how an image was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// When, in RFC 3339.
    pub created: Option<String>,
    /// The instruction.
    #[serde(deserialize_with = "null_is_default")]
    pub created_by: String,
    /// Remark of the author.
    #[serde(deserialize_with = "null_is_default")]
    pub comment: String,
    /// It changed no files.
    pub empty_layer: bool,
    /// Its layer, as packed.
    #[serde(skip_deserializing)]
    pub layer: Option<Digest>,
    /// Bytes of the layer's files, unpacked.
    #[serde(skip_deserializing)]
    pub size: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) diff_ids: Vec<Digest>,
}

impl ConfigFile {
    pub(crate) fn parse(what: &str, bytes: &[u8]) -> Result<Self> {
        let what = format!("configuration of {what}");
        let config: Self = serde_json::from_slice(bytes).map_err(|e| invalid(&what, e.to_string()))?;
        if config.rootfs.kind != "layers" {
            return Err(invalid(&what, format!("rootfs type {} is not known", config.rootfs.kind)));
        }
        Ok(config)
    }

    pub(crate) fn platform(&self) -> Platform {
        let variant = self.variant.clone().filter(|v| !v.is_empty());
        Platform { os: self.os.clone(), architecture: self.architecture.clone(), variant }
    }

    /// Refuse an image that this machine cannot run; a configuration that does not say is believed.
    pub(crate) fn check_platform(&self, reference: &str, wanted: &Platform) -> Result<()> {
        let own = self.platform();
        if own.os.is_empty() || own.architecture.is_empty() || own.fits(wanted).is_some() {
            return Ok(());
        }
        Err(ImageError::WrongPlatform {
            reference: reference.to_owned(),
            wanted: wanted.clone(),
            available: own.to_string(),
        })
    }
}

/// How a container of an image is to run, unless it is told otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// `USER`: a name or number, and a group after a colon; empty is root.
    #[serde(deserialize_with = "null_is_default")]
    pub user: String,
    /// `EXPOSE`: such as `8080/tcp`.
    #[serde(deserialize_with = "keys", serialize_with = "as_keys")]
    pub exposed_ports: BTreeSet<String>,
    /// `ENV`: such as `PATH=/bin`.
    #[serde(deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    /// `ENTRYPOINT`: what is always run.
    #[serde(deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    /// `CMD`: arguments of the entry point, or the command if there is none.
    #[serde(deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
    /// `VOLUME`: directories that hold data.
    #[serde(deserialize_with = "keys", serialize_with = "as_keys")]
    pub volumes: BTreeSet<String>,
    /// `WORKDIR`; empty is the root directory.
    #[serde(deserialize_with = "null_is_default")]
    pub working_dir: String,
    /// `LABEL`.
    #[serde(deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
    /// `STOPSIGNAL`: a name or a number; empty is SIGTERM.
    #[serde(deserialize_with = "null_is_default")]
    pub stop_signal: String,
    /// `HEALTHCHECK`.
    pub healthcheck: Option<Healthcheck>,
}

/// A check that an image brings along.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", command]`; empty inherits.
    #[serde(deserialize_with = "null_is_default")]
    pub test: Vec<String>,
    /// Between checks; 0 is the default.
    #[serde(rename = "Interval")]
    pub interval_ns: i64,
    /// For one check; 0 is the default.
    #[serde(rename = "Timeout")]
    pub timeout_ns: i64,
    /// After the start, during which failures do not count.
    #[serde(rename = "StartPeriod")]
    pub start_period_ns: i64,
    /// Between checks during the start period.
    #[serde(rename = "StartInterval")]
    pub start_interval_ns: i64,
    /// Failures in a row that make it unhealthy; 0 is the default.
    pub retries: i64,
}

/// Go writes an empty list or map as `null`.
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// A set, which JSON from Go has as a map to empty objects.
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
    let map = Option::<BTreeMap<String, Value>>::deserialize(deserializer)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

fn as_keys<S: serde::Serializer>(set: &BTreeSet<String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(set.iter().map(|key| (key, Value::Object(serde_json::Map::new()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn with(layer_type: &str, extra: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{OCI_CONFIG}","digest":"{HEX}","size":2}},
                "layers":[{{"mediaType":"{layer_type}","digest":"{HEX}","size":3{extra}}}]}}"#
        )
    }

    fn specs(manifest: &str, diffs: usize) -> Result<Vec<LayerSpec>> {
        let diffs = vec![format!("{HEX:?}"); diffs].join(",");
        let config =
            format!(r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[{diffs}]}}}}"#);
        let config = ConfigFile::parse("x", config.as_bytes())?;
        match parse("x", None, manifest.as_bytes())? {
            Document::Manifest(manifest) => manifest.layer_specs("x", &config),
            Document::Index(_) => panic!("an index"),
        }
    }

    #[test]
    fn layers_must_be_known_and_paired() {
        let gzip = Compression::Gzip.media_type();
        assert_eq!(specs(&with(gzip, ""), 1).unwrap()[0].compression, Compression::Gzip);
        for (manifest, diffs, why) in [
            (with(gzip, ""), 2, "1 layers, but 2 diff_ids"),
            (with(gzip, ""), 0, "1 layers, but 0 diff_ids"),
            (with("application/x-unknown", ""), 1, "not known"),
            (with("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", ""), 1, "outside the registry"),
            (with(gzip, r#","urls":["http://169.254.169.254/"]"#), 1, "from elsewhere"),
            (with(gzip, "").replace("\"size\":3", "\"size\":-3"), 1, "-3"),
            (with(gzip, "").replace(HEX, "sha256:../../x"), 1, "digest is"),
            (with(gzip, "").replace("\"schemaVersion\":2", "\"schemaVersion\":1"), 1, "obsolete"),
            (with(gzip, "").replace("\"layers\"", "\"manifests\":[],\"layers\""), 1, "both"),
            (
                with(gzip, "").replace(OCI_CONFIG, "application/vnd.cncf.helm.config.v1+json"),
                1,
                "not a container image",
            ),
            ("{".into(), 1, "EOF"),
            ("[]".into(), 1, "schemaVersion"),
        ] {
            let error = specs(&manifest, diffs).expect_err(why).to_string();
            assert!(error.contains(why), "{why}: {error}");
        }
    }

    #[test]
    fn the_best_platform_is_chosen_and_attestations_never() {
        let entry = |os: &str, arch: &str, variant: Option<&str>, size| Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: Digest::of(b""),
            size,
            urls: vec![],
            annotations: BTreeMap::new(),
            platform: Some(Platform { os: os.into(), architecture: arch.into(), variant: variant.map(Into::into) }),
        };
        let index = [
            entry("unknown", "unknown", None, 1),
            entry("linux", "arm64", Some("v8"), 2),
            entry("linux", "amd64", None, 3),
            entry("linux", "amd64", Some("v3"), 4),
            entry("linux", "amd64", None, 5),
        ];
        for (platform, size) in [("linux/arm64", 2), ("linux/amd64/v2", 3), ("linux/amd64/v4", 4)] {
            assert_eq!(choose("x", &index, &platform.parse().unwrap()).unwrap().size, size, "{platform}");
        }
        let error = choose("x", &index, &"linux/s390x".parse().unwrap()).unwrap_err().to_string();
        assert_eq!(error, "`x` is not for linux/s390x, but for linux/amd64, linux/amd64/v3, linux/arm64/v8");
    }

    #[test]
    fn a_configuration_may_have_nulls() {
        let text = r#"{"created":null,"architecture":"amd64","os":"linux","config":{"User":"","ExposedPorts":{"80/tcp":{}},
            "Env":null,"Entrypoint":null,"Cmd":["a"],"Volumes":null,"WorkingDir":"","Labels":null,"OnBuild":null,
            "Healthcheck":{"Test":["CMD","x"],"Interval":5000000000}},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let config = ConfigFile::parse("x", text.as_bytes()).unwrap().config;
        assert_eq!(config.cmd, ["a"]);
        assert!(config.exposed_ports.contains("80/tcp"));
        assert_eq!(config.healthcheck.unwrap().interval_ns, 5_000_000_000);
        let none = r#"{"config":null,"rootfs":{"type":"layers"}}"#;
        assert_eq!(ConfigFile::parse("x", none.as_bytes()).unwrap().config, ImageConfig::default());
    }
}
