//! OCI images from Debian packages: without a registry, without docker, and the same bytes every time.
//!
//! ```text
//! recipe ─► packages (resolved once, archives kept) ─► tree ─► layer blob ─► manifest ─► NAME.tar
//! ```
//!
//! A layer is named by what goes into it, so one that did not change is not made again, and images share the layers
//! below. Everything lies under `.cache/`: `debs/` (archives), `images/layers/` and `images/blobs/` (layers made),
//! `images/NAME.tar` (an OCI image layout as one archive).

mod debian;
mod digest;
pub(crate) mod recipe;
mod tree;

use crate::error::{Error, Result};
use crate::{files, process};
use debian::{Archives, Package};
use digest::Hashing;
use recipe::Recipe;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use tree::{Kind, Node, Tree};

/// Part of every layer's key: raise it when the same recipe gives other bytes.
const BUILDER: &str = "gantry-images-1";
/// [`tree::EPOCH`] as image configurations write it.
const CREATED: &str = "2023-11-14T22:13:20Z";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What no container needs of any package.
const DROP: &[&str] = &[
    "etc/cron*",
    "etc/init.d",
    "etc/logrotate.d",
    "etc/systemd",
    "usr/lib/*/gconv",
    "usr/lib/postgresql/*/lib/bitcode",
    "usr/lib/postgresql/*/lib/llvmjit*",
    "usr/lib/python3*/ensurepip",
    "usr/lib/python3*/idlelib",
    "usr/lib/python3*/lib2to3",
    "usr/lib/python3*/test",
    "usr/lib/python3*/turtledemo",
    "usr/lib/systemd",
    "usr/lib/tmpfiles.d",
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/common-licenses",
    "usr/share/doc",
    "usr/share/doc-base",
    "usr/share/i18n",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/pixmaps",
    "usr/share/postgresql/*/man",
    "usr/share/zsh",
    "var/cache",
    "var/lib/apt",
    "var/run",
];

/// What an image lacks of every package.
fn dropped_always(recipe: &Recipe) -> &'static [&'static str] {
    if recipe.whole { &[] } else { DROP }
}

/// An image that was made or found unchanged.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// Name and tag.
    pub(crate) reference: String,
    /// The OCI image layout as one archive.
    pub(crate) archive: PathBuf,
    /// Compressed size of its layers.
    pub(crate) bytes: u64,
    /// Layers it has.
    pub(crate) layers: usize,
    /// Whether it was there already.
    pub(crate) unchanged: bool,
}

/// One layer that lies among the blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Layer {
    digest: String,
    diff_id: String,
    size: u64,
}

/// `cargo xtask images [--refresh] [NAME...]`.
pub(crate) fn task(args: &[String]) -> Result<()> {
    let (flags, names): (Vec<String>, Vec<String>) = args.iter().cloned().partition(|arg| arg.starts_with('-'));
    if let Some(flag) = flags.iter().find(|flag| *flag != "--refresh") {
        return Err(Error::Usage(format!("images does not know `{flag}`")));
    }
    for image in build(&names, !flags.is_empty())? {
        println!(
            "{:14} {} layers, {:5.1} MB, {}{}",
            image.reference,
            image.layers,
            image.bytes as f64 / 1e6,
            image.archive.strip_prefix(files::root()).unwrap_or(&image.archive).display(),
            if image.unchanged { " (unchanged)" } else { "" }
        );
    }
    Ok(())
}

