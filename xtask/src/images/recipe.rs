//! What an image is made from: a table of built-in images, and folders with an `image.json`.
//!
//! ```json
//! {
//!   "image": "shop-web:1",                     name and tag, as a manifest writes them
//!   "from": "base",                            the image below; see BUILT_IN
//!   "packages": ["nginx"],                     Debian packages; what they depend on comes along
//!   "drop": ["etc/nginx/sites-*"],             what of the packages is left out, `*` within one segment
//!   "commands": ["usr/lib/postgresql/*/bin"],  folders whose files get links in /usr/local/bin
//!   "users": {"web": 101},                     a user and a group each
//!   "directories": {"/data": "web"},           empty directories and whom they belong to
//!   "files": {"/etc/nginx/nginx.conf": "nginx.conf"},  files beside image.json; an executable one stays so
//!   "config": {"Cmd": ["start"]}               `config` of the OCI image configuration
//! }
//! ```

use crate::error::{Error, Result};
use crate::files;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// One image to be made.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Recipe {
    /// Its file is `.cache/images/NAME.tar`.
    pub(crate) name: String,
    /// Name and tag.
    pub(crate) reference: String,
    /// Name of the recipe below.
    pub(crate) from: Option<String>,
    pub(crate) packages: Vec<String>,
    pub(crate) drop: Vec<String>,
    pub(crate) commands: Vec<String>,
    pub(crate) users: BTreeMap<String, u64>,
    pub(crate) directories: BTreeMap<String, String>,
    pub(crate) files: BTreeMap<String, Content>,
    /// Links for every applet of the busybox in it.
    pub(crate) applets: bool,
    /// With all files of its packages, as images of the world have them.
    pub(crate) whole: bool,
    pub(crate) config: Map<String, Value>,
}

/// A file of a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) bytes: Vec<u8>,
    pub(crate) executable: bool,
}

/// Images that need no files of their own: name, image below, packages, links for busybox applets.
const BUILT_IN: &[(&str, Option<&str>, &[&str], bool)] = &[
    ("busybox", None, &["busybox-static"], true),
    // glibc for programs of the distribution, above busybox as shell and tools.
    ("base", Some("busybox"), &["libc6", "libgcc-s1", "zlib1g", "libssl3"], false),
];

/// What `bench images` pulls: a layer for each group of packages, as a long list of build steps makes it.
const BENCH: &[&[&str]] = &[
    &["base-files", "bash", "coreutils", "findutils", "grep", "gzip", "libssl3", "ncurses-base", "sed", "tar"],
    &["python3"],
    &["nginx"],
    &["postgresql-15"],
    &["git"],
    &["redis-server"],
    &["php8.2-cli", "ruby"],
    &["python3-numpy"],
    &["openjdk-17-jre-headless"],
    &["gcc-12"],
    &["vim"],
    &["python3-botocore"],
];

/// The name of the image that has all of them.
pub(crate) const BENCH_IMAGE: &str = "bench";

/// Folders with an `image.json`, below the root of the repository.
const FOLDERS: &[&str] = &["examples/shop/web", "examples/shop/api", "examples/shop/db"];

/// Images that are made when none is named; `base` only as part of others.
pub(crate) const DEFAULT: &[&str] = &["busybox", "shop-web", "shop-api", "shop-db"];

/// All recipes, each after the one it is made from.
pub(crate) fn all() -> Result<Vec<Recipe>> {
    let built_in = BUILT_IN.iter().map(|(name, from, packages, applets)| Recipe {
        name: (*name).to_owned(),
        reference: format!("{name}:latest"),
        from: from.map(str::to_owned),
        packages: packages.iter().map(|name| (*name).to_owned()).collect(),
        drop: Vec::new(),
        commands: Vec::new(),
        users: BTreeMap::new(),
        directories: BTreeMap::new(),
        files: BTreeMap::new(),
        applets: *applets,
        whole: false,
        config: Map::from_iter([("Cmd".to_owned(), json!(["sh"]))]),
    });
    let mut recipes: Vec<Recipe> = built_in.collect();
    recipes.extend(bench());
    for folder in FOLDERS {
        recipes.push(read(&files::root().join(folder))?);
    }
    for (index, recipe) in recipes.iter().enumerate() {
        if let Some(from) = &recipe.from
            && !recipes[..index].iter().any(|below| below.name == *from)
        {
            return Err(Error::input(&recipe.name, format!("no image `{from}` to be made from")));
        }
    }
    Ok(recipes)
}

/// One recipe for each layer of the benchmark's image; the last has files and deletions of its own too.
fn bench() -> impl Iterator<Item = Recipe> {
    let name = |layers: usize| {
        if layers == BENCH.len() { BENCH_IMAGE.to_owned() } else { format!("{BENCH_IMAGE}-{layers}") }
    };
    BENCH.iter().enumerate().map(move |(below, packages)| {
        let last = below + 1 == BENCH.len();
        let content = |text: &str| Content { bytes: text.as_bytes().to_vec(), executable: false };
        let own = [("srv/app/main.py", "print(1)\n"), ("usr/share/doc/.wh.git", ""), ("etc/nginx/.wh..wh..opq", "")];
        Recipe {
            name: name(below + 1),
            reference: format!("{}:latest", name(below + 1)),
            from: (below > 0).then(|| name(below)),
            packages: packages.iter().map(|name| (*name).to_owned()).collect(),
            drop: Vec::new(),
            commands: Vec::new(),
            users: BTreeMap::new(),
            directories: BTreeMap::new(),
            files: own.iter().filter(|_| last).map(|(path, text)| ((*path).to_owned(), content(text))).collect(),
            applets: false,
            whole: true,
            config: Map::from_iter([("Cmd".to_owned(), json!(["bash"]))]),
        }
    })
}

