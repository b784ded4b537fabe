//! What the operator says of registries: mirrors, certificates, plain HTTP, short names and trust.
//!
//! ```toml
//! search = ["docker.io", "quay.io"]          # where a name without a registry is looked for
//!
//! [registry."docker.io"]
//! mirrors = ["https://mirror.example.com/hub"] # asked first, in this order
//!
//! [registry."registry.example.com:5000"]
//! ca = "/etc/gantry/example.pem"             # trusted besides the system's
//! insecure = true                            # plain HTTP
//!
//! [[trust]]
//! scope = "registry.example.com/shop"        # a registry, or a path in it; the longest that fits counts
//! require = "signature"                      # any, digest, signature or refuse
//! keys = ["/etc/gantry/shop.pub"]
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::Deserialize;

use crate::error::{ImageError, Result};
use crate::files;
use crate::reference::{self, DEFAULT_REGISTRY, Reference};
use crate::trust::{Key, Require, Rule};

/// Where the settings are, unless `GANTRY_REGISTRIES` names another file.
const DEFAULT_FILE: &str = "/etc/gantry/registries.toml";

/// Larger than any real file.
const FILE_MAX: u64 = 1 << 20;

/// Settings for all registries; without a file, there are none.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    search: Vec<String>,
    registries: BTreeMap<String, Settings>,
    trust: Vec<Rule>,
}

#[derive(Debug, Clone, Default)]
struct Settings {
    mirrors: Vec<Url>,
    insecure: bool,
    ca: Option<PathBuf>,
}