/// Makes the images named, or the default ones. `refresh` looks for newer packages.
pub(crate) fn build(names: &[String], refresh: bool) -> Result<Vec<Image>> {
    crate::host::check_debian()?;
    let recipes = recipe::all()?;
    if let Some(unknown) = names.iter().find(|name| !recipes.iter().any(|recipe| recipe.name == **name)) {
        let known = recipes.iter().map(|recipe| recipe.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(Error::Usage(format!("no image `{unknown}`; there are {known}")));
    }
    let builder = Builder::open(&files::cache(), recipes)?;
    if refresh {
        builder.archives.forget()?;
        crate::host::update_package_lists()?;
    }
    let wanted: Vec<String> =
        if names.is_empty() { recipe::DEFAULT.iter().map(|name| (*name).to_owned()).collect() } else { names.to_vec() };
    let make = || wanted.iter().map(|name| builder.image(name)).collect::<Result<Vec<_>>>();
    let images = match make() {
        Err(Error::Failed { command, reason }) if command.starts_with("apt-get") && crate::host::is_root() => {
            // A version that left the package archive: newer lists name the one that replaced it.
            eprintln!("{reason}");
            crate::host::update_package_lists()?;
            builder.archives.forget()?;
            make()?
        }
        other => other?,
    };
    if names.is_empty() {
        builder.prune(&wanted)?;
    }
    Ok(images)
}

#[derive(Debug)]
struct Builder {
    folder: PathBuf,
    archives: Archives,
    recipes: Vec<Recipe>,
    architecture: String,
    /// Held while this lives: two builders would write the same files.
    _lock: std::fs::File,
}

impl Builder {
    fn open(cache: &Path, recipes: Vec<Recipe>) -> Result<Self> {
        let folder = cache.join("images");
        std::fs::create_dir_all(folder.join("blobs")).map_err(Error::file("make", &folder))?;
        let path = folder.join(".lock");
        let lock = std::fs::File::create(&path).map_err(Error::file("open", &path))?;
        lock.lock().map_err(Error::file("lock", &path))?;
        let debian = process::text(Command::new("dpkg").arg("--print-architecture"))?.trim().to_owned();
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let field = |key: &str| release.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("?").to_owned();
        let system = format!("{} {} {debian}", field("ID="), field("VERSION_ID="));
        let archives = Archives::open(&cache.join("debs"), &system)?;
        let architecture = if debian == "armhf" { "arm".to_owned() } else { debian };
        Ok(Self { folder, archives, recipes, architecture, _lock: lock })
    }

    fn recipe(&self, name: &str) -> Result<&Recipe> {
        let found = self.recipes.iter().find(|recipe| recipe.name == name);
        found.ok_or_else(|| Error::input(name, "no such image"))
    }

    /// The recipes that make an image, lowest first.
    fn chain(&self, name: &str) -> Result<Vec<&Recipe>> {
        let mut chain = vec![self.recipe(name)?];
        while let Some(from) = &chain[chain.len() - 1].from {
            chain.push(self.recipe(from)?);
        }
        chain.reverse();
        Ok(chain)
    }

    fn image(&self, name: &str) -> Result<Image> {
        let mut layers: Vec<Layer> = Vec::new();
        let mut made_by: Vec<String> = Vec::new();
        for step in self.steps(name)? {
            layers.push(self.layer(&step)?);
            made_by.push(step.recipe.name.clone());
        }
        let recipe = self.recipe(name)?;
        let blobs = documents(recipe, &layers, &made_by, &self.architecture);
        let archive = self.folder.join(format!("{name}.tar"));
        let stamp = self.folder.join(format!("{name}.index.json"));
        let bytes = layers.iter().map(|layer| layer.size).sum();
        let unchanged = archive.exists() && std::fs::read(&stamp).is_ok_and(|kept| kept == blobs.index);
        if !unchanged {
            self.write_layout(&archive, &layers, &blobs)?;
            files::replace(&stamp, &blobs.index)?;
        }
        Ok(Image { reference: recipe.reference.clone(), archive, bytes, layers: layers.len(), unchanged })
    }

    /// What the layers of an image are made from, lowest first.
    fn steps(&self, name: &str) -> Result<Vec<Step<'_>>> {
        let mut steps: Vec<Step<'_>> = Vec::new();
        let mut have: BTreeSet<String> = BTreeSet::new();
        let mut roots: Vec<String> = Vec::new();
        for recipe in self.chain(name)? {
            if !recipe.packages.is_empty() {
                // Resolved together with what is below, so that both agree on alternatives.
                roots.extend(recipe.packages.iter().cloned());
                let mut packages = self.resolve(&roots)?;
                packages.retain(|package| have.insert(package.name.clone()));
                steps.push(Step::packages(recipe, packages, steps.is_empty()));
            }
            if !recipe.files.is_empty() || !recipe.directories.is_empty() || !recipe.users.is_empty() {
                steps.push(Step::files(recipe));
            }
        }
        Ok(steps)
    }

    fn resolve(&self, roots: &[String]) -> Result<Vec<Package>> {
        match self.archives.resolve(roots) {
            Err(first @ Error::Host { .. }) if crate::host::is_root() => {
                // A fresh host has no package lists yet.
                crate::host::update_package_lists()?;
                self.archives.resolve(roots).map_err(|_| first)
            }
            other => other,
        }
    }

    /// A layer that was made before, or makes it.
    fn layer(&self, step: &Step<'_>) -> Result<Layer> {
        let record = self.folder.join(format!("layers/{}.json", step.key));
        if let Some(layer) = recall(&record)
            && self.blob(&layer.digest).exists()
        {
            return Ok(layer);
        }
        let tree = self.tree(step)?;
        let (bytes, layer) = pack(&tree).map_err(Error::file("make", &record))?;
        files::replace(&self.blob(&layer.digest), &bytes)?;
        let kept =
            json!({"digest": layer.digest, "diff_id": layer.diff_id, "size": layer.size, "of": step.recipe.name});
        files::replace(&record, format!("{kept}\n").as_bytes())?;
        Ok(layer)
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.folder.join("blobs").join(digest)
    }

    fn tree(&self, step: &Step<'_>) -> Result<Tree> {
        let recipe = step.recipe;
        let mut tree = if step.lowest { base_tree() } else { Tree::default() };
        if step.files {
            add_files(&mut tree, recipe);
            return Ok(tree);
        }
        self.archives.fetch(&step.packages)?;
        for package in &step.packages {
            let dropped = |path: &str| {
                let patterns = dropped_always(recipe).iter().copied().chain(recipe.drop.iter().map(String::as_str));
                patterns.into_iter().any(|pattern| tree::under(pattern, path))
            };
            tree::extend_from_package(&mut tree, &self.archives.path(package), dropped)?;
        }
        if recipe.applets {
            add_applets(&mut tree)?;
        }
        link_commands(&mut tree, &recipe.commands);
        Ok(tree)
    }

    fn write_layout(&self, archive: &Path, layers: &[Layer], documents: &Documents) -> Result<()> {
        let mut layout = Tree::default();
        let mut put = |path: &str, bytes: Vec<u8>| layout.put(path, Node::new(Kind::File(bytes.into()), 0o644));
        put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        put("index.json", documents.index.clone());
        for document in [&documents.manifest, &documents.config] {
            put(&format!("blobs/sha256/{}", digest::of(document)), document.clone());
        }
        for layer in layers {
            let path = self.blob(&layer.digest);
            put(&format!("blobs/sha256/{}", layer.digest), std::fs::read(&path).map_err(Error::file("read", &path))?);
        }
        let mut bytes = Vec::new();
        layout.write(&mut bytes).map_err(Error::file("write", archive))?;
        files::replace(archive, &bytes)
    }

    /// Removes layers that none of the images has any more.
    fn prune(&self, images: &[String]) -> Result<()> {
        let mut keys = BTreeSet::new();
        let mut blobs = BTreeSet::new();
        for name in images {
            for step in self.steps(name)? {
                blobs.insert(self.layer(&step)?.digest);
                keys.insert(format!("{}.json", step.key));
            }
        }
        for (folder, kept) in [("layers", keys), ("blobs", blobs)] {
            let folder = self.folder.join(folder);
            for entry in std::fs::read_dir(&folder).map_err(Error::file("list", &folder))? {
                let path = entry.map_err(Error::file("list", &folder))?.path();
                if !kept.contains(&*path.file_name().unwrap_or_default().to_string_lossy()) {
                    std::fs::remove_file(&path).map_err(Error::file("remove", &path))?;
                }
            }
        }
        Ok(())
    }
}

