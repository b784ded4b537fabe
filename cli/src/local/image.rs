//! `gantry image …` and `gantry system …`: names, transport, checking and room of the images of this host.

use super::build::FromRootfs;
use super::error::LocalError;
use super::images::{Images, Load, Pull, Rmi, Show, block_on, open, print};
use super::record::{Phase, Shelf};
use crate::error::{CliError, Outcome};
use crate::global::Global;
use gantry_api::units::Bytes;
use gantry_images::{
    History, Image as StoredImage, ImageError, Prune as PruneWhat, PullOptions, Reference, Registries, Removed,
    SnapshotUsage, Space, Store, Usage, default_auth_file,
};
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal};
use std::path::{Path, PathBuf};

/// Images of this host.
#[derive(Debug, clap::Subcommand)]
pub enum Image {
    #[command(visible_alias = "list")]
    Ls(Images),
    Pull(Pull),
    Push(Push),
    Tag(Tag),
    #[command(visible_alias = "remove")]
    Rm(Rmi),
    Load(Load),
    Save(Save),
    Inspect(Inspect),
    History(ShowHistory),
    Verify(Verify),
    FromRootfs(FromRootfs),
    Prune(Prune),
}

impl Image {
    /// Does what was asked.
    ///
    /// # Errors
    /// Those of the command.
    pub fn run(&self, global: &Global) -> Outcome {
        match self {
            Self::Ls(args) => args.run(global),
            Self::Pull(args) => args.run(global),
            Self::Push(args) => args.run(global),
            Self::Tag(args) => args.run(global),
            Self::Rm(args) => args.run(global),
            Self::Load(args) => args.run(global),
            Self::Save(args) => args.run(global),
            Self::Inspect(args) => args.run(global),
            Self::History(args) => args.run(global),
            Self::Verify(args) => args.run(global),
            Self::FromRootfs(args) => args.run(global),
            Self::Prune(args) => args.run(global),
        }
    }
}

/// What takes room on this host, and giving it back.
#[derive(Debug, clap::Subcommand)]
pub enum System {
    Df(Df),
    Prune(Prune),
}

impl System {
    /// Does what was asked.
    ///
    /// # Errors
    /// Those of the command.
    pub fn run(&self, global: &Global) -> Outcome {
        match self {
            Self::Df(args) => args.run(global),
            Self::Prune(args) => args.run(global),
        }
    }
}

fn find(store: &Store, name: &str) -> Result<StoredImage, LocalError> {
    Ok(store.image(name)?.ok_or_else(|| ImageError::NotFound(name.to_owned()))?)
}

fn options(insecure: &[String]) -> Result<PullOptions, LocalError> {
    Ok(PullOptions {
        insecure_registries: insecure.to_vec(),
        auth_file: default_auth_file(),
        registries: Registries::of_host()?,
        ..PullOptions::default()
    })
}

/// Send an image to a registry.
#[derive(Debug, clap::Args)]
pub struct Push {
    /// Image; its name says where to.
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Send it under this name instead.
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    /// Registry that is spoken to over plain HTTP.
    #[arg(long, value_name = "HOST[:PORT]")]
    insecure_registry: Vec<String>,
    /// Print nothing but the digest.
    #[arg(long, short)]
    quiet: bool,
}

impl Push {
    /// Done when the registry has it.
    ///
    /// # Errors
    /// It is not here, or the registry refuses it.
    pub fn run(&self, global: &Global) -> Outcome {
        let store = open(global, "push")?;
        let target: Reference = self.target.as_ref().unwrap_or(&self.image).parse().map_err(LocalError::from)?;
        let show = Show::new(self.quiet);
        let options = options(&self.insecure_registry)?;
        let pushed = block_on(store.push(&self.image, &target, &options, &show))?;
        show.end();
        let digest = pushed.map_err(LocalError::from)?;
        print(&if self.quiet { format!("{digest}\n") } else { format!("pushed {} {digest}\n", target.familiar()) });
        Ok(0)
    }
}

/// Give an image another name.
#[derive(Debug, clap::Args)]
pub struct Tag {
    /// Image, by name or id.
    image: String,
    /// Its new name; an image that had it loses it.
    name: String,
}

impl Tag {
    /// Done when the name is written.
    ///
    /// # Errors
    /// There is no such image, or the name is none.
    pub fn run(&self, global: &Global) -> Outcome {
        let store = open(global, "tag")?;
        let name: Reference = self.name.parse().map_err(LocalError::from)?;
        store.tag(&self.image, &name).map_err(LocalError::from)?;
        Ok(0)
    }
}

