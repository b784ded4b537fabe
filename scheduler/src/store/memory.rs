//! A store that is gone with its process, for tests and simulation.

use super::{Change, Condition, Entry, HISTORY_MAX, Op, Outcome, Store, StoreError, Transaction, check};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A store in memory.
#[derive(Debug, Default)]
pub struct Memory {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    entries: BTreeMap<String, Entry>,
    history: VecDeque<Change>,
    forgotten: u64,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn holds(&self, condition: &Condition) -> bool {
        match condition {
            Condition::Absent(key) => !self.entries.contains_key(key),
            Condition::Unchanged { key, modified } => self.entries.get(key).is_some_and(|e| e.modified == *modified),
        }
    }

    fn carry_out(&mut self, op: &Op, revision: u64) -> bool {
        let (key, value) = match op {
            Op::Put { key, value } => {
                let created = self.entries.get(key).map_or(revision, |entry| entry.created);
                let entry = Entry { key: key.clone(), value: value.clone(), created, modified: revision };
                self.entries.insert(key.clone(), entry);
                (key, Some(value.clone()))
            }
            Op::Delete { key } if self.entries.remove(key).is_some() => (key, None),
            Op::Delete { .. } => return false,
        };
        self.history.push_back(Change { revision, key: key.clone(), value });
        true
    }
}

impl Store for Memory {
    fn revision(&self) -> Result<u64, StoreError> {
        Ok(self.lock().revision)
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.lock().entries.get(key).cloned())
    }

    fn range(&self, prefix: &str) -> Result<(u64, Vec<Entry>), StoreError> {
        let state = self.lock();
        let under = state.entries.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        Ok((state.revision, under.map(|(_, entry)| entry.clone()).collect()))
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        check(transaction)?;
        let mut state = self.lock();
        if !transaction.conditions.iter().all(|condition| state.holds(condition)) {
            return Ok(Outcome::Refused);
        }
        let revision = state.revision + 1;
        let mut changed = false;
        for op in &transaction.ops {
            changed |= state.carry_out(op, revision);
        }
        if changed {
            state.revision = revision;
            while state.history.front().is_some_and(|change| change.revision + HISTORY_MAX <= revision) {
                state.forgotten = state.history.pop_front().map_or(0, |change| change.revision);
            }
            self.changed.notify_all();
        }
        Ok(Outcome::Done(state.revision))
    }

    fn changes(&self, prefix: &str, after: u64, timeout: Duration) -> Result<Vec<Change>, StoreError> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if after < state.forgotten {
                return Err(StoreError::Compacted { from: after, oldest: state.forgotten });
            }
            let wanted = |change: &&Change| change.revision > after && change.key.starts_with(prefix);
            let found: Vec<Change> = state.history.iter().filter(wanted).cloned().collect();
            let left = deadline.saturating_duration_since(Instant::now());
            if !found.is_empty() || left.is_zero() {
                return Ok(found);
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
