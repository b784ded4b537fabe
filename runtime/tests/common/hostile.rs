//! What the tests of hostile images share: a tree that must not change, and somebody who keeps swapping files.
#![allow(dead_code)] // every test file uses a part

use crate::common::{Bed, Ran, finish};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A tree outside of the root filesystem that nothing may change.
pub(crate) struct Canary {
    dir: tempfile::TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl Canary {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("gantry-canary-").tempdir_in("/run").expect("a directory");
        for place in ["etc", "bin", "deep/er", "sys/net/ipv4", "self/attr"] {
            fs::create_dir_all(dir.path().join(place)).expect("a directory");
        }
        for (file, text) in [
            ("passwd", "root"),
            ("etc/hostname", "host"),
            ("sys/net/ipv4/ip_forward", "canary"),
            ("self/attr/exec", ""),
            ("self/oom_score_adj", "canary"),
        ] {
            fs::write(dir.path().join(file), text).expect("a file");
        }
        let before = snapshot(dir.path());
        Self { dir, before }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn assert_untouched(&self, why: &str) {
        assert_eq!(snapshot(self.path()), self.before, "{why}");
    }
}

/// Every file below a directory with kind, mode, owner, time of change and content.
pub(crate) fn snapshot(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let found = fs::symlink_metadata(&path).expect("a file");
        let content = if found.is_file() { fs::read(&path).expect("its content") } else { Vec::new() };
        if found.is_dir() {
            left.extend(fs::read_dir(&path).expect("entries").flatten().map(|entry| entry.path()));
        }
        let (mode, uid, gid, time) = (found.mode(), found.uid(), found.gid(), (found.ctime(), found.ctime_nsec()));
        all.insert(path, format!("{mode:o} {uid}:{gid} {time:?} {content:?}"));
    }
    all
}

/// A shell that opens descriptors of the host and then becomes the runtime.
pub(crate) fn with_leaks(bed: &Bed, args: &[&str]) -> Ran {
    bed.save();
    let mut shell = Command::new("sh");
    shell.arg("-c").arg("exec 3</ 4</etc 5</proc 6</dev 7</sys/fs/cgroup; exec \"$@\"").arg("sh");
    shell.arg(env!("CARGO_BIN_EXE_gantry-runtime")).arg("--root").arg(bed.path("state")).args(args);
    finish(shell.current_dir(bed.bundle()).stdin(Stdio::null()))
}

/// Goes up as far as it can, and says what is there.
pub(crate) const CLIMB: &str = "i=0; while [ $i -lt 30 ]; do cd .. || break; i=$((i+1)); done; ls -a";

/// How many rounds a race gets: `GANTRY_TEST_ROUNDS`, or what suits a run of all tests.
pub(crate) fn rounds(usual: usize) -> usize {
    std::env::var("GANTRY_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Pause of a racer between two exchanges. A tight loop holds the kernel's rename lock nearly always and has stalled a
/// whole machine for half a minute; this many are still some dozens per start of a container.
const PAUSE: Duration = Duration::from_micros(100);

/// Do something while pairs of files are exchanged; returns what it returns, and how many exchanges there were.
pub(crate) fn while_swapping<T>(pairs: &[(PathBuf, PathBuf)], work: impl FnOnce() -> T) -> (T, u64) {
    /// Stops the racer even when an assertion fails, so that the failure is seen.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for (one, other) in pairs {
                    let swapped = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).is_ok();
                    count.fetch_add(u64::from(swapped), Ordering::Relaxed);
                    std::thread::sleep(PAUSE);
                }
            }
        });
        let _stop = Stop(&stop);
        work()
    });
    (result, count.into_inner())
}