/// Write images as one archive, for `gantry load`, `docker load`, `podman load` or skopeo.
#[derive(Debug, clap::Args)]
pub struct Save {
    /// Archive; `-` is standard output.
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// Images, by name or id.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Save {
    /// Done when the archive is whole and on disk.
    ///
    /// # Errors
    /// An image is not here, or the archive cannot be written; then there is none.
    pub fn run(&self, global: &Global) -> Outcome {
        let store = open(global, "save")?;
        let names: Vec<&str> = self.images.iter().map(String::as_str).collect();
        if self.output == Path::new("-") {
            if io::stdout().is_terminal() {
                return Err(CliError::new("standard output is a terminal").hint("gantry save -o FILE IMAGE"));
            }
            let mut out = BufWriter::new(io::stdout());
            store.save(&names, &mut out, "standard output").map_err(LocalError::from)?;
            return Ok(0);
        }
        // Beside its place, so that a failure leaves what was there before.
        let mut unfinished = self.output.clone().into_os_string();
        unfinished.push(format!(".{}.tmp", std::process::id()));
        let unfinished = PathBuf::from(unfinished);
        let saved = self.write(&store, &names, &unfinished);
        if saved.is_err() {
            drop(fs::remove_file(&unfinished)); // the first error is the one to tell
        }
        saved?;
        Ok(0)
    }

    fn write(&self, store: &Store, names: &[&str], unfinished: &Path) -> Result<(), LocalError> {
        let file = File::create(unfinished).map_err(LocalError::file("write", &self.output))?;
        let mut out = BufWriter::new(file);
        store.save(names, &mut out, &self.output.display().to_string())?;
        let file = out.into_inner().map_err(|error| LocalError::file("write", &self.output)(error.into_error()))?;
        file.sync_all().map_err(LocalError::file("write", &self.output))?;
        fs::rename(unfinished, &self.output).map_err(LocalError::file("write", &self.output))
    }
}

/// Show everything that is known of images, as JSON.
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// Images, by name or id.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Inspect {
    /// Prints it.
    ///
    /// # Errors
    /// One is not here.
    pub fn run(&self, global: &Global) -> Outcome {
        let store = open(global, "image inspect")?;
        let all: Result<Vec<serde_json::Value>, LocalError> =
            self.images.iter().map(|name| find(&store, name).map(|image| inspected(&image))).collect();
        print(&format!("{}\n", serde_json::to_string_pretty(&all?).unwrap_or_default()));
        Ok(0)
    }
}

fn inspected(image: &StoredImage) -> serde_json::Value {
    let layer = |layer: &gantry_images::LayerInfo| serde_json::json!({ "digest": layer.digest, "diff_id": layer.diff_id, "size_bytes": layer.size });
    serde_json::json!({
        "names": image.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "id": image.id,
        "digest": image.digest,
        "source_digests": image.source_digests,
        "created": image.created,
        "os": image.os,
        "architecture": image.architecture,
        "variant": image.variant,
        "size_bytes": image.size,
        "download_size_bytes": image.download_size,
        "config": image.config,
        "layers": image.layers.iter().map(layer).collect::<Vec<_>>(),
    })
}

/// Show how an image was made.
#[derive(Debug, clap::Args)]
pub struct ShowHistory {
    /// Image, by name or id.
    image: String,
    /// For programs.
    #[arg(long)]
    json: bool,
    /// Whole instructions.
    #[arg(long)]
    no_trunc: bool,
}

/// Characters of an instruction that are shown.
const INSTRUCTION_WIDTH: usize = 70;

impl ShowHistory {
    /// Prints it, newest step first.
    ///
    /// # Errors
    /// It is not here.
    pub fn run(&self, global: &Global) -> Outcome {
        let store = open(global, "image history")?;
        let image = find(&store, &self.image)?;
        let mut steps = store.history(&image).map_err(LocalError::from)?;
        steps.reverse();
        if self.json {
            print(&format!("{}\n", serde_json::to_string_pretty(&steps).unwrap_or_default()));
            return Ok(0);
        }
        let mut text = format!("{:12}  {:10}  {:>10}  CREATED BY\n", "LAYER", "CREATED", "SIZE");
        for step in &steps {
            text += &self.line(step);
        }
        print(&text);
        Ok(0)
    }

