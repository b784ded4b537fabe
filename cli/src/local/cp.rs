//! `gantry cp`: files between this host and a container of it.

use super::error::LocalError;
use super::life::Host;
use super::record::{Phase, Record};
use crate::error::{CliError, Outcome};
use crate::global::Global;
use gantry_images::transfer::{self, Place, TransferOptions, Transferred};
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Copy files between this host and a container of it, running or not.
///
/// CONTAINER:PATH is a path in a container, `-` a tar stream. As docker has it: into a directory that is there, or under
/// the new name if it is not; SOURCE/. is what is in a directory.
///
/// Exit codes: 0 done, 1 refused, 2 wrong usage.
#[derive(Debug, clap::Args)]
pub struct Cp {
    /// Keep owners, attributes and set-id bits; otherwise what is copied belongs to root.
    #[arg(long, short)]
    archive: bool,
    /// Copy what a link at SOURCE points to, not the link.
    #[arg(long, short = 'L')]
    follow_link: bool,
    /// What to copy: CONTAINER:PATH, PATH, or `-` for a tar stream from standard input.
    #[arg(value_name = "SOURCE", allow_hyphen_values = true)]
    source: String,
    /// Where to: CONTAINER:PATH, PATH, or `-` for a tar stream to standard output.
    #[arg(value_name = "TARGET", allow_hyphen_values = true)]
    target: String,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End<'a> {
    Stream,
    Host(&'a str),
    Container(&'a str, &'a str),
}

/// A path of this host if it looks like one: `./a:b` and `/a:b` are.
fn end(text: &str) -> End<'_> {
    match text.split_once(':') {
        _ if text == "-" => End::Stream,
        Some((container, path)) if !container.is_empty() && !text.starts_with(['.', '/']) => {
            End::Container(container, path)
        }
        _ => End::Host(text),
    }
}

impl Cp {
    /// Done when all is copied.
    ///
    /// # Errors
    /// There is no such container or path, or something else is in the way. What was copied before stays.
    pub fn run(&self, global: &Global) -> Outcome {
        let host = Host::open(global, "cp")?;
        let options = TransferOptions { follow: self.follow_link, archive: self.archive };
        let done = match (end(&self.source), end(&self.target)) {
            (End::Container(name, path), End::Stream) => {
                if io::stdout().is_terminal() {
                    return Err(
                        CliError::new("standard output is a terminal").hint("gantry cp CONTAINER:PATH - > FILE")
                    );
                }
                let mut out = BufWriter::new(io::stdout());
                let done = transfer::to_tar(&Inside::find(&host, name, false)?.place(path)?, &mut out, options);
                done.and_then(|done| match out.flush() {
                    Ok(()) => Ok(done),
                    Err(error) => Err(gantry_images::ImageError::Io {
                        action: "write",
                        path: "standard output".into(),
                        source: error,
                    }),
                })
            }
            (End::Stream, End::Container(name, path)) => {
                let place = Inside::find(&host, name, true)?.place(path)?;
                transfer::from_tar(&mut io::stdin().lock(), &place)
            }
            (End::Container(name, path), End::Host(target)) => {
                let from = Inside::find(&host, name, false)?.place(path)?;
                transfer::copy(&from, &Place::host(Path::new(target)).map_err(LocalError::from)?, options)
            }
            (End::Host(source), End::Container(name, path)) => {
                let to = Inside::find(&host, name, true)?.place(path)?;
                transfer::copy(&Place::host(Path::new(source)).map_err(LocalError::from)?, &to, options)
            }
            (End::Container(..), End::Container(..)) => {
                return Err(CliError::new("nothing is copied from container to container")
                    .hint("gantry cp A:PATH - | gantry cp - B:PATH")
                    .code(crate::error::USAGE));
            }
            _ => {
                return Err(CliError::new("one of the two must be CONTAINER:PATH").code(crate::error::USAGE));
            }
        };
        told(&done.map_err(LocalError::from)?);
        Ok(0)
    }
}

/// What was not copied is said; what was, is not.
fn told(done: &Transferred) {
    for path in &done.left_out {
        eprintln!("gantry: {path} is left out");
    }
}

/// The files of a container.
struct Inside {
    record: Record,
    root: PathBuf,
    /// Keeps `root` what it was found to be.
    _open: Option<File>,
    /// Its volumes are not there.
    stopped: bool,
    image_volumes: Vec<String>,
}

impl Inside {
    /// Those that its processes see while it runs, with volumes and all; else those of its root file system.
    ///
    /// - `write`: they are to be changed.
    fn find(host: &Host, name: &str, write: bool) -> Result<Self, LocalError> {
        let record = host.shelf.find(name)?;
        let running = record.phase == Phase::Running && record.owned();
        if running && let Some((root, open)) = live_root(host, &record.id)? {
            return Ok(Self { record, root, _open: Some(open), stopped: false, image_volumes: Vec::new() });
        }
        if write && record.wish.read_only {
            return Err(LocalError::option("target", name, "the root file system of the container is read-only"));
        }
        let root = host.store.remount(&record.id)?;
        let image = host.store.image(&record.digest)?;
        let image_volumes = image.map(|image| image.config.volumes.into_iter().collect()).unwrap_or_default();
        Ok(Self { record, root, _open: None, stopped: true, image_volumes })
    }

    fn place(&self, path: &str) -> Result<Place, LocalError> {
        if path.is_empty() {
            return Err(LocalError::option("path", path, "write CONTAINER:PATH"));
        }
        if self.stopped
            && let Some(volume) = self.volume_over(path)
        {
            return Err(LocalError::VolumeAway { container: self.record.name.clone(), volume });
        }
        Ok(Place::container(&self.root, &self.record.name, Path::new(path))?)
    }

    /// The volume that a path is in.
    fn volume_over(&self, path: &str) -> Option<String> {
        let own = self.record.wish.volumes.iter().map(|volume| volume.target.as_str());
        let mut all = own.chain(self.image_volumes.iter().map(String::as_str));
        let path = Path::new("/").join(path);
        all.find(|target| path.starts_with(target)).map(str::to_owned)
    }
}

/// The root directory of the first process; `None` if it has just ended.
fn live_root(host: &Host, id: &str) -> Result<Option<(PathBuf, File)>, LocalError> {
    let pid = || {
        let state = host.runtime.state(id)?;
        state.pid.filter(|pid| *pid > 0 && matches!(state.status.as_str(), "running" | "paused" | "created"))
    };
    let Some(before) = pid() else {
        return Ok(None);
    };
    let root = PathBuf::from(format!("/proc/{before}/root"));
    let open = match File::open(&root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(LocalError::file("open", &root))?,
    };
    // The number may have gone to another process in between.
    let same = pid() == Some(before);
    Ok(same.then(|| (PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd())), open)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_container_only_if_it_cannot_be_a_path() {
        for (text, want) in [
            ("-", End::Stream),
            ("web:/etc", End::Container("web", "/etc")),
            ("web:etc", End::Container("web", "etc")),
            ("web:", End::Container("web", "")),
            ("web:a:b", End::Container("web", "a:b")),
            ("/a:b", End::Host("/a:b")),
            ("./a:b", End::Host("./a:b")),
            ("../a:b", End::Host("../a:b")),
            ("a", End::Host("a")),
            (":a", End::Host(":a")),
        ] {
            assert_eq!(end(text), want, "{text}");
        }
    }
}
