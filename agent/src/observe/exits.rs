//! Exit files: what a supervisor leaves when its process has ended.

use crate::fsx::{self, FileError};
use gantry_api::ids::ReplicaId;
use gantry_api::units::Bytes;
use gantry_api::wire::Exit;
use serde::Deserialize;
use std::path::Path;
use tracing::warn;

/// What one exit file says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ExitFile {
    /// The end.
    pub(crate) exit: Exit,
    /// When the process had started, milliseconds since 1970.
    pub(crate) started_at_ms: u64,
    /// Most memory it used.
    pub(crate) memory_peak: Option<Bytes>,
}

#[derive(Deserialize)]
struct Raw {
    exit_code: Option<i32>,
    signal: Option<i32>,
    #[serde(default)]
    oom_killed: bool,
    started_at: jiff::Timestamp,
    finished_at: jiff::Timestamp,
    #[serde(default)]
    memory_peak_bytes: Option<u64>,
}

fn parse(bytes: &[u8]) -> Result<ExitFile, serde_json::Error> {
    let raw: Raw = serde_json::from_slice(bytes)?;
    let ms = |at: jiff::Timestamp| u64::try_from(at.as_millisecond()).unwrap_or(0);
    let exit = Exit {
        code: raw.exit_code,
        signal: raw.signal,
        oom_killed: raw.oom_killed,
        at_ms: ms(raw.finished_at),
        cause: None,
    };
    Ok(ExitFile { exit, started_at_ms: ms(raw.started_at), memory_peak: raw.memory_peak_bytes.map(Bytes) })
}

/// One replica's exit file; `None` when it is not there or is no exit file.
pub(crate) fn read(path: &Path) -> Result<Option<ExitFile>, FileError> {
    let Some(bytes) = fsx::read(path)? else { return Ok(None) };
    match parse(&bytes) {
        Ok(exit) => Ok(Some(exit)),
        Err(error) => {
            warn!("{} is not an exit file: {error}", path.display());
            fsx::remove_file(path)?;
            Ok(None)
        }
    }
}

/// All exit files of the directory.
pub(crate) fn scan(dir: &Path) -> Result<Vec<(ReplicaId, ExitFile)>, FileError> {
    let mut found = Vec::new();
    for name in fsx::names(dir)? {
        if let Some(id) = name.strip_suffix(".json").and_then(|id| id.parse().ok())
            && let Some(exit) = read(&dir.join(&name))?
        {
            found.push((id, exit));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_file_is_read_and_rubbish_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"id":"a-s-1-000001","pid":7,"exit_code":null,"signal":9,"oom_killed":true,
            "started_at":"1970-01-01T00:00:01Z","finished_at":"1970-01-01T00:00:02.5Z","memory_peak_bytes":4096}"#;
        std::fs::write(dir.path().join("a-s-1-000001.json"), text).unwrap();
        std::fs::write(dir.path().join("a-s-2-000001.json"), "{").unwrap();
        std::fs::write(dir.path().join(".a-s-3-000001.json.tmp"), text).unwrap();
        let exit = Exit { code: None, signal: Some(9), oom_killed: true, at_ms: 2_500, cause: None };
        let want = ExitFile { exit, started_at_ms: 1_000, memory_peak: Some(Bytes(4096)) };
        assert_eq!(scan(dir.path()).unwrap(), [("a-s-1-000001".parse().unwrap(), want)]);
        assert!(!dir.path().join("a-s-2-000001.json").exists());
    }
}
