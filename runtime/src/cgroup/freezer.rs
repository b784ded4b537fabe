//! Stop all processes of a container where they are, and let them go on.

use super::hierarchy::read;
use super::make::for_each_below;
use super::{Cgroup, write_file};
use crate::error::{Because, Failure, InStep, Outcome, is_absent};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long the processes may take to stop: one in an uninterruptible wait keeps the others company.
const FREEZE_WITHIN: Duration = Duration::from_secs(10);

/// A place of a freezer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Freezer {
    /// A directory of the v1 hierarchy.
    V1(PathBuf),
    /// A directory of the unified hierarchy.
    V2(PathBuf),
}

impl Freezer {
    /// What to write, and into which file.
    fn command(&self, freeze: bool) -> (PathBuf, &'static str) {
        match (self, freeze) {
            (Self::V1(path), true) => (path.join("freezer.state"), "FROZEN"),
            (Self::V1(path), false) => (path.join("freezer.state"), "THAWED"),
            (Self::V2(path), true) => (path.join("cgroup.freeze"), "1"),
            (Self::V2(path), false) => (path.join("cgroup.freeze"), "0"),
        }
    }

    /// Whether somebody has asked for it to be frozen, itself or from above.
    pub(super) fn is_ordered(&self) -> io::Result<bool> {
        match self {
            Self::V1(path) => Ok(read(path.join("freezer.state"))?.trim() != "THAWED"),
            Self::V2(path) => Ok(read(path.join("cgroup.freeze"))?.trim() == "1"),
        }
    }

    /// Whether every process has stopped.
    fn is_done(&self) -> io::Result<bool> {
        match self {
            Self::V1(path) => Ok(read(path.join("freezer.state"))?.trim() == "FROZEN"),
            Self::V2(path) => Ok(read(path.join("cgroup.events"))?.lines().any(|line| line == "frozen 1")),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::V1(path) | Self::V2(path) => path,
        }
    }
}

/// Whether a container whose place is known is frozen; for a look at its status, which is asked for often.
pub fn is_frozen(path: &str) -> bool {
    let usual = Path::new(super::hierarchy::USUAL);
    // One read where the freezer is v1 or all is v2; the kernel's "not there" decides.
    let places = [
        Freezer::V1(usual.join("freezer").join(path)),
        Freezer::V2(usual.join(path)),
        Freezer::V2(usual.join("unified").join(path)),
    ];
    for freezer in &places {
        match freezer.is_ordered() {
            Err(error) if is_absent(&error) => {}
            result => return result.unwrap_or(false),
        }
    }
    // Mounted in a place of its own.
    Cgroup::at(path.to_owned())
        .ok()
        .and_then(|cgroup| cgroup.located().freezer())
        .is_some_and(|freezer| freezer.is_ordered().unwrap_or(false))
}

impl Cgroup {
    pub(super) fn freezer(&self) -> Option<Freezer> {
        match self.hierarchies.v1_of("freezer") {
            Some(v1) if self.is_left_out(&v1.mount) => None,
            Some(v1) => Some(Freezer::V1(v1.mount.join(&self.path))),
            None => self.v2_directory().map(Freezer::V2),
        }
    }

    /// Stop every process, and wait until all have stopped.
    ///
    /// # Errors
    /// There is no freezer, or a process does not stop; all go on then.
    pub fn freeze(&self) -> Outcome<()> {
        let freezer = self.freezer().ok_or_else(|| Failure::new("this host has no freezer cgroup"))?;
        let shown = freezer.path().display().to_string();
        let (file, value) = freezer.command(true);
        let deadline = Instant::now() + FREEZE_WITHIN;
        let mut pause = Duration::from_micros(100);
        loop {
            // Again each time: on v1 a process that was born meanwhile is stopped by the repeated write only.
            write_file(&file, value).because(|| format!("cannot freeze `{shown}`"))?;
            if freezer.is_done().because(|| format!("cannot freeze `{shown}`"))? {
                return Ok(());
            }
            if Instant::now() > deadline {
                self.thaw();
                return Err(Failure::new(format!("unable to freeze `{shown}` within {FREEZE_WITHIN:?}")))
                    .or_hint("a process hangs inside the kernel (state D); see /proc/PID/stack");
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    /// Let every process go on, also those in cgroups the container made. What is not there is not frozen.
    pub fn thaw(&self) {
        let Some(freezer) = self.freezer() else { return };
        // All below a v1 directory are thawed with it unless they were frozen themselves.
        let (file, value) = freezer.command(false);
        if write_file(&file, value).is_err_and(|error| is_absent(&error)) {
            return;
        }
        let name = file.file_name().unwrap_or_default().to_owned();
        for_each_below(freezer.path(), &mut |path| {
            if path != freezer.path() {
                let _ = write_file(&path.join(&name), value);
            }
        });
    }

    /// Whether it is frozen.
    pub fn is_frozen(&self) -> bool {
        self.freezer().is_some_and(|freezer| freezer.is_ordered().unwrap_or(false))
    }
}