    fn line(&self, step: &History) -> String {
        let layer = step.layer.map_or_else(|| "-".to_owned(), |layer| layer.short());
        let created = step.created.as_deref().and_then(|text| text.get(..10)).unwrap_or("-");
        let by = if step.created_by.is_empty() { &step.comment } else { &step.created_by };
        let mut by: String = by.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if !self.no_trunc && by.chars().count() > INSTRUCTION_WIDTH {
            by = by.chars().take(INSTRUCTION_WIDTH - 1).chain(['…']).collect();
        }
        format!("{layer:12}  {created:10}  {:>10}  {by}\n", Bytes(step.size).to_string())
    }
}

/// Check every file of images, packed and unpacked, against its digest.
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// Put back what is damaged: from the packed layers, or from the registry.
    #[arg(long)]
    repair: bool,
    /// Registry that is spoken to over plain HTTP.
    #[arg(long, value_name = "HOST[:PORT]")]
    insecure_registry: Vec<String>,
    /// Images, by name or id; all if none is given.
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
}

impl Verify {
    /// Exit code 0 when all is well, at the end; 1 when something is damaged.
    ///
    /// # Errors
    /// Something cannot be read or repaired.
    pub fn run(&self, global: &Global) -> Outcome {
        let store = open(global, "image verify")?;
        let images = match self.images.as_slice() {
            [] => store.images().map_err(LocalError::from)?,
            names => names.iter().map(|name| find(&store, name)).collect::<Result<_, _>>()?,
        };
        let mut code = 0;
        for image in &images {
            code = code.max(self.one(&store, image)?);
        }
        Ok(code)
    }

    fn one(&self, store: &Store, image: &StoredImage) -> Result<u8, LocalError> {
        let name = image.display_name();
        let found = store.verify(image)?;
        for damage in &found.damage {
            let path = damage.path.as_ref().map(|path| format!(" /{}", path.display())).unwrap_or_default();
            print(&format!("{name}: layer {}{path}: {}\n", damage.layer.short(), damage.what));
        }
        let seen = format!("{} files, {}", found.files, Bytes(found.bytes));
        if found.damage.is_empty() {
            print(&format!("{name}: intact ({seen})\n"));
            return Ok(0);
        }
        if !self.repair {
            eprintln!("hint: gantry image verify --repair {name}");
            return Ok(1);
        }
        let show = Show::new(false);
        let repaired = block_on(store.repair(image, &found, &options(&self.insecure_registry)?, &show))?;
        show.end();
        repaired?;
        let left = store.verify(image)?.damage.len();
        print(&if left == 0 { format!("{name}: repaired\n") } else { format!("{name}: {left} still damaged\n") });
        Ok(u8::from(left > 0))
    }
}

/// Remove images that no container uses.
#[derive(Debug, clap::Args)]
pub struct Prune {
    /// Also those that have a name.
    #[arg(long, short)]
    all: bool,
    /// Do not ask.
    #[arg(long, short)]
    force: bool,
}

impl Prune {
    /// Done when they are gone; prints what went and how much room is free again.
    ///
    /// # Errors
    /// The store cannot be changed, or nobody can be asked.
    pub fn run(&self, global: &Global) -> Outcome {
        let store = open(global, "image prune")?;
        let what = if self.all { PruneWhat::Unused } else { PruneWhat::Nameless };
        if !self.force && !confirmed(what)? {
            return Ok(1);
        }
        removed(&store.prune(what).map_err(LocalError::from)?);
        Ok(0)
    }
}

