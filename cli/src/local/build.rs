//! `gantry commit`, `diff` and `image from-rootfs`: images made on this host.

use super::error::LocalError;
use super::images::{open, print};
use super::record::Shelf;
use crate::error::Outcome;
use crate::global::Global;
use gantry_images::{BuildOptions, Change, ImageConfig, Packed, Reference};
use std::path::PathBuf;

/// Options of everything that makes an image.
#[derive(Debug, clap::Args)]
struct Made {
    /// How its new layer is packed: zstd, or gzip for docker before version 23.
    #[arg(long, value_name = "zstd|gzip", default_value = "zstd")]
    compression: Packed,
    /// Who made it.
    #[arg(long, short, value_name = "NAME")]
    author: Option<String>,
    /// Remark for its history.
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    /// Seconds since 1970: when it was made, and the latest time of a file in it; makes it reproducible.
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH")]
    time: Option<u64>,
}

impl Made {
    fn options(&self, name: Option<&str>, config: Option<ImageConfig>) -> Result<BuildOptions, LocalError> {
        Ok(BuildOptions {
            name: name.map(str::parse::<Reference>).transpose()?,
            packed: self.compression,
            time: self.time,
            author: self.author.clone(),
            comment: self.message.clone(),
            config,
        })
    }
}

/// Make an image from a container: its image, and what it has changed since.
#[derive(Debug, clap::Args)]
pub struct Commit {
    #[command(flatten)]
    made: Made,
    /// Container, by name or id.
    container: String,
    /// Name of the new image.
    name: Option<String>,
}

impl Commit {
    /// Done when the image is in the store; prints its id.
    ///
    /// # Errors
    /// There is no such container, or the disk is full.
    pub fn run(&self, global: &Global) -> Outcome {
        let store = open(global, "commit")?;
        let record = Shelf::new(global).find(&self.container)?;
        let options = self.made.options(self.name.as_deref(), None)?;
        let image = store.commit_container(&record.id, &options).map_err(LocalError::from)?;
        print(&format!("{}\n", image.id));
        Ok(0)
    }
}

/// Show what a container has changed in its root file system: A added, C changed, D deleted.
#[derive(Debug, clap::Args)]
pub struct Diff {
    /// For programs.
    #[arg(long)]
    json: bool,
    /// Container, by name or id.
    container: String,
}

impl Diff {
    /// Prints it.
    ///
    /// # Errors
    /// There is no such container.
    pub fn run(&self, global: &Global) -> Outcome {
        let store = open(global, "diff")?;
        let record = Shelf::new(global).find(&self.container)?;
        let changes = store.changes(&record.id).map_err(LocalError::from)?;
        if self.json {
            let one = |(path, change): &(PathBuf, Change)| serde_json::json!({ "path": format!("/{}", path.display()), "change": word(*change) });
            let all: Vec<serde_json::Value> = changes.iter().map(one).collect();
            print(&format!("{}\n", serde_json::to_string_pretty(&all).unwrap_or_default()));
            return Ok(0);
        }
        for (path, change) in changes {
            let letter = word(change)[..1].to_uppercase();
            print(&format!("{letter} /{}\n", path.display()));
        }
        Ok(0)
    }
}

fn word(change: Change) -> &'static str {
    match change {
        Change::Added => "added",
        Change::Changed => "changed",
        Change::Deleted => "deleted",
    }
}

/// Make an image of one layer from a directory.
#[derive(Debug, clap::Args)]
pub struct FromRootfs {
    #[command(flatten)]
    made: Made,
    /// Program that is always run; a shell splits nothing: repeat for its arguments.
    #[arg(long, value_name = "WORD")]
    entrypoint: Vec<String>,
    /// Command, or arguments of the entry point; repeat for each word.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    cmd: Vec<String>,
    /// Variable.
    #[arg(long, short, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Directory to start in.
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// User, and group.
    #[arg(long, short, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Label.
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Directory that becomes the root file system.
    dir: PathBuf,
    /// Name of the image.
    name: String,
}

impl FromRootfs {
    /// Done when the image is in the store; prints its id.
    ///
    /// # Errors
    /// The directory cannot be read, or the disk is full.
    pub fn run(&self, global: &Global) -> Outcome {
        let store = open(global, "image from-rootfs")?;
        let pair = |label: &String| {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            (key.to_owned(), value.to_owned())
        };
        if let Some(wrong) = self.env.iter().find(|variable| !variable.contains('=')) {
            return Err(LocalError::option("variable", wrong, "write KEY=VALUE").into());
        }
        let config = ImageConfig {
            entrypoint: self.entrypoint.clone(),
            cmd: self.cmd.clone(),
            env: self.env.clone(),
            working_dir: self.workdir.clone().unwrap_or_default(),
            user: self.user.clone().unwrap_or_default(),
            labels: self.label.iter().map(pair).collect(),
            ..ImageConfig::default()
        };
        let options = self.made.options(Some(&self.name), Some(config))?;
        let image = store.from_rootfs(&self.dir, &options).map_err(LocalError::from)?;
        print(&format!("{}\n", image.id));
        Ok(0)
    }
}
