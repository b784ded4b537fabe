//! Tests of the whole system; this library is what they share.
//!
//! A [`Cluster`] is a lab of its own: own name, data, run directory and cgroup parent, so that tests can run twice at
//! once and clean up after each other. Nothing here sleeps for a fixed time: [`until`] waits for a state with a
//! deadline and says what was missing.

mod cluster;
mod image;
mod registry;
mod request;

pub use cluster::{Cluster, Done, daemons, kill};
pub use image::{large_image, probe_image};
pub use registry::{Registry, serve_registry};
pub use request::{Answer, get};

use std::time::{Duration, Instant};

/// Asks `state` until it answers, at most `limit`; panics with what it said last when it never does.
///
/// # Panics
/// The state was not reached in time: the test has failed.
pub fn until<T>(what: &str, limit: Duration, mut state: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match state() {
            Ok(value) => return value,
            Err(missing) if start.elapsed() > limit => panic!("{what}: not within {limit:?}: {missing}"),
            Err(_) => std::thread::park_timeout(Duration::from_millis(20)),
        }
    }
}

/// Seconds, for deadlines: generous, since a deadline only ends a test that has failed.
pub const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// The binary `name`: from `variable`, else beside the test's own target folder.
///
/// # Panics
/// It is not there.
pub fn binary(variable: &str, name: &str) -> std::path::PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let mine = std::env::current_exe().expect("the test's own path");
    let beside = mine.ancestors().nth(2).expect("target/<profile>/deps").join(name);
    assert!(beside.exists(), "{} is not built: run `cargo xtask test`, or set {variable}", beside.display());
    beside
}
