//! A record of every process that ended, kept when the replica is long gone: how it ended, why, and its last words.
//!
//! One file per end in one directory, named by time so that the oldest are the first: `<ms since 1970>~<replica>.json`.

use crate::fsx::{self, FileError};
use gantry_api::ids::{ReplicaId, ReplicaName};
use gantry_api::units::Bytes;
use gantry_api::wire::Exit;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Records kept of one service.
const PER_SERVICE_MAX: usize = 20;
/// Records kept on the node.
const PER_NODE_MAX: usize = 200;
/// Last lines of output in a record.
pub const LINES: usize = 20;

/// How and why one process ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Death {
    /// Which copy.
    pub replica: ReplicaId,
    /// Its place.
    pub name: ReplicaName,
    /// Image reference of the manifest.
    pub image: String,
    /// How, when and why.
    pub exit: Exit,
    /// When it had started, milliseconds since 1970.
    #[serde(default)]
    pub started_at_ms: Option<u64>,
    /// Restarts before this end.
    pub restarts: u32,
    /// Most memory it ever used.
    #[serde(default)]
    pub memory_peak: Option<Bytes>,
    /// Its memory limit.
    #[serde(default)]
    pub memory_limit: Option<Bytes>,
    /// What the check that failed wrote.
    #[serde(default)]
    pub health_output: Option<String>,
    /// Its last lines of output, `stdout` and `stderr` as they came.
    #[serde(default)]
    pub last_lines: Vec<String>,
}

/// Keeps a record and drops the oldest beyond the bounds.
pub(crate) fn record(dir: &Path, death: &Death) -> Result<(), FileError> {
    fsx::ensure_dir(dir, 0o700)?;
    let bytes = serde_json::to_vec(death).expect("a death is JSON");
    fsx::write_durable(&dir.join(format!("{:015}~{}.json", death.exit.at_ms, death.replica)), &bytes, 0o600)?;
    for name in surplus(&fsx::names(dir)?) {
        fsx::remove_file(&dir.join(name))?;
    }
    Ok(())
}

/// All records, the oldest first. One that cannot be read is left out.
///
/// # Errors
/// The directory cannot be read.
pub fn read(dir: &Path) -> Result<Vec<Death>, FileError> {
    let mut deaths = Vec::new();
    for name in fsx::names(dir)? {
        if let Some(bytes) = fsx::read(&dir.join(name))?
            && let Ok(death) = serde_json::from_slice(&bytes)
        {
            deaths.push(death);
        }
    }
    Ok(deaths)
}

/// The service that a record's file name is about: a replica's id without number and hexadecimal end.
fn service(name: &str) -> &str {
    let id = name.split_once('~').map_or(name, |(_, id)| id);
    id.rsplitn(3, '-').nth(2).unwrap_or(id)
}

/// Of names in order of time, those that are too many.
fn surplus(names: &[String]) -> Vec<&String> {
    let mut per_service: BTreeMap<&str, usize> = BTreeMap::new();
    let mut kept = 0;
    let mut too_many = Vec::new();
    for name in names.iter().rev().filter(|name| name.ends_with(".json")) {
        let of_service = per_service.entry(service(name)).or_default();
        if *of_service >= PER_SERVICE_MAX || kept >= PER_NODE_MAX {
            too_many.push(name);
        } else {
            *of_service += 1;
            kept += 1;
        }
    }
    too_many
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(at_ms: u64, service: &str) -> Death {
        let name = ReplicaName { app: "shop".parse().unwrap(), service: service.parse().unwrap(), number: 1 };
        Death {
            replica: ReplicaId::new(&name, 7),
            name,
            image: "i".to_owned(),
            exit: Exit { code: Some(1), signal: None, oom_killed: false, at_ms, cause: None },
            started_at_ms: None,
            restarts: 0,
            memory_peak: None,
            memory_limit: None,
            health_output: None,
            last_lines: vec!["bye".to_owned()],
        }
    }

    #[test]
    fn the_last_of_each_service_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        record(dir.path(), &death(1, "db")).unwrap();
        for at_ms in 2..=(PER_SERVICE_MAX as u64 + 5) {
            record(dir.path(), &death(at_ms, "web-1")).unwrap();
        }
        let kept = read(dir.path()).unwrap();
        assert_eq!(kept[0], death(1, "db"));
        assert_eq!(kept.len(), 1 + PER_SERVICE_MAX);
        assert_eq!(kept[1].exit.at_ms, 6);
    }

    #[test]
    fn the_node_keeps_a_bounded_number() {
        let names: Vec<String> = (0..300).map(|n| format!("{n:015}~a-s{n}-1-000001.json")).collect();
        let surplus = surplus(&names);
        assert_eq!(surplus.len(), 300 - PER_NODE_MAX);
        assert!(surplus.contains(&&names[0]) && !surplus.contains(&&names[299]));
    }
}