/// Where one repository can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Host, and port if given.
    pub(crate) name: String,
    /// `https://host/v2/repository`.
    pub(crate) base: Url,
    /// The repository as this endpoint calls it.
    pub(crate) repository: String,
    /// More certificates to trust.
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    search: Vec<String>,
    #[serde(default)]
    registry: BTreeMap<String, RegistryTable>,
    #[serde(default)]
    trust: Vec<TrustTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RegistryTable {
    #[serde(default)]
    mirrors: Vec<String>,
    #[serde(default)]
    insecure: bool,
    ca: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TrustTable {
    scope: String,
    require: Require,
    #[serde(default)]
    keys: Vec<PathBuf>,
}

impl Registries {
    /// Read the settings of this host: `$GANTRY_REGISTRIES`, or `/etc/gantry/registries.toml`.
    ///
    /// # Errors
    /// `BadSettings`: the file is malformed, or names a key that cannot be read. No file is no error, unless the variable
    /// names it.
    pub fn of_host() -> Result<Self> {
        match std::env::var_os("GANTRY_REGISTRIES").filter(|file| !file.is_empty()) {
            Some(file) => Self::read(Path::new(&file)),
            None if Path::new(DEFAULT_FILE).exists() => Self::read(Path::new(DEFAULT_FILE)),
            None => Ok(Self::default()),
        }
    }

    /// Read settings from a file.
    ///
    /// # Errors
    /// As [`Registries::of_host`].
    pub fn read(file: &Path) -> Result<Self> {
        let bad = |why: String| ImageError::BadSettings { file: file.to_path_buf(), why };
        let bytes = files::read_limited(file, FILE_MAX)?.ok_or_else(|| bad("it is not there".into()))?;
        let text = String::from_utf8(bytes).map_err(|_| bad("it is not UTF-8".into()))?;
        let parsed: File = toml::from_str(&text).map_err(|error| bad(error.to_string().trim().to_owned()))?;
        let mut registries = BTreeMap::new();
        for (name, table) in parsed.registry {
            let settings = table.check().map_err(|why| bad(format!("registry.\"{name}\": {why}")))?;
            registries.insert(name, settings);
        }
        let mut trust = Vec::new();
        for (at, table) in parsed.trust.into_iter().enumerate() {
            trust.push(table.check().map_err(|why| bad(format!("trust rule {}: {why}", at + 1)))?);
        }
        Ok(Self { search: parsed.search, registries, trust })
    }

    /// What a name may mean: itself if it names a registry, else that name in each registry of the search list.
    ///
    /// # Errors
    /// `BadReference`.
    pub fn candidates(&self, name: &str) -> Result<Vec<Reference>> {
        let own: Reference = name.parse()?;
        let short = own.registry() == DEFAULT_REGISTRY && !name.starts_with("docker.io/");
        if !short || self.search.is_empty() {
            return Ok(vec![own]);
        }
        let in_registry = |registry: &String| match registry.as_str() {
            DEFAULT_REGISTRY => Ok(own.clone()),
            registry => format!("{registry}/{name}").parse(),
        };
        self.search.iter().map(in_registry).collect()
    }

    /// The rule for a repository; `None` if everything is trusted.
    pub(crate) fn rule(&self, reference: &Reference) -> Option<&Rule> {
        let fitting = self.trust.iter().filter(|rule| rule.covers(&reference.name()));
        fitting.max_by_key(|rule| rule.scope.len())
    }

    /// Where a repository can be had, best first: mirrors, then its registry.
    pub(crate) fn endpoints(&self, reference: &Reference, insecure: &[String]) -> Result<Vec<Endpoint>> {
        let name = reference.registry();
        let settings = self.registries.get(name).cloned().unwrap_or_default();
        let mut endpoints = Vec::new();
        for mirror in &settings.mirrors {
            let host = mirror.host_str().unwrap_or_default();
            let host = mirror.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
            let prefix = mirror.path().trim_matches('/');
            let slash = if prefix.is_empty() { "" } else { "/" };
            let repository = format!("{prefix}{slash}{}", reference.repository());
            let mut base = mirror.clone();
            base.set_path(&format!("/v2/{repository}"));
            let ca = self.registries.get(&host).and_then(|settings| settings.ca.clone());
            endpoints.push(Endpoint { name: host, base, repository, ca });
        }
        let plain = settings.insecure || reference::is_loopback(name) || insecure.iter().any(|other| other == name);
        let host = if name == DEFAULT_REGISTRY { "registry-1.docker.io" } else { name };
        let base = format!("{}://{host}/v2/{}", if plain { "http" } else { "https" }, reference.repository());
        let base = Url::parse(&base).map_err(|error| ImageError::BadReference {
            reference: reference.to_string(),
            why: format!("its registry cannot be addressed: {error}"),
        })?;
        let repository = reference.repository().to_owned();
        endpoints.push(Endpoint { name: name.to_owned(), base, repository, ca: settings.ca });
        Ok(endpoints)
    }
}

impl RegistryTable {
    fn check(self) -> Result<Settings, String> {
        let mirror = |text: String| {
            let url = Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            url.ok_or_else(|| format!("`{text}` is not the address of a mirror: write https://HOST[:PORT][/PATH]"))
        };
        let mirrors = self.mirrors.into_iter().map(mirror).collect::<Result<_, _>>()?;
        if let Some(ca) = self.ca.as_ref().filter(|ca| !ca.is_file()) {
            return Err(format!("ca: {} is not there", ca.display()));
        }
        Ok(Settings { mirrors, insecure: self.insecure, ca: self.ca })
    }
}

impl TrustTable {
    fn check(self) -> Result<Rule, String> {
        if self.require == Require::Signature && self.keys.is_empty() {
            return Err("require = \"signature\" needs keys".to_owned());
        }
        let keys = self.keys.iter().map(|file| Key::read(file)).collect::<Result<_, _>>()?;
        Ok(Rule { scope: self.scope, require: self.require, keys })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Registries> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("registries.toml");
        std::fs::write(&file, text).unwrap();
        Registries::read(&file)
    }

    #[test]
    fn mirrors_come_first_and_keep_their_path() {
        let settings = read(
            r#"
            [registry."docker.io"]
            mirrors = ["https://mirror.example.com/hub", "http://10.0.0.5:5000"]
            [registry."plain.example"]
            insecure = true
            "#,
        )
        .unwrap();
        for (name, insecure, expected) in [
            (
                "busybox",
                "",
                "https://mirror.example.com/v2/hub/library/busybox http://10.0.0.5:5000/v2/library/busybox \
                 https://registry-1.docker.io/v2/library/busybox",
            ),
            ("plain.example/a", "", "http://plain.example/v2/a"),
            ("127.0.0.1:5000/a", "", "http://127.0.0.1:5000/v2/a"),
            ("[::1]:5000/a", "", "http://[::1]:5000/v2/a"),
            ("localhost/a", "", "http://localhost/v2/a"),
            ("10.0.0.5:5000/a", "10.0.0.5:5000", "http://10.0.0.5:5000/v2/a"),
            ("10.0.0.5/a", "10.0.0.5:5000", "https://10.0.0.5/v2/a"),
            ("ghcr.io/a/b", "", "https://ghcr.io/v2/a/b"),
        ] {
            let endpoints = settings.endpoints(&name.parse().unwrap(), &[insecure.to_owned()]).unwrap();
            let bases: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.base.as_str()).collect();
            assert_eq!(bases.join(" "), expected, "{name}");
        }
    }

    #[test]
    fn short_names_are_looked_for_where_the_list_says() {
        let names = |settings: &Registries, name: &str| {
            let all = settings.candidates(name).unwrap();
            all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let listed = read(r#"search = ["quay.io", "docker.io"]"#).unwrap();
        for (name, expected) in [
            ("busybox", "quay.io/busybox:latest docker.io/library/busybox:latest"),
            ("team/app:1", "quay.io/team/app:1 docker.io/team/app:1"),
            ("docker.io/library/busybox", "docker.io/library/busybox:latest"),
            ("ghcr.io/a", "ghcr.io/a:latest"),
        ] {
            assert_eq!(names(&listed, name), expected);
        }
        assert_eq!(names(&Registries::default(), "busybox"), "docker.io/library/busybox:latest");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, expected) in [
            ("searc = []", "unknown field `searc`"),
            ("[registry.\"a\"]\nmirrors = [\"mirror.example.com\"]", "registry.\"a\": `mirror.example.com` is not"),
            ("[registry.\"a\"]\nca = \"/nosuch\"", "registry.\"a\": ca: /nosuch is not there"),
            ("[[trust]]\nscope = \"a\"\nrequire = \"signature\"", "trust rule 1: require = \"signature\" needs keys"),
            ("[[trust]]\nscope = \"a\"\nrequire = \"luck\"", "unknown variant `luck`"),
            ("[[trust]]\nscope = \"a\"\nrequire = \"signature\"\nkeys = [\"/nosuch\"]", "/nosuch"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(Registries::read(Path::new("/nosuch")).unwrap_err().to_string().contains("not there"));
    }
}
