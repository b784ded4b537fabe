//! The manifest that a command works on: options in compose's spelling, files found as compose finds them.

use crate::error::CliError;
use crate::render::out;
use gantry_api::ids::AppName;
use gantry_api::manifest;
use gantry_api::spec::App;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// File names in compose's order of preference; the first one found is the manifest.
const NAMES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];
/// Merged over the manifest when it lies beside it and no file was named.
const OVERRIDES: [&str; 4] =
    ["compose.override.yaml", "compose.override.yml", "docker-compose.override.yml", "docker-compose.override.yaml"];

/// Which manifest, and how it is read.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Project {
    /// Compose file; later ones are merged over earlier ones, `-` is standard input. Default: compose.yaml,
    /// compose.yml, docker-compose.yml or docker-compose.yaml, here or in a directory above, and its
    /// compose.override.yaml.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Vec<PathBuf>,
    /// Name of the app. Default: the manifest's `name`, else its directory's.
    #[arg(short, long, value_name = "NAME")]
    pub(crate) project_name: Option<AppName>,
    /// File of variables for the manifest. Default: `.env` beside it.
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Option<PathBuf>,
    /// Also deploy services of this profile; may be repeated.
    #[arg(long, value_name = "PROFILE")]
    pub(crate) profile: Vec<String>,
}

impl Project {
    /// Reads and checks the manifest; its warnings go to stderr.
    ///
    /// # Errors
    /// No manifest, or what is wrong in it, all at once.
    pub(crate) fn load(&self) -> Result<App, CliError> {
        let here = std::env::current_dir()
            .map_err(|error| CliError::new(format!("cannot tell the current directory: {error}")))?;
        let files =
            if self.file.is_empty() { find(&here)? } else { self.file.iter().map(|file| here.join(file)).collect() };
        let request = manifest::Request {
            files,
            project: self.project_name.as_ref().map(ToString::to_string),
            profiles: self.profile.clone(),
            env_file: self.env_file.as_ref().map(|file| here.join(file)),
        };
        let stdin = self.file.iter().find(|file| file.as_path() == Path::new("-")).map(|file| here.join(file));
        let loaded = manifest::load(&request, &Disk { stdin: stdin.clone() })
            .map_err(|problems| refused(&problems, stdin.as_deref()))?;
        for warning in &loaded.warnings {
            out::note(format_args!("gantry: warning: {warning}"));
        }
        Ok(loaded.app)
    }
}

/// All that is wrong, each on a line with its place.
fn refused(problems: &manifest::Problems, stdin: Option<&Path>) -> CliError {
    let mut text = problems.to_string();
    if let Some(stdin) = stdin {
        text = text.replace(&stdin.display().to_string(), "standard input");
    }
    let unread = problems.iter().any(|problem| problem.line == 0);
    let hint = match unread {
        true => "name the manifest with -f FILE, its variables with --env-file FILE; both must be readable text files",
        false => "docs/manifest.md tells which Compose keys there are and how they differ",
    };
    let error = match problems.iter().count() {
        1 => CliError::new(text),
        many => CliError::new(format!("the manifest has {many} problems:\n{text}")),
    };
    error.hint(hint)
}

/// The manifest in `start` or the nearest directory above it, and its override.
fn find(start: &Path) -> Result<Vec<PathBuf>, CliError> {
    for directory in start.ancestors() {
        let there = |names: &[&str]| names.iter().map(|name| directory.join(name)).find(|file| file.is_file());
        if let Some(manifest) = there(&NAMES) {
            return Ok(std::iter::once(manifest).chain(there(&OVERRIDES)).collect());
        }
    }
    Err(CliError::new(format!("there is no compose.yaml in {} or above it", start.display()))
        .hint("name the manifest with -f FILE"))
}

/// The file system and environment of this process.
struct Disk {
    /// The path that means standard input: `-` was named.
    stdin: Option<PathBuf>,
}

impl manifest::Host for Disk {
    fn read(&self, path: &Path) -> io::Result<String> {
        if self.stdin.as_deref() == Some(path) {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text)?;
            return Ok(text);
        }
        std::fs::read_to_string(path)
    }

    fn var(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_manifest_is_found_with_its_override() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        let touch = |path: &str| std::fs::write(root.path().join(path), "").unwrap();
        let found = || -> Vec<String> {
            let files = find(&deep).unwrap();
            let short = |file: &PathBuf| file.strip_prefix(root.path()).unwrap().display().to_string();
            files.iter().map(short).collect()
        };
        touch("docker-compose.yaml");
        assert_eq!(found(), ["docker-compose.yaml"]);
        touch("compose.override.yaml");
        touch("compose.yml");
        assert_eq!(found(), ["compose.yml", "compose.override.yaml"]);
        std::fs::create_dir(deep.join("compose.yaml")).unwrap();
        assert_eq!(found(), ["compose.yml", "compose.override.yaml"], "a directory is no manifest");
        touch("a/b/docker-compose.yml");
        touch("a/b/docker-compose.override.yml");
        assert_eq!(found(), ["a/b/docker-compose.yml", "a/b/docker-compose.override.yml"]);
    }
}