/// One layer to be: either packages or a recipe's own files.
#[derive(Debug)]
struct Step<'a> {
    recipe: &'a Recipe,
    packages: Vec<Package>,
    files: bool,
    lowest: bool,
    /// Names the layer by all that goes into it.
    key: String,
}

impl<'a> Step<'a> {
    fn packages(recipe: &'a Recipe, packages: Vec<Package>, lowest: bool) -> Self {
        let content: Vec<&str> = packages.iter().map(|package| package.sha256.as_str()).collect();
        let made_of =
            json!([BUILDER, content, dropped_always(recipe), recipe.drop, recipe.commands, recipe.applets, lowest]);
        Self { recipe, packages, files: false, lowest, key: digest::of(made_of.to_string().as_bytes()) }
    }

    fn files(recipe: &'a Recipe) -> Self {
        let content: Vec<Value> = recipe
            .files
            .iter()
            .map(|(path, content)| json!([path, digest::of(&content.bytes), content.executable]))
            .collect();
        let made_of = json!([BUILDER, content, recipe.directories, recipe.users]);
        let key = digest::of(made_of.to_string().as_bytes());
        Self { recipe, packages: Vec::new(), files: true, lowest: false, key }
    }
}

fn recall(record: &Path) -> Option<Layer> {
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(record).ok()?).ok()?;
    let field = |key: &str| kept[key].as_str().map(str::to_owned);
    Some(Layer { digest: field("digest")?, diff_id: field("diff_id")?, size: kept["size"].as_u64()? })
}

