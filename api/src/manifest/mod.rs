//! A Compose file, read and checked: text in, [`App`] out, or everything that is wrong with it at once.
//!
//! The Compose Specification is the manifest; what of it is supported, refused and extended is told in
//! `docs/manifest.md`. Nothing is ignored silently, except `x-…` keys, which the specification sets aside.
//!
//! ```text
//! files ─ tree (YAML with places) ─ interpolate ─ merge ─ app, service, parts (typed) ─► spec::App
//! ```

mod app;
mod cursor;
mod dotenv;
mod interpolate;
mod merge;
mod parts;
mod problem;
mod service;
mod tree;

pub use problem::{Problem, Problems};

use crate::spec::App;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use tree::{Node, Value};

/// What to read.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Compose files, as absolute paths; later ones are laid over earlier ones. Relative paths inside start at the
    /// first one's folder.
    pub files: Vec<PathBuf>,
    /// Name of the app; else the file's `name:`, else `COMPOSE_PROJECT_NAME`, else the folder's name.
    pub project: Option<String>,
    /// Profiles that are switched on, besides `COMPOSE_PROFILES`.
    pub profiles: Vec<String>,
    /// File of variables in place of `.env`.
    pub env_file: Option<PathBuf>,
}

/// What reading needs of the outside.
pub trait Host {
    /// The text of a file.
    ///
    /// # Errors
    /// As the file system says.
    fn read(&self, path: &Path) -> io::Result<String>;
    /// A variable of the environment.
    fn var(&self, name: &str) -> Option<String>;
}

/// A manifest that was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What to deploy.
    pub app: App,
    /// What a person should know: variables that were used without being set.
    pub warnings: Vec<String>,
}

/// Reads and checks the files.
///
/// # Errors
/// Everything that is wrong, each with file, line, column and key.
pub fn load(request: &Request, host: &dyn Host) -> Result<Loaded, Problems> {
    let mut problems = Problems::new(request.files.clone());
    let folder = match request.files.first() {
        Some(first) => first.parent().map(Path::to_path_buf).unwrap_or_default(),
        None => {
            let mut none = Problems::new(vec![PathBuf::from("compose.yaml")]);
            none.add_file(0, "no manifest is named", Some("name one with -f"));
            return Err(none);
        }
    };
    let variables = variables(request, &folder, host, &mut problems);
    let vars = |name: &str| host.var(name).or_else(|| variables.get(name).cloned());
    let mut unset = BTreeSet::new();
    let mut root: Option<Node> = None;
    for (file, path) in request.files.iter().enumerate() {
        let text = match host.read(path) {
            Ok(text) => text,
            Err(error) => {
                problems.add_file(file, &format!("cannot be read: {error}"), None);
                continue;
            }
        };
        let Some(mut node) = tree::parse(file, &text, &mut problems) else { continue };
        fill(&mut node, "", &vars, &mut problems, &mut unset);
        root = Some(match root {
            Some(base) => merge::merge(base, node),
            None => node,
        });
    }
    let Some(root) = root.filter(|_| problems.is_empty()) else { return Err(problems.sorted()) };
    let problems = RefCell::new(problems);
    let context = app::Context { request, folder: &folder, host, vars: &vars };
    let app = app::read(&cursor::Cursor::root(&root, &problems), &context);
    let problems = problems.into_inner();
    match app {
        Some(app) if problems.is_empty() => {
            let warn = |name: String| format!("variable `{name}` is not set; it is taken as empty");
            Ok(Loaded { app, warnings: unset.into_iter().map(warn).collect() })
        }
        _ => Err(problems.sorted()),
    }
}

/// The variables of `.env` (or `--env-file`), which yield to the environment's.
fn variables(request: &Request, folder: &Path, host: &dyn Host, problems: &mut Problems) -> BTreeMap<String, String> {
    let path = request.env_file.clone().unwrap_or_else(|| folder.join(".env"));
    let text = match host.read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && request.env_file.is_none() => return BTreeMap::new(),
        Err(error) => {
            problems.add_file(0, &format!("{} cannot be read: {error}", path.display()), None);
            return BTreeMap::new();
        }
    };
    match dotenv::parse(&text, &|name| host.var(name)) {
        Ok(pairs) => pairs.into_iter().collect(),
        Err((line, what)) => {
            problems.add_file(0, &format!("{}:{line}: {what}", path.display()), None);
            BTreeMap::new()
        }
    }
}

/// Replaces variables in every value of the tree; keys stay as they are.
fn fill(
    node: &mut Node,
    path: &str,
    vars: interpolate::Vars<'_>,
    problems: &mut Problems,
    unset: &mut BTreeSet<String>,
) {
    match &mut node.value {
        Value::Null => {}
        Value::Scalar { text, .. } if text.contains('$') => match interpolate::interpolate(text, vars) {
            Ok(out) => {
                *text = out.text;
                unset.extend(out.unset);
            }
            Err(what) => problems.add(node.place, path, &what, None),
        },
        Value::Scalar { .. } => {}
        Value::List(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                fill(item, &format!("{path}[{i}]"), vars, problems, unset);
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                let dot = if path.is_empty() { "" } else { "." };
                fill(&mut entry.node, &format!("{path}{dot}{}", entry.key), vars, problems, unset);
            }
        }
    }
}

#[cfg(test)]
mod tests;
