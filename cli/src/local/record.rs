//! Containers of `gantry run` as this host remembers them.
//!
//! ```text
//! <data_dir>/run/lock          one change of names at a time
//! <data_dir>/run/<id>/         container.json   this record, replaced as a whole
//!                              lock             one change of this container at a time
//!                              bundle/          config.json for the runtime
//!                              etc/             hosts, hostname, resolv.conf
//!                              volumes/         anonymous volumes
//!                              log, log.1 …     output, CRI format (detached only)
//!                              exit.json        how it ended (detached only)
//! <run_dir>/run/               state of the runtime
//! ```
//! The process that must clean up after a container is its `owner`: `gantry run` itself in the foreground,
//! `gantry run-watch` behind a detached one. A record whose owner is gone is stale; whoever comes next sweeps it.

use super::error::LocalError;
use super::options::Wish;
use crate::global::Global;
use crate::lab::state::Process;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Digits of an id.
const ID_DIGITS: usize = 12;

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit code, 128 + signal when a signal ended it; `None` when nobody saw it.
    pub code: Option<i32>,
    /// Whether its memory limit ended it.
    #[serde(default)]
    pub oom_killed: bool,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Being made.
    Creating,
    /// Its program was started.
    Running,
    /// Its program has ended; only files are left.
    Ended(Ended),
}

/// One container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Unique on this host.
    pub id: String,
    /// As the user calls it.
    pub name: String,
    /// As the user wrote it.
    pub image: String,
    /// Manifest digest of the image.
    pub digest: String,
    /// What it runs, for people.
    pub command: Vec<String>,
    /// What it is made from.
    pub wish: Wish,
    /// Signal that asks it to stop.
    pub stop_signal: String,
    /// Runs in the background.
    pub detached: bool,
    /// Is removed when it has ended.
    pub remove: bool,
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// When its program was last started.
    pub started_ms: Option<u64>,
    /// Its address.
    pub address: Option<Ipv4Addr>,
    /// Boot of the machine in which the processes were started.
    pub boot: String,
    /// Who cleans up.
    pub owner: Option<Process>,
    /// Where it is in its life.
    pub phase: Phase,
}

impl Record {
    /// Whether somebody looks after it.
    pub fn owned(&self) -> bool {
        self.boot == crate::lab::state::boot_id() && self.owner.is_some_and(Process::lives)
    }

    /// Its owner is gone, but it has not ended.
    pub fn stale(&self) -> bool {
        !matches!(self.phase, Phase::Ended(_)) && !self.owned()
    }
}

/// Where one container's things are.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its directory.
    pub dir: PathBuf,
}

impl Place {
    /// The bundle.
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    /// Files for `/etc`.
    pub fn etc(&self) -> PathBuf {
        self.dir.join("etc")
    }

    /// Anonymous volumes.
    pub fn volumes(&self) -> PathBuf {
        self.dir.join("volumes")
    }

    /// The log.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// How it ended, from its supervisor.
    pub fn exit(&self) -> PathBuf {
        self.dir.join("exit.json")
    }

    /// What the runtime complains of.
    pub fn complaints(&self) -> PathBuf {
        self.dir.join("runtime.log")
    }

    fn record(&self) -> PathBuf {
        self.dir.join("container.json")
    }

    /// Reads the record; `None` when there is none.
    ///
    /// # Errors
    /// It is damaged.
    pub fn load(&self) -> Result<Option<Record>, LocalError> {
        let path = self.record();
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(LocalError::file("read", &path))?,
        };
        let parsed = serde_json::from_slice(&text);
        parsed.map(Some).map_err(|error| LocalError::State { path, reason: error.to_string() })
    }

    /// Writes the record; a crash leaves the one before or this one. It may hold secrets of the environment.
    ///
    /// # Errors
    /// The disk.
    pub fn save(&self, record: &Record) -> Result<(), LocalError> {
        let (path, fresh) = (self.record(), self.dir.join("container.json.new"));
        let text = serde_json::to_vec_pretty(record)
            .map_err(|error| LocalError::State { path: path.clone(), reason: error.to_string() })?;
        let written = || {
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(&text)?;
            fs::rename(&fresh, &path)
        };
        written().map_err(LocalError::file("write", &path))
    }

    /// The right to change this container, until dropped.
    ///
    /// # Errors
    /// Its directory is gone.
    pub fn lock(&self) -> Result<File, LocalError> {
        lock(&self.dir.join("lock"))
    }
}

fn lock(path: &Path) -> Result<File, LocalError> {
    let opened = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = opened.map_err(LocalError::file("open", path))?;
    file.lock().map_err(LocalError::file("lock", path))?;
    Ok(file)
}

/// All containers of this host.
#[derive(Debug, Clone)]
pub struct Shelf {
    dir: PathBuf,
}

impl Shelf {
    /// Below the data directory.
    pub fn new(global: &Global) -> Self {
        let data = std::path::absolute(&global.data_dir).unwrap_or_else(|_| global.data_dir.clone());
        Self { dir: data.join("run") }
    }

    /// One container's place.
    pub fn place(&self, id: &str) -> Place {
        Place { dir: self.dir.join(id) }
    }

