//! `gantry pull`, `images`, `rmi` and `load`: the image store of this host.

use super::error::LocalError;
use crate::error::{CliError, Outcome};
use crate::global::Global;
use gantry_api::units::Bytes;
use gantry_images::{
    Digest, Event, Image, ImageError, LoadSource, Progress, PullOptions, PullPolicy, Reference, Registries, Store,
    default_auth_file,
};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Opens the store.
///
/// # Errors
/// It is damaged or cannot be made.
pub fn store(global: &Global) -> Result<Store, LocalError> {
    let data = std::path::absolute(&global.data_dir).unwrap_or_else(|_| global.data_dir.clone());
    Ok(Store::open(data.join("images"))?)
}

pub(super) fn open(global: &Global, command: &'static str) -> Result<Store, LocalError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(LocalError::NotRoot(command));
    }
    store(global)
}

/// An image by any of its names, from the store or from its registry.
///
/// - `insecure`: registries that are spoken to over plain HTTP.
///
/// # Errors
/// It is nowhere, or the registry cannot be reached.
pub fn ensure(store: &Store, name: &str, policy: PullPolicy, insecure: &[String]) -> Result<Image, LocalError> {
    if policy != PullPolicy::Always
        && let Some(image) = store.image(name)?
    {
        return Ok(image);
    }
    let reference: Reference = name.parse()?;
    if policy == PullPolicy::Never {
        return Err(ImageError::NotFound(reference.familiar()).into());
    }
    pull(store, name, policy, insecure)
}

/// In a runtime that ends with it: afterwards this process has no threads again.
fn pull(store: &Store, name: &str, policy: PullPolicy, insecure: &[String]) -> Result<Image, LocalError> {
    let insecure_registries = insecure.to_vec();
    let registries = Registries::of_host()?;
    let candidates = registries.candidates(name)?;
    let options = PullOptions {
        policy,
        insecure_registries,
        auth_file: default_auth_file(),
        registries,
        ..PullOptions::default()
    };
    let mut missing = None;
    for reference in candidates {
        let show = Show::new(false);
        let pulled = block_on(store.pull(&reference, &options, &show))?;
        show.end();
        match pulled {
            // A short name may be in the next registry of the list.
            Err(error @ ImageError::NotInRegistry { .. }) => missing = Some(error),
            other => return Ok(other?),
        }
    }
    Err(missing.unwrap_or_else(|| ImageError::NotFound(name.to_owned())).into())
}

/// Wait for `work` in a runtime that ends with it.
pub(super) fn block_on<T>(work: impl Future<Output = T>) -> Result<T, LocalError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(LocalError::kernel("start the downloader"))?.block_on(work))
}

/// Fetch images from their registries.
#[derive(Debug, clap::Args)]
pub struct Pull {
    /// Images.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Registry that is spoken to over plain HTTP.
    #[arg(long, value_name = "HOST[:PORT]")]
    insecure_registry: Vec<String>,
    /// Print nothing but the digests.
    #[arg(long, short)]
    quiet: bool,
}

impl Pull {
    /// Done when they are in the store.
    ///
    /// # Errors
    /// The first that cannot be fetched.
    pub fn run(&self, global: &Global) -> Outcome {
        let store = open(global, "pull")?;
        for name in &self.images {
            let image = pull(&store, name, PullPolicy::Always, &self.insecure_registry)?;
            print(&format!("{}\n", if self.quiet { image.digest.to_string() } else { image.display_name() }));
        }
        Ok(0)
    }
}

/// List the images of this host.
#[derive(Debug, clap::Args)]
pub struct Images {
    /// For programs.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Only their ids.
    #[arg(long, short)]
    quiet: bool,
}

impl Images {
    /// Lists them.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn run(&self, global: &Global) -> Outcome {
        let images = open(global, "images")?.images().map_err(LocalError::from)?;
        if self.json {
            let list: Vec<serde_json::Value> = images.iter().map(json).collect();
            print(&format!("{}\n", serde_json::to_string_pretty(&list).unwrap_or_default()));
        } else if self.quiet {
            images.iter().for_each(|image| print(&format!("{}\n", image.id.short())));
        } else {
            print(&table(&images));
        }
        Ok(0)
    }
}

fn json(image: &Image) -> serde_json::Value {
    serde_json::json!({
        "names": image.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "id": image.id.to_string(),
        "digest": image.digest.to_string(),
        "size_bytes": image.size,
        "created": image.created,
        "platform": format!("{}/{}", image.os, image.architecture),
    })
}