/// Ask a person.
fn confirmed(what: PruneWhat) -> Result<bool, CliError> {
    if !io::stdin().is_terminal() {
        return Err(CliError::new("nobody can be asked: standard input is no terminal").hint("add --force"));
    }
    let which = match what {
        PruneWhat::Unused => "all images that no container uses",
        PruneWhat::Nameless => "all images without a name that no container uses",
    };
    eprint!("Remove {which}? [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|error| CliError::new(format!("cannot read the answer: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn removed(removed: &Removed) {
    removed.untagged.iter().for_each(|name| print(&format!("untagged {}\n", name.familiar())));
    removed.deleted.iter().for_each(|digest| print(&format!("deleted {digest}\n")));
    print(&format!("{} free again\n", Bytes(removed.freed_bytes)));
}

/// Show what images and containers of this host take.
#[derive(Debug, clap::Args)]
pub struct Df {
    /// For programs.
    #[arg(long)]
    json: bool,
    /// Each image and each container too.
    #[arg(long, short)]
    verbose: bool,
}

/// One container and what it has written.
struct Written {
    id: String,
    name: String,
    runs: bool,
    usage: SnapshotUsage,
}

impl Df {
    /// Prints it.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn run(&self, global: &Global) -> Outcome {
        let store = open(global, "system df")?;
        let mut usage = store.usage().map_err(LocalError::from)?;
        let containers = written(&store, global)?;
        // Replicas, which others look after, count as running.
        usage.containers.active = containers.iter().filter(|container| container.runs).count() as u64;
        let images = store.images().map_err(LocalError::from)?;
        if self.json {
            let mut all = json(&usage);
            if self.verbose {
                all["each_image"] = images
                    .iter()
                    .map(|image| {
                        serde_json::json!({
                            "name": image.display_name(), "id": image.id,
                            "bytes": image.size, "packed_bytes": image.download_size,
                        })
                    })
                    .collect();
                all["each_container"] = containers
                    .iter()
                    .map(|one| {
                        serde_json::json!({
                            "id": one.id, "name": one.name, "running": one.runs, "bytes": one.usage.bytes,
                            "inodes": one.usage.inodes, "bytes_max": one.usage.size_max,
                        })
                    })
                    .collect();
            }
            print(&format!("{}\n", serde_json::to_string_pretty(&all).unwrap_or_default()));
            return Ok(0);
        }
        let mut text = table(&usage);
        if self.verbose {
            text += &format!("\n{:32}  {:>10}  {:>10}\n", "IMAGE", "SIZE", "PACKED");
            for image in &images {
                let (size, packed) = (Bytes(image.size).to_string(), Bytes(image.download_size).to_string());
                text += &format!("{:32}  {size:>10}  {packed:>10}\n", image.display_name());
            }
            text += &format!("\n{:32}  {:>10}  {:>10}  {:>10}\n", "CONTAINER", "WRITTEN", "FILES", "LIMIT");
            for one in &containers {
                let (size, files) = (Bytes(one.usage.bytes).to_string(), one.usage.inodes);
                let limit = one.usage.size_max.map_or_else(|| "-".to_owned(), |bytes| Bytes(bytes).to_string());
                text += &format!("{:32}  {size:>10}  {files:>10}  {limit:>10}\n", one.name);
            }
        }
        print(&text);
        Ok(0)
    }
}

/// All containers of the store, by the names that people gave them.
fn written(store: &Store, global: &Global) -> Result<Vec<Written>, LocalError> {
    let records = Shelf::new(global).records();
    let one = |id: String| {
        let record = records.iter().find(|record| record.id == id);
        let name = record.map_or_else(|| id.clone(), |record| record.name.clone());
        let runs = record.is_none_or(|record| record.phase == Phase::Running && record.owned());
        match store.snapshot_usage(&id) {
            // Removed meanwhile.
            Err(ImageError::NotFound(_)) => Ok(None),
            usage => Ok(Some(Written { usage: usage?, id, name, runs })),
        }
    };
    let ids = store.snapshots()?.into_iter().map(|snapshot| one(snapshot.id));
    ids.filter_map(Result::transpose).collect()
}

fn json(usage: &Usage) -> serde_json::Value {
    let space = |space: Space| {
        serde_json::json!({ "count": space.count, "active": space.active, "bytes": space.bytes,
                            "reclaimable_bytes": space.reclaimable_bytes })
    };
    serde_json::json!({ "images": space(usage.images), "containers": space(usage.containers),
                        "unfinished_bytes": usage.unfinished_bytes })
}

fn table(usage: &Usage) -> String {
    let line = |what: &str, space: Space| {
        let (size, free) = (Bytes(space.bytes).to_string(), Bytes(space.reclaimable_bytes).to_string());
        format!("{what:10}  {:>5}  {:>6}  {size:>10}  {free:>11}\n", space.count, space.active)
    };
    let mut text = format!("{:10}  {:>5}  {:>6}  {:>10}  {:>11}\n", "KIND", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE");
    text += &line("images", usage.images);
    text += &line("containers", usage.containers);
    let unfinished = Bytes(usage.unfinished_bytes).to_string();
    text += &format!("{:10}  {:>5}  {:>6}  {unfinished:>10}  {:>11}\n", "unfinished", "-", "-", "-");
    text
}