    /// Takes the right to choose names.
    ///
    /// # Errors
    /// The disk.
    pub fn lock(&self) -> Result<File, LocalError> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o711).create(&self.dir).map_err(LocalError::file("make", &self.dir))?;
        lock(&self.dir.join("lock"))
    }

    /// Whether this user may not see what there is.
    pub fn forbidden(&self) -> bool {
        fs::read_dir(&self.dir).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    }

    /// The ids of all that is there.
    pub fn ids(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let mut ids: Vec<String> = folders.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        ids.sort();
        ids
    }

    /// All records; those that cannot be read are left out.
    pub fn records(&self) -> Vec<Record> {
        let mut all: Vec<Record> = self.ids().iter().filter_map(|id| self.place(id).load().ok().flatten()).collect();
        all.sort_by_key(|record| record.created_ms);
        all
    }

    /// Finds one by name, id, or the beginning of its id.
    ///
    /// # Errors
    /// None or several.
    pub fn find(&self, word: &str) -> Result<Record, LocalError> {
        pick(self.records(), word)
    }

    /// Makes a place under a new id. The name must be free; hold the lock.
    ///
    /// # Errors
    /// The name is taken, or the disk.
    pub fn reserve(&self, name: Option<&str>) -> Result<(String, String), LocalError> {
        if let Some(name) = name
            && let Some(other) = self.records().into_iter().find(|record| record.name == name)
        {
            return Err(LocalError::NameTaken { name: name.to_owned(), id: other.id });
        }
        loop {
            let id = fresh_id()?;
            let dir = self.place(&id).dir;
            match fs::DirBuilder::new().mode(0o711).create(&dir) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(LocalError::file("make", &dir)(error)),
                Ok(()) => return Ok((id.clone(), name.map_or(id, str::to_owned))),
            }
        }
    }
}

fn fresh_id() -> Result<String, LocalError> {
    let file = "/dev/urandom";
    let mut bytes = [0u8; ID_DIGITS / 2];
    File::open(file).and_then(|mut file| file.read_exact(&mut bytes)).map_err(LocalError::file("read", file))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn pick(records: Vec<Record>, word: &str) -> Result<Record, LocalError> {
    if let Some(exact) = records.iter().find(|record| record.name == word || record.id == word) {
        return Ok(exact.clone());
    }
    let mut near = records.into_iter().filter(|record| !word.is_empty() && record.id.starts_with(word));
    match (near.next(), near.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(LocalError::NoContainer(word.to_owned())),
        _ => Err(LocalError::Ambiguous(word.to_owned())),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::local::options::Network;

    /// A record for tests.
    pub(in crate::local) fn record(id: &str, name: &str) -> Record {
        let wish = Wish {
            entrypoint: None,
            command: None,
            env: vec![],
            volumes: vec![],
            ports: vec![],
            workdir: None,
            user: None,
            hostname: None,
            memory: None,
            cpu_millis: None,
            pids: None,
            network: Network::None,
            read_only: false,
            storage: None,
            cap_add: vec![],
            cap_drop: vec![],
            privileged: false,
            stop_signal: None,
            init: false,
            interactive: false,
            tty: false,
        };
        Record {
            id: id.into(),
            name: name.into(),
            image: "busybox".into(),
            digest: String::new(),
            command: vec!["sh".into()],
            wish,
            stop_signal: "TERM".into(),
            detached: true,
            remove: false,
            created_ms: 1,
            started_ms: None,
            address: None,
            boot: crate::lab::state::boot_id(),
            owner: None,
            phase: Phase::Creating,
        }
    }

    #[test]
    fn containers_are_found_by_name_id_and_beginning() {
        let all = || vec![record("aa11", "web"), record("aa22", "bb"), record("bb33", "x")];
        let find = |word: &str| match pick(all(), word) {
            Ok(record) => record.id,
            Err(LocalError::NoContainer(_)) => "none".to_owned(),
            Err(_) => "several".to_owned(),
        };
        for (word, want) in [
            ("web", "aa11"),
            ("aa22", "aa22"),
            ("aa2", "aa22"),
            ("aa", "several"),
            ("bb", "aa22"),
            ("c", "none"),
            ("", "none"),
        ] {
            assert_eq!(find(word), want, "{word}");
        }
    }

    #[test]
    fn a_record_without_its_owner_is_stale_until_it_has_ended() {
        let own = Process::now(std::process::id() as i32);
        let mut container = record("a", "a");
        assert!(container.stale());
        container.owner = own;
        assert!(!container.stale());
        container.boot = "another".into();
        assert!(container.stale());
        container.phase = Phase::Ended(Ended { code: Some(0), oom_killed: false, at_ms: 0 });
        assert!(!container.stale());
    }

    #[test]
    fn names_are_reserved_once() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf { dir: dir.path().to_owned() };
        let (id, name) = shelf.reserve(Some("web")).unwrap();
        assert_eq!((id.len(), name.as_str()), (ID_DIGITS, "web"));
        shelf.place(&id).save(&record(&id, "web")).unwrap();
        assert!(matches!(shelf.reserve(Some("web")), Err(LocalError::NameTaken { .. })));
        let (id, name) = shelf.reserve(None).unwrap();
        assert_eq!(id, name);
        assert_eq!(shelf.records().len(), 1, "a place without a record is none");
        assert_eq!(shelf.find("web").unwrap(), record(&shelf.find("web").unwrap().id, "web"));
        fs::write(shelf.place(&id).record(), "{").unwrap();
        assert!(matches!(shelf.place(&id).load(), Err(LocalError::State { .. })));
    }
}