/// The recipe in a folder.
pub(crate) fn read(folder: &Path) -> Result<Recipe> {
    let path = folder.join("image.json");
    let text = files::read(&path)?;
    let document: Value = serde_json::from_str(&text).map_err(|error| Error::input(path.display(), error))?;
    parse(&document, |file| content(&folder.join(file))).map_err(|error| match error {
        Error::Input { subject, problem } => Error::input(format!("{}: {subject}", path.display()), problem),
        other => other,
    })
}

fn content(path: &Path) -> Result<Content> {
    let bytes = std::fs::read(path).map_err(Error::file("read", path))?;
    let mode = std::fs::metadata(path).map_err(Error::file("read", path))?.permissions().mode();
    Ok(Content { bytes, executable: mode & 0o100 != 0 })
}

fn parse(document: &Value, file: impl Fn(&str) -> Result<Content>) -> Result<Recipe> {
    let fields = document.as_object().ok_or_else(|| Error::input("image recipe", "must be an object"))?;
    const KNOWN: [&str; 9] =
        ["image", "from", "packages", "drop", "commands", "users", "directories", "files", "config"];
    if let Some(unknown) = fields.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(Error::input(unknown, format!("no such key; there are {}", KNOWN.join(", "))));
    }
    let reference = text(document, "image")?.ok_or_else(|| Error::input("image", "is missing"))?;
    let users: BTreeMap<String, u64> = map(document, "users", |value| value.as_u64())?;
    let directories: BTreeMap<String, String> =
        map(document, "directories", |value| value.as_str().map(str::to_owned))?;
    if let Some((path, owner)) = directories.iter().find(|(_, owner)| *owner != "root" && !users.contains_key(*owner)) {
        return Err(Error::input(format!("directories: {path}"), format!("`{owner}` is not among the users")));
    }
    let mut files = BTreeMap::new();
    for (path, source) in map(document, "files", |value| value.as_str().map(str::to_owned))? {
        files.insert(path, file(&source)?);
    }
    Ok(Recipe {
        name: reference.split(':').next().unwrap_or_default().to_owned(),
        from: text(document, "from")?,
        packages: list(document, "packages")?,
        drop: list(document, "drop")?,
        commands: list(document, "commands")?,
        users,
        directories,
        files,
        applets: false,
        whole: false,
        config: document["config"].as_object().cloned().unwrap_or_default(),
        reference,
    })
}

fn text(document: &Value, key: &str) -> Result<Option<String>> {
    match &document[key] {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        _ => Err(Error::input(key, "must be text")),
    }
}

fn list(document: &Value, key: &str) -> Result<Vec<String>> {
    let wrong = || Error::input(key, "must be a list of texts");
    match &document[key] {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => items.iter().map(|one| one.as_str().map(str::to_owned).ok_or_else(wrong)).collect(),
        _ => Err(wrong()),
    }
}

fn map<T>(document: &Value, key: &str, value: impl Fn(&Value) -> Option<T>) -> Result<BTreeMap<String, T>> {
    match &document[key] {
        Value::Null => Ok(BTreeMap::new()),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, one)| {
                let wrong = || Error::input(format!("{key}: {name}"), "has a value of the wrong kind");
                Ok((name.clone(), value(one).ok_or_else(wrong)?))
            })
            .collect(),
        _ => Err(Error::input(key, "must be an object")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Recipe, String> {
        let document = serde_json::from_str(text).unwrap();
        parse(&document, |name| Ok(Content { bytes: name.as_bytes().to_vec(), executable: name == "start" }))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_recipe_is_read() {
        let recipe = read_text(
            r#"{"image": "shop-web:1", "from": "base", "packages": ["nginx"], "users": {"web": 101},
                "directories": {"/data": "web"}, "files": {"/usr/local/bin/start": "start"},
                "config": {"Cmd": ["start"]}}"#,
        )
        .unwrap();
        assert_eq!((recipe.name.as_str(), recipe.reference.as_str()), ("shop-web", "shop-web:1"));
        assert_eq!(recipe.from.as_deref(), Some("base"));
        assert!(recipe.files["/usr/local/bin/start"].executable);
        assert_eq!(recipe.config["Cmd"], json!(["start"]));
    }

    #[test]
    fn a_wrong_recipe_names_the_key() {
        for (text, error) in [
            (r#"[]"#, "image recipe: must be an object"),
            (r#"{}"#, "image: is missing"),
            (r#"{"image": 1}"#, "image: must be text"),
            (r#"{"image": "a:1", "packages": "nginx"}"#, "packages: must be a list of texts"),
            (r#"{"image": "a:1", "users": {"web": "x"}}"#, "users: web: has a value of the wrong kind"),
            (r#"{"image": "a:1", "directories": {"/d": "web"}}"#, "directories: /d: `web` is not among the users"),
            (
                r#"{"image": "a:1", "cmd": []}"#,
                "cmd: no such key; there are image, from, packages, drop, commands, users, directories, files, config",
            ),
        ] {
            assert_eq!(read_text(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn the_recipes_of_this_repository_are_good() {
        let recipes = all().unwrap();
        for name in DEFAULT {
            assert!(recipes.iter().any(|recipe| recipe.name == *name), "{name}");
        }
    }
}