/// A tree as a compressed layer.
fn pack(tree: &Tree) -> std::io::Result<(Vec<u8>, Layer)> {
    // Neither a name nor a time in the header of the compressed stream.
    let zipped = flate2::GzBuilder::new().write(Hashing::new(Vec::new()), flate2::Compression::new(6));
    let mut raw = Hashing::new(zipped);
    tree.write(&mut raw)?;
    raw.flush()?;
    let (zipped, diff_id) = raw.finish();
    let (bytes, digest) = zipped.finish()?.finish();
    let size = bytes.len() as u64;
    Ok((bytes, Layer { digest, diff_id, size }))
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

fn base_tree() -> Tree {
    let mut tree = Tree::skeleton();
    for (path, text) in [
        ("etc/passwd", PASSWD),
        ("etc/group", GROUP),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ] {
        tree.put(path, Node::new(Kind::File(text.as_bytes().into()), 0o644));
    }
    tree
}

fn add_files(tree: &mut Tree, recipe: &Recipe) {
    if !recipe.users.is_empty() {
        let mut passwd = PASSWD.to_owned();
        let mut group = GROUP.to_owned();
        for (name, id) in &recipe.users {
            passwd.push_str(&format!("{name}:x:{id}:{id}:{name}:/tmp:/bin/sh\n"));
            group.push_str(&format!("{name}:x:{id}:\n"));
        }
        tree.put("etc/passwd", Node::new(Kind::File(passwd.into_bytes().into()), 0o644));
        tree.put("etc/group", Node::new(Kind::File(group.into_bytes().into()), 0o644));
    }
    for (path, owner) in &recipe.directories {
        let id = recipe.users.get(owner).copied().unwrap_or_default();
        let mode = if id == 0 { 0o755 } else { 0o700 };
        tree.put(path, Node { uid: id, gid: id, ..Node::new(Kind::Directory, mode) });
    }
    for (path, content) in &recipe.files {
        let mode = if content.executable { 0o755 } else { 0o644 };
        tree.put(path, Node::new(Kind::File(content.bytes.as_slice().into()), mode));
    }
}

/// Links for all that busybox can be called as: what its package leaves to an install script.
fn add_applets(tree: &mut Tree) -> Result<()> {
    let program = tree.file("usr/bin/busybox").ok_or_else(|| Error::input("busybox-static", "holds no busybox"))?;
    let scratch = files::Scratch::new()?;
    let path = scratch.path().join("busybox");
    files::replace(&path, program)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).map_err(Error::file("make executable", &path))?;
    for applet in process::text(Command::new(&path).arg("--list"))?.lines() {
        tree.link(&format!("usr/bin/{applet}"), "busybox");
    }
    Ok(())
}

