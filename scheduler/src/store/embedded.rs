//! A store in one file of this process (redb): copy-on-write B-trees, every commit forced to disk before it is
//! acknowledged.

use super::{Change, Condition, Entry, HISTORY_MAX, Op, Outcome, Store, StoreError, Transaction, check, end_of};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Key to (created, modified, value).
const ENTRIES: TableDefinition<'_, &str, (u64, u64, &[u8])> = TableDefinition::new("entries");
/// (revision, index within it) to (key, value unless removed).
const HISTORY: TableDefinition<'_, (u64, u32), (&str, Option<&[u8]>)> = TableDefinition::new("history");
/// `revision`, and `forgotten`: the last revision whose changes are no longer kept.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// A store in one file.
#[derive(Debug)]
pub struct Embedded {
    file: PathBuf,
    database: Database,
    revision: Mutex<u64>,
    changed: Condvar,
}

impl Embedded {
    /// Opens the store, making it when there is none.
    ///
    /// # Errors
    /// The file cannot be opened, is no store, or another process has it.
    pub fn open(file: &Path) -> Result<Self, StoreError> {
        let failed = |source: redb::Error| StoreError::Open { file: file.to_owned(), source: Box::new(source) };
        let database = Database::create(file).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { file: file.to_owned() },
            other => failed(other.into()),
        })?;
        let transaction = database.begin_write().map_err(|e| failed(e.into()))?;
        let revision = {
            transaction.open_table(ENTRIES).map_err(|e| failed(e.into()))?;
            transaction.open_table(HISTORY).map_err(|e| failed(e.into()))?;
            let meta = transaction.open_table(META).map_err(|e| failed(e.into()))?;
            let revision = meta.get("revision").map_err(|e| failed(e.into()))?;
            revision.map_or(0, |revision| revision.value())
        };
        transaction.commit().map_err(|e| failed(e.into()))?;
        Ok(Self { file: file.to_owned(), database, revision: Mutex::new(revision), changed: Condvar::new() })
    }

    fn reading<T>(&self, read: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let run = || read(&self.database.begin_read()?);
        run().map_err(|source| self.io("read", source))
    }

    fn io(&self, operation: &'static str, source: redb::Error) -> StoreError {
        StoreError::Io { operation, file: self.file.clone(), source: Box::new(source) }
    }

    fn write(&self, transaction: &Transaction) -> Result<Outcome, redb::Error> {
        let writing = self.database.begin_write()?;
        let outcome = {
            let mut entries = writing.open_table(ENTRIES)?;
            let mut history = writing.open_table(HISTORY)?;
            let mut meta = writing.open_table(META)?;
            let before = meta.get("revision")?.map_or(0, |revision| revision.value());
            for condition in &transaction.conditions {
                let holds = match condition {
                    Condition::Absent(key) => entries.get(key.as_str())?.is_none(),
                    Condition::Unchanged { key, modified } => {
                        entries.get(key.as_str())?.is_some_and(|entry| entry.value().1 == *modified)
                    }
                };
                if !holds {
                    return Ok(Outcome::Refused);
                }
            }
            let revision = before + 1;
            let mut changes = 0;
            for op in &transaction.ops {
                let value = match op {
                    Op::Put { key, value } => {
                        let created = entries.get(key.as_str())?.map_or(revision, |entry| entry.value().0);
                        entries.insert(key.as_str(), (created, revision, value.as_slice()))?;
                        Some(value.as_slice())
                    }
                    Op::Delete { key } if entries.remove(key.as_str())?.is_some() => None,
                    Op::Delete { .. } => continue,
                };
                history.insert((revision, changes), (op.key(), value))?;
                changes += 1;
            }
            if changes == 0 {
                return Ok(Outcome::Done(before));
            }
            if let Some(forgotten) = revision.checked_sub(HISTORY_MAX) {
                history.retain_in(..(forgotten + 1, 0), |_, _| false)?;
                meta.insert("forgotten", forgotten)?;
            }
            meta.insert("revision", revision)?;
            Outcome::Done(revision)
        };
        writing.commit()?;
        Ok(outcome)
    }

    fn find_changes(&self, prefix: &str, after: u64) -> Result<Vec<Change>, StoreError> {
        let (forgotten, found) = self.reading(|reading| {
            let forgotten = reading.open_table(META)?.get("forgotten")?.map_or(0, |f| f.value());
            let mut found = Vec::new();
            for change in reading.open_table(HISTORY)?.range((after + 1, 0)..)? {
                let (at, change) = change?;
                let (key, value) = change.value();
                if key.starts_with(prefix) {
                    let (revision, _) = at.value();
                    found.push(Change { revision, key: key.to_owned(), value: value.map(<[u8]>::to_vec) });
                }
            }
            Ok((forgotten, found))
        })?;
        if after < forgotten {
            return Err(StoreError::Compacted { from: after, oldest: forgotten });
        }
        Ok(found)
    }
}

impl Store for Embedded {
    fn revision(&self) -> Result<u64, StoreError> {
        Ok(*self.revision.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.reading(|reading| {
            let entry = reading.open_table(ENTRIES)?.get(key)?;
            Ok(entry.map(|entry| {
                let (created, modified, value) = entry.value();
                Entry { key: key.to_owned(), value: value.to_vec(), created, modified }
            }))
        })
    }

    fn range(&self, prefix: &str) -> Result<(u64, Vec<Entry>), StoreError> {
        self.reading(|reading| {
            let revision = reading.open_table(META)?.get("revision")?.map_or(0, |revision| revision.value());
            let entries = reading.open_table(ENTRIES)?;
            let end = end_of(prefix);
            let range = match &end {
                Some(end) => entries.range(prefix..end.as_str())?,
                None => entries.range(prefix..)?,
            };
            let mut found = Vec::new();
            for entry in range {
                let (key, entry) = entry?;
                let (created, modified, value) = entry.value();
                found.push(Entry { key: key.value().to_owned(), value: value.to_vec(), created, modified });
            }
            Ok((revision, found))
        })
    }

    fn commit(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        check(transaction)?;
        let outcome = self.write(transaction).map_err(|source| self.io("write", source))?;
        if let Outcome::Done(revision) = outcome {
            *self.revision.lock().unwrap_or_else(PoisonError::into_inner) = revision;
            self.changed.notify_all();
        }
        Ok(outcome)
    }

    fn changes(&self, prefix: &str, after: u64, timeout: Duration) -> Result<Vec<Change>, StoreError> {
        let deadline = Instant::now() + timeout;
        let mut seen = after;
        loop {
            let found = self.find_changes(prefix, after)?;
            let mut revision = self.revision.lock().unwrap_or_else(PoisonError::into_inner);
            if !found.is_empty() || deadline <= Instant::now() {
                return Ok(found);
            }
            // Sleep until a commit that the reading above may not have seen.
            while *revision <= seen {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                revision = self.changed.wait_timeout(revision, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            seen = *revision;
        }
    }
}
