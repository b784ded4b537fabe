//! What happened lately, kept in memory for readers and followers; the store has the same for after a restart.

use gantry_api::http::Event;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Events kept, in memory and in the store.
const EVENTS_MAX: usize = 5_000;

/// The last [`EVENTS_MAX`] events.
#[derive(Debug)]
pub(crate) struct EventLog {
    kept: Mutex<VecDeque<Event>>,
    newest: watch::Sender<u64>,
}

impl EventLog {
    pub(crate) fn new(events: Vec<Event>) -> Self {
        let newest = events.last().map_or(0, |event| event.sequence);
        Self { kept: Mutex::new(events.into()), newest: watch::Sender::new(newest) }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event; returns the sequence of one that is too old to keep.
    pub(crate) fn push(&self, event: Event) -> Option<u64> {
        let sequence = event.sequence;
        let mut kept = self.lock();
        kept.push_back(event);
        let dropped = if kept.len() > EVENTS_MAX { kept.pop_front() } else { None };
        drop(kept);
        self.newest.send_replace(sequence);
        dropped.map(|event| event.sequence)
    }

    /// Sequence of the newest event.
    pub(crate) fn newest(&self) -> u64 {
        *self.newest.borrow()
    }

    /// Events after `sequence`.
    pub(crate) fn after(&self, sequence: u64) -> Vec<Event> {
        self.lock().iter().filter(|event| event.sequence > sequence).cloned().collect()
    }

    /// Tells when there is a newer one.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}
