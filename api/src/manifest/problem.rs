//! What is wrong with a manifest: all of it at once, each with its place.

use std::fmt;
use std::path::PathBuf;

/// A place in one of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) file: usize,
    pub(super) line: usize,
    pub(super) column: usize,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// File.
    pub file: PathBuf,
    /// Line from 1; 0 when the whole file is meant.
    pub line: usize,
    /// Column from 1.
    pub column: usize,
    /// Key, as a path from the root: `services.web.ports[0]`.
    pub key: String,
    /// What and why.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong, in order of place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    files: Vec<PathBuf>,
    list: Vec<Problem>,
}

impl Problems {
    pub(super) const fn new(files: Vec<PathBuf>) -> Self {
        Self { files, list: Vec::new() }
    }

    pub(super) fn add(&mut self, place: Place, key: &str, message: &str, hint: Option<&str>) {
        self.list.push(Problem {
            file: self.files[place.file].clone(),
            line: place.line,
            column: place.column,
            key: key.to_owned(),
            message: message.to_owned(),
            hint: hint.map(str::to_owned),
        });
    }

    /// A problem of a whole file.
    pub(super) fn add_file(&mut self, file: usize, message: &str, hint: Option<&str>) {
        self.add(Place { file, line: 0, column: 0 }, "", message, hint);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn sorted(mut self) -> Self {
        self.list.sort();
        self.list.dedup();
        self
    }

    /// Each problem.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.list.iter().enumerate() {
            write!(f, "{}{problem}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
