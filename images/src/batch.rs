//! Layers that are verified wait here for one sync of the file system, and get their names together.
//!
//! ```text
//! verified ─► waits ─► sync, renames, locks released     at the end of the image
//!                                                        or after HOLD_MAX
//!                                                        or at once, while this work waits for another
//! ```
//!
//! What waits is locked, so another pull that wants it waits too. Two that wait for each other would never end: hence
//! nobody keeps a finished layer while waiting for one.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::error::{ImageError, Result};
use crate::layer::{self, Part, Verified};
use crate::store::Store;

/// How long another may have to wait for a layer that is complete.
const HOLD_MAX: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(crate) struct Batch {
    store: Store,
    state: Mutex<State>,
    /// Held by who commits.
    committing: Mutex<()>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    ready: Vec<(Verified, Option<Part>)>,
    since: Option<Instant>,
    /// Parts of this work that wait for another.
    waiting: usize,
    /// Of a commit that nobody waited for.
    failure: Option<ImageError>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Batch {
    pub(crate) fn new(store: &Store) -> Self {
        Self { store: store.clone(), state: Mutex::default(), committing: Mutex::default(), changed: Notify::new() }
    }

    /// - `part`: stays locked until the commit.
    pub(crate) fn add(&self, verified: Verified, part: Option<Part>) {
        let mut state = locked(&self.state);
        state.ready.push((verified, part));
        state.since.get_or_insert_with(Instant::now);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Until it is dropped, nothing is held back.
    pub(crate) fn waits(&self) -> Waiting<'_> {
        locked(&self.state).waiting += 1;
        self.changed.notify_waiters();
        Waiting(self)
    }

    /// Sync and rename what is ready; returns when that is done, also if another thread was at it.
    ///
    /// # Errors
    /// Those of the file system, also of an earlier commit.
    pub(crate) fn commit(&self) -> Result<()> {
        let _one = locked(&self.committing);
        let mut state = locked(&self.state);
        let (ready, failure) = (std::mem::take(&mut state.ready), state.failure.take());
        state.since = None;
        drop(state);
        if let Some(failure) = failure {
            return Err(failure);
        }
        let (verified, parts): (Vec<_>, Vec<_>) = ready.into_iter().unzip();
        layer::commit(&self.store, &verified)?;
        // Those that became blobs are in place no more.
        parts.into_iter().flatten().try_for_each(|part| part.remove())
    }

    /// As `commit`, by a thread that nobody asks: the next commit tells of a failure.
    pub(crate) fn commit_aside(&self) {
        if let Err(error) = self.commit() {
            locked(&self.state).failure.get_or_insert(error);
        }
    }

    /// Until something should be committed before the end.
    pub(crate) async fn due(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From now on no change is missed.
            changed.as_mut().enable();
            match self.left() {
                Some(Duration::ZERO) => return,
                // In both cases there is a new look.
                Some(left) => drop(tokio::time::timeout(left, changed).await),
                None => changed.await,
            }
        }
    }

    /// Time until a commit is due; `None` if there is nothing to commit.
    pub(crate) fn left(&self) -> Option<Duration> {
        let state = locked(&self.state);
        let since = state.since?;
        Some(if state.waiting > 0 { Duration::ZERO } else { HOLD_MAX.saturating_sub(since.elapsed()) })
    }
}

/// See `Batch::waits`.
pub(crate) struct Waiting<'a>(&'a Batch);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        locked(&self.0.state).waiting -= 1;
    }
}