fn table(images: &[Image]) -> String {
    let rows: Vec<[String; 4]> = images
        .iter()
        .flat_map(|image| {
            let row = |name: String| {
                let created = image.created.as_deref().and_then(|text| text.get(..10)).unwrap_or("-");
                [name, image.id.short(), Bytes(image.size).to_string(), created.to_owned()]
            };
            let names: Vec<String> = image.names.iter().map(Reference::familiar).collect();
            if names.is_empty() { vec![row("<none>".to_owned())] } else { names.into_iter().map(row).collect() }
        })
        .collect();
    let wide = |column: usize, head: &str| rows.iter().map(|row| row[column].len()).max().unwrap_or(0).max(head.len());
    let (image, id, size) = (wide(0, "IMAGE"), wide(1, "ID"), wide(2, "SIZE"));
    let mut text = format!("{:image$}  {:id$}  {:size$}  CREATED\n", "IMAGE", "ID", "SIZE");
    for [name, short, bytes, created] in rows {
        text += &format!("{name:image$}  {short:id$}  {bytes:size$}  {created}\n");
    }
    text
}

/// Remove images from this host.
#[derive(Debug, clap::Args)]
pub struct Rmi {
    /// Also those with several names, and those that containers use (their content stays until these are gone).
    #[arg(long, short)]
    force: bool,
    /// Images, by name or id.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Rmi {
    /// Done when the names are gone.
    ///
    /// # Errors
    /// One is in use, or not there (with `--force` that is fine).
    pub fn run(&self, global: &Global) -> Outcome {
        let store = open(global, "rmi")?;
        let mut failure: Option<CliError> = None;
        for name in &self.images {
            match store.remove(name, self.force) {
                Ok(removed) => {
                    removed.untagged.iter().for_each(|name| print(&format!("untagged {}\n", name.familiar())));
                    removed.deleted.iter().for_each(|digest| print(&format!("deleted {digest}\n")));
                }
                Err(ImageError::NotFound(_)) if self.force => {}
                Err(error) => {
                    if let Some(earlier) = failure.replace(LocalError::from(error).into()) {
                        earlier.print();
                    }
                }
            }
        }
        failure.map_or(Ok(0), Err)
    }
}

/// Load images from an archive or a directory.
#[derive(Debug, clap::Args)]
pub struct Load {
    /// Archive (`docker save`, OCI; tar, gzip or zstd), directory with an OCI layout, or `-` for standard input.
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    input: PathBuf,
}

impl Load {
    /// Done when they are in the store; prints their names.
    ///
    /// # Errors
    /// It is no image, or one for another processor.
    pub fn run(&self, global: &Global) -> Outcome {
        let store = open(global, "load")?;
        let source = if self.input == Path::new("-") {
            if io::stdin().is_terminal() {
                return Err(CliError::new("standard input is a terminal, not an image").hint("gantry load -i FILE"));
            }
            LoadSource::Reader { reader: Box::new(io::stdin()), name: String::new() }
        } else {
            LoadSource::Path(self.input.clone())
        };
        let show = Show::new(false);
        let loaded = store.load(source, &show);
        show.end();
        for image in loaded.map_err(LocalError::from)? {
            print(&format!("loaded {}\n", image.display_name()));
        }
        Ok(0)
    }
}

pub(super) fn print(text: &str) {
    drop(io::stdout().write_all(text.as_bytes())); // nobody reads it
}

/// Progress: bars on a terminal, a line for each layer elsewhere; on standard error.
pub(super) struct Show {
    bars: Option<MultiProgress>,
    quiet: bool,
    layers: Mutex<BTreeMap<String, ProgressBar>>,
}

impl Show {
    /// - `quiet`: show nothing.
    pub(super) fn new(quiet: bool) -> Self {
        let bars = (!quiet && io::stderr().is_terminal()).then(MultiProgress::new);
        Self { bars, quiet, layers: Mutex::default() }
    }

    pub(super) fn end(&self) {
        if let Some(bars) = &self.bars {
            drop(bars.clear()); // only looks
        }
    }

    fn bar(&self, digest: &Digest, total: u64, with: impl FnOnce(&ProgressBar)) {
        let (Some(bars), Ok(mut layers)) = (&self.bars, self.layers.lock()) else {
            return;
        };
        let bar = layers.entry(digest.short()).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new(total));
            let style = ProgressStyle::with_template("{prefix} {bar:30} {bytes:>10}/{total_bytes:10} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(digest.short());
            bar
        });
        with(bar);
    }

    fn line(&self, text: &str) {
        if self.bars.is_none() && !self.quiet {
            eprintln!("{text}");
        }
    }
}

impl Progress for Show {
    fn event(&self, event: Event) {
        match event {
            Event::Resolving { what } => match &self.bars {
                Some(bars) => drop(bars.println(&what)), // only looks
                None => self.line(&what),
            },
            Event::LayerStart { digest, total } => {
                self.line(&format!("layer {}: {}", digest.short(), Bytes(total)));
                self.bar(&digest, total, |_| {});
            }
            Event::LayerProgress { digest, done, total } => self.bar(&digest, total, |bar| bar.set_position(done)),
            Event::Unpacking { digest } => self.bar(&digest, 0, |bar| bar.set_message("unpacking")),
            Event::LayerDone { digest, reused } => {
                if reused {
                    self.line(&format!("layer {}: there already", digest.short()));
                } else {
                    self.line(&format!("layer {}: done", digest.short()));
                    self.bar(&digest, 0, |bar| bar.finish_with_message("done"));
                }
            }
            _ => {}
        }
    }
}