/// Links in /usr/local/bin to the files of folders outside PATH.
fn link_commands(tree: &mut Tree, folders: &[String]) {
    let found: Vec<(String, String)> = tree
        .iter()
        .filter(|(_, node)| !matches!(node.kind, Kind::Directory))
        .filter_map(|(path, _)| {
            let (folder, name) = path.rsplit_once('/')?;
            let segments = |text: &str| text.split('/').count();
            let listed = folders.iter().any(|one| tree::under(one, folder) && segments(one) == segments(folder));
            listed.then(|| (format!("usr/local/bin/{name}"), format!("/{path}")))
        })
        .collect();
    for (path, target) in found {
        tree.link(&path, &target);
    }
}

/// The JSON documents of an image.
#[derive(Debug)]
struct Documents {
    config: Vec<u8>,
    manifest: Vec<u8>,
    index: Vec<u8>,
}

fn documents(recipe: &Recipe, layers: &[Layer], made_by: &[String], architecture: &str) -> Documents {
    let mut config = recipe.config.clone();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let given = config.get("Env").and_then(Value::as_array).cloned().unwrap_or_default();
    config.insert("Env".into(), std::iter::once(json!(path)).chain(given).collect());
    config.entry("WorkingDir").or_insert_with(|| json!("/"));
    let image = json!({
        "created": CREATED,
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|layer| format!("sha256:{}", layer.diff_id)).collect::<Vec<_>>(),
        },
        "history": made_by
            .iter()
            .map(|name| json!({"created": CREATED, "created_by": format!("cargo xtask images {name}")}))
            .collect::<Vec<_>>(),
    });
    let config = image.to_string().into_bytes();
    let descriptor = |kind: &str, digest: &str, size: u64| {
        BTreeMap::from([
            ("mediaType", json!(kind)),
            ("digest", json!(format!("sha256:{digest}"))),
            ("size", json!(size)),
        ])
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &digest::of(&config), config.len() as u64),
        "layers": layers.iter().map(|one| descriptor(LAYER, &one.digest, one.size)).collect::<Vec<_>>(),
    });
    let manifest = manifest.to_string().into_bytes();
    let mut entry = descriptor(MANIFEST, &digest::of(&manifest), manifest.len() as u64);
    entry.insert("platform", json!({"architecture": architecture, "os": "linux"}));
    entry.insert(
        "annotations",
        json!({
            "io.containerd.image.name": format!("docker.io/library/{}", recipe.reference),
            "org.opencontainers.image.ref.name": recipe.reference,
        }),
    );
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
    Documents { config, manifest, index: index.to_string().into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use recipe::Content;

    fn recipe(packages: &[&str], files: &[(&str, &str)]) -> Recipe {
        Recipe {
            name: "x".into(),
            reference: "x:1".into(),
            from: None,
            packages: packages.iter().map(|name| (*name).to_owned()).collect(),
            drop: Vec::new(),
            commands: Vec::new(),
            users: BTreeMap::new(),
            directories: BTreeMap::new(),
            files: files
                .iter()
                .map(|(path, text)| {
                    ((*path).to_owned(), Content { bytes: text.as_bytes().to_vec(), executable: false })
                })
                .collect(),
            whole: false,
            applets: false,
            config: serde_json::Map::from_iter([("Env".to_owned(), json!(["A=1"]))]),
        }
    }

    #[test]
    fn a_layer_is_named_by_all_that_goes_into_it() {
        let one = recipe(&[], &[("/a", "1")]);
        let key = Step::files(&one).key;
        assert_eq!(key, Step::files(&recipe(&[], &[("/a", "1")])).key);
        assert_ne!(key, Step::files(&recipe(&[], &[("/a", "2")])).key, "content");
        assert_ne!(key, Step::files(&recipe(&[], &[("/b", "1")])).key, "path");
        let mut users = one.clone();
        users.users.insert("web".into(), 101);
        assert_ne!(key, Step::files(&users).key, "users");
        let mut executable = one.clone();
        executable.files.get_mut("/a").unwrap().executable = true;
        assert_ne!(key, Step::files(&executable).key, "mode");

        let packages = debian::parse("Package: a\nVersion: 1\nFilename: a\nSHA256: aa\n");
        let newer = debian::parse("Package: a\nVersion: 2\nFilename: a\nSHA256: bb\n");
        let key = Step::packages(&one, packages.clone(), true).key;
        assert_ne!(key, Step::packages(&one, newer, true).key, "a newer package");
        assert_ne!(key, Step::packages(&one, packages.clone(), false).key, "skeleton");
        let mut slimmer = one.clone();
        slimmer.drop.push("usr/share".into());
        assert_ne!(key, Step::packages(&slimmer, packages, true).key, "what is dropped");
    }

    #[test]
    fn packing_twice_gives_the_same_bytes() {
        let mut tree = base_tree();
        add_files(&mut tree, &recipe(&[], &[("/etc/x", "text")]));
        let (first, layer) = pack(&tree).unwrap();
        let (second, again) = pack(&tree).unwrap();
        assert_eq!((first.as_slice(), &layer), (second.as_slice(), &again));
        assert_eq!(&first[..4], b"\x1f\x8b\x08\x00", "no name, no comment");
        assert_eq!(&first[4..8], [0; 4], "no time");
        assert_eq!(layer.digest, digest::of(&first));
        let mut raw = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(first.as_slice()), &mut raw).unwrap();
        assert_eq!(layer.diff_id, digest::of(&raw));
    }

    #[test]
    fn the_documents_name_each_other() {
        let layer = Layer { digest: "d1".into(), diff_id: "d2".into(), size: 7 };
        let made = documents(&recipe(&[], &[]), &[layer], &["x".into()], "amd64");
        let index: Value = serde_json::from_slice(&made.index).unwrap();
        let manifest: Value = serde_json::from_slice(&made.manifest).unwrap();
        let config: Value = serde_json::from_slice(&made.config).unwrap();
        let sha = |bytes: &[u8]| format!("sha256:{}", digest::of(bytes));
        assert_eq!(index["manifests"][0]["digest"], sha(&made.manifest));
        assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "x:1");
        assert_eq!(manifest["config"]["digest"], sha(&made.config));
        assert_eq!(manifest["layers"][0]["size"], 7);
        assert_eq!(config["rootfs"]["diff_ids"][0], "sha256:d2");
        assert_eq!(config["config"]["Env"][1], "A=1");
        assert!(config["config"]["Env"][0].as_str().unwrap().starts_with("PATH="));
    }

    #[test]
    fn commands_outside_path_get_links() {
        let mut tree = Tree::default();
        for path in
            ["usr/lib/postgresql/15/bin/initdb", "usr/lib/postgresql/15/lib/x.so", "usr/lib/postgresql/15/bin/d/e"]
        {
            tree.put(path, Node::new(Kind::File(b"x".as_slice().into()), 0o755));
        }
        link_commands(&mut tree, &["usr/lib/postgresql/*/bin".to_owned()]);
        let links: Vec<&str> =
            tree.iter().filter(|(_, node)| matches!(node.kind, Kind::Symlink(_))).map(|(path, _)| path).collect();
        assert_eq!(links, ["usr/local/bin/initdb"]);
    }
}
